"""How the pacer settles with a Halo that has limits: a run's whole traffic, in virtual time, under every regime."""

import asyncio
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from halo_provider.delivery.pace import Pace, Pacer
from halo_provider.delivery.refusals import Backoff, Refusals
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloRateLimitError, HaloServerError
from halo_provider.simulator import (
    AllOf,
    Arrival,
    ChangingLimit,
    ConcurrencyLimit,
    FixedWindow,
    Limit,
    RefusedUsers,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
    WaitingQueue,
)
from halo_provider.simulator.limits import limiter_of
from tests.core.test_pace import clock, virtual

CONCURRENCY = 64
REFUSAL_TIME = 0.005  # seconds until a refusal comes
RUN = 100.0  # seconds
SETTLED = 30.0  # seconds after which the pacer must know
BACKOFF = Backoff()


@dataclass
class Traffic:
    """When a Halo admitted and refused requests, and whose."""

    admitted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, int]] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    pacers: list[Pacer] = field(default_factory=list)
    paces: list[Pace] = field(default_factory=list)
    ended: float = 0.0

    def rate(self, begin: float, end: float) -> float:
        """Requests admitted in a second, between two moments of the run."""
        return sum(begin <= moment < end for moment, _ in self.admitted) / (end - begin)

    def shares(self, begin: float) -> list[float]:
        """Of the admitted requests from then on, each sender's."""
        counts = Counter(sender for moment, sender in self.admitted if moment >= begin)
        return [counts[sender] / counts.total() for sender in range(len(self.pacers))]

    def refused_share(self, begin: float = 0.0) -> float:
        """Requests refused, of all requests from then on."""
        refused = sum(moment >= begin for moment, _ in self.refused)
        return refused / max(1, refused + sum(moment >= begin for moment, _ in self.admitted))

    def reaches(self, rate: float, *, since: float) -> float:
        """Seconds from then on until so many requests a second are admitted in two seconds."""
        moment = since
        while self.rate(moment, moment + 2.0) < rate:
            moment += 0.5
            assert moment < self.ended, "never"
        return moment - since


class Halo:
    """A limited Halo that takes some time to answer, give or take 30 %."""

    def __init__(self, limit: Limit | None, *, latency: float, traffic: Traffic) -> None:
        self._limiter = limiter_of(limit)
        self._latency = latency
        self._traffic = traffic
        self._in_flight = 0

    async def answer(self, *, sender: int, row: int) -> HaloRateLimitError | HaloServerError | None:
        """Answer one request, or refuse it."""
        arrival = Arrival(now=clock(), in_flight=self._in_flight, user_id=f"user-{row}")
        refusal = self._limiter.admit(arrival)
        if refusal is not None:
            self._traffic.refused.append((arrival.now, sender))
            await asyncio.sleep(REFUSAL_TIME)
            kind = HaloRateLimitError if refusal.status == 429 else HaloServerError
            return kind("/chat", status=refusal.status, message="slow down", retry_after=refusal.retry_after)
        self._traffic.admitted.append((arrival.now, sender))
        self._in_flight += 1
        await asyncio.sleep(self._limiter.latency(arrival, base=self._latency * random.uniform(0.7, 1.3)))
        self._in_flight -= 1
        return None


@dataclass
class Sender:
    """One run: rows, as many at a time as its pacer lets through; a refused row waits by itself and queues again."""

    number: int
    halo: Halo
    traffic: Traffic
    rows: int | None
    until: float
    pacer: Pacer
    next_row: int = 0
    waiting: list[tuple[float, int]] = field(default_factory=list)
    ready: deque[int] = field(default_factory=deque)
    refusals: dict[int, Refusals] = field(default_factory=dict)

    async def run(self, *, begins_at: float) -> None:
        """Send everything, or until the time is over."""
        await asyncio.sleep(begins_at)
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(self._send_always())

    async def _send_always(self) -> None:
        while clock() < self.until:
            attempt = await self.pacer.acquire()
            row = self._row()
            if row is None:
                self.pacer.release(attempt)
                if not self.waiting:
                    return
                await asyncio.sleep(max(0.001, self.waiting[0][0] - clock()))
                continue
            refusals = self.refusals.setdefault(row, Refusals())
            self.pacer.begin(attempt, refusals)
            error = await self.halo.answer(sender=self.number, row=row)
            self.pacer.release(attempt)
            if error is None:
                self.pacer.succeeded(attempt, refusals)
                continue
            self.pacer.failed(attempt, error, refusals)
            if refusals.hopeless:
                self.traffic.given_up.append(row)
            else:
                heappush(self.waiting, (clock() + refusals.wait(error, BACKOFF), row))

    def _row(self) -> int | None:
        while self.waiting and self.waiting[0][0] <= clock():
            self.ready.append(heappop(self.waiting)[1])
        if self.ready and (self.next_row == self.rows or random.random() < 0.5):
            return self.ready.popleft()
        if self.next_row == self.rows:
            return None
        self.next_row += 1
        return self.next_row


