"""One source for several workers: every row in exactly one share, and a user's rows together."""

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from halo_provider.exceptions import HaloConfigurationError, RowError, SourceError
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row
from halo_provider.sources.shards import Shard, ShardedSource
from halo_provider.submission import Submission
from tests.core.deliveries import NOTE, Deliveries, note, notes
from tests.core.sources import UnreadableSource

ANONYMOUS_NOTE = Submission(name="note", key="id", message="{text}")


def shares(rows: list[Any], *, count: int, submission: Submission = NOTE) -> list[list[Row]]:
    """What each of the shares yields."""
    return [
        list(
            ShardedSource(ListSource(rows), shard=Shard(index, count), submission=submission).rows(
                required=submission.columns
            )
        )
        for index in range(count)
    ]


def numbers(share: list[Row]) -> list[int]:
    """The places of a share's rows in the whole."""
    return [row.number for row in share]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_every_row_is_in_exactly_one_share(count: int) -> None:
    """Together the shares are the whole, however many there are."""
    found = Counter(number for share in shares(notes(200), count=count) for number in numbers(share))
    assert found == Counter(range(1, 201))


def test_rows_of_a_user_are_in_one_share_and_in_their_order() -> None:
    """Forty users with five rows each, far apart from one another."""
    rows = [note(f"{turn}-{number}", user=f"user-{number}") for turn in range(5) for number in range(40)]

    placed = shares(rows, count=8)

    users = [{row.values["user"] for row in share} for share in placed]
    assert sum(map(len, users)) == len(set.union(*users)) == 40
    assert all(numbers(share) == sorted(numbers(share)) for share in placed)


def test_shares_are_about_equal() -> None:
    """Of 8,000 users each of eight shares has a thousand, give or take a tenth."""
    assert all(900 < len(share) < 1100 for share in shares(notes(8_000), count=8))


def test_rows_without_users_go_by_their_keys() -> None:
    """An anonymous submission is spread all the same, and the same key always goes the same way."""
    placed = shares(notes(100), count=4, submission=ANONYMOUS_NOTE)
    again = shares(notes(100), count=4, submission=ANONYMOUS_NOTE)
    assert all(10 < len(share) < 40 for share in placed)
    assert list(map(numbers, placed)) == list(map(numbers, again))


def test_row_that_cannot_be_used_is_in_one_share_too() -> None:
    """No user, no key, no dict at all, half a character: somebody has to account for it."""
    rows = [note("a", user=" "), {"id": "", "user": "", "text": ""}, "no row", note("b", user="\ud800"), {"id": "c"}]
    found = [row for share in shares(rows, count=4) for row in share]
    assert sorted(numbers(found)) == [1, 2, 3, 4, 5]
    assert isinstance(next(row.error for row in found if row.number == 3), RowError)


def test_equal_user_ids_of_different_types_are_in_one_share() -> None:
    """A database's 42, a file's "42" and a spreadsheet's 42.0 are one user."""
    rows = [note("a", user=" 42 "), {**note("b"), "user": 42}, {**note("c"), "user": 42.0}]
    assert sorted(map(len, shares(rows, count=8))) == [0, 0, 0, 0, 0, 0, 0, 3]


def test_share_is_the_same_in_every_process() -> None:
    """Python's own hash of a text differs from process to process; two workers must agree."""
    program = (
        "from halo_provider.sources.shards import Shard; print([Shard(0, 4).takes(f'user-{n}') for n in range(64)])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert answers == {str([Shard(0, 4).takes(f"user-{number}") for number in range(64)])}


@pytest.mark.parametrize(
    ("text", "index", "count"),
    [("0/8", 0, 8), ("7/8", 7, 8), ("8/8", 0, 8), ("1/1", 0, 1), ("0/1", 0, 1), (" 3/8 ", 3, 8)],
)
def test_counting_may_start_at_zero_or_at_one(text: str, index: int, count: int) -> None:
    """From 0/8 to 7/8, and from 1/8 to 8/8, there are the same eight shares."""
    assert Shard.parse(text) == Shard(index, count)


@pytest.mark.parametrize("text", ["", "3", "3/", "/8", "9/8", "0/0", "-1/8", "1.5/8", "1/8/8", "a/b", "1 / 8", "1\\8"])
def test_malformed_shards_are_refused(text: str) -> None:
    """The error shows the value and an example."""
    with pytest.raises(HaloConfigurationError, match="'3/8'") as refused:
        Shard.parse(text)
    assert repr(text) in str(refused.value)


def test_share_is_described_as_its_source() -> None:
    """Description, columns and errors are those of the whole."""
    share = ShardedSource(ListSource(notes(3)), shard=Shard(0, 2), submission=NOTE)
    assert (share.description, share.columns()) == ("rows", ["id", "user", "text"])

    with pytest.raises(SourceError, match="the file is gone"):
        list(ShardedSource(UnreadableSource("the file is gone"), shard=Shard(0, 2), submission=NOTE).rows(required=[]))


def test_share_reads_the_whole_source() -> None:
    """What it skips counts too: how far it is, is how far its source is."""
    source = ListSource(notes(200))
    share = ShardedSource(source, shard=Shard(0, 4), submission=NOTE)
    assert share.share_read == 0.0

    for row in share.rows(required=NOTE.columns):
        assert share.share_read == source.share_read == row.number / 200
    assert share.share_read == 1.0


def test_shares_delivered_one_after_the_other_make_the_whole(deliveries: Deliveries) -> None:
    """Over one ledger, and a share delivered again sends nothing."""
    rows = notes(30)
    runs = [
        deliveries.run(ShardedSource(ListSource(rows), shard=Shard(index, 3), submission=NOTE))
        for index in (0, 1, 2, 1)
    ]
    read = [run.report.read for run in runs]
    assert (sum(read[:3]), read[1]) == (30, read[3])
    assert [run.report.requests for run in runs] == [*read[:3], 0]
    assert set(deliveries.statuses().values()) == {"delivered"}
