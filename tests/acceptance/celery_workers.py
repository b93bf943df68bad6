"""Many workers on one source: a real Airflow with CeleryExecutor, Redis and PostgreSQL, and a worker that is killed.

``python -m tests.acceptance.celery_workers`` delivers as many rows by one worker, by two, and by two of which one is
killed in the middle, and prints what it took and what became of the rows.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import csv
import json
import os
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url, select, text

from halo_provider import demo
from halo_provider.ledger import Ledger, Status
from halo_provider.schema import events, submissions
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving

DAG_ID = "sharded"
SHARDS = 8
SLOTS = 4  # tasks that a worker runs at a time
LATENCY = (0.04, 0.06)  # seconds Halo takes to answer, at least and at most
PATIENCE = 300.0  # seconds for one delivery
POSTGRES_URL = "postgresql+psycopg2://root@127.0.0.1/test"
REDIS_URL = "redis://127.0.0.1:6379/9"
DAG = f"""
from datetime import timedelta

from airflow.sdk import DAG
from halo_provider.ledger import Ledger
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

Ledger.claimant.__kwdefaults__["lease"] = 15.0  # seconds: nobody wants to wait a minute for a dead worker's rows

with DAG({DAG_ID!r}, schedule=None):
    HaloTicketOperator.partial(
        task_id="tickets",
        csv_path="{{{{ dag_run.conf['csv_path'] }}}}",
        submission=Submission(name="note", key="id", user=User(id="user"), message="{{text}}"),
        ledger_conn_id="halo_ledger",
        batch_size=100,
        concurrency=8,
        retries=5,
        retry_delay=timedelta(seconds=1),
    ).expand(shard=[f"{{index}}/{SHARDS}" for index in range({SHARDS})])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of one source's rows. `seconds` are those from the first chat to the last."""

    rows: int
    state: str  # of the DAG run
    seconds: float
    statuses: Counter[str]  # of the ledger's rows
    accepted: Counter[str]  # how often Halo took each row
    doubted: frozenset[str]  # rows that were ever in doubt, by their history
    tries: list[int]  # of the tasks, one for each shard

    @property
    def doubles(self) -> set[str]:
        """The rows that Halo took more than once."""
        return {key for key, times in self.accepted.items() if times > 1}

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.rows:,} rows: {self.state}, {len(self.accepted):,} with Halo, {len(self.doubted)} once in doubt, "
            f"{len(self.doubles)} sent twice, {self.seconds:.1f} s, {self.rows / self.seconds:,.0f} rows a second"
        )


