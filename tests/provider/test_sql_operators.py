"""The operators over queries, through Airflow connections; their results files, dry runs and limits."""

import csv
import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from pyarrow import parquet
from sqlalchemy.engine import make_url

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from halo_provider.submission import Submission, User
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Run, RunDag, Statuses, Supervise
from tests.provider.source_databases import SourceDatabase, fresh_database
from tests.provider.summaries import counts
from tests.waiting import wait_until

REQUEST = Submission(name="request", key="id", user=User(id="user_id", traits={"name": "name"}), message="{message}")
TABLE = "CREATE TABLE requests (id BIGINT, user_id INTEGER, name VARCHAR(100), message VARCHAR(100))"
ROWS = """
    INSERT INTO requests VALUES
    (1, 101, 'Name 1', 'First'),
    (2, 102, NULL, 'The "second": it''s {message}'),
    (9007199254740993, 103, 'Name 3', 'Third')
"""
QUERY = "SELECT id, user_id, name, message FROM requests WHERE id >= :first ORDER BY id"


def connected(database: SourceDatabase, monkeypatch: pytest.MonkeyPatch) -> SourceDatabase:
    """The database with the table of requests, and the connection `source` that leads to it."""
    database.execute(TABLE, ROWS)
    monkeypatch.setenv("AIRFLOW_CONN_SOURCE", database.connection)
    return database


@pytest.fixture
def sqlite_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceDatabase:
    """The requests on SQLite: for what does not depend on the database."""
    return connected(SourceDatabase(make_url(f"sqlite:///{tmp_path}/source.db")), monkeypatch)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceDatabase]:
    """The requests on each of the databases; none of Airflow's provider packages for them is installed."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_source")
        return
    with fresh_database(request.getfixturevalue(f"{request.param}_url")) as database:
        yield connected(database, monkeypatch)


def from_query(dag: DAG, **options: Any) -> dict[str, Any]:
    """An operator's parameters for the requests."""
    defaults = {
        "dag": dag,
        "submission": REQUEST,
        "sql": QUERY,
        "sql_conn_id": "source",
        "sql_parameters": {"first": 1},
    }
    return {**defaults, **options}


def test_query_is_identified_and_delivered_on_every_database(
    dag: DAG, run: RunDag, halo: Simulator, source: SourceDatabase
) -> None:
    """Whatever the database, keys and ids are the same text, and so are the messages."""
    identify = HaloIdentifyOperator(task_id="identify", **from_query(dag))
    identify >> HaloTicketOperator(task_id="tickets", **from_query(dag))
    result = run(dag)
    assert counts(result.xcom("tickets")) == {"delivered": 3}
    assert set(result.xcom("tickets")["session_ids"]) == {"1", "2", "9007199254740993"}
    assert {user_id: user.traits for user_id, user in halo.users.items()} == {
        "101": {"name": "Name 1"},
        "102": {},
        "103": {"name": "Name 3"},
    }
    assert sorted((chat.user_id, chat.message) for chat in halo.chats) == [
        ("101", "First"),
        ("102", 'The "second": it\'s {message}'),
        ("103", "Third"),
    ]


def test_second_run_sends_only_what_is_new_on_every_database(
    dag: DAG, run: RunDag, halo: Simulator, source: SourceDatabase
) -> None:
    """The keys of one database's numbers are those of the ledger."""
    HaloTicketOperator(task_id="tickets", **from_query(dag))
    run(dag)
    source.execute("INSERT INTO requests VALUES (4, 104, NULL, 'Fourth')")
    assert counts(run(dag).xcom("tickets")) == {"already_delivered": 3, "delivered": 1}
    assert len(halo.chats) == 4


def test_sql_file_is_a_template(dag: DAG, run: RunDag, sqlite_source: SourceDatabase, tmp_path: Path) -> None:
    """It is found beside the DAG, and may hold both Jinja and parameters."""
    (tmp_path / "requests.sql").write_text(
        "SELECT id, user_id, name, '{{ params.folder }}' AS message FROM requests WHERE id = :first", encoding="utf-8"
    )
    HaloTicketOperator(task_id="tickets", **from_query(dag, sql="requests.sql", submission=REQUEST))
    assert counts(run(dag).xcom("tickets")) == {"delivered": 1}


