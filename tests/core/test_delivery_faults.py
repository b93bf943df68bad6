"""A delivery through whatever can go wrong with one attempt, on real sockets."""

import asyncio
import dataclasses
import socket
from typing import Any

import pytest

import halo_provider.delivery.breaker
import halo_provider.delivery.delivery
import halo_provider.delivery.pace
from halo_provider.delivery.refusals import MAX_ALONE, MAX_PAUSE
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloAuthenticationError,
    HaloPermissionError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloServerError,
)
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import ConcurrencyLimit, Fault, RefusedUsers, Simulator
from tests.core.deliveries import Deliveries, Run, note, notes, rows_in, until

LONG_AGO = "Wed, 21 Oct 2015 07:28:00 GMT"
NOT_ACCEPTED = {
    "429 with seconds": Fault.rate_limited(retry_after=0),
    "429 with a date": Fault.status(429, headers={"Retry-After": LONG_AGO}),
    "503 with seconds": Fault.status(503, headers={"Retry-After": "0"}),
    "503 with a date": Fault.status(503, headers={"Retry-After": LONG_AGO}),
}
DOUBTFUL = {
    "500": Fault.status(500),
    "500, accepted": Fault.status(500, accepted=True),
    "502": Fault.status(502, body="<html>"),
    "503": Fault.status(503),
    "504, accepted": Fault.status(504, accepted=True),
    "connection lost before acceptance": Fault.drop_before_acceptance(),
    "connection lost after acceptance": Fault.drop_after_acceptance(),
    "half an answer": Fault.half_answer(),
    "garbage": Fault.garbage(),
    "invalid JSON": Fault.invalid_json(),
    "no session_id": Fault.missing_session_id(),
    "silence": Fault.silence(accepted=False),
    "silence, accepted": Fault.silence(accepted=True),
}


def patience_with(fault: Fault) -> float:
    """Seconds for an attempt: few where silence is part of the test."""
    return 0.3 if fault.kind == "silence" else 10.0


def by_name(faults: dict[str, Fault]) -> Any:
    """Parametrise with faults under readable names."""
    return pytest.mark.parametrize("fault", list(faults.values()), ids=list(faults))


@by_name(NOT_ACCEPTED)
@pytest.mark.parametrize("on_in_doubt", ["resend", "hold"])
def test_refused_attempt_is_repeated_in_any_mode(
    halo: Simulator, deliveries: Deliveries, fault: Fault, on_in_doubt: str
) -> None:
    """Halo certainly did not take it, so the row reaches Halo once."""
    halo.script(path="/chat", faults=[fault, fault])

    run = deliveries.run([note("a")], on_in_doubt=on_in_doubt)

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert (run.of("a").attempts, run.report.requests, run.report.refused, len(halo.chats)) == (3, 3, 2, 1)
    assert rows_in(deliveries.ledger)["a"]["attempts"] == 3


@by_name(DOUBTFUL)
def test_doubtful_attempt_is_repeated_with_resend(halo: Simulator, deliveries: Deliveries, fault: Fault) -> None:
    """At least once: the row is delivered, and Halo has it twice only if it had taken the first attempt."""
    halo.script(path="/chat", faults=[fault])

    run = deliveries.run([note("a")], timeout=patience_with(fault))

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert run.report.requests == 2
    assert len(halo.chats) == 1 + sum(request.accepted for request in halo.requests[:1])
    assert run.of("a").session_id == halo.chats[-1].session_id


@by_name(DOUBTFUL)
def test_doubtful_attempt_is_never_repeated_with_hold(halo: Simulator, deliveries: Deliveries, fault: Fault) -> None:
    """At most once: the row stays in doubt, run after run, until somebody decides to send it again."""
    halo.script(path="/chat", faults=[fault])

    first = deliveries.run([note("a")], timeout=patience_with(fault), on_in_doubt="hold")
    second = deliveries.run([note("a")], on_in_doubt="hold")

    assert first.counts == second.counts == {RowStatus.IN_DOUBT: 1}
    assert (first.report.requests, second.report.requests, len(halo.requests)) == (1, 0, 1)
    assert deliveries.statuses() == {"a": LedgerStatus.IN_DOUBT}
    assert deliveries.run([note("a")], on_in_doubt="resend").counts == {RowStatus.DELIVERED: 1}


