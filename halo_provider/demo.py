"""What ``make demo`` runs: a local Halo, a real Airflow, the example DAGs, and the fate of every row.

The two DAGs over CSV files run once. Then a few days of history are backfilled from a SQLite table, by users/update
and not by users/identify, so that nobody becomes active today.

Everything lives in one directory, by default ``.demo`` in the checkout: ``airflow/`` is the AIRFLOW_HOME with the
ledger, ``source.db`` the table, ``logs/`` what the processes and the tasks wrote. It is kept, so a second demo finds
every row already delivered, although its simulated Halo starts empty. Only loopback addresses are used, and no process
is left behind on any way out but a SIGKILL.
"""

import argparse
import csv
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types

CHECKOUT = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"
WIDGET_KEY = "ab_live_example_demo_widget_key"
IDENTITY_SECRET = "ha_secret_example_demo_identity_secret"  # noqa: S105 - an example, known to the local simulator only
SIMULATED_LATENCY = "0.2-1.5"  # seconds per chat, as long as a quick AI pipeline takes

START_TIMEOUT = 180.0  # seconds until a process must be of use; ten times what two cores need
RUN_TIMEOUT = 600.0  # seconds for one DAG run: both retries of both tasks fit
STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL; a running task commits its ledger within 4
POLL_INTERVAL = 0.2  # seconds
LOG_TAIL = 25  # lines of a log shown with a failure

COUNTS = ("delivered", "already_delivered", "duplicate", "rejected", "in_doubt", "failed", "not_attempted")

_ResultT = TypeVar("_ResultT")


CSV_DAGS = ("halo_applications_csv", "halo_cancellations_csv")
DATABASE_DAG = "halo_applications_daily"
HISTORY = 5  # days the source table holds
BACKFILL = 3  # of these days, the first ones, are backfilled


class DemoError(Exception):
    """The demo cannot go on; the message says why, for a person."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """SIGINT, SIGTERM or SIGHUP arrived."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class Home:
    """The demo's own directory."""

    path: Path

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME: configuration, database, ledger."""
        return self.path / "airflow"

    @property
    def ledger(self) -> Path:
        """The provider's default ledger."""
        return self.airflow / "halo_ledger.db"

    @property
    def source(self) -> Path:
        """The database that the daily DAG reads."""
        return self.path / "source.db"

    @property
    def logs(self) -> Path:
        """One file per process, and the tasks' logs."""
        return self.path / "logs"

    @property
    def task_logs(self) -> Path:
        """Airflow's own log folder."""
        return self.logs / "tasks"

    def remove(self) -> None:
        """Forget all earlier demos."""
        for directory in (self.airflow, self.logs):
            shutil.rmtree(directory, ignore_errors=True)
        self.source.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second demo out of this home, as two Airflows on one SQLite database spoil each other's runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DemoError(f"another demo is running in {self.path}; stop it, or give another --home") from None
            yield


