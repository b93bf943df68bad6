"""The results file: a line for each row of a run, in three formats."""

import csv
import io
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from halo_provider.delivery import results
from halo_provider.delivery.report import Outcome
from halo_provider.delivery.results import FRAME_ROWS, ResultsFile, results_writer
from halo_provider.exceptions import HaloConfigurationError, OutputError
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.rows import Row

FULL = "^the results file cannot be written: No space left on device$"
OUTCOMES = [
    Outcome(
        row=Row(2, {"id": "APP-1"}),
        row_key="APP-1",
        user_id="usr_1",
        status=RowStatus.DELIVERED,
        session_id="sess_1",
        attempts=2,
    ),
    Outcome(row=Row(3, {"id": 'A "quoted", key'}), row_key='A "quoted", key', user_id="Zoë", status=RowStatus.FAILED),
    Outcome(row=Row(4, {}), row_key=None, user_id=None, status=RowStatus.REJECTED),
]
RECORDS = [
    {"row_key": "APP-1", "user_id": "usr_1", "session_id": "sess_1", "status": "delivered", "attempts": 2},
    {"row_key": 'A "quoted", key', "user_id": "Zoë", "session_id": None, "status": "failed", "attempts": 0},
    {"row_key": None, "user_id": None, "session_id": None, "status": "rejected", "attempts": 0},
]


def written(path: str, outcomes: Iterable[Outcome]) -> io.BytesIO:
    """What a results file of that name holds; the stream must still be open, for its owner to finish the file."""
    stream = io.BytesIO()
    file = results_writer(path)(stream)
    for outcome in outcomes:
        file.write(outcome)
    file.close()
    assert not stream.closed
    stream.seek(0)
    return stream


def read_csv(stream: io.BytesIO) -> list[dict[str, Any]]:
    """The records of a CSV file, in which an unknown value is empty."""
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as file:
        return [
            {name: value or None for name, value in record.items()} | {"attempts": int(record["attempts"])}
            for record in csv.DictReader(file)
        ]


def read_json_lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in stream]


def read_parquet(stream: io.BytesIO) -> list[dict[str, Any]]:
    """The records of a Parquet file."""
    records: list[dict[str, Any]] = parquet.read_table(stream).to_pylist()
    return records


READERS = {"csv": read_csv, "jsonl": read_json_lines, "parquet": read_parquet}
each_format = pytest.mark.parametrize("ending", READERS)


@each_format
def test_every_row_is_a_record(ending: str) -> None:
    """Key, user, session, status and attempts, in the order of their ends; what is unknown is missing."""
    assert READERS[ending](written(f"results.{ending}", OUTCOMES)) == RECORDS


@each_format
def test_run_without_rows_makes_a_valid_file(ending: str) -> None:
    """An empty run is no reason for whatever reads the file to fail."""
    assert READERS[ending](written(f"results.{ending}", [])) == []


def test_csv_names_its_columns_even_without_rows() -> None:
    """The header is there from the start."""
    assert written("results.csv", []).getvalue() == b"row_key,user_id,session_id,status,attempts\n"


def test_parquet_columns_have_types_whatever_the_rows_hold() -> None:
    """A column of nothing but nulls is text all the same, so that files of several runs can be read as one table."""
    schema = parquet.read_schema(written("results.parquet", OUTCOMES[2:]))
    assert {field.name: str(field.type) for field in schema} == {
        "row_key": "string",
        "user_id": "string",
        "session_id": "string",
        "status": "string",
        "attempts": "int32",
    }


def test_parquet_is_written_in_row_groups() -> None:
    """Only one group's rows are ever held in memory."""
    file = parquet.ParquetFile(written("results.parquet", (OUTCOMES[0] for _ in range(2 * FRAME_ROWS + 1))))
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert sizes == [FRAME_ROWS, FRAME_ROWS, 1]


@each_format
def test_rows_of_several_frames_are_one_file(ending: str) -> None:
    """With one header, none lost and none twice where two frames meet."""
    count = 2 * FRAME_ROWS + 1
    outcomes = (OUTCOMES[0]._replace(row_key=f"APP-{number}") for number in range(count))

    found = READERS[ending](written(f"results.{ending}", outcomes))

    assert [record["row_key"] for record in found] == [f"APP-{number}" for number in range(count)]


@each_format
@pytest.mark.parametrize(
    "value", ["NA", "nan", "007", "1e5", "", " ", "a/b", 'a"b', "a,b", "a\nb", "\x00", "日本 🎫", "null", "1.0"]
)
def test_text_is_written_as_it_is(ending: str, value: str) -> None:
    """Nothing is missing, a number or a date on its own account; an empty text in CSV is the same as none."""
    [record] = READERS[ending](written(f"results.{ending}", [OUTCOMES[0]._replace(session_id=value)]))

    assert record["session_id"] == (value or None if ending == "csv" else value)


def write_one_frame(file: ResultsFile) -> None:
    """As many rows as are written together."""
    for _ in range(FRAME_ROWS):
        file.write(OUTCOMES[0])


@each_format
def test_full_disk_is_one_kind_of_error(ending: str) -> None:
    """From the first write that fails on: nothing else escapes, and no more rows are held in memory."""

    def write_to_full_disk() -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            write_one_frame(results_writer(f"results.{ending}")(full))

    with pytest.raises(OutputError, match=FULL) as caught:
        write_to_full_disk()
    assert isinstance(caught.value.__cause__, OSError)


@each_format
def test_file_that_is_lost_stays_lost(ending: str) -> None:
    """A disk that has room again does not make a file with a hole in it: closing it raises the same error."""

    class Full(io.BytesIO):
        full = False

        def write(self, some: Any) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(some)

    stream = Full()
    file = results_writer(f"results.{ending}")(stream)
    stream.full = True
    with pytest.raises(OutputError, match=FULL) as first:
        write_one_frame(file)
    stream.full = False

    for attempt in (partial(file.write, OUTCOMES[0]), file.close):
        with pytest.raises(OutputError) as again:
            attempt()
        assert again.value is first.value


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_that_cannot_be_written_is_the_same_kind_of_error(ending: str) -> None:
    """Its words name the type of what was raised, and nothing of the row."""
    file = results_writer(f"results.{ending}")(io.BytesIO())
    file.write(OUTCOMES[0]._replace(session_id="half an emoji \ud83d"))

    with pytest.raises(
        OutputError, match=r"^the results file cannot be written: writing it raised UnicodeEncodeError$"
    ):
        file.close()


def test_ending_may_be_in_capitals() -> None:
    """A file is no other for being called RESULTS.JSONL."""
    assert read_json_lines(written("s3://bucket/RESULTS.JSONL", OUTCOMES)) == RECORDS


@pytest.mark.parametrize("path", ["results.xlsx", "results", "results.csv.gz", "s3://bucket.csv/results"])
def test_other_endings_are_refused(path: str) -> None:
    """The error names those that there are."""
    with pytest.raises(HaloConfigurationError, match=r"results_path must end in \.csv, \.jsonl or \.parquet"):
        results_writer(path)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet is an extra of the package."""
    monkeypatch.setattr(results, "find_spec", lambda _name: None)
    with pytest.raises(HaloConfigurationError, match=r"pip install 'airflow-provider-halo\[parquet\]'"):
        results_writer("results.parquet")
