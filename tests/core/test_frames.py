"""Rows from DataFrames, and numpy's values wherever they stand: Python's own values, and nothing that is missing."""

import json
import math
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.frames import SLICE, FrameSource
from halo_provider.sources.lists import ListSource, memory_source
from halo_provider.sources.rows import Row
from halo_provider.submission import Entry, Submission, json_value

WHOLE_ROW = Submission(name="note", key="id", message="Note", context={"row": Entry(label="Row", fields="*")})


def read(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows, none of which is rejected."""
    rows = list(FrameSource(frame).rows(required=[]))
    assert [row.error for row in rows if row.error] == []
    return [dict(row.values) for row in rows]


def column(values: Any) -> list[Any]:
    """What a frame's column of these values yields."""
    return [row["value"] for row in read(pd.DataFrame({"value": values}))]


def test_data_frame_is_a_source() -> None:
    """Every kind of missing value is None, whole numbers stay whole, dates stay dates."""
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "text": ["Ada", None],
            "float": [1.5, math.nan],
            "nullable": pd.array([7, None], dtype="Int64"),
            "when": pd.to_datetime(["2026-11-22", None]),
            "kind": pd.Categorical(["a", None]),
            "flag": [True, False],
            "list": [[1], None],
            3: ["x", "y"],
        }
    )
    source = FrameSource(frame)

    assert source.columns() == ["id", "text", "float", "nullable", "when", "kind", "flag", "list", "3"]
    first, second = (dict(row.values) for row in source.rows(required=["id", "3"]))
    assert first == {
        "id": 1,
        "text": "Ada",
        "float": 1.5,
        "nullable": 7,
        "when": pd.Timestamp("2026-11-22"),
        "kind": "a",
        "flag": True,
        "list": [1],
        "3": "x",
    }
    assert [name for name, value in second.items() if value is None] == [
        "text",
        "float",
        "nullable",
        "when",
        "kind",
        "list",
    ]
    assert {type(first["id"]), type(first["nullable"]), type(first["flag"])} == {int, bool}


def test_data_frame_without_a_required_column_rejects_its_rows() -> None:
    """As any list."""
    rows = list(FrameSource(pd.DataFrame({"id": [1, 2]})).rows(required=["id", "name"]))

    assert [row.error.column for row in rows] == ["name", "name"]


def test_data_frame_with_a_column_twice_is_refused() -> None:
    """One of the two would be lost."""
    with pytest.raises(SourceError, match="the DataFrame has a column twice: 'id'"):
        FrameSource(pd.DataFrame([[1, 2]], columns=["id", "id"]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 2], dtype="int8"), [1, 2]),
        (np.array([2**64 - 1, 0], dtype="uint64"), [2**64 - 1, 0]),
        (np.array([0.5, np.nan], dtype="float32"), [0.5, None]),
        (pd.array([2**53 + 1, None], dtype="Int64"), [2**53 + 1, None]),
        (pd.array([1.5, None], dtype="Float64"), [1.5, None]),
        (pd.array([True, None], dtype="boolean"), [True, None]),
        (pd.array(["a", None], dtype="string"), ["a", None]),
        (pd.Series(["a", None], dtype="str"), ["a", None]),
        (pd.Categorical([7, None]), [7, None]),
        (pd.arrays.SparseArray([1.0, np.nan]), [1.0, None]),
        ([Decimal("1.50"), Decimal("NaN")], [Decimal("1.50"), None]),
        ([UUID(int=1), pd.NA], [UUID(int=1), None]),
        ([date(2026, 11, 22), pd.NaT], [date(2026, 11, 22), None]),
        (pd.Series([np.int64(7), np.float32(0.5)], dtype=object), [7, 0.5]),
        ([np.datetime64("2026-11-22"), np.bool_(True)], [date(2026, 11, 22), True]),
        ([np.array([1, 2]), np.array(["a"], dtype=object)], [[1, 2], ["a"]]),
        (pd.array([[1, None], None], dtype=pd.ArrowDtype(pa.list_(pa.int64()))), [[1, None], None]),
        (pd.array([{"a": 1}, None], dtype=pd.ArrowDtype(pa.struct([("a", pa.int64())]))), [{"a": 1}, None]),
        (pd.array([Decimal("1.50"), None], dtype=pd.ArrowDtype(pa.decimal128(10, 2))), [Decimal("1.50"), None]),
        (pd.array([date(2026, 1, 2), None], dtype=pd.ArrowDtype(pa.date32())), [date(2026, 1, 2), None]),
        (pd.array(["a", None], dtype=pd.ArrowDtype(pa.string())), ["a", None]),
        (pd.array([7, None], dtype=pd.ArrowDtype(pa.int32())), [7, None]),
    ],
    ids=lambda values: f"{type(values).__name__}-{getattr(values, 'dtype', '')}",
)
def test_value_is_pythons_own_and_none_where_it_is_missing(values: Any, expected: list[Any]) -> None:
    """Whatever type the column has, numpy's, pandas' or Arrow's."""
    found = column(values)

    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.to_datetime(["2026-11-22 09:30", None]), ["2026-11-22T09:30:00", None]),
        (pd.to_datetime(["2026-11-22 09:30", None]).tz_localize("Europe/Berlin"), ["2026-11-22T09:30:00+01:00", None]),
        (
            pd.to_datetime(["2026-11-22 09:30", None], utc=True).astype("datetime64[s, UTC]"),
            ["2026-11-22T09:30:00+00:00", None],
        ),
        (
            pd.array([datetime(2026, 11, 22, tzinfo=UTC), None], dtype=pd.ArrowDtype(pa.timestamp("us", tz="UTC"))),
            ["2026-11-22T00:00:00+00:00", None],
        ),
        ([np.datetime64("2026-11-22T09:30", "ns"), np.datetime64("NaT")], ["2026-11-22T09:30:00", None]),
        ([[np.datetime64("2026-11-22T09:30", "ns")], []], [["2026-11-22T09:30:00"], []]),
        ([np.array(["2026-11-22", "NaT"], dtype="datetime64[ns]"), None], [["2026-11-22T00:00:00", None], None]),
        (pd.Series([np.timedelta64(5_000_000_000, "ns"), None], dtype=object), ["0:00:05", None]),
        (pd.to_timedelta(["1 day", None]), ["1 days 00:00:00", None]),
    ],
    ids=str,
)
def test_moment_is_sent_as_iso_8601(values: Any, expected: list[Any]) -> None:
    """With its zone where it has one, and never as a number of nanoseconds."""
    assert [json_value(value) for value in column(values)] == expected


