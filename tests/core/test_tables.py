"""The ledger's tables: older ones brought up in place, newer ones refused, and indexes that are used."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text

from halo_provider.exceptions import LedgerError
from halo_provider.ledger.admin import LedgerAdmin, RowCursor, RowFilter
from halo_provider.ledger.ledger import Candidate, ClaimResult, Ledger, TaskInstanceRef, submissions
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import SCHEMA_VERSION, metadata, version
from tests.core.databases import mariadb_place, postgres_place
from tests.core.deliveries import NAMESPACE, rows_in

PAYLOAD = "a" * 64
MANY = 20_000  # rows: enough for PostgreSQL's planner to prefer an index
PROCESSES = 4  # that start at once

# Version 1 as its release wrote it: no version table, no history, no count of changes, one index.
VERSION_1 = """
CREATE TABLE halo_submissions (
    namespace {exact250} NOT NULL, row_key {exact500} NOT NULL, status VARCHAR(16) NOT NULL,
    user_id {long}, session_id {long}, agent_id {long}, payload_hash VARCHAR(64), attempts INTEGER NOT NULL,
    error {long}, reply {long}, response JSON, owner VARCHAR(100), lease_expires_at {moment},
    dag_id VARCHAR(250), run_id VARCHAR(250), task_id VARCHAR(250), map_index INTEGER, try_number INTEGER,
    logical_date {moment}, created_at {moment} NOT NULL, updated_at {moment} NOT NULL,
    PRIMARY KEY (namespace, row_key)
)
"""
VERSION_1_INDEX = "CREATE INDEX halo_submissions_status ON halo_submissions (namespace, status, updated_at)"
VERSION_1_ROWS = """
INSERT INTO halo_submissions (namespace, row_key, status, session_id, payload_hash, attempts, owner,
    lease_expires_at, run_id, created_at, updated_at) VALUES
    ('halo_default/note', 'done', 'delivered', 'sess_1', '{payload}', 1, 'h:1:a', NULL, 'run 1',
        '2026-11-01 10:00:00', '2026-11-01 10:00:01'),
    ('halo_default/note', 'open', 'in_flight', NULL, '{payload}', 1, 'h:1:a', '2026-11-01 10:01:00', 'run 1',
        '2026-11-01 10:00:00', '2026-11-01 10:00:00'),
    ('halo_default/note', 'later', 'pending', NULL, '{payload}', 0, 'h:1:a', NULL, 'run 1',
        '2026-11-01 10:00:00', '2026-11-01 10:00:00')
