"""What becomes of a cell: as JSON, as text in a message, as an identifier and as part of a key."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halo_provider.exceptions import RowError
from halo_provider.submission import MAX_ROW_KEY, MAX_ROW_KEY_BYTES, Submission, identifier, json_value, text

relaxed = settings(deadline=None)

EXAMPLE_UUID = UUID("12345678-1234-5678-1234-567812345678")
DICT_AS_TEXT = '{"a":1.5,"2":"2026-01-02"}'
SURROGATE = "half an emoji \ud83d"


class Plan(StrEnum):
    """A text column of few values, as an ORM may give it."""

    PRO = "pro"


class Shade(Enum):
    """Not text."""

    RED = 1


def id_of(value: Any) -> str:
    """The identifier a cell of this value makes."""
    return identifier({"column": value}, "column")


@pytest.mark.parametrize(
    ("value", "as_json", "as_text", "as_id"),
    [
        (None, None, "", ""),
        ("", "", "", ""),
        (" Ada ", " Ada ", " Ada ", "Ada"),
        ("007", "007", "007", "007"),
        ("123.0", "123.0", "123.0", "123.0"),
        ("null", "null", "null", "null"),
        ("NA", "NA", "NA", "NA"),
        ("Zoë ✓ 日本", "Zoë ✓ 日本", "Zoë ✓ 日本", "Zoë ✓ 日本"),
        (True, True, "true", "true"),
        (False, False, "false", "false"),
        (0, 0, "0", "0"),
        (-17, -17, "-17", "-17"),
        (2**63, 2**63, "9223372036854775808", "9223372036854775808"),
        (123.0, 123.0, "123.0", "123"),
        (-0.0, -0.0, "-0.0", "0"),
        (1e15, 1e15, "1000000000000000.0", "1000000000000000"),
        (0.1, 0.1, "0.1", "0.1"),
        (math.nan, None, "", ""),
        (Decimal(123), 123, "123", "123"),
        (Decimal("123.00"), 123, "123.00", "123"),
        (Decimal("1E+3"), 1000, "1000", "1000"),
        (Decimal("49.90"), 49.9, "49.90", "49.90"),
        (Decimal("0.1"), 0.1, "0.1", "0.1"),
        (Decimal(2**53 + 1), *["9007199254740993"] * 3),
        (Decimal("0.1000000000000000000001"), "0.1000000000000000000001", *["0.1000000000000000000001"] * 2),
        (Decimal("NaN"), None, "", ""),
        (date(2026, 11, 22), "2026-11-22", "2026-11-22", "2026-11-22"),
        (datetime(2026, 11, 22, 9, 30, tzinfo=UTC), *["2026-11-22T09:30:00+00:00"] * 3),
        (datetime(2026, 11, 22, 9, 30, 0, 5), *["2026-11-22T09:30:00.000005"] * 3),  # noqa: DTZ001 -- databases give it
        (time(9, 30), "09:30:00", "09:30:00", "09:30:00"),
        (timedelta(days=1, seconds=5), *["1 day, 0:00:05"] * 3),
        (EXAMPLE_UUID, *[str(EXAMPLE_UUID)] * 3),
        (Plan.PRO, "pro", "pro", "pro"),
        ([1, "a", None], [1, "a", None], '[1,"a",null]', '[1,"a",null]'),
        ((1, 2), [1, 2], "[1,2]", "[1,2]"),
        (
            {"a": Decimal("1.5"), 2: date(2026, 1, 2)},
            {"a": 1.5, "2": "2026-01-02"},
            *['{"a":1.5,"2":"2026-01-02"}'] * 2,
        ),
        ({"b", "a", "c"}, ["a", "b", "c"], '["a","b","c"]', '["a","b","c"]'),
        (frozenset({10, 9}), [10, 9], "[10,9]", "[10,9]"),
        (pd.Timestamp("2026-11-22 09:30"), *["2026-11-22T09:30:00"] * 3),
        (pd.NaT, None, "", ""),
        (pd.NA, None, "", ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, set | frozenset) else ascii(value)[:40],
)
def test_value_of_a_database_has_a_json_a_text_and_an_id_form(
    value: Any, as_json: Any, as_text: str, as_id: str
) -> None:
    """In the context and in traits as JSON, in messages as text, in keys and ids trimmed and without a ".0"."""
    assert json_value(value) == as_json
    assert type(json_value(value)) is type(as_json) or isinstance(value, StrEnum)
    assert text(value) == as_text
    assert id_of(value) == as_id


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"bytes", "binary values cannot be sent"),
        (bytearray(b"bytes"), "binary values cannot be sent"),
        (memoryview(b"bytes"), "binary values cannot be sent"),
        (math.inf, "an infinite number"),
        (-math.inf, "an infinite number"),
        (Decimal("Infinity"), "an infinite number"),
        (Decimal("-Infinity"), "an infinite number"),
        (SURROGATE, "not valid Unicode"),
        ([SURROGATE], "not valid Unicode"),
        ({SURROGATE: 1}, "not valid Unicode"),
        ([1, {"a": [b"bytes"]}], "binary values cannot be sent"),
        (Shade.RED, "a value of type Shade cannot be sent; cast it to text"),
        (1 + 2j, "a value of type complex cannot be sent"),
        (object(), "a value of type object cannot be sent"),
    ],
    ids=lambda value: type(value).__name__ if " at 0x" in repr(value) else ascii(value)[:40],
)
def test_value_that_json_cannot_hold_rejects_the_row(value: Any, reason: str) -> None:
    """In every place, with the column, the remedy, and not the value."""
    for convert in (json_value, text):
        with pytest.raises(RowError, match=reason):
            convert(value)
    with pytest.raises(RowError, match=reason) as caught:
        id_of(value)
    assert caught.value.column == "column"


@pytest.mark.parametrize("value", ["a\nb", "a\tb", "a\x00b", "a\x7fb", "a\u200bb", "a\u2028b", "a\rb"])
def test_control_characters_in_an_id_are_refused(value: str) -> None:
    """They are never meant, and two keys that look the same would be different rows."""
    with pytest.raises(RowError, match="control characters or line breaks; clean the value"):
        id_of(value)


def test_line_break_around_an_id_is_trimmed() -> None:
    """What surrounds an id is no part of it."""
    assert id_of("\r\n A-1\t\n") == "A-1"


plain_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_infinity=False)
    | st.decimals(allow_infinity=False).filter(lambda number: not number.is_snan())
    | st.text()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
)
values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@relaxed
@given(values)
def test_every_value_becomes_standard_json(value: Any) -> None:
    """No NaN, nothing lost on the way through a strict parser, and stable when done twice."""
    converted = json_value(value)

    assert json.loads(json.dumps(converted, allow_nan=False)) == converted
    assert json_value(converted) == converted


@relaxed
@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_decimal_keeps_its_exact_value(number: Decimal) -> None:
    """Whether as a number or as text, it is the same number, exactly."""
    converted = json_value(number)

    assert Decimal(repr(converted) if isinstance(converted, float) else converted) == number
    assert Decimal(text(number)) == number


@relaxed
@given(st.text())
def test_text_value_is_unchanged(value: str) -> None:
    """Nothing is trimmed, escaped or normalised."""
    assert text(value) == json_value(value) == value


@relaxed
@given(plain_values)
def test_id_is_trimmed_printable_and_the_same_when_read_again(value: Any) -> None:
    """An id that went through a rejects file, or through another system, is still the same id."""
    try:
        found = id_of(value)
    except RowError:
        return

    assert found == found.strip()
    assert found.isprintable()
    assert id_of(found) == found


@relaxed
@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_whole_number_is_one_id_in_every_type(number: int) -> None:
    """In pandas 123 becomes 123.0 as soon as a column has a gap: the key must not change."""
    assert {id_of(number), id_of(float(number)), id_of(Decimal(number)), id_of(str(number))} == {str(number)}


def keyed(*columns: str) -> Submission:
    """A submission with this key."""
    return Submission(name="keyed", key=list(columns), message="m")


parts = st.text("ab|\\ 1", min_size=1, max_size=6).map(str.strip).filter(bool)


@relaxed
@given(st.tuples(parts, parts, parts), st.tuples(parts, parts, parts))
def test_different_rows_never_share_a_composite_key(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Not even with separators and escapes in their values."""
    submission = keyed("a", "b", "c")

    def key_of(values: tuple[str, ...]) -> str:
        return submission.row_key(dict(zip("abc", values, strict=True)))

    assert (key_of(one) == key_of(other)) is (one == other)


