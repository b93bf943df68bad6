"""Rows from CSV files and lists: as they stand, each under its number, and each accounted for."""

import codecs
import csv
import io
import os
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from halo_provider.exceptions import HaloConfigurationError, SourceError
from halo_provider.sources.csv_file import MAX_FIELD, CsvOptions, CsvSource
from halo_provider.sources.lines import MAX_RECORD
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import MAX_RAW_TEXT, Row

RAGGED = "line 3 has {} values where the header has 3 columns; repair the line"


def csv_source(content: bytes | str, *, path: str = "rows.csv", **options: str) -> CsvSource:
    """A CSV file of this content, in UTF-8 where it is text."""
    raw = content.encode() if isinstance(content, str) else content
    return CsvSource(path=path, open_binary=lambda: io.BytesIO(raw), options=CsvOptions(**options))


def read(content: bytes | str, *required: str, **options: str) -> list[Row]:
    """All rows of a CSV file."""
    return list(csv_source(content, **options).rows(required=required))


def good(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows' values, none of which is rejected."""
    assert [row.error for row in rows if row.error] == []
    return [dict(row.values) for row in rows]


def written(rows: list[list[str]], *, encoding: str = "utf-8", **dialect: Any) -> bytes:
    """A file of these rows, as Python's csv.writer makes it."""
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows(rows)
    return text.getvalue().encode(encoding)


def test_row_is_a_mapping_of_the_headers_names() -> None:
    """With the line it stands on: the header is line 1."""
    assert read("id,name\n1,Ada\n2,Grace\n") == [
        Row(2, {"id": "1", "name": "Ada"}),
        Row(3, {"id": "2", "name": "Grace"}),
    ]


@pytest.mark.parametrize(
    "value",
    [
        "NA",
        "N/A",
        "null",
        "NULL",
        "None",
        "nan",
        "NaN",
        "-",
        "",
        "007",
        "+1",
        "1e5",
        "1.0",
        "1,200,000",
        "TRUE",
        "2026-11-22",
        " padded ",
        "=1+1",
        "'quoted'",
        'she said "yes"',
        "{braces}",
        "tab\there",
        "back\\slash",
        "\u00a0",
        "日本 ✓ 🎫",
        "\x00",
        "\ufeff",
    ],
    ids=ascii,
)
def test_value_is_kept_as_it_is(value: str) -> None:
    """Everything is text: nothing is missing, a number or a date on its own account."""
    assert good(read(written([["id", "value", "more"], ["1", value, "x"]]))) == [
        {"id": "1", "value": value, "more": "x"}
    ]


def test_quoted_line_breaks_belong_to_the_value_and_count_as_lines() -> None:
    """The number of a row is the line in the file where a person finds it."""
    rows = read('id,note\n1,"one\ntwo\r\nthree"\n\n2,"a\rb"\n3,plain\n')

    assert good(rows) == [
        {"id": "1", "note": "one\ntwo\r\nthree"},
        {"id": "2", "note": "a\rb"},
        {"id": "3", "note": "plain"},
    ]
    assert [row.number for row in rows] == [2, 6, 8]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_line_end_is_understood(line_end: str, last: bool) -> None:  # noqa: FBT001 -- a parameter
    """Unix, Windows, and old Macs, with the last one missing or not."""
    rows = read(line_end.join(["id,name", "1,Ada", "2,Grace"]) + line_end * last)

    assert good(rows) == [{"id": "1", "name": "Ada"}, {"id": "2", "name": "Grace"}]
    assert [row.number for row in rows] == [2, 3]


def test_blank_lines_are_no_rows() -> None:
    """Neither between rows nor before the header or at the end."""
    rows = read("\n\nid,name\n\n1,Ada\n\n\n2,Grace\n\n")

    assert [(row.number, row.values["id"]) for row in rows] == [(5, "1"), (8, "2")]


@pytest.mark.parametrize("content", ["", "\n", "\r\n\r\n", "\ufeff", "\ufeff\n", "id,name", "id,name\n", "id,name\n\n"])
def test_file_without_rows_has_none(content: str) -> None:
    """Empty, or a header alone: a green run with zero rows."""
    assert read(content, *(["id"] if "id" in content else [])) == []


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_empty_file_lacks_no_column(content: str) -> None:
    """Nothing was exported, so nothing is missing."""
    assert csv_source(content).columns() == []
    assert read(content, "id", "name") == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", "§"])
@pytest.mark.parametrize("quotechar", ['"', "'"])
def test_file_may_have_its_own_delimiter_and_quotes(delimiter: str, quotechar: str) -> None:
    """As csv_options say."""
    rows = [["id", "note"], ["1", f"a{delimiter}b \"c\" 'd'\ne"]]
    content = written(rows, delimiter=delimiter, quotechar=quotechar)

    assert good(read(content, delimiter=delimiter, quotechar=quotechar)) == [{"id": "1", "note": rows[1][1]}]


@pytest.mark.parametrize(
    ("encoding", "written_as"),
    [
        ("utf-8", "utf-8"),
        ("utf-8", "utf-8-sig"),
        ("utf-8-sig", "utf-8-sig"),
        ("utf-8-sig", "utf-8"),
        ("utf-8", "utf-16"),
        ("cp1252", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("cp1252", "cp1252"),
        ("latin-1", "latin-1"),
        ("mac_roman", "mac_roman"),
    ],
)
def test_file_is_read_in_its_encoding(encoding: str, written_as: str) -> None:
    """A byte order mark goes before what csv_options say, and is no part of the first column's name."""
    content = written([["größe", "note"], ["1", "Zoë"], ["2", "é"]], encoding=written_as)

    assert good(read(content, "größe", encoding=encoding)) == [
        {"größe": "1", "note": "Zoë"},
        {"größe": "2", "note": "é"},
    ]


def test_utf_16_of_either_byte_order_is_recognised() -> None:
    """As Excel's "Unicode text" is written."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        assert good(read(mark + "id\tname\r\n1\tZoë\r\n".encode(encoding), delimiter="\t")) == [
            {"id": "1", "name": "Zoë"}
        ]


def test_multi_byte_characters_survive_the_edges_of_the_buffer() -> None:
    """Wherever a file of many blocks is cut."""
    names = [f"{'x' * (number % 7)}é日🎫" for number in range(20_000)]

    rows = good(read(written([["id", "name"], *(["1", name] for name in names)])))

    assert [row["name"] for row in rows] == names


def test_row_in_another_encoding_is_rejected_alone() -> None:
    """One line pasted from elsewhere does not stop the file; the reason names the line and a remedy."""
    rows = read(b"id,name\n1,Zo\xc3\xab\n2,Zo\xeb\n3,Ada\n")

    assert [row.error is None for row in rows] == [True, False, True]
    assert rows[1].number == 3
    assert "line 3 holds bytes that are not utf-8" in rows[1].error.reason
    assert "{'encoding': 'cp1252'}" in rows[1].error.reason


@pytest.mark.parametrize(
    ("content", "encoding", "tried"),
    [
        ("id,name\n1,Ada\n".encode("utf-16-le") + b"x", "utf-16-le", "utf-16-le"),
        (codecs.BOM_UTF16_LE + ("id,name\n" + "1,Ada\n" * 9_000).encode("utf-16-le") + b"x", "utf-8", "utf-16-le"),
        (b"id,name\n1,Ada\n", "utf-16", "utf-16"),
        (b"\xff\xfeidx", "utf-8", "utf-16"),
    ],
)
def test_file_that_cannot_be_decoded_is_an_error_of_the_source(content: bytes, encoding: str, tried: str) -> None:
    """It names the file, the encoding that was tried, and the option."""
    with pytest.raises(SourceError, match=f"rows.csv: it cannot be read as {tried}.*csv_options"):
        read(content, encoding=encoding)


def test_rows_before_undecodable_bytes_are_read() -> None:
    """Lazily: what is good at the front has been yielded when the end turns out bad."""
    content = codecs.BOM_UTF16_LE + ("id,name\n" + "1,Ada\n" * 9_000).encode("utf-16-le") + b"x"
    rows = csv_source(content).rows(required=["id"])

    assert next(rows).values == {"id": "1", "name": "Ada"}
    with pytest.raises(SourceError):
        list(rows)


@pytest.mark.parametrize(
    ("line", "reason", "detail", "values"),
    [
        ("1", RAGGED.format(1), None, {"id": "1"}),
        ("1,Ada", RAGGED.format(2), None, {"id": "1", "a": "Ada"}),
        (
            "1,2,3,4,5",
            RAGGED.format(5),
            "values beyond the header: ['4', '5']",
            {"id": "1", "a": "2", "b": "3"},
        ),
        ("   ", RAGGED.format(1), None, {"id": "   "}),
        (
            '1,"2\n3,4",5,6',
            f"{RAGGED.format(4)} (a quoted value runs to line 4: is a quote missing?)",
            "values beyond the header: ['6']",
            {"id": "1", "a": "2\n3,4", "b": "5"},
        ),
    ],
)
def test_ragged_row_is_rejected_alone(line: str, reason: str, detail: str | None, values: dict[str, str]) -> None:
    """By its line, with how many values there are, and with what it does hold."""
    rows = read(f"id,a,b\n0,x,y\n{line}\n9,x,y\n")

    assert [row.error is None for row in rows] == [True, False, True]
    assert (rows[1].number, rows[1].error.reason, rows[1].error.detail) == (3, reason, detail)
    assert rows[1].values == values
    assert rows[2].values == {"id": "9", "a": "x", "b": "y"}


def test_text_after_a_closing_quote_rejects_its_line_only() -> None:
    """With its text for the rejects file, and never in the reason."""
    rows = read('id,name\n1,"Ada" Lovelace\n2,Grace\n')

    assert [(row.number, row.error is None) for row in rows] == [(2, False), (3, True)]
    assert rows[0].error.reason == "line 2 is not valid CSV (',' expected after '\"'); check the quotes"
    assert rows[0].error.detail == "text: '1,\"Ada\" Lovelace\\n'"


def test_quote_that_is_never_closed_rejects_every_line_it_swallowed() -> None:
    """Each of them may be a row: one rejection for all would lose the others without a word."""
    rows = read('id,name\n1,Ada\n2,"Grace\n3,Edsger\n\n4,Barbara\n')

    assert [(row.number, row.error is None) for row in rows] == [(2, True), (3, False), (4, False), (6, False)]
    assert rows[1].error.reason == "line 3 is not valid CSV (unexpected end of data); check the quotes"
    assert rows[2].error.reason == (
        "line 4 is not valid CSV (it belongs to the quoted value of line 3); check the quotes"
    )
    assert rows[3].error.detail == "text: '4,Barbara\\n'"


def test_quote_closed_by_a_later_quote_rejects_the_lines_between() -> None:
    """The lines after it are read again as they should be."""
    rows = read('id,name\n1,"Ada\n2,Grace\n3,"Edsger"\n4,Barbara\n')

    assert [(row.number, row.error is None) for row in rows] == [(2, False), (3, False), (4, False), (5, True)]


def test_value_without_end_is_given_up_before_it_fills_the_memory() -> None:
    """A quote never closed at the start of a large file: its lines are rejected, those far below are read."""
    line = "x" * 999 + "\n"
    rows = read('id\n"open\n' + line * 1_500)

    rejected = [row for row in rows if row.error]
    assert "field larger than field limit" in rejected[0].error.reason
    assert len(rejected) == pytest.approx(MAX_FIELD / 1_000, abs=3)
    assert len(rows) == 1_501


def test_large_value_is_a_value() -> None:
    """Up to a million characters; what Halo makes of it is not the file's business."""
    largest = "x" * MAX_FIELD

    assert good(read(written([["id", "note"], ["1", largest]]))) == [{"id": "1", "note": largest}]
    [row] = read(written([["id", "note"], ["1", largest + "x"]]))
    assert "field larger than field limit" in row.error.reason
    assert len(row.error.detail) < MAX_RAW_TEXT + 50


@pytest.mark.parametrize(
    "record",
    [
        ",".join(["x" * 900_000] * 4),
        "x" * (3 * MAX_RECORD),
        *("," * (2 * MAX_RECORD + more) for more in (0, 1, 2)),
        *("," * (MAX_RECORD + more) for more in (0, 1)),
    ],
    ids=lambda record: f"{record[0]}-{len(record)}",
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_record_that_is_too_long_is_rejected_alone(record: str, line_end: str) -> None:
    """With the beginning of its text; the rows around it are read, under their own lines."""
    content = line_end.join(["id,note", "1,x", record, "2,y", ""])

    rows = read(content)

    assert [(row.number, row.error is None) for row in rows] == [(2, True), (3, False), (4, True)]
    assert rows[1].error is not None
    assert rows[1].error.reason == (
        f"line 3 is not valid CSV (it has more than {MAX_RECORD:,} characters); check the quotes"
    )
    assert len(str(rows[1].error.detail)) < MAX_RAW_TEXT + 50
    assert rows[2].values == {"id": "2", "note": "y"}


def test_record_of_many_lines_that_is_too_long_has_each_of_them_rejected() -> None:
    """As with a quote that is never closed: any of them may be a row."""
    rows = read("id,note\n1,x\n" + ",".join(['"' + "x" * 900_000 + '\n"'] * 4) + "\n")

    assert [(row.number, row.error is None) for row in rows[:4]] == [(2, True), (3, False), (4, False), (5, False)]
    assert "it has more than 2,000,000 characters" in str(rows[1].error)


def test_header_that_is_too_long_is_an_error_of_the_source() -> None:
    """Such as that of a file which is no CSV file."""
    with pytest.raises(SourceError, match="the header cannot be read: it has more than 2,000,000 characters"):
        read("x" * (MAX_RECORD + 1))


def test_memory_does_not_grow_with_a_record(tmp_path: Path) -> None:
    """A hundred million characters in one line, and as many in one quoted value after another."""
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("id,note\n1,x\n")
        for _ in range(100):
            file.write("x" * 500_000 + ",")
        file.write("\n")
        for _ in range(100):
            file.write('"' + "x" * 250_000 + "\n" + "x" * 250_000 + '",')
        file.write("\n2,y\n")
    source = CsvSource(path=str(path), open_binary=lambda: path.open("rb"), options=CsvOptions())

    tracemalloc.start()
    good_rows = [row.values["id"] for row in source.rows(required=["id"]) if row.error is None]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert good_rows == ["1", "2"]
    assert peak < 12 * MAX_RECORD  # bytes


def test_reading_leaves_the_csv_modules_own_limit_alone() -> None:
    """It is the whole process's: other code's files are not our business."""
    before = csv.field_size_limit()
    rows = csv_source("id\n1\n2\n").rows(required=["id"])

    next(rows)
    rows.close()

    assert csv.field_size_limit() == before


def test_missing_columns_are_named_before_the_first_row() -> None:
    """All of them, with those the file has."""
    with pytest.raises(SourceError) as caught:
        next(csv_source("id,Name\n1,Ada\n", path="s3://bucket/rows.csv").rows(required=["id", "name", "plan"]))

    assert str(caught.value) == (
        "s3://bucket/rows.csv: the submission needs 'name', 'plan', which the file does not have. "
        "Its columns are 'id', 'Name'."
    )


def test_wrong_delimiter_is_guessed_at() -> None:
    """A header read as one column is the usual sign."""
    with pytest.raises(SourceError, match=r"Its columns are 'id;name'.*is the delimiter really ','\?"):
        read("id;name\n1;Ada\n", "id", "name")


def test_missing_column_is_an_error_even_without_rows() -> None:
    """A header alone already tells."""
    with pytest.raises(SourceError, match="needs 'name'"):
        read("id\n", "id", "name")


@pytest.mark.parametrize(
    ("header", "twice"), [("id,name,id", "'id'"), ("id, id ,name", "'id'"), ("a,b,a,b", "'a', 'b'")]
)
def test_header_that_names_a_column_twice_is_refused(header: str, twice: str) -> None:
    """Nobody can tell which of them is meant."""
    with pytest.raises(SourceError, match=f"the header names a column twice: {twice}$"):
        read(f"{header}\n1,2,3,4\n")


def test_blank_headers_get_names_of_their_own() -> None:
    """So that no value of an unnamed column is lost, in the rejects file or in a whole row."""
    source = csv_source("id,,name, \n1,x,Ada,y\n")

    assert source.columns() == ["id", "column 2", "name", "column 4"]
    assert good(list(source.rows(required=["id"]))) == [{"id": "1", "column 2": "x", "name": "Ada", "column 4": "y"}]


def test_headers_are_trimmed_and_values_are_not() -> None:
    """A space after the comma is a slip in a name, and may be meant in a value."""
    assert good(read(" id , name\n 1 , Ada\n", "id", "name")) == [{"id": " 1 ", "name": " Ada"}]


def test_quoted_header_may_hold_anything() -> None:
    """Delimiters and line breaks too; the rows then begin on a later line."""
    rows = read('"id, or ""key""","two\nlines"\n1,x\n')

    assert rows == [Row(3, {'id, or "key"': "1", "two\nlines": "x"})]


def test_header_that_cannot_be_read_is_an_error_of_the_source() -> None:
    """Without it no row means anything."""
    with pytest.raises(SourceError, match="the header cannot be read: unexpected end of data"):
        read('"id,name\n1,Ada\n')


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), "rows.csv: No such file or directory"),
        (PermissionError(13, "Permission denied"), "rows.csv: Permission denied"),
        (OSError("connection to the bucket lost"), "rows.csv: connection to the bucket lost"),
    ],
)
def test_file_that_cannot_be_opened_is_an_error_of_the_source(error: OSError, words: str) -> None:
    """The path, and the system's own words."""

    def unopened() -> IO[bytes]:
        raise error

    source = CsvSource(path="rows.csv", open_binary=unopened, options=CsvOptions())

    for attempt in (source.columns, lambda: list(source.rows(required=[]))):
        with pytest.raises(SourceError, match=words):
            attempt()


