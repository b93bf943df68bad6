"""One user's rows: never two in flight, always in the order of the source, and none before an earlier one."""

import asyncio
import random
from itertools import groupby, pairwise
from typing import Any

import pytest

from halo_provider.delivery.stop import Stop
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Chat, Fault, Simulator
from halo_provider.submission import Submission
from tests.core.deliveries import Deliveries, Run, note, until

UNAVAILABLE = Fault.status(503, headers={"Retry-After": "0"})
FAULTS = [
    None,
    Fault.slow(0.01),
    Fault.rate_limited(retry_after=0),
    UNAVAILABLE,
    Fault.status(500, accepted=True),
    Fault.drop_before_acceptance(),
    Fault.drop_after_acceptance(),
    Fault.half_answer(),
    Fault.missing_session_id(),
]


def rows_of_users(*, users: int, rows: int) -> list[dict[str, Any]]:
    """Rows whose users take turns; a row's text is its number among its user's."""
    return [
        note(f"{user}-{number}", user=f"user-{user}", text=str(number))
        for number in range(rows)
        for user in range(users)
    ]


def chats_by_user(halo: Simulator) -> list[list[Chat]]:
    """Every user's chats in the order in which Halo accepted them."""
    by_user = sorted(halo.chats, key=lambda chat: (chat.user_id, chat.started))
    return [list(chats) for _, chats in groupby(by_user, key=lambda chat: chat.user_id)]


def assert_in_order(halo: Simulator, *, users: int, rows: int) -> None:
    """Each user's rows came one after the other; one that was in doubt may have come again, but at once."""
    users_chats = chats_by_user(halo)
    assert len(users_chats) == users
    for chats in users_chats:
        assert all(first.ended <= second.started for first, second in pairwise(chats))
        assert [text for text, _ in groupby(chat.message for chat in chats)] == [str(number) for number in range(rows)]


@pytest.mark.parametrize("batch_size", [7, 500])
def test_rows_of_a_user_never_overlap_and_keep_their_order(
    halo: Simulator, deliveries: Deliveries, batch_size: int
) -> None:
    """With room for all of them at once, in one batch or over many."""
    halo.always("/chat", Fault.slow(0.01))

    run = deliveries.run(rows_of_users(users=5, rows=8), batch_size=batch_size)

    assert run.counts == {RowStatus.DELIVERED: 40}
    assert len(halo.chats) == 40
    assert 1 < halo.max_concurrency <= 5
    assert_in_order(halo, users=5, rows=8)


@pytest.mark.parametrize("seed", range(3))
def test_order_holds_through_retries(halo: Simulator, deliveries: Deliveries, seed: int) -> None:
    """Whatever goes wrong in between, a user's next row waits for the one before it."""
    choice = random.Random(seed)
    halo.script(path="/chat", faults=choice.choices(FAULTS, k=60))

    run = deliveries.run(rows_of_users(users=4, rows=10), max_attempts=50, batch_size=8)

    assert run.counts == {RowStatus.DELIVERED: 40}
    assert_in_order(halo, users=4, rows=10)


def test_hanging_request_of_one_user_does_not_delay_other_users(halo: Simulator, deliveries: Deliveries) -> None:
    """While one request hangs, everybody else's rows are delivered."""
    halo.script_for(user_id="user-0", faults=[Fault.silence(accepted=True)])
    stop = Stop()

    async def deliver() -> Run:
        delivering = asyncio.create_task(deliveries.deliver(rows_of_users(users=4, rows=3), stop=stop))
        await until(
            lambda: (
                len(halo.chats) == 10
                and sum(outcome.status is RowStatus.DELIVERED for outcome in deliveries.outcomes) == 9
            )
        )
        stop.request("the others are done", grace=0.0)
        return await delivering

    assert asyncio.run(deliver()).counts == {RowStatus.DELIVERED: 9, RowStatus.IN_DOUBT: 1, RowStatus.NOT_ATTEMPTED: 2}


@pytest.mark.parametrize("batch_size", [1, 500])
def test_later_rows_are_held_back_when_an_earlier_one_failed(
    halo: Simulator, deliveries: Deliveries, batch_size: int
) -> None:
    """A cancellation must not overtake its application; the next run sends both, in order."""
    halo.script_for(user_id="user-0", faults=[None, UNAVAILABLE, UNAVAILABLE])

    first = deliveries.run(rows_of_users(users=2, rows=4), max_attempts=2, batch_size=batch_size)

    assert first.counts == {RowStatus.DELIVERED: 5, RowStatus.FAILED: 1, RowStatus.NOT_ATTEMPTED: 2}
    assert [first.of(f"0-{number}").status for number in range(4)] == [
        RowStatus.DELIVERED,
        RowStatus.FAILED,
        RowStatus.NOT_ATTEMPTED,
        RowStatus.NOT_ATTEMPTED,
    ]
    assert deliveries.statuses()["0-2"] == LedgerStatus.PENDING
    assert deliveries.run(rows_of_users(users=2, rows=4)).counts == {
        RowStatus.ALREADY_DELIVERED: 5,
        RowStatus.DELIVERED: 3,
    }
    assert_in_order(halo, users=2, rows=4)


def test_later_rows_are_held_back_while_an_earlier_one_is_in_doubt(halo: Simulator, deliveries: Deliveries) -> None:
    """With hold the doubt holds them, in this run and in the next, until it is decided."""
    halo.script_for(user_id="user-0", faults=[Fault.drop_after_acceptance()])
    rows = rows_of_users(users=1, rows=3)

    for _ in range(2):
        assert deliveries.run(rows, on_in_doubt="hold").counts == {RowStatus.IN_DOUBT: 1, RowStatus.NOT_ATTEMPTED: 2}
    assert len(halo.requests) == 1

    assert deliveries.run(rows).counts == {RowStatus.DELIVERED: 3}
    assert_in_order(halo, users=1, rows=3)


def test_rejected_row_does_not_hold_back_later_rows_of_its_user(halo: Simulator, deliveries: Deliveries) -> None:
    """It will never come, so there is nothing to wait for."""
    halo.script_for(user_id="user-0", faults=[Fault.status(422)])

    run = deliveries.run(rows_of_users(users=1, rows=3))

    assert run.counts == {RowStatus.REJECTED: 1, RowStatus.DELIVERED: 2}
    assert [chat.message for chat in halo.chats] == ["1", "2"]


def test_anonymous_rows_do_not_wait_for_each_other(halo: Simulator, deliveries: Deliveries) -> None:
    """Two unknown people are not one user."""
    halo.always("/chat", Fault.slow(0.2))
    submission = Submission(name="note", key="id", message="{text}")

    deliveries.run(rows_of_users(users=1, rows=6), submission=submission)

    assert halo.max_concurrency == 6
