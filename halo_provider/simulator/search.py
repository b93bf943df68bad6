"""What can be found in a workspace: conversations and tickets as Halo would tell of them, and wrong ones on order."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from halo_provider.simulator.faults import WrongResult
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.rules import Json
from halo_provider.simulator.workspace import Chat, Company, Session, Ticket, TicketStatus, User, Workspace

YEAR = timedelta(days=365)
SHOWN_STATUS: dict[TicketStatus, str] = {
    "open": "Open",
    "in_progress": "In Progress",
    "snoozed": "Snoozed",
    "resolved": "Resolved",
    "spam": "Spam",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a call asks for; None asks for nothing in particular."""

    id: str | None = None
    user: str | None = None
    session: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    status: str | None = None
    limit: int | None = None
    offset: int = 0
    cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownMessage:
    """One message of a conversation."""

    by_user: bool
    text: str
    sent_at: datetime
    context: Json
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownConversation:
    """A conversation as far as it can be found by now."""

    session_id: str
    user_id: str | None
    messages: tuple[ShownMessage, ...]
    ticket_ids: tuple[str, ...]
    outcome: str

    @property
    def started_at(self) -> datetime:
        """When its first message came."""
        return self.messages[0].sent_at

    @property
    def latest_at(self) -> datetime:
        """When its last message came."""
        return self.messages[-1].sent_at


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTicket:
    """A ticket as far as it can be found by now; `session_ids` are those whose escalations are in it."""

    ticket_id: str
    number: int
    user_id: str | None
    subject: str
    status: str
    created_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    source: str
    reason: str
    metadata: Json
    session_ids: tuple[str, ...]
    thread: tuple[ShownMessage, ...]


class Library:
    """Searches a workspace. `now` gives the seconds of the simulator's clock.

    Searches give the newest first. `since` goes by a conversation's last message, or by its first one where
    `by_start`; for a ticket it goes by its last change, or by its creation.
    """

    def __init__(self, workspace: Workspace, *, reading: Reading, now: float, by_start: bool) -> None:
        self._workspace = workspace
        self._reading = reading
        self._now = now
        self._by_start = by_start

    def users(self, query: Query) -> list[User]:
        """Users by id or e-mail, exactly, or by a text in their id or traits; in the order of their making."""
        found = self._workspace.users.values()
        if query.id is not None:
            return [user for user in found if query.id in {user.user_id, user.traits.get("email")}]
        return [user for user in found if _has(query.text, [user.user_id, json.dumps(user.traits)])]

    def companies(self, query: Query) -> list[Company]:
        """Companies by id, or by a text in their id or traits."""
        found = self._workspace.companies.values()
        if query.id is not None:
            return [company for company in found if company.company_id == query.id]
        return [company for company in found if _has(query.text, [company.company_id, json.dumps(company.traits)])]

    def conversations(self, query: Query, *, wrong: WrongResult | None = None) -> list[ShownConversation]:
        """Conversations that meet every condition."""
        if wrong is WrongResult.EMPTY:
            return []
        sessions = self._sessions(query)
        if wrong is WrongResult.ANOTHER_USER:
            others = (each for each in self._workspace.sessions.values() if each.user_id != query.user)
            others = (each for each in others if each.session_id != (query.session or query.id))
            copies = [_of_another(each) for each in self._shown(sessions)]
            return sorted([*copies, *self._shown(others)], key=_latest, reverse=True)
        found = [_made_wrong(each, wrong) for each in self._shown(sessions)]
        if wrong is not WrongResult.OLD_CONVERSATION:
            found = [each for each in found if self._is_within(query, started=each.started_at, latest=each.latest_at)]
        if query.text is not None:
            found = [each for each in found if _has(query.text, _texts(each))]
        return sorted(found, key=_latest, reverse=True)

    def tickets(self, query: Query, *, wrong: WrongResult | None = None) -> list[ShownTicket]:
        """Tickets that meet every condition."""
        if wrong is WrongResult.EMPTY:
            return []
        tickets = self._tickets(query)
        if wrong is WrongResult.ANOTHER_USER:
            chosen = {ticket.ticket_id for ticket in tickets}
            tickets = [each for each in self._workspace.tickets if each.ticket_id not in chosen]
            return sorted(self._shown_tickets(tickets), key=_updated, reverse=True)
        found = [_made_wrong_ticket(each, wrong) for each in self._shown_tickets(tickets)]
        if wrong is not WrongResult.OLD_CONVERSATION:
            found = [each for each in found if self._is_within(query, started=each.created_at, latest=each.updated_at)]
        if query.status is not None:
            found = [each for each in found if each.status.casefold() == query.status.replace("_", " ").casefold()]
        if query.text is not None:
            found = [each for each in found if _has(query.text, [each.subject, *(part.text for part in each.thread)])]
        return sorted(found, key=_updated, reverse=True)

    def _is_within(self, query: Query, *, started: datetime, latest: datetime) -> bool:
        if query.since is not None and (started if self._by_start else latest) < query.since:
            return False
        return query.until is None or started <= query.until

    def _sessions(self, query: Query) -> Iterable[Session]:
        session_id = query.id or query.session
        if session_id is not None:
            session = self._workspace.sessions.get(session_id)
            found: Sequence[Session] = [] if session is None else [session]
            return [each for each in found if query.user in {None, each.user_id}]
        if query.user is not None:
            return self._workspace.sessions_of.get(query.user, [])
        return self._workspace.sessions.values()

    def _tickets(self, query: Query) -> list[Ticket]:
        if query.id is not None:
            ticket = self._workspace.ticket(query.id)
            return [] if ticket is None else [ticket]
        if query.session is not None:
            found = self._workspace.tickets_in.get(query.session, [])
            return [each for each in found if query.user in {None, each.user_id}]
        if query.user is not None:
            return self._workspace.tickets_of.get(query.user, [])
        return self._workspace.tickets

    def _can_be_found(self, chat: Chat) -> bool:
        return self._now - chat.accepted_at >= self._reading.lag_of(chat.message_id)

    def _shown(self, sessions: Iterable[Session]) -> Iterator[ShownConversation]:
        for session in sessions:
            chats = [chat for chat in session.chats if self._can_be_found(chat)]
            if not chats:
                continue
            tickets = self._workspace.tickets_in.get(session.session_id, [])
            known = {chat.message_id for chat in chats}
            yield ShownConversation(
                session_id=session.session_id,
                user_id=session.user_id,
                messages=tuple(message for chat in chats for message in self._messages(chat)),
                ticket_ids=tuple(
                    each.ticket_id for each in tickets if any(chat.message_id in known for chat in each.chats)
                ),
                outcome="Escalated" if tickets else "Resolved",
            )

    def _shown_tickets(self, tickets: Iterable[Ticket]) -> Iterator[ShownTicket]:
        for ticket in tickets:
            chats = [chat for chat in ticket.chats if self._can_be_found(chat)]
            is_late = self._now - ticket.accepted_at < self._reading.lag_of(ticket.ticket_id)
            if (ticket.chats and not chats) or (not ticket.chats and is_late):
                continue
            is_priority = ticket.status == "open" and ticket.priority == "priority"
            yield ShownTicket(
                ticket_id=ticket.ticket_id,
                number=ticket.number,
                user_id=ticket.user_id,
                subject=ticket.subject,
                status="Priority" if is_priority else SHOWN_STATUS[ticket.status],
                created_at=ticket.created_at,
                updated_at=ticket.updated_at,
                resolved_at=ticket.resolved_at,
                source=ticket.source,
                reason=ticket.reason,
                metadata=ticket.metadata,
                session_ids=tuple(dict.fromkeys(chat.session_id for chat in chats)),
                thread=tuple(message for chat in chats for message in self._messages(chat)),
            )

    def _messages(self, chat: Chat) -> Iterator[ShownMessage]:
        text = _SPACED[self._reading.white_space](chat.message)
        yield ShownMessage(by_user=True, text=text, sent_at=chat.received_at, context=chat.context)
        yield ShownMessage(by_user=False, text=chat.reply, sent_at=chat.received_at, context={})


