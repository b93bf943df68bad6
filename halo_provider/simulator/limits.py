"""Limits that the simulated Halo puts on its clients, so that a client's pace can be rehearsed under each.

Halo publishes no limits, so every kind that HTTP services are known for can be chosen. A limit is a description,
frozen and equal to its JSON, which names its kind. The same limit in Python, on the command line and over HTTP::

    Simulator(limit=TokenBucket(rate=20, burst=5, retry_after="exact"))
    python -m halo_provider.simulator --limit '{"kind": "token_bucket", "rate": 20, "burst": 5, "retry_after": "exact"}'
    POST /_simulator/limit  {"limit": {"kind": "token_bucket", "rate": 20, "burst": 5, "retry_after": "exact"}}

===================  =======================================================================================
`TokenBucket`        so many requests a second, and a burst
`ConcurrencyLimit`   so many requests at once
`FixedWindow`        so many requests in every window of some seconds
`SporadicRefusals`   a share of the requests, at random; all of them, or so many refusals and then no more
`RefusedUsers`       every request of some users, and no other
`Slowdown`           no refusals: beyond its capacity Halo answers more slowly, in proportion to the load
`WaitingQueue`       beyond its capacity requests wait for their turn, and are refused where the queue is full
`AllOf`              several limits together
`ChangingLimit`      another limit, or none, after so many seconds
===================  =======================================================================================

A simulator's limit can be replaced, or lifted with None, at any time; the next request meets the new one.

What enforces a limit is a `Limiter`, which knows neither HTTP nor a clock, so that a test with a clock of its own
uses the same limits::

    limiter = TokenBucket(rate=20).limiter()
    arrival = Arrival(now=clock.now, in_flight=in_flight, user_id="user-1")
    refusal = limiter.admit(arrival)  # None: admitted
    seconds = limiter.latency(arrival, base=0.5)  # until the answer to an admitted request
"""

import math
import random
from abc import abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

CLOCK_ROUNDING = 1e-6  # seconds that a request may be early, since adding up times is not exact

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
KnownWait = Literal["exact", "whole_seconds"] | Seconds | None
"""What Retry-After says where the limit knows the wait: the wait rounded up to milliseconds (fractions are no HTTP, but
keep rehearsals short), or to whole seconds; the same number of seconds always; or nothing, with no such header."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request is refused: the status, and the seconds that Retry-After names, if there is one."""

    status: int
    retry_after: float | None

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:.15g}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request when it arrives.

    `now` is any clock's seconds, which never go back. `in_flight` is how many requests were admitted before it and
    are not answered yet.
    """

    now: float
    in_flight: int
    user_id: str | None


class Limiter:
    """Enforces a limit upon requests in the order of their arrival; this one enforces nothing."""

    def admit(self, arrival: Arrival) -> Refusal | None:  # noqa: ARG002 - the kinds need it
        """Return how the request is refused, or None and count it as admitted."""
        return None

    def latency(self, arrival: Arrival, *, base: float) -> float:  # noqa: ARG002 - the kinds need it
        """Return the seconds until an admitted request is answered that takes `base` seconds by itself."""
        return base


class Limit(BaseModel):
    """A limit, as it is written down; what it has met so far is known to its limiter only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def limiter(self) -> Limiter:
        """Return what enforces this limit, from its beginning."""


class RefusingLimit(Limit):
    """A limit that refuses requests."""

    status: Literal[429, 503] = 429

    def refusal(self, *, retry_after: KnownWait, wait: float = 0.0) -> Refusal:
        """Return the refusal of a request that would be admitted after `wait` seconds."""
        match retry_after:
            case "exact":
                return Refusal(self.status, math.ceil(wait * 1_000) / 1_000)
            case "whole_seconds":
                return Refusal(self.status, math.ceil(wait))
            case seconds:
                return Refusal(self.status, seconds)


class TokenBucket(RefusingLimit):
    """`rate` requests a second, and `burst` at once (by default one second's worth) after a time of rest."""

    kind: Literal["token_bucket"] = "token_bucket"
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1)] | None = None
    retry_after: KnownWait = "whole_seconds"

    def limiter(self) -> Limiter:
        """Return a full bucket."""
        return _TokenBucketLimiter(self)


class _TokenBucketLimiter(Limiter):
    def __init__(self, limit: TokenBucket) -> None:
        self._limit = limit
        self._burst = limit.burst or max(1, math.ceil(limit.rate))
        self._left = float(self._burst)
        self._at = -math.inf

    def admit(self, arrival: Arrival) -> Refusal | None:
        self._left = min(self._burst, self._left + (arrival.now - self._at) * self._limit.rate)
        self._at = arrival.now
        wait = (1 - self._left) / self._limit.rate
        if wait > CLOCK_ROUNDING:
            return self._limit.refusal(retry_after=self._limit.retry_after, wait=wait)
        self._left -= 1
        return None


