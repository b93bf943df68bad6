"""The sending loop: attempt a request, conclude what the attempt means, wait, and attempt it again."""

import time
from collections.abc import Callable
from typing import Protocol

from halo_provider.delivery.options import SendOptions
from halo_provider.delivery.pace import Pacer
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
        """Attempt the request until its exchange is over. Answers of 429 do not use up attempts."""
        failures = 0
        while True:
            started = await self.pacer.acquire()
            try:
                if not await exchange.may_attempt():
                    return
                error = await self._attempt(exchange)
            finally:
                self.pacer.release()
            if error is None:
                self.pacer.succeeded()
                return
            self.pacer.failed(error, started=started)
            failures += not isinstance(error, HaloRateLimitError)
            if exchange.conclude(error, is_last=failures >= self._options.max_attempts):
                return
            if failures:
                await self._stop.sleep(self._options.backoff.delay(failures))

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
