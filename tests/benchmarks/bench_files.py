"""What files of every format cost: ``python -m tests.benchmarks.bench_files [KIND …]``.

Delivers 20,000 and 200,000 rows of each format, from the local disk and from S3 (moto's server, in a process of its
own), to a local Halo that answers at once, each in a process of its own. Prints how long that took, and how far the
process's memory rose above that of a delivery of 2,000 rows of the same kind from the same place.
"""

import csv
import gzip
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
from botocore.exceptions import BotoCoreError

from halo_provider.operators.files import files_of, open_binary
from halo_provider.sources.formats import FileOptions, csv_source, file_source
from halo_provider.sources.open import expanded
from halo_provider.sources.rows import Source
from tests.benchmarks.contenders import Applications, halo
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.server import serving
from tests.waiting import wait_until

KINDS = ("csv", "csv.gz", "parquet", "jsonl", "xlsx")
ROWS = (20_000, 200_000)
WARM_UP_ROWS = 2_000  # rows delivered beforehand, so that imports and first connections do not count
GROUP = 10_000  # rows of a row group in Parquet
BUCKET = "s3://s3@bucket"


def write(path: Path, kind: str, csv_path: Path) -> None:
    """Write the rows of the CSV file in another format."""
    if kind == "parquet":
        pd.read_csv(csv_path).to_parquet(path, row_group_size=GROUP)
        return
    if kind == "xlsx":
        from openpyxl import Workbook  # noqa: PLC0415 -- for one kind only

        workbook = Workbook(write_only=True)
        sheet = workbook.create_sheet()
        with csv_path.open(encoding="utf-8", newline="") as lines:
            for line in csv.reader(lines):
                sheet.append(line)
        workbook.save(path)
        return
    with csv_path.open(encoding="utf-8", newline="") as lines:
        if kind == "csv.gz":
            path.write_bytes(gzip.compress(csv_path.read_bytes(), 6))
        elif kind == "jsonl":
            with path.open("w", encoding="utf-8") as target:
                target.writelines(f"{json.dumps(row)}\n" for row in csv.DictReader(lines))


def source_of(path: str) -> Source:
    """The file as the operators read it."""
    paths = expanded(path, files_of)
    if ".csv" in path:
        from halo_provider.sources.csv_file import CsvOptions  # noqa: PLC0415 -- for one kind only

        return csv_source(paths, open_binary, options=CsvOptions(), description=path)
    return file_source(paths, open_binary, options=FileOptions(), description=path)


def measure(url: str, folder: Path, place: str, kind: str, rows: int) -> dict[str, float]:
    """Deliver a few rows, then all, and say what the second delivery took."""

    def deliver(number: int) -> float:
        path = f"{place}/applications-{number}.{kind}"
        ledger_path = folder / f"{kind}-{number}-{os.getpid()}.db"
        applications = Applications(folder, number)
        return halo(applications, url, in_flight=64, ledger_path=ledger_path, source=source_of(path)).seconds

    deliver(WARM_UP_ROWS)
    before = peak_memory()
    seconds = deliver(rows)
    return {"seconds": seconds, "growth_kb": peak_memory() - before}


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """An S3 with one bucket, as long as the block runs; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "moto.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        ) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        bucket = client(url)

        def is_there() -> bool:
            try:
                bucket.create_bucket(Bucket="bucket")
            except BotoCoreError:
                return False
            return True

        try:
            wait_until(is_there)
            yield url
        finally:
            server.terminate()


def client(url: str) -> Any:
    """A client of that S3."""
    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="example", aws_secret_access_key="example", region_name="us-east-1"
    )


def main(kinds: list[str]) -> None:
    """Measure each case in a process of its own."""
    with tempfile.TemporaryDirectory() as name, serving(seconds=0) as server, s3(Path(name)) as s3_url:
        folder = Path(name)
        for rows in (WARM_UP_ROWS, *ROWS):
            csv_path = Applications(folder, rows).path
            for kind in kinds:
                path = folder / f"applications-{rows}.{kind}"
                if kind != "csv":
                    write(path, kind, csv_path)
                client(s3_url).upload_file(str(path), "bucket", path.name)
        connection = {
            "conn_type": "aws",
            "login": "example",
            "password": "example",
            "extra": {"endpoint_url": s3_url, "region_name": "us-east-1"},
        }
        environment = {**os.environ, "AIRFLOW_CONN_S3": json.dumps(connection), "AIRFLOW_HOME": str(folder / "airflow")}
        sys.stdout.write("| Format | Where | Rows | File, MB | Seconds | Rows/s | Memory, MB more |\n")
        sys.stdout.write("|---|---|--:|--:|--:|--:|--:|\n")
        for kind in kinds:
            for where, place in (("local disk", str(folder)), ("S3", BUCKET)):
                for rows in ROWS:
                    done = subprocess.run(
                        [sys.executable, "-m", __spec__.name, server.url, str(folder), place, kind, str(rows)],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                        env=environment,
                    )
                    measured = json.loads(done.stdout.splitlines()[-1])
                    size = (folder / f"applications-{rows}.{kind}").stat().st_size / 1_000_000
                    sys.stdout.write(
                        f"| `.{kind}` | {where} | {rows:,} | {size:.1f} | {measured['seconds']:.0f} "
                        f"| {rows / measured['seconds']:,.0f} | {measured['growth_kb'] / 1024:.0f} |\n"
                    )
                    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) == 6:
        child_url, child_folder, child_place, child_kind, child_rows = sys.argv[1:]
        result = measure(child_url, Path(child_folder), child_place, child_kind, int(child_rows))
        sys.stdout.write(f"{json.dumps(result)}\n")
    else:
        main(sys.argv[1:] or list(KINDS))
