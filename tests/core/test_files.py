"""Files as they come: compressed, Parquet, JSON Lines, Excel, and several as one source."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
from backports import zstd
from pyarrow import parquet

from halo_provider.exceptions import HaloConfigurationError, NoFileError, SourceError
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.excel_file import ExcelSource
from halo_provider.sources.formats import FileOptions, csv_source, file_source, format_of
from halo_provider.sources.json_lines import JsonLinesSource
from halo_provider.sources.lines import MAX_RECORD
from halo_provider.sources.open import expanded
from halo_provider.sources.parquet_file import SLICE, ParquetSource
from halo_provider.sources.rows import Row, Source

HEADER = b"id,name\n"
TEXT = HEADER + b"1,Ada\n2,Zo\xc3\xab\n"
ROWS = [{"id": "1", "name": "Ada"}, {"id": "2", "name": "Zoë"}]


def zipped(content: bytes, *names: str) -> bytes:
    """A zip file with this content under each name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for name in names or ("rows.csv",):
            members.writestr(name, content)
    return archive.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "zip": zipped,
}


def csv_of(content: bytes, *, path: str = "rows.csv", **options: str) -> CsvSource:
    """A CSV file of these bytes."""
    return CsvSource(path=path, open_binary=lambda: io.BytesIO(content), options=CsvOptions(**options))


def json_of(content: bytes) -> JsonLinesSource:
    """A file of JSON Lines of these bytes."""
    return JsonLinesSource(path="rows.jsonl", open_binary=lambda: io.BytesIO(content))


def parquet_of(content: bytes) -> ParquetSource:
    """A Parquet file of these bytes."""
    return ParquetSource(path="rows.parquet", open_binary=lambda: io.BytesIO(content))


def excel_of(content: bytes, **options: Any) -> ExcelSource:
    """A workbook of these bytes."""
    return ExcelSource(path="rows.xlsx", open_binary=lambda: io.BytesIO(content), **options)


def table(rows: Any, **options: Any) -> bytes:
    """A Parquet file of an Arrow table, or of rows."""
    stream = io.BytesIO()
    parquet.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), stream, **options)
    return stream.getvalue()


def workbook(*lines: list[Any], sheets: tuple[str, ...] = ("Rows",)) -> bytes:
    """A workbook with these lines in its first sheet, and other sheets."""
    book = openpyxl.Workbook()
    book.active.title = sheets[0]
    for line in lines:
        book.active.append(line)
    for name in sheets[1:]:
        book.create_sheet(name).append(["other"])
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def read(source: Source, *required: str) -> list[Row]:
    """All its rows."""
    return list(source.rows(required=required))


def good(source: Source) -> list[dict[str, Any]]:
    """Its rows' values, none of which is rejected."""
    rows = read(source)
    assert [row.error for row in rows if row.error] == []
    return [dict(row.values) for row in rows]


def unreadable(source: Source) -> str:
    """Why it cannot be read."""
    with pytest.raises(SourceError) as caught:
        read(source)
    return str(caught.value)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("path", ["rows.csv", "rows.csv.gz"])
