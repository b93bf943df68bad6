"""Answers that say something about the run and not about one row: a wrong address, and refusals of every row."""

import pytest

import halo_provider.delivery.breaker
import halo_provider.delivery.delivery
from halo_provider.exceptions import EveryRowRefusedError, HaloWrongUrlError
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from tests.core.deliveries import Deliveries, note, notes


def test_refused_row_goes_before_those_that_were_read_meanwhile(halo: Simulator, deliveries: Deliveries) -> None:
    """A thousand rows may have been read: behind them, the pace would learn late whether Halo refuses it again."""
    halo.script_for(user_id="user-0", faults=[Fault.rate_limited(retry_after=0)])
    halo.chat_latency = (0.01, 0.01)

    assert deliveries.run(notes(50), concurrency=1).counts == {RowStatus.DELIVERED: 50}

    order = [chat.user_id for chat in halo.chats]
    assert order.index("user-0") < 10


@pytest.mark.parametrize("status", [404, 405, 410, 415, 501])
def test_answer_of_another_server_stops_the_run_and_rejects_no_row(
    halo: Simulator, deliveries: Deliveries, status: int
) -> None:
    """A wrong base URL answers so: rows stay pending, and the error names the address, the status and the remedy."""
    halo.always("/chat", Fault.status(status))

    run = deliveries.run(notes(200), concurrency=4)

    assert run.counts == {RowStatus.NOT_ATTEMPTED: 200}
    assert set(deliveries.statuses().values()) == {LedgerStatus.PENDING}
    assert len(halo.requests) <= 4
    error = run.report.failure()
    assert isinstance(error, HaloWrongUrlError)
    assert not error.retry_can_help
    assert f"{deliveries.url}/api/sdk/chat answered {status}" in str(error)
    assert "halo-ledger requeue" in str(error)


def test_corrected_address_delivers_what_waited(halo: Simulator, deliveries: Deliveries) -> None:
    """Nothing has to be brought back by hand."""
    halo.always("/chat", Fault.status(404))
    deliveries.run(notes(20))
    halo.always("/chat", None)

    assert deliveries.run(notes(20)).counts == {RowStatus.DELIVERED: 20}


def test_not_found_concerns_its_row_once_another_was_accepted(halo: Simulator, deliveries: Deliveries) -> None:
    """Then the address is Halo's."""
    halo.script_for(user_id="user-1", faults=[Fault.status(404)])

    run = deliveries.run(notes(3), concurrency=1)

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.REJECTED: 1}


def test_session_that_is_gone_concerns_its_row(halo: Simulator, deliveries: Deliveries) -> None:
    """Also where it is the first row of the run: it says which session it continues."""
    deliveries.run([note("1", text="A")])
    halo.script_for(user_id="user-1", faults=[Fault.status(404)])

    run = deliveries.run([note("1", text="B"), note("2")], concurrency=1, on_change="follow_up")

    assert run.counts == {RowStatus.REJECTED: 1, RowStatus.DELIVERED: 1}


def test_run_stops_when_the_first_rows_are_all_refused_alike(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the submission must not reject a million rows; the error says how the refused ones come back."""
    monkeypatch.setattr(halo_provider.delivery.breaker, "MAX_FIRST_REFUSED", 5)
    halo.always("/chat", Fault.status(422))

    run = deliveries.run(notes(100), concurrency=1)

    assert run.counts == {RowStatus.REJECTED: 5, RowStatus.NOT_ATTEMPTED: 95}
    error = run.report.failure()
    assert isinstance(error, EveryRowRefusedError)
    assert not error.retry_can_help
    assert "halo-ledger requeue" in str(error)


def test_run_goes_on_when_a_row_was_accepted_or_refused_otherwise(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the refusals are about rows."""
    monkeypatch.setattr(halo_provider.delivery.breaker, "MAX_FIRST_REFUSED", 5)
    halo.always("/chat", Fault.status(422))
    halo.script_for(user_id="user-2", faults=[Fault.status(400)])

    assert deliveries.run(notes(20), concurrency=1).counts == {RowStatus.REJECTED: 20}
