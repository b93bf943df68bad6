"""When many rows say something about the run, and when they do not."""

from halo_provider.delivery.breaker import MAX_GIVEN_UP, Breaker
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloResponseError

LOST = HaloResponseError("/chat", reason="the answer is no JSON", reply="")


def test_rows_looked_up_in_vain_end_no_run_that_halo_accepts_rows_of() -> None:
    """They all come to their end when everything is sent; what was accepted since their attempts says that it works."""
    stop = Stop()
    breaker = Breaker(stop)
    before = breaker.accepted_rows
    breaker.accepted()

    for _ in range(MAX_GIVEN_UP):
        breaker.gave_up(LOST, accepted_before=before)
    assert not stop.requested

    for _ in range(MAX_GIVEN_UP):
        breaker.gave_up(LOST, accepted_before=breaker.accepted_rows)
    assert stop.requested


def test_nothing_but_doubt_is_noticed_and_ends_with_an_accepted_row() -> None:
    """No more rows are read meanwhile."""
    breaker = Breaker(Stop())
    for _ in range(MAX_GIVEN_UP - 1):
        breaker.doubted()
    assert not breaker.doubts_sending

    breaker.doubted()
    assert breaker.doubts_sending

    breaker.accepted()
    assert not breaker.doubts_sending