def test_compressed_csv_is_read_whatever_its_name(kind: str, path: str) -> None:
    """By its first bytes, and more than once; columns, share and line numbers are those of a plain file."""
    source = csv_of(COMPRESS[kind](TEXT), path=path)
    assert source.columns() == ["id", "name"]
    assert good(source) == ROWS
    assert [row.number for row in read(source)] == [2, 3]
    assert source.share_read == 1.0


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_file_may_be_in_another_encoding(kind: str) -> None:
    """What is inside is a file like any other: a byte order mark, another encoding."""
    assert good(csv_of(COMPRESS[kind](TEXT.decode().encode("utf-16")))) == ROWS
    assert good(csv_of(COMPRESS[kind](TEXT.decode().encode("cp1252")), encoding="cp1252")) == ROWS


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd"])
def test_parts_that_were_joined_are_one_file(kind: str) -> None:
    """As ``cat part-*.gz`` makes them."""
    compress = COMPRESS[kind]
    assert good(csv_of(compress(TEXT[:12]) + compress(TEXT[12:]))) == ROWS


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd"])
def test_compressed_file_that_is_cut_off_is_an_error_of_the_source(kind: str) -> None:
    """Its last rows are missing, and nobody may take it for whole."""
    content = COMPRESS[kind](HEADER + b"".join(b"%d,Ada %d\n" % (n, n * 7919) for n in range(50_000)))
    assert unreadable(csv_of(content[: len(content) * 2 // 3])) == (
        "rows.csv: its compressed content ends too early; run the task again when the file is complete"
    )


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zip"])
def test_damaged_compressed_file_is_an_error_of_the_source(kind: str) -> None:
    """A bit that fell over on the way; zstd knows only where its writer has added a checksum."""
    content = bytearray(COMPRESS[kind](HEADER + b"".join(b"%d,Ada %d\n" % (n, n * 7919) for n in range(5_000))))
    content[len(content) // 2] ^= 0xFF
    assert unreadable(csv_of(bytes(content))).startswith("rows.csv: ")


def test_zip_file_must_have_one_member() -> None:
    """Folders and what macOS adds do not count."""
    members = zipped(TEXT, "folder/rows.csv", "__MACOSX/._rows.csv", "folder/")
    assert good(csv_of(members)) == ROWS
    assert unreadable(csv_of(zipped(TEXT, "a.csv", "b.csv"))) == (
        "rows.csv: this zip file has 2 members, and must have one; unpack it"
    )


def test_file_that_is_compressed_twice_says_so() -> None:
    """Its inner layer is no text."""
    assert unreadable(csv_of(gzip.compress(bz2.compress(TEXT)))) == "rows.csv: this is bz2 within gzip; unpack it once"


@pytest.mark.parametrize("start", [b"BZh9,name\n1,Ada\n", b"PAR1,name\n1,Ada\n"])
def test_text_that_begins_like_another_format_is_text(start: bytes) -> None:
    """A header may have any names."""
    assert [row["name"] for row in good(csv_of(start))] == ["Ada"]


OLD_WORKBOOK = (
    "this is an old or encrypted Excel workbook, and not text; "
    "save it as .xlsx without a password, and give it as file_path"
)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (csv_of(table(ROWS)), "this is Parquet, and not text; give it as file_path"),
        (csv_of(workbook(["id"])), "this is an Excel workbook, and not text; give it as file_path"),
        (
            csv_of(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
            OLD_WORKBOOK,
        ),
        (json_of(table(ROWS)), "this is Parquet, and not text; give it as file_path"),
        (
            parquet_of(gzip.compress(table(ROWS))),
            "this is gzip, and not Parquet, which is compressed in itself; unpack it",
        ),
        (
            parquet_of(TEXT),
            "this is something else, and not Parquet; correct its name, or file_options={'format': …}",
        ),
        (
            parquet_of(workbook(["id"])),
            "this is an Excel workbook, and not Parquet; correct its name, or file_options={'format': …}",
        ),
        (
            excel_of(zipped(TEXT)),
            "this is zip, and not an Excel workbook, which is compressed in itself; unpack it",
        ),
        (
            excel_of(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
            "this is an old or encrypted Excel workbook; save it as .xlsx without a password",
        ),
    ],
    ids=range(9),
)
def test_file_of_another_format_than_its_name_says_so(source: Source, words: str) -> None:
    """What it is, and what to do."""
    assert unreadable(source) == f"{source.description}: {words}"


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_excels_line_names_the_delimiter(first: str, encoding: str) -> None:
    """It goes before csv_options, is no header, and counts as a line."""
    content = f"{first}\r\nid;name\r\n1;Ada, Countess\r\n".encode(encoding)
    assert read(csv_of(content, delimiter="\t"), "id", "name") == [Row(3, {"id": "1", "name": "Ada, Countess"})]


def test_column_that_only_begins_like_excels_line_is_a_column() -> None:
    """Nothing but that line is one."""
    assert csv_of(b"sep=;id,name\n").columns() == ["sep=;id", "name"]


def test_parquet_keeps_its_types() -> None:
    """Whole numbers stay whole beside missing ones; decimals, dates, lists and structs are what they are."""
    values = {
        "id": 2**53 + 1,
        "price": Decimal("1.10"),
        "day": date(2026, 11, 22),
        "at": datetime(2026, 11, 22, 10, 30),  # noqa: DTZ001 -- a column without a zone
        "tags": ["a", None],
        "by": {"name": "Ada"},
        "text": "007",
        "gone": None,
    }
    source = parquet_of(table(pa.Table.from_pylist([values, {"id": None}])))
    first, second = good(source)
    assert first == values
    assert {type(value) for value in second.values()} == {type(None)}
    assert source.columns() == list(values)
    assert [row.number for row in read(source)] == [1, 2]


def test_parquet_is_read_group_by_group() -> None:
    """Rows of many groups come in their order; the share follows them."""
    source = parquet_of(table(pa.table({"id": range(3 * SLICE)}), row_group_size=SLICE // 2))
    assert source.share_read == 0.0
    shares = [source.share_read for row in source.rows(required=["id"]) if row.number in {SLICE, 3 * SLICE}]
    assert shares == [pytest.approx(1 / 3), 1.0]
    assert [row.values["id"] for row in read(source)] == list(range(3 * SLICE))


def test_parquet_value_that_python_has_no_room_for_rejects_its_row_alone() -> None:
    """A date in the year 30000, a text that is no UTF-8."""
    days = pa.array([0, 10_000_000, 1], pa.int32()).cast(pa.date32())
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b", b"\xff"]).buffers())
    first, second, third = read(parquet_of(table(pa.table({"id": [1, 2, 3], "day": days, "text": texts}))))
    assert (first.error, first.values["day"]) == (None, date(1970, 1, 1))
    assert (second.error.column, second.values["id"]) == ("day", 2)
    assert third.error.column == "text"
    assert "row 2 has a value that raises" in second.error.reason


def test_parquet_that_lacks_a_column_is_an_error_of_the_source() -> None:
    """Before the first row."""
    with pytest.raises(SourceError) as caught:
        read(parquet_of(table(ROWS)), "id", "plan")
    assert str(caught.value) == (
        "rows.parquet: the submission needs 'plan', which the file does not have. Its columns are 'id', 'name'."
    )


def test_damaged_parquet_is_an_error_of_the_source() -> None:
    """Its footer is missing."""
    assert unreadable(parquet_of(table(ROWS)[:-20])).startswith("rows.parquet: ArrowInvalid: ")


def test_json_lines_keep_their_types() -> None:
    """Numbers of any size, nested values, dates as the text that they are; blank lines are none."""
    values = {"id": 2**70, "price": 1.5, "day": "2026-11-22", "tags": ["a", {"b": None}], "ok": True, "gone": None}
    content = f"{json.dumps(values)}\r\n\n{json.dumps({'id': 1, 'more': 'x'})}".encode()
    source = json_of(content)
    assert [(row.number, dict(row.values)) for row in read(source)] == [(1, values), (3, {"id": 1, "more": "x"})]
    assert source.columns() == [*values, "more"]


@pytest.mark.parametrize("kind", COMPRESS)
def test_json_lines_may_be_compressed(kind: str) -> None:
    """As CSV files."""
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS).encode()
    assert good(json_of(COMPRESS[kind](content))) == ROWS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": 1', "Expecting ',' delimiter at character"),
        (b"[1]", "it is a list, and not an object"),
        (b'"text"', "it is a str, and not an object"),
        (b"null", "it is a NoneType, and not an object"),
        (b'{"id": 1, "id": 2}', "an object has two values of the same name"),
        (b'{"id": "\xe9"}', "it holds bytes that are not UTF-8"),
        (b'{"id": ' + b"[" * 100_000, "it raises RecursionError"),
        (b'{"id": ' + b"9" * 10_000 + b"}", "it raises ValueError"),
        (b'{"id": "' + b"x" * MAX_RECORD + b'"}', "it has more than 2,000,000 characters"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_line_that_is_no_row_is_rejected_alone(line: bytes, reason: str) -> None:
    """By its number, without its values in the reason; the lines around it are rows."""
    first, bad, last = read(json_of(b'{"id": "a"}\n' + line + b'\n{"id": "c"}\n'), "id")
    assert (first.error, first.values, last.error, last.values) == (None, {"id": "a"}, None, {"id": "c"})
    assert bad.number == 2
    assert bad.error.reason.startswith(f"line 2 is not a row of JSON ({reason}")
    assert bad.error.reason.endswith("write one object of column and value a line")
    assert bad.error.detail.startswith("text: ")


def test_object_without_a_column_is_rejected_alone() -> None:
    """Lines have no header: each is asked."""
    first, second = read(json_of(b'{"id": 1, "name": "Ada"}\n{"id": 2}\n'), "id", "name")
    assert (first.error, str(second.error)) == (None, "column 'name': row 2 has no such column")


@pytest.mark.parametrize("content", [b'[{"id": 1}, {"id": 2}]', b'[\n  {"id": 1}\n]\n'])
def test_json_array_is_explained(content: bytes) -> None:
    """Many programs write one under the same name."""
    assert unreadable(json_of(content)) == (
        "rows.jsonl: this is a JSON array, and not JSON Lines; write one object a line (jq -c '.[]' does it)"
    )


def test_workbook_keeps_its_types() -> None:
    """Numbers, dates and truth values; empty cells are missing, empty rows are none, and numbers are the sheet's."""
    when = datetime(2026, 11, 22, 10, 30)  # noqa: DTZ001 -- a workbook has no zones
    source = excel_of(
        workbook([None], ["id", "name", "when", "ok", None], [1, "Ada", when, True], [], [2.5, None, "007", None, None])
    )
    assert source.columns() == ["id", "name", "when", "ok"]
    assert read(source, "id") == [
        Row(3, {"id": 1, "name": "Ada", "when": when, "ok": True}),
        Row(5, {"id": 2.5, "name": None, "when": "007", "ok": None}),
    ]
    assert source.share_read == 1.0


def test_sheet_may_be_named() -> None:
    """The first one is read otherwise; one that is not there is named with those that are."""
    content = workbook(["id"], [1], sheets=("Rows", "Other"))
    assert excel_of(content).columns() == ["id"]
    assert excel_of(content, sheet="Other").columns() == ["other"]
    assert unreadable(excel_of(content, sheet="Mine")) == (
        "rows.xlsx: there is no sheet 'Mine'; its sheets are 'Rows', 'Other'"
    )


def test_values_beyond_the_header_reject_their_row() -> None:
    """As in a CSV file."""
    first, second = read(excel_of(workbook(["id", "name"], [1, "Ada", "more"], [2, "Bo", None])))
    assert "row 2 has values in columns that have no name in the header" in first.error.reason
    assert first.error.detail == "values beyond the header: ['more']"
    assert second.error is None


def test_sheet_that_names_a_column_twice_is_refused() -> None:
    """One of the two would be lost."""
    assert unreadable(excel_of(workbook(["id", "id"], [1, 2]))) == "rows.xlsx: the file has a column twice: 'id'"


@pytest.mark.parametrize(
    "source", [csv_of(b""), json_of(b""), parquet_of(b""), excel_of(b""), excel_of(workbook())], ids=range(5)
)
def test_file_of_nothing_has_no_rows(source: Source) -> None:
    """Whatever format it would have had; nothing is missing in it."""
    assert (source.columns(), read(source, "id")) == ([], [])


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        ("a.parquet", {}, "parquet"),
        ("s3://b/c.d/A.JSONL.GZ", {}, "jsonl"),
        ("a.ndjson.zst", {}, "jsonl"),
        ("a.xlsx", {}, "excel"),
        ("part-0001", {"format": "parquet"}, "parquet"),
        ("a.csv", {"format": "jsonl"}, "jsonl"),
    ],
)
def test_format_is_told_by_the_name_or_by_the_options(path: str, options: dict[str, Any], expected: str) -> None:
    """The options go before the name."""
    assert format_of(path, FileOptions(**options)) == expected


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("pyarrow", parquet_of, "parquet"), ("openpyxl", excel_of, "excel"), ("backports", None, "zstd")],
    ids=["pyarrow", "openpyxl", "zstd"],
)
def test_library_that_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, source: Callable[[bytes], Source] | None, extra: str
) -> None:
    """What to install, before anything is read."""
    monkeypatch.setattr("halo_provider.sources.parquet_file.find_spec", lambda _name: None)
    monkeypatch.setattr("halo_provider.sources.excel_file.find_spec", lambda _name: None)
    monkeypatch.setitem(__import__("sys").modules, "backports", None)
    with pytest.raises(HaloConfigurationError, match=rf"pip install 'airflow-provider-halo\[{extra}\]'"):
        read(source(b"") if source else csv_of(zstd.compress(TEXT)))


