"""Rows from a pandas DataFrame, a slice at a time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from halo_provider.exceptions import SourceError
from halo_provider.sources.rows import Row, broken_off, check_row, doubled_columns
from halo_provider.submission import python_value

if TYPE_CHECKING:
    import pandas as pd

SLICE = 10_000  # rows converted together: what is in memory beside the frame itself


def is_frame(rows: Any) -> "TypeGuard[pd.DataFrame]":
    """Whether it is a DataFrame: seen by what it can do, since pandas is slow to import."""
    return hasattr(rows, "iloc") and hasattr(rows, "columns")


def is_series(row: Any) -> bool:
    """Whether it is one row of a DataFrame."""
    return hasattr(row, "iloc") and hasattr(row, "to_dict") and not is_frame(row)


class FrameSource:
    """A DataFrame's rows, numbered from 1; the index is no part of them.

    Names of columns become text. A missing value (NaN, NaT, NA, None) is None, whatever the column's type; every other
    value is Python's own, or a subclass of it, such as pandas' Timestamp. A column that the submission needs and the
    frame lacks rejects every row, as in a list of dicts. Raises SourceError where two columns have one name.
    """

    description = "rows"

    def __init__(self, frame: "pd.DataFrame") -> None:
        self._frame = frame
        self._columns = [str(name) for name in frame.columns]
        self._read = 0
        if doubled := doubled_columns(self._columns):
            raise SourceError(f"rows: the DataFrame has a column twice: {doubled}")

    @property
    def share_read(self) -> float:
        """The share of the frame's rows that have been read."""
        return self._read / len(self) if len(self) else 1.0

    def __len__(self) -> int:
        return len(self._frame)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Give each row's values."""
        for start in range(0, len(self._frame), SLICE):
            some = self._frame.iloc[start : start + SLICE]
            by_column = [_values(some.iloc[:, place]) for place in range(len(self._columns))]
            for place in range(len(some)):
                yield {name: values[place] for name, values in zip(self._columns, by_column, strict=True)}

    def columns(self) -> list[str]:
        """The frame's column names."""
        return list(self._columns)

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; where a required column is missing, each carries an error."""
        self._read = 0
        return self._numbered(required)

    def _numbered(self, required: Sequence[str]) -> Iterator[Row]:
        number = 0
        try:
            for number, values in enumerate(self, start=1):
                self._read = number
                yield check_row(number, values, required=required)
        except SourceError:
            raise
        except Exception as error:
            raise broken_off(number, error) from error


def _values(column: "pd.Series[Any]") -> list[Any]:
    values = [_python_value(value) for value in column.tolist()]
    try:
        missing = column.isna().to_numpy(dtype=bool)
    except Exception:  # noqa: BLE001 -- a signaling NaN raises when it is compared; each value is looked at later
        return values
    return [None if gone else value for value, gone in zip(values, missing, strict=True)] if missing.any() else values


def _python_value(value: Any) -> Any:
    try:
        return python_value(value)
    except Exception:  # noqa: BLE001 -- a value's own code may raise anything; its row is rejected where it is rendered
        return value
