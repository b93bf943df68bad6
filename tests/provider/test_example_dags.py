"""The example DAGs are documentation that runs, so they must import, explain themselves and find good rows."""

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, CronDataIntervalTimetable
from sqlalchemy import Column, DateTime, MetaData, String, Table, create_engine
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.testing import FreshLedger, LocalHalo
from halo_provider.testing.plugin import (  # noqa: F401 -- the fixtures that people have, not this project's own
    _served_local_halo,
    halo,
    halo_ledger,
)
from tests.provider.runs import Run, register
from tests.provider.source_databases import SourceDatabase, fresh_database

DAGS = Path(__file__).resolve().parents[2] / "dags"
EXAMPLE_ADDRESS = re.compile(r"[\w.+-]+@example\.(com|net|org)")


@pytest.fixture(scope="module")
def dag_bag() -> DagBag:
    """Every DAG of the folder, as Airflow reads it."""
    return DagBag(dag_folder=DAGS)


@pytest.fixture(params=sorted(path.stem for path in DAGS.glob("*.py")))
def dag(request: pytest.FixtureRequest, dag_bag: DagBag) -> DAG:
    """One example DAG, known by the name of its file."""
    assert dag_bag.import_errors == {}
    return dag_bag.dags[request.param]


@pytest.fixture
def tickets(dag: DAG) -> HaloTicketOperator:
    """The task that makes the DAG's tickets."""
    return dag.task_dict["tickets"]


OVER_CSV = ["halo_applications_csv", "halo_cancellations_csv"]
DAILY = ["halo_applications_daily", "halo_applications_followed", "halo_cancellations_daily"]

over_csv = pytest.mark.parametrize("dag", OVER_CSV, indirect=True)
daily = pytest.mark.parametrize("dag", DAILY, indirect=True)


def test_every_example_imports_without_error(dag_bag: DagBag) -> None:
    """Airflow finds nothing to complain about, two DAGs of one id included."""
    assert dag_bag.import_errors == {}


def test_example_dag_has_the_name_of_its_file(dag: DAG) -> None:
    """A file holds one DAG, of the same name."""
    assert Path(dag.fileloc) == DAGS / f"{dag.dag_id}.py"


def test_example_documents_its_schedule(dag: DAG) -> None:
    """The UI shows what the DAG does and why it has the schedule it has."""
    assert "**Schedule" in (dag.doc_md or "")


def test_example_retries_after_a_while(dag: DAG) -> None:
    """Every task tries again, and not at once."""
    assert all(task.retries and task.retry_delay.total_seconds() for task in dag.tasks)


@pytest.mark.parametrize("dag", [*OVER_CSV, *DAILY], indirect=True)
def test_users_are_identified_before_their_tickets(dag: DAG, tickets: HaloTicketOperator) -> None:
    """The identify task of the same rows and the same submission runs first."""
    identify = dag.task_dict["identify"]
    assert isinstance(identify, HaloIdentifyOperator)
    assert "identify" in tickets.upstream_task_ids
    for parameter in ("csv_path", "sql", "sql_conn_id", "sql_parameters", "submission"):
        assert getattr(identify, parameter) == getattr(tickets, parameter)


@pytest.fixture
def rows(tickets: HaloTicketOperator) -> list[dict[str, str]]:
    """The rows a DAG over a CSV file would read."""
    with Path(str(tickets.csv_path)).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@over_csv
def test_every_example_row_renders(tickets: HaloTicketOperator, rows: list[dict[str, str]]) -> None:
    """No row of the example files is rejected, and each has a key of its own."""
    submission = tickets.submission
    keys = {submission.row_key(row) for row in rows}
    for row in rows:
        submission.render(row, row_key=submission.row_key(row))
        submission.render_user(row)
        submission.render_company(row)
    assert len(keys) == len(rows) > 0


@over_csv
def test_example_rows_use_mail_domains_reserved_for_examples(rows: list[dict[str, str]]) -> None:
    """Every e-mail address belongs to the domains that are reserved for examples."""
    values = [value for row in rows for value in row.values() if "@" in value]
    assert values
    assert all(EXAMPLE_ADDRESS.fullmatch(value) for value in values)


@daily
def test_daily_example_has_intervals_of_a_day(dag: DAG) -> None:
    """A plain cron string would give its runs intervals without length."""
    assert isinstance(dag.timetable, CronDataIntervalTimetable)
    assert not dag.catchup


@daily
def test_daily_example_refuses_more_than_a_day_can_bring(tickets: HaloTicketOperator) -> None:
    """The last defence against a query that selects everything."""
    assert tickets.max_submissions


MOMENTS = [
    datetime(2026, 11, 1, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2026, 11, 2, tzinfo=UTC),
    datetime(2026, 11, 2, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2026, 11, 3, tzinfo=UTC),
]


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SourceDatabase]:
    """An empty database on each kind of server, behind the examples' connection."""
    if request.param == "sqlite":
        database = SourceDatabase(make_url(f"sqlite:///{tmp_path}/source.db"))
        monkeypatch.setenv("AIRFLOW_CONN_HALO_SOURCE_DB", database.connection)
        yield database
        return
    with fresh_database(request.getfixturevalue(f"{request.param}_url")) as database:
        monkeypatch.setenv("AIRFLOW_CONN_HALO_SOURCE_DB", database.connection)
        yield database


def fill(database: SourceDatabase, *, table: str, moment: str) -> list[str]:
    """Put the first rows of an example file into a table of its name, at MOMENTS, and return their keys."""
    with (DAGS / "data" / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        records: list[dict[str, Any]] = [
            record | {moment: at} for at, record in zip(MOMENTS, csv.DictReader(file), strict=False)
        ]
    aware = DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql")
    columns = [Column(name, aware if name == moment else String(500)) for name in records[0]]
    created = Table(table, MetaData(), *columns)
    engine = create_engine(database.url, future=True)
    with engine.begin() as db:
        created.create(db)
        db.execute(created.insert(), records)
    engine.dispose()
    return [next(iter(record.values())) for record in records]


@pytest.mark.parametrize(
    ("dag", "table", "moment"),
    [
        ("halo_applications_daily", "applications", "submitted_at"),
        ("halo_cancellations_daily", "cancellations", "cancelled_at"),
    ],
    indirect=["dag"],
)
def test_daily_example_delivers_exactly_its_day_from_any_database(
    *,
    dag: DAG,
    airflow_home: Path,
    halo: LocalHalo,
    halo_ledger: FreshLedger,
    source: SourceDatabase,
    table: str,
    moment: str,
) -> None:
    """The run of November 3rd sends what happened on the 2nd, from its first microsecond to its last."""
    keys = fill(source, table=table, moment=moment)
    register(dag)
    result = Run(dag.dag_id, dag.test(logical_date=datetime(2026, 11, 3, tzinfo=UTC)).run_id)
    summary = result.xcom("tickets")
    assert (summary["read"], summary["delivered"]) == (2, 2)
    assert set(summary["session_ids"]) == set(keys[1:3])
    assert result.xcom("identify") == {
        "read": 2, "users": 2, "companies": 2, "skipped": 0, "rejected": 0, "mode": "identify",
    }  # fmt: skip
    assert len(halo.tickets) == 2
    assert halo_ledger.statuses() == dict.fromkeys(keys[1:3], "delivered")