FILES = {
    "b.csv": b"id,name\n3,Cy\n",
    "a.csv": b"id,name\n1,Ada\n2,Bo\n",
    "empty.csv": b"",
    "other.csv": b"name,id,plan\nDi,4,pro\n",
    "lacking.csv": b"id\n5\n",
}


def joined(*paths: str) -> Source:
    """These files as one source."""
    return csv_source(paths, lambda path: io.BytesIO(FILES[path]), options=CsvOptions(), description="all of them")


def test_several_files_are_one_source() -> None:
    """Each row says its file and its line there; the columns are those of all files."""
    source = joined("a.csv", "b.csv", "empty.csv", "other.csv")
    assert source.columns() == ["id", "name", "plan"]
    rows = read(source, "id", "name")
    assert [(row.place, row.values["id"]) for row in rows] == [
        ("a.csv:2", "1"),
        ("a.csv:3", "2"),
        ("b.csv:2", "3"),
        ("other.csv:2", "4"),
    ]
    assert (source.description, source.share_read) == ("all of them", 1.0)


@pytest.mark.parametrize("last", ["lacking.csv", "missing.csv"])
def test_file_that_cannot_be_used_is_found_before_the_first_row(last: str) -> None:
    """Nothing is sent of the files before it."""
    rows = iter(joined("a.csv", last).rows(required=["id", "name"]))
    with pytest.raises(SourceError, match=last):
        next(rows)


