"""What a refused request does next, and whether it was refused for something of its own or for a limit."""

import random
from collections import deque
from dataclasses import dataclass

from halo_provider.exceptions import HaloCallError

MAX_PAUSE = 300.0  # seconds for which Halo may admit nobody, told or not; then the run ends, and Airflow waits
MAX_ALONE = 10  # refusals of one request while others are admitted before it is given up

OWN_PRIOR, OWN_MEMORY = 8, 20  # pairs of requests, at least and at most, that tell own refusals from those of a limit
OWN_FROM = 0.5  # balance of such pairs from which on refusals are the requests' own,
OWN_UNTIL, OWN_LONG_MEMORY = 0.2, 100  # and share of so many requests refused once that are refused again, until which


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: a random wait of at most `base` seconds, doubled with every attempt, capped (in seconds)."""

    base: float = 0.5
    cap: float = 30.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the attempt with this number, from 1."""
        return random.uniform(0.0, min(self.cap, self.base * 2 ** min(attempt - 1, 30)))  # noqa: S311 -- no secret


@dataclass(slots=True, eq=False)
class Pair:
    """A request that was refused before and a new one, sent one after the other: whether Halo refused them."""

    repeated: bool | None = None
    new: bool | None = None


@dataclass(slots=True, eq=False)
class Attempt:
    """One request on its way: its number, when it was sent, and the how many-eth it was of those that Halo had."""

    number: int
    started: float  # on the loop's clock
    held_down: bool  # acquired while the pace was below the measured rate
    rank: int = 0
    is_repeated: bool = False  # its request was refused before
    pair: Pair | None = None


@dataclass(slots=True)
class Refusals:
    """How often Halo refused one request: altogether, and alone, while it admitted others that were sent later."""

    count: int = 0
    alone: int = 0
    first: int = 0  # the number of the attempt that was refused first,
    since: float = 0.0  # and when, on the loop's clock
    unexplained: Attempt | None = None  # refused, for a limit or for something of the request's own

    @property
    def hopeless(self) -> bool:
        """Whether to give the request up, in this run."""
        return self.alone >= MAX_ALONE

    def wait(self, error: HaloCallError, backoff: Backoff) -> float:
        """Seconds until the refused request may be sent again: what Halo says, or else a back-off.

        A request that is refused alone backs off in any case: a Retry-After of 0 would spend all its refusals at once.
        """
        if error.retry_after is None:
            return backoff.delay(self.count)
        return max(min(error.retry_after, MAX_PAUSE), backoff.delay(self.alone) if self.alone else 0.0)


class OwnRefusals:
    """Whether most requests that are refused are refused for something of their own, whatever the others do.

    A limit refuses a request that it refused before as often as a new one that is sent with it. Where the one is
    refused and the other admitted much oftener than the other way round, it is not a limit (McNemar's test). From then
    on the requests that are refused once and admitted later tell whether that is still so.
    """

    def __init__(self) -> None:
        self._noticed = False
        self._single: deque[Pair] = deque(maxlen=OWN_MEMORY)
        self._balance = 0.0  # share of the pairs in which the repeated one was refused, less that in which the new one
        self._pairs = 0
        self._new = 0.0  # share of the new requests that are refused
        self._again = 0.0  # share of the requests refused once that were refused again

    @property
    def are_usual(self) -> bool:
        """Whether it is so now, when not even most new requests are refused."""
        return self._noticed and self._new < 0.5  # noqa: PLR2004 -- most

    def begin(self, attempt: Attempt) -> None:
        """Pair the attempt with one sent before it."""
        if attempt.is_repeated:
            attempt.pair = Pair()
            self._single.append(attempt.pair)
            return
        self._new -= self._new / OWN_LONG_MEMORY
        if self._single:
            attempt.pair = self._single.popleft()

    def learn(self, attempt: Attempt, *, refused: bool) -> bool:
        """Learn how the attempt ended; True where it is the one from which on it is so."""
        if refused and not attempt.is_repeated:
            self._new += 1 / OWN_LONG_MEMORY
        pair = attempt.pair
        if pair is None:
            return False
        if attempt.is_repeated:
            pair.repeated = refused
        else:
            pair.new = refused
        if pair.repeated is None or pair.new is None or pair.repeated == pair.new:
            return False
        self._pairs = min(self._pairs + 1, OWN_MEMORY)
        self._balance += (pair.repeated - pair.new - self._balance) / (self._pairs + OWN_PRIOR)
        if self._noticed or self._balance < OWN_FROM:
            return False
        self._noticed, self._again = True, 1.0
        return True

    def resolve(self, *, again: bool) -> None:
        """Learn whether a request that was refused once was refused again."""
        self._again += (again - self._again) / OWN_LONG_MEMORY
        if self._again < OWN_UNTIL:
            self._noticed, self._balance, self._pairs = False, 0.0, 0
