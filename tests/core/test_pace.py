"""How fast to send, on a loop whose clock moves on by itself whenever everybody waits."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from halo_provider.delivery.pace import STREAK, Pace, Pacer
from halo_provider.delivery.refusals import MAX_ALONE, MAX_PAUSE, Backoff, Refusals
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloConnectionError, HaloRateLimitError, HaloServerError


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: where it would, its clock jumps. Waiting without an end is an error."""

    def __init__(self) -> None:
        super().__init__(_Jump(self))
        self.now = 1000.0  # seconds

    def time(self) -> float:
        """The virtual clock."""
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualTime) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        """Let the time pass instead of waiting."""
        assert timeout is not None, "everybody waits for something that nobody will do"
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(test())


def clock() -> float:
    """Virtual seconds since the test began."""
    return asyncio.get_running_loop().time() - 1000.0


def pacer_of(*, concurrency: int = 8, requests_per_second: float | None = None, stop: Stop | None = None) -> Pacer:
    """A pacer that nobody stops, by default."""
    return Pacer(concurrency=concurrency, requests_per_second=requests_per_second, stop=stop or Stop())


def refusal(*, retry_after: float | None = None) -> HaloRateLimitError:
    """An answer of 429."""
    return HaloRateLimitError("/chat", status=429, message="too many requests", retry_after=retry_after)


def overload(*, retry_after: float | None = None) -> HaloServerError:
    """An answer of 503."""
    return HaloServerError("/chat", status=503, message="overloaded", retry_after=retry_after)


async def send(pacer: Pacer, *, seconds: float = 1.0, error: Any = None, refusals: Refusals | None = None) -> float:
    """Send one request that takes so long and ends so; return when it started."""
    attempt = await pacer.acquire()
    pacer.begin(attempt, Refusals())
    try:
        await asyncio.sleep(seconds)
    finally:
        pacer.release(attempt)
    if error is None:
        pacer.succeeded(attempt, Refusals())
    else:
        pacer.failed(attempt, error, refusals or Refusals())
    return attempt.started - 1000.0


async def send_many(pacer: Pacer, count: int, **options: Any) -> list[float]:
    """Send so many together; return when they started."""
    return sorted(await asyncio.gather(*(send(pacer, **options) for _ in range(count))))


def test_no_more_than_concurrency_are_let_through_together() -> None:
    """Ten requests of a second each, three at a time, take four seconds."""

    async def test() -> None:
        assert await send_many(pacer_of(concurrency=3), 10) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]

    virtual(test)


def test_places_go_round_without_a_lost_wake_up() -> None:
    """However requests end and pauses fall, everybody gets a turn: the loop would notice who waits for ever."""

    async def test() -> None:
        pacer = pacer_of(concurrency=7)
        errors = [None, refusal(retry_after=0.3), overload(), None, refusal(retry_after=0.0), None]
        attempts = [send(pacer, seconds=0.1 * (n % 5), error=errors[n % 6]) for n in range(200)]

        await asyncio.gather(*attempts)

        assert pacer.in_flight == 0

    virtual(test)


def test_place_goes_to_whoever_waits_longest() -> None:
    """Who gives a place back and asks for the next at once is behind those who wait."""

    async def test() -> None:
        pacer = pacer_of(concurrency=1)

        async def send_often() -> list[float]:
            return [await send(pacer) for _ in range(4)]

        often = asyncio.create_task(send_often())
        await asyncio.sleep(0.5)
        assert await send(pacer) == 1.0
        assert await often == [0.0, 2.0, 3.0, 4.0]

    virtual(test)


def test_waiter_that_is_cancelled_with_its_place_passes_it_on() -> None:
    """It was woken, and gives up before it runs."""

    async def test() -> None:
        pacer = pacer_of(concurrency=1)
        first = await pacer.acquire()
        waiting = [asyncio.create_task(pacer.acquire()) for _ in range(2)]
        await asyncio.sleep(1.0)
        pacer.release(first)
        waiting[0].cancel()
        await waiting[1]
        assert (waiting[0].cancelled(), pacer.in_flight) == (True, 1)

    virtual(test)