class ConcurrencyLimit(RefusingLimit):
    """`requests` at once. Nobody knows when one of them will end, so Retry-After is a constant, or absent."""

    kind: Literal["concurrency_limit"] = "concurrency_limit"
    requests: Annotated[int, Field(ge=1)]
    retry_after: Seconds | None = None

    def limiter(self) -> Limiter:
        """Return what counts nothing itself: the requests in flight are told."""
        return _ConcurrencyLimiter(self)


class _ConcurrencyLimiter(Limiter):
    def __init__(self, limit: ConcurrencyLimit) -> None:
        self._limit = limit

    def admit(self, arrival: Arrival) -> Refusal | None:
        if arrival.in_flight < self._limit.requests:
            return None
        return self._limit.refusal(retry_after=self._limit.retry_after)


class FixedWindow(RefusingLimit):
    """`requests` in every window of `seconds`; windows follow each other from the first request on."""

    kind: Literal["fixed_window"] = "fixed_window"
    requests: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    retry_after: KnownWait = "whole_seconds"

    def limiter(self) -> Limiter:
        """Return what has no window yet."""
        return _FixedWindowLimiter(self)


class _FixedWindowLimiter(Limiter):
    def __init__(self, limit: FixedWindow) -> None:
        self._limit = limit
        self._ends: float | None = None
        self._left = limit.requests

    def admit(self, arrival: Arrival) -> Refusal | None:
        limit, now = self._limit, arrival.now
        if self._ends is None:
            self._ends = now + limit.seconds
        if now >= self._ends - CLOCK_ROUNDING:
            self._ends += max(1, math.floor((now - self._ends) / limit.seconds) + 1) * limit.seconds
            self._left = limit.requests
        if self._left == 0:
            return limit.refusal(retry_after=limit.retry_after, wait=self._ends - now)
        self._left -= 1
        return None


class SporadicRefusals(RefusingLimit):
    """Each request is refused with probability `share`, drawn with `seed`, until `at_most` were (None: for ever)."""

    kind: Literal["sporadic_refusals"] = "sporadic_refusals"
    share: Share
    at_most: Annotated[int, Field(ge=0)] | None = None
    seed: int = 0
    retry_after: Seconds | None = None

    def limiter(self) -> Limiter:
        """Return what has refused nothing yet."""
        return _SporadicLimiter(self)


class _SporadicLimiter(Limiter):
    def __init__(self, limit: SporadicRefusals) -> None:
        self._limit = limit
        self._left = math.inf if limit.at_most is None else limit.at_most
        self._random = random.Random(limit.seed)  # noqa: S311 - reproducible refusals, no cryptography

    def admit(self, arrival: Arrival) -> Refusal | None:  # noqa: ARG002 - chance asks nothing
        if self._left == 0 or self._random.random() >= self._limit.share:
            return None
        self._left -= 1
        return self._limit.refusal(retry_after=self._limit.retry_after)


class RefusedUsers(RefusingLimit):
    """Every request of these users is refused, or of a `share` of all users, chosen by a hash of the user_id.

    A request without a user_id is none of theirs.
    """

    kind: Literal["refused_users"] = "refused_users"
    user_ids: frozenset[str] | None = None
    share: Share | None = None
    retry_after: Seconds | None = None

    @model_validator(mode="after")
    def _names_its_users(self) -> Self:
        if (self.user_ids is None) == (self.share is None):
            raise ValueError("refused_users needs user_ids or share, and not both")
        return self

    def refuses(self, user_id: str) -> bool:
        """Whether this user is one of them."""
        if self.user_ids is not None:
            return user_id in self.user_ids
        digest = blake2b(user_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < (self.share or 0.0) * 2**64

    def limiter(self) -> Limiter:
        """Return what remembers nothing: the users are always the same."""
        return _UsersLimiter(self)


class _UsersLimiter(Limiter):
    def __init__(self, limit: RefusedUsers) -> None:
        self._limit = limit

    def admit(self, arrival: Arrival) -> Refusal | None:
        if arrival.user_id is None or not self._limit.refuses(arrival.user_id):
            return None
        return self._limit.refusal(retry_after=self._limit.retry_after)


class Slowdown(Limit):
    """Beyond `capacity` requests at once each takes longer, in proportion: all share what Halo can do.

    The latency is the simulator's own times the load when the request arrived, so there must be one.
    """

    kind: Literal["slowdown"] = "slowdown"
    capacity: Annotated[int, Field(ge=1)]

    def limiter(self) -> Limiter:
        """Return what counts nothing itself: the requests in flight are told."""
        return _SlowdownLimiter(self)


class _SlowdownLimiter(Limiter):
    def __init__(self, limit: Slowdown) -> None:
        self._capacity = limit.capacity

    def latency(self, arrival: Arrival, *, base: float) -> float:
        return base * max(1.0, (arrival.in_flight + 1) / self._capacity)


class WaitingQueue(RefusingLimit):
    """`capacity` requests are worked on at once; others wait, first come first served, at most `length` of them.

    Without `length` none is refused. A request whose client has left is worked on all the same.
    """

    kind: Literal["waiting_queue"] = "waiting_queue"
    capacity: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=0)] | None = None
    retry_after: Seconds | None = None

    def limiter(self) -> Limiter:
        """Return an empty queue."""
        return _QueueLimiter(self)


