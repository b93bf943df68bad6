"""Runs of DAGs on Airflow's own database, the types of the fixtures that make them, and what those are made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import psutil
from airflow.sdk import DAG
from sqlalchemy import select

from tests.waiting import meanwhile, wait_until


@dataclass(frozen=True, slots=True)
class Run:
    """A DAG run as Airflow's database has it."""

    dag_id: str
    run_id: str

    def task(self, task_id: str, *, map_index: int = -1) -> Any:
        """The task instance, with ``state``, ``try_number`` and what else Airflow keeps of it."""
        from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 -- needs the migrated database

        return self.only_record(TaskInstance, task_id=task_id, map_index=map_index)

    def state(self, task_id: str, *, map_index: int = -1) -> str:
        """The task's state."""
        return str(self.task(task_id, map_index=map_index).state)

    def xcom(self, task_id: str, *, map_index: int = -1) -> Any:
        """What the task returned, or pushed as its return value; None where there is nothing."""
        from airflow.models.xcom import XComModel  # noqa: PLC0415 -- needs the migrated database

        found = self.only_record(XComModel, task_id=task_id, map_index=map_index, key="return_value")
        return None if found is None else XComModel.deserialize_value(found)

    def only_record(self, model: Any, **criteria: Any) -> Any:
        """The only record of this model about this run that meets the criteria; None where there is none."""
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


def first_try(dag: DAG, task_id: str, *, run_type: str) -> Any:
    """A task's first try, about to start, in a new run."""
    from airflow.serialization.serialized_objects import DagSerialization  # noqa: PLC0415 -- needs the database
    from airflow.utils.state import DagRunState  # noqa: PLC0415
    from airflow.utils.types import DagRunTriggeredByType, DagRunType  # noqa: PLC0415

    register(dag)
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


@contextmanager
def beside_task_process(action: Callable[[int], None] | None) -> Iterator[None]:
    """Do something, given the process id of the task that the block starts, while it runs; or nothing."""
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


def register(dag: DAG) -> None:
    """Make the DAG known to Airflow, as its processor does for the DAGs of files."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager  # noqa: PLC0415 -- needs the migrated database
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db  # noqa: PLC0415

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder="/dev/null", bundle_name="dags-folder")
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
