"""How fast the pages are over a large ledger: ``python tests/benchmarks/bench_ui.py [--url URL] [--rows 1000000]``.

Fills a ledger in SQLite, or in the database behind a SQLAlchemy URL, whose halo tables are dropped before and after,
or with ``--keep`` left, and taken as they are where they have so many rows;
serves Airflow's own API server with the plugin, and prints the median and the worst time of each page over HTTP. A
third of the rows belongs to one run, the others to runs of 1,000 rows of twenty DAGs; one in a thousand is in doubt.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from sqlalchemy import create_engine, func, insert, inspect, select, text
from sqlalchemy.engine import URL, Engine, make_url

from halo_provider.ledger import Ledger
from halo_provider.ledger.refs import task_ref
from halo_provider.ledger.tables import DELIVERY_COUNTS, deliveries, metadata, submissions
from halo_provider.simulator import serving

DAGS = 20
RUN_ROWS = 1_000
MAPPED = 100  # task instances of the big run
NAMESPACE = "halo_default/application"
BIG_DAG, BIG_RUN = "history", "backfill__2026-01-01"
CHUNK = 10_000  # rows inserted at a time
REPEATS = 7
CONNECTION_TYPES = {"postgresql": "postgres", "mysql": "mysql"}


def rows(number: int) -> Iterator[dict[str, Any]]:
    """The ledger's rows."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for each in range(number):
        big = each < number // 3
        run = each // RUN_ROWS
        status = "in_doubt" if each % 1000 == 0 else "rejected" if each % 1000 == 1 else "delivered"
        yield {
            "namespace": NAMESPACE,
            "row_key": f"APP-2026-{each * 7919 % number:07}",
            "status": status,
            "user_id": f"usr_{each % 50_000}",
            "session_id": f"ses_{each:032x}" if status == "delivered" else None,
            "agent_id": "agent_1",
            "payload_hash": f"{each:064x}",
            "attempts": 1,
            "error": None if status == "delivered" else "POST /chat: no answer within 120 s; Halo may have it",
            "reply": "Thank you, we have received your application and will come back to you." * 3,
            "owner": f"host:{run}:000000000000",
            "dag_id": BIG_DAG if big else f"applications_{run % DAGS}",
            "run_id": BIG_RUN if big else f"scheduled__{run}",
            "task_id": "tickets",
            "map_index": each % MAPPED if big else -1,
            "try_number": 1,
            "created_at": now,
            "updated_at": now + timedelta(seconds=each),
        }


