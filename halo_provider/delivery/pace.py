"""How fast to send: find out what limits Halo puts on us, stay near them, and leave others their share.

Halo publishes no limits. All that is known are its answers: a request is admitted, or refused with 429, or with 503
where Halo is overloaded. What a refusal means depends on its neighbours:

* Refusals now and then, up to one in 40 requests, mean nothing: each holds back its own request (`Refusals`).
* A whole streak of requests, one begun after the other and all refused, means that Halo admits nobody for now.
  Everybody pauses for as long as Retry-After says, or tries again at growing intervals. After a pause whose end Halo
  told, half a streak is enough: the next window is used up, too.
* More refusals than that mean a limit. Where they hit requests that were under way beside more others than Halo was
  ever seen to admit, it is a limit of concurrency, and that many are allowed at a time. Otherwise it is a limit of the
  rate: between two moments at which Halo's allowance was used up it admitted just what it allows, so that count by that
  time is the rate, whatever kind of window or bucket Halo counts with.
* Refusals that stay as frequent when less is sent are no limit. They are tolerated for a while, at full speed.
* Where requests that were refused before are refused again while new ones beside them are admitted, refusals are for
  something of the requests' own (`OwnRefusals`). From then on a refusal is evidence of a limit only when its request
  is admitted later.

After a refusal for the rate the pace falls by 20 %, comes back to what was measured, stays near it, and then rises
ever faster (CUBIC, RFC 9438). Every sender on the same Halo falls by a share and rises in absolute terms, so that
their paces become equal without a word between them (AIMD: Chiu and Jain, 1989). To measure what is delivered instead
of halving at every loss, and to tolerate a small share of losses, is BBR's way (draft-ietf-ccwg-bbr). Vector's adaptive
request concurrency and Netflix's concurrency-limits know a limit of concurrency only, AWS's adaptive retries one of the
rate only. Latency is no signal here, unlike in Vector and Netflix's Gradient2: nobody waits for a single row, and a
Halo that queues requests answers as many a second however long its queue is.
"""

import asyncio
import math
import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

from halo_provider.delivery.refusals import MAX_ALONE, MAX_PAUSE, Attempt, OwnRefusals, Refusals
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloCallError, HaloRateLimitError, HaloServerError

MAX_LATENESS = 0.05  # seconds by which a start may be late and still count as in time, so that the next ones are

TOLERATED = 1 / 40  # refusals for every request that are no reason to slow down
EVIDENCE = 3  # refusals beyond that which are one
STREAK = 8  # refusals of requests begun one after the other that mean that Halo admits nobody,
STREAK_AGAIN = 4  # or where they are the first since Halo told everybody when to come back: a window is used up again
LONG_WINDOW = 3.0  # seconds since then: a pause because of fewer refusals costs a shorter window more than it saves
CLOSED_TIME = 1.0  # seconds without an admission from which on requests that were passed count in a streak
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between looks at a Halo that admits nobody and says no time

MEASURED_TIME, MEASURED_REQUESTS = 1.0, 10  # seconds and admitted requests at least from which a rate is measured
KEPT = 0.8  # share of the measured rate with which sending goes on
GROWTH = 0.02  # requests a second that the pace rises by, times the cube of the seconds: the same for every sender,
GROWTH_FAST = 0.006  # but at least this share of the rate
GROWTH_UNSURE = 0.05  # of the rate instead, while it is only estimated

PROBE_INTERVAL = 0.5  # seconds between probes for more concurrency that succeed
PROBE_PATIENCE = 120  # admitted requests after one that was refused
RANK_MEMORY = 10.0  # seconds for which, twice at most, the most that Halo admitted at a time counts

CHANCE_EVIDENCE = 16  # refusals while the pace is held down that mean chance,
CHANCE_EVIDENCE_LIMITED = 60  # or where a limit of the rate was measured
CHANCE_TIME = 30.0  # seconds until such refusals are looked at again

LimitedBy = Literal["rate", "concurrency", "refusals", "setting", "source"]


