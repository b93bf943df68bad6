"""Limits by themselves: what each admits, refuses and slows down, on a clock that the tests turn."""

import json
from heapq import heappop, heappush
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from halo_provider.simulator import (
    AllOf,
    Arrival,
    ChangingLimit,
    ConcurrencyLimit,
    FixedWindow,
    Limit,
    Limiter,
    Refusal,
    RefusedUsers,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
    WaitingQueue,
)
from halo_provider.simulator.limits import PARSER, limiter_of

EVERY_KIND: list[Limit] = [
    TokenBucket(rate=20),
    TokenBucket(rate=0.5, burst=3, retry_after="exact", status=503),
    TokenBucket(rate=20, retry_after=None),
    ConcurrencyLimit(requests=8, retry_after=1),
    FixedWindow(requests=100, seconds=10, retry_after="exact"),
    SporadicRefusals(share=0.2, at_most=60, seed=7, retry_after=0.02),
    RefusedUsers(user_ids=frozenset({"user-1"})),
    RefusedUsers(share=0.1),
    Slowdown(capacity=10),
    WaitingQueue(capacity=10, length=5),
    AllOf(limits=(RefusedUsers(share=0.1), TokenBucket(rate=20))),
    ChangingLimit(steps=(Step(after=0, limit=None), Step(after=30, limit=ConcurrencyLimit(requests=1)))),
]


def admit(limiter: Limiter, *, now: float = 0.0, in_flight: int = 0, user_id: str | None = None) -> Refusal | None:
    """Ask for one request."""
    return limiter.admit(Arrival(now=now, in_flight=in_flight, user_id=user_id))


def latency(limiter: Limiter, *, now: float = 0.0, in_flight: int = 0) -> float:
    """The latency of one admitted request that takes a second by itself."""
    return limiter.latency(Arrival(now=now, in_flight=in_flight, user_id=None), base=1.0)


def admitted_at(limiter: Limiter, times: list[float]) -> list[float]:
    """The times at which a request was admitted."""
    return [now for now in times if admit(limiter, now=now) is None]


def answered_within(limit: Limit, *, clients: int, seconds: float) -> tuple[int, int]:
    """How many requests are answered, and refused, while so many clients send one after the other, without pausing.

    A request takes a second by itself; a refused client comes back a second later.
    """
    limiter = limit.limiter()
    events = [(0.0, client, False) for client in range(clients)]
    in_flight = answered = refused = 0
    while events[0][0] < seconds:
        now, client, was_in_flight = heappop(events)
        in_flight -= was_in_flight
        answered += was_in_flight
        arrival = Arrival(now=now, in_flight=in_flight, user_id=f"user-{client}")
        if limiter.admit(arrival) is None:
            in_flight += 1
            heappush(events, (now + limiter.latency(arrival, base=1.0), client, True))
        else:
            refused += 1
            heappush(events, (now + 1, client, False))
    return answered, refused


def test_token_bucket_admits_its_burst_and_then_its_rate() -> None:
    """Five at once, then two a second; unused seconds fill it to the burst and no further."""
    limiter = TokenBucket(rate=2, burst=5).limiter()

    assert admitted_at(limiter, [0.0] * 7) == [0.0] * 5
    assert admitted_at(limiter, [0.25, 0.5, 0.75, 1.0, 1.25]) == [0.5, 1.0]
    assert admitted_at(limiter, [60.0] * 7) == [60.0] * 5


@pytest.mark.parametrize(("rate", "burst"), [(20, 20), (2.5, 3), (0.1, 1)])
def test_token_bucket_has_a_burst_of_one_second_unless_told(rate: float, burst: int) -> None:
    """What it admits at once is what comes in a second, rounded up."""
    assert len(admitted_at(TokenBucket(rate=rate).limiter(), [0.0] * 100)) == burst