def test_composite_key_reads_well() -> None:
    """A person recognises the parts in the ledger."""
    row = {"order": 17.0, "line": " 3 ", "note": "a|b\\c"}

    assert keyed("order", "line").row_key(row) == "17|3"
    assert keyed("line", "note").row_key(row) == "3|a\\|b\\\\c"
    assert keyed("note").row_key(row) == "a|b\\c"


@pytest.mark.parametrize("value", [None, "", "  ", math.nan, pd.NaT])
@pytest.mark.parametrize("column", ["a", "b"])
def test_empty_key_rejects_the_row(column: str, value: Any) -> None:
    """A row without its whole key could not be told from another one, and might be sent twice."""
    with pytest.raises(RowError, match="key is empty") as caught:
        keyed("a", "b").row_key({"a": "1", "b": "2", column: value})

    assert caught.value.column == column


def test_key_is_as_long_as_the_ledger_can_hold() -> None:
    """The longest one passes; one more character is told with its length."""
    submission = keyed("a")

    assert len(submission.row_key({"a": "x" * MAX_ROW_KEY})) == MAX_ROW_KEY
    with pytest.raises(RowError, match=f"key has {MAX_ROW_KEY + 1} characters, at most {MAX_ROW_KEY} fit") as caught:
        submission.row_key({"a": "x" * (MAX_ROW_KEY + 1)})
    assert caught.value.column == "a"


def test_key_has_as_many_bytes_as_the_ledger_can_hold() -> None:
    """Characters of four bytes fill an index of PostgreSQL's before there are 480 of them."""
    submission = keyed("a", "b")
    longest = "🎫" * (MAX_ROW_KEY_BYTES // 4 - 1) + "ab"

    assert len(submission.row_key({"a": longest, "b": "x"}).encode()) == MAX_ROW_KEY_BYTES
    with pytest.raises(
        RowError, match=f"key has {MAX_ROW_KEY_BYTES + 1:,} bytes in UTF-8, at most {MAX_ROW_KEY_BYTES:,} fit; take a"
    ) as caught:
        submission.row_key({"a": longest, "b": "xy"})
    assert caught.value.column == "a"


@relaxed
@given(st.dictionaries(st.sampled_from(["a", "b"]), values, min_size=2))
def test_key_is_found_or_the_row_is_rejected(row: Mapping[str, Any]) -> None:
    """No value a row may hold raises anything else."""
    with suppress(RowError):
        assert 0 < len(keyed("a", "b").row_key(row)) <= MAX_ROW_KEY
