"""How the pacer settles with a Halo that has limits: a run's whole traffic, in virtual time."""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from halo_provider.delivery.pace import Pacer
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloCallError, HaloRateLimitError, HaloServerError
from tests.core.test_pace import clock, virtual

CONCURRENCY = 64
REFUSAL_TIME = 0.02  # seconds until a refusal comes
RUN = 200.0  # seconds
SETTLED = 30.0  # seconds after which the pacer must know


@dataclass
class Halo:
    """A Halo that remembers when it took and refused requests, and how long it took to answer."""

    answer_time: float = 0.5  # seconds
    retry_after: float | None = None  # seconds
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    in_service: int = 0

    def refusal(self) -> HaloCallError | None:
        """Why the request that comes now is refused, if it is."""

    def seconds(self) -> float:
        """How long the answer to it takes."""
        return self.answer_time * random.uniform(0.7, 1.3)

    async def answer(self) -> HaloCallError | None:
        """Take one request, or refuse it."""
        now = clock()
        if refusal := self.refusal():
            self.refused.append(now)
            await asyncio.sleep(REFUSAL_TIME)
            return refusal
        self.taken.append(now)
        self.in_service += 1
        seconds = self.seconds()
        await asyncio.sleep(seconds)
        self.in_service -= 1
        self.latencies.append((now, seconds))
        return None

    def rate(self, begin: float, end: float) -> float:
        """Requests taken in a second, between two moments of the run."""
        return sum(begin <= moment < end for moment in self.taken) / (end - begin)

    def refused_share(self, *, after: float = 0.0) -> float:
        """Requests refused, of all requests from then on."""
        refused = sum(moment >= after for moment in self.refused)
        return refused / (refused + sum(moment >= after for moment in self.taken))

    def slowest(self, *, after: float) -> float:
        """The longest answer to a request from then on, in seconds."""
        return max(seconds for moment, seconds in self.latencies if moment >= after)


@dataclass
class SlidingWindow(Halo):
    """It takes so many requests in any one second."""

    allowed: int = 20

    def __post_init__(self) -> None:
        """Start with an empty window."""
        self._window: deque[float] = deque()

    def refusal(self) -> HaloCallError | None:
        """Refuse by 429 what is too much."""
        while self._window and self._window[0] <= clock() - 1.0:
            self._window.popleft()
        if len(self._window) < self.allowed:
            self._window.append(clock())
            return None
        return HaloRateLimitError("/chat", status=429, message="slow down", retry_after=self.retry_after)


@dataclass
class TokenBucket(SlidingWindow):
    """It takes bursts of so many requests, and as many a second in the long run."""

    def __post_init__(self) -> None:
        """Start with a full bucket."""
        self._tokens, self._filled_at = float(self.allowed), 0.0

    def refusal(self) -> HaloCallError | None:
        """Refuse by 429 where the bucket is empty."""
        gained = (clock() - self._filled_at) * self.allowed
        self._tokens, self._filled_at = min(self.allowed, self._tokens + gained), clock()
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return None
        return HaloRateLimitError("/chat", status=429, message="slow down", retry_after=self.retry_after)


@dataclass
class Slowing(Halo):
    """It answers ten requests at a time in their usual time, more of them more slowly; beyond `bearable`, 503."""

    bearable: int | None = None

    def refusal(self) -> HaloCallError | None:
        """Refuse by 503 what is too much at a time."""
        if self.bearable is not None and self.in_service >= self.bearable:
            return HaloServerError("/chat", status=503, message="overloaded", retry_after=self.retry_after)
        return None

    def seconds(self) -> float:
        """Everybody gets an equal share."""
        return super().seconds() * max(1.0, self.in_service / 10)


def meet(
    halo: Halo, *, seconds: float = RUN, meanwhile: Callable[[Halo, float], None] = lambda _halo, _now: None
) -> Pacer:
    """Send as much as the pacer lets through for so long; `meanwhile` may change the Halo before each request."""
    random.seed(0)
    pacers: list[Pacer] = []

    async def run() -> None:
        stop = Stop()
        pacer = Pacer(concurrency=CONCURRENCY, requests_per_second=None, stop=stop)
        pacers.append(pacer)

        async def send_always() -> None:
            while clock() < seconds:
                started = await pacer.acquire()
                meanwhile(halo, clock())
                try:
                    error = await halo.answer()
                finally:
                    pacer.release()
                if error is None:
                    pacer.succeeded()
                else:
                    pacer.failed(error, started=started)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(send_always())
        assert not stop.requested

    virtual(run)
    return pacers[0]


@pytest.mark.parametrize("answer_time", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("retry_after", [1.0, 0.0, None])
@pytest.mark.parametrize("kind", [SlidingWindow, TokenBucket])
def test_sender_settles_at_the_rate_that_halo_allows(
    kind: type[SlidingWindow], retry_after: float | None, answer_time: float
) -> None:
    """Within 10 % of 20 requests a second, with under 5 % refused, the first burst of 64 included."""
    halo = kind(answer_time=answer_time, retry_after=retry_after)

    meet(halo)

    assert halo.rate(RUN / 2, RUN) == pytest.approx(20.0, rel=0.1)
    assert halo.refused_share() < 0.05
    assert halo.refused_share(after=SETTLED) < 0.01


def test_limit_that_is_lifted_is_noticed() -> None:
    """From 20 requests a second to 100: found out within three minutes."""
    halo = SlidingWindow(retry_after=1.0)

    def lift(halo: Halo, now: float) -> None:
        assert isinstance(halo, SlidingWindow)
        halo.allowed = 20 if now < 60.0 else 100

    meet(halo, seconds=300.0, meanwhile=lift)

    assert halo.rate(240.0, 300.0) > 80.0


def test_limit_that_falls_is_obeyed() -> None:
    """From 100 requests a second to 20, in the middle of a run: within a minute."""
    halo = SlidingWindow(allowed=100, retry_after=1.0)

    def lower(halo: Halo, now: float) -> None:
        assert isinstance(halo, SlidingWindow)
        halo.allowed = 100 if now < 60.0 else 20

    meet(halo, meanwhile=lower)

    assert halo.rate(150.0, 200.0) == pytest.approx(20.0, rel=0.1)
    assert halo.refused_share(after=120.0) < 0.01


def test_latency_of_a_halo_that_slows_down_is_bounded_by_the_concurrency() -> None:
    """However many rows wait, no more than 64 ask at a time: the rest of the waiting is ours, not Halo's."""
    halo = Slowing()
    meet(halo)
    assert halo.slowest(after=0.0) <= 1.3 * 0.5 * CONCURRENCY / 10


def test_overload_brings_the_latency_down() -> None:
    """A Halo that refuses by 503 more than 20 at a time answers them in little more than twice its usual time."""
    halo = Slowing(bearable=20)

    meet(halo)

    assert halo.slowest(after=SETTLED) <= 1.3 * 0.5 * 20 / 10
    assert halo.rate(RUN / 2, RUN) > 0.9 * 20.0
    assert halo.refused_share(after=SETTLED) < 0.05


def test_overload_that_has_passed_leaves_no_trace() -> None:
    """A minute after the last 503 everything is as at the beginning."""
    halo = Slowing(bearable=20)

    def recover(halo: Halo, now: float) -> None:
        assert isinstance(halo, Slowing)
        halo.bearable = 20 if now < 60.0 else None

    assert meet(halo, seconds=240.0, meanwhile=recover).limit == CONCURRENCY
