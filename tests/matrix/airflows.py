"""Airflow of any version from 2.11 on, run by its own processes and asked over its command line and its database."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL

from halo_provider.demo.airflow import LOOPBACK, AirflowApi, airflow_environment, free_ports
from halo_provider.demo.processes import CHECKOUT, Home, Processes, Progress
from halo_provider.demo.source import create_source

PATIENCE = 150.0  # seconds for whatever Airflow has to do
HAS_SDK = find_spec("airflow.sdk") is not None  # else it is Airflow 2: one process, and other commands


@dataclass(frozen=True, kw_only=True)
class AnyAirflow:
    """A running Airflow."""

    home: Home
    processes: Processes
    environment: dict[str, str]
    metadata_url: URL

    def command(self, *arguments: str, **settings: str) -> str:
        """Run `airflow …` with these settings too, and return what it says; an assertion that it does so well."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            check=False,
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"airflow {' '.join(arguments)}: {done.stdout[-3000:]}"
        return done.stdout

    def rows(self, statement: str, **parameters: Any) -> list[Any]:
        """What Airflow's database says; a statement that changes something does so."""
        engine = create_engine(self.metadata_url, future=True)
        try:
            with engine.begin() as db:
                result = db.execute(text(statement), parameters)
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()

    def wait(self, true: Any, *, stage: str) -> None:
        """Return as soon as it is."""
        self.processes.wait(lambda: true() or None, stage=stage, timeout=PATIENCE)

    def trigger(self, dag_id: str, run_id: str) -> None:
        """Begin a run."""
        self.command("dags", "trigger", dag_id, "--run-id", run_id)

    def run_states(self, dag_id: str, *, run_type: str) -> list[str]:
        """The states of the DAG's runs of a type, in the order in which they were made."""
        return [
            state
            for (state,) in self.rows(
                "SELECT state FROM dag_run WHERE dag_id = :dag_id AND run_type = :run_type ORDER BY id",
                dag_id=dag_id,
                run_type=run_type,
            )
        ]

    def task(self, run_id: str, task_id: str) -> tuple[str | None, int]:
        """A task's state and its tries."""
        ((state, tries),) = self.rows(
            "SELECT state, try_number FROM task_instance WHERE run_id = :run_id AND task_id = :task_id",
            run_id=run_id,
            task_id=task_id,
        )
        return state, tries

    def mark_failed(self, run_id: str, task_id: str) -> None:
        """What the button does to a running task: the next heartbeat of its process finds it failed."""
        self.rows(
            "UPDATE task_instance SET state = 'failed' WHERE run_id = :run_id AND task_id = :task_id",
            run_id=run_id,
            task_id=task_id,
        )

    def clear(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Let the task run again."""
        if not HAS_SDK:
            self.command("tasks", "clear", dag_id, "--task-regex", f"^{task_id}$", "--yes")
            return
        which = {"dag_run_id": run_id, "task_ids": [task_id], "only_failed": False, "dry_run": False}
        with AirflowApi(self.environment["AIRFLOW__API__BASE_URL"]) as api:
            api.log_in()
            api.request("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=which)

    def backfill(self, dag_id: str, *, first: str, last: str) -> None:
        """Run these days, those again that ran before; returns when Airflow has taken the order, or has done it."""
        if HAS_SDK:
            # Airflow looks now and then whether a backfill has ended, and takes no other one of the DAG until then.
            unfinished = "SELECT id FROM backfill WHERE completed_at IS NULL"
            self.wait(lambda: not self.rows(unfinished), stage="ending the last backfill")
            days = ("--from-date", first, "--to-date", last)
            self.command("backfill", "create", "--dag-id", dag_id, *days, "--reprocess-behavior", "completed")
        else:
            # The command runs the tasks itself; forked ones would close its connection to PostgreSQL.
            in_turn = {"AIRFLOW__CORE__EXECUTOR": "SequentialExecutor"}
            self.command("dags", "backfill", dag_id, "-s", first, "-e", last, "--reset-dagruns", "--yes", **in_turn)

    def returned(self, dag_id: str, task_id: str, *, run_type: str) -> list[dict[str, Any]]:
        """What the task pushed as its return value in each run of a type, in the order of the runs."""
        found = self.rows(
            "SELECT x.value FROM xcom x JOIN dag_run r ON r.dag_id = x.dag_id AND r.run_id = x.run_id "
            "WHERE x.dag_id = :dag_id AND x.task_id = :task_id AND x.key = 'return_value' AND r.run_type = :run_type "
            "ORDER BY r.id",
            dag_id=dag_id,
            task_id=task_id,
            run_type=run_type,
        )
        return [_decoded(value) for (value,) in found]

    def pushed(self, run_id: str, task_id: str, key: str) -> list[Any]:
        """What the task pushed under a key."""
        found = self.rows(
            "SELECT value FROM xcom WHERE run_id = :run_id AND task_id = :task_id AND key = :key",
            run_id=run_id,
            task_id=task_id,
            key=key,
        )
        return [_decoded(value) for (value,) in found]

    def log(self, run_id: str, task_id: str) -> str:
        """Everything that the task's tries logged."""
        folder = self.home.task_logs / f"dag_id={self.dag_of(run_id)}" / f"run_id={run_id}" / f"task_id={task_id}"
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.log")))

    def dag_of(self, run_id: str) -> str:
        """The DAG of a run."""
        ((dag_id,),) = self.rows("SELECT dag_id FROM dag_run WHERE run_id = :run_id", run_id=run_id)
        found: str = dag_id
        return found


@contextmanager
def any_airflow(
    path: Path, *, metadata_url: URL, dags: dict[str, str], settings: dict[str, str]
) -> Iterator[AnyAirflow]:
    """Airflow with the example DAGs and these, all of them parsed and none of them paused."""
    home = Home(path)
    shutil.copytree(CHECKOUT / "dags", path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    for name, source in dags.items():
        (path / "dags" / f"{name}.py").write_text(source, encoding="utf-8")
    create_source(home.source)
    (port,) = free_ports(1)
    url = metadata_url.render_as_string(hide_password=False)
    environment = {
        **airflow_environment(home, simulator_port=0, airflow_port=port, metadata_url=url),
        "AIRFLOW__CORE__DAGS_FOLDER": str(path / "dags"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # Airflow runs `airflow`
        **settings,
    }
    with ExitStack() as stack:
        processes = Processes(home=home, environment=environment, stack=stack, progress=Progress())
        processes.run("db-migrate", "airflow", "db", "migrate", stage="preparing Airflow's database")
        if HAS_SDK:
            arguments = ("--host", LOOPBACK, "--port", str(port), "--workers", "1")
            processes.serve("api-server", "airflow", "api-server", *arguments)
            processes.serve("dag-processor", "airflow", "dag-processor")
        processes.serve("scheduler", "airflow", "scheduler", "--skip-serve-logs")
        airflow = AnyAirflow(home=home, processes=processes, environment=environment, metadata_url=metadata_url)
        files = len(list((path / "dags").glob("*.py")))
        airflow.wait(lambda: len(airflow.rows("SELECT dag_id FROM dag")) >= files or errors(airflow), stage="parsing")
        yield airflow


def errors(airflow: AnyAirflow) -> list[str]:
    """What broke in the DAG files, each with its traceback."""
    return [trace for (trace,) in airflow.rows("SELECT stacktrace FROM import_error")]


def _decoded(value: Any) -> Any:
    """An XCom value: JSON, in some versions as bytes, and in some as text within JSON."""
    while isinstance(value, str | bytes | memoryview):
        try:
            value = json.loads(bytes(value) if isinstance(value, memoryview) else value)
        except ValueError:
            return value
    return value