def test_names_of_columns_become_text() -> None:
    """Numbers, tuples and moments name columns in pandas too."""
    frame = pd.DataFrame([[1, 2, 3]], columns=[7, "name", ("a", "b")])

    assert FrameSource(frame).columns() == ["7", "name", "('a', 'b')"]
    assert read(frame) == [{"7": 1, "name": 2, "('a', 'b')": 3}]


def test_names_that_become_the_same_text_are_refused() -> None:
    """One of the two columns would be lost."""
    with pytest.raises(SourceError, match="the DataFrame has a column twice: '7'"):
        FrameSource(pd.DataFrame([[1, 2]], columns=[7, "7"]))


def test_index_is_no_part_of_the_rows() -> None:
    """Rows are numbered by their places, also where the index has numbers of its own, or one of them twice."""
    frame = pd.DataFrame({"id": ["a", "b"]}, index=[9, 9])

    assert list(FrameSource(frame).rows(required=["id"])) == [Row(1, {"id": "a"}), Row(2, {"id": "b"})]


def test_rows_of_several_slices_are_one_sequence() -> None:
    """Each slice is converted by itself; nothing is lost or doubled where they meet, and whole numbers stay whole."""
    count = 2 * SLICE + 1
    frame = pd.DataFrame({"id": range(count), "more": [*range(count - 1), None]}).astype({"more": "Int64"})

    found = read(frame)

    assert [row["id"] for row in found] == list(range(count))
    assert [row["more"] for row in found] == [*range(count - 1), None]


def test_memory_does_not_grow_with_the_frame() -> None:
    """Beside the frame itself there is one slice of Python values."""
    frame = pd.DataFrame({f"c{place}": np.arange(30 * SLICE) for place in range(4)})
    rows = FrameSource(frame).rows(required=[])
    next(rows)

    tracemalloc.start()
    for _ in rows:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * SLICE * 4 * 64  # bytes; all rows at once would take more than 30 slices


def test_frame_can_be_read_again() -> None:
    """Dry run first, delivery after."""
    source = FrameSource(pd.DataFrame({"id": [1, 2]}))

    assert list(source.rows(required=["id"])) == list(source.rows(required=["id"]))
    assert source.description == "rows"


@pytest.mark.parametrize(
    ("rows", "kind"), [(pd.DataFrame({"id": [1]}), FrameSource), ([{"id": 1}], ListSource), (iter([]), ListSource)]
)
def test_rows_in_memory_have_the_source_that_fits(rows: Any, kind: type) -> None:
    """Nobody has to say which of them they are."""
    assert type(memory_source(rows)) is kind