class Progress:
    """Says what is going on: one line that is rewritten on a terminal, a line per change elsewhere."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.stage = ""
        self._rewrites = sys.stdout.isatty()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    def show(self, stage: str) -> None:
        """Show the stage the demo is in."""
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{f'[{self.seconds:5.1f} s] {stage}':.{width}}", end="", flush=True)
        elif stage != self.stage:
            print(f"[{self.seconds:5.1f} s] {stage}", flush=True)
        self.stage = stage

    def clear(self) -> None:
        """Make room for other output."""
        if self._rewrites:
            print("\r\x1b[K", end="", flush=True)


class Child:
    """A process that leads its own session, so that Ctrl-C does not reach it and its descendants can be found."""

    def __init__(self, name: str, module: str, *arguments: str, environment: dict[str, str], home: Home) -> None:
        self.name = name
        self.log = home.logs / f"{name}.log"
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment,
                cwd=home.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.poll()

    def died(self) -> DemoError:
        """Why the demo cannot go on after it ended."""
        return DemoError(
            f"{self.name} ended with exit code {self.exit_code()}; the end of {self.log}:\n{_tail(_lines(self.log))}"
        )

    def stop(self) -> None:
        """End it with all its descendants: SIGTERM, time to finish, SIGKILL. Returns when none is left."""
        if self._session_members():
            with suppress(ProcessLookupError):
                # The whole group: a LocalExecutor worker passes the signal on to its task, the scheduler does not.
                os.killpg(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while members := self._session_members():
            if time.monotonic() > deadline:
                for member in members:
                    member.kill()
            time.sleep(POLL_INTERVAL / 4)

    def _session_members(self) -> list[psutil.Process]:
        self._process.poll()  # an ended child stays in the process table until somebody asks how it ended
        return [process for process in psutil.process_iter() if _is_alive_in_session(process, self._process.pid)]


def _is_alive_in_session(process: psutil.Process, session_id: int) -> bool:
    try:
        return os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


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
        self._http = httpx.Client(base_url=url, timeout=10.0, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def unhealthy(self) -> list[str]:
        """The components that do not report to be healthy (yet)."""
        components = self._get("/api/v2/monitor/health")
        return [name for name in ("scheduler", "dag_processor") if components[name]["status"] != "healthy"]

    def log_in(self) -> None:
        """Fetch a token for all further calls; with all_admins it takes no password."""
        token = self._http.get("/auth/token").raise_for_status().json()["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def import_errors(self, *, since: datetime) -> list[str]:
        """What broke in the dags folder, each with its traceback."""
        errors = self._get("/api/v2/importErrors")["import_errors"]
        return [error["stack_trace"] for error in errors if datetime.fromisoformat(error["timestamp"]) >= since]

    def is_parsed(self, dag_id: str, *, since: datetime) -> bool:
        """Whether Airflow knows the DAG as its file is now, and not only from an earlier demo."""
        found = self._http.get(f"/api/v2/dags/{dag_id}")
        if found.status_code == httpx.codes.NOT_FOUND:
            return False
        parsed = found.raise_for_status().json()["last_parsed_time"]
        return parsed is not None and datetime.fromisoformat(parsed) >= since

    def abandon_runs(self, dag_id: str) -> None:
        """End what an interrupted demo left, or the scheduler would resume it beside the new runs."""
        for backfill in self._get("/api/v2/backfills", dag_id=dag_id)["backfills"]:
            if backfill["completed_at"] is None:
                self._http.put(f"/api/v2/backfills/{backfill['id']}/cancel").raise_for_status()
        for state in ("queued", "running"):
            for run in self.runs(dag_id, state=state):
                self._http.patch(run.path, json={"state": "failed"}).raise_for_status()

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Mapping[str, object] | None = None
    ) -> Run:
        """Trigger the DAG, by default without a logical date."""
        body = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": conf or {}}
        return Run.of(self._http.post(f"/api/v2/dags/{dag_id}/dagRuns", json=body).raise_for_status().json())

    def backfill(self, dag_id: str, *, first: date, last: date) -> list[Run]:
        """Backfill these days, those again that were backfilled before, and return the runs in order."""
        days = {"from_date": f"{first}T00:00:00Z", "to_date": f"{last}T00:00:00Z"}
        body = {"dag_id": dag_id, **days, "reprocess_behavior": "completed"}
        self._http.post("/api/v2/backfills", json=body).raise_for_status()
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
        found = self._http.get(f"{run.path}/taskInstances/{task_id}/xcomEntries/return_value")
        return None if found.status_code == httpx.codes.NOT_FOUND else found.raise_for_status().json()["value"]

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._http.get(path, params=parameters).raise_for_status().json()
        return answer


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What the demo shows of one row of the ledger."""

    row_key: str
    user_id: str | None
    status: str
    session_id: str | None
    updated_at: str

    def fate(self, began: datetime) -> str:
        """Its status as a run that began then saw it: an earlier delivery is one that was not repeated."""
        earlier = self.updated_at < _ledger_time(began)
        return "already_delivered" if self.status == "delivered" and earlier else self.status


