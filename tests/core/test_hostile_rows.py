"""Rows and sources whose own code raises: the row is rejected, the source ends, and nothing else escapes."""

import io
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest

from halo_provider.delivery.prepare import Reader
from halo_provider.exceptions import RowError, SourceError
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.csv_file import CsvOptions
from halo_provider.sources.frames import FrameSource
from halo_provider.sources.lists import ListSource, memory_source
from halo_provider.sources.rejects import RejectsFile
from halo_provider.sources.rows import Row
from halo_provider.submission import MAX_DEPTH, MAX_ITEMS, Entry, Submission, User, identifier, json_value, text
from tests.core.deliveries import Deliveries, note, notes

WHOLE_ROW = Submission(
    name="note", key="id", user=User(id="user"), message="Note", context={"row": Entry(label="Row", fields="*")}
)


class Hostile(Exception):  # noqa: N818 -- nobody's error
    """What no code of this package knows."""


def nested(levels: int) -> Any:
    """Lists inside lists."""
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def cyclic_list() -> Any:
    """A list that contains itself, twice."""
    value: list[Any] = []
    value += [value, value]
    return value


def cyclic_dict() -> Any:
    """A dict that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def many_times() -> Any:
    """Forty lists in memory, which are a million million items in JSON."""
    value: Any = ["x"]
    for _ in range(40):
        value = [value, value]
    return value


class Raising(Mapping[str, Any]):
    """A mapping that raises where it is read."""

    def __init__(self, values: dict[str, Any], *, at: str) -> None:
        self._values = values
        self._at = at

    def __getitem__(self, name: str) -> Any:
        if name == self._at:
            raise Hostile("Ada Lovelace")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        for name in self._values:
            yield name
            if self._at == "iteration":
                raise Hostile("Ada Lovelace")

    def __len__(self) -> int:
        return len(self._values)


class Zone(tzinfo):
    """A zone that cannot say how far it is from UTC."""

    def utcoffset(self, _moment: datetime | None) -> Any:
        """Raise."""
        raise Hostile("Ada Lovelace")


class Numpyish:
    """Looks like an array."""

    __module__ = "numpy"

    def tolist(self) -> Any:
        """Raise."""
        raise Hostile("Ada Lovelace")

    def __repr__(self) -> str:
        raise Hostile("Ada Lovelace")


HOSTILE_VALUES: dict[str, Callable[[], Any]] = {
    "cyclic list": cyclic_list,
    "cyclic dict": cyclic_dict,
    "nested too deep": lambda: nested(MAX_DEPTH + 1),
    "nested far too deep": lambda: nested(100_000),
    "one list many times": many_times,
    "too many items": lambda: [[0] * 1_000] * (MAX_ITEMS // 1_000 + 1),
    "mapping that raises": lambda: Raising({"a": 1}, at="a"),
    "zone that raises": lambda: datetime(2026, 11, 22, tzinfo=Zone()),
    "array that raises": Numpyish,
    "object": object,
}
each_hostile_value = pytest.mark.parametrize("make", HOSTILE_VALUES.values(), ids=HOSTILE_VALUES)


@each_hostile_value
def test_hostile_value_is_an_error_of_its_row(make: Callable[[], Any]) -> None:
    """Wherever it stands: in the key, the user, the message or the context; the error names the column only."""
    for submission, column in (
        (WHOLE_ROW, "note"),
        (Submission(name="note", key="id", message="{note}"), "note"),
        (Submission(name="note", key="note", message="Note"), "note"),
        (Submission(name="note", key="id", user=User(id="note"), message="Note"), "note"),
        (Submission(name="note", key="id", message="Note", custom_fields={"note": "note"}), "note"),
    ):
        row = {"id": "1", "user": "u", "note": make()}
        with pytest.raises(RowError) as caught:
            submission.render(row, row_key=submission.row_key(row))
        assert caught.value.column == column
        assert "Ada" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("convert", [json_value, text, lambda value: identifier({"x": value}, "x")])
@pytest.mark.parametrize("number", ["NaN", "sNaN", "-sNaN", "sNaN123"])
def test_signaling_nan_is_a_missing_value(convert: Callable[[Any], Any], number: str) -> None:
    """As every other NaN, though it raises where it is compared."""
    assert convert(Decimal(number)) in {None, ""}


def test_signaling_nan_as_a_key_rejects_its_row() -> None:
    """There is no key."""
    with pytest.raises(RowError, match="the row's key is empty"):
        WHOLE_ROW.row_key({"id": Decimal("sNaN")})


@pytest.mark.parametrize("number", ["1E+1000000000", "-1E-1000000000"])
def test_exponent_is_not_written_out_beyond_measure(number: str) -> None:
    """A gigabyte of zeros helps nobody; the number keeps its worth."""
    assert text(Decimal(number)) == json_value(Decimal(number)) == number


def test_value_within_the_limits_is_sent() -> None:
    """As deep, and as long, as the limits say."""
    assert json_value(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    assert len(json_value([0] * MAX_ITEMS)) == MAX_ITEMS


@pytest.mark.parametrize("at", ["note", "iteration"])
def test_mapping_that_raises_is_rejected_alone(at: str) -> None:
    """By its number and, where it is known, the column; with what could be read of it."""
    rows = [note("1"), Raising({"id": "2", "note": "x"}, at=at), note("3")]

    found = list(ListSource(rows).rows(required=["id"]))

    assert [row.error is None for row in found] == [True, False, True]
    assert found[1].error is not None
    assert found[1].error.reason == "row 2 cannot be read, its own code raised Hostile; make a dict of it"
    assert found[1].error.column == ("note" if at == "note" else None)
    assert found[1].values == {"id": "2"}


def test_names_of_columns_in_dicts_become_text() -> None:
    """As those of a frame do; where two become the same, the row is rejected."""
    good, bad = ListSource([{7: "x", "id": "1"}, {7: "x", "7": "y"}]).rows(required=["7"])

    assert good == Row(1, {"7": "x", "id": "1"})
    assert str(bad.error) == "column '7': row 2 has two columns of this name"
    assert ListSource([{7: "x", "id": "1"}]).columns() == ["7", "id"]


class Broken:
    """Rows that raise after the second one."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from notes(2)
        raise Hostile("Ada Lovelace")


