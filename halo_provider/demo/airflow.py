"""A local Airflow on ports of the loopback interface: its settings, its start, and its REST API."""

import json
import os
import random
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any, Self

import httpx
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_random_exponential

from halo_provider.demo import metadata
from halo_provider.demo.processes import CHECKOUT, START_TIMEOUT, DemoError, Home, Processes

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_768)  # below those that Linux and macOS give to outgoing connections
MAX_REQUESTS = 8  # of one call, which Airflow answers with 5xx where SQLite refuses it a lock (see processes.LOCKED)
REQUEST_TIMEOUT = 60.0  # seconds
LOCK_TIMEOUT = 60.0  # seconds that SQLite's writers wait for each other, instead of five
WIDGET_KEY = "ab_live_example_demo_widget_key"
IDENTITY_SECRET = "ha_secret_example_demo_identity_secret"  # noqa: S105 - an example, known to the local simulator only


@dataclass(frozen=True, kw_only=True)
class Run:
    """A DAG run."""

    dag_id: str
    run_id: str
    logical_date: datetime | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """The run that Airflow's REST API describes."""
        logical_date = answer["logical_date"]
        return cls(
            dag_id=answer["dag_id"],
            run_id=answer["dag_run_id"],
            logical_date=datetime.fromisoformat(logical_date) if logical_date else None,
        )

    @property
    def path(self) -> str:
        """Where the REST API has it."""
        return f"/api/v2/dags/{self.dag_id}/dagRuns/{self.run_id}"

    def __str__(self) -> str:
        return f"{self.dag_id} {self.logical_date:%Y-%m-%d}" if self.logical_date else self.dag_id