def _ledger_rows(ledger: Path, *, run: Run) -> list[LedgerRow]:
    """The rows of the run's DAG and day, in the order of their keys; none before the first task has made the ledger."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute(
            "SELECT row_key, user_id, status, session_id, updated_at FROM halo_submissions"
            " WHERE dag_id = ? AND logical_date IS ? ORDER BY row_key",
            (run.dag_id, _ledger_time(run.logical_date) if run.logical_date else None),
        )
        return [LedgerRow(**row) for row in found]
    return []


def _ledger_time(moment: datetime) -> str:
    """A moment, in UTC, as SQLite keeps it in the ledger."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def _create_source(path: Path) -> None:
    """Fill the table of applications, unless an earlier demo did: the example file's, spread over the last whole days.

    Ids of rows and users are other ones than the file's, so that these are other applications of other people.
    """
    with (CHECKOUT / "dags" / "data" / "applications.csv").open(encoding="utf-8", newline="") as file:
        applications = list(csv.DictReader(file))
    first_day = datetime.now(UTC).date() - timedelta(days=HISTORY)
    for number, application in enumerate(applications):
        day = first_day + timedelta(days=number * HISTORY // len(applications))
        time_of_day = datetime.fromisoformat(application["submitted_at"]).time()
        application["submission_id"] = application["submission_id"].replace("-2026-0", "-2026-1")
        application["applicant_id"] = application["applicant_id"].replace("usr_1", "usr_4")
        application["submitted_at"] = str(datetime.combine(day, time_of_day))
    columns = ", ".join(applications[0])
    values = ", ".join(f":{name}" for name in applications[0])
    with closing(sqlite3.connect(path, isolation_level=None)) as db, db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"CREATE TABLE IF NOT EXISTS applications ({columns})")
        if db.execute("SELECT count(*) FROM applications").fetchone() == (0,):
            db.executemany(f"INSERT INTO applications ({columns}) VALUES ({values})", applications)  # noqa: S608 -- the example file's own header


def _first_day(source: Path) -> date:
    """The day of the table's oldest application."""
    with closing(sqlite3.connect(source)) as db:
        (day,) = db.execute("SELECT date(min(submitted_at)) FROM applications").fetchone()
    return date.fromisoformat(day)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One DAG run, ended."""

    run: Run
    state: str
    tasks: list[dict[str, Any]]
    summary: dict[str, Any] | None
    rows: list[LedgerRow]
    began: datetime
    ended: datetime

    def problems(self, home: Home) -> Iterator[str]:
        """Everything that keeps this run from being perfect."""
        for task in self.tasks:
            if task["state"] not in {"success", "upstream_failed"}:
                log = home.task_logs.joinpath(
                    f"dag_id={self.run.dag_id}",
                    f"run_id={self.run.run_id}",
                    f"task_id={task['task_id']}",
                    f"attempt={task['try_number']}.log",
                )
                yield (
                    f"{self.run}: the task {task['task_id']} ended {task['state']} in try {task['try_number']};"
                    f" the end of {log}:\n{_tail(_task_log_lines(log))}"
                )
        if self.state != "success":
            yield f"{self.run}: the run ended {self.state}"
        if self.summary is None:
            yield f"{self.run}: the task tickets left no counts in XCom"
            return
        read, accounted = self.summary["read"], sum(self.summary[count] for count in COUNTS)
        if read != accounted:
            yield f"{self.run}: {read} rows were read, but {accounted} are accounted for"
        if read != self.summary["delivered"] + self.summary["already_delivered"]:
            yield f"{self.run}: not every row is delivered"
        if read > len(self.rows):
            yield f"{self.run}: {read} rows were read, but the ledger holds {len(self.rows)}"


@dataclass(frozen=True, kw_only=True)
class History:
    """A backfill: its runs, and what Halo heard of the users in them."""

    outcomes: list[Outcome]
    identify_calls: int
    updated_users: int

    def problems(self) -> Iterator[str]:
        """Whether history was told as if it happened today."""
        if self.identify_calls:
            yield f"the backfill called users/identify {self.identify_calls} times, which makes users active today"


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else ["(no such file)"]


def _task_log_lines(log: Path) -> Iterator[str]:
    """The lines of a task's log for a person: Airflow writes one JSON object per line."""
    for line in _lines(log):
        try:
            record = json.loads(line)
        except ValueError:
            yield line
            continue
        yield f"{record.get('level', ''):8} {record.get('event', '')}"
        for error in record.get("error_detail") or []:
            yield f"{'':8} {error.get('exc_type')}: {error.get('exc_value')}"