def test_one_refusal_holds_back_its_own_request_only() -> None:
    """The others keep their places and start when they would have."""

    async def test() -> None:
        pacer = pacer_of(concurrency=8)
        await send_many(pacer, 8)

        await send(pacer, seconds=0.0, error=refusal(retry_after=100.0))
        others = await send_many(pacer, 7)

        assert others == [1.0] * 7
        assert (pacer.limit, pacer.refused) == (8, 1)

    virtual(test)


def test_limit_is_what_halo_admits_at_a_time() -> None:
    """Of sixteen at a time it refuses those beyond the fifth: five are sent from then on."""

    async def test() -> None:
        pacer = pacer_of(concurrency=16)
        attempts = [await pacer.acquire() for _ in range(16)]
        for attempt in attempts:
            pacer.begin(attempt, Refusals())
        for attempt in attempts[5:]:
            pacer.release(attempt)
            pacer.failed(attempt, refusal(retry_after=1.0), Refusals())
        for attempt in attempts[:5]:
            pacer.release(attempt)
            pacer.succeeded(attempt, Refusals())

        assert (pacer.limit, pacer.refused) == (5, 11)

    virtual(test)


def test_limit_that_proves_too_low_is_raised() -> None:
    """What Halo admits beyond it shows that the refusals had another reason."""

    async def test() -> None:
        pacer = pacer_of(concurrency=16)
        attempts = [await pacer.acquire() for _ in range(16)]
        for attempt in attempts:
            pacer.begin(attempt, Refusals())
        for attempt in (attempts[4], attempts[7], attempts[11]):
            pacer.release(attempt)
            pacer.failed(attempt, refusal(), Refusals())
        assert pacer.limit == 4
        for attempt in attempts:
            if attempt not in (attempts[4], attempts[7], attempts[11]):
                pacer.release(attempt)
                pacer.succeeded(attempt, Refusals())

        assert pacer.limit == 13

    virtual(test)


def test_limit_never_falls_below_one() -> None:
    """One request at a time is always allowed."""

    async def test() -> None:
        pacer = pacer_of(concurrency=2)
        for _ in range(50):
            await send(pacer, error=overload())
        assert pacer.limit == 1

    virtual(test)


@pytest.mark.parametrize(
    "error",
    [
        HaloConnectionError("/chat", sent=True, reason="lost"),
        HaloConnectionError("/chat", sent=False, reason="refused"),
        HaloServerError("/chat", status=500, message="oops"),
        HaloServerError("/chat", status=502, message="oops", retry_after=99.0),
    ],
)
def test_other_failures_say_nothing_about_speed(error: Any) -> None:
    """Only 429 and 503 mean that Halo wants less."""

    async def test() -> None:
        pacer = pacer_of(concurrency=8)
        await send_many(pacer, 8, error=error)
        assert (pacer.limit, pacer.refused) == (8, 0)
        assert await send(pacer) == 1.0

    virtual(test)


async def refuse_all(pacer: Pacer, **options: Any) -> None:
    """Refuse as many at once as it takes for everybody to pause."""
    error = refusal(**options)
    await asyncio.gather(*(send(pacer, seconds=0.0, error=error) for _ in range(STREAK)))


@pytest.mark.parametrize("error", [refusal(retry_after=30.0), overload(retry_after=30.0)])
def test_retry_after_of_all_pauses_everybody(error: Any) -> None:
    """Those who wait for a place, and those who come later, start when Halo said."""

    async def test() -> None:
        pacer = pacer_of(concurrency=STREAK)
        refused = [asyncio.create_task(send(pacer, seconds=1.0, error=error)) for _ in range(STREAK)]
        await asyncio.sleep(0.5)
        others = await send_many(pacer, 2, seconds=0.0)
        await asyncio.gather(*refused)
        assert others == pytest.approx([31.0, 31.0], abs=0.5)

    virtual(test)


