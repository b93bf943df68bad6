"""What people do without this provider: one HttpOperator task for each row, mapped, in a real Airflow."""

import json
import tempfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from halo_provider.demo.processes import Home
from tests.acceptance.airflows import running_airflow

DAG_ID = "mapped_tasks"
PATIENCE = 120.0  # seconds for all of them
DAG = """
from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import DAG

with DAG({dag_id!r}, schedule=None):
    HttpOperator.partial(task_id="post", http_conn_id="halo_http", endpoint="/api/sdk/chat", method="POST").expand(
        data=[f'{{{{"message": "Application {{n}}", "user_id": "usr_{{n}}"}}}}' for n in range({rows})]
    )
"""


def can_run() -> bool:
    """Whether the HTTP provider is installed."""
    return find_spec("airflow.providers.http") is not None


def rows_per_second(url: str, *, rows: int) -> float:
    """From the start of the first task to the end of the last, on Airflow's LocalExecutor."""
    with tempfile.TemporaryDirectory(prefix="halo-benchmark-") as folder:
        home = Home(Path(folder))
        dags = home.path / "dags"
        dags.mkdir()
        (dags / f"{DAG_ID}.py").write_text(DAG.format(dag_id=DAG_ID, rows=rows), encoding="utf-8")
        settings = {
            "AIRFLOW_CONN_HALO_HTTP": json.dumps({"conn_type": "http", "host": url}),
            "AIRFLOW__CORE__PARALLELISM": "16",
        }
        with running_airflow(home, dag_ids=[DAG_ID], settings=settings) as (airflow, processes):
            run = airflow.trigger(DAG_ID)
            processes.wait(
                lambda: airflow.state(run) in {"success", "failed"} or None,
                stage="posting rows by mapped tasks",
                timeout=PATIENCE,
            )
            assert airflow.state(run) == "success"
            tasks = airflow.tasks(run)
        starts = [datetime.fromisoformat(task["start_date"]) for task in tasks]
        ends = [datetime.fromisoformat(task["end_date"]) for task in tasks]
        return rows / (max(ends) - min(starts)).total_seconds()
