"""Two deliveries over the same rows on one ledger: one chat for each row, and both reports are true."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

import halo_provider.delivery.delivery
from halo_provider.delivery.stop import Stop
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import Candidate, Settlement
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from tests.core.deliveries import Deliveries, Run, note, notes, rows_in, until


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A ledger's place on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halo_provider.delivery.delivery, "CLAIM_POLL", 0.02)


@pytest.fixture
def other(deliveries: Deliveries, ledger_url: str) -> Iterator[Deliveries]:
    """Deliveries to the same Halo over the same database, through connections of their own."""
    ledger = Ledger.at(ledger_url)
    yield replace(deliveries, ledger=ledger, outcomes=[])
    ledger.close()


def test_every_row_is_sent_by_exactly_one_of_two_runs(
    halo: Simulator, deliveries: Deliveries, other: Deliveries
) -> None:
    """Whoever is second for a row waits, and tells the session that the first one got."""
    halo.always("/chat", Fault.slow(0.01))
    rows = [note(str(number), user=f"user-{number % 9}") for number in range(60)]

    async def both() -> list[Run]:
        first = deliveries.deliver(rows, batch_size=7, concurrency=8)
        second = other.deliver(rows[::-1], batch_size=5, concurrency=8)
        return list(await asyncio.gather(first, second))

    runs = asyncio.run(both())

    assert Counter(request.body["message"] for request in halo.requests if request.body).total() == 60
    assert len(halo.chats) == 60
    assert sum(run.counts.get(RowStatus.DELIVERED, 0) for run in runs) == 60
    for run in runs:
        assert run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.ALREADY_DELIVERED}
        assert run.report.error is None
    sessions = [{one.row_key: one.session_id for one in run.outcomes} for run in runs]
    assert sessions[0] == sessions[1]
    assert set(sessions[0].values()) == {chat.session_id for chat in halo.chats}


def test_row_that_a_dead_run_held_is_sent_when_its_lease_is_over(halo: Simulator, deliveries: Deliveries) -> None:
    """Nobody has to clean up after a killed process."""
    dead = deliveries.lease_holder(lease=0.3)
    dead.claim([Candidate(row_key=str(number), payload_hash="x") for number in range(3)], on_in_doubt="resend")

    assert deliveries.run(notes(3)).counts == {RowStatus.DELIVERED: 3}


@pytest.mark.parametrize(("on_in_doubt", "status"), [("resend", RowStatus.DELIVERED), ("hold", RowStatus.IN_DOUBT)])
def test_row_that_a_dead_run_was_sending_is_in_doubt(
    halo: Simulator, deliveries: Deliveries, on_in_doubt: str, status: RowStatus
) -> None:
    """And treated as such, once the lease is over."""
    dead = deliveries.lease_holder(lease=0.1)
    dead.claim([Candidate(row_key="a", payload_hash="x")], on_in_doubt="resend")
    dead.commit(intents=["a"])

    assert deliveries.run([note("a")], on_in_doubt=on_in_doubt).counts == {status: 1}


def test_row_that_another_run_keeps_claimed_is_not_attempted(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is an end to waiting, and the other rows do not wait at all."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "CLAIM_WAIT", 0.1)
    deliveries.lease_holder().claim([Candidate(row_key="1", payload_hash="x")], on_in_doubt="resend")

    run = deliveries.run(notes(3))

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.NOT_ATTEMPTED: 1}
    assert run.of("1").status is RowStatus.NOT_ATTEMPTED
    assert deliveries.statuses()["1"] == LedgerStatus.PENDING


def test_run_stops_waiting_when_too_many_rows_are_claimed_by_another_run(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that can neither read on nor send does not wait for ever."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "CLAIM_WAIT", 0.1)
    monkeypatch.setattr(halo_provider.delivery.delivery, "MAX_DEFERRED", 2)
    deliveries.lease_holder().claim(
        [Candidate(row_key=str(number), payload_hash="x") for number in range(4)], on_in_doubt="resend"
    )

    run = deliveries.run(notes(8), batch_size=2)

    assert run.counts == {RowStatus.NOT_ATTEMPTED: 2}
    assert halo.requests == []


def test_later_row_of_a_user_waits_for_the_earlier_one_in_another_run(halo: Simulator, deliveries: Deliveries) -> None:
    """Order is kept across runs, and the other run's outcome decides."""
    first = deliveries.lease_holder()
    first.claim([Candidate(row_key="a", payload_hash="x")], on_in_doubt="resend")
    first.commit(intents=["a"])

    async def both() -> Run:
        delivering = asyncio.create_task(deliveries.deliver([note("a", user="user"), note("b", user="user")]))
        await until(lambda: deliveries.statuses().get("b") == LedgerStatus.PENDING)
        await asyncio.sleep(0.1)
        assert halo.requests == []
        first.commit(settlements=[Settlement(row_key="a", status=LedgerStatus.DELIVERED, session_id="sess_a")])
        return await delivering

    run = asyncio.run(both())

    assert run.counts == {RowStatus.ALREADY_DELIVERED: 1, RowStatus.DELIVERED: 1}
    assert run.of("a").session_id == "sess_a"