def test_row_in_doubt_after_all_attempts_stays_in_doubt(halo: Simulator, deliveries: Deliveries) -> None:
    """Within max_attempts; the last word Halo said is kept."""
    halo.script(path="/chat", faults=[Fault.status(502, body="bad gateway")] * 3)

    run = deliveries.run([note("a")], max_attempts=3)

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert len(halo.requests) == 3
    assert "502: bad gateway" in rows_in(deliveries.ledger)["a"]["error"]


def test_one_doubtful_attempt_leaves_the_row_in_doubt_whatever_the_others_say(
    halo: Simulator, deliveries: Deliveries
) -> None:
    """A certain refusal afterwards does not tell what became of the attempt before it."""
    halo.script(
        path="/chat", faults=[Fault.drop_after_acceptance(), Fault.status(503, headers={"Retry-After": "0"}), None]
    )

    assert deliveries.run([note("a")], max_attempts=2).counts == {RowStatus.IN_DOUBT: 1}
    assert deliveries.statuses() == {"a": LedgerStatus.IN_DOUBT}


def test_answer_without_a_session_id_is_kept_in_the_ledger(halo: Simulator, deliveries: Deliveries) -> None:
    """A 200 without a session_id is no delivery, but what it said helps to decide."""
    halo.script(path="/chat", faults=[Fault.missing_session_id()])

    deliveries.run([note("a")], on_in_doubt="hold")

    row = rows_in(deliveries.ledger)["a"]
    assert "session_id" in row["error"]
    assert "Thank you" in row["reply"]


@pytest.mark.parametrize("on_in_doubt", ["resend", "hold"])
def test_unreachable_halo_fails_rows_that_the_next_run_delivers(
    halo: Simulator, deliveries: Deliveries, on_in_doubt: str
) -> None:
    """What was certainly not sent is tried max_attempts times, failed and never in doubt."""
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        nowhere = dataclasses.replace(deliveries, url=f"http://127.0.0.1:{closed_soon.getsockname()[1]}")

    run = nowhere.run(notes(3), max_attempts=2, on_in_doubt=on_in_doubt)

    assert run.counts == {RowStatus.FAILED: 3}
    assert run.report.requests == 6
    assert set(deliveries.statuses().values()) == {LedgerStatus.FAILED}
    assert deliveries.run(notes(3), on_in_doubt=on_in_doubt).counts == {RowStatus.DELIVERED: 3}
    assert len(halo.chats) == 3


def test_429_does_not_use_up_attempts(halo: Simulator, deliveries: Deliveries) -> None:
    """Waiting for its turn is no failure of the row's."""
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=0)] * 8)

    run = deliveries.run([note("a")], max_attempts=1)

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert (len(halo.requests), run.report.refused) == (9, 8)


def test_429_holds_back_its_own_row(halo: Simulator, deliveries: Deliveries) -> None:
    """It is not sent again before Halo's time is over; the others are."""
    halo.script_for(user_id="user-0", faults=[Fault.rate_limited(retry_after=0.5)])

    deliveries.run(notes(10), concurrency=2)

    refused, *others, last = halo.requests
    assert refused.user_id == last.user_id == "user-0"
    assert last.started - refused.started >= 0.5
    assert all(request.started - refused.started < 0.5 for request in others)


def test_rows_that_alone_are_refused_end_failed(halo: Simulator, deliveries: Deliveries) -> None:
    """However many there are, the others are delivered, and the next run tries them again."""
    halo.limit = RefusedUsers(user_ids=frozenset(f"user-{number}" for number in range(0, 20, 2)))

    run = deliveries.run(notes(40), concurrency=4)

    assert run.counts == {RowStatus.DELIVERED: 30, RowStatus.FAILED: 10}
    assert "Halo answered 429" in str(run.of("0").error)
    assert MAX_ALONE <= run.of("0").attempts <= 2 * MAX_ALONE
    halo.limit = None
    assert deliveries.run(notes(40)).counts == {RowStatus.ALREADY_DELIVERED: 30, RowStatus.DELIVERED: 10}