"""
TYPES = {
    "sqlite": {"long": "TEXT", "moment": "DATETIME", "exact250": "VARCHAR(250)", "exact500": "VARCHAR(500)"},
    "postgresql": {
        "long": "TEXT",
        "moment": "TIMESTAMP WITH TIME ZONE",
        "exact250": "VARCHAR(250)",
        "exact500": "VARCHAR(500)",
    },
    "mysql": {
        "long": "LONGTEXT CHARACTER SET utf8mb4",
        "moment": "DATETIME(6)",
        "exact250": "VARCHAR(250) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "exact500": "VARCHAR(500) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    },
}


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
        engine = create_engine(url)
        stack.callback(engine.dispose)
        yield engine


def url_of(engine: Engine) -> str:
    """Its URL, to open it as a run does."""
    return engine.url.render_as_string(hide_password=False)


@pytest.fixture
def version_1(place: Engine) -> Engine:
    """A ledger of version 1 with three rows."""
    make_version_1(place)
    return place


def make_version_1(place: Engine) -> None:
    """Leave what version 1 left."""
    with place.begin() as db:
        db.execute(text(VERSION_1.format(**TYPES[place.dialect.name])))
        db.execute(text(VERSION_1_INDEX))
        db.execute(text(VERSION_1_ROWS.format(payload=PAYLOAD)))


def shape(engine: Engine) -> dict[str, tuple[set[str], set[str]]]:
    """The columns and indexes of every table."""
    inspector = inspect(engine)
    return {
        table: (
            {column["name"] for column in inspector.get_columns(table)},
            {str(index["name"]) for index in inspector.get_indexes(table)} - {"halo_submissions_status"},
        )
        for table in metadata.tables
        if inspector.has_table(table)
    }


def test_older_ledger_is_brought_up_with_its_rows(version_1: Engine) -> None:
    """Rows are as they were, and so the next run finds them: what was in flight is in doubt now."""
    with version_1.connect() as db:
        old = {row["row_key"]: dict(row) for row in db.execute(text("SELECT * FROM halo_submissions")).mappings()}

    with closing(Ledger.at(url_of(version_1))) as ledger:
        found = rows_in(ledger)
        claims = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef()).claim(
            [Candidate(row_key=key, payload_hash=PAYLOAD) for key in ("done", "open", "later", "new")],
            on_in_doubt="resend",
        )

    assert found.keys() == old.keys()
    for row_key, row in found.items():
        assert row["changes"] is None
        assert {name: row[name] for name in ("status", "session_id", "payload_hash", "attempts", "owner")} == {
            name: old[row_key][name] for name in ("status", "session_id", "payload_hash", "attempts", "owner")
        }
        assert row["created_at"].isoformat() == "2026-11-01T10:00:00+00:00"
    assert (claims["done"].result, claims["done"].session_id) == (ClaimResult.DELIVERED, "sess_1")
    assert {key for key, claim in claims.items() if claim.doubtful} == {"open"}


def test_older_ledger_gets_the_shape_of_a_new_one(version_1: Engine) -> None:
    """The same columns and indexes as a ledger that was made today."""
    Ledger.at(url_of(version_1)).close()
    upgraded = shape(version_1)
    metadata.drop_all(version_1)
    Ledger.at(url_of(version_1)).close()

    assert upgraded == shape(version_1)


def test_upgrade_that_was_cut_off_is_taken_up_again(version_1: Engine) -> None:
    """Where DDL is no transaction, a killed upgrade leaves a part of it."""
    with version_1.begin() as db:
        db.execute(text("ALTER TABLE halo_submissions ADD COLUMN changes INTEGER"))
        metadata.tables["halo_submission_events"].create(db)

    with closing(Ledger.at(url_of(version_1))) as ledger:
        assert len(rows_in(ledger)) == 3
        assert ledger.transaction(lambda db: db.scalar(select(version.c.version))) == SCHEMA_VERSION


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


@pytest.mark.parametrize("is_older", [False, True])
def test_processes_that_start_at_once_bring_it_up_once(place: Engine, is_older: bool) -> None:  # noqa: FBT001 -- pytest's
    """On the first run of several hosts, and on the first after an upgrade: each one finds a whole ledger."""
    if is_older:
        make_version_1(place)

    def prepare(_: int) -> int:
        with closing(Ledger.at(url_of(place))) as ledger:
            return len(rows_in(ledger))

    with ThreadPoolExecutor(PROCESSES) as threads:
        counted = list(threads.map(prepare, range(PROCESSES)))

    assert counted == [3 if is_older else 0] * PROCESSES
    with place.connect() as db:
        assert db.scalar(select(func.count()).select_from(version)) == 1


def test_ledger_that_is_up_to_date_is_only_looked_at(place: Engine) -> None:
    """Every task opens it: that changes nothing."""
    Ledger.at(url_of(place)).close()
    ledger = Ledger(create_engine(url_of(place)))
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
    return LedgerAdmin(ledger, actor="").page(RowFilter(statuses=(LedgerStatus.IN_DOUBT,)))


def page_of_a_run(ledger: Ledger) -> object:
    """One run's rows that wait for a decision."""
    return LedgerAdmin(ledger, actor="").page(
        RowFilter(dag_ids=("dag 1",), run_id="run 4", statuses=(LedgerStatus.DELIVERED,)), limit=20
    )


def page_in_the_middle(ledger: Ledger) -> object:
    """A page far behind the first."""
    return LedgerAdmin(ledger, actor="").page(
        RowFilter(), after=RowCursor("halo_default/note1", f"{MANY // 2:08}"), limit=20
    )


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
