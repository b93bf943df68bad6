"""Rows from Parquet files, some at a time.

pyarrow reads them, and not pandas, which needs the whole file in memory and makes floats of whole numbers in a column
where one is missing.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import IO, Any

from halo_provider.exceptions import HaloConfigurationError, RowError
from halo_provider.sources.rows import Row, check_columns
from halo_provider.sources.stored import stored_file

SLICE = 2_000  # rows converted together


class ParquetSource:
    """A Parquet file's rows, numbered from 1, with Python's own values. `open_binary` opens it for each reading.

    A value that Python has no room for, such as a date in the year 30000, rejects its row. Raises
    HaloConfigurationError where pyarrow is not installed.
    """

    def __init__(self, *, path: str, open_binary: Callable[[], IO[bytes]]) -> None:
        if find_spec("pyarrow") is None:
            raise HaloConfigurationError(f"{path}: Parquet needs pyarrow; pip install 'airflow-provider-halo[parquet]'")
        self.description = path
        self._open_binary = open_binary
        self._read = 0
        self._rows: int | None = None

    @property
    def share_read(self) -> float:
        """The share of the file's rows that have been read; 0.0 until it is opened."""
        return self._read / self._rows if self._rows else float(self._rows == 0)

    def columns(self) -> list[str]:
        """The names of the columns; none for a file of no bytes. Raises SourceError where it cannot be read."""
        with stored_file(self.description, self._open_binary, wanted="Parquet") as stored:
            return list(_opened(stored.stream).schema_arrow.names) if stored.size else []

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError, before the first one, where a required column is missing."""
        with stored_file(self.description, self._open_binary, wanted="Parquet") as stored:
            if not stored.size:
                return
            parquet = _opened(stored.stream)
            columns = list(parquet.schema_arrow.names)
            check_columns(columns, required, description=self.description)
            self._read, self._rows = 0, parquet.metadata.num_rows
            for batch in parquet.iter_batches(batch_size=SLICE):
                for values, error in _converted(batch, columns, first_number=self._read + 1):
                    self._read += 1
                    yield Row(self._read, values, error)
            stored.check_unchanged()


def _opened(stream: IO[bytes]) -> Any:
    from pyarrow import PythonFile  # noqa: PLC0415 -- optional, and slow to import
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    # Whatever storage the stream is of: reads go through Python's own file methods.
    return ParquetFile(PythonFile(stream, mode="r"))


def _converted(
    batch: Any, columns: Sequence[str], *, first_number: int
) -> Iterator[tuple[dict[str, Any], RowError | None]]:
    """Each row's values, and what is wrong with one that has a value which cannot be converted."""
    try:
        by_column = [column.to_pylist() for column in batch.columns]
    except Exception:  # noqa: BLE001 -- a value; which one is found out below
        for place in range(batch.num_rows):
            yield _one_by_one(batch, columns, place, number=first_number + place)
        return
    for values in zip(*by_column, strict=True):
        yield dict(zip(columns, values, strict=True)), None


def _one_by_one(
    batch: Any, columns: Sequence[str], place: int, *, number: int
) -> tuple[dict[str, Any], RowError | None]:
    values: dict[str, Any] = {}
    fault = None
    for name, column in zip(columns, batch.columns, strict=True):
        try:
            values[name] = column[place].as_py()
        except Exception as error:  # noqa: BLE001 -- whatever Python has no room for
            reason = f"row {number} has a value that raises {type(error).__name__} when it is read; cast it to text"
            fault = fault or RowError(reason, column=name)
    return values, fault