def test_last_row_that_is_refused_for_ever_does_not_hold_up_the_end(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing shows whether Halo refuses the row or everybody, so that the run ends, and the next one tries again."""
    monkeypatch.setattr(halo_provider.delivery.pace, "MAX_PAUSE", 1.0)
    halo.limit = RefusedUsers(user_ids=frozenset({"user-4"}))

    run = deliveries.run(notes(5), concurrency=1)

    assert run.counts == {RowStatus.DELIVERED: 4, RowStatus.NOT_ATTEMPTED: 1}
    assert isinstance(run.report.error, HaloRateLimitError)
    halo.limit = None
    assert deliveries.run(notes(5)).counts == {RowStatus.ALREADY_DELIVERED: 4, RowStatus.DELIVERED: 1}


def test_rows_that_are_put_off_keep_no_others_from_being_read(halo: Simulator, deliveries: Deliveries) -> None:
    """More of them than a run may have under way wait for their Retry-After; the rows behind them are delivered."""
    refused = frozenset(f"user-{number}" for number in range(40) if number % 4)
    halo.limit = RefusedUsers(user_ids=refused, retry_after=MAX_PAUSE)
    rows = notes(40)

    async def cut_off() -> Run:
        stop = Stop()
        delivering = asyncio.create_task(deliveries.deliver(rows, stop=stop, concurrency=4, batch_size=5))
        await until(lambda: list(deliveries.statuses().values()).count(LedgerStatus.DELIVERED) == 10)
        stop.request("seen")
        return await delivering

    assert asyncio.run(cut_off()).counts == {RowStatus.DELIVERED: 10, RowStatus.NOT_ATTEMPTED: 30}


def test_429_without_a_date_backs_off(halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client chooses the pause then."""
    monkeypatch.setattr("random.uniform", lambda _low, _high: 0.05)
    halo.script(path="/chat", faults=[Fault.rate_limited()])

    assert deliveries.run([note("a")]).counts == {RowStatus.DELIVERED: 1}
    assert halo.requests[1].started - halo.requests[0].started >= 0.05


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_beyond_the_cap_ends_the_run_with_everything_accounted_for(
    halo: Simulator, deliveries: Deliveries, status: int, form: str
) -> None:
    """The error carries Halo's wish for whoever schedules the next run, which then delivers all."""
    fault = Fault.rate_limited(retry_after=MAX_PAUSE + 60, as_http_date=form == "date")
    halo.script(path="/chat", faults=[None, Fault.status(status, headers=fault.response_headers())])

    run = deliveries.run(notes(20), concurrency=1)

    assert isinstance(run.report.error, HaloRateLimitError | HaloServerError)
    assert run.report.error.retry_after == pytest.approx(MAX_PAUSE + 60, abs=3)
    assert run.counts == {RowStatus.DELIVERED: 1, RowStatus.NOT_ATTEMPTED: 19}
    assert len(halo.requests) == 2
    assert sorted(deliveries.statuses().values()) == [LedgerStatus.DELIVERED] + [LedgerStatus.PENDING] * 19
    assert deliveries.run(notes(20)).counts == {RowStatus.ALREADY_DELIVERED: 1, RowStatus.DELIVERED: 19}


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, HaloAuthenticationError), (403, HaloPermissionError), (307, HaloRedirectError)],
)
@pytest.mark.parametrize("max_attempts", [1, 5])
def test_forbidden_call_stops_everything_and_loses_nothing(
    halo: Simulator, deliveries: Deliveries, status: int, error: type[Exception], max_attempts: int
) -> None:
    """Nobody is let in with this connection: rows stay pending, none failed, and the next run delivers them."""
    halo.always("/chat", Fault.status(status))

    run = deliveries.run(notes(50), concurrency=4, max_attempts=max_attempts)

    assert isinstance(run.report.error, error)
    assert run.counts == {RowStatus.NOT_ATTEMPTED: 50}
    assert len(halo.requests) <= 4
    assert set(deliveries.statuses().values()) == {LedgerStatus.PENDING}
    halo.always("/chat", None)
    assert deliveries.run(notes(50)).counts == {RowStatus.DELIVERED: 50}
    assert len(halo.chats) == 50