def lines(number: int) -> Iterator[dict[str, Any]]:
    """The account's lines, one for each run of `rows`, and nine for deliveries that found nothing new."""
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for run in range(number // RUN_ROWS):
        for again in range(10):
            counts = dict.fromkeys(DELIVERY_COUNTS, 0)
            counts["already_delivered" if again else "delivered"] = RUN_ROWS
            yield {
                "owner": f"host:{run}:{again:012}",
                "namespace": NAMESPACE,
                "dag_id": f"applications_{run % DAGS}",
                "run_id": f"scheduled__{run}",
                "task_id": "tickets",
                "map_index": -1,
                "try_number": again + 1,
                "started_at": now + timedelta(minutes=run * 10 + again),
                "updated_at": now,
                "ended_at": now,
                **counts,
                "request_seconds": 1.0,
                "seconds": 10.0,
            }


def fill(url: URL, *, number: int) -> None:
    """Make the ledger."""
    with closing(Ledger.at(url)) as ledger:
        for table, source in ((submissions, rows(number)), (deliveries, lines(number))):
            while chunk := [row for _, row in zip(range(CHUNK), source, strict=False)]:
                ledger.transaction(lambda db, table=table, chunk=chunk: db.execute(insert(table), chunk))
        if ledger.engine.dialect.name == "postgresql":
            ledger.engine.execution_options(isolation_level="AUTOCOMMIT").connect().execute(text("VACUUM ANALYZE"))


def is_filled(engine: Engine, *, number: int) -> bool:
    """Whether the ledger has been filled with so many rows."""
    if not inspect(engine).has_table(submissions.name):
        return False
    with engine.begin() as db:
        return db.execute(select(func.count()).select_from(submissions)).scalar() == number


def pages(number: int) -> dict[str, str]:
    """The addresses by what they show."""
    big = {"run_id": BIG_RUN}
    task = {**big, "task_id": "tickets"}
    small = {"run_id": f"scheduled__{number // RUN_ROWS // DAGS * DAGS - 15}"}
    one = {"namespace": NAMESPACE, "row_key": f"APP-2026-{7919 % number:07}"}
    found = f"APP-2026-{7919 * 2 % number:07}"
    error = "POST /chat: no answer within 120 s; Halo may have it"

    requeue = {**big, "action": "requeue", "status": "in_doubt"}

    def rows_of(dag_id: str, query: dict[str, str | int]) -> str:
        return f"dags/{dag_id}/rows?{urlencode(query)}"

    middle = {
        "after_status": "delivered",
        "after_namespace": NAMESPACE,
        "after_key": "APP-2026-05",
        "after_task": task_ref("tickets", MAPPED // 2) or 0,
    }
    return {
        "overview": "",
        f"run of {number // 3:,} rows, first page": rows_of(BIG_DAG, big),
        "the same, in doubt": rows_of(BIG_DAG, {**big, "status": "in_doubt"}),
        "the same, delivered": rows_of(BIG_DAG, {**big, "status": "delivered"}),
        "the same, page in the middle": rows_of(BIG_DAG, {**big, **middle}),
        "the same, task": rows_of(BIG_DAG, task),
        "the same, task instance": rows_of(BIG_DAG, {**task, "map_index": 42}),
        "the same, map_index alone": rows_of(BIG_DAG, {**big, "map_index": 42}),
        "the same, map_index of none": rows_of(BIG_DAG, {**big, "map_index": 4242}),
        "the same, task of none": rows_of(BIG_DAG, {**big, "task_id": "none"}),
        "the same, task, search in vain": rows_of(BIG_DAG, {**task, "search": "not there"}),
        "the same, task instance, in vain": rows_of(BIG_DAG, {**task, "map_index": 42, "search": "not there"}),
        "the same, task, delivered, middle": rows_of(BIG_DAG, {**task, "status": "delivered", **middle}),
        "the same, one error": rows_of(BIG_DAG, {**big, "error": error}),
        "the same, an error of none": rows_of(BIG_DAG, {**big, "error": "another"}),
        "the same, in doubt, sorted": rows_of(BIG_DAG, {**big, "status": "in_doubt", "sort": "-updated_at"}),
        "the same, changed in the last hour": rows_of(BIG_DAG, {**big, "changed": "hour"}),
        "the same, what went on": rows_of(BIG_DAG, {**big, "went_on": "yes"}),
        "the same, search for a row key": rows_of(BIG_DAG, {**big, "search": found}),
        "the same, search for a user": rows_of(BIG_DAG, {**big, "search": "usr_4242"}),
        "the same, search in vain": rows_of(BIG_DAG, {**big, "search": "not there"}),
        "the same, requeue?": f"dags/{BIG_DAG}/decision?{urlencode(requeue)}",
        "DAG of the same": rows_of(BIG_DAG, {}),
        "DAG of the same, search in vain": rows_of(BIG_DAG, {"search": "not there"}),
        "run of 1,000 rows": rows_of("applications_5", small),
        "DAG of 33,000 rows": rows_of("applications_5", {}),
        "one row": f"dags/{BIG_DAG}/row?{urlencode(one)}",
    }


def configure(home: Path, url: URL) -> None:
    """Let this process be an Airflow whose ledger is at the URL, with one viewer."""
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({"admin": "password of admin"}))
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
    if url.get_backend_name() in CONNECTION_TYPES:
        connection = {
            "conn_type": CONNECTION_TYPES[url.get_backend_name()],
            "host": url.host,
            "port": url.port,
            "login": url.username,
            "password": url.password,
            "schema": url.database,
        }
        os.environ |= {
            "AIRFLOW_CONN_HALO_LEDGER": json.dumps(connection),
            "AIRFLOW__HALO__LEDGER_CONN_ID": "halo_ledger",
        }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)


def measure(number: int) -> None:
    """Print each page's times."""
    from airflow.api_fastapi.app import create_app  # noqa: PLC0415 -- reads the configuration

    with serving(create_app(apps="core")) as airflow, httpx.Client(base_url=airflow, timeout=60.0) as browser:
        login = browser.post("/auth/token", json={"username": "admin", "password": "password of admin"})
        browser.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
        sys.stdout.write(f"{'page':36}  {'median, ms':>10}  {'worst, ms':>9}  {'kB':>6}\n")
        for name, path in pages(number).items():
            seconds = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                answer = browser.get(f"/halo/{path}").raise_for_status()
                seconds.append(time.perf_counter() - started)
            middle, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
            sys.stdout.write(f"{name:36}  {middle:10,.0f}  {worst:9,.0f}  {len(answer.content) / 1000:6,.1f}\n")
        download(browser)


def download(browser: httpx.Client) -> None:
    """Print how long the big run's file takes, and how much memory it costs the server, which is this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    lines = 0
    with browser.stream("GET", f"/halo/dags/{BIG_DAG}/rows.csv?{urlencode({'run_id': BIG_RUN})}") as answer:
        for part in answer.raise_for_status().iter_bytes():
            lines += part.count(b"\n")
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    sys.stdout.write(f"download of {lines - 1:,} rows: {seconds:.1f} s, peak memory +{grown:,.0f} MB\n")


def main() -> None:
    """Fill, measure, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url", help="a SQLAlchemy URL of PostgreSQL, MySQL or MariaDB; by default SQLite")
    parser.add_argument("--keep", action="store_true", help="leave the ledger at --url, and measure the one there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="halo-bench-") as folder:
        url = make_url(options.url or f"sqlite:///{folder}/halo_ledger.db")
        engine = create_engine(url)
        configure(Path(folder), url)
        if not (options.keep and is_filled(engine, number=options.rows)):
            metadata.drop_all(engine)
            started = time.perf_counter()
            fill(url, number=options.rows)
            sys.stdout.write(
                f"{url.get_backend_name()}: {options.rows:,} rows, filled in {time.perf_counter() - started:.0f} s\n"
            )
        try:
            measure(options.rows)
        finally:
            if not options.keep:
                metadata.drop_all(engine)
            engine.dispose()


if __name__ == "__main__":
    main()
