"""The ledger's tables: created once, those of another version refused, and indexes that are used."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, func, inspect, select, text
from sqlalchemy.engine import Connection, Engine

from halo_provider.exceptions import LedgerError
from halo_provider.ledger import Candidate, Ledger, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import SCHEMA_VERSION, metadata, submissions, version
from tests.core.databases import mariadb_place, postgres_place
from tests.core.deliveries import rows_in

PAYLOAD = "a" * 64
MANY = 20_000  # rows: enough for PostgreSQL's planner to prefer an index
PROCESSES = 4  # that start at once


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database of every kind."""
    with ExitStack() as stack:
        match request.param:
            case "postgres":
                url = stack.enter_context(postgres_place(request.getfixturevalue("postgres_url")))
            case "mariadb":
                url = stack.enter_context(mariadb_place(request.getfixturevalue("mariadb_url")))
            case _:
                url = f"sqlite:///{tmp_path}/ledger.db"
        engine = create_engine(url, future=True)
        stack.callback(engine.dispose)
        yield engine


def url_of(engine: Engine) -> str:
    """Its URL, to open it as a run does."""
    return engine.url.render_as_string(hide_password=False)


def shape(engine: Engine) -> dict[str, tuple[set[str], set[str]]]:
    """The columns and indexes of every table."""
    inspector = inspect(engine)
    return {
        table: (
            {column["name"] for column in inspector.get_columns(table)},
            {str(index["name"]) for index in inspector.get_indexes(table)},
        )
        for table in metadata.tables
        if inspector.has_table(table)
    }


def test_creation_that_was_interrupted_can_be_run_again(place: Engine) -> None:
    """Where DDL is not part of a transaction, a killed process leaves some tables, and one without its index."""
    Ledger.at(url_of(place)).close()
    whole = shape(place)
    with place.begin() as db:
        db.execute(version.delete())
        metadata.tables["halo_deliveries"].drop(db)
        for index in metadata.tables["halo_submission_events"].indexes:
            index.drop(db)

    with closing(Ledger.at(url_of(place))) as ledger:
        assert ledger.transaction(lambda db: db.scalar(select(version.c.version))) == SCHEMA_VERSION
    assert shape(place) == whole


def test_ledger_of_a_newer_version_is_refused(place: Engine) -> None:
    """An old package beside a new one would not know what the rows mean: it says so, and changes nothing."""
    Ledger.at(url_of(place)).close()
    with place.begin() as db:
        db.execute(version.update().values(version=SCHEMA_VERSION + 1))

    with pytest.raises(
        LedgerError, match=f"version {SCHEMA_VERSION + 1}, this package knows {SCHEMA_VERSION}: upgrade"
    ):
        Ledger.at(url_of(place))

    with place.connect() as db:
        assert db.scalar(select(version.c.version)) == SCHEMA_VERSION + 1


@pytest.mark.parametrize("found", [None, 1, SCHEMA_VERSION - 1])
def test_ledger_of_an_unreleased_version_is_refused(place: Engine, found: int | None) -> None:
    """It is neither used nor changed; the first version had no version table. The error says what to do."""
    Ledger.at(url_of(place)).close()
    with place.begin() as db:
        if found is None:
            version.drop(db)
        else:
            db.execute(version.update().values(version=found))
    before = shape(place)

    with pytest.raises(
        LedgerError, match=rf"never released \(schema version {found or 1}, .* move the file or the tab"
    ):
        Ledger.at(url_of(place))

    assert shape(place) == before


def test_processes_that_start_at_once_create_it_once(place: Engine) -> None:
    """On the first run of several hosts each one finds a whole ledger."""

    def prepare(_: int) -> int:
        with closing(Ledger.at(url_of(place))) as ledger:
            return len(rows_in(ledger))

    with ThreadPoolExecutor(PROCESSES) as threads:
        counted = list(threads.map(prepare, range(PROCESSES)))

    assert counted == [0] * PROCESSES
    with place.connect() as db:
        assert db.scalar(select(func.count()).select_from(version)) == 1


def test_opening_a_ledger_again_changes_nothing(place: Engine) -> None:
    """Every task opens it, and only reads its version."""
    Ledger.at(url_of(place)).close()
    ledger = Ledger(create_engine(url_of(place), future=True))
    statements = statements_of(ledger.engine, ledger.prepare)
    ledger.close()

    assert not [statement for statement, _ in statements if re.match("CREATE|ALTER|DELETE|INSERT|UPDATE", statement)]