def test_row_in_doubt_stays_in_doubt_after_a_stop(halo: Simulator, deliveries: Deliveries) -> None:
    """A row that was sent is never called not attempted, whatever ends the run after it."""
    halo.script(path="/chat", faults=[Fault.drop_after_acceptance(), Fault.status(401)])

    run = deliveries.run([note("a")])

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert deliveries.statuses() == {"a": LedgerStatus.IN_DOUBT}


@pytest.mark.parametrize("status", [400, 413, 422, 418])
def test_refused_row_is_rejected_until_its_payload_changes(
    halo: Simulator, deliveries: Deliveries, status: int
) -> None:
    """Halo's own words stand in the error and the ledger; the same payload is not sent again, another one is."""
    halo.script(path="/chat", faults=[Fault.status(status, body={"error": "the message is in verse"})])

    first = deliveries.run([note("a"), note("b")], concurrency=1)
    second = deliveries.run([note("a"), note("b")])

    assert first.counts == {RowStatus.REJECTED: 1, RowStatus.DELIVERED: 1}
    assert second.counts == {RowStatus.REJECTED: 1, RowStatus.ALREADY_DELIVERED: 1}
    assert "the message is in verse" in rows_in(deliveries.ledger)["a"]["error"]
    error = first.of("a").error
    assert error is not None
    assert "the message is in verse" in str(error)
    assert len(halo.requests) == 2
    assert deliveries.run([note("a", text="In prose.")]).counts == {RowStatus.DELIVERED: 1}


def test_run_stops_after_many_failed_rows_in_a_row(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Halo that is down is no reason to go through half a million rows."""
    monkeypatch.setattr(halo_provider.delivery.breaker, "MAX_GIVEN_UP", 5)
    halo.always("/chat", Fault.status(500))

    run = deliveries.run(notes(100), max_attempts=1, concurrency=2)

    assert isinstance(run.report.error, HaloServerError)
    assert "5 rows in a row were given up" in str(run.report.stopped)
    assert run.counts[RowStatus.IN_DOUBT] in {5, 6}
    assert run.counts[RowStatus.NOT_ATTEMPTED] == 100 - run.counts[RowStatus.IN_DOUBT]


def test_run_goes_on_while_some_rows_are_delivered(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only rows given up one after the other tell that Halo is down."""
    monkeypatch.setattr(halo_provider.delivery.breaker, "MAX_GIVEN_UP", 3)
    halo.script(path="/chat", faults=[Fault.status(500), Fault.status(500), None] * 5)

    run = deliveries.run(notes(15), max_attempts=1, concurrency=1)

    assert run.counts == {RowStatus.IN_DOUBT: 10, RowStatus.DELIVERED: 5}


def test_concurrency_falls_to_what_halo_admits(halo: Simulator, deliveries: Deliveries) -> None:
    """Three at a time: after the first burst hardly anything is refused."""
    halo.limit = ConcurrencyLimit(requests=3)
    halo.chat_latency = (0.02, 0.02)

    run = deliveries.run(notes(120), concurrency=16)

    assert run.counts == {RowStatus.DELIVERED: 120}
    assert run.report.refused < 60


def test_answer_that_no_database_can_hold_is_recorded(halo: Simulator, deliveries: Deliveries) -> None:
    """NaN, NUL and secrets in an answer cost neither the row nor its neighbours."""
    body = '{"session_id": "sess_1", "text": "a\\u0000b", "score": NaN, "token": "ha_secret_example_secret"}'
    fault = Fault.status(200, body=body, headers={"Content-Type": "application/json"}, accepted=True)
    halo.script(path="/chat", faults=[fault])

    run = deliveries.run(notes(5))

    assert run.counts == {RowStatus.DELIVERED: 5}
    (row,) = (row for row in rows_in(deliveries.ledger).values() if row["session_id"] == "sess_1")
    assert row["response"] == {"score": None, "token": "***"}


def test_session_id_that_no_ledger_holds_leaves_its_row_in_doubt(halo: Simulator, deliveries: Deliveries) -> None:
    """Its neighbours are delivered; the next run sends the row again, as it does with other unusable answers."""
    huge = Fault.status(200, body={"session_id": "s" * 100_000, "text": "Thank you."})
    halo.script_for(user_id="user-1", faults=[huge])

    run = deliveries.run(notes(3), on_in_doubt="hold")

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.IN_DOUBT: 1}
    assert "no usable session_id" in str(run.of("1").error)
