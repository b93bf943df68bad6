"""One sign-in for many processes: renewed once an hour, and never lost without a word."""

import pytest

from halo_provider.simulator import Fault, Reading, Simulator
from tests.acceptance.proof import LEDGERS
from tests.acceptance.sign_in_worker import KEY, Point, Use, User
from tests.acceptance.sign_ins import play, signed_in
from tests.acceptance.test_crashes import SERVICES
from tests.waiting import TIMEOUT

pytestmark = pytest.mark.acceptance

LEASE = 1.0  # seconds
GOES_ON = {Point.BEFORE_TURN, Point.AFTER_TURN, Point.AFTER_RECORD}


@pytest.fixture(params=LEDGERS)
def ledger_name(request: pytest.FixtureRequest) -> str:
    """Every database that a ledger may be on."""
    if service := SERVICES.get(request.param):
        request.getfixturevalue(service)
    return str(request.param)


def test_sign_in_is_renewed_once_an_hour(ledger_name: str) -> None:
    """However many processes use it: no refresh token is used twice."""
    assert play(ledger_name, seconds=7.0, processes=8).faults() == []


@pytest.mark.parametrize("point", Point)
def test_death_while_renewing_goes_on_or_asks_for_a_person(point: Point, ledger_name: str) -> None:
    """What a killed process did not record is gone; the words say so."""
    halo = Simulator(reading=Reading(access_lifetime=0.2, consent="approved"))
    with signed_in(halo, ledger_name, lease=LEASE) as (mcp_url, ledger_url, kept):
        halo.reading = Reading(consent="approved")
        if point is Point.IN_REQUEST:
            halo.script(path="/oauth/token", faults=[Fault.slow(TIMEOUT)])
        use = Use(mcp_url=mcp_url, ledger_url=ledger_url, key=KEY, lease=LEASE, seconds=60.0, point=point)
        assert User(use).report(within=30.0) is None
        told = User(Use(mcp_url=mcp_url, ledger_url=ledger_url, key=KEY, lease=LEASE)).report(within=30.0)

        assert told is not None
        if point in GOES_ON:
            assert (told["worked"], told["sign_in"]) == (1, None)
        else:
            assert "a process died while it renewed the access token" in told["sign_in"]
            assert "run `halo-login --conn-id halo_default`" in told["sign_in"]
            state = kept.state()
            assert state is not None
            assert state.problem