def broken_generator() -> Iterator[dict[str, Any]]:
    """The same, to be read once."""
    yield from Broken()


@pytest.mark.parametrize("make", [Broken, broken_generator])
def test_iterable_that_raises_ends_the_source_after_its_rows(make: Callable[[], Any]) -> None:
    """In every reading; the cause is kept, and its text is not part of the error."""
    source = ListSource(make())
    assert source.columns() == ["id", "user", "text"]

    for _ in range(2):
        rows = source.rows(required=["id"])
        assert [next(rows).number, next(rows).number] == [1, 2]
        with pytest.raises(SourceError) as caught:
            next(rows)
        assert str(caught.value) == "rows: reading on after row 2 raised Hostile"
        assert isinstance(caught.value.__cause__, Hostile)


def test_source_error_of_an_iterable_is_raised_as_it_is() -> None:
    """It says better what is wrong."""
    gone = SourceError("the table is gone")

    class Gone:
        def __iter__(self) -> Iterator[Any]:
            raise gone

    source = ListSource(Gone())

    for attempt in (source.columns, lambda: list(source.rows(required=[]))):
        with pytest.raises(SourceError) as caught:
            attempt()
        assert caught.value is gone


@each_hostile_value
def test_hostile_value_in_a_frame_rejects_its_row_alone(make: Callable[[], Any]) -> None:
    """Its neighbours in the slice are read, and what is missing in the column is None all the same, or sent as such."""
    values = pd.Series(["a", make(), None, Decimal("sNaN")], dtype=object)
    frame = pd.DataFrame({"id": ["1", "2", "3", "4"], "user": "u", "note": values})

    reader = Reader(FrameSource(frame), WHOLE_ROW, batch_size=10)
    prepared = reader.next_batch()

    assert [row.error is None for row in prepared] == [True, False, True, True]
    assert [row.submission.request.context["row"].value["note"] for row in prepared if row.submission] == [
        "a",
        None,
        None,
    ]


def test_frame_that_raises_ends_the_source() -> None:
    """Whatever its column's array raises."""

    class Unreadable(pd.DataFrame):
        @property
        def iloc(self) -> Any:
            raise Hostile("Ada Lovelace")

    with pytest.raises(SourceError, match="reading on after row 0 raised Hostile"):
        list(FrameSource(Unreadable({"id": [1]})).rows(required=[]))


@each_hostile_value
def test_hostile_value_stands_in_the_rejects_file_somehow(make: Callable[[], Any]) -> None:
    """Nothing that a value does may cost the row its line."""
    stream = io.BytesIO()
    file = RejectsFile(stream, columns=["id", "note"], options=CsvOptions())

    file.write(Row(1, {"id": "1", "note": make()}), RowError("wrong"))
    file.close()

    assert b"\r\n1," in stream.getvalue()
    assert stream.getvalue().endswith(b",1,,wrong\r\n")


def test_row_that_is_no_dict_and_cannot_be_shown_is_rejected() -> None:
    """By its type."""
    [row] = ListSource([Numpyish()]).rows(required=[])

    assert row.error is not None
    assert "row: <Numpyish" in str(row.error.detail)


def test_run_with_hostile_rows_delivers_the_others(deliveries: Deliveries) -> None:
    """Each hostile row is rejected, and none of its neighbours is in doubt."""
    hostile = [{**note(f"h{number}"), "text": make()} for number, make in enumerate(HOSTILE_VALUES.values())]

    run = deliveries.run(memory_source([note("1"), *hostile, Raising({"id": "2"}, at="id"), note("3")]))

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.REJECTED: len(HOSTILE_VALUES) + 1}
    assert run.report.error is None


def test_run_ends_in_order_where_its_source_raises(deliveries: Deliveries) -> None:
    """The rows that came before are accounted for, and the cause is kept."""

    def rows() -> Iterator[Any]:
        yield from notes(3)
        raise Hostile("Ada Lovelace")

    run = deliveries.run(memory_source(rows()))

    assert run.report.read == 3
    assert run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.NOT_ATTEMPTED}
    assert isinstance(run.report.error, SourceError)
    assert isinstance(run.report.error.__cause__, Hostile)
