"""How a delivery ends before its time, and what it leaves behind: nothing lost, doubt only where something was sent."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine, text

import halo_provider.delivery.commit
import halo_provider.delivery.delivery
from halo_provider.delivery.refusals import Backoff
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloError, LedgerError
from halo_provider.ledger import Candidate, LeaseHolder, Ledger, TaskInstanceRef
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row
from tests.core.deliveries import Deliveries, Run, note, notes, rows_in, until

Meanwhile = Callable[[], Awaitable[None]]


def run_with(deliveries: Deliveries, rows: Sequence[dict[str, Any]], meanwhile: Meanwhile, **options: Any) -> Run:
    """Deliver the rows while something else happens on the same loop."""

    async def both() -> Run:
        run, _ = await asyncio.gather(deliveries.deliver(rows, **options), meanwhile())
        return run

    return asyncio.run(both())


def stop_soon(halo: Simulator, *, requests: int, grace: float | None) -> tuple[Stop, Meanwhile]:
    """A stop that is asked for once Halo has got so many requests."""
    stop = Stop()

    async def meanwhile() -> None:
        await until(lambda: len(halo.requests) >= requests)
        stop.request("the task was killed", grace=grace)

    return stop, meanwhile


def test_stop_lets_what_is_in_flight_end_and_gives_the_rest_back(halo: Simulator, deliveries: Deliveries) -> None:
    """Without a grace every answer is still waited for; nothing new is sent."""
    halo.always("/chat", Fault.slow(0.3))
    stop, meanwhile = stop_soon(halo, requests=3, grace=None)

    run = run_with(deliveries, notes(20), meanwhile, concurrency=3, stop=stop)

    assert run.counts == {RowStatus.DELIVERED: 3, RowStatus.NOT_ATTEMPTED: 17}
    assert (run.report.stopped, run.report.error) == ("the task was killed", None)
    assert Counter(deliveries.statuses().values()) == {LedgerStatus.DELIVERED: 3, LedgerStatus.PENDING: 17}
    assert all(row["lease_expires_at"] is None for row in rows_in(deliveries.ledger).values())
    halo.always("/chat", None)
    assert deliveries.run(notes(20)).counts == {RowStatus.ALREADY_DELIVERED: 3, RowStatus.DELIVERED: 17}
    assert len(halo.chats) == 20


def test_stop_with_grace_ends_within_it_while_requests_hang(halo: Simulator, deliveries: Deliveries) -> None:
    """What hangs is in doubt, the rest is pending, and it all took little longer than the grace."""
    halo.always("/chat", Fault.silence(accepted=True))
    stop, meanwhile = stop_soon(halo, requests=4, grace=0.1)

    began = time.monotonic()
    run = run_with(deliveries, notes(20), meanwhile, concurrency=4, stop=stop)

    assert time.monotonic() - began < 5.0
    assert run.counts == {RowStatus.IN_DOUBT: 4, RowStatus.NOT_ATTEMPTED: 16}
    assert Counter(deliveries.statuses().values()) == {LedgerStatus.IN_DOUBT: 4, LedgerStatus.PENDING: 16}
    halo.always("/chat", None)
    assert deliveries.run(notes(20)).counts == {RowStatus.DELIVERED: 20}


def test_shorter_grace_of_a_second_stop_counts(halo: Simulator, deliveries: Deliveries) -> None:
    """A kill after a time-out that is nearly over does not wait for the time-out's grace."""
    halo.always("/chat", Fault.silence(accepted=False))
    stop, meanwhile = stop_soon(halo, requests=2, grace=60.0)

    async def twice() -> None:
        await meanwhile()
        await asyncio.sleep(0.02)
        stop.request("the task was killed", grace=0.05)

    began = time.monotonic()
    run = run_with(deliveries, notes(5), twice, concurrency=2, stop=stop)

    assert time.monotonic() - began < 5.0
    assert run.counts == {RowStatus.IN_DOUBT: 2, RowStatus.NOT_ATTEMPTED: 3}


