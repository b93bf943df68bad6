"""One line for each row of a run: what it was, and how it ended."""

import csv
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import IO, Any, Protocol

from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import HaloConfigurationError

COLUMNS = ("row_key", "user_id", "session_id", "status", "attempts")
ROW_GROUP = 10_000  # rows of a Parquet row group, held in memory until it is written


class ResultsFile(Protocol):
    """Where outcomes are written; `close` completes the stream and leaves it open."""

    def write(self, outcome: Outcome) -> None:
        """Add one row."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


def results_writer(path: str) -> Callable[[IO[bytes]], ResultsFile]:
    """What writes the format that the path's ending names. Raises HaloConfigurationError for another ending."""
    ending = path.rpartition(".")[2].lower()
    match ending:
        case "csv":
            return CsvResults
        case "jsonl":
            return JsonLinesResults
        case "parquet":
            if find_spec("pyarrow") is None:
                raise HaloConfigurationError(
                    "results_path: Parquet needs pyarrow; pip install 'airflow-provider-halo[parquet]'"
                )
            return ParquetResults
    raise HaloConfigurationError(f"results_path must end in .csv, .jsonl or .parquet, not .{ending}")


class CsvResults:
    """A CSV file with a header, UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def write(self, outcome: Outcome) -> None:
        """Add one row; an unknown value is empty."""
        self._writer.writerow(["" if value is None else value for value in _values(outcome)])

    def close(self) -> None:
        """Complete the stream."""
        self._text.detach()


class JsonLinesResults:
    """One JSON object a line, UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, outcome: Outcome) -> None:
        """Add one row; an unknown value is null."""
        line = json.dumps(dict(zip(COLUMNS, _values(outcome), strict=True)), ensure_ascii=False)
        self._stream.write(f"{line}\n".encode())

    def close(self) -> None:
        """Nothing is held back."""


class ParquetResults:
    """A Parquet file: text columns, and attempts as int32."""

    def __init__(self, stream: IO[bytes]) -> None:
        import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
        from pyarrow import parquet  # noqa: PLC0415

        fields: list[tuple[str, Any]] = [(name, pa.string()) for name in COLUMNS[:-1]]
        self._schema = pa.schema([*fields, (COLUMNS[-1], pa.int32())])
        self._record_batch = pa.RecordBatch
        self._writer = parquet.ParquetWriter(stream, self._schema)
        self._held: list[tuple[Any, ...]] = []

    def write(self, outcome: Outcome) -> None:
        """Add one row; an unknown value is null."""
        self._held.append(_values(outcome))
        if len(self._held) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows = [dict(zip(COLUMNS, values, strict=True)) for values in self._held]
        self._writer.write_batch(self._record_batch.from_pylist(rows, schema=self._schema))
        self._held.clear()

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._held:
            self._flush()
        self._writer.close()


def _values(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.row_key, outcome.user_id, outcome.session_id, outcome.status.value, outcome.attempts
