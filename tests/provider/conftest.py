"""Real task runs, and cheap ones: a DAG made in the test runs in this process, on Airflow's own database and API."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator
from halo_provider.submission import Submission, User

NOTE = Submission(
    name="note",
    key="id",
    user=User(id="user", traits={"name": "name"}),
    message="{text}",
)


@dataclass(frozen=True, slots=True)
class Run:
    """A DAG run as Airflow's database has it."""

    dag_id: str
    run_id: str

    def task(self, task_id: str, *, map_index: int = -1) -> Any:
        """The task instance: its ``state``, ``try_number``, …"""
        from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- needs the migrated database
        from airflow.utils.session import create_session  # noqa: PLC0415

        with create_session() as db:
            query = db.query(TaskInstance).filter_by(
                dag_id=self.dag_id, run_id=self.run_id, task_id=task_id, map_index=map_index
            )
            return query.one()

    def state(self, task_id: str, *, map_index: int = -1) -> str:
        """The task's state."""
        return str(self.task(task_id, map_index=map_index).state)

    def xcom(self, task_id: str, *, map_index: int = -1) -> Any:
        """What the task returned, or pushed as its return value; None where there is nothing."""
        from airflow.models.xcom import XComModel  # noqa: PLC0415 -- needs the migrated database
        from airflow.utils.session import create_session  # noqa: PLC0415

        with create_session() as db:
            query = db.query(XComModel).filter_by(
                dag_id=self.dag_id, run_id=self.run_id, task_id=task_id, map_index=map_index, key="return_value"
            )
            found = query.one_or_none()
            return None if found is None else XComModel.deserialize_value(found)


def rows(number: int) -> list[dict[str, str]]:
    """Rows for NOTE, each of a user of its own."""
    return [
        {"id": str(each), "user": f"user_{each}", "name": f"Name {each}", "text": f"Text {each}"}
        for each in range(1, number + 1)
    ]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, halo_url: str) -> Callable[..., None]:
    """Define a Halo connection; ``halo_default`` leads to the simulator from the start."""

    def define(conn_id: str = "halo_default", **fields: Any) -> None:
        connection = {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY, **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    define()
    return define


@pytest.fixture
def ledger(airflow_home: Path) -> Callable[[], dict[tuple[str, str], str]]:
    """Start with no ledger; read {(namespace, row_key): status} from its file."""
    path = airflow_home / "halo_ledger.db"
    for file in airflow_home.glob("halo_ledger.db*"):
        file.unlink()

    def statuses() -> dict[tuple[str, str], str]:
        with closing(sqlite3.connect(path)) as db:
            found = db.execute("SELECT namespace, row_key, status FROM halo_submissions").fetchall()
        return {(namespace, row_key): status for namespace, row_key, status in found}

    return statuses


@pytest.fixture
def errors() -> list[BaseException]:
    """What the tasks of `dag` raised, try by try."""
    return []


@pytest.fixture
def dag(request: pytest.FixtureRequest, errors: list[BaseException]) -> DAG:
    """An empty DAG of the test's own."""

    def remember(context: Any) -> None:
        errors.append(context["exception"])

    return DAG(
        re.sub(r"[^\w.-]", "_", request.node.name),
        schedule=None,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        default_args={"on_failure_callback": remember, "on_retry_callback": remember},
    )


@pytest.fixture
def run(
    airflow_home: Path, connect: Callable[..., None], ledger: Callable[..., Any], halo: Simulator
) -> Callable[[DAG], Run]:
    """Run a whole DAG, retries included."""

    def run(dag: DAG) -> Run:
        register(dag)
        return Run(dag.dag_id, dag.test().run_id)

    return run


@pytest.fixture
def attempt(run: Callable[[DAG], Run]) -> Callable[..., Run]:
    """Run one task once, in a run of any type."""

    def attempt(dag: DAG, task_id: str, *, run_type: str = "manual") -> Run:
        from airflow.sdk.definitions.dag import _run_task  # noqa: PLC0415 -- needs the migrated database
        from airflow.serialization.serialized_objects import DagSerialization  # noqa: PLC0415
        from airflow.utils.state import DagRunState  # noqa: PLC0415
        from airflow.utils.types import DagRunTriggeredByType, DagRunType  # noqa: PLC0415

        register(dag)
        now = datetime.now(UTC)
        scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        dag_run = scheduled.create_dagrun(
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
        _run_task(ti=ti, task=dag.task_dict[task_id])
        return Run(dag.dag_id, dag_run.run_id)

    return attempt


def register(dag: DAG) -> None:
    """Make the DAG known to Airflow, as its processor does for the DAGs of files."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- needs the migrated database
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db  # noqa: PLC0415

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder="/dev/null", bundle_name="dags-folder")
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