def test_stop_before_the_beginning_sends_nothing(halo: Simulator, deliveries: Deliveries) -> None:
    """Nothing read, nothing sent, and the reason told."""

    async def deliver() -> Run:
        stop = Stop()
        stop.request("the task was killed", grace=0.0)
        return await deliveries.deliver(notes(5), stop=stop)

    run = asyncio.run(deliver())

    assert (run.counts, run.report.read, run.report.stopped) == ({}, 0, "the task was killed")
    assert halo.requests == []


def test_row_in_doubt_that_waits_for_its_next_attempt_stays_in_doubt_when_stopped(
    halo: Simulator, deliveries: Deliveries
) -> None:
    """It was sent: not attempted would be a lie."""
    halo.always("/chat", Fault.drop_after_acceptance())
    stop = Stop()

    async def meanwhile() -> None:
        await until(lambda: halo.requests and deliveries.statuses() == {"a": LedgerStatus.IN_DOUBT})
        stop.request("the task was killed", grace=1.0)

    slowly = Backoff(base=1e6, cap=1e6)
    run = run_with(deliveries, [note("a")], meanwhile, stop=stop, backoff=slowly)

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert deliveries.statuses() == {"a": LedgerStatus.IN_DOUBT}


def test_stopped_run_accounts_for_rows_that_wait_for_another_run(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's second row, which another run holds, comes to its turn after the stop and still ends with a status."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "CLAIM_POLL", 0.01)
    other = deliveries.lease_holder()
    other.claim([Candidate(row_key="b", payload_hash="x")], on_in_doubt="resend")
    halo.always("/chat", Fault.slow(0.2))
    stop, meanwhile = stop_soon(halo, requests=1, grace=None)

    run = run_with(deliveries, [note("a", user="user"), note("b", user="user")], meanwhile, stop=stop)

    assert run.counts == {RowStatus.DELIVERED: 1, RowStatus.NOT_ATTEMPTED: 1}


@pytest.mark.parametrize("looks", [0, 3])
def test_process_without_its_supervisor_stops_sending_at_once(
    halo: Simulator, deliveries: Deliveries, looks: int
) -> None:
    """Whose supervisor is gone sends nothing more, and gives back what it held for the try beside it."""
    left = looks

    def alive() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    run = deliveries.run(notes(30), alive=alive, concurrency=1)

    assert run.counts[RowStatus.NOT_ATTEMPTED] >= 30 - looks
    assert len(halo.requests) <= looks
    assert LedgerStatus.IN_FLIGHT not in deliveries.statuses().values()
    assert "supervisor is gone" in str(run.report.stopped)
    assert deliveries.run(notes(30)).counts[RowStatus.DELIVERED] >= 30 - looks
    assert len(halo.chats) == 30


def test_process_notices_the_loss_of_its_supervisor_while_it_waits(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while all it does is wait."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "LIVENESS_POLL", 0.01)
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=100)])

    run = deliveries.run([note("a")], alive=lambda: not halo.requests)

    assert run.counts == {RowStatus.NOT_ATTEMPTED: 1}
    assert "supervisor is gone" in str(run.report.stopped)


def test_claims_about_to_expire_are_not_sent(halo: Simulator, deliveries: Deliveries) -> None:
    """Where the lease is as good as over, somebody else may be sending soon."""
    run = deliveries.run(notes(5), lease_holder=deliveries.lease_holder(lease=1.0))

    assert run.counts == {RowStatus.NOT_ATTEMPTED: 5}
    assert halo.requests == []
    assert "could not be renewed" in str(run.report.stopped)