def _tail(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in list(lines)[-LOG_TAIL:])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, columns of numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(str(cell)) for cell in column) for column in columns]
    aligns = [">" if rows and all(isinstance(cell, int) for cell in column[1:]) else "<" for column in columns]
    lines = [
        "  ".join(f"{cell!s:{align}{width}}" for cell, align, width in zip(row, aligns, widths, strict=True)).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface nobody listens on, all held until the last is known so that they differ."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(closing(socket.create_server((LOOPBACK, 0)))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _environment(home: Home, *, simulator_port: int, airflow_port: int) -> dict[str, str]:
    """What every process gets: nothing of the caller's Airflow, no proxy, and the demo's own settings."""
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
        # On a busy machine SQLite's writers wait longer for each other than its usual five seconds.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home.airflow / 'airflow.db'}?timeout=60",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",  # seconds; a file that changes is read at once
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home.task_logs),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home.logs / "dags"),
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # the daily DAGs run when somebody wants them to
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "HALO_SIMULATOR_WIDGET_KEY": WIDGET_KEY,
        "HALO_SIMULATOR_IDENTITY_SECRET": IDENTITY_SECRET,
    }
    return inherited | settings


class Processes:
    """Child processes that end with the stack, and waiting that notices when one of them or a person gives up."""

    def __init__(self, *, home: Home, environment: dict[str, str], stack: ExitStack, progress: Progress) -> None:
        self._home = home
        self._environment = environment
        self._stack = stack
        self._progress = progress
        self._servers: list[Child] = []
        self._signals: list[int] = []
        for directory in (home.airflow, home.logs):
            directory.mkdir(parents=True, exist_ok=True)

    def heed_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP end any waiting with StopRequested."""
        # A signal only leaves a note: raising from a handler could lose a process between its start and its record.
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup makes SIGHUP one to ignore; SIGINT, which a shell ignores for its background jobs, ends the demo.
            if signal_number != signal.SIGHUP or signal.getsignal(signal_number) is not signal.SIG_IGN:
                signal.signal(signal_number, lambda number, _frame: self._signals.append(number))

    def serve(self, name: str, module: str, *arguments: str) -> None:
        """Start a process that is to run until the end."""
        self._servers.append(self._start(name, module, *arguments))

    def run(self, name: str, module: str, *arguments: str, stage: str) -> None:
        """Start a process and wait for its end. Raises DemoError where that is not a good one."""
        child = self._start(name, module, *arguments)
        if self.wait(child.exit_code, stage=stage, timeout=START_TIMEOUT) != 0:
            raise child.died()

    def wait(self, ready: Callable[[], _ResultT | None], *, stage: str | Callable[[], str], timeout: float) -> _ResultT:
        """The first result of `ready` that is not None. A server that cannot answer yet is asked again."""
        deadline = time.monotonic() + timeout
        hindrance: httpx.HTTPError | None = None
        while time.monotonic() < deadline:
            try:
                self._progress.show(stage if isinstance(stage, str) else stage())
                if (result := ready()) is not None:
                    return result
            except httpx.HTTPError as error:
                hindrance = error
            self.pause()
        reason = f" (last: {hindrance})" if hindrance else ""
        raise DemoError(
            f"{self._progress.stage}: not done after {timeout:.0f} s{reason}; the logs are in {self._home.logs}"
        )

    def pause(self) -> None:
        """Let some time go by, unless somebody wants to stop or a server has died."""
        time.sleep(POLL_INTERVAL)
        if self._signals:
            raise StopRequested(self._signals[0])
        for server in self._servers:
            if server.exit_code() is not None:
                raise server.died()

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, *arguments, environment=self._environment, home=self._home)
        self._stack.callback(child.stop)
        return child


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


class Demo:
    """One demo. What it starts, the stack stops."""

    def __init__(self, *, home: Home, stack: ExitStack) -> None:
        self.home = home
        self.progress = Progress()
        simulator_port, airflow_port = _free_ports(2)
        environment = _environment(home, simulator_port=simulator_port, airflow_port=airflow_port)
        stack.callback(self.progress.clear)
        self.airflow = stack.enter_context(AirflowApi(f"http://{LOOPBACK}:{airflow_port}"))
        self._processes = Processes(home=home, environment=environment, stack=stack, progress=self.progress)
        self._processes.heed_signals()
        self._simulator_port = simulator_port
        self.simulator_url = f"http://{LOOPBACK}:{simulator_port}"

    def start(self) -> None:
        """Start the simulator and Airflow; return when the example DAGs can be triggered."""
        _create_source(self.home.source)
        address = ("--host", LOOPBACK, "--port", str(self._simulator_port))
        halo = ("--enforce-verification", "--latency", SIMULATED_LATENCY)
        self._processes.serve("simulator", "halo_provider.simulator", *address, *halo)
        start_airflow(self._processes, self.airflow, dag_ids=[*CSV_DAGS, DATABASE_DAG])

    def run(self, dag_id: str) -> Outcome:
        """Trigger the DAG and follow its run to the end."""
        began = datetime.now(UTC)
        self.airflow.abandon_runs(dag_id)
        run = self.airflow.trigger(dag_id)
        self._follow([run], stage=lambda: self._tasks(run))
        return self._outcome(run, began=began)

    def backfill(self, dag_id: str) -> History:
        """Backfill the first days of the source table and follow the runs to the end."""
        began = datetime.now(UTC)
        earlier_calls = self._identify_calls()
        self.airflow.abandon_runs(dag_id)
        first = _first_day(self.home.source)
        runs = self.airflow.backfill(dag_id, first=first, last=first + timedelta(days=BACKFILL - 1))
        self._follow(runs, stage=lambda: f"{sum(map(self._has_ended, runs))} of {len(runs)} days done")
        return History(
            outcomes=[self._outcome(run, began=began) for run in runs],
            identify_calls=self._identify_calls() - earlier_calls,
            updated_users=sum(user["last_seen"] is None for user in self.halo_state(details=True)["users"]),
        )

    def halo_state(self, *, details: bool) -> dict[str, Any]:
        """What the simulated Halo holds and has counted; it starts empty."""
        url = f"{self.simulator_url}/_simulator/state"
        answer = httpx.get(url, params={"details": details}, timeout=10.0, trust_env=False)
        state: dict[str, Any] = answer.raise_for_status().json()
        return state

    def stay(self) -> None:
        """Keep everything running until a signal."""
        while True:
            self._processes.pause()

    def _follow(self, runs: Sequence[Run], *, stage: Callable[[], str]) -> None:
        """Show how the runs of one DAG get on; return when all have ended."""

        def progress() -> str:
            rows = [row for run in runs for row in _ledger_rows(self.home.ledger, run=run)]
            delivered = sum(row.status == "delivered" for row in rows)
            rows_delivered = f", {delivered} of {len(rows)} rows delivered" if rows else ""
            return f"{runs[0].dag_id}: {stage()}{rows_delivered}"

        self._processes.wait(lambda: all(map(self._has_ended, runs)) or None, stage=progress, timeout=RUN_TIMEOUT)

    def _identify_calls(self) -> int:
        return sum(self.halo_state(details=False)["counts"].get("/users/identify", {}).values())

    def _has_ended(self, run: Run) -> bool:
        return self.airflow.state(run) in {"success", "failed"}

    def _tasks(self, run: Run) -> str:
        return ", ".join(f"{task['task_id']} {task['state'] or 'waiting'}" for task in self.airflow.tasks(run))

    def _outcome(self, run: Run, *, began: datetime) -> Outcome:
        return Outcome(
            run=run,
            state=self.airflow.state(run),
            tasks=self.airflow.tasks(run),
            summary=self.airflow.returned(run, "tickets"),
            rows=_ledger_rows(self.home.ledger, run=run),
            began=began,
            ended=datetime.now(UTC),
        )


def _report(demo: Demo, outcomes: Sequence[Outcome], history: History, *, start_seconds: float) -> None:
    """Print every row's fate, the counts of each run, the times and the addresses."""
    for outcome in outcomes:
        print(f"\n{outcome.run.dag_id}, run {outcome.run.run_id}: {outcome.state}\n")
        header = ("row_key", "user", "status", "session_id")
        rows = [(row.row_key, row.user_id or "", row.fate(outcome.began), row.session_id or "") for row in outcome.rows]
        print(_table(header, rows))
    counts = [
        (str(outcome.run), outcome.summary["read"], *(outcome.summary[count] for count in COUNTS))
        for outcome in outcomes
        if outcome.summary is not None
    ]
    print(f"\nEvery row read has one fate: read = {' + '.join(COUNTS)}\n")
    print(_table(("run", "read", *COUNTS), counts))
    totals = demo.halo_state(details=False)["totals"]
    print(
        f"\nHalo got {totals['chats']} chats this time and made {totals['tickets']} tickets"
        " (a user's open ticket takes in what follows)."
    )
    print(
        f"The backfill of {len(history.outcomes)} days: {history.identify_calls} identify calls,"
        f" {history.updated_users} users updated without becoming active today."
    )
    seconds = {outcome.run.dag_id: (outcome.ended - outcome.began).total_seconds() for outcome in outcomes}
    runs = ", ".join(f"{dag_id} {taken:.1f} s" for dag_id, taken in seconds.items())
    print(f"Time: {demo.progress.seconds:.1f} s (start {start_seconds:.1f} s, {runs})")
    print(f"Airflow UI:    {demo.airflow.url}/")
    print(f"Halo's inbox:  {demo.simulator_url}/", flush=True)