def test_shortest_retry_after_of_all_counts() -> None:
    """Who was told to wait longer waits by itself."""

    async def test() -> None:
        pacer = pacer_of(concurrency=STREAK)
        waits = [300.0, 60.0, *[20.0] * (STREAK - 2)]
        await asyncio.gather(*(send(pacer, seconds=0.0, error=refusal(retry_after=wait)) for wait in waits))
        assert await send(pacer) == pytest.approx(20.0, abs=0.5)

    virtual(test)


def test_pause_without_a_time_grows_while_nothing_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One look after another at a Halo that admits nobody, at 0.5, 1, 2, 4, 5, 5 … seconds."""
    monkeypatch.setattr("random.uniform", lambda _low, high: high)

    async def test() -> None:
        pacer = pacer_of(concurrency=STREAK)
        await refuse_all(pacer)
        looks = [await send(pacer, seconds=0.0, error=refusal()) for _ in range(5)]
        assert [after - before for before, after in zip([0.0, *looks], looks, strict=False)] == pytest.approx(
            [0.5, 1.0, 2.0, 4.0, 5.0], abs=0.6
        )

    virtual(test)


def test_long_retry_after_of_one_gives_up_that_one() -> None:
    """A thousand others go on."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop)
        others = asyncio.create_task(send_many(pacer, 20))
        refusals = Refusals()
        await send(pacer, seconds=0.1, error=refusal(retry_after=MAX_PAUSE + 1), refusals=refusals)
        await others
        assert refusals.hopeless
        assert not stop.requested
        assert clock() < 10.0

    virtual(test)


def test_request_refused_alone_again_and_again_is_hopeless() -> None:
    """Others that were sent later were admitted; what happened before says nothing."""

    async def test() -> None:
        pacer = pacer_of()
        refusals = Refusals()
        await send(pacer)
        await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        for _ in range(MAX_ALONE):
            assert not refusals.hopeless
            await send(pacer, seconds=0.0)
            await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        assert refusals.hopeless

    virtual(test)


def test_request_refused_alone_for_long_is_hopeless() -> None:
    """Halo says ever again to come back in a minute, and admits others meanwhile: five minutes are enough."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop)
        refusals = Refusals()
        while not refusals.hopeless:
            await send(pacer, seconds=0.0, error=refusal(retry_after=60.0), refusals=refusals)
            await send(pacer, seconds=60.0)
        assert MAX_PAUSE < clock() <= MAX_PAUSE + 120.0
        assert not stop.requested

    virtual(test)


def test_refusals_while_nobody_is_admitted_are_nobodys_own() -> None:
    """A request that others passed once is not given up for a window that is closed to all."""

    async def test() -> None:
        pacer = pacer_of()
        refusals = Refusals()
        await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        await send(pacer, seconds=0.0)
        await refuse_all(pacer)
        for _ in range(2 * MAX_ALONE):
            await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        assert (refusals.alone, refusals.hopeless) == (0, False)

    virtual(test)


def test_pause_that_nobody_ended_keeps_no_refused_request_for_ever() -> None:
    """What was sent before the pause was admitted, and then there is nothing left that could be admitted after it."""

    async def test() -> None:
        pacer = pacer_of(concurrency=2 * STREAK)
        refusals = Refusals()
        await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        slow = asyncio.create_task(send(pacer, seconds=5.0))
        await asyncio.sleep(0.1)
        await refuse_all(pacer)
        await slow
        for _ in range(MAX_ALONE):
            assert not refusals.hopeless
            await send(pacer, seconds=0.0, error=refusal(), refusals=refusals)
        assert refusals.hopeless

    virtual(test)


def test_request_refused_alone_backs_off_whatever_halo_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Retry-After of 0 is obeyed once; after that it would only spend the request's refusals."""
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    backoff = Backoff(base=0.5, cap=30.0)

    assert Refusals(count=1).wait(refusal(retry_after=0.0), backoff) == 0.0
    assert Refusals(count=4, alone=3).wait(refusal(retry_after=0.0), backoff) == 2.0
    assert Refusals(count=4, alone=3).wait(refusal(retry_after=7.0), backoff) == 7.0
    assert Refusals(count=2).wait(refusal(), backoff) == 1.0


