"""What the results of tools look like, in each variant: names of fields, times, statuses, and what is left out."""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from halo_provider.simulator.rules import Json
from halo_provider.simulator.search import ShownConversation, ShownMessage, ShownTicket
from halo_provider.simulator.workspace import Company, User

PREVIEW = 80  # characters
Item = User | Company | ShownConversation | ShownTicket


class Shape(ABC):
    """How one variant shows records, searches and results."""

    def show(self, item: Item, *, whole: bool) -> Json:
        """Return a record; `whole` is what a tool that gets one thing gives, otherwise it is one of a search."""
        match item:
            case User():
                return self.user(item)
            case Company():
                return self.company(item)
            case ShownConversation():
                return self.conversation(item, whole=whole)
            case ShownTicket():
                return self.ticket(item, whole=whole)

    @abstractmethod
    def user(self, user: User) -> Json:
        """Return a contact."""

    @abstractmethod
    def company(self, company: Company) -> Json:
        """Return a company."""

    @abstractmethod
    def conversation(self, conversation: ShownConversation, *, whole: bool) -> Json:
        """Return a conversation."""

    @abstractmethod
    def ticket(self, ticket: ShownTicket, *, whole: bool) -> Json:
        """Return a ticket."""

    @abstractmethod
    def search(self, things: str, records: Sequence[Json], *, total: int, cursor: str | None) -> Any:
        """Return what a search answers; `cursor` leads to what is left, of `total` records."""

    @abstractmethod
    def one(self, thing: str, record: Json | None) -> Any:
        """Return what a tool that gets one thing answers."""

    @abstractmethod
    def result(self, payload: Any) -> Json:
        """Return it as the result of tools/call."""


class StructuredShape(Shape):
    """Structured content, repeated as text; searches have everything, the context too."""

    def user(self, user: User) -> Json:
        """Return a contact with Halo's own id and ours."""
        return {
            **_person(user.user_id),
            "traits": user.traits,
            "first_seen": user.first_seen.isoformat(),
            "last_seen": None if user.last_seen is None else user.last_seen.isoformat(),
        }

    def company(self, company: Company) -> Json:
        """Return a company."""
        return {
            "company_id": company.company_id,
            "traits": company.traits,
            "team_size": len(company.user_ids),
        }

    def conversation(self, conversation: ShownConversation, *, whole: bool) -> Json:  # noqa: ARG002 - always whole
        """Return a conversation with its messages."""
        return {
            "session_id": conversation.session_id,
            "user": None if conversation.user_id is None else _person(conversation.user_id),
            "started_at": conversation.started_at.isoformat(),
            "last_message_at": conversation.latest_at.isoformat(),
            "outcome": conversation.outcome,
            "ticket_ids": list(conversation.ticket_ids),
            "messages": [
                {
                    "role": "user" if message.by_user else "assistant",
                    "content": message.text,
                    "created_at": message.sent_at.isoformat(),
                    **({"context": message.context} if message.context else {}),
                    **({"truncated": True} if message.cut else {}),
                }
                for message in conversation.messages
            ],
        }

    def ticket(self, ticket: ShownTicket, *, whole: bool) -> Json:
        """Return a ticket with its sessions."""
        shown: Json = {
            "ticket_id": ticket.ticket_id,
            "subject": ticket.subject,
            "status": ticket.status,
            "user": None if ticket.user_id is None else _person(ticket.user_id),
            "created_at": ticket.created_at.isoformat(),
            "updated_at": ticket.updated_at.isoformat(),
            "resolved_at": None if ticket.resolved_at is None else ticket.resolved_at.isoformat(),
            "session_ids": list(ticket.session_ids),
            "metadata": {
                "channel": ticket.source,
                "escalation_reason": ticket.reason,
                "custom_fields": ticket.metadata,
            },
        }
        if whole:
            shown["thread"] = [
                {"role": "user" if each.by_user else "assistant", "content": each.text} for each in ticket.thread
            ]
        return shown

    def search(self, things: str, records: Sequence[Json], *, total: int, cursor: str | None) -> Any:
        """Return the records under their name."""
        return {things: list(records), "total": total, "has_more": cursor is not None}

    def one(self, thing: str, record: Json | None) -> Any:
        """Return the record under its name."""
        return {"found": False} if record is None else {thing: record}

    def result(self, payload: Any) -> Json:
        """Return it twice."""
        return {"content": [_text(json.dumps(payload, ensure_ascii=False))], "structuredContent": payload}