def test_list_source_reads_a_frame_as_its_rows() -> None:
    """And not as its column names, which is what a DataFrame iterates over."""
    assert [row.values for row in ListSource(pd.DataFrame({"id": [1, None]})).rows(required=["id"])] == [
        {"id": 1.0},
        {"id": None},
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("Zoë"), "Zoë"),
        (np.array(7), 7),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([np.int64(1), None], dtype=object), [1, None]),
        (np.ma.array([1, 2], mask=[False, True]), [1, None]),
        (np.datetime64("2026-11-22"), date(2026, 11, 22)),
        (np.datetime64("2026-11-22T09:30:00.000005007"), datetime(2026, 11, 22, 9, 30, 0, 5)),  # noqa: DTZ001 -- has none
        (np.datetime64("NaT"), None),
        (np.timedelta64(5, "s"), timedelta(seconds=5)),
        (pd.array([1, 2], dtype="Int64"), [1, 2]),
        (pd.Series(["a"]), ["a"]),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_numpys_values_in_a_list_of_dicts_become_pythons(value: Any, expected: Any) -> None:
    """Scalars, arrays, and both of them inside other values."""
    [row] = ListSource([{"id": 1, "value": value}]).rows(required=["id"])

    assert row == Row(1, {"id": 1, "value": expected})
    assert type(row.values["value"]) is type(expected)
    json.dumps(json_value(row.values))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([np.int64(7)], [7]),
        ((np.int64(7), "a"), [7, "a"]),
        ({np.int64(7)}, [7]),
        ({"a": {"b": [np.array([np.float64(1.5)])]}}, {"a": {"b": [[1.5]]}}),
        ([np.datetime64("2026-11-22T09:30", "ns"), np.datetime64("NaT")], ["2026-11-22T09:30:00", None]),
    ],
    ids=str,
)
def test_numpys_values_inside_others_are_sent_as_pythons(value: Any, expected: Any) -> None:
    """In lists, tuples, sets and dicts, of a list's rows and of a frame's."""
    frame = pd.DataFrame({"id": [1], "value": pd.Series([value], dtype=object)})

    for rows in ([{"id": 1, "value": value}], frame):
        [row] = memory_source(rows).rows(required=["id"])
        assert json_value(row.values["value"]) == expected


def test_row_of_pythons_own_values_is_not_copied() -> None:
    """Also where they are nested."""
    values = {"id": 1, "when": datetime(2026, 11, 22, tzinfo=UTC), "items": [{"name": ("a", None)}], "tags": {"x"}}

    assert next(ListSource([values]).rows(required=["id"])).values is values


def test_id_is_the_same_in_every_type_of_number() -> None:
    """A key of numpy's float32 is not another key."""
    for value in (123, np.int64(123), np.float64(123), np.float32(123), np.array(123), "123"):
        [row] = ListSource([{"id": value}]).rows(required=["id"])
        assert WHOLE_ROW.row_key(row.values) == "123"


@pytest.mark.parametrize("value", [1 + 2j, pd.Interval(0, 1), pd.Period("2026-11"), np.complex64(1), np.void(b"x")])
def test_value_json_has_no_room_for_rejects_its_row(value: Any) -> None:
    """With the column; the rows beside it are read."""
    good, bad = (
        dict(row.values) for row in memory_source(pd.DataFrame({"id": [1, 2], "x": ["a", value]})).rows(required=[])
    )

    assert WHOLE_ROW.render(good, row_key="1").request.context["row"].value == {"id": 1, "x": "a"}
    with pytest.raises(RowError, match="cannot be sent") as caught:
        WHOLE_ROW.render(bad, row_key="2")
    assert caught.value.column == "x"


def test_infinite_number_of_a_frame_rejects_its_row() -> None:
    """JSON has none; a missing one is another thing."""
    found = column([math.inf, math.nan])

    assert found == [math.inf, None]
    with pytest.raises(RowError, match="an infinite number"):
        json_value(found[0])


def shares(rows: Iterator[Row], source: Any) -> list[float]:
    """What the source says it has read, row by row."""
    return [source.share_read for _ in rows]


@pytest.mark.parametrize(
    "rows", [[{"id": number} for number in range(4)], pd.DataFrame({"id": range(4)})], ids=["list", "frame"]
)
def test_share_that_was_read_is_counted_in_rows(rows: Any) -> None:
    """A reading begun again begins at nothing."""
    source = memory_source(rows)
    assert source.share_read == 0.0

    for _ in range(2):
        assert shares(source.rows(required=["id"]), source) == [0.25, 0.5, 0.75, 1.0]
    source.rows(required=["id"])
    assert source.share_read == 0.0


@pytest.mark.parametrize("rows", [[], pd.DataFrame()], ids=["list", "frame"])
def test_empty_rows_are_read_as_a_whole(rows: Any) -> None:
    """There is nothing left to read."""
    assert memory_source(rows).share_read == 1.0


def test_share_of_an_iterable_without_a_length_is_unknown() -> None:
    """None, rather than a guess."""

    class Endless:
        def __iter__(self) -> Iterator[dict[str, int]]:
            return iter([{"id": 1}])

    source = ListSource(Endless())

    assert shares(source.rows(required=["id"]), source) == [None]
