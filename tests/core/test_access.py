"""Access tokens from the ledger: renewed once, whoever is cancelled, and what cannot be renewed is said."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from halo_provider.client.access import StoredAccess
from halo_provider.client.reader import HaloReader
from halo_provider.exceptions import HaloReadError, HaloSignInError
from halo_provider.ledger import Ledger
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.simulator import Fault, Reading, Simulator, serving
from tests.acceptance.sign_in_worker import sign_in_at
from tests.core.deliveries import until


@contextmanager
def signed_in(halo: Simulator, ledger: Ledger) -> Iterator[tuple[str, SignIns]]:
    """The address for reading, and the sign-in whose access token has ended already."""
    halo.reading = Reading(access_lifetime=0.001, consent="approved")
    with serving(halo) as origin:
        kept = sign_in_at(f"{origin}/api/mcp", ledger)
        halo.reading = Reading(consent="approved")
        yield f"{origin}/api/mcp", kept


def refreshes(halo: Simulator) -> int:
    """How often the tokens were renewed; the chain was never revoked."""
    (chain,) = halo.sign_ins
    assert not chain.revoked
    return len(chain.refreshes)


def test_many_callers_renew_once(ledger: Ledger) -> None:
    """In one process and in several."""
    halo = Simulator()

    async def ask(kept: SignIns) -> set[str]:
        accesses = [StoredAccess(kept), StoredAccess(kept)]
        return set(await asyncio.gather(*(access.token() for access in accesses for _ in range(5))))

    with signed_in(halo, ledger) as (_, kept):
        halo.script(path="/oauth/token", faults=[Fault.slow(0.2)])
        assert len(asyncio.run(ask(kept))) == 1
    assert refreshes(halo) == 1


def test_cancelled_caller_does_not_break_the_renewal_off(ledger: Ledger) -> None:
    """A run may end at that very moment: the new token is recorded all the same."""
    halo = Simulator()

    async def cancelled(url: str, kept: SignIns) -> None:
        async with HaloReader(access=StoredAccess(kept), url=url) as reader:
            asking = asyncio.create_task(reader.tools())
            await until(lambda: refreshes(halo))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with signed_in(halo, ledger) as (url, kept):
        halo.script(path="/oauth/token", faults=[Fault.slow(0.5)])
        asyncio.run(cancelled(url, kept))
        turn = kept.turn(refused=None, renew_before=300.0)
        assert (turn.renews, halo.authorization.is_valid(turn.sign_in.access_token)) == (False, True)
    assert refreshes(halo) == 1


def test_server_that_is_not_there_ends_nothing(ledger: Ledger) -> None:
    """The refresh token is not used up: the next one renews at once."""
    with signed_in(Simulator(), ledger) as (_, kept):
        pass
    with pytest.raises(HaloReadError):
        asyncio.run(StoredAccess(kept).token())

    turn = kept.turn(refused=None, renew_before=300.0)
    assert (turn.renews, turn.interrupted) == (True, False)


def test_revoked_sign_in_asks_for_a_person(ledger: Ledger) -> None:
    """The remedy is in the error, for everybody."""
    halo = Simulator()
    with signed_in(halo, ledger) as (_, kept):
        halo.revoke_sign_ins()
        for _ in range(2):
            with pytest.raises(HaloSignInError, match=r"invalid_grant.*run `halo-login --conn-id halo_default`"):
                asyncio.run(StoredAccess(kept).token())
    assert [request.path for request in halo.reads].count("/oauth/token") == 2  # the sign-in's, and one


def test_token_that_ends_in_mid_run_is_renewed(ledger: Ledger) -> None:
    """Halo's 401 is the first to know."""
    halo = Simulator()

    async def asked_twice(url: str, kept: SignIns) -> None:
        async with HaloReader(access=StoredAccess(kept), url=url) as reader:
            await reader.tools()
            halo.expire_access_tokens()
            assert (await reader.search_transcripts(user_id="nobody")).records == ()

    with signed_in(halo, ledger) as (url, kept):
        asyncio.run(asked_twice(url, kept))
    assert refreshes(halo) == 2