Statement = tuple[str, Any]


def statements_of(engine: Engine, action: Callable[[], object]) -> list[Statement]:
    """What the action asks the database, with its parameters."""
    statements: list[Statement] = []

    def note(_connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        statements.append((statement.strip(), parameters))

    event.listen(engine, "before_cursor_execute", note)
    action()
    event.remove(engine, "before_cursor_execute", note)
    return statements


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def large_ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Many rows of two submissions in a hundred runs, one in a thousand in doubt."""
    with ExitStack() as stack:
        if request.param == "postgres":
            url = stack.enter_context(postgres_place(request.getfixturevalue("postgres_url")))
        else:
            url = f"sqlite:///{tmp_path_factory.mktemp('large')}/ledger.db"
        ledger = stack.enter_context(closing(Ledger.at(url)))
        fill(ledger)
        yield ledger


def fill(ledger: Ledger) -> None:
    """Let it have run for a while."""
    now = ledger.now()
    rows = [
        {
            "namespace": f"halo_default/note{number % 2}",
            "row_key": f"{number:08}",
            "status": LedgerStatus.DELIVERED if number % 1000 else LedgerStatus.IN_DOUBT,
            "attempts": 1,
            "owner": "h:1:a",
            "dag_id": f"dag {number % 3}",
            "run_id": f"run {number % 100}",
            "created_at": now,
            "updated_at": now,
        }
        for number in range(MANY)
    ]
    ledger.transaction(lambda db: db.execute(submissions.insert(), rows))
    ledger.transaction(lambda db: db.execute(text("ANALYZE")))


def claim_again(ledger: Ledger) -> object:
    """A batch of rows that are delivered."""
    keys = [f"{number:08}" for number in range(2, 102, 2)]
    return ledger.lease_holder("halo_default/note0", task_instance=TaskInstanceRef()).claim(
        [Candidate(row_key=key, payload_hash=PAYLOAD) for key in keys], on_in_doubt="resend"
    )


def page_of_doubt(ledger: Ledger) -> object:
    """The rows that wait for a decision."""
    return RowReader(ledger).page(RowFilter(statuses=(LedgerStatus.IN_DOUBT,)))


def page_of_a_run(ledger: Ledger) -> object:
    """One run's rows that wait for a decision."""
    return RowReader(ledger).page(
        RowFilter(dag_ids=("dag 1",), run_id="run 4", statuses=(LedgerStatus.DELIVERED,)), limit=20
    )


def page_in_the_middle(ledger: Ledger) -> object:
    """A page far behind the first."""
    return RowReader(ledger).page(RowFilter(), after=RowCursor("halo_default/note1", f"{MANY // 2:08}"), limit=20)


def requeue_a_row(ledger: Ledger) -> object:
    """One row named."""
    return LedgerAdmin(ledger, actor="").requeue(RowFilter(namespace="halo_default/note0", row_keys=("00000002",)))


@pytest.mark.parametrize("action", [claim_again, page_of_doubt, page_of_a_run, page_in_the_middle, requeue_a_row])
def test_large_ledger_is_searched_by_its_indexes(large_ledger: Ledger, action: Callable[[Ledger], object]) -> None:
    """No claim and no page reads the table from end to end."""
    selects = [
        (statement, parameters)
        for statement, parameters in statements_of(large_ledger.engine, lambda: action(large_ledger))
        if "FROM halo_submissions" in statement
    ]

    plans = "\n".join(plan(large_ledger, statement, parameters) for statement, parameters in selects)

    assert selects
    assert not re.search(r"SCAN halo_submissions$|SCAN halo_submissions\n|Seq Scan", plans), plans
    rows_read = [int(rows) for rows in re.findall(r"Rows Removed by Filter: (\d+)", plans)]
    assert sum(rows_read) < MANY // 10, plans


def plan(ledger: Ledger, statement: str, parameters: Any) -> str:
    """How the database does it."""
    explain = "EXPLAIN QUERY PLAN " if ledger.engine.dialect.name == "sqlite" else "EXPLAIN (ANALYZE) "
    found = ledger.transaction(lambda db: db.exec_driver_sql(explain + statement, parameters).all())
    return "\n".join(str(row[-1]) for row in found)