def meet(
    limit: Limit | None,
    *,
    latency: float = 0.5,
    seconds: float = RUN,
    senders: int = 1,
    begin_every: float = 0.0,
    rows: int | None = None,
    requests_per_second: float | None = None,
    seed: int = 0,
) -> Traffic:
    """Send as much as the pacers let through for so long, or so many rows."""
    random.seed(seed)
    traffic = Traffic()
    halo = Halo(limit, latency=latency, traffic=traffic)

    async def run() -> None:
        stops = [Stop() for _ in range(senders)]
        traffic.pacers.extend(
            Pacer(concurrency=CONCURRENCY, requests_per_second=requests_per_second, stop=stop) for stop in stops
        )
        await asyncio.gather(
            *(
                Sender(number, halo, traffic, rows, seconds, pacer).run(begins_at=number * begin_every)
                for number, pacer in enumerate(traffic.pacers)
            )
        )
        assert not any(stop.requested for stop in stops)
        traffic.ended = clock()
        traffic.paces.extend(pacer.pace() for pacer in traffic.pacers)

    virtual(run)
    return traffic


@pytest.mark.parametrize("latency", [0.02, 0.5, 2.0])
@pytest.mark.parametrize("retry_after", ["whole_seconds", "exact", None])
def test_sender_settles_at_the_rate_that_halo_allows(retry_after: str | None, latency: float) -> None:
    """20 requests a second, and under 5 % refused once that is known."""
    traffic = meet(TokenBucket(rate=20, retry_after=retry_after), latency=latency)

    assert traffic.rate(0.0, RUN) > 0.95 * 20.0
    assert traffic.rate(SETTLED, RUN) == pytest.approx(20.0, rel=0.05)
    assert traffic.paces[0].requests_per_second == pytest.approx(20.0, rel=0.15)
    assert traffic.refused_share(SETTLED) < 0.05


@pytest.mark.parametrize("latency", [0.05, 0.1, 0.2])
def test_few_are_refused_by_a_rate_that_tells_when_to_come_back(latency: float) -> None:
    """Those who come back together, and refusals at a pace still too high, are not taken for refusals by chance."""
    for seed in range(6):
        traffic = meet(TokenBucket(rate=20), latency=latency, seconds=SETTLED, seed=seed)
        assert traffic.refused_share(SETTLED / 2) < 0.1
        assert traffic.given_up == []


@pytest.mark.parametrize("latency", [0.02, 0.5])
def test_window_is_used_up_every_time(latency: float) -> None:
    """100 requests in every ten seconds, whose end Retry-After tells, and under 5 % refused once that is known."""
    for retry_after in ("exact", "whole_seconds"):
        traffic = meet(FixedWindow(requests=100, seconds=10, retry_after=retry_after), latency=latency)

        assert traffic.rate(0.0, RUN) > 0.95 * 10.0
        assert traffic.refused_share(SETTLED) < 0.05


@pytest.mark.parametrize("retry_after", ["exact", "whole_seconds", None])
def test_window_smaller_than_the_requests_in_flight_is_noticed(retry_after: str | None) -> None:
    """30 in every five seconds: those refused before, who come back into a used-up window, do not hide that it is."""
    for seed in range(8):
        traffic = meet(FixedWindow(requests=30, seconds=5, retry_after=retry_after), seconds=60.0, seed=seed)

        assert traffic.rate(0.0, 60.0) > 0.8 * 6.0
        assert traffic.refused_share(SETTLED) < 0.25


