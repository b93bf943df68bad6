"""How much memory SqlSource needs for a long query: ``python tests/benchmarks/bench_sql_memory.py``.

Reads 10,000 and 500,000 rows of about 500 bytes from PostgreSQL and MariaDB, each in a process of its own, and prints
how far the process grew. HALO_TEST_POSTGRES_URL and HALO_TEST_MARIADB_URL name other servers than the local ones.
With a URL and a number of rows it measures just that, and prints the growth in kB.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine

from halo_provider.sources.sql import SqlSource

QUERIES = {
    "postgresql": "SELECT n AS id, repeat('x', 480) AS details FROM generate_series(1, {rows}) AS n",
    "mysql": "SELECT seq AS id, repeat('x', 480) AS details FROM seq_1_to_{rows}",
}
URLS = {
    "PostgreSQL": os.environ.get("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test"),
    "MariaDB": os.environ.get("HALO_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4"),
}
WARM_UP_ROWS = 2_000  # rows read beforehand, so that imports and first connections do not count


def growth(url: str, *, rows: int) -> int:
    """How many kB the peak of this process's memory rises while it reads so many rows."""
    read(url, rows=WARM_UP_ROWS)
    before = peak_memory()
    assert read(url, rows=rows) == rows
    return peak_memory() - before


def read(url: str, *, rows: int) -> int:
    """Read the rows one by one, as a delivery does, and count them."""
    engine = create_engine(url, future=True)
    statement = QUERIES[engine.dialect.name].format(rows=rows)
    source = SqlSource(engine=engine, statement=statement, parameters=None, description="the query")
    try:
        return sum(1 for _ in source.rows(required=["id"]))
    finally:
        source.close()


def peak_memory() -> int:
    """The most memory this program has held, in kB (getrusage would include the program it was forked from)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    """Measure each case in a process of its own."""
    sys.stdout.write(f"{'database':10}  {'rows':>8}  {'seconds':>7}  {'growth, MB':>10}\n")
    for database, url in URLS.items():
        for rows in (10_000, 500_000):
            started = time.monotonic()
            measured = subprocess.run(
                [sys.executable, __file__, url, str(rows)], check=True, stdout=subprocess.PIPE, text=True
            )
            seconds = time.monotonic() - started
            growth_mb = int(measured.stdout) / 1024
            sys.stdout.write(f"{database:10}  {rows:8,}  {seconds:7.1f}  {growth_mb:10.1f}\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        sys.stdout.write(f"{growth(sys.argv[1], rows=int(sys.argv[2]))}\n")