def test_retry_after_beyond_the_cap_ends_the_run_with_the_error() -> None:
    """Airflow waits better than a task that holds a slot."""

    async def test() -> None:
        stop = Stop()
        error = refusal(retry_after=MAX_PAUSE + 1)
        await send(pacer_of(stop=stop), error=error)
        assert (stop.requested, stop.error) == (True, error)

    virtual(test)


def test_retry_after_of_the_cap_is_waited_for() -> None:
    """Up to the cap the run goes on by itself."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop)
        await refuse_all(pacer, retry_after=MAX_PAUSE)
        assert await send(pacer) == pytest.approx(MAX_PAUSE)
        assert not stop.requested

    virtual(test)


@pytest.mark.parametrize("retry_after", [None, 1.0, 10.0])
def test_refusals_without_end_end_the_run(retry_after: float | None) -> None:
    """Somebody has to look at a Halo that takes nothing at all."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop)
        looks = 0
        while not stop.requested:
            await send(pacer, seconds=0.0, error=refusal(retry_after=retry_after))
            looks += 1
        assert clock() == pytest.approx(MAX_PAUSE, abs=10.0)
        assert looks < 500

    virtual(test)


def test_pace_tells_what_limits() -> None:
    """The source at first, then our setting, and Halo's rate or concurrency once they are found."""

    async def test() -> None:
        pacer = pacer_of(concurrency=4)
        await send(pacer)
        assert pacer.pace() == Pace(limited_by="source", requests_per_second=None, concurrency=4, refused=0)
        await send_many(pacer, 8)
        assert pacer.pace().limited_by == "setting"

        rated = pacer_of(requests_per_second=2.0)
        await send_many(rated, 4)
        assert rated.pace().limited_by == "setting"

    virtual(test)


def test_slow_source_is_not_taken_for_a_slow_halo() -> None:
    """One row a second, every other one refused, says nothing about how much Halo admits when there is more."""

    async def test() -> None:
        pacer = pacer_of(concurrency=64)
        for _ in range(60):
            await send(pacer, seconds=0.1)
            await send(pacer, seconds=0.1, error=refusal())
            await asyncio.sleep(0.8)
        began = clock()
        await send_many(pacer, 640)
        assert clock() - began < 20.0

    virtual(test)


def test_requests_per_second_are_kept_evenly() -> None:
    """Four a second: one every quarter, whatever the concurrency."""

    async def test() -> None:
        starts = await send_many(pacer_of(concurrency=64, requests_per_second=4.0), 12)
        assert starts == pytest.approx([number / 4 for number in range(12)])

    virtual(test)


def test_idle_time_is_not_saved_up() -> None:
    """After a rest there is no burst."""

    async def test() -> None:
        pacer = pacer_of(requests_per_second=2.0)
        await send(pacer, seconds=0.0)
        await asyncio.sleep(60.0)
        assert await send_many(pacer, 3, seconds=0.0) == pytest.approx([60.0, 60.5, 61.0])

    virtual(test)


def test_pause_also_holds_those_who_wait_for_their_turn_in_the_rate() -> None:
    """A turn that falls into a pause is no licence to send, and afterwards the rate holds again."""

    async def test() -> None:
        pacer = pacer_of(concurrency=STREAK, requests_per_second=100.0)
        waiting = asyncio.create_task(send_many(pacer, 3 * STREAK, seconds=0.02, error=refusal(retry_after=10.0)))
        await waiting
        pauses = [start for start in waiting.result() if 0.2 < start < 10.0]
        assert pauses == []

    virtual(test)


