"""How fast to send: concurrency that adapts, pauses that Halo asks for, back-off between attempts, and stopping."""

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from halo_provider.exceptions import HaloCallError, HaloRateLimitError, HaloServerError

MAX_PAUSE = 300.0  # seconds of Retry-After waited for here; a longer one ends the run, and Airflow waits
MAX_REFUSALS = 100  # rounds in a row that Halo answers with 429 before the run gives up


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a random wait of at most `base` seconds, doubled with every attempt, capped (in seconds)."""

    base: float = 0.5
    cap: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the attempt with this number, from 1."""
        return random.uniform(0.0, min(self.cap, self.base * 2 ** min(attempt - 1, 30)))  # noqa: S311 -- no secret


class Stop:
    """The wish to end a run early. Requests may come from a signal handler through the loop.

    A grace is how long, in seconds, attempts in flight may still take; without one they have their own timeout.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason: str | None = None
        self.error: Exception | None = None
        self.ends_at: float | None = None  # the end of the grace, on the loop's clock
        self._limits: set[asyncio.Timeout] = set()

    @property
    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._event.is_set()

    def request(self, reason: str, *, error: Exception | None = None, grace: float | None = None) -> None:
        """Ask for the end. The first reason counts; a shorter grace always does."""
        if self.reason is None:
            self.reason = reason
            self.error = error
        if grace is not None:
            end = asyncio.get_running_loop().time() + grace
            self.ends_at = end if self.ends_at is None else min(self.ends_at, end)
            for limit in self._limits:
                if not limit.expired():
                    limit.reschedule(self.ends_at)
        self._event.set()

    def limit(self) -> "_Limit":
        """Break the block off when a grace is over; it then raises TimeoutError."""
        return _Limit(self._limits, asyncio.timeout_at(self.ends_at))

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until somebody asks."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return


class _Limit:
    """A timeout that can be found, and put earlier, while its block runs; every request has one."""

    __slots__ = ("_limits", "_timeout")

    def __init__(self, limits: set[asyncio.Timeout], timeout: asyncio.Timeout) -> None:
        self._limits = limits
        self._timeout = timeout

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._limits.add(self._timeout)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limits.discard(self._timeout)
        await self._timeout.__aexit__(exc_type, exc, traceback)


class Pacer:
    """Lets requests through: at most `limit` at a time, at most `requests_per_second`, none during a pause.

    The limit falls by half when Halo refuses (429, 503), once for all that were under way together, and grows back by
    one for every full round of successes, never beyond `concurrency` (additive increase, multiplicative decrease).
    """

    def __init__(self, *, concurrency: int, requests_per_second: float | None, stop: Stop) -> None:
        self.concurrency = concurrency
        self.limit = concurrency
        self.in_flight = 0
        self.refused = 0
        self._stop = stop
        self._interval = 1.0 / requests_per_second if requests_per_second else 0.0
        self._next_start = 0.0
        self._paused_until = 0.0
        self._lowered_at = 0.0
        self._successes = 0
        self._refusals_in_a_row = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> float:
        """Wait for a place and take it. Returns when it was taken, or stops waiting when the run is to end."""
        loop = asyncio.get_running_loop()
        while not self._stop.requested:
            now = loop.time()
            if self._paused_until > now:
                await self._stop.sleep(self._paused_until - now)
            elif self.in_flight >= self.limit:
                place: asyncio.Future[None] = loop.create_future()
                self._waiting.append(place)
                await place
            elif self._interval and self._next_start > now:
                start = self._next_start
                self._next_start = start + self._interval
                self.in_flight += 1
                await self._stop.sleep(start - now)
                if self._stop.requested or self._paused_until <= loop.time():
                    return loop.time()
                self.release()
            else:
                self._next_start = now + self._interval
                self.in_flight += 1
                return now
        self.in_flight += 1
        return loop.time()

    def release(self) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self) -> None:
        """Halo answered as it should."""
        self._refusals_in_a_row = 0
        if self.limit < self.concurrency:
            self._successes += 1
            if self._successes >= self.limit:
                self._successes = 0
                self.limit += 1
                self._admit()

    def failed(self, error: HaloCallError, *, started: float) -> None:
        """Halo refused, or broke, the attempt that started at this time: slow down where it says so."""
        refusal = isinstance(error, HaloRateLimitError)
        if not (refusal or (isinstance(error, HaloServerError) and error.status == 503)):  # noqa: PLR2004
            return
        self.refused += 1
        first_of_its_round = started >= self._lowered_at
        now = asyncio.get_running_loop().time()
        if first_of_its_round:
            self.limit = max(1, self.limit // 2)
            self._lowered_at = now
            self._successes = 0
            self._refusals_in_a_row += refusal
        if error.retry_after is not None:
            wait = error.retry_after
        elif refusal and first_of_its_round:
            wait = Backoff(base=1.0).delay(self._refusals_in_a_row)
        else:
            return
        if wait > MAX_PAUSE or self._refusals_in_a_row > MAX_REFUSALS:
            self._stop.request("Halo asks to come back later", error=error)
        self._paused_until = max(self._paused_until, now + min(wait, MAX_PAUSE))

    def _admit(self) -> None:
        free = self.limit - self.in_flight
        while self._waiting and (free > 0 or self._stop.requested):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
