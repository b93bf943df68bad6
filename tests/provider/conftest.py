"""Real task runs, and cheap ones: a DAG made in the test runs in this process, on Airflow's own database and API."""

import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest
from airflow.sdk import DAG
from sqlalchemy import select

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator
from halo_provider.submission import Company, Submission, User

PATIENCE = 15.0  # seconds a test waits for what it makes happen

NOTE = Submission(
    name="note",
    key="id",
    user=User(id="user", traits={"name": "name"}),
    company=Company(id="company", traits={"name": "company"}),
    message="{text}",
)


@dataclass(frozen=True, slots=True)
class Run:
    """A DAG run as Airflow's database has it."""

    dag_id: str
    run_id: str

    def task(self, task_id: str, *, map_index: int = -1) -> Any:
        """The task instance, with ``state``, ``try_number`` and what else Airflow keeps of it."""
        from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- needs the migrated database

        return self._only(TaskInstance, task_id=task_id, map_index=map_index)

    def state(self, task_id: str, *, map_index: int = -1) -> str:
        """The task's state."""
        return str(self.task(task_id, map_index=map_index).state)

    def xcom(self, task_id: str, *, map_index: int = -1) -> Any:
        """What the task returned, or pushed as its return value; None where there is nothing."""
        from airflow.models.xcom import XComModel  # noqa: PLC0415 -- needs the migrated database

        found = self._only(XComModel, task_id=task_id, map_index=map_index, key="return_value")
        return None if found is None else XComModel.deserialize_value(found)

    def _only(self, model: Any, **criteria: Any) -> Any:
        from airflow.utils.session import create_session  # noqa: PLC0415 -- needs the migrated database

        query = select(model).filter_by(dag_id=self.dag_id, run_id=self.run_id, **criteria)
        with create_session() as db:
            return db.scalars(query).one_or_none()


class Connect(Protocol):
    """Defines a Halo connection: the simulator's, but for the fields given."""

    def __call__(self, conn_id: str = "halo_default", **fields: Any) -> None:
        """Define it."""


class Attempt(Protocol):
    """Runs one task once, in a run of its own."""

    def __call__(self, dag: DAG, task_id: str, *, run_type: str = "manual") -> Run:
        """Run it."""
        ...


class Supervise(Protocol):
    """Runs one task of a DAG file in a real task process, and returns its log too; `meanwhile` gets its process id."""

    def __call__(
        self, dag_file: str, task_id: str, *, meanwhile: Callable[[int], None] | None = None
    ) -> tuple[Run, str]:
        """Run it."""
        ...


RunDag = Callable[[DAG], Run]
Statuses = Callable[[], dict[tuple[str, str], str]]


def rows(number: int) -> list[dict[str, str]]:
    """Rows for NOTE, each of a user of its own."""
    return [
        {
            "id": str(each),
            "user": f"user_{each}",
            "name": f"Name {each}",
            "company": f"Company {each}",
            "text": f"Text {each}",
        }
        for each in range(1, number + 1)
    ]


def csv_text(notes: list[dict[str, str]]) -> str:
    """The rows as a CSV file, where no value needs quotes."""
    return "".join(f"{','.join(line)}\n" for line in (notes[0].keys(), *(note.values() for note in notes)))


def wait_until(true: Callable[[], Any]) -> None:
    """Return as soon as it is. Raises TimeoutError where it takes longer than PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread while the block runs, and wait for it at the end."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, halo_url: str) -> Connect:
    """Define Halo connections; ``halo_default`` leads to the simulator from the start."""

    def connect(conn_id: str = "halo_default", **fields: Any) -> None:
        connection = {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY, **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    connect()
    return connect


@pytest.fixture
def statuses(airflow_home: Path) -> Statuses:
    """Start without a ledger; read {(namespace, row_key): status} from its file."""
    for file in airflow_home.glob("halo_ledger.db*"):
        file.unlink()

    def statuses() -> dict[tuple[str, str], str]:
        with closing(sqlite3.connect(airflow_home / "halo_ledger.db")) as db:
            found = db.execute("SELECT namespace, row_key, status FROM halo_submissions").fetchall()
        return {(namespace, row_key): status for namespace, row_key, status in found}

    return statuses


@pytest.fixture
def errors() -> list[BaseException]:
    """What the tasks of `dag` raised, try by try."""
    return []


@pytest.fixture
def dag(request: pytest.FixtureRequest, errors: list[BaseException], tmp_path: Path) -> DAG:
    """An empty DAG of the test's own, which finds its files in `tmp_path`."""

    def remember(context: Any) -> None:
        errors.append(context["exception"])

    return DAG(
        re.sub(r"[^\w.-]", "_", request.node.name),
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        params={"folder": str(tmp_path)},
        template_searchpath=str(tmp_path),
        default_args={"on_failure_callback": remember, "on_retry_callback": remember},
    )


