"""What ``make demo`` runs: a local Halo, a real Airflow, both CSV example DAGs, and the fate of every row.

Everything lives in one directory, by default ``.demo`` in the checkout: ``airflow/`` is the AIRFLOW_HOME with the
ledger, ``logs/`` what the processes and the tasks wrote. It is kept, so a second demo finds every row already
delivered, although its simulated Halo starts empty. Only loopback addresses are used, and no process is left behind
on any way out but a SIGKILL.
"""

import argparse
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
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


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example DAG, and the namespace its rows have in the ledger."""

    dag_id: str
    namespace: str


EXAMPLES = (
    Example(dag_id="halo_applications_csv", namespace="halo_default/application"),
    Example(dag_id="halo_cancellations_csv", namespace="halo_default/cancellation"),
)


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
        """Fail the runs an interrupted demo left, or the scheduler would resume them beside the new one."""
        for state in ("queued", "running"):
            for run in self._get(f"/api/v2/dags/{dag_id}/dagRuns", state=state)["dag_runs"]:
                path = f"/api/v2/dags/{dag_id}/dagRuns/{run['dag_run_id']}"
                self._http.patch(path, json={"state": "failed"}).raise_for_status()

    def trigger(self, dag_id: str) -> str:
        """Trigger the DAG and return the run's id."""
        answer = self._http.post(f"/api/v2/dags/{dag_id}/dagRuns", json={"logical_date": None})
        run_id: str = answer.raise_for_status().json()["dag_run_id"]
        return run_id

    def run_state(self, dag_id: str, run_id: str) -> str:
        """queued, running, success or failed."""
        state: str = self._get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]
        return state

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The run's task instances, in the order in which they started, those that have not at the end."""
        found = self._get(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        return sorted(found["task_instances"], key=lambda task: task["start_date"] or "~")

    def summary(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """What the tickets task pushed, None where it pushed nothing."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/tickets/xcomEntries/return_value"
        found = self._http.get(path)
        if found.status_code == httpx.codes.NOT_FOUND:
            return None
        summary: dict[str, Any] = found.raise_for_status().json()["value"]
        return summary

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
    run_id: str

    def fate(self, run_id: str) -> str:
        """Its status as this run saw it: a delivery by an earlier run is one that was not repeated."""
        return "already_delivered" if self.status == "delivered" and self.run_id != run_id else self.status


def _ledger_rows(ledger: Path, *, namespace: str) -> list[LedgerRow]:
    """The namespace's rows in the order of their keys; none before the first task has made the ledger."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute(
            "SELECT row_key, user_id, status, session_id, run_id FROM halo_submissions"
            " WHERE namespace = ? ORDER BY row_key",
            (namespace,),
        )
        return [LedgerRow(**row) for row in found]
    return []


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One DAG run, ended."""

    example: Example
    run_id: str
    state: str
    tasks: list[dict[str, Any]]
    summary: dict[str, Any] | None
    rows: list[LedgerRow]
    seconds: float

    def problems(self, home: Home) -> Iterator[str]:
        """Everything that keeps this run from being perfect."""
        dag_id = self.example.dag_id
        for task in self.tasks:
            if task["state"] not in {"success", "upstream_failed"}:
                log = home.task_logs.joinpath(
                    f"dag_id={dag_id}",
                    f"run_id={self.run_id}",
                    f"task_id={task['task_id']}",
                    f"attempt={task['try_number']}.log",
                )
                yield (
                    f"{dag_id}: the task {task['task_id']} ended {task['state']} in try {task['try_number']};"
                    f" the end of {log}:\n{_tail(_task_log_lines(log))}"
                )
        if self.state != "success":
            yield f"{dag_id}: the run ended {self.state}"
        if self.summary is None:
            yield f"{dag_id}: the task tickets left no counts in XCom"
            return
        read, accounted = self.summary["read"], sum(self.summary[count] for count in COUNTS)
        if read != accounted:
            yield f"{dag_id}: {read} rows were read, but {accounted} are accounted for"
        if read != self.summary["delivered"] + self.summary["already_delivered"]:
            yield f"{dag_id}: not every row is delivered"
        if read > len(self.rows):
            yield f"{dag_id}: {read} rows were read, but the ledger holds {len(self.rows)}"


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
        "AIRFLOW__API__BASE_URL": f"http://{LOOPBACK}:{airflow_port}",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{airflow_port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home.task_logs),
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(home.logs / "dags"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "HALO_SIMULATOR_WIDGET_KEY": WIDGET_KEY,
        "HALO_SIMULATOR_IDENTITY_SECRET": IDENTITY_SECRET,
    }
    return inherited | settings


class Demo:
    """One demo. What it starts, the stack stops."""

    def __init__(self, *, home: Home, stack: ExitStack) -> None:
        self.home = home
        self.progress = Progress()
        self._stack = stack
        self._servers: list[Child] = []
        self._signals: list[int] = []
        simulator_port, airflow_port = _free_ports(2)
        self._environment = _environment(home, simulator_port=simulator_port, airflow_port=airflow_port)
        self._simulator_port = simulator_port
        self._airflow_port = airflow_port
        self.simulator_url = f"http://{LOOPBACK}:{simulator_port}"
        stack.callback(self.progress.clear)
        self.airflow = stack.enter_context(AirflowApi(f"http://{LOOPBACK}:{airflow_port}"))
        # A signal only leaves a note: raising from a handler could lose a process between its start and its record.
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signal_number) is not signal.SIG_IGN:  # nohup makes SIGHUP one to ignore
                signal.signal(signal_number, lambda number, _frame: self._signals.append(number))

    def start(self) -> None:
        """Start the simulator and Airflow; return when the example DAGs can be triggered."""
        started = datetime.now(UTC)
        for directory in (self.home.airflow, self.home.logs):
            directory.mkdir(parents=True, exist_ok=True)
        address = ("--host", LOOPBACK, "--port")
        halo = ("--enforce-verification", "--latency", SIMULATED_LATENCY)
        self._serve("simulator", "halo_provider.simulator", *address, str(self._simulator_port), *halo)
        migration = self._start("db-migrate", "airflow", "db", "migrate")
        if self._wait(migration.exit_code, stage="preparing Airflow's database", timeout=START_TIMEOUT) != 0:
            raise migration.died()
        # Stopped in reverse: the scheduler first, while its tasks can still tell the API server how they ended.
        self._serve("api-server", "airflow", "api-server", *address, str(self._airflow_port), "--workers", "1")
        self._serve("dag-processor", "airflow", "dag-processor")
        self._serve("scheduler", "airflow", "scheduler", "--skip-serve-logs")
        self._wait(self.halo_totals, stage="waiting for the simulator", timeout=START_TIMEOUT)
        self._wait(self._is_healthy, stage="starting Airflow", timeout=START_TIMEOUT)
        self.airflow.log_in()
        self._wait(lambda: self._is_parsed(since=started), stage="reading the example DAGs", timeout=START_TIMEOUT)

    def run(self, example: Example) -> Outcome:
        """Trigger the DAG and follow its run to the end."""
        began = time.monotonic()
        dag_id = example.dag_id
        self.airflow.abandon_runs(dag_id)
        run_id = self.airflow.trigger(dag_id)
        state = self._wait(
            lambda: self._end_state(dag_id, run_id),
            stage=lambda: f"{dag_id}: {self._stage(example, run_id)}",
            timeout=RUN_TIMEOUT,
        )
        return Outcome(
            example=example,
            run_id=run_id,
            state=state,
            tasks=self.airflow.tasks(dag_id, run_id),
            summary=self.airflow.summary(dag_id, run_id),
            rows=_ledger_rows(self.home.ledger, namespace=example.namespace),
            seconds=time.monotonic() - began,
        )

    def halo_totals(self) -> dict[str, int]:
        """How much of everything the simulated Halo holds; it starts empty."""
        answer = httpx.get(
            f"{self.simulator_url}/_simulator/state", params={"details": False}, timeout=10.0, trust_env=False
        )
        totals: dict[str, int] = answer.raise_for_status().json()["totals"]
        return totals

    def stay(self) -> None:
        """Keep everything running until a signal."""
        while True:
            self._pause()

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        child = Child(name, module, *arguments, environment=self._environment, home=self.home)
        self._stack.callback(child.stop)
        return child

    def _serve(self, name: str, module: str, *arguments: str) -> None:
        self._servers.append(self._start(name, module, *arguments))

    def _wait(
        self, ready: Callable[[], _ResultT | None], *, stage: str | Callable[[], str], timeout: float
    ) -> _ResultT:
        """The first result of `ready` that is not None. A server that cannot answer yet is asked again."""
        deadline = time.monotonic() + timeout
        hindrance: httpx.HTTPError | None = None
        while time.monotonic() < deadline:
            try:
                self.progress.show(stage if isinstance(stage, str) else stage())
                if (result := ready()) is not None:
                    return result
            except httpx.HTTPError as error:
                hindrance = error
            self._pause()
        reason = f" (last: {hindrance})" if hindrance else ""
        raise DemoError(
            f"{self.progress.stage}: not done after {timeout:.0f} s{reason}; the logs are in {self.home.logs}"
        )

    def _pause(self) -> None:
        """Let some time go by, unless somebody wants to stop or a server has died."""
        time.sleep(POLL_INTERVAL)
        if self._signals:
            raise StopRequested(self._signals[0])
        for server in self._servers:
            if server.exit_code() is not None:
                raise server.died()

    def _is_healthy(self) -> bool | None:
        return not self.airflow.unhealthy() or None

    def _is_parsed(self, *, since: datetime) -> bool | None:
        if errors := self.airflow.import_errors(since=since):
            raise DemoError("a file in dags/ cannot be imported:\n" + "\n".join(errors))
        return all(self.airflow.is_parsed(example.dag_id, since=since) for example in EXAMPLES) or None

    def _end_state(self, dag_id: str, run_id: str) -> str | None:
        state = self.airflow.run_state(dag_id, run_id)
        return state if state in {"success", "failed"} else None

    def _stage(self, example: Example, run_id: str) -> str:
        tasks = [
            f"{task['task_id']} {task['state'] or 'waiting'}" for task in self.airflow.tasks(example.dag_id, run_id)
        ]
        rows = _ledger_rows(self.home.ledger, namespace=example.namespace)
        delivered = sum(row.status == "delivered" for row in rows)
        return ", ".join([*tasks, f"{delivered} of {len(rows)} rows delivered"] if rows else tasks)


def _report(demo: Demo, outcomes: Sequence[Outcome], *, start_seconds: float) -> None:
    """Print every row's fate, the counts of each run, the times and the addresses."""
    for outcome in outcomes:
        print(f"\n{outcome.example.dag_id}, run {outcome.run_id}: {outcome.state}\n")
        header = ("row_key", "user", "status", "session_id")
        rows = [
            (row.row_key, row.user_id or "", row.fate(outcome.run_id), row.session_id or "") for row in outcome.rows
        ]
        print(_table(header, rows))
    counts = [
        (outcome.example.dag_id, outcome.summary["read"], *(outcome.summary[count] for count in COUNTS))
        for outcome in outcomes
        if outcome.summary is not None
    ]
    print(f"\nEvery row read has one fate: read = {' + '.join(COUNTS)}\n")
    print(_table(("run", "read", *COUNTS), counts))
    totals = demo.halo_totals()
    print(
        f"\nHalo got {totals['chats']} chats this time and made {totals['tickets']} tickets"
        " (a user's open ticket takes in what follows)."
    )
    runs = ", ".join(f"{outcome.example.dag_id} {outcome.seconds:.1f} s" for outcome in outcomes)
    print(f"Time: {demo.progress.seconds:.1f} s (start {start_seconds:.1f} s, {runs})")
    print(f"Airflow UI:    {demo.airflow.url}/")
    print(f"Halo's inbox:  {demo.simulator_url}/", flush=True)


def _play(demo: Demo, *, once: bool) -> int:
    """Run the demo and return its exit code."""
    try:
        demo.start()
        start_seconds = demo.progress.seconds
        outcomes = [demo.run(example) for example in EXAMPLES]
        demo.progress.clear()
        _report(demo, outcomes, start_seconds=start_seconds)
        problems = [problem for outcome in outcomes for problem in outcome.problems(demo.home)]
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