class TextShape(Shape):
    """JSON in a text, in camel case, times in milliseconds; nothing of the context."""

    def user(self, user: User) -> Json:
        """Return a contact."""
        return {"customerId": user.user_id, "firstSeen": _milliseconds(user.first_seen), **_named(user.traits)}

    def company(self, company: Company) -> Json:
        """Return a company."""
        return {"companyId": company.company_id, "members": sorted(company.user_ids), **_named(company.traits)}

    def conversation(self, conversation: ShownConversation, *, whole: bool) -> Json:  # noqa: ARG002 - always whole
        """Return a conversation whose messages are in parts."""
        return {
            "conversationId": conversation.session_id,
            "customer": {"customerId": conversation.user_id},
            "startedAt": _milliseconds(conversation.started_at),
            "outcome": conversation.outcome.upper(),
            "turns": [
                {
                    "speaker": "customer" if message.by_user else "agent",
                    "body": [{"type": "text", "text": message.text}],
                    "at": _milliseconds(message.sent_at),
                    **({"isTruncated": True} if message.cut else {}),
                }
                for message in conversation.messages
            ],
        }

    def ticket(self, ticket: ShownTicket, *, whole: bool) -> Json:  # noqa: ARG002 - always whole
        """Return a ticket that refers to its conversations."""
        return {
            "ticketId": ticket.ticket_id,
            "title": ticket.subject,
            "status": ticket.status.upper().replace(" ", "_"),
            "customer": {"customerId": ticket.user_id},
            "createdAt": _milliseconds(ticket.created_at),
            "updatedAt": _milliseconds(ticket.updated_at),
            "conversations": [{"conversationId": each} for each in ticket.session_ids],
        }

    def search(self, things: str, records: Sequence[Json], *, total: int, cursor: str | None) -> Any:  # noqa: ARG002
        """Return a list, which says only whether it is all."""
        return {"results": list(records), "truncated": cursor is not None}

    def one(self, thing: str, record: Json | None) -> Any:  # noqa: ARG002 - it has no name here
        """Return the record itself, or null."""
        return record

    def result(self, payload: Any) -> Json:
        """Return it as text."""
        return {"content": [_text(json.dumps(payload, ensure_ascii=False))]}


class PagedShape(Shape):
    """Pages with a cursor; searches have previews only, and everything else comes with the single record."""

    def user(self, user: User) -> Json:
        """Return a contact."""
        return {"contact_id": user.user_id, "attributes": user.traits}

    def company(self, company: Company) -> Json:
        """Return a company."""
        return {"id": company.company_id, "attributes": company.traits}

    def conversation(self, conversation: ShownConversation, *, whole: bool) -> Json:
        """Return a preview, or the whole with the context that its messages had."""
        shown: Json = {
            "id": conversation.session_id,
            "contact_id": conversation.user_id,
            "created_at": conversation.started_at.isoformat(),
        }
        if not whole:
            return {**shown, "preview": conversation.messages[0].text[:PREVIEW]}
        contexts = [message.context for message in conversation.messages if message.context]
        return {
            **shown,
            "context": contexts,
            "transcript": [_role(message) for message in conversation.messages],
        }

    def ticket(self, ticket: ShownTicket, *, whole: bool) -> Json:
        """Return a ticket; its conversations come with the whole of it only."""
        shown: Json = {
            "id": ticket.ticket_id,
            "contact_id": ticket.user_id,
            "subject": ticket.subject,
            "status": {"name": ticket.status},
            "created_at": ticket.created_at.isoformat(),
            "updated_at": ticket.updated_at.isoformat(),
        }
        if not whole:
            return shown
        return {
            **shown,
            "conversation_ids": list(ticket.session_ids),
            "thread": [_role(message) for message in ticket.thread],
        }

    def search(self, things: str, records: Sequence[Json], *, total: int, cursor: str | None) -> Any:  # noqa: ARG002
        """Return one page."""
        return {"data": list(records), "page_info": {"end_cursor": cursor, "has_next_page": cursor is not None}}

    def one(self, thing: str, record: Json | None) -> Any:  # noqa: ARG002 - it has no name here
        """Return the record as data."""
        return {"data": record}

    def result(self, payload: Any) -> Json:
        """Return it with a sentence for people."""
        return {"content": [_text("See the structured content.")], "structuredContent": payload}


class ProseShape(PagedShape):
    """Markdown for people, in which no program finds its way."""

    def result(self, payload: Any) -> Json:
        """Return it as Markdown."""
        return {"content": [_text("\n".join(["# What was found", *_markdown(payload, level=0)]))]}


def _person(user_id: str) -> Json:
    return {"id": f"usr_{zlib.crc32(user_id.encode()):08x}", "external_id": user_id}


def _named(traits: Json) -> Json:
    return {"fields": [{"name": name, "value": value} for name, value in traits.items()]}


def _role(message: ShownMessage) -> Json:
    return {
        "role": "user" if message.by_user else "assistant",
        "content": message.text,
        "sent_at": message.sent_at.isoformat(),
        **({"truncated": True} if message.cut else {}),
    }


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


def _markdown(value: Any, *, level: int) -> list[str]:
    indent = "  " * level
    match value:
        case dict():
            lines = []
            for name, inner in value.items():
                nested = isinstance(inner, dict | list)
                lines += [f"{indent}- **{name}**" + ("" if nested else f": {inner}")]
                lines += _markdown(inner, level=level + 1) if nested else []
            return lines
        case list():
            return [line for inner in value for line in [f"{indent}-", *_markdown(inner, level=level + 1)]]
        case _:
            return [f"{indent}- {value}"]
