"""Rows that are in memory already: lists of dicts and DataFrames."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, doubled_columns


class ListSource:
    """Rows that are there already: an iterable of dicts, or a pandas DataFrame."""

    description = "rows"

    def __init__(self, rows: Any) -> None:
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            raise SourceError(f"rows must be a list of dicts or a DataFrame, not a {type(rows).__name__}")
        if doubled := doubled_columns([str(name) for name in getattr(rows, "columns", ())]):
            raise SourceError(f"rows: the DataFrame has a column twice: {doubled}")
        self._rows = list(rows) if isinstance(rows, Iterator) else rows

    def columns(self) -> list[str]:
        """Every column that some row has, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self._mappings() if isinstance(row, Mapping) for name in row))

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; one that is no dict, or lacks a required column, carries an error."""
        for number, values in enumerate(self._mappings(), start=1):
            if not isinstance(values, Mapping):
                reason = f"row {number} is a {type(values).__name__}; every row must be a dict of column and value"
                yield Row(number, {}, RowError(reason, detail=f"row: {values!r}"[:MAX_RAW_TEXT]))
                continue
            missing = next((name for name in required if name not in values), None)
            error = RowError(f"row {number} has no such column", column=missing) if missing is not None else None
            yield Row(number, values, error)

    def _mappings(self) -> Iterable[Any]:
        return _frame_rows(self._rows) if hasattr(self._rows, "itertuples") else self._rows


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """A DataFrame's rows as Python values, with None for every kind of missing one."""
    import pandas as pd  # noqa: PLC0415 -- slow to import, and already there where a DataFrame is

    columns = [str(column) for column in frame.columns]
    for values in frame.astype(object).itertuples(index=False, name=None):
        yield {
            column: None if pd.api.types.is_scalar(value) and pd.isna(value) else value
            for column, value in zip(columns, values, strict=True)
        }
