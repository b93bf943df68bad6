"""The ledger's tables, and how they are created. A ledger of another version is refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    delete,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Connection, Dialect

from halo_provider.exceptions import LedgerError
from halo_provider.ledger.refs import run_ref, task_ref
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.submission import MAX_ROW_KEY

MYSQL = ("mysql", "mariadb")  # dialects
SCHEMA_VERSION = 8  # those before were never released
MAX_NAMESPACE = 250  # bytes of UTF-8
# What a delivery counts: rows by their status; requests; and how many of these Halo refused for its load or for their
# rate (429, and 503 with Retry-After), so that it certainly did not take them.
DELIVERY_COUNTS = (*(status.value for status in RowStatus), "requests", "refused")
MAX_TICKET_STATUS = 60  # characters
LOCK_WAIT = 15  # seconds for another process to create the tables
KEY_WIDTH = MAX_ROW_KEY + 20  # characters: a row's key, and the mark of a follow-up

# What indexes hold: MySQL's 3,072 bytes, counted as four for each character that a column may have; PostgreSQL's 2,704,
# counted as stored. The widest is the one by status, with up to 1,000 bytes of a DAG's id, which leaves 1,000 bytes for
# a row's key besides its mark and the namespace. Runs and task instances are indexed by a number made of their names
# (`rules.run_ref`, `rules.task_ref`): the names do not fit.


class UtcDateTime(TypeDecorator):  # type: ignore[type-arg]  # SQLAlchemy 1.4 has no generics at run time
    """Aware UTC in Python, microseconds in every database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Ask MySQL for microseconds, which it leaves out by default."""
        if dialect.name in MYSQL:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Drop the zone, which is UTC, where the database has none."""
        return value if value is None or dialect.name == "postgresql" else value.astimezone(UTC).replace(tzinfo=None)

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """Convert a time once where, as in a batch, the same one is written many times in succession."""
        convert = super().bind_processor(dialect)
        if convert is None:
            return None
        latest: tuple[datetime | None, Any] = (None, None)

        def process(value: datetime | None) -> Any:
            nonlocal latest
            known, converted = latest
            if value is not known:
                converted = convert(value)
                latest = (value, converted)
            return converted

        return process

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 -- SQLAlchemy's signature
        """Put the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class LedgerStatusType(TypeDecorator):  # type: ignore[type-arg]  # as above
    """A LedgerStatus in Python, its value in the database."""

    impl = String(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Ask MySQL for one byte a character: wider, no index that ends with the primary key would order by it."""
        if dialect.name in MYSQL:
            return dialect.type_descriptor(mysql.VARCHAR(16, charset="ascii", collation="ascii_bin"))
        return dialect.type_descriptor(String(16))

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str], LedgerStatus]:  # noqa: ARG002 -- SQLAlchemy's signature
        """Look the value up, without a Python call for each row."""
        return {status.value: status for status in LedgerStatus}.__getitem__


def _exact(length: int) -> String:
    """Text that is equal only to itself: MySQL's default collations ignore case and accents."""
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin")
    return String(length).with_variant(exact, "mysql").with_variant(exact, "mariadb")