@dataclass(frozen=True, slots=True)
class Pace:
    """What limits the sending at a moment, or limited most requests of a run.

    `limited_by` is Halo's rate or its concurrency, its refusing everything, our own setting, or the source, which has
    no more rows for now. `requests_per_second` is the rate that Halo was found to admit, None while none was found;
    `concurrency` how many requests may be under way; `refused` how many were refused so far.
    """

    limited_by: LimitedBy
    requests_per_second: float | None
    concurrency: int
    refused: int

    @property
    def sentence(self) -> str:
        """The same for people."""
        match self.limited_by:
            case "rate" if self.requests_per_second is not None:
                return f"Halo's rate limits, at about {self.requests_per_second:,.3g} requests/s"
            case "concurrency":
                return f"Halo's concurrency limits, at about {self.concurrency:,} at a time"
            case "refusals":
                return "Halo refuses everybody for now"
            case "source":
                return "the source limits"
            case _:
                return "the task's own settings limit"


class _RateCap:
    """The rate that Halo was found to admit, and the pace at which to send because of it (a cubic curve)."""

    def __init__(self) -> None:
        self.measured = math.inf  # requests a second
        self.sure = False  # measured between two moments at which Halo's allowance was used up
        self._least = math.inf
        self._growth = 0.0
        self._back_at = 0.0  # when the pace is the measured rate again

    def at(self, now: float) -> float:
        """The pace at this time, in requests a second."""
        if self.measured == math.inf:
            return math.inf
        return max(self._least, self.measured + self._growth * (now - self._back_at) ** 3)

    def held_down(self, now: float) -> bool:
        """Whether the pace is below the measured rate, where Halo refuses nothing for the rate."""
        return now < self._back_at and self.measured < math.inf

    def lower(self, rate: float, now: float, *, sure: bool, paused: bool) -> None:
        """Go on after `now` as this rate suggests; a pause was a reduction already."""
        self.measured = rate
        self.sure = sure
        self._least = rate if paused else KEPT * rate
        self._growth = max(GROWTH, GROWTH_FAST * rate) if sure else GROWTH_UNSURE * rate
        if sure:
            self._back_at = now + ((1 - KEPT) * rate / self._growth) ** (1 / 3)
        else:
            self._back_at = now

    def delay(self, until: float) -> None:
        """Grow no further before this time."""
        self._back_at = max(self._back_at, until)

    def lift(self) -> None:
        """Forget the limit."""
        self.measured = math.inf


class _Refused(NamedTuple):
    """A refused attempt; `is_passed`: its request was refused before, and one that was sent later was admitted."""

    number: int
    retry_after: float | None
    is_passed: bool


