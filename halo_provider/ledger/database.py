"""The ledger's database: its connections, its clock, and transactions that are run again after a deadlock."""

import math
import os
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from halo_provider.exceptions import LedgerError, redact
from halo_provider.ledger import clock
from halo_provider.ledger.clock import Times
from halo_provider.ledger.threads import BoundedCalls

TRANSACTION_ATTEMPTS = 5  # tries of a transaction that a server rolled back in favour of another
TRANSACTION_TIMEOUT = 20.0  # seconds after which a transaction on a server is abandoned
SILENT_TIMEOUT = 3.0  # the same after one that was abandoned, until the server answers again
BUSY_TIMEOUT = 30.0  # seconds a writer waits for SQLite's lock
BUSY_SLICE = 0.25  # seconds it waits at a time, so that it can give up earlier
BUSY_POLL = 0.02  # seconds between tries where SQLite does not wait by itself

_T = TypeVar("_T")


def new_engine(url: URL) -> Engine:
    """An engine as SQLAlchemy 2 makes it. Raises SQLAlchemyError and ImportError.

    SQLAlchemy 1.4 by itself opens SQLite's file anew for each transaction, and holds the whole result of a query.
    """
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite" and url.database not in {None, "", ":memory:"}:
        options = {"poolclass": QueuePool, "connect_args": {"check_same_thread": False}}
    return create_engine(url, pool_pre_ping=True, future=True, **options)


class Database:
    """One database behind a SQLAlchemy engine. The calls block and may come from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.engine.hide_parameters = True  # SQLAlchemy's errors would quote them
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._calls = BoundedCalls()
        self._finish_at = math.inf
        self._is_silent = False  # the last call to a server was abandoned
        self._is_open = False
        self._booted_at: datetime | None = None
        self._file: _File | None = None  # SQLite's

    def close(self) -> None:
        """Close the connections."""
        self._calls.close()
        self.engine.dispose()

    @property
    def is_at_its_place(self) -> bool:
        """Whether SQLite's file is still the one that was opened."""
        return self._file is None or self._file.is_at_its_path()

    def configure_connections(self) -> None:
        """Set what every new connection of the engine begins with."""
        if self._is_sqlite:
            _configure_sqlite(self.engine)
            self._file = self.transaction(_file_of, read_only=True)
        else:
            _configure_server(self.engine)

    def prepare_clock(self, *, read_only: bool = False) -> None:
        """Learn when the host was booted, which SQLite's leases count from: the last step of opening.

        With `read_only` it stays unknown where no process has recorded it: there is no live lease then.
        Raises LedgerError.
        """
        boot = clock.boot_id()
        if self._is_sqlite and boot is not None and self._booted_at is None:
            self._booted_at = self.transaction(lambda db: clock.recorded_boot(db, boot), read_only=True)
            if self._booted_at is None and not read_only:
                self._booted_at = self.transaction(lambda db: clock.record_boot(db, boot))
        self._is_open = True

    def times(self, db: Connection) -> Times:
        """The database's time, read in this transaction."""
        return clock.read_times(db, booted_at=self._booted_at)

    def now(self) -> datetime:
        """The database's time, for people. Raises LedgerError."""
        return self.transaction(lambda db: self.times(db).now, read_only=True)

    def finish_within(self, seconds: float) -> None:
        """Let no call last longer than this from now on, calls under way included: for a run that has to end."""
        self._finish_at = time.monotonic() + seconds

    def transaction(self, work: Callable[[Connection], _T], *, read_only: bool = False) -> _T:
        """Run `work` in one transaction, and again where the database rolled it back in favour of another.

        With `read_only`, SQLite neither waits for a writer nor blocks one. Raises LedgerError where the database cannot
        be reached, refuses, or has not answered after `TRANSACTION_TIMEOUT`, once it was silent after `SILENT_TIMEOUT`;
        on SQLite, where its lock was not free for `BUSY_TIMEOUT`.
        """
        engine = self.engine.execution_options(read_only=True) if read_only else self.engine
        allowed = BUSY_TIMEOUT if self._is_sqlite else TRANSACTION_TIMEOUT
        if self._is_silent:
            allowed = min(allowed, SILENT_TIMEOUT)
        give_up_at = time.monotonic() + allowed

        def time_left() -> float:
            return min(give_up_at, self._finish_at) - time.monotonic()

        try:
            if self._is_sqlite:
                result = self._run(engine, work, time_left=time_left)
            else:
                result = self._calls.call(
                    lambda abandoned: self._run(engine, work, time_left=time_left, abandoned=abandoned),
                    time_left=time_left,
                )
                self._is_silent = False
        except TimeoutError as error:
            self._is_silent = True
            self.engine.dispose(close=False)  # the silent connections are left to the threads that wait for them
            raise self._error("its database does not answer") from error
        except SQLAlchemyError as error:
            self._is_silent = False
            raise self._error(reason_of(error)) from error
        self._check_file()
        return result

    def _error(self, reason: str) -> LedgerError:
        return LedgerError(f"the ledger cannot be {'used' if self._is_open else 'opened'}: {reason}")

    def _run(
        self,
        engine: Engine,
        work: Callable[[Connection], _T],
        *,
        time_left: Callable[[], float],
        abandoned: Event | None = None,
    ) -> _T:
        attempts = 0
        while True:
            attempts += 1
            try:
                with engine.begin() as db:
                    result = work(db)
                    if abandoned is not None and abandoned.is_set():
                        raise TimeoutError  # rolls back
                    return result
            except OperationalError as error:
                is_last = attempts >= TRANSACTION_ATTEMPTS and not self._is_sqlite
                if is_last or time_left() <= 0 or not _is_contention(error):
                    raise

    def _check_file(self) -> None:
        """Make sure that the transaction is in the file at the path: SQLite writes into a deleted one without error."""
        if self._file is not None and not self._file.is_at_its_path():
            raise LedgerError(
                f"the ledger {self._file.path} was deleted or replaced while this process had it open: restore it, "
                "or the rows that only it knows as delivered will be sent again"
            )