@pytest.mark.parametrize(
    ("retry_after", "header"),
    [
        ("exact", {"Retry-After": "0.334"}),
        ("whole_seconds", {"Retry-After": "1"}),
        (5, {"Retry-After": "5"}),
        (None, {}),
    ],
)
@pytest.mark.parametrize(
    "limit",
    [{"kind": "token_bucket", "rate": 3, "burst": 1}, {"kind": "fixed_window", "requests": 1, "seconds": 0.3333}],
)
def test_limit_that_knows_the_wait_tells_it_as_ordered(
    limit: dict[str, Any], retry_after: Any, header: dict[str, str]
) -> None:
    """Retry-After is the wait in milliseconds or whole seconds, rounded up, or a constant, or absent."""
    limiter = limiter_of(PARSER.validate_python({**limit, "retry_after": retry_after}))
    admit(limiter)

    refusal = admit(limiter)

    assert refusal is not None
    assert (refusal.status, refusal.headers()) == (429, header)


@given(
    limit=st.one_of(
        st.builds(TokenBucket, rate=st.floats(0.01, 1_000), burst=st.integers(1, 3), retry_after=st.just("exact")),
        st.builds(FixedWindow, requests=st.integers(1, 3), seconds=st.floats(0.01, 100), retry_after=st.just("exact")),
    ),
    began=st.floats(0, 1e6),
)
def test_exact_wait_is_long_enough(limit: Limit, began: float) -> None:
    """Whoever waits as long as told is admitted, whatever the rounding."""
    limiter, now = limit.limiter(), began
    for _ in range(20):
        refusal = admit(limiter, now=now)
        if refusal is not None:
            assert refusal.retry_after is not None
            now += refusal.retry_after
            assert admit(limiter, now=now) is None


@pytest.mark.parametrize(("retry_after", "headers"), [(1, {"Retry-After": "1"}), (None, {})])
def test_concurrency_limit_refuses_what_is_too_many_at_once(retry_after: float | None, headers: dict[str, str]) -> None:
    """The eighth request beside seven is admitted, the ninth is not."""
    limiter = ConcurrencyLimit(requests=8, retry_after=retry_after).limiter()

    assert admit(limiter, in_flight=7) is None
    refusal = admit(limiter, in_flight=8)
    assert refusal is not None
    assert (refusal.status, refusal.headers()) == (429, headers)


def test_concurrency_limit_answers_so_many_a_latency() -> None:
    """Eight at once at a second each are eight a second, whoever else asks."""
    answered, refused = answered_within(ConcurrencyLimit(requests=8), clients=12, seconds=10.5)

    assert answered == 80
    assert refused == 44  # four clients, every second from 0 to 10


def test_fixed_window_admits_so_many_in_each_window() -> None:
    """Windows follow each other from the first request on, also while nobody asks."""
    limiter = FixedWindow(requests=3, seconds=10).limiter()

    times = [4.0, 5.0, 13.9, 13.95, 14.0, 14.0, 14.0, 23.9, 47.0, 53.9, 53.9, 53.9, 54.0]

    assert admitted_at(limiter, times) == [4.0, 5.0, 13.9, 14.0, 14.0, 14.0, 47.0, 53.9, 53.9, 54.0]


def test_sporadic_refusals_are_a_share_and_the_same_ones_each_time() -> None:
    """About one in a hundred is refused; the seed decides which."""

    def refused(seed: int) -> list[int]:
        limiter = SporadicRefusals(share=0.01, seed=seed, retry_after=1).limiter()
        return [number for number in range(10_000) if admit(limiter) == Refusal(429, 1)]

    assert 70 <= len(refused(0)) <= 130
    assert refused(0) == refused(0) != refused(1)


def test_sporadic_refusals_can_come_to_an_end() -> None:
    """After so many refusals everything is admitted."""
    limiter = SporadicRefusals(share=0.2, at_most=60).limiter()

    refusals = [admit(limiter) is not None for _ in range(2_000)]

    assert sum(refusals) == 60
    assert sum(refusals[:600]) == 60


