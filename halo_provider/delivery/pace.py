"""How fast to send: concurrency that adapts, pauses that Halo asks for, back-off between attempts, and stopping."""

import asyncio
import math
import random
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloCallError, HaloRateLimitError, HaloServerError

MAX_PAUSE = 300.0  # seconds of Retry-After waited for here; a longer one ends the run, and Airflow waits
MAX_LATENESS = 0.05  # seconds by which a start may be late and still count as in time, so that the next ones are
PACE_WINDOW = 10.0  # seconds of sending that tell the pace which Halo refused
PACE_EVIDENCE = 10  # requests in that time, over a second at least: with less there is no telling
PACE_USED = 0.8  # share of the pace allowed; a run that sends less is held back by something else
PACE_KEPT = 0.95  # share of that pace with which the run goes on
PACE_RECOVERY = 60.0  # seconds after which the pace, once back where it was refused, has doubled
MAX_REFUSALS = 100  # rounds in a row that Halo answers with 429 before the run gives up


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a random wait of at most `base` seconds, doubled with every attempt, capped (in seconds)."""

    base: float = 0.5
    cap: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the attempt with this number, from 1."""
        return random.uniform(0.0, min(self.cap, self.base * 2 ** min(attempt - 1, 30)))  # noqa: S311 -- no secret


class _LearnedPace:
    """How many requests a second Halo takes, found out by its refusals.

    After one the pace is a little lower. It grows back slowly to where it was refused, stays around there, and grows
    ever faster when nothing happens (like TCP's CUBIC), so that a limit is met seldom and a limit lifted is noticed.
    """

    def __init__(self) -> None:
        self._starts: deque[float] = deque()  # of the requests of late that Halo did not refuse
        self._refused_pace = math.inf
        self._explored_from = 0.0  # when the pace is back where it was refused

    def began(self, now: float) -> None:
        """Remember a request."""
        self._starts.append(now)
        while self._starts[0] < now - PACE_WINDOW:
            self._starts.popleft()

    def refused(self, started: float) -> None:
        """Forget a request: Halo did not take it."""
        with suppress(ValueError):  # it began too long ago
            self._starts.remove(started)

    def lower(self, now: float, *, until: float) -> bool:
        """Go on more slowly after a pause that ends then. False if too little was sent to know from what pace."""
        seconds = now - self._starts[0] if self._starts else 0.0
        pace = self.at(now)
        if seconds >= 1.0 and len(self._starts) >= PACE_EVIDENCE and len(self._starts) / seconds < PACE_USED * pace:
            pace = len(self._starts) / seconds
        if pace == math.inf:
            return False
        self._refused_pace = pace
        self._explored_from = until + PACE_RECOVERY * (1 - PACE_KEPT) ** (1 / 3)
        return True

    def at(self, now: float) -> float:
        """The pace at this time, in requests a second; without a limit until one is met."""
        if self._refused_pace == math.inf:
            return math.inf
        return self._refused_pace * max(PACE_KEPT, 1 + ((now - self._explored_from) / PACE_RECOVERY) ** 3)


class Pacer:
    """Lets requests through: at most `limit` at a time, at most `requests_per_second`, none during a pause.

    When Halo refuses for its load (503), or for the rate (429) before it is known what rate it takes, the limit falls
    by half, once for all that were under way together. It grows back by one for every full round of successes, never
    beyond `concurrency` (additive increase, multiplicative decrease). Later refusals for the rate lower the pace.
    """

    def __init__(self, *, concurrency: int, requests_per_second: float | None, stop: Stop) -> None:
        self.concurrency = concurrency
        self.limit = concurrency
        self.in_flight = 0
        self.refused = 0
        self._stop = stop
        self._interval = 1.0 / requests_per_second if requests_per_second else 0.0
        self._pace = _LearnedPace()
        self._turn = asyncio.Lock()  # to wait for the next start
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
            elif self._next_start > now:
                async with self._turn:
                    await self._stop.sleep(self._next_start - loop.time())
            else:
                due = self._next_start if now - self._next_start < MAX_LATENESS else now
                self._next_start = due + max(self._interval, 1 / self._pace.at(now))
                self._pace.began(now)
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
        self._pace.refused(started)
        if first_of_its_round:
            self._lowered_at = now
            self._refusals_in_a_row += refusal
        wait = error.retry_after
        if wait is None:
            wait = Backoff(base=1.0).delay(self._refusals_in_a_row) if refusal and first_of_its_round else 0.0
        if wait > MAX_PAUSE or self._refusals_in_a_row > MAX_REFUSALS:
            self._stop.request("Halo asks to come back later", error=error)
        self._paused_until = max(self._paused_until, now + min(wait, MAX_PAUSE))
        if first_of_its_round and not (refusal and self._pace.lower(now, until=self._paused_until)):
            self.limit = max(1, self.limit // 2)
            self._successes = 0

    def _admit(self) -> None:
        free = self.limit - self.in_flight
        while self._waiting and (free > 0 or self._stop.requested):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