class AirflowApi:
    """The calls of Airflow's REST API that the demo makes, as the administrator everybody is in its Airflow."""

    def __init__(self, url: str) -> None:
        self.url = url
        # A kept connection that the server closes after some seconds of silence would fail the call that meets its end.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT, limits=limits, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def unhealthy(self) -> list[str]:
        """The components that do not report to be healthy (yet)."""
        components = self._get("/api/v2/monitor/health")
        return [name for name in ("scheduler", "dag_processor") if components[name]["status"] != "healthy"]

    def log_in(self) -> None:
        """Fetch a token for all further calls."""
        self._http.headers["Authorization"] = f"Bearer {self.token()}"

    def token(self) -> str:
        """A new token for everything that the administrator may do."""
        token: str = self._get("/auth/token")["access_token"]
        return token

    def import_errors(self, *, since: datetime) -> list[str]:
        """What broke in the dags folder, each with its traceback."""
        errors = self._get("/api/v2/importErrors")["import_errors"]
        return [error["stack_trace"] for error in errors if datetime.fromisoformat(error["timestamp"]) >= since]

    def is_parsed(self, dag_id: str, *, since: datetime) -> bool:
        """Whether Airflow knows the DAG as its file is now, and not only from an earlier demo."""
        found = self._find(f"/api/v2/dags/{dag_id}")
        parsed = found["last_parsed_time"] if found else None
        return parsed is not None and datetime.fromisoformat(parsed) >= since

    def abandon_runs(self, dag_id: str) -> None:
        """End what an interrupted demo left, or the scheduler would resume it beside the new runs."""
        for backfill in self._get("/api/v2/backfills", dag_id=dag_id)["backfills"]:
            if backfill["completed_at"] is None:
                self.request("PUT", f"/api/v2/backfills/{backfill['id']}/cancel")
        for state in ("queued", "running"):
            for run in self.runs(dag_id, state=state):
                self.request("PATCH", run.path, json={"state": "failed"})

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Mapping[str, object] | None = None
    ) -> Run:
        """Trigger the DAG, by default without a logical date."""
        body = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": conf or {}}
        return Run.of(self.request("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body).json())

    def backfill(self, dag_id: str, *, first: date, last: date) -> list[Run]:
        """Backfill these days, those again that were backfilled before, and return the runs in order."""
        days = {"from_date": f"{first}T00:00:00Z", "to_date": f"{last}T00:00:00Z"}
        body = {"dag_id": dag_id, **days, "reprocess_behavior": "completed"}
        self.request("POST", "/api/v2/backfills", json=body)
        return self.runs(dag_id, logical_date_gte=days["from_date"], logical_date_lte=days["to_date"])

    def runs(self, dag_id: str, **filters: str) -> list[Run]:
        """The DAG's runs that the filters of Airflow's REST API let through, in the order of their logical dates."""
        found = self._get(f"/api/v2/dags/{dag_id}/dagRuns", order_by="logical_date", **filters)
        return [Run.of(run) for run in found["dag_runs"]]

    def state(self, run: Run) -> str:
        """queued, running, success or failed."""
        state: str = self._get(run.path)["state"]
        return state

    def tasks(self, run: Run) -> list[dict[str, Any]]:
        """The run's task instances, in the order in which they started, those that have not at the end."""
        found = self._get(f"{run.path}/taskInstances")
        return sorted(found["task_instances"], key=lambda task: task["start_date"] or "~")

    def returned(self, run: Run, task_id: str) -> Any:
        """What the task returned or pushed in its place, None where there is nothing."""
        found = self._find(f"{run.path}/taskInstances/{task_id}/xcomEntries/return_value")
        return found["value"] if found else None

    def request(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, json: Any = None
    ) -> httpx.Response:
        """Any call. Raises httpx.HTTPError, also for a status that is an error's; for 5xx, when it stays so."""
        tries = Retrying(
            retry=retry_if_result(lambda answer: answer.is_server_error),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            stop=stop_after_attempt(MAX_REQUESTS),
            retry_error_callback=lambda last: last.outcome and last.outcome.result(),
        )
        answer: httpx.Response = tries(self._http.request, method, path, params=params, json=json)
        return answer.raise_for_status()

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.request("GET", path, params=parameters).json()
        return answer

    def _find(self, path: str) -> dict[str, Any] | None:
        """The same, None where there is nothing."""
        try:
            return self._get(path)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, and that no outgoing connection takes meanwhile."""
    return list(islice(filter(_is_free, random.sample(PORTS, len(PORTS))), count))


def _is_free(port: int) -> bool:
    with suppress(OSError), closing(socket.create_server((LOOPBACK, port))):
        return True
    return False


def airflow_environment(
    home: Home, *, simulator_port: int, airflow_port: int, metadata_url: str | None = None
) -> dict[str, str]:
    """What every process gets: nothing of the caller's Airflow, no proxy, and the demo's own settings.

    Without `metadata_url`, which is SQLAlchemy's, Airflow's metadata is in a SQLite file.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIRFLOW") and not name.lower().endswith("_proxy")
    }
    connection = {
        "conn_type": "halo",
        "host": f"http://{LOOPBACK}",
        "port": simulator_port,
        "password": WIDGET_KEY,
        "extra": {"identity_secret": IDENTITY_SECRET},
    }
    sqlite_url = f"sqlite:///{home.airflow / 'airflow.db'}?timeout={LOCK_TIMEOUT}"
    settings = {
        "AIRFLOW_HOME": str(home.airflow),
        "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection),
        "AIRFLOW_CONN_HALO_SOURCE_DB": json.dumps({"conn_type": "sqlite", "host": str(home.source)}),
        "AIRFLOW__API__BASE_URL": f"http://{LOOPBACK}:{airflow_port}",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{airflow_port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__MAX_DB_RETRIES": str(MAX_REQUESTS),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata_url or sqlite_url,
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",  # seconds; a file that changes is read at once
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home.task_logs),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home.logs / "dags"),
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # the daily DAGs run when somebody wants them to
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": str(LOCK_TIMEOUT),  # a task must not repeat what only takes long
        "HALO_SIMULATOR_WIDGET_KEY": WIDGET_KEY,
        "HALO_SIMULATOR_IDENTITY_SECRET": IDENTITY_SECRET,
    }
    if metadata_url is None:
        settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS"] = f"{metadata.__name__}.CONNECT_ARGS"
    return inherited | settings


def start_airflow(processes: Processes, airflow: AirflowApi, *, dag_ids: Sequence[str]) -> None:
    """Start API server, DAG processor and scheduler; return when these DAGs can be triggered."""
    started = datetime.now(UTC)
    processes.run("db-migrate", "airflow", "db", "migrate", stage="preparing Airflow's database")
    port = str(httpx.URL(airflow.url).port)
    # Stopped in reverse: the scheduler first, while its tasks can still tell the API server how they ended.
    processes.serve("api-server", "airflow", "api-server", "--host", LOOPBACK, "--port", port, "--workers", "1")
    processes.serve("dag-processor", "airflow", "dag-processor")
    processes.serve("scheduler", "airflow", "scheduler", "--skip-serve-logs")

    def is_healthy() -> bool | None:
        return not airflow.unhealthy() or None

    def is_parsed() -> bool | None:
        if errors := airflow.import_errors(since=started):
            raise DemoError("a file in dags/ cannot be imported:\n" + "\n".join(errors))
        return all(airflow.is_parsed(dag_id, since=started) for dag_id in dag_ids) or None

    processes.wait(is_healthy, stage="starting Airflow", timeout=START_TIMEOUT)
    airflow.log_in()
    processes.wait(is_parsed, stage="reading the example DAGs", timeout=START_TIMEOUT)