class Pacer:
    """Lets requests through: at most `limit` at a time, at the pace of `_rate`, none during a pause.

    `concurrency` and `requests_per_second` are the user's upper bounds. Every attempt is acquired, begun when it is
    sent, released, and then told of: `succeeded`, `failed`, or neither where nothing was sent.
    """

    def __init__(self, *, concurrency: int, requests_per_second: float | None, stop: Stop) -> None:
        self.concurrency = concurrency
        self.limit = concurrency
        self.refused = 0
        self._stop = stop
        self._interval = 1.0 / requests_per_second if requests_per_second else 0.0
        self._limited_by: LimitedBy = "source"
        self._limits: Counter[LimitedBy] = Counter()  # requests by what limited them
        self._turn = asyncio.Lock()  # to wait for the next start
        self._next_start = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asking = 0  # callers that wait in acquire()
        self._promised = 0  # places of waiters that were woken and have not run yet
        self.in_flight = 0  # attempts acquired and not released
        self._under_way: set[Attempt] = set()  # sent and not released
        self._closed = 0  # places in which a request was refused, for as long as an answer would have taken
        self._latency = 0.5  # seconds that an admitted request takes, of late
        self._begun = 0
        self._newest_admitted = 0  # the number of the attempt
        # Refusals as evidence.
        self._evidence = 0.0
        self._tolerated = TOLERATED
        self._chance_until = 0.0
        self._limit_met = False
        self._own_refusals = OwnRefusals()
        self._judged = 0  # the last attempt begun before the limits were lowered last
        self._streak: deque[_Refused] = deque(maxlen=STREAK)  # the attempts refused last
        # The pauses: how many in a row, the end of the last one, and the last attempt begun before it.
        self._pauses, self._paused_until, self._paused_after = 0, 0.0, 0
        self._refused_since_told: int | None = None  # since the last pause, None where Halo did not tell its end
        self._closed_since: float | None = (
            None  # when Halo refused the first that none has passed, since it admitted one
        )
        # The rate: what Halo admitted since its allowance was used up.
        self._rate = _RateCap()
        self._first_judged = False
        self._since: float | None = None
        self._since_attempt = 0
        self._sent = self._lost = 0
        self._short_of_places = False
        # The rate, held down: refusals that come all the same are chance.
        self._share = 0.0  # of refusals when the pace was lowered
        self._held_down_sent = self._held_down_lost = 0
        # The concurrency.
        self._beyond: list[Attempt] = []  # refused since, where Halo had more than it was seen to admit
        self._refused_since = 0
        self._lowest_beyond: Attempt | None = None
        self._lowered_for = 0  # the attempt whose refusal lowered the limit
        self._most = 0  # at a time that Halo admitted of late
        self._most_before = 0
        self._more: list[int] = []  # admitted beyond that
        self._most_until = 0.0
        self._probe_size = 1
        self._probe_at = 0.0
        self._probe_after = PROBE_PATIENCE  # admitted requests
        self._admitted_since = 0
        self._held_by_limit = False

    def pace(self, *, of_all: bool = False) -> Pace:
        """What limits the sending now, or limited most of all requests."""
        rate = self._rate.measured
        return Pace(
            limited_by=self._limits.most_common(1)[0][0] if of_all and self._limits else self._limited_by,
            requests_per_second=None if rate == math.inf else rate,
            concurrency=self.limit,
            refused=self.refused,
        )

    async def acquire(self) -> Attempt:
        """Wait for a place and a turn, and take them; waits no longer when the run is to end."""
        self._asking += 1
        try:
            limited_by = await self._wait()
        finally:
            self._asking -= 1
        self.in_flight += 1
        now = asyncio.get_running_loop().time()
        attempt = Attempt(self._begun, now, self._rate.held_down(now))
        self._held_down_sent += attempt.held_down
        self._limited_by = limited_by or ("setting" if self.in_flight >= self.concurrency else "source")
        self._limits[self._limited_by] += 1
        return attempt

    async def _wait(self) -> LimitedBy | None:
        """Wait for a place and a turn; returns what for, None where nothing was to be waited for."""
        loop = asyncio.get_running_loop()
        limited_by: LimitedBy | None = None
        while not self._stop.requested:
            now = loop.time()
            if self._paused_until > now:
                limited_by = "refusals"
                await self._stop.sleep(self._paused_until - now)
            elif self._free <= 0:
                if self.limit < self.concurrency:
                    limited_by = "concurrency"
                    self._held_by_limit = self._short_of_places = True
                place: asyncio.Future[None] = loop.create_future()
                self._waiting.append(place)
                await self._given(place)
            elif self._next_start > now:
                limited_by = "rate" if self._rate.at(now) * self._interval < 1 else "setting"
                async with self._turn:
                    await self._stop.sleep(self._next_start - loop.time())
            else:
                self._take_turn(now)
                break
        return limited_by

    async def _given(self, place: asyncio.Future[None]) -> None:
        """Wait for the place; whoever asks meanwhile does not get it."""
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._promised -= 1
                self._admit()
            raise
        self._promised -= 1

    def _measure_from(self, moment: float) -> None:
        """Begin a new measurement of the rate: what was sent before counts no more."""
        self._since, self._since_attempt = moment, self._begun
        self._sent = self._lost = 0

    def begin(self, attempt: Attempt, refusals: Refusals) -> None:
        """It is sent now, after these refusals of its request."""
        attempt.started = asyncio.get_running_loop().time()
        attempt.is_repeated = refusals.count > 0
        self._own_refusals.begin(attempt)
        self._under_way.add(attempt)
        attempt.rank = len(self._under_way)

    def _take_turn(self, now: float) -> None:
        if self._asking == 1 and not self.in_flight:
            self._measure_from(now)  # the source limits: how much Halo admits shows only while there is more to send
        due = self._next_start if now - self._next_start < MAX_LATENESS else now
        self._next_start = due + max(self._interval, 1 / self._rate.at(now))
        if self._since is None:
            self._since = now
        self._begun += 1
        self._sent += 1
        self._evidence = max(0.0, self._evidence - self._tolerated)

    def release(self, attempt: Attempt) -> None:
        """Give the place back."""
        self.in_flight -= 1
        self._under_way.discard(attempt)
        self._admit()

    def succeeded(self, attempt: Attempt, refusals: Refusals) -> None:
        """Halo admitted it, and answered; its request had these refusals."""
        now = asyncio.get_running_loop().time()
        self._learn_own(attempt, refused=False)
        self._newest_admitted = max(self._newest_admitted, attempt.number)
        self._latency += (now - attempt.started - self._latency) / 10
        self._closed_since = None
        if attempt.number > self._paused_after:
            self._pauses = 0
        if self._rate.at(attempt.started) > 2 * self.concurrency / self._latency and self._rate.measured < math.inf:
            self._lift_rate()
        self._notice_rank(attempt.rank, now)
        if refusals.unexplained is not None:
            self._own_refusals.resolve(again=False)
            self._blame_limit(refusals.unexplained)
            refusals.unexplained = None
            if self._is_evident():
                self._lower(now, pause=None, told=False)
        if self.limit < self.concurrency:
            self._probe(attempt, now)

    def _notice_rank(self, rank: int, now: float) -> None:
        """Remember how many Halo admits at a time; one more counts when it was seen often enough to be no mistake."""
        if now >= self._most_until:
            self._most_before, self._most, self._most_until = self._most, 0, now + RANK_MEMORY
        if rank > self._most:
            self._more.append(rank)
            if len(self._more) >= EVIDENCE:
                self._most = min(self._more)
                self._more.clear()

    def failed(self, attempt: Attempt, error: HaloCallError, refusals: Refusals) -> bool:
        """Halo did not answer as it should. Tells whether it refused the request, whose `refusals` are counted.

        Everybody slows down, or pauses, where the neighbours say so; a request whose turn Halo puts off for longer
        than MAX_PAUSE is given up, and the run with it where no other request could say otherwise.
        """
        if not (isinstance(error, HaloRateLimitError) or (isinstance(error, HaloServerError) and error.status == 503)):  # noqa: PLR2004
            return False
        now = asyncio.get_running_loop().time()
        self.refused += 1
        is_passed = refusals.count > 0 and self._newest_admitted > refusals.first
        self._count(attempt, now, refusals, error.retry_after, is_passed=is_passed)
        self._explain(attempt, now, refusals, is_passed=is_passed)
        pause = self._streak_pause(_Refused(attempt.number, error.retry_after, is_passed), now, rank=attempt.rank)
        if not self._under_way and (error.retry_after or 0.0) > MAX_PAUSE:
            pause = error.retry_after
        if pause is not None or not is_passed:
            self._closed_since = self._closed_since or now
            if now + (pause or 0.0) > self._closed_since + MAX_PAUSE:
                self._stop.request("Halo asks to come back later", error=error)
        if pause is not None:
            self._pauses += 1
            pause = min(pause, MAX_PAUSE)
            self._paused_until = max(self._paused_until, now + pause)
            self._rate.delay(self._paused_until)
        if (pause is not None and now >= self._chance_until) or self._is_evident():
            self._lower(now, pause=pause, told=error.retry_after is not None)
        if pause is not None:
            self._paused_after = self._begun
            self._streak.clear()
        return True

    def _count(
        self, attempt: Attempt, now: float, refusals: Refusals, retry_after: float | None, *, is_passed: bool
    ) -> None:
        """Count the refusal; alone, where Halo admitted one that was sent later, and refuses none but such since."""
        if refusals.count == 0:
            refusals.first, refusals.since = attempt.number, now
        elif self._closed_since is None:
            refusals.alone += is_passed
        refusals.count += 1
        if (retry_after or 0.0) > MAX_PAUSE or (refusals.alone and now - refusals.since > MAX_PAUSE):
            refusals.alone = MAX_ALONE

    def _explain(self, attempt: Attempt, now: float, refusals: Refusals, *, is_passed: bool) -> None:
        """Take the refused attempt out of what Halo admitted, and into the evidence of a limit, if it is one."""
        for other in self._under_way:
            other.rank -= other.number > attempt.number
        if attempt.number > self._since_attempt:
            self._sent -= 1
        self._learn_own(attempt, refused=True)
        is_own = self._own_refusals.are_usual
        if not is_own or attempt.rank > self._most_admitted:
            self._close(now)
        if not is_own:
            refusals.unexplained = None
            self._blame_limit(attempt)
        elif is_passed:
            if refusals.unexplained is not None:
                self._own_refusals.resolve(again=True)
                refusals.unexplained = None
            self._held_down_sent -= attempt.held_down
            self._give_turn_back(now)
        else:
            refusals.unexplained = attempt

    def _give_turn_back(self, now: float) -> None:
        """Let another request have the turn at Halo's pace; the user's own bound counts every request."""
        turn = max(0.0, 1 / self._rate.at(now) - self._interval)
        self._next_start = max(now, self._next_start - turn)

    def _learn_own(self, attempt: Attempt, *, refused: bool) -> None:
        if self._own_refusals.learn(attempt, refused=refused):
            self._forget_limits()

    def _close(self, now: float) -> None:
        """Leave the place empty for as long as an answer would have taken."""
        if now >= self._chance_until:
            self._closed += 1
            wait = self._latency * random.uniform(0.5, 1.5)  # noqa: S311 -- no secret
            asyncio.get_running_loop().call_later(wait, self._open)

    def _blame_limit(self, attempt: Attempt) -> None:
        """Take the refusal for evidence of a limit."""
        self._lost += attempt.number > self._since_attempt
        if attempt.number > self._judged:
            self._evidence += 1
            self._refused_since += 1
            self._held_down_lost += attempt.held_down
            if attempt.rank > self._most_admitted:
                self._beyond.append(attempt)

    def _forget_limits(self) -> None:
        """Look for the limits anew."""
        now = asyncio.get_running_loop().time()
        self._lift_rate()
        self._first_judged = False
        self._probe_size = max(1, self.limit // 2)
        self._probe_after = min(5, self.limit)
        self._chance_until = now
        self._tolerated = TOLERATED
        self._measure_from(now)
        self._clear_evidence()

    def _clear_evidence(self) -> None:
        """Judge by refusals of what begins from now on."""
        self._judged = self._begun
        self._evidence = 0.0
        self._beyond.clear()
        self._refused_since = 0

    def _lift_rate(self) -> None:
        self._rate.lift()
        self._limit_met = False

    def _open(self) -> None:
        self._closed -= 1
        self._admit()

    def _streak_pause(self, refused: _Refused, now: float, *, rank: int) -> float | None:
        """Seconds for which nobody needs to try, where Halo admits nobody."""
        if refused.is_passed and self._own_refusals.are_usual:
            return None
        if refused.number <= self._paused_after or 0 < self._most_admitted < rank:
            self._streak.clear()
            return None
        self._streak.append(refused)
        if self._refused_since_told is not None:
            self._refused_since_told += 1
        still_closed = not refused.is_passed and self._pauses > 0 and refused.number == self._paused_after + 1
        if not still_closed and not self._is_streak(now):
            return None
        told = [one.retry_after for one in self._streak if one.retry_after is not None]
        self._refused_since_told = 0 if told else None
        if told:
            return min(told)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**self._pauses) * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret

    def _is_streak(self, now: float) -> bool:
        """Whether requests begun one after the other were refused, so many that Halo admits nobody."""
        is_next_window = self._refused_since_told == STREAK_AGAIN and now - self._paused_until >= LONG_WINDOW
        enough = STREAK_AGAIN if is_next_window else STREAK
        numbers = [one.number for one in self._streak]
        if not len(numbers) >= enough > max(numbers) - min(numbers):
            return False
        passed = sum(one.is_passed for one in self._streak)
        if is_next_window:
            return passed < enough
        is_closed = self._closed_since is not None and now - self._closed_since >= CLOSED_TIME
        return passed == 0 or (is_closed and 2 * passed <= enough)

    def _is_evident(self) -> bool:
        """Whether there are more refusals than mean nothing, and what they are will not be clearer in a moment."""
        last = [one.number for one in self._streak][-EVIDENCE:]
        if len(last) == EVIDENCE and last[-1] - last[0] == EVIDENCE - 1:
            return False  # a streak, perhaps
        return len(self._beyond) >= EVIDENCE or self._evidence >= EVIDENCE

    def _lower(self, now: float, *, pause: float | None, told: bool) -> None:
        """Lower the limit that the refusals since the last time speak of."""
        resumed = now + (pause or 0.0)
        used_up = resumed if told else now
        seconds = used_up - (self._since or now)
        # What began after the first of a streak will be refused as well.
        unknown = 0
        if pause is not None:
            first = min((one.number for one in self._streak), default=0)
            unknown = sum(attempt.number > first for attempt in self._under_way)
        admitted = self._sent - unknown
        first_time = not self._first_judged
        measurable = not first_time and seconds >= MEASURED_TIME and admitted >= MEASURED_REQUESTS
        guessable = first_time and (pause is not None or seconds >= MEASURED_TIME)
        unsure = first_time
        if 2 * len(self._beyond) >= self._refused_since > 0:
            lowest = min(self._beyond, key=lambda attempt: attempt.rank)
            self.limit = max(1, min(self.limit, lowest.rank - 1))
            self._lowered_for = lowest.number
        elif measurable:
            unsure = self._short_of_places
            self._lower_rate(admitted / seconds, now, resumed=resumed, sure=not unsure, paused=pause is not None)
        elif guessable:
            self._share = self._lost / max(1, self._sent + self._lost)
            self._rate.lower(max(1, self._sent) / (resumed - (self._since or now)), resumed, sure=False, paused=True)
        else:
            return
        if measurable or guessable:
            self._measure_from(used_up)
            self._short_of_places = False
            self._first_judged = True
        self._next_start = max(self._next_start, now)
        self._clear_evidence()
        self._probe_at = now + PROBE_INTERVAL
        self._probe_size = max(1, self.limit // 2) if unsure else 1
        self._probe_after = min(5, self.limit) if unsure else PROBE_PATIENCE
        self._admitted_since = 0
        self._held_by_limit = False

    def _lower_rate(self, rate: float, now: float, *, resumed: float, sure: bool, paused: bool) -> None:
        share = self._lost / (self._sent + self._lost)
        if self._is_chance():
            self._lift_rate()
            self.limit = self.concurrency
            self._tolerated = 2 * self._share
            self._chance_until = now + CHANCE_TIME
            asyncio.get_running_loop().call_later(CHANCE_TIME, self._doubt_chance)
            self._held_down_sent = self._held_down_lost = 0
            self._admit()
            return
        self._tolerated = TOLERATED
        pace = self._rate.at(now)
        if pace > self._rate.measured:
            self._limit_met = self._limit_met or self._rate.sure
            self._share = share
        expected = self._share * self._held_down_sent
        if expected >= EVIDENCE + 1 and self._held_down_lost < expected / 2:
            self._held_down_sent = self._held_down_lost = 0
        self._share = self._share or share
        self._rate.lower(min(pace, rate), resumed, sure=sure, paused=paused)

    def _is_chance(self) -> bool:
        """Whether as many requests were refused at a lower pace, as only refusals by chance are."""
        evidence = CHANCE_EVIDENCE_LIMITED if self._limit_met else CHANCE_EVIDENCE
        if self._held_down_lost < evidence or self._share <= TOLERATED:
            return False
        expected = self._share * self._held_down_sent
        return 0.5 * expected <= self._held_down_lost <= 2.0 * expected

    def _doubt_chance(self) -> None:
        self._tolerated = TOLERATED

    def _probe(self, attempt: Attempt, now: float) -> None:
        """Allow more at a time where Halo admitted more, or where nothing was refused for long enough."""
        self._admitted_since += attempt.number > self._judged
        if attempt.rank > self.limit and attempt.number > self._lowered_for:
            self.limit = min(attempt.rank, self.concurrency)
            self._admit()
        elif (
            (self._held_by_limit or self._waiting)
            and self._admitted_since >= self._probe_after
            and now >= self._probe_at
        ):
            self.limit = min(self.concurrency, self.limit + self._probe_size)
            self._probe_size *= 2
            self._probe_at = now + PROBE_INTERVAL
            self._probe_after = 5
            self._admitted_since = 0
            self._held_by_limit = False
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._free > 0 or self._stop.requested):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._promised += 1

    @property
    def _most_admitted(self) -> int:
        """The most requests at a time that Halo admitted of late."""
        return max(self._most, self._most_before)

    @property
    def _free(self) -> int:
        """Places that nobody has, and nobody was promised."""
        return self.limit - self.in_flight - self._closed - self._promised