def test_files_may_differ_in_their_format() -> None:
    """A folder of exports, each by its own name."""
    files = {"a.parquet": table([{"id": 1}]), "b.jsonl": b'{"id": 2}\n', "c.xlsx": workbook(["id"], [3])}
    source = file_source(
        list(files), lambda path: io.BytesIO(files[path]), options=FileOptions(), description="exports"
    )
    assert [(row.place, row.values["id"]) for row in read(source, "id")] == [
        ("a.parquet:1", 1),
        ("b.jsonl:1", 2),
        ("c.xlsx:2", 3),
    ]


def test_files_are_read_in_the_order_of_their_names() -> None:
    """Each once, whichever way it was named; a pattern without files is an error."""
    found = {"x/*": ["x/b", "x/a"], "x/a": ["x/a"], "w": ["w"], "none*": []}
    assert expanded(["x/*", "x/a", "w"], found.__getitem__) == ["w", "x/a", "x/b"]
    assert expanded(Path("w"), found.__getitem__) == ["w"]
    for paths in ("none*", ["w", "none*"], []):
        with pytest.raises(NoFileError):
            expanded(paths, found.__getitem__)


@pytest.fixture
def big_files(tmp_path: Path) -> dict[str, Path]:
    """Many rows in each format that streams."""
    frame = pd.DataFrame({"id": range(60_000), "text": ["x" * 200] * 60_000})
    paths = {kind: tmp_path / f"rows.{kind}" for kind in ("csv.gz", "parquet", "jsonl")}
    frame.to_csv(paths["csv.gz"], index=False)
    frame.to_parquet(paths["parquet"], row_group_size=5_000)
    frame.to_json(paths["jsonl"], orient="records", lines=True)
    return paths


@pytest.mark.parametrize("kind", ["csv.gz", "parquet", "jsonl"])
def test_memory_does_not_grow_with_the_file(big_files: dict[str, Path], kind: str) -> None:
    """Of a dozen megabytes of text, few are in memory at any time."""
    import tracemalloc  # noqa: PLC0415 -- here only

    path = big_files[kind]
    opened = lambda _path: path.open("rb")  # noqa: E731 -- what each source is given
    source = (
        csv_source([str(path)], opened, options=CsvOptions(), description="")
        if kind == "csv.gz"
        else file_source([str(path)], opened, options=FileOptions(), description="")
    )
    next(iter(source.rows(required=[])))
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.rows(required=["id", "text"])) == 60_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000
