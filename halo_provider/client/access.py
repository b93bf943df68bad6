"""Access tokens that any number of processes share, each renewed exactly once."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import httpx

from halo_provider.client import oauth
from halo_provider.client.web import Web
from halo_provider.exceptions import HaloReadError, HaloSignInError
from halo_provider.models import SignIn, Turn

RENEW_BEFORE = 300.0  # seconds before its end at which an access token is renewed; at most a tenth of its life
SHORT_CACHE = 5.0  # seconds for which a token near its end is used without asking again
POLL = 0.2  # seconds between looks at whether another process has renewed it
CLOSE_TIMEOUT = 2.0  # seconds that the end of a run waits for a renewal
RENEWAL_TIMEOUT = 20.0  # seconds at most for the answer of the token endpoint

_T = TypeVar("_T")


class TokenStore(Protocol):
    """Where a sign-in is kept for all processes. The methods block; they raise LedgerError."""

    def turn(self, *, refused: str | None, renew_before: float) -> Turn:
        """The tokens, and whose turn it is to renew them. Raises HaloSignInError where nobody is signed in."""
        ...

    def renewed(self, sign_in: SignIn, *, lifetime: float | None) -> bool:
        """Record the new tokens; whether it was still this one's turn."""
        ...

    def not_renewed(self, *, problem: str | None) -> None:
        """End this one's turn: the refresh token is not used up, or, with a `problem`, a person must sign in again."""
        ...


class StoredAccess:
    """Gives a valid access token, from the store where another process has renewed it.

    The refresh token is good for one use. So a process records that it renews before it does; where it dies before the
    answer is recorded, the next one tries again after a while, and if Halo has rotated the token meanwhile, a person
    has to sign in again: `HaloSignInError` says so, and so does the store.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._transport = transport
        self._ssl_context = ssl_context
        self._clock = clock
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._token: str | None = None
        self._good_until = 0.0  # on the clock
        self._renewal: asyncio.Future[_Token] | None = None

    async def token(self, *, refused: str | None = None) -> str:
        """A token that is valid now. Raises HaloSignInError, HaloReadError and LedgerError."""
        async with self._lock:
            if self._token is not None and self._token != refused and self._clock() < self._good_until:
                return self._token
            return await self._asked(refused)

    async def close(self) -> None:
        """Give a renewal under way a short while: a new token that is not recorded ends the sign-in."""
        if self._renewal is not None:
            await asyncio.wait({self._renewal}, timeout=CLOSE_TIMEOUT)

    async def _asked(self, refused: str | None) -> str:
        while True:
            began = self._clock()
            turn = await _in_thread(partial(self._store.turn, refused=refused, renew_before=RENEW_BEFORE))
            if turn.renews:
                # On a thread of its own: whoever waits for it may be cancelled, the renewal must not be.
                self._renewal = asyncio.ensure_future(_in_thread(partial(self._renew, turn, refused, began)))
                return self._keep(await asyncio.shield(self._renewal))
            if turn.sign_in.access_token != refused and (turn.seconds_left is None or turn.seconds_left > 0):
                return self._keep(_Token(turn.sign_in, turn.seconds_left, near_end=turn.waits > 0, since=began))
            await self._sleep(min(POLL, turn.waits or POLL))

    def _renew(self, turn: Turn, refused: str | None, began: float) -> "_Token":
        """Renew the tokens and record them. Blocks."""
        # Its turn must not end while Halo may still take the request: two uses of one token end the sign-in.
        timeout = min(RENEWAL_TIMEOUT, turn.waits / 3)
        if self._clock() - began > timeout:
            raise HaloReadError("this process was held up before it could renew the access token")
        try:
            asked_at = self._clock()
            renewed = asyncio.run(self._refreshed(turn.sign_in, timeout=timeout))
        except HaloSignInError as error:
            reason = error.reason.partition("; run `halo-login")[0]
            if turn.interrupted:
                reason = f"a process died while it renewed the access token, and {reason}"
            self._store.not_renewed(problem=reason)
            self._store.turn(refused=refused, renew_before=RENEW_BEFORE)  # raises the same with its remedy
            raise
        except HaloReadError as error:
            if not error.sent:
                self._store.not_renewed(problem=None)
            left = (turn.seconds_left or 0.0) - (self._clock() - began)
            if turn.sign_in.access_token != refused and left > 0:
                return _Token(turn.sign_in, left, near_end=True, since=self._clock())
            raise
        if not self._store.renewed(renewed.sign_in, lifetime=renewed.lifetime):
            raise HaloReadError("another process took over while the access token was renewed")
        return _Token(renewed.sign_in, renewed.lifetime, near_end=False, since=asked_at)

    async def _refreshed(self, sign_in: SignIn, *, timeout: float) -> oauth.Renewed:  # noqa: ASYNC109 -- HTTP's
        transport = self._transport() if self._transport else None
        endpoint = sign_in.token_endpoint
        async with Web(endpoint, timeout=timeout, transport=transport, ssl_context=self._ssl_context) as web:
            return await oauth.refresh(web, sign_in)

    def _keep(self, token: "_Token") -> str:
        left = token.seconds_left if token.seconds_left is not None else RENEW_BEFORE
        self._good_until = token.since + (min(SHORT_CACHE, left) if token.near_end else left - margin_of(left))
        self._token = token.sign_in.access_token
        return self._token


class _Token(NamedTuple):
    """A token to keep; `since` is when its seconds were counted, on the clock."""

    sign_in: SignIn
    seconds_left: float | None
    near_end: bool
    since: float


def margin_of(lifetime: float, *, renew_before: float = RENEW_BEFORE) -> float:
    """How many seconds before its end a token with this lifetime is renewed."""
    return min(renew_before, lifetime / 10)


async def _in_thread(call: Callable[[], _T]) -> _T:
    """Make a blocking call on a thread of its own, which goes on where the caller is cancelled."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="halo-sign-in")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
    finally:
        thread.shutdown(wait=False)
