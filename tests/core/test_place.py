"""A row's place, asked of the pure rules: no database, no Halo."""

from typing import Any

import pytest

from halo_provider.delivery.place import End, Send, Wait, follow, place_of
from halo_provider.delivery.prepare import PreparedRow
from halo_provider.exceptions import RowError
from halo_provider.ledger.rules import Change, Claim, ClaimResult, Doubt, KnownRow
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.sources.rows import Row
from halo_provider.submission import Submission, User
from tests.core.deliveries import NOTE, note

CANCELLATION = Submission(name="cancellation", key="id", user=User(id="user"), message="{text}", follows=("note", "id"))
BAD = RowError("the message is empty", column="text")


def prepared(**values: Any) -> PreparedRow:
    """A row that was read and rendered."""
    row = note("1") | values
    return PreparedRow(Row(1, row), "1", submission=NOTE.render(row, row_key="1"))


def unusable() -> PreparedRow:
    """A row with a key that cannot become a request."""
    return PreparedRow(Row(1, {}), "1", error=BAD)


def known(status: LedgerStatus, *, session_id: str | None = None) -> KnownRow:
    """A row as the ledger has it."""
    values = dict.fromkeys(KnownRow._fields) | {"row_key": "1", "status": status, "session_id": session_id}
    return KnownRow(**values)


@pytest.mark.parametrize(
    ("claim", "status"),
    [
        (Claim(ClaimResult.DELIVERED, session_id="s"), RowStatus.ALREADY_DELIVERED),
        (Claim(ClaimResult.REJECTED, error="Halo answered 422"), RowStatus.REJECTED),
        (Claim(ClaimResult.IN_DOUBT), RowStatus.IN_DOUBT),
        (None, RowStatus.NOT_ATTEMPTED),
    ],
)
def test_answer_of_the_ledger_can_be_the_end_of_a_row(claim: Claim | None, status: RowStatus) -> None:
    """Delivered, rejected and held rows are not sent; nor is any row while the ledger cannot be asked."""
    place = place_of(prepared(), claim)

    assert isinstance(place, End)
    assert place.status is status
    assert (place.error is None) == (status is RowStatus.ALREADY_DELIVERED)


def test_claimed_row_is_sent_and_keeps_its_doubt() -> None:
    """Whoever sends it has to know that Halo may have it already."""
    row = prepared()
    doubt = Doubt(None, "user-1", "a" * 64, "b" * 64, None, None)

    assert place_of(row, Claim(ClaimResult.CLAIMED)) == Send(row.submission)
    assert place_of(row, Claim(ClaimResult.CLAIMED, doubt=doubt)) == Send(row.submission, doubt=doubt)


def test_row_of_another_run_waits() -> None:
    """Its lease is live: only that run may send it now. A follow-up keeps its change."""
    row, change = prepared(), Change("1", 2, "hash")

    assert place_of(row, Claim(ClaimResult.BUSY)) == Wait(row.submission)
    assert place_of(row, Claim(ClaimResult.BUSY), change=change) == Wait(row.submission, change)


@pytest.mark.parametrize("result", [*ClaimResult, None])
def test_row_that_cannot_become_a_request_is_rejected_unless_it_was_delivered(result: ClaimResult | None) -> None:
    """A delivered row that is spoilt in a later export stays delivered."""
    place = place_of(unusable(), Claim(result) if result else None)

    if result is ClaimResult.DELIVERED:
        assert place == End(RowStatus.ALREADY_DELIVERED)
    else:
        assert place == End(RowStatus.REJECTED, BAD)


@pytest.mark.parametrize("result", [*ClaimResult, None])
def test_duplicate_is_a_duplicate_whatever_the_ledger_says(result: ClaimResult | None) -> None:
    """The first row with its key has the place."""
    assert place_of(
        PreparedRow(Row(2, {}), "1", duplicate=True, is_first=False), Claim(result) if result else None
    ) == End(RowStatus.DUPLICATE)


def test_row_goes_into_the_session_of_the_row_it_follows() -> None:
    """The cancellation continues the application's conversation."""
    row = follow(prepared(), known(LedgerStatus.DELIVERED, session_id="s-1"), submission=CANCELLATION)

    assert row.submission is not None
    assert row.submission.request.session_id == "s-1"


@pytest.mark.parametrize("status", [LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT])
def test_row_waits_until_the_row_it_follows_is_delivered(status: LedgerStatus) -> None:
    """It is not attempted in this run; the reason names what it waits for."""
    place = place_of(follow(prepared(), known(status), submission=CANCELLATION), None)

    assert isinstance(place, End)
    assert place.status is RowStatus.NOT_ATTEMPTED
    assert "note" in str(place.error)


@pytest.mark.parametrize("followed", [None, known(LedgerStatus.REJECTED)])
def test_row_that_follows_nothing_ends_as_the_submission_says(followed: KnownRow | None) -> None:
    """follows_missing decides: rejected, or sent into a session of its own."""
    rejecting = CANCELLATION.model_copy(update={"follows_missing": "reject"})
    sending = CANCELLATION.model_copy(update={"follows_missing": "new"})

    rejected = place_of(follow(prepared(), followed, submission=rejecting), None)
    sent = place_of(follow(prepared(), followed, submission=sending), Claim(ClaimResult.CLAIMED))

    assert isinstance(rejected, End)
    assert (rejected.status, rejected.error and rejected.error.column) == (RowStatus.REJECTED, "id")
    assert isinstance(sent, Send)
