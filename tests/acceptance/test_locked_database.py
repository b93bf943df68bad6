"""Airflow's metadata in SQLite: what would be refused a lock waits, and what gives up all the same is tried again."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from halo_provider.demo.airflow import LOOPBACK, MAX_REQUESTS, AirflowApi
from halo_provider.demo.metadata import CONNECT_ARGS
from halo_provider.demo.processes import LOCKED, MAX_STARTS, DemoError, Home, Processes, Progress

SERVICE = """
import pathlib, sys, time

starts = pathlib.Path("starts")
starts.write_text(starts.read_text() + "." if starts.exists() else ".")
if len(starts.read_text()) <= {failures}:
    sys.exit("{error}")
if "stay" in sys.argv:
    time.sleep(60)
"""
LOCK_ERROR = "sqlite3.OperationalError: database is locked"


def make_run(path: Path, **connect_args: Any) -> None:
    """Do as a backfill does, while somebody else writes as soon as may be: in a savepoint, look, and then write."""
    with (
        closing(sqlite3.connect(path, timeout=5.0, **connect_args)) as backfill,
        closing(sqlite3.connect(path, timeout=0.0)) as other,
    ):
        backfill.cursor().execute("SAVEPOINT run")
        backfill.cursor().execute("SELECT count(*) FROM runs").fetchone()
        with suppress(sqlite3.OperationalError), other:
            other.execute("INSERT INTO runs VALUES ('other')")
        backfill.cursor().execute("INSERT INTO runs VALUES ('backfill')")
        backfill.cursor().execute("RELEASE SAVEPOINT run")
        backfill.commit()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A database with a table of runs, in the mode in which Airflow uses it."""
    path = tmp_path / "airflow.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE runs (id TEXT)")
        yield path


def test_savepoint_that_reads_and_then_writes_is_refused_by_sqlite(runs: Path) -> None:
    """At once, though it was to wait for seconds: this is what `airflow backfill create` met."""
    with pytest.raises(sqlite3.OperationalError, match=LOCKED):
        make_run(runs)


def test_savepoint_that_reads_and_then_writes_keeps_others_waiting(runs: Path) -> None:
    """With the demo's connections it has the lock before it reads."""
    make_run(runs, **CONNECT_ARGS)

    with closing(sqlite3.connect(runs)) as db:
        assert db.execute("SELECT id FROM runs").fetchall() == [("backfill",)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A directory for processes."""
    return Home(tmp_path)


@pytest.fixture
def processes(home: Home) -> Iterator[Processes]:
    """No process yet; at the end, no process any more."""
    with ExitStack() as stack:
        yield Processes(home=home, environment={}, stack=stack, progress=Progress())


def write_service(home: Home, *, failures: int, error: str = LOCK_ERROR) -> None:
    """A program that ends with an error so many times, and then does not."""
    (home.path / "service.py").write_text(SERVICE.format(failures=failures, error=error))


def starts(home: Home) -> int:
    """How often the program was started."""
    path = home.path / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_command_that_a_lock_ended_is_run_again(home: Home, processes: Processes) -> None:
    """Until it succeeds; the log has every try."""
    write_service(home, failures=2)

    processes.run("command", "service", stage="running")

    assert starts(home) == 3
    assert (home.logs / "command.log").read_text().count(LOCK_ERROR) == 2


def test_command_that_locks_end_again_and_again_fails(home: Home, processes: Processes) -> None:
    """After some tries the demo says so."""
    write_service(home, failures=MAX_STARTS)

    with pytest.raises(DemoError, match="command ended with exit code 1"):
        processes.run("command", "service", stage="running")

    assert starts(home) == MAX_STARTS


def test_command_that_fails_otherwise_is_not_run_again(home: Home, processes: Processes) -> None:
    """It would only fail again."""
    write_service(home, failures=1, error="no such table")

    with pytest.raises(DemoError, match="no such table"):
        processes.run("command", "service", stage="running")

    assert starts(home) == 1


def test_server_that_a_lock_ended_is_started_again(
    home: Home, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the demo says so while it goes on."""
    write_service(home, failures=1)

    processes.serve("scheduler", "service", "stay")
    processes.wait(lambda: starts(home) == 2 or None, stage="waiting", timeout=30.0)

    assert "starting scheduler again, as Airflow's database is locked" in capsys.readouterr().out


@contextmanager
def answering(*statuses: HTTPStatus) -> Iterator[tuple[AirflowApi, list[str]]]:
    """A REST API that answers with these, the last one again and again; and the calls that it gets."""
    calls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            calls.append(self.path)
            self.send_response(statuses[min(len(calls), len(statuses)) - 1])
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Nothing to say."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with AirflowApi(f"http://{LOOPBACK}:{server.server_port}") as airflow:
            yield airflow, calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are repeated at once."""
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _seconds: None))


def test_call_that_airflow_gave_up_is_made_again(no_waiting: None) -> None:
    """Airflow answers 500 for a locked database, and its backfills 503."""
    with answering(HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.OK) as (airflow, calls):
        answer = airflow.request("POST", "/api/v2/backfills", json={})

    assert answer.status_code == HTTPStatus.OK
    assert len(calls) == 3


def test_call_that_airflow_always_gives_up_fails(no_waiting: None) -> None:
    """With the last answer."""
    with (
        answering(HTTPStatus.SERVICE_UNAVAILABLE) as (airflow, calls),
        pytest.raises(httpx.HTTPStatusError, match="503 Service Unavailable"),
    ):
        airflow.request("POST", "/api/v2/backfills", json={})

    assert len(calls) == MAX_REQUESTS


def test_call_that_airflow_refuses_is_not_made_again() -> None:
    """A conflict stays one."""
    with (
        answering(HTTPStatus.CONFLICT) as (airflow, calls),
        pytest.raises(httpx.HTTPStatusError, match="409 Conflict"),
    ):
        airflow.request("POST", "/api/v2/backfills", json={})

    assert len(calls) == 1
