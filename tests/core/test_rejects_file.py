"""The rejects file: the source's own rows with what is wrong with them, to be repaired and fed again."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_provider.exceptions import OutputError, RowError
from halo_provider.sources.csv_file import CsvOptions
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rejects import RejectsFile
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import REJECT_COLUMNS, Entry, Submission
from tests.core.sources import csv_source

WRONG = RowError("too long; shorten it", column="note")


def rejected(source: Source, *, error: RowError = WRONG, **options: str) -> bytes:
    """The rejects file of a run that rejected every row."""
    stream = io.BytesIO()
    file = RejectsFile(stream, columns=source.columns(), options=CsvOptions(**options))
    for row in source.rows(required=[]):
        file.write(row, row.error or error)
    file.close()
    return stream.getvalue()


def rows_of(content: bytes, **options: str) -> list[dict[str, Any]]:
    """The rows of a file that has no bad ones."""
    rows = list(csv_source(content, **options).rows(required=[]))
    assert [row.error for row in rows if row.error] == []
    return [dict(row.values) for row in rows]


def test_rejected_row_stands_with_its_line_its_column_and_the_reason() -> None:
    """In the source's own columns, followed by ours."""
    content = rejected(csv_source(b"id,note\n1,first\n2,second\n"))

    assert content == (
        b"id,note,_row,_field,_reason\r\n"
        b"1,first,2,note,too long; shorten it\r\n"
        b"2,second,3,note,too long; shorten it\r\n"
    )


def test_file_without_rejected_rows_is_a_header() -> None:
    """It opens in any program, and reads as no rows."""
    content = rejected(csv_source(b"id,note\n"))

    assert content == b"id,note,_row,_field,_reason\r\n"
    assert rows_of(content) == []


def test_details_of_the_error_are_in_the_file() -> None:
    """What may not be logged is here, beside the row it is about."""
    [row] = rows_of(rejected(csv_source(b"id,note\n1,first,beyond\n")))

    assert row["_reason"].endswith("repair the line (values beyond the header: ['beyond'])")
    assert (row["id"], row["note"], row["_row"], row["_field"]) == ("1", "first", "2", "")


def test_row_that_could_not_be_parsed_is_there_as_text() -> None:
    """Nothing of it is lost, though it has no columns."""
    [row] = rows_of(rejected(csv_source(b'id,note\n1,"fir"st\n')))

    assert (row["id"], row["note"], row["_row"]) == ("", "", "2")
    assert "(text: '1,\"fir\"st\\n')" in row["_reason"]


def test_row_that_was_too_short_keeps_what_it_has() -> None:
    """The missing values are empty, to be filled."""
    [row] = rows_of(rejected(csv_source(b"id,name,note\n1,Ada\n")))

    assert (row["id"], row["name"], row["note"]) == ("1", "Ada", "")


def test_repaired_file_is_read_in_place_of_its_source() -> None:
    """The same keys and the same request as if the row had been good from the start."""
    submission = Submission(name="note", key="id", message="{note}", context={"row": Entry(label="Row", fields="*")})
    good = b'id,note\n1,"a note,\nof two lines"\n'

    repaired = rejected(csv_source(good.replace(b"note,\n", b"note,\n" + b"x" * 10_001))).replace(b"x" * 10_001, b"")

    [original], [again] = rows_of(good), rows_of(repaired)
    assert submission.row_key(again) == submission.row_key(original) == "1"
    assert submission.render(again, row_key="1") == submission.render(original, row_key="1")


def test_rejects_of_a_rejects_file_have_the_columns_once() -> None:
    """Row, field and reason are those of the last run."""
    first = rejected(csv_source(b"id,note\n1,first\n"))

    second = rejected(csv_source(first), error=RowError("still too long", column="id"))

    assert second == b"id,note,_row,_field,_reason\r\n1,first,2,id,still too long\r\n"


@pytest.mark.parametrize(
    ("encoding", "delimiter", "quotechar"),
    [("utf-8", ";", "'"), ("cp1252", ",", '"'), ("utf-16", "\t", '"'), ("utf-8-sig", "|", '"'), ("latin-1", ",", '"')],
)
def test_file_is_written_as_its_source_is(encoding: str, delimiter: str, quotechar: str) -> None:
    """In the same encoding, with the same delimiter and quotes: the same csv_options read it again."""
    options = {"encoding": encoding, "delimiter": delimiter, "quotechar": quotechar}
    content = f"größe{delimiter}note\r\nZoë{delimiter}{quotechar}a{delimiter}b{quotechar}\r\n".encode(encoding)

    again = rejected(csv_source(content, **options), **options)

    [row] = rows_of(again, **options)
    assert (row["größe"], row["note"]) == ("Zoë", f"a{delimiter}b")
    assert again.startswith(content.split(b"\r")[0])