class _QueueLimiter(Limiter):
    def __init__(self, limit: WaitingQueue) -> None:
        self._limit = limit
        self._ends: list[float] = []  # a heap: when each of the places will have ended its last request so far

    def admit(self, arrival: Arrival) -> Refusal | None:
        limit = self._limit
        if limit.length is None or arrival.in_flight < limit.capacity + limit.length:
            return None
        return limit.refusal(retry_after=limit.retry_after)

    def latency(self, arrival: Arrival, *, base: float) -> float:
        starts = arrival.now if len(self._ends) < self._limit.capacity else max(arrival.now, heappop(self._ends))
        heappush(self._ends, starts + base)
        return starts + base - arrival.now


class AllOf(Limit):
    """Several limits: the first that refuses decides, after those before it have counted the request.

    What each of them adds to the latency is added up.
    """

    kind: Literal["all_of"] = "all_of"
    limits: Annotated[tuple["AnyLimit", ...], Field(min_length=1)]

    def limiter(self) -> Limiter:
        """Return the limiters of all."""
        return _AllOfLimiter([limit.limiter() for limit in self.limits])


class _AllOfLimiter(Limiter):
    def __init__(self, limiters: list[Limiter]) -> None:
        self._limiters = limiters

    def admit(self, arrival: Arrival) -> Refusal | None:
        for limiter in self._limiters:
            if refusal := limiter.admit(arrival):
                return refusal
        return None

    def latency(self, arrival: Arrival, *, base: float) -> float:
        added = (limiter.latency(arrival, base=base) - base for limiter in self._limiters)
        return base + sum(added)


class Step(BaseModel):
    """From `after` seconds on there is this limit, or none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: Seconds
    limit: "AnyLimit | None"


class ChangingLimit(Limit):
    """One limit after the other, in seconds since the first request; none before the first step."""

    kind: Literal["changing_limit"] = "changing_limit"
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _steps_follow_each_other(self) -> Self:
        if any(earlier.after >= later.after for earlier, later in pairwise(self.steps)):
            raise ValueError("changing_limit needs steps in the order of time")
        return self

    def limiter(self) -> Limiter:
        """Return what is at its first step when the first request comes."""
        return _ChangingLimiter(self)


class _ChangingLimiter(Limiter):
    def __init__(self, limit: ChangingLimit) -> None:
        self._steps = [(step.after, limiter_of(step.limit)) for step in limit.steps]
        self._began: float | None = None
        self._current = Limiter()

    def admit(self, arrival: Arrival) -> Refusal | None:
        if self._began is None:
            self._began = arrival.now
        while self._steps and self._steps[0][0] <= arrival.now - self._began:
            self._current = self._steps.pop(0)[1]
        return self._current.admit(arrival)

    def latency(self, arrival: Arrival, *, base: float) -> float:
        return self._current.latency(arrival, base=base)


AnyLimit = Annotated[
    TokenBucket
    | ConcurrencyLimit
    | FixedWindow
    | SporadicRefusals
    | RefusedUsers
    | Slowdown
    | WaitingQueue
    | AllOf
    | ChangingLimit,
    Field(discriminator="kind"),
]
PARSER: TypeAdapter[AnyLimit | None] = TypeAdapter(AnyLimit | None)
"""Reads a limit from JSON; ``null`` is none."""


def limiter_of(limit: Limit | None) -> Limiter:
    """Return what enforces `limit`, from its beginning; None lets everything through."""
    return Limiter() if limit is None else limit.limiter()