def test_parameters_are_templates(dag: DAG, run: RunDag, sqlite_source: SourceDatabase) -> None:
    """A rendered value is bound, and is never a part of the statement."""
    hostile = "{{ \"x' OR '1' = '1\" }}"
    query = QUERY.replace("id >= :first", "name = :name")
    HaloTicketOperator(task_id="tickets", **from_query(dag, sql=query, sql_parameters={"name": "Name {{ 1 + 2 }}"}))
    HaloTicketOperator(task_id="hostile", **from_query(dag, sql=query, sql_parameters={"name": hostile}))
    result = run(dag)
    assert list(result.xcom("tickets")["session_ids"]) == ["9007199254740993"]
    assert result.xcom("hostile")["read"] == 0


def test_failing_query_ends_red_before_anything_is_sent(
    dag: DAG, run: RunDag, halo: Simulator, sqlite_source: SourceDatabase, errors: list[BaseException]
) -> None:
    """In the database's own words, and with a summary that counts nothing."""
    HaloIdentifyOperator(task_id="identify", **from_query(dag, sql="SELECT wish FROM requests", sql_parameters=None))
    HaloTicketOperator(task_id="tickets", **from_query(dag, sql="SELECT wish FROM requests", sql_parameters=None))
    result = run(dag)
    assert [result.state(task_id) for task_id in ("identify", "tickets")] == ["failed", "failed"]
    assert [str(error) for error in errors] == ["the query on 'source': the query failed: no such column: wish"] * 2
    assert counts(result.xcom("tickets")) == {}
    assert halo.requests == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sql_conn_id": "website"}, r"connection 'website' of type 'ftp' needs its provider package"),
        ({"sql_parameters": {}}, "the query needs sql_parameters for :first"),
        ({"sql_parameters": {"first": 1, "last": 2}}, "sql_parameters has 'last', but the query has no :last"),
    ],
)
def test_query_that_cannot_work_as_given_is_not_tried_again(
    *,
    dag: DAG,
    run: RunDag,
    halo: Simulator,
    sqlite_source: SourceDatabase,
    errors: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    reason: str,
) -> None:
    """The error names what to change, at the first try."""
    monkeypatch.setenv("AIRFLOW_CONN_WEBSITE", json.dumps({"conn_type": "ftp", "host": "example.com"}))
    HaloTicketOperator(task_id="tickets", retries=3, **from_query(dag, **options))
    result = run(dag)
    assert (result.state("tickets"), result.task("tickets").try_number) == ("failed", 1)
    assert re.match(reason, str(errors[0]))
    assert halo.requests == []


def test_columns_the_query_lacks_are_named(
    dag: DAG, run: RunDag, halo: Simulator, sqlite_source: SourceDatabase, errors: list[BaseException]
) -> None:
    """Before anything is sent."""
    query = "SELECT id, user_id AS usr FROM requests WHERE id >= :first"
    HaloTicketOperator(task_id="tickets", **from_query(dag, sql=query))
    assert run(dag).state("tickets") == "failed"
    assert "the submission needs 'user_id', 'message', which the query does not select" in str(errors[0])
    assert halo.requests == []


def test_rejected_rows_of_a_query_go_to_a_file(
    dag: DAG, run: RunDag, sqlite_source: SourceDatabase, tmp_path: Path
) -> None:
    """With the query's columns; a value that is no text is described."""
    rejects = tmp_path / "rejects.csv"
    sqlite_source.execute("UPDATE requests SET message = x'FFD8' WHERE id = 2")
    HaloTicketOperator(task_id="tickets", **from_query(dag, rejects_path=str(rejects), max_rejected=1))
    assert counts(run(dag).xcom("tickets")) == {"delivered": 2, "rejected": 1}
    with rejects.open(encoding="utf-8", newline="") as lines:
        (reject,) = csv.DictReader(lines)
    assert reject == {
        "id": "2",
        "user_id": "102",
        "name": "",
        "message": "b'\\xff\\xd8'",
        "_row": "2",
        "_field": "message",
        "_reason": "binary values cannot be sent; select a text form of the column, or leave it out",
    }


