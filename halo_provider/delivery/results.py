"""Files with one line for each row, of a run or of a sensor. Written as pandas DataFrames, some rows at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, Protocol

from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import HaloConfigurationError
from halo_provider.sources.output import Output

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {  # and their types in pandas; a missing text is empty in CSV, and null elsewhere
    "row_key": "string",
    "user_id": "string",
    "session_id": "string",
    "status": "string",
    "attempts": "int32",
}
ENDINGS = ("csv", "jsonl", "parquet")
FRAME_ROWS = 10_000  # rows held in memory until they are written together; in Parquet, a row group


class FrameWriter(Protocol):
    """Writes frames in one format. `close` completes the stream and leaves it open."""

    def write(self, frame: "pd.DataFrame") -> None:
        """Add the frame's rows."""
        ...

    def close(self) -> None:
        """Write what ends the file."""
        ...


def check_results_ending(path: str) -> None:
    """Raise HaloConfigurationError where nobody writes files of this ending."""
    if (ending := _ending(path)) not in ENDINGS:
        raise HaloConfigurationError(f"results_path must end in .csv, .jsonl or .parquet, not .{ending}")


def _ending(path: str) -> str:
    return path.rpartition(".")[2].lower()


def results_writer(path: str) -> Callable[[IO[bytes]], "ResultsFile"]:
    """What writes outcomes in the format that the path's ending names.

    Raises HaloConfigurationError for another ending.
    """
    return partial(ResultsFile, frame_writer=frame_writer(path, COLUMNS))


def frame_writer(path: str, columns: Mapping[str, str]) -> Callable[[IO[bytes]], FrameWriter]:
    """What writes frames of these columns in the format that the path's ending names.

    Raises HaloConfigurationError for another ending.
    """
    check_results_ending(path)
    match _ending(path):
        case "csv":
            return partial(CsvFrames, columns=columns)
        case "jsonl":
            return JsonLinesFrames
    if find_spec("pyarrow") is None:
        raise HaloConfigurationError(
            "results_path: Parquet needs pyarrow; pip install 'airflow-provider-halo[parquet]'"
        )
    return partial(ParquetFrames, columns=columns)


class TableFile:
    """Collects rows and writes them to the stream, which stays open, as frames of `FRAME_ROWS` rows.

    Raises OutputError, and nothing else, where the stream or a value cannot be written. The file is then lost: every
    later call raises the same error, and no more rows are held in memory.
    """

    def __init__(
        self, stream: IO[bytes], *, columns: Mapping[str, str], frame_writer: Callable[[IO[bytes]], FrameWriter]
    ) -> None:
        import pandas as pd  # noqa: PLC0415 -- slow to import: not when a DAG is parsed, nor amid a delivery

        self._new_frame = pd.DataFrame
        self._columns = dict(columns)
        self._held: list[tuple[Any, ...]] = []
        self._output = Output("the results file")
        with self._output:
            self._frames = frame_writer(stream)

    def add(self, *values: Any) -> None:
        """Add one row."""
        with self._output:
            self._held.append(values)
            if len(self._held) >= FRAME_ROWS:
                self._flush()

    def _flush(self) -> None:
        frame = self._new_frame(self._held, columns=list(self._columns)).astype(self._columns)
        self._held.clear()
        self._frames.write(frame)

    def close(self) -> None:
        """Write what is still held in memory, and complete the file."""
        with self._output:
            if self._held:
                self._flush()
            self._frames.close()


class ResultsFile(TableFile):
    """The outcomes of a run."""

    def __init__(self, stream: IO[bytes], *, frame_writer: Callable[[IO[bytes]], FrameWriter]) -> None:
        super().__init__(stream, columns=COLUMNS, frame_writer=frame_writer)

    def write(self, outcome: Outcome) -> None:
        """Add one row."""
        self.add(outcome.row_key, outcome.user_id, outcome.session_id, outcome.status.value, outcome.attempts)


class CsvFrames:
    """CSV with a header, UTF-8."""

    def __init__(self, stream: IO[bytes], *, columns: Mapping[str, str]) -> None:
        self._stream = stream
        self._stream.write(f"{','.join(columns)}\n".encode())

    def write(self, frame: "pd.DataFrame") -> None:
        """Add the rows; a missing value is empty."""
        self._stream.write(frame.to_csv(index=False, header=False, lineterminator="\n").encode())

    def close(self) -> None:
        """Nothing ends a CSV file."""


class JsonLinesFrames:
    """One JSON object a line, UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, frame: "pd.DataFrame") -> None:
        """Add the rows; a missing value is null."""
        self._stream.write(frame.to_json(orient="records", lines=True, force_ascii=False).encode())

    def close(self) -> None:
        """Nothing ends a file of lines."""


class ParquetFrames:
    """A Parquet file whose schema does not depend on the rows: text, and small whole numbers as int32."""

    def __init__(self, stream: IO[bytes], *, columns: Mapping[str, str]) -> None:
        import pyarrow as pa  # noqa: PLC0415 -- optional, and slow to import
        from pyarrow import parquet  # noqa: PLC0415

        types = {"string": pa.string(), "int32": pa.int32()}
        self._schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        self._table_of = partial(pa.Table.from_pandas, schema=self._schema, preserve_index=False)
        self._writer = parquet.ParquetWriter(stream, self._schema)

    def write(self, frame: "pd.DataFrame") -> None:
        """Add the rows as one row group; a missing value is null."""
        self._writer.write_table(self._table_of(frame))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
