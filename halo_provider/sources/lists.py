"""Rows that are in memory already: lists of dicts, and whatever else yields dicts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.frames import FrameSource, is_frame
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, Source, check_row
from halo_provider.sources.values import python_row


def memory_source(rows: Any) -> Source:
    """The source of rows in memory: an iterable of dicts, or a DataFrame. Raises SourceError for anything else."""
    return FrameSource(rows) if is_frame(rows) else ListSource(rows)


class ListSource:
    """An iterable of dicts, numbered from 1. Values of numpy's become Python's own. A DataFrame is one by its rows.

    An iterator is read to its end at once, since a source may be read more than once. Raises SourceError where `rows`
    is no iterable of rows.
    """

    description = "rows"

    def __init__(self, rows: Any) -> None:
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            raise SourceError(f"rows must be a list of dicts or a DataFrame, not a {type(rows).__name__}")
        if is_frame(rows):
            rows = FrameSource(rows)
        self._rows = list(rows) if isinstance(rows, Iterator) else rows
        self._read = 0

    @property
    def share_read(self) -> float | None:
        """The share of the rows that have been read; None for an iterable that does not know its length."""
        if not isinstance(self._rows, Sized):
            return None
        return min(self._read / len(self._rows), 1.0) if len(self._rows) else 1.0

    def columns(self) -> list[str]:
        """Every column that some row has, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self._rows if isinstance(row, Mapping) for name in row))

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; one that is no dict, or lacks a required column, carries an error."""
        self._read = 0
        return self._numbered(required)

    def _numbered(self, required: Sequence[str]) -> Iterator[Row]:
        for number, values in enumerate(self._rows, start=1):
            self._read = number
            if isinstance(values, Mapping):
                yield check_row(number, python_row(values), required=required)
            else:
                reason = f"row {number} is a {type(values).__name__}; every row must be a dict of column and value"
                yield Row(number, {}, RowError(reason, detail=f"row: {values!r}"[:MAX_RAW_TEXT]))