def read_csv(path: Path) -> list[dict[str, Any]]:
    """A CSV file's records."""
    with path.open(encoding="utf-8", newline="") as lines:
        return [record | {"attempts": int(record["attempts"])} for record in csv.DictReader(lines)]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file's records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """A Parquet file's records."""
    records: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return records


@pytest.mark.parametrize(
    ("name", "read"),
    [("results.csv", read_csv), ("results.jsonl", read_json_lines), ("results.parquet", read_parquet)],
)
@pytest.mark.parametrize("place", ["{folder}/made/on/demand/{name}", "file://{folder}/{name}"])
def test_results_file_has_every_row(
    *, dag: DAG, run: RunDag, halo: Simulator, tmp_path: Path, place: str, name: str, read: Any
) -> None:
    """In any format, on local disk or in object storage."""
    path = place.format(folder=tmp_path, name=name)
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3), results_path=path)
    assert run(dag).xcom("tickets")["results_path"] == path
    assert sorted(read(Path(path.removeprefix("file://"))), key=lambda record: record["row_key"]) == [
        {
            "row_key": str(chat.user_id).removeprefix("user_"),
            "user_id": chat.user_id,
            "session_id": chat.session_id,
            "status": "delivered",
            "attempts": 1,
        }
        for chat in sorted(halo.chats, key=lambda chat: str(chat.user_id))
    ]


def test_results_file_of_a_red_run_is_whole(dag: DAG, run: RunDag, halo: Simulator, tmp_path: Path) -> None:
    """Who looks for what went wrong finds every row with its status, and a second run's file has what it found."""
    halo.script_for(user_id="user_2", faults=[Fault.status(422)])
    halo.script_for(user_id="user_3", faults=[Fault.drop_after_acceptance()])
    path = tmp_path / "results.jsonl"
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=[*rows(4), rows(1)[0]],
        results_path=str(path),
        on_in_doubt="hold",
    )
    assert run(dag).state("tickets") == "failed"
    assert sorted((record["row_key"], record["status"]) for record in read_json_lines(path)) == [
        ("1", "delivered"),
        ("1", "duplicate"),
        ("2", "rejected"),
        ("3", "in_doubt"),
        ("4", "delivered"),
    ]
    run(dag)
    assert {record["status"] for record in read_json_lines(path) if record["row_key"] in {"1", "4"}} == {
        "already_delivered",
        "duplicate",
    }


DYING_DAG = """
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission

with DAG("dying_{name}", schedule=None):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="note", key="id", message="Note"),
        rows=[{{"id": str(number)}} for number in range(20)],
        concurrency=2,
        results_path="{results_path}",
    )
"""


@pytest.mark.parametrize(
    ("name", "place"), [("local", "{folder}/results.csv"), ("stored", "file://{folder}/results.csv")]
)
def test_run_that_dies_leaves_the_last_results_file_alone(
    supervise: Supervise, halo: Simulator, tmp_path: Path, name: str, place: str
) -> None:
    """Half a file would be taken for the whole one."""
    earlier = tmp_path / "results.csv"
    earlier.write_text("from an earlier run", encoding="utf-8")
    halo.script(path="/chat", faults=[None] * 6)
    halo.always("/chat", Fault.silence())

    def kill(process_id: int) -> None:
        wait_until(lambda: len(halo.chats) >= 6 and halo.chats_in_flight == 2)
        os.kill(process_id, signal.SIGKILL)

    dag_file = DYING_DAG.format(name=name, results_path=place.format(folder=tmp_path))
    result, _ = supervise(dag_file, "tickets", meanwhile=kill)
    assert result.state("tickets") == "failed"
    assert earlier.read_text(encoding="utf-8") == "from an earlier run"


REHEARSING_DAG = """
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

with DAG("dry_running", schedule=None):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="request", key="id", user=User(id="user_id"), message="Request: {message}"),
        sql="SELECT id, user_id, message FROM requests ORDER BY id",
        sql_conn_id="source",
        dry_run=True,
    )
"""


