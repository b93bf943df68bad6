"""Many workers on one source: a real Airflow with CeleryExecutor, Redis and PostgreSQL, and a worker that is killed.

``python -m tests.acceptance.celery_workers`` delivers as many rows by one worker, by two, and by two of which one is
killed in the middle, and writes what it took and what became of the rows into docs/guides/many-workers.md. Halo answers
as slowly there as makes it, and not the machine, the limit: then twice the workers are twice as fast.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import csv
import json
import os
import sys
import tempfile
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path

import psutil
from redis import Redis
from sqlalchemy import URL, func, select

from halo_provider.demo.airflow import Run
from halo_provider.demo.processes import START_TIMEOUT, Child, Home, kill
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from halo_provider.sources.shards import Shard
from tests import figures
from tests.acceptance.airflows import running_airflow
from tests.core.databases import own_database

PAGE = figures.DOCS / "guides" / "many-workers.md"
SHARDS = 8
ROWS = 20_000
SLOTS = 4  # tasks that a worker runs at a time
CONCURRENCY = 32  # requests that a task has in flight
LATENCY = (1.0, 1.5)  # seconds Halo takes to answer, at least and at most
POOL_SLOTS = 3  # tasks of the paced DAG that run at a time, on all workers together
REQUESTS_PER_SECOND = 24.0  # of the paced DAG, on all workers together
LEASE = 15.0  # seconds; nobody wants to wait the usual minute for a dead worker's rows
HEARTBEAT_TIMEOUT = 15  # seconds until the scheduler misses a dead worker's tasks; usually five minutes
PATIENCE = 600.0  # seconds for one delivery
POSTGRES_URL = "postgresql+psycopg2://root@127.0.0.1/test"
REDIS_URL = "redis://127.0.0.1:6379/0"
DAGS = f"""
from datetime import timedelta

from airflow.sdk import DAG
from halo_provider.ledger.ledger import Ledger
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

Ledger.lease_holder.__kwdefaults__["lease"] = {LEASE}


def tickets(**options):
    HaloTicketOperator.partial(
        task_id="tickets",
        csv_path="{{{{ dag_run.conf['csv_path'] }}}}",
        submission=Submission(name="note", key="id", user=User(id="user"), message="{{text}}"),
        ledger_conn_id="halo_ledger",
        batch_size=100,
        concurrency={CONCURRENCY},
        retries=5,
        retry_delay=timedelta(seconds=1),
        **options,
    ).expand(shard=[f"{{index}}/{SHARDS}" for index in range({SHARDS})])


with DAG("sharded", schedule=None):
    tickets()
with DAG("paced", schedule=None):
    tickets(pool="halo", requests_per_second={REQUESTS_PER_SECOND})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord:
    """What became of one source's rows. `seconds` are those from the first chat to the last."""

    rows: int
    state: str  # of the DAG run
    seconds: float
    cpu: float  # percent of all cores that were busy, whoever kept them so
    statuses: Counter[str]  # of the ledger's rows
    accepted: Counter[str]  # how often Halo took each row
    doubted: frozenset[str]  # rows that were ever in doubt, by their history
    tries: list[int]  # of the tasks, one for each shard
    most_tasks: int  # that ran at the same time, as far as their last tries go
    busiest_second: int  # requests that began in it
    fastest_shard: float  # requests a second

    @property
    def doubles(self) -> set[str]:
        """The rows that Halo took more than once."""
        return {key for key, times in self.accepted.items() if times > 1}