_SPACED: dict[str, Callable[[str], str]] = {
    "kept": lambda text: text,
    "trimmed": str.strip,
    "collapsed": lambda text: " ".join(text.split()),
    "lines": lambda text: " \r\n".join(text.splitlines()) + "\r\n",
}


def _latest(conversation: ShownConversation) -> datetime:
    return conversation.latest_at


def _updated(ticket: ShownTicket) -> datetime:
    return ticket.updated_at


def _texts(conversation: ShownConversation) -> Iterator[str]:
    for message in conversation.messages:
        yield message.text
        yield json.dumps(message.context, ensure_ascii=False)


def _has(text: str | None, texts: Iterable[str]) -> bool:
    """Whether a text is in one of these, apart from case and white space."""
    if text is None:
        return True
    wanted = " ".join(text.casefold().split())
    return any(wanted in " ".join(each.casefold().split()) for each in texts)


def _of_another(conversation: ShownConversation) -> ShownConversation:
    """The same words, said by somebody else."""
    return dataclasses.replace(
        conversation, session_id=f"{conversation.session_id}_other", user_id=f"{conversation.user_id}-other"
    )


def _made_wrong(conversation: ShownConversation, wrong: WrongResult | None) -> ShownConversation:
    match wrong:
        case WrongResult.SIMILAR_MESSAGE:
            return dataclasses.replace(
                conversation,
                session_id=f"{conversation.session_id}_similar",
                messages=tuple(
                    dataclasses.replace(each, text=f"{each.text.rstrip()} again", context={}) if each.by_user else each
                    for each in conversation.messages
                ),
            )
        case WrongResult.TRUNCATED:
            return dataclasses.replace(conversation, messages=tuple(map(_truncated, conversation.messages)))
        case WrongResult.OLD_CONVERSATION:
            return dataclasses.replace(
                conversation,
                session_id=f"{conversation.session_id}_old",
                messages=tuple(
                    dataclasses.replace(each, sent_at=each.sent_at - YEAR, context={}) for each in conversation.messages
                ),
            )
        case _:
            return conversation


def _made_wrong_ticket(ticket: ShownTicket, wrong: WrongResult | None) -> ShownTicket:
    match wrong:
        case WrongResult.SIMILAR_MESSAGE:
            return dataclasses.replace(
                ticket, ticket_id=f"{ticket.ticket_id}_similar", subject=f"{ticket.subject} again", session_ids=()
            )
        case WrongResult.TRUNCATED:
            return dataclasses.replace(
                ticket,
                subject=f"{ticket.subject[: len(ticket.subject) // 2]}…",
                thread=tuple(map(_truncated, ticket.thread)),
            )
        case WrongResult.OLD_CONVERSATION:
            return dataclasses.replace(
                ticket,
                ticket_id=f"{ticket.ticket_id}_old",
                created_at=ticket.created_at - YEAR,
                updated_at=ticket.updated_at - YEAR,
                session_ids=tuple(f"{each}_old" for each in ticket.session_ids),
            )
        case _:
            return ticket


def _truncated(message: ShownMessage) -> ShownMessage:
    return dataclasses.replace(message, text=f"{message.text[: len(message.text) // 2]}…", cut=True)