def test_dry_run_is_told_in_the_log_and_in_xcom(
    supervise: Supervise, halo: Simulator, sqlite_source: SourceDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows would be sent, and three requests with the rows' values masked."""
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    sqlite_source.execute("INSERT INTO requests SELECT id + 10, 200, 'Name', 'Another' FROM requests")
    result, log = supervise(REHEARSING_DAG, "tickets")
    summary = result.xcom("tickets")
    assert (summary["dry_run"], summary["would_send"], summary["results_path"]) == (True, 6, None)
    assert counts(summary) == {"not_attempted": 6}
    assert [example["row_key"] for example in summary["examples"]] == ["1", "2", "11"]
    assert summary["examples"][0] == {"row_key": "1", "message": "Request: xxxxx", "user_id": "101"}
    assert "read 6, already delivered 0, would send 6" in log
    assert log.count("would send (values masked)") == 3
    assert "Another" not in log
    assert halo.requests == []


def test_dry_run_makes_no_ledger_no_file_and_no_request(
    *, dag: DAG, run: RunDag, halo: Simulator, sqlite_source: SourceDatabase, airflow_home: Path, tmp_path: Path
) -> None:
    """No ledger, no file, no request, by neither operator."""
    before = set(tmp_path.iterdir())
    paths = {"rejects_path": str(tmp_path / "rejects.csv")}
    HaloIdentifyOperator(task_id="identify", **from_query(dag, dry_run=True, **paths))
    HaloTicketOperator(
        task_id="tickets", **from_query(dag, dry_run=True, results_path=str(tmp_path / "results.parquet"), **paths)
    )
    result = run(dag)
    assert result.xcom("identify") == {
        "read": 3,
        "users": 3,
        "companies": 0,
        "skipped": 0,
        "rejected": 0,
        "mode": "identify",
    }
    assert counts(result.xcom("tickets")) == {"not_attempted": 3}
    assert list(airflow_home.glob("halo_ledger*")) == []
    assert set(tmp_path.iterdir()) == before
    assert halo.requests == []


def ledger_content(airflow_home: Path) -> list[Any]:
    """Everything the ledger knows about rows."""
    with closing(sqlite3.connect(airflow_home / "halo_ledger.db")) as db:
        return db.execute("SELECT * FROM halo_submissions ORDER BY row_key").fetchall()


def test_dry_run_looks_the_ledger_up_and_leaves_it_as_it_is(
    dag: DAG, run: RunDag, sqlite_source: SourceDatabase, airflow_home: Path
) -> None:
    """What is delivered would not be sent, and no row of the ledger changes."""
    HaloTicketOperator(task_id="tickets", **from_query(dag))
    run(dag)
    before = ledger_content(airflow_home)
    sqlite_source.execute("INSERT INTO requests VALUES (4, 104, NULL, 'Fourth')")
    planned = DAG(f"{dag.dag_id}_dry_run", schedule=None)
    HaloTicketOperator(task_id="tickets", **from_query(planned, dry_run=True))
    summary = run(planned).xcom("tickets")
    assert counts(summary) == {"already_delivered": 3, "not_attempted": 1}
    assert summary["would_send"] == 1
    assert ledger_content(airflow_home) == before


@pytest.mark.parametrize(
    ("max_submissions", "found"),
    [(0, {"already_delivered": 3, "not_attempted": 1}), (1, {"already_delivered": 3, "delivered": 1})],
)
def test_max_submissions_counts_only_what_would_be_sent(
    *,
    dag: DAG,
    run: RunDag,
    halo: Simulator,
    statuses: Statuses,
    sqlite_source: SourceDatabase,
    errors: list[BaseException],
    max_submissions: int,
    found: dict[str, int],
) -> None:
    """A window that was delivered before may be as large as it likes; the refusal tells both numbers."""
    HaloTicketOperator(task_id="tickets", **from_query(dag))
    run(dag)
    sqlite_source.execute("INSERT INTO requests VALUES (4, 104, NULL, 'Fourth')")
    limited = DAG(f"{dag.dag_id}_limited", schedule=None, default_args=dag.default_args)
    HaloTicketOperator(task_id="tickets", **from_query(limited, max_submissions=max_submissions))
    result: Run = run(limited)
    assert counts(result.xcom("tickets")) == found
    assert result.state("tickets") == ("failed" if "not_attempted" in found else "success")
    assert len(halo.chats) == len(statuses()) == 3 + max_submissions
    assert [str(error)[:54] for error in errors] == (
        ["1 rows would be sent, more than max_submissions=0; not"] if "not_attempted" in found else []
    )
