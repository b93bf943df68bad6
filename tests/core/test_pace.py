"""How fast to send, on a loop whose clock moves on by itself whenever everybody waits."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from halo_provider.delivery.pace import MAX_PAUSE, MAX_REFUSALS, Backoff, Pacer
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


async def send(pacer: Pacer, *, seconds: float = 1.0, error: Any = None) -> float:
    """Send one request that takes so long and ends so; return when it started."""
    started = await pacer.acquire()
    try:
        await asyncio.sleep(seconds)
    finally:
        pacer.release()
    if error is None:
        pacer.succeeded()
    else:
        pacer.failed(error, started=started)
    return started - 1000.0


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


def test_refusal_halves_the_limit_once_for_all_that_were_under_way() -> None:
    """Eight refusals of one round are one reason to slow down, not eight."""

    async def test() -> None:
        pacer = pacer_of(concurrency=8)

        await send_many(pacer, 8, error=refusal(retry_after=0.1))
        assert (pacer.limit, pacer.refused) == (4, 8)

        await send_many(pacer, 4, error=overload())
        assert (pacer.limit, pacer.refused) == (2, 12)

    virtual(test)


def test_limit_never_falls_below_one() -> None:
    """One request at a time is always allowed."""

    async def test() -> None:
        pacer = pacer_of(concurrency=2)
        for _ in range(5):
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


def test_limit_grows_back_by_one_for_every_round_of_successes() -> None:
    """From 4: after 4 successes 5, after 5 more 6, and never beyond the concurrency."""

    async def test() -> None:
        pacer = pacer_of(concurrency=8)
        await send(pacer, error=overload())
        limits = []
        for _ in range(4 + 5 + 6 + 7 + 8):
            await send(pacer)
            limits.append(pacer.limit)
        assert limits == [4] * 3 + [5] * 5 + [6] * 6 + [7] * 7 + [8] * 9

    virtual(test)


def test_grown_limit_lets_a_waiting_request_through_at_once() -> None:
    """Room that appears is used, not only room that is given back."""

    async def test() -> None:
        pacer = pacer_of(concurrency=2)
        await send(pacer, error=overload())
        assert await send_many(pacer, 4) == [1, 2, 2, 3]

    virtual(test)


@pytest.mark.parametrize("error", [refusal(retry_after=30.0), overload(retry_after=30.0)])
def test_retry_after_pauses_everybody(error: Any) -> None:
    """Those who wait for a place, and those who come later, start when Halo said."""

    async def test() -> None:
        pacer = pacer_of(concurrency=2)
        refused = asyncio.create_task(send(pacer, seconds=1.0, error=error))
        others = await send_many(pacer, 4, seconds=5.0)
        await refused
        assert others == [0, 31, 31, 36]

    virtual(test)


def test_longer_pause_counts() -> None:
    """A second refusal cannot shorten what the first one asked for."""

    async def test() -> None:
        pacer = pacer_of()
        await asyncio.gather(
            send(pacer, error=refusal(retry_after=60.0)), send(pacer, seconds=2.0, error=refusal(retry_after=1.0))
        )
        assert await send(pacer) == 61.0

    virtual(test)


def test_refusal_without_a_date_backs_off_once_per_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause doubles with every refused round, however many requests each had."""
    monkeypatch.setattr("random.uniform", lambda _low, high: high)

    async def test() -> None:
        pacer = pacer_of(concurrency=8)
        starts = [await send_many(pacer, count, seconds=0.5, error=refusal()) for count in (8, 4, 2, 1)]
        assert starts == [[0] * 8, [1.5] * 4, [4.0] * 2, [8.5]]

    virtual(test)


def test_success_ends_the_row_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an answer the back-off begins anew."""
    monkeypatch.setattr("random.uniform", lambda _low, high: high)

    async def test() -> None:
        pacer = pacer_of()
        for _ in range(5):
            await send(pacer, seconds=0.0, error=refusal())
        await send(pacer)
        before = clock()
        await send(pacer, seconds=0.0, error=refusal())
        assert await send(pacer) == before + 1.0

    virtual(test)


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
        await send(pacer, error=refusal(retry_after=MAX_PAUSE))
        assert await send(pacer) == 1.0 + MAX_PAUSE
        assert not stop.requested

    virtual(test)


def test_refusals_without_end_end_the_run() -> None:
    """Somebody has to look at a Halo that takes nothing at all."""

    async def test() -> None:
        stop = Stop()
        pacer = pacer_of(stop=stop)
        rounds = 0
        while not stop.requested:
            await send(pacer, seconds=0.0, error=refusal(retry_after=1.0))
            rounds += 1
        assert rounds == MAX_REFUSALS + 1

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
        pacer = pacer_of(concurrency=8, requests_per_second=2.0)
        refused = asyncio.create_task(send(pacer, seconds=0.2, error=refusal(retry_after=10.0)))
        others = await send_many(pacer, 4, seconds=0.0)
        await refused
        assert others == pytest.approx([10.2, 10.7, 11.2, 11.7])

    virtual(test)


def test_stop_lets_everybody_go_at_once() -> None:
    """Who is paused, waits for a turn in the rate or for a place is let go, to find out that the run is to end."""

    async def test() -> None:
        stop = Stop()
        paused = pacer_of(stop=stop)
        paused.failed(refusal(retry_after=200.0), started=await paused.acquire())
        rated = pacer_of(stop=stop, requests_per_second=0.001)
        await rated.acquire()
        full = pacer_of(stop=stop, concurrency=1)
        await full.acquire()
        waiting = [asyncio.create_task(pacer.acquire()) for pacer in (paused, rated, full) for _ in range(3)]
        await asyncio.sleep(1.0)
        assert not any(task.done() for task in waiting)

        stop.request("the task was killed")
        await asyncio.gather(*waiting[:6])
        full.release()
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