def _play(demo: Demo, *, once: bool) -> int:
    """Run the demo and return its exit code."""
    try:
        demo.start()
        start_seconds = demo.progress.seconds
        outcomes = [demo.run(dag_id) for dag_id in CSV_DAGS]
        history = demo.backfill(DATABASE_DAG)
        outcomes += history.outcomes
        demo.progress.clear()
        _report(demo, outcomes, history, start_seconds=start_seconds)
        problems = [*(problem for outcome in outcomes for problem in outcome.problems(demo.home)), *history.problems()]
        for problem in problems:
            print(f"\nFAILED: {problem}", file=sys.stderr, flush=True)
        if not once:
            print("\nPress Ctrl-C to stop.", flush=True)
            with suppress(StopRequested):
                demo.stay()
        return 1 if problems else 0
    finally:
        demo.progress.show("stopping every process")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo as the command line says; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m halo_provider.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit after the runs: 0 only if all rows are delivered")
    parser.add_argument("--fresh", action="store_true", help="forget earlier demos first")
    parser.add_argument(
        "--home", type=Path, default=CHECKOUT / ".demo", help="where to keep it all (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not (CHECKOUT / "dags").is_dir():
        parser.error(f"the demo is a tool of the checkout of airflow-provider-halo; there is no {CHECKOUT / 'dags'}")
    home = Home(options.home.resolve())
    try:
        with home.locked(), ExitStack() as stack:
            if options.fresh:
                home.remove()
            return _play(Demo(home=home, stack=stack), once=options.once)
    except (DemoError, httpx.HTTPError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except StopRequested as request:
        return request.exit_code


if __name__ == "__main__":
    sys.exit(main())