def test_file_that_breaks_off_while_read_is_an_error_of_the_source() -> None:
    """As object storage does."""

    class Breaking(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise OSError("connection to the bucket lost")

    source = CsvSource(path="rows.csv", open_binary=lambda: Breaking(b"id\n1\n"), options=CsvOptions())

    with pytest.raises(SourceError, match="connection to the bucket lost"):
        list(source.rows(required=[]))


class Storage(Exception):  # noqa: N818 -- as storages name theirs
    """What a storage's own library raises, and is no OSError."""


@pytest.mark.parametrize("where", ["open", "read1"])
def test_error_of_a_storages_own_is_an_error_of_the_source(where: str) -> None:
    """With its type and its words, less what looks like a secret; the cause is kept."""

    class Breaking(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise Storage("no access with ab_live_secret")

    def open_binary() -> IO[bytes]:
        if where == "open":
            raise Storage("no access with ab_live_secret")
        return Breaking(b"id\n1\n")

    source = CsvSource(path="s3://b/rows.csv", open_binary=open_binary, options=CsvOptions())

    with pytest.raises(SourceError) as caught:
        list(source.rows(required=[]))
    assert str(caught.value) == "s3://b/rows.csv: Storage: no access with ***"
    assert isinstance(caught.value.__cause__, Storage)


def test_connection_without_its_provider_stays_an_error_of_the_configuration() -> None:
    """The error is one of this package's, and says what to do."""

    def open_binary() -> IO[bytes]:
        raise HaloConfigurationError("is the provider package for it installed?")

    with pytest.raises(HaloConfigurationError, match="provider package"):
        CsvSource(path="s3://b/rows.csv", open_binary=open_binary, options=CsvOptions()).columns()


def read_while(path: Path, change: Callable[[], Any]) -> tuple[list[str], str]:
    """The ids of a large file's rows that changes once the first row is read, and how the reading ended."""
    path.write_bytes(b"id,note\n" + b"".join(b"%d,%d\n" % (number, number) for number in range(100_000)))
    source = CsvSource(path="rows.csv", open_binary=lambda: path.open("rb"), options=CsvOptions())
    rows = source.rows(required=["id"])
    found = [next(rows).values["id"]]
    change()
    with pytest.raises(SourceError) as caught:
        found.extend(row.values["id"] for row in rows)
    return found, str(caught.value)


@pytest.mark.parametrize("kept", [600_000, 600_001, 600_002, 600_003])
def test_file_that_is_truncated_while_read_is_an_error_of_the_source(tmp_path: Path, kept: int) -> None:
    """After the rows that were whole; the one that was cut off is not taken for a row."""
    path = tmp_path / "rows.csv"

    found, error = read_while(path, lambda: os.truncate(path, kept))

    assert error == (
        f"rows.csv: it ended after {kept:,} of the 1,177,788 bytes that it had when it was opened; "
        "run the task again when the file is complete"
    )
    whole = path.read_bytes().rpartition(b"\n")[0].count(b"\n")
    assert found == [str(number) for number in range(whole)]


@pytest.mark.parametrize("written", [b"100000,x\n", b"100000,cut of"])
def test_file_that_grows_while_read_is_an_error_of_the_source(tmp_path: Path, written: bytes) -> None:
    """Whoever writes may be in the middle of a row."""
    path = tmp_path / "rows.csv"

    def grow() -> None:
        with path.open("ab") as file:
            file.write(written)

    found, error = read_while(path, grow)

    assert error.startswith("rows.csv: it was written to while it was read; run the task again")
    assert len(found) == 100_000 + written.endswith(b"\n")


def test_file_that_was_empty_and_grows_while_read_is_an_error_of_the_source(tmp_path: Path) -> None:
    """Also where its size says that there is nothing to read."""
    path = tmp_path / "rows.csv"
    path.touch()

    class Late(io.FileIO):
        def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
            found = super().seek(place, whence)
            if whence == io.SEEK_END:
                path.write_bytes(b"id\n1\n")
            return found

    source = CsvSource(path="rows.csv", open_binary=lambda: Late(path), options=CsvOptions())

    with pytest.raises(SourceError, match="it was written to while it was read"):
        list(source.rows(required=["id"]))


def test_file_that_is_replaced_while_read_is_read_to_its_end(tmp_path: Path) -> None:
    """A new file under the same name, as programs that write a file as a whole make it, changes nothing."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id\n1\n2\n")
    rows = CsvSource(path="rows.csv", open_binary=lambda: path.open("rb"), options=CsvOptions()).rows(required=["id"])
    next(rows)

    other = tmp_path / "other.csv"
    other.write_bytes(b"id\n3\n")
    other.replace(path)

    assert [row.values["id"] for row in rows] == ["2"]


def test_object_that_ends_early_is_an_error_of_the_source() -> None:
    """Object storage may break off without an error of its own."""

    class Short(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read1(2) if self.tell() < 5 else b""

    source = CsvSource(path="s3://b/rows.csv", open_binary=lambda: Short(b"id\n1\n2\n"), options=CsvOptions())

    with pytest.raises(SourceError, match=r"s3://b/rows.csv: it ended after 6 of the 7 bytes"):
        list(source.rows(required=[]))


def test_file_is_closed_when_it_is_read_and_when_it_is_not_read_to_its_end() -> None:
    """A run that stops early leaves nothing open."""
    opened: list[io.BytesIO] = []

    def open_binary() -> IO[bytes]:
        opened.append(io.BytesIO(b"id\n1\n2\n"))
        return opened[-1]

    source = CsvSource(path="rows.csv", open_binary=open_binary, options=CsvOptions())
    source.columns()
    list(source.rows(required=[]))
    unfinished = source.rows(required=[])
    next(unfinished)
    unfinished.close()

    assert [stream.closed for stream in opened] == [True, True, True]


def test_file_can_be_read_again() -> None:
    """Each reading opens it anew: dry run first, delivery after."""
    source = csv_source("id\n1\n")

    assert list(source.rows(required=["id"])) == list(source.rows(required=["id"]))
    assert source.description == "rows.csv"


def test_share_that_was_read_follows_the_rows() -> None:
    """By the bytes that the rows take up in the file, not by those that the reader holds in its buffers."""
    source = csv_source(b"id,note\r\n1,Zo\xc3\xab\r\n2,\xeb\r\n\r\n3,x\r\n")
    assert source.share_read == 0.0

    for _ in range(2):
        shares = [source.share_read for _ in source.rows(required=["id"])]
        assert shares == pytest.approx([17 / 29, 22 / 29, 29 / 29])
        assert source.share_read == 1.0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252", "shift_jis"])
def test_share_that_was_read_ends_at_one(encoding: str) -> None:
    """In every encoding, and it grows with each row."""
    source = csv_source(("id,note\n" + "1,x\n" * 500).encode(encoding), encoding=encoding)

    shares = [source.share_read for _ in source.rows(required=["id"])]

    assert all(0.0 < earlier < later <= 1.0 for earlier, later in pairwise(shares))
    assert shares[249] == pytest.approx(0.5, abs=0.02)
    assert source.share_read == 1.0


@pytest.mark.parametrize("content", ["", "id\n", "\n\n"])
def test_file_without_rows_is_read_as_a_whole(content: str) -> None:
    """Exactly: there is nothing left."""
    source = csv_source(content)

    assert list(source.rows(required=[])) == []
    assert source.share_read == 1.0


def test_looking_at_the_columns_leaves_the_share_alone() -> None:
    """The rejects file asks for them while the rows are read."""
    source = csv_source("id\n1\n2\n")
    rows = source.rows(required=["id"])
    next(rows)
    share = source.share_read

    source.columns()

    assert source.share_read == share
    rows.close()


def test_file_is_read_as_the_rows_are_asked_for(tmp_path: Path) -> None:
    """A file larger than memory is no problem: little more is read than was asked for."""
    path = tmp_path / "large.csv"
    path.write_bytes(b"id,note\n" + b"1,x\n" * 500_000)
    streams: list[IO[bytes]] = []

    def open_binary() -> IO[bytes]:
        streams.append(path.open("rb"))
        return streams[-1]

    rows = CsvSource(path=str(path), open_binary=open_binary, options=CsvOptions()).rows(required=["id"])
    next(rows)

    assert streams[0].tell() < 100_000
    rows.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"delimiter": ""}, "at least 1 character"),
        ({"delimiter": ",,"}, "at most 1 character"),
        ({"quotechar": "''"}, "at most 1 character"),
        ({"delimiter": '"'}, "two different characters"),
        ({"delimiter": "\n"}, "no line breaks"),
        ({"quotechar": "\r"}, "no line breaks"),
        ({"encoding": "utf-99"}, "there is no text encoding 'utf-99'"),
        ({"encoding": "hex"}, "there is no text encoding 'hex'"),
        ({"sep": ";"}, "sep\n  Extra inputs are not permitted"),
    ],
)
def test_option_that_cannot_work_is_refused(options: dict[str, str], reason: str) -> None:
    """Before the file is opened."""
    with pytest.raises(ValidationError, match=reason):
        CsvOptions(**options)


cell = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", "NA", "null", "007", '"', "''", ",", "\n", "\r", "\r\n", "a\rb", ' "x" ', "\x00", "\x1a", "\x85", "\u2028"]
)
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """Rows of equal width, the width of a header."""
    width = draw(st.integers(min_value=1, max_value=4))
    return draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=6))


@relaxed
@given(
    table=tables(),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quotechar=st.sampled_from(['"', "'"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_a_csv_writer_wrote_comes_back_identical(table: list[list[str]], **options: Any) -> None:
    """Every value, in every row, in order: nothing trimmed, guessed or lost."""
    encoding, dialect = options.pop("encoding"), options
    header = [f"c{place}" for place in range(len(table[0]))]

    rows = read(
        written([header, *table], encoding=encoding, **dialect),
        *header,
        delimiter=dialect["delimiter"],
        quotechar=dialect["quotechar"],
    )

    assert [list(row.values()) for row in good(rows)] == table


@relaxed
@given(st.lists(cell, min_size=1, max_size=5))
def test_line_numbers_lead_to_the_rows_first_line(notes: list[str]) -> None:
    """Whatever line breaks the values before it hold."""
    table = [["id", "note"], *([f"row {place}", note] for place, note in enumerate(notes))]
    content = written(table).decode()
    lines = list(io.StringIO(content, newline=""))

    for row in read(content):
        assert lines[row.number - 1].startswith(row.values["id"])


pieces = st.sampled_from([b"a", b"1", b",", b";", b'"', b"\n", b"\r", b"\r\n", b" ", b"\x00", b"\xe9", b"\xc3\xa9"])
csv_like_bytes = st.lists(pieces, max_size=40).map(b"".join) | st.binary(max_size=60)


@relaxed
@given(csv_like_bytes, st.sampled_from(["utf-8", "utf-16", "cp1252", "shift_jis", "ascii"]))
@example(b'a,b\n1,"\n2,"\n"3', "utf-8")
@example(b'"a\n"\n"b\n"c', "utf-8")
def test_any_bytes_are_read_or_refused_with_every_row_accounted_for(content: bytes, encoding: str) -> None:
    """No file makes anything but a SourceError; each row is whole or rejected, and no line is skipped."""
    source = csv_source(content, encoding=encoding)
    try:
        columns = source.columns()
        rows = list(source.rows(required=[]))
    except SourceError:
        return

    assert all(row.error or list(row.values) == columns for row in rows)
    assert all(earlier.number < later.number for earlier, later in pairwise(rows))
    if content.isascii():
        lines = list(io.StringIO(content.decode(), newline=""))
        heading = rows[0].number - 1 if rows else len(lines)
        assert all(_belongs(number, rows, lines) for number in range(heading + 1, len(lines) + 1))


def _belongs(number: int, rows: list[Row], lines: list[str]) -> bool:
    """Whether the line is blank, begins a row, or lies inside a value with line breaks."""
    before = [row for row in rows if row.number <= number]
    if not lines[number - 1].strip("\r\n") or before[-1].number == number:
        return True
    return any("\n" in value or "\r" in value for value in before[-1].values.values()) or before[-1].error is not None


def test_list_of_dicts_is_a_source() -> None:
    """Rows are numbered from 1, values keep their types, columns appear in order."""
    source = ListSource([{"id": 1, "name": "Ada"}, {"id": 2, "name": None, "plan": "pro"}])

    assert source.columns() == ["id", "name", "plan"]
    assert list(source.rows(required=["id", "name"])) == [
        Row(1, {"id": 1, "name": "Ada"}),
        Row(2, {"id": 2, "name": None, "plan": "pro"}),
    ]


@pytest.mark.parametrize("rows", [[], (), iter([]), pd.DataFrame()])
def test_no_rows_are_no_rows(rows: Any) -> None:
    """An upstream task that found nothing."""
    source = ListSource(rows)

    assert (source.columns(), list(source.rows(required=["id"]))) == ([], [])


def test_row_that_is_no_dict_is_rejected_alone() -> None:
    """By its number and type; what it is goes to the rejects file only."""
    rows = list(ListSource([{"id": 1}, ["secret"], None, {"id": 2}]).rows(required=["id"]))

    assert [row.error is None for row in rows] == [True, False, False, True]
    assert rows[1].error.reason == "row 2 is a list; every row must be a dict of column and value"
    assert rows[1].error.detail == "row: ['secret']"
    assert rows[2].number == 3


def test_list_of_lists_is_explained() -> None:
    """As mapped upstream tasks make one, each of which returns a list."""
    (row,) = ListSource([[{"id": 1}, {"id": 2}]]).rows(required=["id"])

    assert row.error.reason == (
        "row 1 is a list; every row must be a dict of column and value "
        "(mapped upstream tasks that return lists make a list of lists: flatten it)"
    )


class Note(NamedTuple):
    """A row with names."""

    id: int
    name: str


@pytest.mark.parametrize(
    "rows",
    [
        [Note(1, "Ada")],
        pd.DataFrame([{"id": 1, "name": "Ada"}]).itertuples(index=False),
        [pd.Series({"id": 1, "name": "Ada"})],
        np.array([(1, "Ada")], dtype=[("id", "i4"), ("name", "U10")]),
        np.array([{"id": 1, "name": "Ada"}]),
        [{"id": np.int64(1), "name": np.str_("Ada")}],
        ({"id": number, "name": "Ada"} for number in (1,)),
        {"first": {"id": 1, "name": "Ada"}}.values(),
    ],
    ids=range(8),
)
def test_rows_may_be_anything_with_names(rows: Any) -> None:
    """Named tuples, rows of arrays and frames, generators; their values become Python's own."""
    source = ListSource(rows)

    assert source.columns() == ["id", "name"]
    ((number, values, error, _),) = source.rows(required=["id", "name"])
    assert (number, values, error) == (1, {"id": 1, "name": "Ada"}, None)
    assert [type(value) for value in values.values()] == [int, str]


def test_dict_without_a_column_is_rejected_alone() -> None:
    """Lists have no header: each row is asked."""
    rows = list(ListSource([{"id": 1, "name": "Ada"}, {"id": 2}]).rows(required=["id", "name"]))

    assert rows[0].error is None
    assert (rows[1].number, rows[1].error.column) == (2, "name")
    assert str(rows[1].error) == "column 'name': row 2 has no such column"


def test_iterator_can_be_read_again() -> None:
    """It is kept, as a source may be read more than once."""
    source = ListSource({"id": number} for number in range(3))

    assert source.columns() == ["id"]
    assert [row.values["id"] for row in source.rows(required=["id"])] == [0, 1, 2]
    assert [row.values["id"] for row in source.rows(required=["id"])] == [0, 1, 2]


@pytest.mark.parametrize("rows", [{"id": 1}, "id", b"id", 7, None])
def test_rows_that_are_no_list_are_refused(rows: Any) -> None:
    """A dict alone is a slip: its keys are no rows."""
    with pytest.raises(SourceError, match=f"rows must be a list of dicts or a DataFrame, not a {type(rows).__name__}"):
        ListSource(rows)


def test_rows_of_a_list_are_not_copied() -> None:
    """Half a million dicts are there once."""
    values = {"id": 1}

    assert next(ListSource([values]).rows(required=["id"])).values is values
    assert isinstance(ListSource([values]).rows(required=["id"]), Iterator)
