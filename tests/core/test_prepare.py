"""Rows under their keys: read in batches, checked for repetition, rendered."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from halo_provider.delivery.place import candidate_of
from halo_provider.delivery.prepare import PreparedRow, Reader, SeenKeys, SeenRow
from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row
from tests.core.deliveries import NOTE, note, notes
from tests.core.sources import BrokenSource


def read_all(reader: Reader) -> list[list[PreparedRow]]:
    """Every batch; the reader is closed."""
    batches = []
    while batch := reader.next_batch():
        batches.append(batch)
    reader.close()
    return batches


def reader_of(rows: Any, *, batch_size: int = 500) -> Reader:
    """A reader of notes."""
    return Reader(rows if hasattr(rows, "rows") else ListSource(rows), NOTE, batch_size=batch_size)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (4, [4]), (5, [5]), (6, [5, 1]), (10, [5, 5])])
def test_rows_come_in_batches_in_the_order_of_the_source(count: int, sizes: list[int]) -> None:
    """Full ones, and what is left over; nothing at the end."""
    batches = read_all(reader_of(notes(count), batch_size=5))

    assert [len(batch) for batch in batches] == sizes
    assert [one.row_key for batch in batches for one in batch] == [str(number) for number in range(count)]


def test_good_row_is_rendered_under_its_key() -> None:
    """The request, its user and its hash are there, and the row itself."""
    ((prepared,),) = read_all(reader_of([note(" a ", user="user", text="Hello.")]))

    assert (prepared.row_key, prepared.duplicate, prepared.error, prepared.is_candidate) == ("a", False, None, True)
    assert prepared.submission is not None
    assert (prepared.submission.user_id, prepared.submission.request.message) == ("user", "Hello.")
    assert prepared.row.values["text"] == "Hello."
    candidate = candidate_of(prepared)
    assert (candidate.row_key, candidate.user_id, candidate.error) == ("a", "user", None)
    assert candidate.payload_hash == prepared.submission.payload_hash


@pytest.mark.parametrize("batch_size", [1, 500])
def test_key_that_was_met_before_is_a_duplicate(batch_size: int) -> None:
    """With the same content, in the same batch or in a later one; keys are trimmed, and case counts."""
    rows = [note("a"), note("a"), note("A", user="user-a"), note(" a", user="user-a")]

    prepared_rows = [one for batch in read_all(reader_of(rows, batch_size=batch_size)) for one in batch]

    assert [one.duplicate for one in prepared_rows] == [False, True, False, True]
    assert [one.is_candidate for one in prepared_rows] == [True, False, True, False]


@pytest.mark.parametrize("batch_size", [1, 500])
def test_key_that_was_met_before_with_other_content_is_rejected(batch_size: int) -> None:
    """The reason names both rows, the key and the remedy; also where the first row is bad."""
    rows = [note("a"), note("b"), note("a", text="Another text."), note("c", text=""), note("c"), note("c", text="")]

    prepared_rows = [one for batch in read_all(reader_of(rows, batch_size=batch_size)) for one in batch]

    assert [one.is_candidate for one in prepared_rows] == [True, True, False, True, False, False]
    assert not any(one.duplicate for one in prepared_rows)
    assert "rows 1 and 3 have the same key 'a'" in str(prepared_rows[2].error)
    assert "on_change='follow_up'" in str(prepared_rows[2].error)
    assert "rows 4 and 5 have the same key 'c'" in str(prepared_rows[4].error)
    assert "column 'text'" in str(prepared_rows[5].error)


def test_second_content_of_a_key_may_follow_up_for_the_same_user() -> None:
    """It waits for the first; of another user it is rejected."""
    rows = [note("a"), note("a", text="Another text."), note("a", user="somebody else")]

    ((first, second, third),) = read_all(Reader(ListSource(rows), NOTE, batch_size=500, follows_up=True))

    assert (first.repeats, second.repeats, third.repeats) == (None, "1", None)
    assert isinstance(third.error, RowError)


def test_bad_row_keeps_its_key_where_it_has_one() -> None:
    """With a key the ledger can remember it; without one only the rejects file can."""
    ((no_key, no_text, no_row),) = read_all(reader_of([note(""), note("a", text=""), "no row"]))

    assert (no_key.row_key, no_key.is_candidate) == (None, False)
    assert (no_row.row_key, no_row.is_candidate) == (None, False)
    assert (no_text.row_key, no_text.is_candidate) == ("a", True)
    assert all(isinstance(one.error, RowError) for one in (no_key, no_text, no_row))
    assert candidate_of(no_text).error == str(no_text.error)


def test_row_without_a_key_is_no_duplicate_of_another() -> None:
    """Each is bad for itself."""
    ((first, second),) = read_all(reader_of([note(""), note("")]))

    assert (first.duplicate, second.duplicate) == (False, False)


@pytest.mark.parametrize(("good", "sizes"), [(0, []), (2, [2]), (3, [3]), (4, [3, 1])])
def test_rows_before_an_error_of_the_source_come_first(good: int, sizes: list[int]) -> None:
    """None of them is lost, and the error comes when they are through, however often it is asked for."""
    reader = reader_of(BrokenSource(notes(good)), batch_size=3)

    assert [len(reader.next_batch()) for _ in sizes] == sizes
    for _ in range(2):
        with pytest.raises(SourceError, match="middle of a line"):
            reader.next_batch()


def test_error_of_a_source_is_raised_when_it_is_read_and_not_before() -> None:
    """Not when the reader is made, where nobody accounts for it."""

    class Refusing(ListSource):
        def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
            raise SourceError(f"there is no column {required[-1]!r}")

    reader = reader_of(Refusing([]))

    with pytest.raises(SourceError, match="no column 'text'"):
        reader.next_batch()


def test_closing_the_reader_closes_the_source() -> None:
    """A file that was read in part does not stay open."""
    source = BrokenSource(notes(10))
    reader = reader_of(source, batch_size=3)
    reader.next_batch()

    reader.close()

    assert source.closed


def test_seen_keys_find_every_repeated_key_among_thousands() -> None:
    """Beyond what a test can hold in mind."""
    seen = SeenKeys()

    keys = [f"{number}é" for number in range(10_000)]

    def rows(keys: Sequence[str], number: int) -> dict[str, SeenRow]:
        return dict.fromkeys(keys, SeenRow(str(number), "hash", None))

    assert seen.add(rows(keys, 1)) == {}
    assert seen.add(rows([*keys[:3], "another"], 2)) == rows(keys[:3], 1)
    assert seen.add(rows(["another"], 3)) == rows(["another"], 2)
    seen.close()
