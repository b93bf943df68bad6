"""Real task runs, and cheap ones: a DAG made in the test runs in this process, on Airflow's own database and API."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator
from tests.provider.notes import csv_text, rows
from tests.provider.runs import (
    Attempt,
    Connect,
    Run,
    RunDag,
    Statuses,
    Supervise,
    beside_task_process,
    first_try,
    register,
)


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
        register(dag)
        return Run(dag.dag_id, dag.test().run_id)

    return run


@pytest.fixture
def attempt(run: RunDag) -> Attempt:
    """Run one task once, in a run of any type."""

    def attempt(dag: DAG, task_id: str, *, run_type: str = "manual") -> Run:
        from airflow.sdk.definitions.dag import _run_task  # noqa: PLC0415 -- needs the migrated database

        ti = first_try(dag, task_id, run_type=run_type)
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
        ti = first_try(dag, task_id, run_type="manual")
        ti.set_state(TaskInstanceState.QUEUED)
        # The supervisor looks for its child's end this often, in seconds, where it missed the moment.
        monkeypatch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0.2)
        log_path = f"{dag.dag_id}/{ti.run_id}/{task_id}.log"
        with beside_task_process(meanwhile):
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


@pytest.fixture
def notes_csv(tmp_path: Path) -> Path:
    """A CSV file with three rows for NOTE."""
    path = tmp_path / "notes.csv"
    path.write_text(csv_text(rows(3)), encoding="utf-8")
    return path


@pytest.fixture
def faulty_csv(notes_csv: Path) -> Path:
    """A CSV file with four rows, of which the second (line 3) lacks the user."""
    faulty = rows(4)
    faulty[1]["user"] = ""
    notes_csv.write_text(csv_text(faulty), encoding="utf-8")
    return notes_csv