def test_window_of_which_nobody_tells_is_found_out() -> None:
    """100 requests in every ten seconds, without Retry-After."""
    traffic = meet(FixedWindow(requests=100, seconds=10, retry_after=None), latency=0.5)

    assert traffic.rate(0.0, RUN) > 0.75 * 10.0
    assert traffic.refused_share(SETTLED) < 0.1


@pytest.mark.parametrize("latency", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("retry_after", [1.0, None])
def test_as_many_at_a_time_as_halo_admits(retry_after: float | None, latency: float) -> None:
    """Eight, and not many attempts at a ninth."""
    traffic = meet(ConcurrencyLimit(requests=8, retry_after=retry_after), latency=latency)

    assert traffic.rate(SETTLED, RUN) > 0.9 * 8 / latency
    assert traffic.refused_share(SETTLED) < 0.05
    assert traffic.pacers[0].limit in {8, 9}
    assert traffic.paces[0].limited_by == "concurrency"


@pytest.mark.parametrize("latency", [0.02, 0.5, 2.0])
def test_refusals_now_and_then_cost_nothing(latency: float) -> None:
    """One in a hundred is refused for a second: everybody else goes on at full speed."""
    seconds = 60.0 if latency > 0.1 else 5.0
    traffic = meet(SporadicRefusals(share=0.01, retry_after=1.0), latency=latency, seconds=seconds)

    assert traffic.rate(0.0, seconds) > 0.95 * CONCURRENCY / latency


def test_long_retry_after_of_few_does_not_stop_the_others() -> None:
    """One in a hundred is told to come back in five minutes."""
    traffic = meet(SporadicRefusals(share=0.01, retry_after=300.0), seconds=30.0)

    assert traffic.rate(0.0, 30.0) > 0.95 * CONCURRENCY / 0.5


@pytest.mark.parametrize("latency", [0.02, 0.5])
def test_many_refusals_by_chance_are_recognised(latency: float) -> None:
    """A fifth is refused whatever the pace: slowing down would help nobody."""
    seconds = 60.0 if latency > 0.1 else 12.0
    traffic = meet(SporadicRefusals(share=0.2), latency=latency, seconds=seconds)

    assert traffic.rate(seconds / 2, seconds) > 0.9 * 0.8 * CONCURRENCY / latency


@pytest.mark.parametrize("latency", [0.05, 0.5])
def test_early_refusals_are_over_within_ten_seconds(latency: float) -> None:
    """A fifth of the requests, sixty times, and then never again."""
    traffic = meet(SporadicRefusals(share=0.2, at_most=60), latency=latency, seconds=15.0)

    assert traffic.rate(10.0, 15.0) > 0.9 * CONCURRENCY / latency


@pytest.mark.parametrize("latency", [0.02, 0.5])
def test_rows_that_are_always_refused_do_not_slow_the_others(latency: float) -> None:
    """Ninety of a hundred rows are through at once, and the ten are given up in the end."""
    refused = range(5, 100, 10)
    limit = RefusedUsers(user_ids=frozenset(f"user-{row}" for row in refused))

    traffic = meet(limit, latency=latency, rows=100, seconds=600.0)

    assert max(moment for moment, _ in traffic.admitted) < 4 * latency + 1.0
    assert sorted(traffic.given_up) == list(refused)


@pytest.mark.parametrize(
    ("latency", "share"), [(0.05, 0.1), (0.1, 0.1), (0.5, 0.02), (0.5, 0.1), (0.5, 0.3), (2.0, 0.1)]
)
def test_many_rows_that_are_always_refused_do_not_slow_the_others(share: float, latency: float) -> None:
    """Some users are refused for ever, while there are always more rows."""
    for seed in range(2):
        traffic = meet(RefusedUsers(share=share), latency=latency, seconds=30.0 if latency > 0.1 else 15.0, seed=seed)

        assert traffic.rate(10.0, traffic.ended - 1.0) > 0.85 * CONCURRENCY / latency


def test_own_bound_counts_rows_that_are_always_refused() -> None:
    """Thirty requests a second are thirty, whoever is refused, and whatever Halo's own limit is."""
    limits = AllOf(limits=(RefusedUsers(share=0.3), TokenBucket(rate=20)))

    traffic = meet(limits, requests_per_second=30.0, seconds=60.0)

    moments = [moment for moment, _ in traffic.admitted + traffic.refused]
    assert max(sum(begin <= moment < begin + 1.0 for moment in moments) for begin in range(60)) <= 32
    assert traffic.rate(SETTLED, 60.0) > 10.0


@pytest.mark.parametrize(
    ("limit", "rate"),
    [
        (TokenBucket(rate=40), 40.0),
        (TokenBucket(rate=40, retry_after=None), 40.0),
        (ConcurrencyLimit(requests=10), 40.0),
    ],
)
def test_limit_is_found_beside_rows_that_are_always_refused(limit: Limit, rate: float) -> None:
    """One user in ten is refused for ever, the others where they are too many; each such row is refused ten times."""
    for seed in range(3):
        traffic = meet(AllOf(limits=(RefusedUsers(share=0.1), limit)), latency=0.25, seconds=60.0, seed=seed)

        assert traffic.rate(SETTLED, 60.0) > 0.75 * rate
        assert traffic.refused_share(SETTLED) < 0.6


@pytest.mark.parametrize(
    ("limit", "rate"), [(TokenBucket(rate=20), 20.0), (ConcurrencyLimit(requests=8), 16.0)], ids=["rate", "concurrency"]
)
def test_limit_that_comes_beside_rows_that_are_always_refused_is_obeyed(limit: Limit, rate: float) -> None:
    """Refusals that were the requests' own until now are told from those of the limit that begins."""
    beginning = ChangingLimit(steps=(Step(after=0, limit=None), Step(after=20, limit=limit)))

    traffic = meet(AllOf(limits=(RefusedUsers(share=0.1), beginning)), seconds=80.0)

    assert traffic.rate(10.0, 20.0) > 0.9 * CONCURRENCY / 0.5
    assert traffic.rate(50.0, 80.0) > 0.5 * rate
    assert sum(moment >= 30.0 for moment, _ in traffic.refused) < 50.0 * 2.5 * rate


@pytest.mark.parametrize("latency", [0.02, 0.5])
def test_halo_that_slows_down_is_kept_busy(latency: float) -> None:
    """It answers ten at a time in their usual time, more of them more slowly; nothing is refused."""
    traffic = meet(Slowdown(capacity=10), latency=latency, seconds=30.0)

    assert traffic.rate(0.0, 30.0) > 0.9 * 10 / latency
    assert traffic.refused == []


def test_full_queue_is_a_limit_of_concurrency() -> None:
    """Ten are worked on and five wait: fifteen at a time keep it busy."""
    traffic = meet(WaitingQueue(capacity=10, length=5))

    assert traffic.rate(SETTLED, RUN) > 0.9 * 10 / 0.5
    assert traffic.refused_share(SETTLED) < 0.05


@pytest.mark.parametrize("latency", [0.02, 0.5, 2.0])
def test_nothing_is_held_back_without_a_limit(latency: float) -> None:
    """All places are used all the time."""
    traffic = meet(None, latency=latency, seconds=5.0 if latency < 0.1 else 30.0)

    assert traffic.rate(0.0, 5.0) > 0.95 * CONCURRENCY / latency
    assert traffic.pacers[0].limit == CONCURRENCY


@pytest.mark.parametrize(
    ("before", "after", "rate", "within"),
    [
        (TokenBucket(rate=20), None, 128.0, 20.0),
        (TokenBucket(rate=20), TokenBucket(rate=100), 100.0, 20.0),
        (ConcurrencyLimit(requests=8), None, 128.0, 20.0),
        (FixedWindow(requests=100, seconds=10, retry_after="exact"), None, 128.0, 40.0),
    ],
)
def test_limit_that_is_lifted_is_noticed(before: Limit, after: Limit | None, rate: float, within: float) -> None:
    """Nine tenths of what is possible then are reached soon."""
    traffic = meet(ChangingLimit(steps=(Step(after=0, limit=before), Step(after=40, limit=after))))

    assert traffic.reaches(0.9 * rate, since=40.0) <= within


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        (TokenBucket(rate=100), TokenBucket(rate=20), 20.0),
        (None, TokenBucket(rate=20, retry_after=None), 20.0),
        (ConcurrencyLimit(requests=30), ConcurrencyLimit(requests=8), 16.0),
        (None, ConcurrencyLimit(requests=8), 16.0),
    ],
)
def test_limit_that_falls_is_obeyed(before: Limit | None, after: Limit, rate: float) -> None:
    """In the middle of a run: nine tenths of what is possible, and few refusals, within half a minute."""
    traffic = meet(ChangingLimit(steps=(Step(after=0, limit=before), Step(after=20, limit=after))), seconds=120.0)

    assert traffic.rate(50.0, 120.0) > 0.85 * rate
    assert traffic.refused_share(50.0) < 0.08


