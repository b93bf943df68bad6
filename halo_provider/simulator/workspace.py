"""What a Halo workspace holds, and what each accepted request does to it."""

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from halo_provider.simulator.rules import Json, Refused

ANONYMOUS = "anonymous"
DEFAULT_AGENT = "agent_default"
TicketStatus = Literal["open", "in_progress", "snoozed", "resolved", "spam"]
ENDED: frozenset[TicketStatus] = frozenset({"resolved", "spam"})
# Documented by Halo as asking for a human, which makes a ticket at once.
ASKS_FOR_A_HUMAN = re.compile(r"please create a support ticket|i need human help|please escalate this", re.IGNORECASE)
# Halo's agent decides by itself whether a message needs a ticket; this is the simulator's simple judgement.
TELLS_OF_A_PROBLEM = re.compile(r"\b(problem|error|issue|broken|fail(s|ed|ing)?|can(no|')t)\b", re.IGNORECASE)


@dataclass(slots=True, kw_only=True)
class User:
    """A contact."""

    user_id: str
    traits: Json
    context: Json
    first_seen: datetime
    last_seen: datetime | None = None
    """None until the first users/identify."""
    automation_enrolments: int = 0
    """How often a users/identify may have enrolled this user."""


@dataclass(slots=True, kw_only=True)
class Company:
    """A company and the users linked to it."""

    company_id: str
    traits: Json
    context: Json
    user_ids: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Chat:
    """One accepted message and the agent's reply. `user_id` is None for the anonymous user.

    `started` and `ended` are ``time.monotonic()`` seconds at acceptance and when the answer left (or the
    connection did); `ended` is None in between. `accepted_at` is in seconds of the simulator's clock.
    """

    message_id: str
    session_id: str
    agent_id: str
    user_id: str | None
    company_id: str | None
    message: str
    context: Json
    custom_fields: Json
    reply: str
    received_at: datetime
    accepted_at: float
    started: float
    ended: float | None = None


@dataclass(slots=True, kw_only=True)
class Ticket:
    """A ticket; `chats` are the escalations in it, the first of which made it (none for tickets/create).

    Once it is resolved or spam, its user's next escalation makes a new ticket. `accepted_at` is in seconds of the
    simulator's clock.
    """

    number: int
    ticket_id: str
    user_id: str | None
    company_id: str | None
    subject: str
    message: str
    source: str
    reason: Literal["asked for a human", "triage", "tickets/create"]
    created_at: datetime
    accepted_at: float
    updated_at: datetime
    resolved_at: datetime | None = None
    priority: str = "normal"
    metadata: Json = field(default_factory=dict)
    status: TicketStatus = "open"
    chats: list[Chat] = field(default_factory=list)

    @property
    def merged(self) -> int:
        """How many later escalations were merged into this ticket."""
        return max(len(self.chats) - 1, 0)


@dataclass(slots=True, kw_only=True)
class Session:
    """A conversation. `user_id` is None while nobody is known to have had it."""

    session_id: str
    user_id: str | None
    chats: list[Chat] = field(default_factory=list)
    ticket: Ticket | None = None
    """The ticket its latest escalation went to."""