class Site:
    """An Airflow whose tasks run on Celery workers, with a Halo and a ledger."""

    def __init__(
        self, home: demo.Home, stack: ExitStack, *, halo: Simulator, halo_url: str, database: URL, redis_url: str
    ) -> None:
        self._home = home
        self._stack = stack
        self._halo = halo
        self._ledger = stack.enter_context(closing(Ledger.at(database)))
        self._queue = f"halo-{uuid.uuid4().hex[:12]}"  # of our own, on a Redis that others may use
        self._workers: dict[str, demo.Child] = {}
        dags = home.path / "dags"
        dags.mkdir(parents=True)
        (dags / f"{DAG_ID}.py").write_text(DAG, encoding="utf-8")
        (port,) = demo._free_ports(1)
        url = database.render_as_string(hide_password=False)
        ledger = {
            "conn_type": "postgres",
            "host": database.host,
            "port": database.port,
            "login": database.username,
            "password": database.password,
            "schema": database.database,
        }
        self._environment = demo._environment(home, simulator_port=0, airflow_port=port) | {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(
                {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY}
            ),
            "AIRFLOW_CONN_HALO_LEDGER": json.dumps(ledger),
            "AIRFLOW__CELERY__BROKER_URL": redis_url,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{url}",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url,
            "AIRFLOW__OPERATORS__DEFAULT_QUEUE": self._queue,
            # How soon the scheduler misses the tasks of a dead worker, in seconds.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        }
        self._airflow = stack.enter_context(demo.AirflowApi(f"http://{demo.LOOPBACK}:{port}"))
        self._processes = demo.Processes(
            home=home, environment=self._environment, stack=stack, progress=demo.Progress()
        )
        demo.start_airflow(self._processes, self._airflow, dag_ids=[DAG_ID])

    def start_worker(self, name: str) -> None:
        """Start a worker with four slots, and wait until it takes tasks."""
        arguments = ("--concurrency", str(SLOTS), "--celery-hostname", f"{name}@%h", "--queues", self._queue)
        worker = demo.Child(
            name,
            "airflow",
            *("celery", "worker", "--skip-serve-logs", *arguments),
            environment=self._environment,
            home=self._home,
        )
        self._stack.callback(worker.stop)
        self._workers[name] = worker
        self._processes.wait(
            lambda: "ready." in worker.log.read_text(errors="replace") or None,
            stage=f"starting the worker {name}",
            timeout=demo.START_TIMEOUT,
        )

    def kill_worker(self, name: str) -> None:
        """SIGKILL a worker with all its tasks, as when its host goes down."""
        worker = self._workers[name]
        for process in worker._session_members():
            process.kill()
        worker.stop()

    def deliver(self, rows: int, *, killing: str | None = None) -> Delivery:
        """Deliver so many new rows; in the middle, kill a worker."""
        name = uuid.uuid4().hex[:6]
        path = self._home.path / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "user", "text"])
            writer.writerows([f"{name}-{n}", f"user-{name}-{n}", f"Note {n}."] for n in range(rows))
        self._halo.reset()
        run = self._airflow.trigger(DAG_ID, conf={"csv_path": str(path)})
        if killing is not None:
            self._processes.wait(
                lambda: len(self._halo.chats) >= rows // 3 or None, stage="delivering", timeout=PATIENCE
            )
            self.kill_worker(killing)
        self._processes.wait(
            lambda: self._airflow.state(run) in {"success", "failed"} or None,
            stage=lambda: f"{len(self._halo.chats):,} of {rows:,} chats",
            timeout=PATIENCE,
        )
        ours = submissions.c.row_key.startswith(f"{name}-")
        in_doubt = select(events.c.row_key).where(
            events.c.row_key.startswith(f"{name}-"), events.c.event == Status.IN_DOUBT
        )
        received = [chat.received_at for chat in self._halo.chats]
        return Delivery(
            rows=rows,
            state=self._airflow.state(run),
            seconds=(max(received) - min(received)).total_seconds(),
            statuses=Counter(
                self._ledger.transaction(lambda db: db.scalars(select(submissions.c.status).where(ours)).all())
            ),
            accepted=Counter((chat.user_id or "").removeprefix("user-") for chat in self._halo.chats),
            doubted=frozenset(self._ledger.transaction(lambda db: db.scalars(in_doubt).all())),
            tries=[task["try_number"] for task in self._airflow.tasks(run)],
        )


@contextmanager
def site(folder: Path, *, postgres_url: str, redis_url: str) -> Iterator[Site]:
    """A running site without workers, in a PostgreSQL database of its own, which is dropped at the end."""
    server_url = make_url(postgres_url)
    name = f"halo_celery_{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        server = create_engine(server_url, isolation_level="AUTOCOMMIT")
        stack.callback(server.dispose)
        db = stack.enter_context(server.connect())
        db.execute(text(f"CREATE DATABASE {name}"))
        stack.callback(lambda: db.execute(text(f"DROP DATABASE {name} WITH (FORCE)")))
        halo = Simulator(chat_latency=LATENCY, record_bodies=False)
        halo_url = stack.enter_context(serving(halo))
        yield Site(
            demo.Home(folder),
            stack,
            halo=halo,
            halo_url=halo_url,
            database=server_url.set(database=name),
            redis_url=redis_url,
        )


def main() -> None:
    """Measure one worker and two, then kill one of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.celery_workers", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="(default: %(default)s)")
    rows = parser.parse_args().rows
    postgres_url = os.environ.get("HALO_TEST_POSTGRES_URL", POSTGRES_URL)
    redis_url = os.environ.get("HALO_TEST_REDIS_URL", REDIS_URL)
    with (
        tempfile.TemporaryDirectory(prefix="halo-celery-") as folder,
        site(Path(folder), postgres_url=postgres_url, redis_url=redis_url) as airflow,
    ):
        airflow.start_worker("first")
        lines = [f"one worker, {airflow.deliver(rows)}"]
        airflow.start_worker("second")
        lines.append(f"two workers, {airflow.deliver(rows)}")
        lines.append(f"two workers, one killed, {airflow.deliver(rows, killing='second')}")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
