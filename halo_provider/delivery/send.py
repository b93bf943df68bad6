"""The sending loop: attempt a request, conclude what the attempt means, wait, and attempt it again."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from halo_provider.delivery.options import SendOptions
from halo_provider.delivery.pace import Pacer
from halo_provider.delivery.refusals import Refusals
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloCallError, HaloConnectionError, HaloRateLimitError


class Exchange(Protocol):
    """One request to Halo and what becomes of it, over all its attempts."""

    path: str  # the endpoint's, for errors

    async def may_attempt(self) -> bool:
        """Prepare the next attempt; False ends the exchange without one."""
        ...

    async def attempt(self) -> None:
        """Make one attempt, and record its success. Raises HaloCallError."""

    def conclude(self, error: HaloCallError, *, is_last: bool) -> bool:
        """Record what an unsuccessful attempt means; whether the exchange is over. `is_last`: no attempt is left."""
        ...


@dataclass(slots=True, eq=False)
class Sending:
    """An exchange, and what has come of its attempts so far."""

    exchange: Exchange
    failures: int = 0
    refusals: Refusals = field(default_factory=Refusals)


class Sender:
    """Sends requests at Halo's pace; each is attempted until its exchange is over."""

    def __init__(
        self,
        options: SendOptions,
        *,
        stop: Stop,
        on_request: Callable[[float, HaloCallError | None], None] = lambda _seconds, _error: None,
    ) -> None:
        self.pacer = Pacer(concurrency=options.concurrency, requests_per_second=options.requests_per_second, stop=stop)
        self.requests = 0
        self._options = options
        self._stop = stop
        self._on_request = on_request

    async def send(self, exchange: Exchange) -> None:
        """Attempt the request until its exchange is over."""
        sending = Sending(exchange)
        while (wait := await self.attempt(sending)) is not None:
            await self._stop.sleep(wait)

    async def attempt(self, sending: Sending) -> float | None:
        """Attempt the request once. Returns the seconds until the next attempt, None where the exchange is over.

        Answers of 429 do not use up attempts.
        """
        attempt = await self.pacer.acquire()
        try:
            if not await sending.exchange.may_attempt():
                return None
            self.pacer.begin(attempt, sending.refusals)
            error = await self._attempt(sending.exchange)
        finally:
            self.pacer.release(attempt)
        if error is None:
            self.pacer.succeeded(attempt, sending.refusals)
            return None
        refused = self.pacer.failed(attempt, error, sending.refusals)
        sending.failures += not isinstance(error, HaloRateLimitError)
        given_up = sending.refusals.hopeless and not self._stop.requested
        is_last = sending.failures >= self._options.max_attempts or given_up
        if sending.exchange.conclude(error, is_last=is_last):
            return None
        backoff = self._options.backoff
        return sending.refusals.wait(error, backoff) if refused else backoff.delay(sending.failures)

    async def _attempt(self, exchange: Exchange) -> HaloCallError | None:
        self.requests += 1
        began = time.monotonic()
        error: HaloCallError | None = None
        try:
            async with self._stop.limit():
                await exchange.attempt()
        except HaloCallError as raised:
            error = raised
        except TimeoutError:
            error = HaloConnectionError(exchange.path, sent=True, reason="the run ended before the answer came")
        self._on_request(time.monotonic() - began, error)
        return error