class JsonText(TypeDecorator):  # type: ignore[type-arg]  # as above
    """JSON that is written as text and read as Python's values: MariaDB's JSON columns hold only 32 levels."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """As every other text."""
        return dialect.type_descriptor(_MYSQL_TEXT if dialect.name in MYSQL else Text())

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 -- SQLAlchemy's signature
        """Parse it."""
        return None if value is None else from_json(value)


_MYSQL_TEXT = mysql.LONGTEXT(charset="utf8mb4")
_LONG_TEXT = Text().with_variant(_MYSQL_TEXT, "mysql").with_variant(_MYSQL_TEXT, "mariadb")


def _run_ref_of(context: Any) -> int | None:
    row = context.get_current_parameters()
    return run_ref(row.get("dag_id"), row.get("run_id"))


def _task_ref_of(context: Any) -> int | None:
    row = context.get_current_parameters()
    return task_ref(row.get("task_id"), row.get("map_index"))


metadata = MetaData()
submissions = Table(
    "halo_submissions",
    metadata,
    Column("namespace", _exact(MAX_NAMESPACE), primary_key=True),
    Column("row_key", _exact(KEY_WIDTH), primary_key=True),
    Column("status", LedgerStatusType(), nullable=False),
    Column("user_id", _LONG_TEXT),
    Column("session_id", _LONG_TEXT),
    Column("agent_id", _LONG_TEXT),
    Column("payload_hash", String(64)),
    Column("message_hash", String(64)),  # of the message as it is compared with what Halo has
    Column("into_session", _LONG_TEXT),  # the session it is sent into, where that exists before; NULL is a new one
    Column("reference", _LONG_TEXT),  # what the request carries so that it can be found again
    Column("changes", Integer),  # follow-ups delivered since; NULL is none
    Column("attempts", Integer, nullable=False),
    Column("error", _LONG_TEXT),
    Column("reply", _LONG_TEXT),
    Column("response", JsonText()),
    Column("owner", String(100)),
    Column("lease_expires_at", UtcDateTime()),
    Column("doubt_since", UtcDateTime()),  # when the first attempt began whose outcome is not known
    Column("ticket_id", _LONG_TEXT),
    Column("ticket_status", String(MAX_TICKET_STATUS)),  # Halo's word, or one of tickets.py; NULL is not known yet
    Column("ticket_at", UtcDateTime()),  # since when, by Halo; where Halo does not say, when it was seen first
    Column("dag_id", String(250)),
    Column("run_id", String(250)),
    Column("task_id", String(250)),
    Column("map_index", Integer),
    Column("run_ref", BigInteger, default=_run_ref_of),
    Column("task_ref", BigInteger, default=_task_ref_of),
    Column("try_number", Integer),
    Column("logical_date", UtcDateTime()),
    Column("created_at", UtcDateTime(), nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
)
# For the pages: the rows of one status, of a DAG or of a run and a task instance, counted and in the order of their
# keys. MySQL, whose indexes hold 3,072 bytes, ends every index with the primary key by itself. SQLAlchemy 1.4 knows no
# index of some databases only.
PAGE_INDEXES = {
    "halo_submissions_by_status": ("status", "dag_id"),
    "halo_submissions_by_run": ("run_ref", "status", "task_ref"),
}
events = Table(
    "halo_submission_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("namespace", _exact(MAX_NAMESPACE), nullable=False),
    Column("row_key", _exact(KEY_WIDTH), nullable=False),
    Column("at", UtcDateTime(), nullable=False),
    Column("actor", _LONG_TEXT, nullable=False),  # a person's name, or a task instance's
    Column("event", String(32), nullable=False),
    Column("detail", _LONG_TEXT),
    Column("dag_id", String(250)),  # whose people may read the event: the row may belong to another DAG by now
    Column("run_ref", BigInteger),
    Column("decision", String(32)),  # of a person: the same for all rows it was about
    Column("before", JsonText()),  # what a decision replaced, to undo it
    Index("halo_submission_events_by_row", "namespace", "row_key", "id"),
    Index("halo_submission_events_by_run", "run_ref"),
    Index("halo_submission_events_by_decision", "decision", "id"),
)
deliveries = Table(
    "halo_deliveries",
    metadata,
    Column("owner", String(100), primary_key=True),  # of the claims: one for each start of a task's process
    Column("namespace", _exact(MAX_NAMESPACE), nullable=False),
    Column("dag_id", String(250)),
    Column("run_id", String(250)),
    Column("task_id", String(250)),
    Column("map_index", Integer),
    Column("try_number", Integer),
    Column("started_at", UtcDateTime(), nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
    Column("ended_at", UtcDateTime()),  # NULL while it runs, and for ever if its process was killed
    Column("total", Integer),  # rows of the source, where that is known
    *(Column(name, Integer, nullable=False) for name in DELIVERY_COUNTS),
    Column("request_seconds", Float, nullable=False),  # of all requests together
    Column("seconds", Float, nullable=False),
    Column("error", _LONG_TEXT),  # the last one
    Column("unlisted", JsonText()),  # rejected rows that `submissions` has not: [place, reason], some of them
    Column("pace", String(200)),  # what limits the sending, in words; at the end, what limited most requests
    Index("halo_deliveries_by_start", "started_at"),
    Index("halo_deliveries_by_run", "dag_id", "run_id"),
)
sign_ins = Table(
    "halo_sign_ins",
    metadata,
    Column("conn_id", _exact(MAX_NAMESPACE), primary_key=True),
    Column("secrets", _LONG_TEXT, nullable=False),  # encrypted with Airflow's Fernet key
    Column("issued_at", UtcDateTime(), nullable=False),  # the access token, by the clock of leases, as all three times
    Column("expires_at", UtcDateTime()),  # the access token; NULL where Halo does not say when
    Column("refresh_owner", String(100)),  # who renews it, until its answer is recorded here
    Column("refresh_expires_at", UtcDateTime()),  # after which others may try
    Column("refreshes", Integer, nullable=False),
    Column("problem", _LONG_TEXT),  # why a person must sign in again
    Column("actor", _LONG_TEXT, nullable=False),  # who signed in
    Column("created_at", UtcDateTime(), nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
)
boots = Table(  # of the host, on SQLite only
    "halo_ledger_boots",
    MetaData(),
    Column("boot_id", String(64), primary_key=True),
    Column("booted_at", UtcDateTime(), nullable=False),
)
version = Table("halo_ledger_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))


def tables_exist(db: Connection) -> bool:
    """Whether the database has a whole ledger of this version."""
    return _version(db) == SCHEMA_VERSION


def tables_to_read(db: Connection) -> bool:
    """The same, and false where there is no ledger. Raises LedgerError for one of another version."""
    found = _version(db)
    if found != SCHEMA_VERSION:
        _refuse_another_version(db, found)
    return found == SCHEMA_VERSION


def create_tables(db: Connection) -> None:
    """Create what is missing in an empty database.

    Creation that was interrupted can be run again. Raises LedgerError for a ledger of another version, and SQLAlchemy's
    errors.
    """
    with _creation_lock(db):
        _create_tables(db)


@contextmanager
def _creation_lock(db: Connection) -> Iterator[None]:
    """Let one process at a time create tables; SQLite's transactions do so by themselves."""
    match db.dialect.name:
        case "postgresql":
            db.execute(select(func.pg_advisory_xact_lock(func.hashtext(version.name))))
            yield
        case "mysql" | "mariadb":  # whose DDL ends transactions
            db.execute(select(func.get_lock(version.name, LOCK_WAIT)))
            try:
                yield
            finally:
                db.execute(select(func.release_lock(version.name)))
        case _:
            yield


