"""Follows delivered rows to their tickets: looks at Halo, and records in the ledger what it sees.

What is not settled is asked of the ledger in every round, so that a follower that ends can be replaced by another one
at any time. A round first lists the tickets since the first delivery that is waited for, as long as that takes fewer
calls than asking about each row; then it asks about the rows that the list did not settle, once for each ticket that
is known and once for each user.

A ticket is a row's where it names the row's session, where a search by that session gives it, or where the session's
conversation names it. Where Halo's tools connect tickets and sessions in none of these ways, it is the newest one of
the row's user that was made when the row was delivered, or was open then: Halo merges a user's tickets.
"""

import asyncio
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from halo_provider.client.reader import GET_TICKET, GET_TRANSCRIPT, SEARCH_TICKETS, Found
from halo_provider.client.records import Conversation, Ticket, ticket_ids_of
from halo_provider.client.tools import Argument, Tool
from halo_provider.exceptions import HaloReadError
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.tables import MAX_TICKET_STATUS
from halo_provider.ledger.tickets import (
    NO_TICKET,
    NOT_FOUND,
    WITHOUT,
    FollowedRow,
    TicketCounts,
    TicketFact,
    TicketRows,
    Until,
    with_others,
)

DEFAULT_TICKET_WITHIN = 300.0  # seconds after its delivery in which a row's ticket can appear
MARGIN = timedelta(minutes=10)  # by which a ticket may be older than its row's delivery: a chat's time, and clocks
PAGE = 500  # rows asked about together
FEW_ROWS = 3  # with fewer, no list of tickets is asked for
MAX_MISSED = 100  # tickets of one look that are asked for alone although a list should have had them
MAX_LIST_PAGES = 500  # of one list of tickets
ASKED_TOGETHER = 25  # users, or tickets, whose answers are kept together
UNKNOWN = "unknown"  # the status of a ticket that has no status
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
MAX_FAILURES = 3  # questions in succession without an answer, which end a round

_T = TypeVar("_T")


class TicketReader(Protocol):
    """Asks Halo; its methods raise HaloReadError, as `HaloReader` does."""

    @property
    def calls(self) -> int:
        """Calls made so far."""
        ...

    async def tools(self) -> "Tools":
        """The tools there are, by name."""
        ...

    async def list_tickets(self, *, since: datetime, take: Callable[[Ticket], None], max_pages: int) -> bool:
        """Tell every ticket since a time; whether these are all."""
        ...

    async def search_tickets(self, *, user_id: str | None = None, session_id: str | None = None) -> Found[Ticket]:
        """The tickets of a user or a session."""
        ...

    async def ticket(self, ticket_id: str) -> Ticket | None:
        """One ticket."""
        ...

    async def transcript(self, session_id: str) -> Conversation | None:
        """One conversation."""
        ...


class Tools(Protocol):
    """Tools by name."""

    def get(self, name: str, /) -> Tool | None:
        """One of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What is known after one look. `calls` are those it took, `problem` is why it could not ask about every row."""

    counts: TicketCounts
    calls: int
    problem: str | None = None


_Facts = dict[FollowedRow, TicketFact]


class _Seen(NamedTuple):
    """A ticket as it is kept from a list: what a list tells besides would fill the memory."""

    ticket_id: str
    fact: TicketFact
    created_at: datetime | None
    user_ids: frozenset[str]


class _Answer(NamedTuple, Generic[_T]):
    """What a question found, which may be nothing."""

    found: _T


@dataclass(frozen=True, slots=True, kw_only=True)
class _Abilities:
    """What the server's tools can be asked."""

    lists: bool = False
    by_user: bool = False
    by_session: bool = False
    get_ticket: bool = False
    get_transcript: bool = False

    @classmethod
    def of(cls, tools: Tools) -> "_Abilities":
        """What these can. Raises HaloReadError where none of them tells of tickets."""
        search, ticket, transcript = (tools.get(name) for name in (SEARCH_TICKETS, GET_TICKET, GET_TRANSCRIPT))
        can = cls(
            lists=search is not None and search.takes(Argument.SINCE),
            by_user=search is not None and search.takes(Argument.USER),
            by_session=search is not None and search.takes(Argument.SESSION),
            get_ticket=ticket is not None and ticket.takes(Argument.TICKET),
            get_transcript=transcript is not None and transcript.takes(Argument.SESSION),
        )
        if not (can.lists or can.by_user or can.by_session or can.get_transcript):
            raise HaloReadError(
                f"Halo's server has no tool by which tickets could be found: neither {SEARCH_TICKETS} by time, user or "
                f"session, nor {GET_TRANSCRIPT} by session",
                lasting=True,
            )
        return can