def test_runs_that_read_in_opposite_orders_do_not_wait_for_each_other(
    halo: Simulator, deliveries: Deliveries, other: Deliveries
) -> None:
    """A dead run holds the first row; one run waits for it, another one comes with the rows the other way round."""
    dead = deliveries.lease_holder(lease=0.5)
    dead.claim([Candidate(row_key="1", payload_hash="x")], on_in_doubt="resend")
    rows = [note("1", user="u"), note("2", user="u"), note("3", user="u")]

    async def both() -> list[Run]:
        waiting = asyncio.create_task(deliveries.deliver(rows))
        await asyncio.sleep(0.1)  # it has seen that another run holds the first row
        return [await other.deliver(rows[::-1]), await waiting]

    runs = asyncio.run(asyncio.wait_for(both(), 15))

    assert sum(run.counts.get(RowStatus.DELIVERED, 0) for run in runs) == len(halo.chats) == 3
    assert all(run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.ALREADY_DELIVERED} for run in runs)


def test_run_holds_no_claim_behind_another_run_s_row(halo: Simulator, deliveries: Deliveries) -> None:
    """While it waits, whoever comes may send the user's other rows."""
    deliveries.lease_holder().claim([Candidate(row_key="1", payload_hash="x")], on_in_doubt="resend")
    rows = [note("1", user="u"), *(note(str(number), user="u") for number in range(2, 6))]
    stop = Stop()

    async def waiting_run() -> Run:
        delivering = asyncio.create_task(deliveries.deliver(rows, stop=stop))
        await until(lambda: len(deliveries.statuses()) == 5)
        await until(lambda: sum(bool(row["lease_expires_at"]) for row in rows_in(deliveries.ledger).values()) == 1)
        stop.request("seen enough")
        return await delivering

    assert asyncio.run(waiting_run()).counts == {RowStatus.NOT_ATTEMPTED: 5}


def test_row_in_doubt_that_is_held_does_not_hold_back_earlier_rows(halo: Simulator, deliveries: Deliveries) -> None:
    """on_in_doubt="hold": only what comes after it in the source waits for the decision."""
    dead = deliveries.lease_holder(lease=-1.0)
    dead.claim([Candidate(row_key="3", payload_hash="x")], on_in_doubt="resend")
    dead.commit(intents=["3"])
    halo.always("/chat", Fault.slow(0.05))

    run = deliveries.run([note(str(number), user="u") for number in range(1, 5)], on_in_doubt="hold")

    assert [run.of(key).status for key in ("1", "2", "3", "4")] == [
        RowStatus.DELIVERED,
        RowStatus.DELIVERED,
        RowStatus.IN_DOUBT,
        RowStatus.NOT_ATTEMPTED,
    ]
