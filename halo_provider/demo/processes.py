"""The demo's directory and its processes: started in it, watched, and ended with all their descendants."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import psutil  # type: ignore[import-untyped]  # comes with Airflow, without types

CHECKOUT = Path(__file__).resolve().parents[2]

START_TIMEOUT = 180.0  # seconds until a process must be of use; ten times what two cores need
STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL; a running task commits its ledger within 4
POLL_INTERVAL = 0.2  # seconds
LOG_TAIL = 25  # lines of a log shown with a failure

LOCKED = "database is locked"  # SQLite's words where a transaction may not write; of some, Airflow's processes end
MAX_STARTS = 5  # of a process that ends of that

_ResultT = TypeVar("_ResultT")


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
        self.log.unlink(missing_ok=True)
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = environment
        self._directory = home.path
        self._starts = 0
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._starts += 1

    def exit_code(self) -> int | None:
        """How it ended, None while it runs."""
        return self._process.poll()

    def start_again(self) -> None:
        """Start it anew after a lock ended it. Raises DemoError where something else did, or where it was too often."""
        said = tail(lines_of(self.log))
        if self.exit_code() != 1 or LOCKED not in said or self._starts == MAX_STARTS:
            raise DemoError(f"{self.name} ended with exit code {self.exit_code()}; the end of {self.log}:\n{said}")
        self.stop()  # what it left behind
        self._start()

    def stop(self) -> None:
        """End it with all its descendants: SIGTERM, time to finish, SIGKILL. Returns when none is left."""
        if self.members():
            with suppress(ProcessLookupError):
                # The whole group: a LocalExecutor worker passes the signal on to its task, the scheduler does not.
                os.killpg(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while members := self.members():
            if time.monotonic() > deadline:
                kill(members)
            time.sleep(POLL_INTERVAL / 4)

    def members(self) -> list[psutil.Process]:
        """It and its descendants, as far as they live."""
        self._process.poll()  # an ended child stays in the process table until somebody asks how it ended
        return [process for process in psutil.process_iter() if _is_alive_in_session(process, self._process.pid)]


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL whatever has not ended by itself."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_alive_in_session(process: psutil.Process, session_id: int) -> bool:
    try:
        return os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


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
        self._servers.append(self.start(name, module, *arguments))

    def start(self, name: str, module: str, *arguments: str) -> Child:
        """Start a process that may end at any time."""
        child = Child(name, module, *arguments, environment=self._environment, home=self._home)
        self._stack.callback(child.stop)
        return child

    def run(self, name: str, module: str, *arguments: str, stage: str) -> None:
        """Start a process and wait for its end. Raises DemoError where that is not a good one."""
        child = self.start(name, module, *arguments)
        while self.wait(child.exit_code, stage=stage, timeout=START_TIMEOUT) != 0:
            self._start_again(child)

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
                self._start_again(server)

    def _start_again(self, child: Child) -> None:
        child.start_again()
        self._progress.show(f"starting {child.name} again, as Airflow's {LOCKED}")


def lines_of(log: Path) -> list[str]:
    """The lines of a log, whatever bytes a process wrote."""
    return log.read_text(errors="replace").splitlines() if log.exists() else ["(no such file)"]


def tail(lines: Iterable[str]) -> str:
    """The last lines, indented."""
    return "\n".join(f"    {line}" for line in list(lines)[-LOG_TAIL:])