class Site:
    """An Airflow whose tasks run on Celery workers, with a Halo and a ledger."""

    def __init__(
        self, home: Home, stack: ExitStack, *, halo: Simulator, halo_url: str, database: URL, redis_url: str
    ) -> None:
        self._home = home
        self._halo = halo
        self._ledger = stack.enter_context(closing(Ledger.at(database)))
        self._workers: dict[str, Child] = {}
        dags = home.path / "dags"
        dags.mkdir(parents=True)
        (dags / "shards.py").write_text(DAGS, encoding="utf-8")
        url = database.render_as_string(hide_password=False)
        ledger = {
            "conn_type": "postgres",
            "host": database.host,
            "port": database.port,
            "login": database.username,
            "password": database.password,
            "schema": database.database,
        }
        settings = {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(
                {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY}
            ),
            "AIRFLOW_CONN_HALO_LEDGER": json.dumps(ledger),
            "AIRFLOW__CELERY__BROKER_URL": redis_url,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{url}",
            "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__GLOBAL_KEYPREFIX": _own_prefix(stack, redis_url),
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        }
        self._airflow, self._processes = stack.enter_context(
            running_airflow(home, dag_ids=["sharded", "paced"], settings=settings, metadata_url=url)
        )
        pool = {"name": "halo", "slots": POOL_SLOTS}
        self._airflow.request("POST", "/api/v2/pools", json=pool)

    def start_workers(self, *names: str) -> None:
        """Start workers, and wait until they take tasks."""
        for name in names:
            self._workers[name] = self._processes.start(
                name,
                "airflow",
                *("celery", "worker", "--skip-serve-logs"),
                *("--concurrency", str(SLOTS), "--celery-hostname", f"{name}@%h"),
            )
        self._processes.wait(
            lambda: all("ready." in self._workers[name].log.read_text(errors="replace") for name in names) or None,
            stage=f"starting {' and '.join(names)}",
            timeout=START_TIMEOUT,
        )

    def deliver(self, rows: int, *, dag_id: str = "sharded", killing: str | None = None) -> DeliveryRecord:
        """Deliver so many new rows; in the middle, kill a worker."""
        name = uuid.uuid4().hex[:6]
        path = self._home.path / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "user", "text"])
            writer.writerows([f"{name}-{n}", f"user-{n}", f"Note {n}."] for n in range(rows))
        self._halo.reset()
        psutil.cpu_percent()  # from here on
        run = self._airflow.trigger(dag_id, conf={"csv_path": str(path)})
        if killing is not None:
            self._processes.wait(
                lambda: self._is_busy(killing, run, done=rows // SHARDS // 4) or None,
                stage=f"delivering until {killing} is to die",
                timeout=PATIENCE,
            )
            self._kill(killing)
        self._processes.wait(
            lambda: self._airflow.state(run) in {"success", "failed"} or None,
            stage=lambda: f"{len(self._halo.chats) * 10 // rows * 10} % of {rows:,} rows",
            timeout=PATIENCE,
        )
        ours = events.c.row_key.startswith(f"{name}-")
        in_doubt = select(events.c.row_key).where(ours, events.c.event == LedgerStatus.IN_DOUBT)
        statuses = select(submissions.c.status).where(submissions.c.row_key.startswith(f"{name}-"))
        tasks = self._airflow.tasks(run)
        chats = [(chat.user_id or "", chat.started) for chat in self._halo.chats]
        starts = [started for _, started in chats]
        return DeliveryRecord(
            rows=rows,
            state=self._airflow.state(run),
            seconds=max(starts) - min(starts),
            cpu=psutil.cpu_percent(),
            statuses=Counter(self._ledger.transaction(lambda db: db.scalars(statuses).all())),
            accepted=Counter(user.replace("user", name) for user, _ in chats),
            doubted=frozenset(self._ledger.transaction(lambda db: db.scalars(in_doubt).all())),
            tries=[task["try_number"] for task in tasks],
            most_tasks=_most_at_once([(task["start_date"], task["end_date"]) for task in tasks]),
            busiest_second=_most_in_a_second(starts),
            fastest_shard=max(
                _pace([started for user, started in chats if Shard(index, SHARDS).takes(user)])
                for index in range(SHARDS)
            ),
        )

    def _is_busy(self, name: str, run: Run, *, done: int) -> bool:
        """Whether no task waits, and one that the worker runs has delivered so many rows."""
        tasks = self._airflow.tasks(run)
        if any(task["state"] not in {"running", "success"} for task in tasks):
            return False  # a task that its worker has not begun would be missed only when it is long overdue
        processes = {process.pid for process in self._workers[name].members()}
        delivered = (
            select(func.count())
            .where(submissions.c.run_id == run.run_id, submissions.c.status == LedgerStatus.DELIVERED)
            .where(
                submissions.c.map_index.in_(
                    [task["map_index"] for task in tasks if task["state"] == "running" and task["pid"] in processes]
                )
            )
            .group_by(submissions.c.map_index)
        )
        return any(count >= done for count in self._ledger.transaction(lambda db: db.scalars(delivered).all()))

    def _kill(self, name: str) -> None:
        """SIGKILL a worker with all its tasks, as when its host goes down."""
        worker = self._workers.pop(name)
        while members := worker.members():
            kill(members)


def _own_prefix(stack: ExitStack, redis_url: str) -> str:
    """A prefix for the keys on a Redis that others may use; at the end the keys are deleted."""
    prefix = f"halo-{uuid.uuid4().hex[:12]}:"
    redis = stack.enter_context(closing(Redis.from_url(redis_url)))

    def clean_up() -> None:
        for key in redis.scan_iter(match=f"{prefix}*"):
            redis.delete(key)

    stack.callback(clean_up)
    return prefix


def _most_at_once(spans: list[tuple[str, str]]) -> int:
    """How many of these stretches of time, given by their ISO dates, overlap at most."""
    changes = [(datetime.fromisoformat(end), -1) for _, end in spans]
    changes += [(datetime.fromisoformat(start), 1) for start, _ in spans]
    return max(accumulate(change for _, change in sorted(changes)))


def _most_in_a_second(moments: list[float]) -> int:
    """How many of these moments, in seconds and in order, lie within one second at most."""
    return max(bisect_left(moments, moment + 1.0) - index for index, moment in enumerate(moments))


def _pace(moments: list[float]) -> float:
    """How many of these moments, in seconds and in order, there are in a second."""
    return (len(moments) - 1) / (moments[-1] - moments[0]) if len(moments) > 1 else 0.0


@contextmanager
def site(folder: Path, *, postgres_url: str, redis_url: str) -> Iterator[Site]:
    """A running site without workers, in a PostgreSQL database of its own, which is dropped at the end."""
    with ExitStack() as stack:
        database = stack.enter_context(own_database(postgres_url, force=True))
        halo = Simulator(chat_latency=LATENCY, record_bodies=False)
        halo_url = stack.enter_context(serving(halo))
        yield Site(
            Home(folder),
            stack,
            halo=halo,
            halo_url=halo_url,
            database=database,
            redis_url=redis_url,
        )


def report(deliveries: dict[str, DeliveryRecord], *, load: float) -> Iterator[str]:
    """What was delivered by which workers, as Markdown."""
    low, high = LATENCY
    yield from figures.wrapped(
        f"{figures.today()}: {figures.machine()}, for Airflow, workers, Halo and databases together;",
        f"load before: {load:.1f}.",
        f"{SHARDS} shards with {CONCURRENCY} requests in flight each; a worker runs {SLOTS} of them at a time.",
        f"Halo takes {low:g} to {high:g} s to answer, so that a worker makes at most {_limit():.0f} rows a second.",
        f"Airflow notices a killed worker after {HEARTBEAT_TIMEOUT} s here.",
    )
    yield ""
    yield "| Workers | Rows | With Halo | Once in doubt | Sent twice | Of these never in doubt | Seconds | Rows/s |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for name, delivery in deliveries.items():
        yield (
            f"| {name} | {delivery.rows:,} | {len(delivery.accepted):,} | {len(delivery.doubted)} "
            f"| {len(delivery.doubles)} | {len(delivery.doubles - delivery.doubted)} | {delivery.seconds:.0f} "
            f"| {delivery.rows / delivery.seconds:.0f} |"
        )
    yield ""
    yield "Seconds are those from the first request to the last."


def _limit() -> float:
    """Rows a second that one worker can make (Little's law)."""
    return SLOTS * CONCURRENCY / (sum(LATENCY) / 2)


def main() -> int:
    """Measure one worker and two, then kill one of them; 0 if each row is with Halo."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.celery_workers", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="(default: %(default)s)")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/guides/many-workers.md")
    options = parser.parse_args()
    rows = options.rows
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="halo-celery-") as folder,
        site(
            Path(folder),
            postgres_url=os.environ.get("HALO_TEST_POSTGRES_URL", POSTGRES_URL),
            redis_url=os.environ.get("HALO_TEST_REDIS_URL", REDIS_URL),
        ) as airflow,
    ):
        airflow.start_workers("first")
        deliveries = {"one": airflow.deliver(rows)}
        airflow.start_workers("second")
        deliveries["two"] = airflow.deliver(rows)
        deliveries["two, one killed at a quarter"] = airflow.deliver(rows, killing="second")
    lines = list(report(deliveries, load=load))
    print("\n".join(lines))
    for name, delivery in deliveries.items():
        tries = " ".join(map(str, delivery.tries))
        print(
            f"{name}: run {delivery.state}, tries of the shards {tries}, CPU {delivery.cpu:.0f} % busy", file=sys.stderr
        )
    broken = [
        name
        for name, delivery in deliveries.items()
        if len(delivery.accepted) != rows or not delivery.doubles <= delivery.doubted
    ]
    if broken:
        print(f"BROKEN: rows lost, or sent twice without doubt: {'; '.join(broken)}", file=sys.stderr)
    elif not options.no_page:
        figures.renew(PAGE, "workers", lines)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
