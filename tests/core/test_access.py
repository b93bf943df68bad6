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
from halo_provider.simulator import serving
from tests.acceptance.sign_in_worker import sign_in_at
from tests.core.deliveries import until
from tests.core.mcp_server import MCP, McpServer


@contextmanager
def signed_in(server: McpServer, ledger: Ledger) -> Iterator[tuple[str, SignIns]]:
    """The server's address, and the sign-in whose access token has ended already."""
    lifetime, server.lifetime = server.lifetime, 0.001
    with serving(server.app()) as origin:
        kept = sign_in_at(f"{origin}{MCP}", ledger)
        server.lifetime = lifetime
        yield f"{origin}{MCP}", kept


def test_many_callers_renew_once(ledger: Ledger) -> None:
    """In one process and in several."""
    server = McpServer(refresh_delay=0.2)

    async def ask(kept: SignIns) -> set[str]:
        accesses = [StoredAccess(kept), StoredAccess(kept)]
        return set(await asyncio.gather(*(access.token() for access in accesses for _ in range(5))))

    with signed_in(server, ledger) as (_, kept):
        assert len(asyncio.run(ask(kept))) == 1
    assert server.requests["refresh_token"] == 1


def test_cancelled_caller_does_not_break_the_renewal_off(ledger: Ledger) -> None:
    """A run may end at that very moment: the new token is recorded all the same."""
    server = McpServer(refresh_delay=0.5)

    async def cancelled(url: str, kept: SignIns) -> None:
        async with HaloReader(access=StoredAccess(kept), url=url) as reader:
            asking = asyncio.create_task(reader.tools())
            await until(lambda: server.refreshes)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with signed_in(server, ledger) as (url, kept):
        asyncio.run(cancelled(url, kept))
        turn = kept.turn(refused=None, renew_before=300.0)
        assert (turn.renews, turn.sign_in.access_token in server._access) == (False, True)
    assert not server.revoked


def test_server_that_is_not_there_ends_nothing(ledger: Ledger) -> None:
    """The refresh token is not used up: the next one renews at once."""
    server = McpServer()
    with signed_in(server, ledger) as (_, kept):
        pass
    with pytest.raises(HaloReadError):
        asyncio.run(StoredAccess(kept).token())

    turn = kept.turn(refused=None, renew_before=300.0)
    assert (turn.renews, turn.interrupted) == (True, False)


def test_revoked_sign_in_asks_for_a_person(ledger: Ledger) -> None:
    """The remedy is in the error, for everybody."""
    server = McpServer()
    with signed_in(server, ledger) as (_, kept):
        server._refresh = None
        for _ in range(2):
            with pytest.raises(HaloSignInError, match=r"invalid_grant.*run `halo-login --conn-id halo_default`"):
                asyncio.run(StoredAccess(kept).token())
    assert server.requests["refresh_token"] == 1


def test_token_that_ends_in_mid_run_is_renewed(ledger: Ledger) -> None:
    """Halo's 401 is the first to know."""
    server = McpServer()

    async def asked_twice(url: str, kept: SignIns) -> None:
        async with HaloReader(access=StoredAccess(kept), url=url) as reader:
            await reader.tools()
            server._access.clear()
            assert (await reader.search_transcripts(user_id="nobody")).records == ()

    with signed_in(server, ledger) as (url, kept):
        asyncio.run(asked_twice(url, kept))
    assert server.requests["refresh_token"] == 2
    assert not server.revoked