class Workspace:
    """Users, companies, sessions and tickets.

    Without `keep_content` chats and tickets keep their ids but no message, context or custom fields. `clock` gives the
    seconds of the simulator's clock.
    """

    def __init__(self, *, keep_content: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.keep_content = keep_content
        self._clock = clock
        self.users: dict[str, User] = {}
        self.companies: dict[str, Company] = {}
        self.sessions: dict[str, Session] = {}
        self.chats: list[Chat] = []
        self.tickets: list[Ticket] = []
        self.events: list[Json] = []
        self.sessions_of: dict[str, list[Session]] = {}
        self.tickets_of: dict[str, list[Ticket]] = {}
        self.tickets_in: dict[str, list[Ticket]] = {}
        self.merged_escalations = 0
        self._latest_escalation: dict[str, Ticket] = {}

    def identify_user(self, body: Json) -> Json:
        """users/identify: upsert, seen now, possibly enrolled in automations, an orphaned session linked."""
        user_id = body["user_id"]
        now = datetime.now(UTC)
        user = self._upsert_user(body, first_seen=now)
        user.last_seen = now
        user.automation_enrolments += 1
        session = self.sessions.get(body.get("session_id", ""))
        if session is not None and session.user_id is None:
            self._link(session, user_id)
        return {"success": True, "user_id": user_id}

    def update_users(self, body: Json) -> Json:
        """users/update: upsert without touching first_seen or last_seen of users that exist."""
        created = updated = skipped = 0
        for entry in body.get("users", [body]):
            if entry["user_id"] in self.users:
                updated += 1
            elif body.get("update_only", False):
                skipped += 1
                continue
            else:
                created += 1
            self._upsert_user(entry, first_seen=_signed_up_at(entry) or datetime.now(UTC))
        return {"success": True, "created": created, "updated": updated, "skipped": skipped}

    def identify_company(self, body: Json) -> Json:
        """companies/identify: upsert and link the user."""
        company_id = body["company_id"]
        company = self.companies.setdefault(company_id, Company(company_id=company_id, traits={}, context={}))
        company.traits |= body.get("traits", {})
        company.context |= body.get("context", {})
        if "user_id" in body:
            company.user_ids.add(body["user_id"])
        return {"success": True, "company_id": company_id}

    def chat(self, body: Json) -> Json:
        """Chat: reply, and escalate when asked for a human or when the agent finds it needs one."""
        user_id = None if body.get("user_id") == ANONYMOUS else body.get("user_id")
        session = self._session(body.get("session_id"), user_id=user_id)
        message = body["message"]
        context = body.get("context", {})
        reason: Literal["asked for a human", "triage"] | None = None
        if ASKS_FOR_A_HUMAN.search(message):
            reason = "asked for a human"
        elif context or TELLS_OF_A_PROBLEM.search(message):
            reason = "triage"
        if reason is None:
            reply = "Thank you, noted."
        elif self._open_ticket(session) is None:
            reply = "Thank you. I have created a ticket, and a colleague will get back to you."
        else:
            reply = "Thank you. I have added this to your open ticket."
        chat = Chat(
            message_id=f"msg_{uuid.uuid4().hex}",
            session_id=session.session_id,
            agent_id=body.get("agent_id", DEFAULT_AGENT),
            user_id=user_id,
            company_id=body.get("company_id"),
            message=message if self.keep_content else "",
            context=context if self.keep_content else {},
            custom_fields=body.get("custom_fields", {}) if self.keep_content else {},
            reply=reply,
            received_at=datetime.now(UTC),
            accepted_at=self._clock(),
            started=time.monotonic(),
        )
        self.chats.append(chat)
        session.chats.append(chat)
        if reason is not None:
            self._escalate(chat, session=session, reason=reason)
        return {
            "text": reply,
            "session_id": chat.session_id,
            "agent_id": chat.agent_id,
            "message_id": chat.message_id,
        }

    def create_ticket(self, body: Json) -> Json:
        """tickets/create: a ticket without the AI, for the user found by user_id, then by email, else created."""
        user = self._resolve(body)
        ticket = self._new_ticket(
            user_id=user.user_id,
            company_id=None,
            subject=body["subject"],
            message=body.get("message", ""),
            reason="tickets/create",
            source=body.get("source", "api"),
        )
        ticket.priority = "priority" if body.get("priority") == "priority" else "normal"
        if self.keep_content:
            ticket.metadata = body.get("metadata", {})
        return {"success": True, "ticket_id": ticket.ticket_id, "user_id": user.user_id}

    def ticket(self, ticket_id: str) -> Ticket | None:
        """Return the ticket with this id or number."""
        number = ticket_id.removeprefix("ticket_")
        known = number.isascii() and number.isdecimal() and 0 < int(number) <= len(self.tickets)
        return self.tickets[int(number) - 1] if known else None

    def set_status(self, ticket: Ticket, status: TicketStatus) -> None:
        """What a person does in the dashboard."""
        ticket.status = status
        ticket.updated_at = datetime.now(UTC)
        ticket.resolved_at = ticket.updated_at if status == "resolved" else None

    def record_events(self, body: Json) -> Json:
        """Events: kept as they came."""
        if self.keep_content:
            self.events.extend(body["events"])
        return {"success": True}

    def _upsert_user(self, body: Json, *, first_seen: datetime) -> User:
        user_id = body["user_id"]
        user = self.users.setdefault(user_id, User(user_id=user_id, traits={}, context={}, first_seen=first_seen))
        user.traits |= body.get("traits", {})
        user.context |= body.get("context", {})
        return user

    def _resolve(self, body: Json) -> User:
        user = self.users.get(body.get("user_id", ""))
        if user is not None:
            return user
        email = body.get("email")
        for user in self.users.values():
            if email is not None and user.traits.get("email") == email:
                return user
        traits = {name: body[name] for name in ("email", "name") if name in body}
        user_id = body.get("user_id", f"user_{uuid.uuid4().hex}")
        return self._upsert_user({"user_id": user_id, "traits": traits}, first_seen=datetime.now(UTC))

    def begin_session(self, body: Json) -> None:
        """Take the session_id of a chat for a new session's, unless there is none or it is known."""
        session_id = body.get("session_id")
        if session_id is not None and session_id not in self.sessions:
            self._begin(session_id, user_id=None if body.get("user_id") == ANONYMOUS else body.get("user_id"))

    def without_unknown_session(self, body: Json) -> Json:
        """Return a chat's body without its session_id, unless that is known."""
        if body.get("session_id") in self.sessions:
            return body
        return {name: value for name, value in body.items() if name != "session_id"}

    def _begin(self, session_id: str, *, user_id: str | None) -> Session:
        session = Session(session_id=session_id, user_id=user_id)
        self.sessions[session_id] = session
        if user_id is not None:
            self.sessions_of.setdefault(user_id, []).append(session)
        return session

    def _session(self, session_id: str | None, *, user_id: str | None) -> Session:
        if session_id is None:
            return self._begin(f"sess_{uuid.uuid4().hex}", user_id=user_id)
        known = self.sessions.get(session_id)
        # Whether Halo accepts a session_id of the client's own making is not documented: the strict answer, unless the
        # simulator was told otherwise, and has begun the session.
        if known is None:
            raise Refused(400, "session_id is unknown; omit it to begin a session")
        if user_id is not None and known.user_id is None:
            self._link(known, user_id)
        elif known.user_id != user_id:
            raise Refused(400, "session_id belongs to another user_id")
        return known

    def _link(self, session: Session, user_id: str) -> None:
        """Give an orphaned session, and the ticket made in it, to a user."""
        session.user_id = user_id
        self.sessions_of.setdefault(user_id, []).append(session)
        if session.ticket is not None:
            session.ticket.user_id = user_id
            self.tickets_of.setdefault(user_id, []).append(session.ticket)
            self._latest_escalation.setdefault(user_id, session.ticket)

    def _open_ticket(self, session: Session) -> Ticket | None:
        """Return the ticket that an escalation of this session's user merges into.

        Halo documents this for users; an anonymous session is taken for a user of its own.
        """
        user_id = session.user_id
        ticket = session.ticket if user_id is None else self._latest_escalation.get(user_id)
        return ticket if ticket is not None and ticket.status not in ENDED else None

    def _escalate(self, chat: Chat, *, session: Session, reason: Literal["asked for a human", "triage"]) -> None:
        ticket = self._open_ticket(session)
        if ticket is None:
            ticket = self._new_ticket(
                user_id=chat.user_id,
                company_id=chat.company_id,
                subject=chat.message.strip().partition("\n")[0],
                message=chat.message,
                reason=reason,
                source="chat",
            )
        else:
            self.merged_escalations += 1
            ticket.updated_at = chat.received_at
        ticket.chats.append(chat)
        if ticket is not session.ticket:
            self.tickets_in.setdefault(session.session_id, []).append(ticket)
        session.ticket = ticket
        if chat.user_id is not None:
            self._latest_escalation[chat.user_id] = ticket

    def _new_ticket(
        self,
        *,
        user_id: str | None,
        company_id: str | None,
        subject: str,
        message: str,
        reason: Literal["asked for a human", "triage", "tickets/create"],
        source: str,
    ) -> Ticket:
        number = len(self.tickets) + 1
        now = datetime.now(UTC)
        ticket = Ticket(
            number=number,
            ticket_id=f"ticket_{number}",
            user_id=user_id,
            company_id=company_id,
            subject=subject if self.keep_content else "",
            message=message if self.keep_content else "",
            source=source,
            reason=reason,
            created_at=now,
            accepted_at=self._clock(),
            updated_at=now,
        )
        self.tickets.append(ticket)
        if user_id is not None:
            self.tickets_of.setdefault(user_id, []).append(ticket)
        return ticket


def _signed_up_at(user: dict[str, Any]) -> datetime | None:
    signed_up_at = user.get("traits", {}).get("signed_up_at")
    if signed_up_at is None:
        return None
    moment = datetime.fromisoformat(signed_up_at)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