def test_refused_users_are_always_refused_and_others_never() -> None:
    """The users that are named; a request without a user is admitted."""
    limiter = RefusedUsers(user_ids=frozenset({"user-1", "user-2"})).limiter()

    users = ["user-1", "user-3", None, "user-2", "user-1"]

    assert [admit(limiter, user_id=user) is None for user in users] == [False, True, True, False, False]


def test_share_of_users_is_refused_by_a_hash() -> None:
    """About a tenth of the users, the same ones in every process; a larger share has the smaller one in it."""
    users = [f"user-{number}" for number in range(1_000)]

    refused = {share: {user for user in users if RefusedUsers(share=share).refuses(user)} for share in (0, 0.1, 0.2, 1)}

    assert (len(refused[0]), len(refused[1])) == (0, 1_000)
    assert 70 <= len(refused[0.1]) <= 130
    assert refused[0.1] < refused[0.2]
    assert sorted(refused[0.1])[:3] == ["user-10", "user-106", "user-115"]


def test_slowdown_stretches_latency_with_the_load() -> None:
    """Up to the capacity nothing changes, at three times the capacity a request takes three times as long."""
    limiter = Slowdown(capacity=4).limiter()

    latencies = [latency(limiter, in_flight=others) for others in (0, 3, 4, 7, 11)]

    assert latencies == [1.0, 1.0, 1.25, 2.0, 3.0]
    assert admit(limiter, in_flight=1_000) is None


def test_waiting_queue_serves_in_turn() -> None:
    """Two are worked on at once; whoever comes later waits until one of those before has ended."""
    limiter = WaitingQueue(capacity=2).limiter()

    ends = [now + latency(limiter, now=now) for now in (0.0, 0.5, 0.6, 0.7, 0.8, 9.0)]

    assert ends == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0, 10.0])
    assert admit(limiter, in_flight=1_000) is None


def test_waiting_queue_that_is_full_refuses() -> None:
    """With two at work and three in the queue there is no place for a sixth."""
    limiter = WaitingQueue(capacity=2, length=3, status=503, retry_after=2).limiter()

    assert admit(limiter, in_flight=4) is None
    assert admit(limiter, in_flight=5) == Refusal(503, 2)


@pytest.mark.parametrize("limit", [Slowdown(capacity=8), WaitingQueue(capacity=8)])
def test_growing_latency_never_answers_more_than_the_capacity(limit: Limit) -> None:
    """However many clients ask, eight requests of a second are answered a second, and none is refused."""
    answered, refused = answered_within(limit, clients=32, seconds=40.5)

    assert (answered, refused) == (pytest.approx(8 * 40, abs=32), 0)


def test_several_limits_hold_together() -> None:
    """The first that refuses decides; what each adds to the latency is added."""
    bucket = TokenBucket(rate=1, burst=2)
    limiter = AllOf(limits=(RefusedUsers(user_ids=frozenset({"user-1"}), status=503), bucket)).limiter()
    slow = AllOf(limits=(Slowdown(capacity=1), WaitingQueue(capacity=1))).limiter()

    users = ["user-1", "user-2", "user-1", "user-3", "user-1", "user-4"]
    refusals = [admit(limiter, user_id=user) for user in users]

    assert [refusal and refusal.status for refusal in refusals] == [503, None, 503, None, 503, 429]
    assert [latency(slow, in_flight=others) for others in (0, 1)] == [1.0, 3.0]


def test_limit_can_change_with_time() -> None:
    """No limit, then two at once, a slowdown, and none again, in seconds since the first request."""
    limiter = ChangingLimit(
        steps=(
            Step(after=10, limit=ConcurrencyLimit(requests=2)),
            Step(after=20, limit=Slowdown(capacity=1)),
            Step(after=30, limit=None),
        )
    ).limiter()

    seen = [
        (admit(limiter, now=now, in_flight=2) is None, latency(limiter, now=now, in_flight=2))
        for now in (100.0, 109.0, 110.0, 119.0, 120.0, 129.0, 130.0, 999.0)
    ]

    admitted, refused, slow = (True, 1.0), (False, 1.0), (True, 3.0)
    assert seen == [admitted, admitted, refused, refused, slow, slow, admitted, admitted]