def test_claims_are_renewed_while_requests_take_their_time(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow Halo costs nobody the rows."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "LEASE_MARGIN", -1000.0)
    halo.always("/chat", Fault.silence(accepted=True))
    stop = Stop()

    async def meanwhile() -> None:
        await until(lambda: halo.requests)
        first = rows_in(deliveries.ledger)["a"]["lease_expires_at"]
        await until(lambda: rows_in(deliveries.ledger)["a"]["lease_expires_at"] > first)
        stop.request("the lease was renewed", grace=0.0)

    lease_holder = deliveries.lease_holder(lease=0.15)
    run = run_with(deliveries, [note("a")], meanwhile, lease_holder=lease_holder, stop=stop)

    assert run.report.stopped == "the lease was renewed"


def test_row_that_another_run_took_over_is_left_to_it(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose lease ran out unnoticed sends none of what it lost; what it was sending is in doubt."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "LEASE_MARGIN", -1000.0)
    halo.script(path="/chat", faults=[Fault.slow(0.3)])
    taken: dict[str, Any] = {}

    async def meanwhile() -> None:
        await until(lambda: halo.requests)
        candidates = [Candidate(row_key=str(number), payload_hash="x") for number in range(6)]
        taken.update(deliveries.lease_holder().claim(candidates, on_in_doubt="resend"))

    run = run_with(deliveries, notes(6), meanwhile, lease_holder=deliveries.lease_holder(lease=-1.0), concurrency=1)

    assert {claim.result for claim in taken.values()} == {"claimed"}
    assert run.counts == {RowStatus.IN_DOUBT: 1, RowStatus.NOT_ATTEMPTED: 5}
    assert len(halo.requests) == 1
    assert Counter(deliveries.statuses().values()) == {LedgerStatus.IN_DOUBT: 1, LedgerStatus.PENDING: 5}


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is away is given up at once."""
    monkeypatch.setattr(halo_provider.delivery.commit, "LEDGER_TIMEOUT", 0.0)


def rename(ledger_url: str, old: str, new: str) -> None:
    """Take the ledger's table away, or bring it back, behind everybody's back."""
    engine = create_engine(ledger_url, future=True)
    with engine.begin() as db:
        db.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    engine.dispose()


@pytest.mark.usefixtures("no_patience")
def test_ledger_that_fails_in_the_middle_leaves_what_was_sent_in_doubt(
    halo: Simulator, deliveries: Deliveries, ledger_url: str
) -> None:
    """Answers that cannot be recorded are doubt, and the rest is not attempted; when the ledger is back, it agrees."""
    halo.always("/chat", Fault.slow(0.3))

    async def meanwhile() -> None:
        await until(lambda: len(halo.requests) >= 3)
        rename(ledger_url, "halo_submissions", "away")

    run = run_with(deliveries, notes(20), meanwhile, concurrency=3)

    assert isinstance(run.report.error, LedgerError)
    assert run.counts == {RowStatus.IN_DOUBT: 3, RowStatus.NOT_ATTEMPTED: 17}
    assert len(halo.requests) == 3
    rename(ledger_url, "away", "halo_submissions")
    assert Counter(deliveries.statuses().values()) == {LedgerStatus.IN_FLIGHT: 3, LedgerStatus.PENDING: 17}


@pytest.mark.usefixtures("no_patience")
def test_row_in_doubt_stays_in_doubt_when_the_ledger_fails_before_its_retry(
    halo: Simulator, deliveries: Deliveries, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row in doubt whose next intent cannot be committed was sent all the same."""
    monkeypatch.setattr(halo_provider.delivery.commit, "COMMIT_INTERVAL", 10.0)
    halo.script(path="/chat", faults=[Fault.silence(accepted=True)])

    async def meanwhile() -> None:
        await until(lambda: halo.requests)
        rename(ledger_url, "halo_submissions", "away")

    run = run_with(deliveries, [note("a")], meanwhile, timeout=3.0)

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert len(halo.requests) == 1


def test_answers_are_recorded_when_the_ledger_comes_back_in_time(
    halo: Simulator, deliveries: Deliveries, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is restarted costs the run its end, but no answer."""
    monkeypatch.setattr(halo_provider.delivery.commit, "LEDGER_POLL", 0.01)
    halo.always("/chat", Fault.slow(0.2))
    stop = Stop()

    async def meanwhile() -> None:
        await until(lambda: len(halo.requests) >= 3)
        rename(ledger_url, "halo_submissions", "away")
        await until(lambda: stop.requested)
        rename(ledger_url, "away", "halo_submissions")

    run = run_with(deliveries, notes(10), meanwhile, concurrency=3, stop=stop)

    assert isinstance(run.report.error, LedgerError)
    assert run.counts == {RowStatus.DELIVERED: 3, RowStatus.NOT_ATTEMPTED: 7}
    assert Counter(deliveries.statuses().values()) == {LedgerStatus.DELIVERED: 3, LedgerStatus.PENDING: 7}


@pytest.mark.usefixtures("no_patience")
def test_ledger_that_is_gone_from_the_beginning_attempts_nothing(
    halo: Simulator, deliveries: Deliveries, ledger_url: str
) -> None:
    """Without a record there is no sending."""
    rename(ledger_url, "halo_submissions", "away")

    run = deliveries.run([note("a"), note("a"), note("b", text="")])

    assert isinstance(run.report.error, LedgerError)
    assert run.counts == {RowStatus.NOT_ATTEMPTED: 1, RowStatus.DUPLICATE: 1, RowStatus.REJECTED: 1}
    assert halo.requests == []


@pytest.mark.usefixtures("no_patience")
def test_ledger_that_cannot_be_reached_to_renew_ends_the_run(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cannot keep the claims alive stops sending; the answer under way is still recorded."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "LEASE_MARGIN", -1000.0)
    lease_holder = deliveries.lease_holder(lease=0.03)
    halo.script(path="/chat", faults=[Fault.slow(0.3)])

    def renew() -> None:
        if halo.requests:
            raise LedgerError("the ledger cannot be used: it went away")

    monkeypatch.setattr(lease_holder, "renew", renew)
    run = deliveries.run(notes(5), lease_holder=lease_holder, concurrency=1)

    assert run.counts == {RowStatus.DELIVERED: 1, RowStatus.NOT_ATTEMPTED: 4}
    assert isinstance(run.report.error, LedgerError)


def cancel_once(
    condition: Callable[[], Any], deliveries: Deliveries, rows: Sequence[dict[str, Any]], **options: Any
) -> None:
    """Cancel the whole coroutine as soon as the condition is true."""

    async def cancelled() -> None:
        delivering = asyncio.create_task(deliveries.deliver(rows, **options))
        await until(condition)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering

    asyncio.run(cancelled())


def test_cancelled_delivery_leaves_no_row_in_flight(halo: Simulator, deliveries: Deliveries) -> None:
    """What was being sent is in doubt; what was not is pending and nobody's, also a user's waiting rows."""
    halo.always("/chat", Fault.silence(accepted=True))
    rows = [note(f"{user}-{number}", user=f"user-{user}") for number in range(5) for user in range(4)]

    cancel_once(lambda: len(halo.chats) == 2, deliveries, rows, concurrency=2)

    assert Counter(deliveries.statuses().values()) == {LedgerStatus.IN_DOUBT: 2, LedgerStatus.PENDING: 18}
    assert all(row["lease_expires_at"] is None for row in rows_in(deliveries.ledger).values())
    assert {outcome.status for outcome in deliveries.outcomes} == {RowStatus.IN_DOUBT, RowStatus.NOT_ATTEMPTED}


def test_cancelled_delivery_puts_in_doubt_only_rows_that_were_being_sent(
    halo: Simulator, deliveries: Deliveries
) -> None:
    """A row that Halo certainly refused waits for its next attempt, and is pending."""
    halo.always("/chat", Fault.silence(accepted=True))
    halo.script_for(user_id="user-a", faults=[Fault.status(503, headers={"Retry-After": "100"})])

    def refused_and_sent() -> bool:
        return len(halo.chats) == 2 and rows_in(deliveries.ledger)["a"]["error"] is not None

    cancel_once(refused_and_sent, deliveries, [note("a"), note("b"), note("c")])

    assert deliveries.statuses() == {"a": LedgerStatus.PENDING, "b": LedgerStatus.IN_DOUBT, "c": LedgerStatus.IN_DOUBT}


def test_cancelled_delivery_does_not_change_rows_of_another_run(halo: Simulator, deliveries: Deliveries) -> None:
    """Rows of the same user wait in this run behind one that another run holds: they are given back, it is not."""
    halo.always("/chat", Fault.silence(accepted=True))
    other = deliveries.lease_holder()
    other.claim([Candidate(row_key="held", payload_hash="x")], on_in_doubt="resend")
    rows = [note("held", user="user"), note("1", user="user"), note("2", user="user"), note("x"), note("y")]

    cancel_once(lambda: len(halo.chats) == 2, deliveries, rows)

    statuses = rows_in(deliveries.ledger)
    assert statuses["held"]["owner"] == other.owner
    assert deliveries.statuses() == {
        "held": LedgerStatus.PENDING,
        "1": LedgerStatus.PENDING,
        "2": LedgerStatus.PENDING,
        "x": LedgerStatus.IN_DOUBT,
        "y": LedgerStatus.IN_DOUBT,
    }
    assert other.commit(intents=["held"]).lost_intents == frozenset()


def test_observer_that_raises_costs_itself_only(deliveries: Deliveries) -> None:
    """A results file on a full disk raises here: every row is delivered all the same, and the run says what failed."""

    def on_outcome(_: object) -> None:
        raise OSError("no space left on device")

    run = deliveries.run(notes(10), on_outcome=on_outcome)

    assert run.report.summary()["delivered"] == 10
    assert set(deliveries.statuses().values()) == {LedgerStatus.DELIVERED}
    assert str(run.report.failure()) == "no space left on device"


def test_delivery_that_is_cancelled_twice_still_closes_its_source(halo: Simulator, deliveries: Deliveries) -> None:
    """A second cancellation comes while the first one is being wound up."""
    halo.always("/chat", Fault.silence(accepted=True))
    closed = []

    class Closing(ListSource):
        def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
            try:
                yield from super().rows(required=required)
            finally:
                closed.append(True)

    async def cancelled() -> None:
        delivering = asyncio.create_task(deliveries.deliver(Closing(notes(10)), concurrency=2, batch_size=2))
        await until(lambda: halo.chats_in_flight == 2)
        delivering.cancel()
        await asyncio.sleep(0)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering

    asyncio.run(cancelled())

    assert closed
    assert LedgerStatus.IN_FLIGHT not in deliveries.statuses().values()


def test_cancelled_delivery_leaves_no_intent_that_was_not_sent(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intents that were waiting for their commit are dropped, and not committed after their rows were given back."""
    monkeypatch.setattr(halo_provider.delivery.commit.Committer, "run", lambda _self: asyncio.sleep(3600))

    async def cancelled() -> None:
        delivering = asyncio.create_task(deliveries.deliver(notes(10)))
        await until(lambda: len(deliveries.statuses()) == 10)
        await asyncio.sleep(0.05)
        delivering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivering

    asyncio.run(cancelled())

    assert set(deliveries.statuses().values()) == {LedgerStatus.PENDING}
    assert halo.requests == []


class FailingLedger(LeaseHolder):
    """Fails in the one call that is named."""

    def __init__(self, ledger: Ledger, *, failing: str) -> None:
        super().__init__(ledger, "halo_default/note", task_instance=TaskInstanceRef(), lease=60.0)
        setattr(self, failing, self._fail)

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise LedgerError("the ledger cannot be used: it went away")


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("failing", ["claim", "commit"])
def test_ledger_errors_are_reported_and_not_raised(halo: Simulator, deliveries: Deliveries, failing: str) -> None:
    """Whichever call it is, the counts balance and nothing is sent."""
    run = deliveries.run(notes(5), lease_holder=FailingLedger(deliveries.ledger, failing=failing))

    assert isinstance(run.report.error, HaloError)
    assert run.counts == {RowStatus.NOT_ATTEMPTED: 5}
    assert halo.requests == []