def test_stop_lets_everybody_go_at_once() -> None:
    """Who is paused, waits for a turn in the rate or for a place is let go, to find out that the run is to end."""

    async def test() -> None:
        stop = Stop()
        paused = pacer_of(stop=stop)
        await refuse_all(paused, retry_after=200.0)
        rated = pacer_of(stop=stop, requests_per_second=0.001)
        await rated.acquire()
        full = pacer_of(stop=stop, concurrency=1)
        place = await full.acquire()
        waiting = [asyncio.create_task(pacer.acquire()) for pacer in (paused, rated, full) for _ in range(3)]
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in waiting)

        stop.request("the task was killed")
        await asyncio.gather(*waiting[:6])
        full.release(place)
        await asyncio.gather(*waiting[6:])

        assert clock() == 1.0

    virtual(test)


def test_stopped_pacer_keeps_nobody() -> None:
    """After a stop nobody waits any more."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop, concurrency=1, requests_per_second=0.001)
        stop.request("the task was killed")
        for _ in range(3):
            await pacer.acquire()
        assert clock() == 0.0

    virtual(test)


def test_cancelled_waiter_leaves_the_others_their_turn() -> None:
    """Somebody who gives up waiting takes nobody's place."""

    async def test() -> None:
        pacer = pacer_of(concurrency=1)
        first, second, third = (asyncio.create_task(send(pacer)) for _ in range(3))
        await asyncio.sleep(0.5)
        second.cancel()
        assert (await first, await third) == (0.0, 1.0)

    virtual(test)


def test_first_reason_to_stop_counts() -> None:
    """What came first is the cause, what comes later a consequence."""

    async def test() -> None:
        stop = Stop()
        error = RuntimeError("first")
        stop.request("first", error=error)
        stop.request("second", error=RuntimeError("second"), grace=1.0)
        assert (stop.reason, stop.error) == ("first", error)

    virtual(test)


@pytest.mark.parametrize(
    ("graces", "ends_at"),
    [((None,), 100.0), ((5.0,), 6.0), ((None, 5.0), 7.0), ((5.0, None), 6.0), ((50.0, 5.0), 7.0), ((5.0, 50.0), 6.0)],
)
def test_shortest_grace_ends_what_is_under_way(graces: tuple[float | None, ...], ends_at: float) -> None:
    """A stop every second; the block ends when the first grace is over, or by itself."""

    async def test() -> None:
        stop = Stop()

        async def under_way() -> None:
            async with stop.limit():
                await asyncio.sleep(100.0)

        task = asyncio.create_task(under_way())
        for grace in graces:
            await asyncio.sleep(1.0)
            stop.request("the task was killed", grace=grace)
        await asyncio.wait([task])

        assert clock() == ends_at
        assert isinstance(task.exception(), TimeoutError) == (ends_at < 100.0)

    virtual(test)


def test_grace_also_ends_what_begins_later() -> None:
    """What starts after the request has only what is left of the grace."""

    async def test() -> None:
        stop = Stop()
        stop.request("the task was killed", grace=5.0)
        await asyncio.sleep(2.0)
        with pytest.raises(TimeoutError):
            async with stop.limit():
                await asyncio.sleep(100.0)
        assert clock() == 5.0

    virtual(test)


def test_sleep_ends_with_the_time_or_with_the_stop() -> None:
    """Whichever comes first."""

    async def test() -> None:
        stop = Stop()
        await stop.sleep(3.0)
        assert clock() == 3.0
        asyncio.get_running_loop().call_later(1.0, lambda: stop.request("the task was killed"))
        await stop.sleep(3.0)
        assert clock() == 4.0

    virtual(test)


def test_backoff_doubles_up_to_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest wait after attempt 1, 2, 3, …; the shortest is none (full jitter)."""
    backoff = Backoff(base=0.5, cap=30.0)
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    monkeypatch.setattr("random.uniform", uniform)

    assert [backoff.delay(attempt) for attempt in (1, 2, 3, 7, 8, 10_000)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert {low for low, _ in bounds} == {0.0}