def _create_tables(db: Connection) -> None:
    found = _version(db)
    if found == SCHEMA_VERSION:
        return
    _refuse_another_version(db, found)
    version.create(db, checkfirst=True)  # the first table, so that one without it is known to be older
    metadata.create_all(db)
    if db.dialect.name == "sqlite":
        boots.create(db, checkfirst=True)
    _create_missing_indexes(db)
    db.execute(delete(version))  # MySQL's lock ends before the transaction: another process's row may be there by now
    db.execute(insert(version).values(version=SCHEMA_VERSION))


def _refuse_another_version(db: Connection, found: int | None) -> None:
    if found is not None and found > SCHEMA_VERSION:
        raise LedgerError(
            f"the ledger has schema version {found}, this package knows {SCHEMA_VERSION}: "
            "upgrade airflow-provider-halo on this host too"
        )
    inspector = inspect(db)
    if found is not None or (inspector.has_table(submissions.name) and not inspector.has_table(version.name)):
        raise LedgerError(
            f"the ledger was made by a version of airflow-provider-halo that was never released (schema version "
            f"{found or 1}, this package knows {SCHEMA_VERSION}): export what you need, then move the file or the "
            "tables halo_* away; rows that only the old ledger knows as delivered would be sent again"
        )


def _version(db: Connection) -> int | None:
    if not inspect(db).has_table(version.name):
        return None
    found: int | None = db.execute(select(version.c.version)).scalar()
    return found


def _create_missing_indexes(db: Connection) -> None:
    """Create the indexes that differ by database, and what an interrupted creation left out: DDL ends transactions."""
    for table in metadata.sorted_tables:
        names = {index["name"] for index in inspect(db).get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in names:
                index.create(db)
        if table is submissions:
            key = () if db.dialect.name in MYSQL else ("namespace", "row_key")
            for name in PAGE_INDEXES.keys() - names:
                columns = ", ".join((*PAGE_INDEXES[name], *key))
                db.execute(text(f"CREATE INDEX {name} ON {table.name} ({columns})"))
