"""Rows from a database: the result of one query is written to a temporary file, and the rows are read from there.

Halo takes seconds for a row. A cursor that stays open for that long is closed by the server (MySQL's net_write_timeout,
PostgreSQL's idle_in_transaction_session_timeout), or keeps the server from removing old row versions. Therefore the
query is run to its end first, with a server-side cursor. Memory does not grow with the number of rows, a query that
fails does so before anything is sent, and a second reading sees the same rows.
"""

import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import IO, Any

from sqlalchemy import text
from sqlalchemy.engine import CursorResult, Engine
from sqlalchemy.exc import DBAPIError

from halo_provider.exceptions import HaloConfigurationError, SourceError, redact
from halo_provider.sources.rows import Row

FETCH_SIZE = 1_000  # rows fetched and stored together

# A timestamp with a zone that is compared to a column without one is converted to the session's zone, which is a
# setting of the server. With UTC the result is the same on every server.
SESSION_IN_UTC = {
    "postgresql": "SET TIME ZONE 'UTC'",
    "mysql": "SET time_zone = '+00:00'",
    "mariadb": "SET time_zone = '+00:00'",
}


class SqlSource:
    """A query's rows. `parameters` are bound by name (``:start``) on every database; close it when done."""

    def __init__(
        self, *, engine: Engine, statement: str, parameters: Mapping[str, Any] | None, description: str
    ) -> None:
        self.description = description
        self._engine = engine
        self._engine.hide_parameters = True  # SQLAlchemy's errors would quote them
        self._statement = text(statement)
        self._parameters = {name: self._bound(value) for name, value in (parameters or {}).items()}
        self._columns: list[str] | None = None
        self._spooled = 0  # rows
        self._read = 0  # rows
        self._spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        self._check_parameters()

    @property
    def share_read(self) -> float:
        """The share of the query's rows that have been read; 0.0 while the query runs."""
        if self._columns is None:
            return 0.0
        return self._read / self._spooled if self._spooled else 1.0

    def columns(self) -> list[str]:
        """The query's columns. Raises SourceError with the database's own words where it fails."""
        if self._columns is None:
            self._columns = self._fetch()
        return self._columns

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError, before the first one, where the query fails or lacks a column."""
        columns = self.columns()
        missing = [name for name in required if name not in columns]
        if missing:
            raise SourceError(
                f"{self.description}: the submission needs {', '.join(map(repr, missing))}, which the query does not "
                f"select. Its columns are {', '.join(map(repr, columns))}."
            )
        self._read = 0
        return self._stored_rows(columns)

    def _stored_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        self._spool.seek(0)
        number = 0
        while some := self._load():
            for values in some:
                number += 1
                self._read = number
                yield Row(number, dict(zip(columns, values, strict=True)))

    def _load(self) -> list[tuple[Any, ...]]:
        try:
            some: list[tuple[Any, ...]] = pickle.load(self._spool)  # noqa: S301 -- our own temporary file
        except Exception as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise SourceError(
                f"{self.description}: the temporary file with its rows cannot be read: {reason}"
            ) from error
        return some

    def _fetch(self) -> list[str]:
        dialect = self._engine.dialect.name
        options = {"stream_results": True, "max_row_buffer": FETCH_SIZE}
        try:
            with self._engine.connect() as db:
                if dialect in SESSION_IN_UTC:
                    db.exec_driver_sql(SESSION_IN_UTC[dialect])
                with closing(db.execute(self._statement, self._parameters, execution_options=options)) as result:
                    return self._store(result)
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001 -- a driver has errors of its own, and values Python has no room for
            raise SourceError(f"{self.description}: the query failed: {self._words_of(error)}") from None

    def _store(self, result: "CursorResult[Any]") -> list[str]:
        if not result.returns_rows:
            raise SourceError(f"{self.description}: the query yields no rows by its nature; is it a SELECT?")
        columns = list(result.keys())
        doubled = sorted({name for name in columns if columns.count(name) > 1})
        if doubled:
            raise SourceError(
                f"{self.description}: the query selects {', '.join(map(repr, doubled))} twice; give each an alias"
            )
        self._spool.seek(0)
        self._spool.truncate()
        self._spooled = 0
        # The size is given here because SQLAlchemy's yield_per has no effect on text().
        for some in result.partitions(FETCH_SIZE):
            pickle.dump([_storable(row) for row in some], self._spool, protocol=pickle.HIGHEST_PROTOCOL)
            self._spooled += len(some)
        pickle.dump([], self._spool)
        return columns

    def _words_of(self, error: Exception) -> str:
        words = str(error.orig if isinstance(error, DBAPIError) and error.orig else error).strip()
        password = self._engine.url.password
        return redact(words.replace(str(password), "***") if password else words)

    def _bound(self, value: Any) -> Any:
        """The value as the database compares it: a timestamp in UTC where columns have no zone, on SQLite as text."""
        if not isinstance(value, datetime) or self._engine.dialect.name == "postgresql":
            return value
        timestamp = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return timestamp.isoformat(" ") if self._engine.dialect.name == "sqlite" else timestamp

    def _check_parameters(self) -> None:
        known = self._statement.compile().params
        unknown = sorted(self._parameters.keys() - known.keys())
        missing = sorted(known.keys() - self._parameters.keys())
        if unknown:
            raise HaloConfigurationError(
                f"sql_parameters has {unknown[0]!r}, but the query has no :{unknown[0]}; "
                f"a cast of it is written CAST(:{unknown[0]} AS …), not with ::"
            )
        if missing:
            raise HaloConfigurationError(
                f"the query needs sql_parameters for {', '.join(f':{name}' for name in missing)}; "
                "a colon that begins no parameter is written as \\:"
            )

    def close(self) -> None:
        """Delete the temporary file and close the engine's connections."""
        self._spool.close()
        self._engine.dispose()


def _storable(row: Sequence[Any]) -> tuple[Any, ...]:
    """The row with copies of what is a view into the driver's memory, which pickle refuses."""
    return tuple(bytes(value) if isinstance(value, memoryview) else value for value in row)