@dataclass(slots=True)
class _Listed:
    """The tickets of one list."""

    by_session: dict[str, _Seen] = field(default_factory=dict)
    by_id: dict[str, _Seen] = field(default_factory=dict)
    by_user: dict[str, list[_Seen]] = field(default_factory=lambda: defaultdict(list))

    def take(self, ticket: Ticket) -> None:
        """Keep one."""
        seen = _seen(ticket)
        self.by_id[ticket.ticket_id] = seen
        for user_id in ticket.user_ids if not ticket.session_ids else ():
            self.by_user[user_id].append(seen)
        for session_id in ticket.session_ids:
            known = self.by_session.get(session_id)
            self.by_session[session_id] = seen if known is None else _newest([known, seen])


class TicketFollower:
    """Looks at the tickets of the wanted rows, round by round.

    `ticket_within` is how many seconds after a row's delivery "without a ticket" and "not to be found" count. `wanted`
    may name sessions that the ledger does not have: their age counts from `asked_at`, and what is seen of them is kept
    here only, in `others`.
    """

    def __init__(
        self,
        reader: TicketReader,
        rows: TicketRows,
        wanted: RowFilter,
        *,
        until: Until | None,
        ticket_within: float = DEFAULT_TICKET_WITHIN,
        asked_at: datetime | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._reader = reader
        self._rows = rows
        self._wanted = wanted
        self._until = until
        self._ticket_within = ticket_within
        self._now = now
        self._asked_at = asked_at or now()
        self._can = _Abilities()
        self._nameless = False  # searches and lists tell of tickets without their sessions
        self._failures = 0
        self._missed = 0  # tickets of this look that its list should have had
        self.others: dict[str, TicketFact | None] = {}

    async def look(self) -> Round:
        """One round over every row that is not settled; with `until=None`, over every row.

        Raises LedgerError, and HaloReadError where no later round could see more.
        """
        before = self._reader.calls
        self._failures = 0
        self._missed = 0
        problem = None
        try:
            await self._look()
        except HaloReadError as error:
            if error.lasting:
                raise
            problem = error.reason
        counts = await asyncio.to_thread(self._rows.counts, self._wanted)
        counts = with_others(counts, self.others.values())
        return Round(counts=counts, calls=self._reader.calls - before, problem=problem)

    def limits(self) -> list[str]:
        """What the tools cannot be asked, and what that costs: one sentence each, known after a look."""
        can = self._can
        told = {
            f"{SEARCH_TICKETS} cannot be asked by time, so each user's tickets are asked for by themselves": can.lists,
            f"{SEARCH_TICKETS} takes neither a user nor a session: a row without a ticket is never known as such, and "
            "counts as not known yet": can.by_user or can.by_session,
            f"there is no {GET_TRANSCRIPT} by session: a session that Halo does not have counts as answered without a "
            "ticket": can.get_transcript,
            f"there is no {GET_TICKET}: a ticket's status is known from lists and searches only": can.get_ticket,
        }
        return [sentence for sentence, is_there in told.items() if not is_there] if can != _Abilities() else []

    async def _look(self) -> None:
        others = await self._other_rows()
        waiting = await asyncio.to_thread(partial(self._rows.waiting, self._wanted, until=self._until))
        if not others and not waiting.rows and self._until is not None:
            return
        self._can = _Abilities.of(await self._reader.tools())
        listed = await self._list(waiting.since, rows=waiting.rows)
        after: RowCursor | None = None
        while True:
            page, after = await asyncio.to_thread(
                partial(self._rows.page, self._wanted, until=self._until, after=after, limit=PAGE)
            )
            async for facts in self._facts(page, listed):
                await asyncio.to_thread(self._rows.record, facts.items())
            if after is None:
                break
        async for facts in self._facts(others, listed):
            self.others.update((row.session_id, fact) for row, fact in facts.items())

    async def _other_rows(self) -> list[FollowedRow]:
        """The wanted sessions that the ledger does not have, as far as they are not settled."""
        if not self._wanted.session_ids:
            return []
        known = await asyncio.to_thread(self._rows.known_sessions, self._wanted)
        for session_id in self._wanted.session_ids:
            if session_id not in known:
                self.others.setdefault(session_id, None)
        age = (self._now() - self._asked_at).total_seconds()
        return [
            FollowedRow(None, session_id, None, session_id, self._asked_at, age, fact)
            for session_id, fact in self.others.items()
            if not _is_settled(fact, self._until)
        ]

    async def _list(self, since: datetime | None, *, rows: int) -> _Listed:
        """The tickets since the first delivery that is waited for, as far as that costs less than asking for each."""
        listed = _Listed()
        if since is not None and rows >= FEW_ROWS and self._can.lists:
            max_pages = min(rows, MAX_LIST_PAGES)
            await self._asked(self._reader.list_tickets(since=since - MARGIN, take=listed.take, max_pages=max_pages))
            self._nameless = self._nameless or (bool(listed.by_id) and not listed.by_session)
        return listed

    async def _facts(self, rows: Sequence[FollowedRow], listed: _Listed) -> AsyncIterator[_Facts]:
        """What can be told of these rows, in steps: what one has told is kept where the next one fails."""
        facts: _Facts = {}
        for row in rows:
            ticket_id = row.known.ticket_id if row.known else None
            found = listed.by_session.get(row.session_id) or listed.by_id.get(ticket_id or "")
            if found is not None:
                facts[row] = found.fact
        yield facts
        left = [row for row in rows if row not in facts]
        if listed.by_id and self._until is not None:
            left = self._without_missed(left)
        for group in _groups(left, key=lambda row: row.known.ticket_id if row.known else None):
            facts = await self._by_ticket(group)
            yield facts
            left = [row for row in left if row not in facts]
        if self._nameless and self._can.get_ticket:
            for group in _groups([row for row in left if row.user_id in listed.by_user], key=lambda row: row.user_id):
                facts = await self._by_listed(group, listed)
                yield facts
                left = [row for row in left if row not in facts]
        for group in _groups(left, key=lambda row: row.user_id):
            yield await self._by_search(group)

    def _without_missed(self, rows: Sequence[FollowedRow]) -> list[FollowedRow]:
        """The rows without most of those whose ticket is known and in no list: the next list has them.

        Where many tickets change while a list is read page by page, it misses many.
        """
        kept = []
        for row in rows:
            is_missed = row.known is not None and row.known.ticket_id is not None
            self._missed += is_missed
            if not is_missed or self._missed <= MAX_MISSED:
                kept.append(row)
        return kept

    async def _by_ticket(self, rows: Sequence[FollowedRow]) -> _Facts:
        """The tickets that are known already, one call for each."""
        by_ticket: dict[str, list[FollowedRow]] = defaultdict(list)
        for row in rows:
            if row.known is not None and row.known.ticket_id is not None and self._can.get_ticket:
                by_ticket[row.known.ticket_id].append(row)
        tickets = await _together(self._asked(self._reader.ticket(ticket_id)) for ticket_id in by_ticket)
        facts: _Facts = {}
        for group, answer in zip(by_ticket.values(), tickets, strict=True):
            for row in group:
                if answer is not None and answer.found is not None:
                    facts[row] = _seen(answer.found).fact
                elif answer is None and row.known is not None:
                    facts[row] = row.known  # nothing new can be told now
        return facts

    async def _by_listed(self, rows: Sequence[FollowedRow], listed: _Listed) -> _Facts:
        """The tickets of the rows' users in a list that names no sessions."""
        told = await _together(self._own(row, listed.by_user[row.user_id or ""]) for row in rows)
        return {row: _newest(own).fact for row, own in zip(rows, told, strict=True) if own}

    async def _by_search(self, rows: Sequence[FollowedRow]) -> _Facts:
        """The tickets of the rows' users, or sessions: one call for each, and one for a row without one."""
        groups: dict[tuple[str | None, str | None], list[FollowedRow]] = defaultdict(list)
        for row in rows:
            is_by_user = row.user_id is not None and self._can.by_user
            if self._can.by_session and not is_by_user:
                groups[None, row.session_id].append(row)
            else:
                groups[row.user_id if is_by_user else None, None].append(row)
        told = await _together(self._by_group(*key, group) for key, group in groups.items())
        return {row: fact for some in told for row, fact in some.items()}

    async def _by_group(self, user_id: str | None, session_id: str | None, rows: Sequence[FollowedRow]) -> _Facts:
        tickets: Sequence[Ticket] = ()
        is_whole = False
        if user_id is not None or session_id is not None:
            answer = await self._asked(self._reader.search_tickets(user_id=user_id, session_id=session_id))
            if answer is None:
                return {}
            tickets = answer.found.records
            # Where tickets of others came, the tool did not do what it was asked.
            is_whole = answer.found.complete and all(_may_be_users(rows[0].user_id, ticket) for ticket in tickets)
        is_nameless = bool(tickets) and not any(ticket.session_ids for ticket in tickets)
        self._nameless = self._nameless or is_nameless
        if is_nameless and session_id is None and not self._can.get_ticket and self._can.by_session:
            told = [await self._by_group(None, row.session_id, [row]) for row in rows]
            return {row: fact for some in told for row, fact in some.items()}
        facts: _Facts = {}
        for row in rows:
            own = [_seen(ticket) for ticket in tickets if row.session_id in ticket.session_ids]
            if is_nameless:
                fitting = await self._own(row, map(_seen, tickets))
                if fitting is None:
                    continue
                own = fitting
            fact = _newest(own).fact if own else await self._alone(row, is_whole=is_whole)
            if fact is not None:
                facts[row] = fact
        return facts

    async def _own(self, row: FollowedRow, tickets: Iterable[_Seen]) -> list[_Seen] | None:
        """Which of these tickets that name no session are the row's: those that name it when they are seen whole.

        None where that cannot be told now.
        """
        fitting = [ticket for ticket in tickets if self._fits(row, ticket)]
        if not self._can.get_ticket:
            return fitting
        answers = await _together(self._asked(self._reader.ticket(ticket.ticket_id)) for ticket in fitting)
        if any(answer is None for answer in answers):
            return None
        whole = [answer.found for answer in answers if answer is not None and answer.found is not None]
        if any(ticket.session_ids for ticket in whole):
            whole = [ticket for ticket in whole if row.session_id in ticket.session_ids]
        return [_seen(ticket) for ticket in whole]

    async def _alone(self, row: FollowedRow, *, is_whole: bool) -> TicketFact | None:
        """A row whose session no ticket names: by its conversation, or without a ticket."""
        is_late = row.age >= self._ticket_within
        without = TicketFact(None, NO_TICKET, None) if is_late and is_whole else None
        if not self._can.get_transcript or (is_whole and not is_late):
            return without
        answer = await self._asked(self._reader.transcript(row.session_id))
        if answer is None:
            return None
        if answer.found is None:
            return TicketFact(None, NOT_FOUND, None) if is_late else None
        if answer.found.session_id not in {None, row.session_id}:
            return None  # another conversation than the one that was asked for
        named = sorted(ticket_ids_of(answer.found))
        return await self._named(named) if named else without

    def _fits(self, row: FollowedRow, ticket: _Seen) -> bool:
        """Whether the row's user, and the time of its delivery, speak for a ticket: made then, or open then."""
        if row.user_id is not None and row.user_id not in ticket.user_ids:
            return False
        if ticket.created_at is None or ticket.created_at < row.delivered_at - MARGIN:
            return not ticket.fact.is_resolved
        return ticket.created_at <= row.delivered_at + timedelta(seconds=self._ticket_within) + MARGIN

    async def _named(self, ticket_ids: Sequence[str]) -> TicketFact | None:
        """The newest of the tickets that a conversation names."""
        if not self._can.get_ticket:
            return TicketFact(ticket_ids[-1], UNKNOWN, None)
        answers = await _together(self._asked(self._reader.ticket(ticket_id)) for ticket_id in ticket_ids)
        seen = [_seen(answer.found) for answer in answers if answer is not None and answer.found is not None]
        return _newest(seen).fact if seen else None

    async def _asked(self, question: Awaitable[_T]) -> "_Answer[_T] | None":
        """The answer; None where there is none this time. Raises HaloReadError where the next ones would fail too."""
        try:
            answer = await question
        except HaloReadError as error:
            self._failures += 1
            if error.lasting or self._failures >= MAX_FAILURES:
                raise
            return None
        self._failures = 0
        return _Answer(answer)


def _seen(ticket: Ticket) -> _Seen:
    status = ticket.status if ticket.status and ticket.status not in WITHOUT else UNKNOWN
    at = ticket.changed_at or ticket.created_at
    fact = TicketFact(ticket.ticket_id, status[:MAX_TICKET_STATUS], at)
    return _Seen(ticket.ticket_id, fact, ticket.created_at, ticket.user_ids)


def _newest(tickets: Iterable[_Seen]) -> _Seen:
    """The one made last: a conversation that went on after its ticket was resolved gets another one."""
    return max(tickets, key=lambda ticket: ticket.created_at or _LONG_AGO)


def _may_be_users(user_id: str | None, ticket: Ticket) -> bool:
    return user_id is None or not ticket.user_ids or user_id in ticket.user_ids


def _is_settled(fact: TicketFact | None, until: Until | None) -> bool:
    if fact is None or until is None:
        return False
    return until == "created" or fact.is_resolved or fact.status in WITHOUT


def _groups(rows: Sequence[FollowedRow], *, key: Callable[[FollowedRow], Hashable]) -> Iterator[list[FollowedRow]]:
    """The rows in groups, those of one key together; a row without a key is by itself."""
    by_key: dict[Hashable, list[FollowedRow]] = defaultdict(list)
    for row in rows:
        by_key[key(row) or row].append(row)
    keyed = iter(by_key.values())
    while some := list(islice(keyed, ASKED_TOGETHER)):
        yield [row for same in some for row in same]


async def _together(questions: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The answers to all; an error ends the others too."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
