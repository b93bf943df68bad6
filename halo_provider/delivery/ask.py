"""Asks Halo whether it has a row in doubt: looks again and again, and trusts "not there" only from a reader that sees.

A reader may be blind: a filter it misunderstands, an index that lags, a result it cannot read. So before "not there"
counts, a conversation that Halo is known to have is looked for in the same way: one of a row that this run delivered
after the row in doubt was sent, if there is one, else any other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple, Protocol

from halo_provider.client.reader import Found
from halo_provider.client.records import Conversation
from halo_provider.delivery.lookup import LONG_AGO, Look, Question, Sight, judge, needs_transcript, next_look, verdict
from halo_provider.exceptions import HaloReadError, LedgerError
from halo_provider.ledger.rules import Rivals

MAX_TRANSCRIPTS = 20  # of one look that are fetched whole
MAX_WITNESSES = 600  # delivered rows that are remembered, at most one a second
WITNESS_EVERY = 1.0  # seconds between them
WAIT = 3600.0  # seconds: the end of a run ends it early


class ConversationReader(Protocol):
    """What is asked, such as a HaloReader. Raises HaloReadError where nothing is known."""

    async def search_transcripts(
        self, *, user_id: str | None = None, text: str | None = None, since: datetime | None = None
    ) -> Found[Conversation]:
        """Conversations by these conditions, as far as the tool takes them."""
        ...

    async def transcript(self, session_id: str) -> Conversation | None:
        """One conversation with its messages."""
        ...


RivalsOf = Callable[[Question, Sequence[str]], Awaitable[Rivals]]


class _Witness(NamedTuple):
    """A delivered row: it must be found by who can see."""

    question: Question
    session_id: str
    sent_at: float  # on the clock


async def look(
    reader: ConversationReader,
    question: Question,
    *,
    rivals_of: RivalsOf,
) -> Look:
    """Look once. Never raises for what the reader does: the look is then unclear."""
    if not question.can_be_asked:
        return Look(Sight.UNCLEAR, reason="an anonymous message can be found by a reference only", lasting=True)
    try:
        found = await _conversations(reader, question)
        whole = [await _whole(reader, question, each) for each in found.records[:MAX_TRANSCRIPTS]]
        complete = found.complete and len(found.records) <= MAX_TRANSCRIPTS
        first = judge(question, whole, complete=complete)
        if first.sight is not Sight.FOUND:
            return first
        rivals = await rivals_of(question, [each.session_id for each in whole if each.session_id])
        return judge(question, whole, complete=complete, rivals=rivals)
    except HaloReadError as error:
        return Look(Sight.UNCLEAR, reason=str(error), lasting=error.lasting)
    except LedgerError as error:
        return Look(Sight.UNCLEAR, reason=str(error))
    except Exception as error:  # noqa: BLE001 -- a reader may be anybody's, and a result anything
        return Look(Sight.UNCLEAR, reason=f"looking it up raised {type(error).__name__}")


async def _conversations(reader: ConversationReader, question: Question) -> Found[Conversation]:
    """What may be the row's: the session it was sent into, else its user's since then, else what has its reference."""
    if question.session_id is not None:
        known = await reader.transcript(question.session_id)
        return Found((known,) if known else (), known is not None, frozenset())
    if question.user_id is not None:
        return await reader.search_transcripts(user_id=question.user_id, since=question.earliest)
    return await reader.search_transcripts(text=question.reference, since=question.earliest)


async def _whole(reader: ConversationReader, question: Question, conversation: Conversation) -> Conversation:
    """The conversation, with what its transcript adds where that can change anything."""
    if conversation.session_id is None or not needs_transcript(question, conversation):
        return conversation
    whole = await reader.transcript(conversation.session_id)
    if whole is None or whole.session_id not in {None, conversation.session_id}:
        return conversation
    return replace(
        whole,
        session_id=conversation.session_id,
        user_ids=whole.user_ids | conversation.user_ids,
        started_at=whole.started_at or conversation.started_at,
        messages=whole.messages if whole.messages is not None else conversation.messages,
        raw={"found": conversation.raw, "transcript": whole.raw},
    )


class Asker:
    """Looks rows in doubt up, each on its own schedule.

    `ask_after` is how many seconds after an attempt's end "not there" can count. `rivals_of` tells whose else these
    sessions may be, `known` a user and the session of a row that an earlier run delivered. `wait` waits for seconds and
    returns early where the run ends, which `is_ending` tells.
    """

    def __init__(
        self,
        reader: ConversationReader,
        *,
        ask_after: float,
        rivals_of: RivalsOf,
        wait: Callable[[float], Awaitable[None]],
        is_ending: Callable[[], bool],
        known: Callable[[], Awaitable[tuple[str, str] | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._ask_after = ask_after
        self._rivals_of = rivals_of
        self._wait = wait
        self._is_ending = is_ending
        self._known = known
        self._clock = clock
        self._given: dict[str, str] = {}  # sessions that this run has given to rows in doubt, and the rows
        self._witnesses = {by_session: deque[_Witness](maxlen=MAX_WITNESSES) for by_session in (False, True)}
        # What was sent until then would be found, on the clock: by its user, and by its session.
        self._sees_until = {False: float("-inf"), True: float("-inf")}
        self._testing = asyncio.Lock()
        self._sees_known: dict[bool, Look] = {}

    def delivered(self, question: Question, session_id: str, *, sent_at: float) -> None:
        """Remember a row that Halo has, which it was sent at that time on the clock; see `wants_witness`."""
        if question.can_be_asked:
            self._witnesses[question.session_id is not None].append(_Witness(question, session_id, sent_at))

    def wants_witness(self, *, by_session: bool) -> bool:
        """Whether another delivered row is worth remembering now, one into a known session or one into a new one."""
        known = self._witnesses[by_session]
        return not known or self._clock() - known[-1].sent_at >= WITNESS_EVERY

    async def ask(self, question: Question, *, ended_at: float) -> Look:
        """What becomes of the row: found, absent (it may be sent again), or unclear, also where the run ends.

        `ended_at` is when its attempt ended, on the clock.
        """
        looks: list[tuple[Look, float]] = []
        while (at := next_look(looks, ask_after=self._ask_after)) is not None:
            while (left := ended_at + at - self._clock()) > 0 and not self._is_ending():
                await self._wait(left)
            if self._is_ending():
                return Look(Sight.UNCLEAR, reason="the run ended before it was looked up")
            began = self._clock()
            seen = await self._broken_off(self._look(question))
            if (
                seen.sight is Sight.ABSENT
                and next_look([*looks, (seen, began - ended_at)], ask_after=self._ask_after) is None
            ):
                seen = await self._broken_off(self._believed(seen, question, ended_at=ended_at))
            looks.append((seen, began - ended_at))
        answer = verdict(looks, ask_after=self._ask_after)
        if answer.sight is Sight.FOUND and answer.session_id is not None:
            self._given[answer.session_id] = question.row_key
        return answer

    async def _look(self, question: Question) -> Look:
        return await look(self._reader, question, rivals_of=self._rivals)

    async def _rivals(self, question: Question, session_ids: Sequence[str]) -> Rivals:
        given = {each for each in session_ids if self._given.get(each, question.row_key) != question.row_key}
        found = await self._rivals_of(question, session_ids)
        return found._replace(sessions=found.sessions | given)

    async def _believed(self, absent: Look, question: Question, *, ended_at: float) -> Look:
        """The look, or that it proves nothing, since this reader does not find what Halo has in the same way."""
        by_session = question.session_id is not None
        async with self._testing:
            if self._sees_until[by_session] >= ended_at:
                return absent
            witness = self._witness(ended_at, by_session=by_session)
            if witness is not None:
                asked = witness.question._replace(session_id=witness.session_id if by_session else None)
                seen = await look(self._reader, asked, rivals_of=_no_rivals)
                if seen.sight is Sight.FOUND:
                    self._sees_until[by_session] = max(self._sees_until[by_session], witness.sent_at)
                    return absent
                return _blind(seen)
            if by_session not in self._sees_known:
                try:
                    known = await self._known()
                except LedgerError as error:
                    return Look(Sight.UNCLEAR, reason=str(error))
                seen = absent if known is None else await self._finds_session(*known, by_session=by_session)
                self._sees_known[by_session] = seen
            seen = self._sees_known[by_session]
            return absent if seen.sight is not Sight.UNCLEAR else seen

    def _witness(self, ended_at: float, *, by_session: bool) -> _Witness | None:
        """The first row delivered after that, else the last one before.

        Only a search finds by user, so that a message into a known session is no witness for it. For another such
        message it is the better one, since its conversation is old, too.
        """
        fitting = self._witnesses[by_session] or (self._witnesses[False] if by_session else ())
        after = (each for each in fitting if each.sent_at >= ended_at)
        return next(after, fitting[-1] if fitting else None)

    async def _finds_session(self, user_id: str, session_id: str, *, by_session: bool) -> Look:
        """Whether a session of an earlier run is found by its user, or by its id."""
        try:
            if by_session:
                conversation = await self._reader.transcript(session_id)
                found = [] if conversation is None or not conversation.messages else [conversation]
            else:
                found = list((await self._reader.search_transcripts(user_id=user_id, since=LONG_AGO)).records)
        except (HaloReadError, LedgerError) as error:
            return Look(Sight.UNCLEAR, reason=str(error))
        if any(each.session_id == session_id for each in found):
            return Look(Sight.FOUND, session_id)
        return _blind(Look(Sight.ABSENT))

    async def _broken_off(self, work: Awaitable[Look]) -> Look:
        """Wait for the work, or for the run's end."""
        looking = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(self._until_the_end())
        try:
            await asyncio.wait({looking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                return looking.result()
            return Look(Sight.UNCLEAR, reason="the run ended while it was looked up")
        finally:
            looking.cancel()
            ending.cancel()
            await asyncio.gather(looking, ending, return_exceptions=True)

    async def _until_the_end(self) -> None:
        while not self._is_ending():
            await self._wait(WAIT)


def _blind(seen: Look) -> Look:
    reason = f" ({seen.reason})" if seen.reason else ""
    return Look(
        Sight.UNCLEAR, reason=f"Halo's tools do not find a row that was delivered{reason}; so they prove nothing"
    )


async def _no_rivals(_question: Question, _session_ids: Sequence[str]) -> Rivals:
    return Rivals()