class _File(NamedTuple):
    """A file by its path and its identity."""

    path: str
    device: int
    inode: int

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this very file."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 -- at every commit, and Path takes three times as long
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


def _file_of(db: Connection) -> _File | None:
    """The file that SQLite has open; None for a database in memory."""
    path: str = db.exec_driver_sql("PRAGMA database_list").one()[2]
    if not path:
        return None
    found = Path(path).stat()
    return _File(path, found.st_dev, found.st_ino)


def reason_of(error: Exception) -> str:
    """The first line of the driver's message: those after it may quote the statement with its values."""
    message = error.orig if isinstance(error, DBAPIError) else error.args[0]
    return redact(str(message).partition("\n")[0])


def refuses_content(error: LedgerError) -> bool:
    """Whether the database refused the values of a statement, so that another attempt with the same ones fails too."""
    cause = error.__cause__
    if not isinstance(cause, DBAPIError):
        return False
    return isinstance(cause, DataError | IntegrityError) or _mysql_code(cause) in _MYSQL_REFUSALS


# A packet too large, text that is not in the character set, invalid JSON, and a violated CHECK on MySQL and on MariaDB.
_MYSQL_REFUSALS = frozenset({1153, 1366, 3140, 3819, 4025})


def _mysql_code(error: DBAPIError) -> Any:
    return error.orig.args[0] if error.orig and error.orig.args else None


def _is_contention(error: DBAPIError) -> bool:
    """Whether the database rolled this transaction back in favour of another: a deadlock, or a lock not obtained."""
    sql_state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    locked = _mysql_code(error) in {1205, 1213}
    return sql_state in {"40001", "40P01"} or locked or "database is locked" in str(error.orig)


# With which a driver gives up by itself, in seconds: later than transaction() does, so that no abandoned thread is left
# for ever. libpq cannot bound a statement, but it can notice a host that is gone.
_LIBPQ_PARAMETERS = {"connect_timeout": 30, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_MYSQL_PARAMETERS = {"connect_timeout": 30, "read_timeout": 60, "write_timeout": 60}
_CONNECT_PARAMETERS = {
    "psycopg": _LIBPQ_PARAMETERS,
    "psycopg2": _LIBPQ_PARAMETERS,
    "pymysql": _MYSQL_PARAMETERS,
    "mysqldb": _MYSQL_PARAMETERS,
}


def _configure_server(engine: Engine) -> None:
    """Let the driver give up in the end, and set READ COMMITTED once for each connection.

    As an engine option it would be set again in each transaction, with errors that are not SQLAlchemy's.
    """
    engine.dispose()

    @event.listens_for(engine, "do_connect")
    def _on_do_connect(dialect: Dialect, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        for name, value in _CONNECT_PARAMETERS.get(dialect.driver, {}).items():
            parameters.setdefault(name, value)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        engine.dialect.set_isolation_level(connection, "READ COMMITTED")


def _configure_sqlite(engine: Engine) -> None:
    """Let readers work beside one writer, let writers wait, and let a commit return when it is on the disk."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's recipe: the driver must not begin transactions by itself
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_SLICE * 1000)}")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging. While another process writes, SQLite refuses that without waiting."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up_at:
                raise
            time.sleep(BUSY_POLL)
        else:
            return