def test_changing_limit_skips_what_nobody_met() -> None:
    """The step in force is the latest one, however long nobody asked."""
    steps = (
        Step(after=0, limit=TokenBucket(rate=1)),
        Step(after=10, limit=None),
        Step(after=20, limit=Slowdown(capacity=1)),
    )
    limiter = ChangingLimit(steps=steps).limiter()
    admit(limiter, now=0.0)

    assert admit(limiter, now=25.0) is None
    assert latency(limiter, now=25.0, in_flight=1) == 2.0


@pytest.mark.parametrize(
    "kind", ["token_bucket", "concurrency_limit", "fixed_window", "sporadic_refusals", "refused_users", "waiting_queue"]
)
@pytest.mark.parametrize("status", [429, 503])
def test_every_refusal_can_be_429_or_503(kind: str, status: int) -> None:
    """The status is part of the limit."""
    rest: dict[str, dict[str, Any]] = {
        "token_bucket": {"rate": 1},
        "concurrency_limit": {"requests": 1},
        "fixed_window": {"requests": 1, "seconds": 1},
        "sporadic_refusals": {"share": 1},
        "refused_users": {"share": 1},
        "waiting_queue": {"capacity": 1, "length": 0},
    }
    limiter = limiter_of(PARSER.validate_python({"kind": kind, "status": status, **rest[kind]}))

    refusals = [admit(limiter, in_flight=1, user_id="user-1") for _ in range(2)]

    assert refusals[-1] is not None
    assert refusals[-1].status == status


@pytest.mark.parametrize("limit", EVERY_KIND, ids=lambda limit: limit.kind)
def test_limit_is_equal_to_its_json(limit: Limit) -> None:
    """What is written in Python can be written on the command line and sent over HTTP."""
    assert PARSER.validate_json(limit.model_dump_json()) == limit


@pytest.mark.parametrize("limit", EVERY_KIND, ids=lambda limit: limit.kind)
def test_limit_remembers_nothing_of_what_it_met(limit: Limit) -> None:
    """Two limiters of one limit begin alike, and do not share what they count."""

    def met() -> list[Any]:
        limiter = limit.limiter()
        arrivals = [
            Arrival(now=number * 0.01, in_flight=number % 20, user_id=f"user-{number}") for number in range(300)
        ]
        return [limiter.admit(arrival) or limiter.latency(arrival, base=1.0) for arrival in arrivals]

    assert met() == met()


def test_no_limit_admits_everything() -> None:
    """None is no limit, and JSON's null is None."""
    limiter = limiter_of(PARSER.validate_json("null"))

    assert admit(limiter, in_flight=1_000_000) is None
    assert latency(limiter, in_flight=1_000_000) == 1.0


@pytest.mark.parametrize(
    "limit",
    [
        {"kind": "weather"},
        {"rate": 20},
        {"kind": "token_bucket"},
        {"kind": "token_bucket", "rate": 0},
        {"kind": "token_bucket", "rate": 20, "burst": 0},
        {"kind": "token_bucket", "rate": 20, "retry_after": "soon"},
        {"kind": "token_bucket", "rate": 20, "status": 500},
        {"kind": "concurrency_limit", "requests": 8, "retry_after": "exact"},
        {"kind": "slowdown", "capacity": 8, "status": 429},
        {"kind": "sporadic_refusals", "share": 1.5},
        {"kind": "refused_users"},
        {"kind": "refused_users", "share": 0.1, "user_ids": ["user-1"]},
        {"kind": "all_of", "limits": []},
        {"kind": "changing_limit", "steps": []},
        {"kind": "changing_limit", "steps": [{"after": 5, "limit": None}, {"after": 5, "limit": None}]},
    ],
    ids=json.dumps,
)
def test_limit_that_makes_no_sense_is_a_mistake(limit: dict[str, Any]) -> None:
    """A typo in a rehearsal does not go unnoticed."""
    with pytest.raises(ValidationError):
        PARSER.validate_python(limit)