@pytest.fixture
def run(airflow_home: Path, connect: Connect, statuses: Statuses, halo: Simulator) -> RunDag:
    """Run a whole DAG, retries included."""

    def run(dag: DAG) -> Run:
        _register(dag)
        return Run(dag.dag_id, dag.test().run_id)

    return run


@pytest.fixture
def attempt(run: RunDag) -> Attempt:
    """Run one task once, in a run of any type."""

    def attempt(dag: DAG, task_id: str, *, run_type: str = "manual") -> Run:
        from airflow.sdk.definitions.dag import _run_task  # noqa: PLC0415 -- needs the migrated database

        ti = _task_instance(dag, task_id, run_type=run_type)
        _run_task(ti=ti, task=dag.task_dict[task_id])
        return Run(dag.dag_id, ti.run_id)

    return attempt


@pytest.fixture
def supervise(run: RunDag, airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervise]:
    """Run tasks as an executor does: forked, with a supervisor, log file, masking and signals."""
    dag_path = airflow_home / "dags" / "supervised.py"

    def supervise(dag_file: str, task_id: str, *, meanwhile: Callable[[int], None] | None = None) -> tuple[Run, str]:
        from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415 -- needs the migrated database
        from airflow.executors.workloads import BundleInfo, TaskInstance  # noqa: PLC0415
        from airflow.sdk.execution_time import supervisor  # noqa: PLC0415
        from airflow.utils.state import TaskInstanceState  # noqa: PLC0415

        dag_path.write_text(dag_file, encoding="utf-8")
        (dag,) = DagBag(dag_folder=dag_path, bundle_name="dags-folder").dags.values()
        ti = _task_instance(dag, task_id, run_type="manual")
        ti.set_state(TaskInstanceState.QUEUED)
        # The supervisor looks for its child's end this often, in seconds, where it missed the moment.
        monkeypatch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0.2)
        log_path = f"{dag.dag_id}/{ti.run_id}/{task_id}.log"
        with _alongside(meanwhile):
            supervisor.supervise_task(
                ti=TaskInstance.model_validate(ti, from_attributes=True),
                bundle_info=BundleInfo(name="dags-folder"),
                dag_rel_path=dag_path.name,
                token="",
                client=supervisor.InProcessTestSupervisor._api_client(dag),
                log_path=log_path,
            )
        return Run(dag.dag_id, ti.run_id), (airflow_home / "logs" / log_path).read_text(encoding="utf-8")

    yield supervise
    dag_path.unlink(missing_ok=True)


@contextmanager
def _alongside(action: Callable[[int], None] | None) -> Iterator[None]:
    """Do something to the task process while it runs."""
    if action is None:
        yield
        return
    ours = psutil.Process()
    before = set(ours.children())

    def act() -> None:
        wait_until(lambda: set(ours.children()) - before)
        (task_process,) = set(ours.children()) - before
        action(task_process.pid)

    with meanwhile(act):
        yield


def _task_instance(dag: DAG, task_id: str, *, run_type: str) -> Any:
    """A task's first try, about to start, in a new run."""
    from airflow.serialization.serialized_objects import DagSerialization  # noqa: PLC0415 -- needs the database
    from airflow.utils.state import DagRunState  # noqa: PLC0415
    from airflow.utils.types import DagRunTriggeredByType, DagRunType  # noqa: PLC0415

    _register(dag)
    now = datetime.now(UTC)
    dag_run = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)).create_dagrun(
        run_id=f"{run_type}__{now.isoformat()}",
        logical_date=now,
        data_interval=(now, now),
        run_after=now,
        run_type=DagRunType(run_type),
        triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState.RUNNING,
    )
    ti = dag_run.get_task_instance(task_id)
    ti.try_number += 1
    return ti


def _register(dag: DAG) -> None:
    """Make the DAG known to Airflow, as its processor does for the DAGs of files."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- needs the migrated database
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db  # noqa: PLC0415

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder="/dev/null", bundle_name="dags-folder")
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
