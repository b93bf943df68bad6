"""What every source yields, and what a source is."""

from collections.abc import Iterator, Sequence
from reprlib import Repr
from typing import Any, NamedTuple, Protocol

from halo_provider.exceptions import RowError, SourceError
from halo_provider.submission import RowValues

MAX_RAW_TEXT = 2_000  # characters of an unreadable line that go to the rejects file

_SHORTENED = Repr()
_SHORTENED.maxlevel = 3
_SHORTENED.maxstring = _SHORTENED.maxother = MAX_RAW_TEXT


class Row(NamedTuple):
    """What a source yields: `number` is a file's line (the header is line 1) or a place in a list, from 1.

    `error` is set where the row cannot be used at all; `values` then holds what could be read of it. `file` is set
    where the source has several.
    """

    number: int
    values: RowValues
    error: RowError | None = None
    file: str | None = None

    @property
    def place(self) -> str:
        """Where the row stands, for people, and different for each row of a source: ``12``, ``part-2.csv:12``."""
        return str(self.number) if self.file is None else f"{self.file}:{self.number}"


class Source(Protocol):
    """Rows that can be read more than once."""

    @property
    def description(self) -> str:
        """How messages call it: by its path, its query's connection, or "rows"."""
        ...

    def columns(self) -> list[str]:
        """The columns it has; none where it is empty. Raises SourceError where it cannot be read."""
        ...

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError, before the first one, where a required column is missing."""
        ...

    @property
    def share_read(self) -> float | None:
        """How much of itself the latest `rows()` has read, from 0.0 to 1.0; None where its size is unknown.

        Any thread may ask while another one iterates.
        """
        ...


def check_row(number: int, values: RowValues, *, required: Sequence[str]) -> Row:
    """The row under its number; where it lacks a required column, with an error."""
    missing = next((name for name in required if name not in values), None)
    error = RowError(f"row {number} has no such column", column=missing) if missing is not None else None
    return Row(number, values, error)


def check_columns(columns: Sequence[str], required: Sequence[str], *, description: str) -> None:
    """Raise SourceError where a file has a column twice, or lacks one that is required."""
    if doubled := doubled_columns(columns):
        raise SourceError(f"{description}: the file has a column twice: {doubled}")
    if missing := [name for name in required if name not in columns]:
        raise SourceError(
            f"{description}: the submission needs {', '.join(map(repr, missing))}, which the file does not have. "
            f"Its columns are {', '.join(map(repr, columns))}."
        )


def broken_off(number: int, error: Exception) -> SourceError:
    """What ends rows in memory that raise, after the row of this number.

    The error's own text may hold values of a row; it stands in the cause only.
    """
    return SourceError(f"rows: reading on after row {number} raised {type(error).__name__}")


def represented(value: Any) -> str:
    """The value as Python writes it, shortened where it is long or nested; its type alone where that raises."""
    try:
        return _SHORTENED.repr(value)
    except Exception:  # noqa: BLE001 -- a value's own code may raise anything
        return f"<{type(value).__name__}>"


def doubled_columns(columns: Sequence[str]) -> str:
    """The names of the columns that are there more than once, as text for a message."""
    return ", ".join(repr(name) for name in sorted({name for name in columns if columns.count(name) > 1}))