def test_bytes_that_cannot_be_decoded_are_written_back_unchanged() -> None:
    """A line in another encoding is repaired by an editor that knows it; its bytes must not change before that."""
    content = rejected(csv_source(b"id,note\n1,Zo\xeb \xe9\n"))

    assert content.splitlines()[1].startswith(b"1,Zo\xeb \xe9,2,")


@pytest.mark.parametrize(
    "value", ["a\rb", "\r", "\n", "\r\n", "a\nb", '"', '""', "'", ",", " x ", "\x00", "\ufeff", ""]
)
def test_value_survives_the_round_trip(value: str) -> None:
    """Line breaks of every kind, quotes, delimiters, blanks."""
    [row] = rows_of(rejected(ListSource([{"id": "1", "note": value}])))

    assert row["note"] == value


undecoded = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", errors="surrogateescape"))
values = undecoded | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=5))
def test_every_value_of_a_file_survives_the_round_trip(table: list[tuple[str, str]]) -> None:
    """Decoded or not: what was read is what is written, and read again."""
    rows = [{"id": one, "note": other} for one, other in table]

    again = csv_source(rejected(ListSource(rows))).rows(required=["id", "note"])

    assert [(row.values["id"], row.values["note"]) for row in again] == table


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (datetime(2026, 11, 22, tzinfo=UTC), "2026-11-22T00:00:00+00:00"),
        ({"a": [1]}, '{"a":[1]}'),
        (b"binary", "b'binary'"),
        (float("inf"), "inf"),
    ],
)
def test_values_of_a_database_are_written_as_people_read_them(value: Any, cell: str) -> None:
    """Also those that could not be sent, which is why the row is here."""
    [row] = rows_of(rejected(ListSource([{"id": "1", "note": value}])))

    assert row["note"] == cell


def test_character_the_encoding_lacks_is_written_as_its_code() -> None:
    """A reason, or a list's value, may hold what the file's encoding cannot: no row may be lost over that."""
    source = ListSource([{"id": "1", "note": "日本"}])

    [row] = rows_of(rejected(source, error=RowError("→ shorten it"), encoding="cp1252"), encoding="cp1252")

    assert (row["note"], row["_reason"]) == ("\\u65e5\\u672c", "\\u2192 shorten it")


def test_row_lacking_a_column_has_an_empty_cell_there() -> None:
    """Lists need not have the same columns in every row."""
    source = ListSource([{"id": 1, "note": "x"}, {"id": 2}, "no dict"])

    assert [(row["id"], row["note"]) for row in rows_of(rejected(source))] == [("1", "x"), ("2", ""), ("", "")]


def test_full_disk_is_one_kind_of_error() -> None:
    """Nothing else escapes, whichever write meets it, and the file stays lost."""
    full = "^the rejects file cannot be written: No space left on device$"
    with Path("/dev/full").open("wb", buffering=0) as stream:
        file = RejectsFile(stream, columns=["id"], options=CsvOptions())

        def write() -> None:
            for _ in range(10_000):  # more than any buffer holds
                file.write(Row(2, {"id": "1"}), RowError("wrong"))

        with pytest.raises(OutputError, match=full) as first:
            write()
        for attempt in (write, file.close):
            with pytest.raises(OutputError) as again:
                attempt()
            assert again.value is first.value

        short = RejectsFile(stream, columns=["id"], options=CsvOptions())
        with pytest.raises(OutputError, match=full):
            short.close()


def test_rejects_file_leaves_its_stream_open() -> None:
    """It belongs to whoever opened it, and has everything once the file is closed."""
    stream = io.BytesIO()
    file = RejectsFile(stream, columns=["id"], options=CsvOptions())
    file.write(Row(2, {"id": "1"}), RowError("wrong"))

    file.close()

    assert not stream.closed
    assert stream.getvalue().endswith(b"1,2,,wrong\r\n")


def test_added_columns_come_after_those_of_the_source() -> None:
    """And are no part of what a row says."""
    content = rejected(csv_source(b"_reason,id,_row\nold,1,9\n"))

    assert content.splitlines()[0].decode().split(",") == ["id", *REJECT_COLUMNS]
