"""Rows that are in memory already: lists of dicts, and whatever else yields dicts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.frames import FrameSource, is_frame, is_series
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, Source, broken_off, check_row, represented
from halo_provider.submission import python_value

_NAME_TYPES = frozenset({str})
_PYTHON_TYPES = frozenset(
    {str, int, float, bool, type(None), Decimal, datetime, date, time, timedelta, UUID, bytes, list, tuple, dict, set}
)


def check_rows(rows: Any) -> None:
    """Raise SourceError for what is no iterable of rows."""
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        remedy = _REMEDIES.get(type(rows), "")
        raise SourceError(f"rows must be a list of dicts or a DataFrame, not a {type(rows).__name__}{remedy}")


def memory_source(rows: Any) -> Source:
    """The source of rows in memory: an iterable of dicts, or a DataFrame. Raises SourceError for anything else."""
    return FrameSource(rows) if is_frame(rows) else ListSource(rows)


_REMEDIES = {
    str: "; where a template makes the rows, set render_template_as_native_obj=True on the DAG, or give the upstream "
    "task's output itself (rows=read())",
    type(None): "; the task that they come from returned nothing",
}


class ListSource:
    """An iterable of dicts, numbered from 1. A DataFrame is one by its rows.

    Names of columns become text, and numpy's scalars and arrays Python's own values. An iterator is read to its end at
    once, since a source may be read more than once. Raises SourceError where `rows` is no iterable of rows.
    """

    description = "rows"

    def __init__(self, rows: Any) -> None:
        check_rows(rows)
        if is_frame(rows):
            rows = FrameSource(rows)
        self._rows: Iterable[Any] = _Kept(rows) if isinstance(rows, Iterator) else rows
        self._read = 0

    @property
    def share_read(self) -> float | None:
        """The share of the rows that have been read; None for an iterable that does not know its length."""
        if not isinstance(self._rows, Sized):
            return None
        return min(self._read / len(self._rows), 1.0) if len(self._rows) else 1.0

    def columns(self) -> list[str]:
        """Every column that some row has, in the order of their first appearance.

        Raises SourceError where the iterable raises before its first row; later, `rows` meets what it raises.
        """
        found: dict[str, None] = {}
        number = 0
        try:
            for number, row in enumerate(self._rows, start=1):
                if isinstance(values := _mapping(row), Mapping):
                    found.update(dict.fromkeys(_python_row(number, values).values))
        except SourceError:
            raise
        except Exception as error:
            if number == 0:
                raise broken_off(number, error) from error
        return list(found)

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; one that is no dict, cannot be read, or lacks a required column, carries an error.

        Raises SourceError, after the rows that came before, where the iterable raises anything.
        """
        self._read = 0
        return self._numbered(required)

    def _numbered(self, required: Sequence[str]) -> Iterator[Row]:
        number = 0
        try:
            rows = iter(self._rows)
            while (values := next(rows, _END)) is not _END:
                number += 1
                self._read = number
                yield _checked(number, _mapping(values), required)
        except SourceError:
            raise
        except Exception as error:
            raise broken_off(number, error) from error


_END = object()


def _mapping(row: Any) -> Any:
    """The row as a mapping, where it has names: a named tuple, a row of a structured array, a pandas Series."""
    if isinstance(row, Mapping):
        return row
    if hasattr(row, "_asdict"):
        return row._asdict()
    if names := getattr(getattr(row, "dtype", None), "names", None):
        return {name: row[name] for name in names}
    return row.to_dict() if is_series(row) else row


def _checked(number: int, values: Any, required: Sequence[str]) -> Row:
    if not isinstance(values, Mapping):
        reason = f"row {number} is a {type(values).__name__}; every row must be a dict of column and value"
        if isinstance(values, list) and values and isinstance(values[0], Mapping):
            reason += " (mapped upstream tasks that return lists make a list of lists: flatten it)"
        return Row(number, {}, RowError(reason, detail=f"row: {represented(values)}"[:MAX_RAW_TEXT]))
    row = _python_row(number, values)
    return row if row.error else check_row(number, row.values, required=required)


def _python_row(number: int, values: Mapping[Any, Any]) -> Row:
    """The row as a dict of text and Python's own values: the same object where it is one already."""
    if (
        type(values) is dict
        and _PYTHON_TYPES.issuperset(map(type, values.values()))
        and _NAME_TYPES.issuperset(map(type, values))
    ):
        return Row(number, values)
    found: dict[str, Any] = {}
    column = None
    try:
        for name in values:
            column = str(name)
            if column in found:
                return Row(number, found, RowError(f"row {number} has two columns of this name", column=column))
            found[column] = python_value(values[name])
            column = None
    except Exception as error:  # noqa: BLE001 -- a mapping's own code may raise anything
        reason = f"row {number} cannot be read, its own code raised {type(error).__name__}; make a dict of it"
        return Row(number, found, RowError(reason, column=column))
    return Row(number, found)


class _Kept:
    """What an iterator yielded, and what it raised in the end."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._items: list[Any] = []
        self._error: Exception | None = None
        try:
            self._items.extend(iterator)
        except Exception as error:  # noqa: BLE001 -- raised again where the rows end
            self._error = error

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        """Give the items, and raise the error."""
        yield from self._items
        if self._error is not None:
            raise self._error