def test_overload_that_has_passed_leaves_no_trace() -> None:
    """A minute after the last 503 everything is as at the beginning."""
    overload = ConcurrencyLimit(requests=20, status=503)
    traffic = meet(ChangingLimit(steps=(Step(after=0, limit=overload), Step(after=60, limit=None))), seconds=120.0)

    assert traffic.pacers[0].limit == CONCURRENCY


def test_two_limits_together_are_both_found() -> None:
    """Ten at a time, 30 a second, and one in a hundred refused by chance."""
    limits = (SporadicRefusals(share=0.01), ConcurrencyLimit(requests=10), TokenBucket(rate=30))

    assert meet(AllOf(limits=limits), latency=0.1).rate(SETTLED, RUN) > 0.9 * 30.0
    assert meet(AllOf(limits=limits), latency=0.5).rate(SETTLED, RUN) > 0.9 * 20.0


@pytest.mark.parametrize(("begin_every", "least"), [(0.0, 0.2), (20.0, 0.2)])
def test_senders_share_a_bucket_without_talking(begin_every: float, least: float) -> None:
    """Three of them have 60 requests a second: nothing is left over, and even who begins last gets a share.

    Those who begin together come near a third each; who finds the others at full pace needs minutes for that.
    """
    shares = []
    for seed in range(8):
        traffic = meet(TokenBucket(rate=60), senders=3, begin_every=begin_every, seconds=140.0, seed=seed)
        assert traffic.rate(60.0, 140.0) > 0.95 * 60.0
        assert traffic.refused_share(60.0) < 0.15
        shares.append(min(traffic.shares(80.0)))

    assert sum(shares) / len(shares) > least


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    rate=st.floats(4.0, 60.0),
    burst=st.floats(0.5, 3.0),
    retry_after=st.sampled_from(["whole_seconds", "exact", None]),
    latency=st.floats(0.05, 1.0),
)
def test_any_bucket(rate: float, burst: float, retry_after: str | None, latency: float) -> None:
    """A bucket that was not thought of: at least nine tenths of its rate, and few refusals.

    To find out whether there is more costs a few refusals every ten seconds or so, however slow the pace is.
    """
    limit = TokenBucket(rate=rate, burst=max(2, round(rate * burst)), retry_after=retry_after)

    traffic = meet(limit, latency=latency)

    assert traffic.rate(SETTLED, RUN) > 0.9 * rate
    assert traffic.refused_share(SETTLED) < max(0.08, 0.5 / rate)


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(requests=st.integers(2, 40), latency=st.floats(0.05, 1.0), retry_after=st.sampled_from([None, 0.5, 2.0]))
def test_any_concurrency(requests: int, latency: float, retry_after: float | None) -> None:
    """A number at a time that was not thought of."""
    traffic = meet(ConcurrencyLimit(requests=requests, retry_after=retry_after), latency=latency)

    assert traffic.rate(SETTLED, RUN) > 0.9 * requests / latency
    assert traffic.refused_share(SETTLED) < 0.08


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(share=st.floats(0.0, 0.1), seed=st.integers(0, 1000), retry_after=st.sampled_from([None, 0.5, 5.0]))
def test_any_refusals_by_chance(share: float, seed: int, retry_after: float | None) -> None:
    """A share that was not thought of, at any time: all other requests go on."""
    traffic = meet(SporadicRefusals(share=share, seed=seed, retry_after=retry_after), seconds=60.0)

    assert traffic.rate(0.0, 60.0) > 0.9 * (1 - share) * CONCURRENCY / 0.5
