"""What a tool's result says, whatever its shape: conversations with their messages, and tickets.

Halo does not document the results of its tools. So a field is recognised by any sensible name, and what cannot be read
stays unknown: nothing here guesses. A record keeps the whole of what came, for people and for later decisions.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

MAX_DEPTH = 8  # levels of a result that are searched
_MILLISECONDS = 100_000_000_000  # a number of seconds as large would be in the year 5138

_LISTS = (
    *("transcripts", "conversations", "sessions", "chats", "tickets", "results", "items", "records", "data", "rows"),
    *("hits", "matches", "entries", "list", "nodes", "edges"),
)
_WRAPPERS = ("node", "transcript", "conversation", "session", "chat", "ticket", "result", "item", "record", "data")
_SESSION = ("session_id", "conversation_id", "chat_session_id", "chat_id", "thread_id", "transcript_id")
_TICKET = ("ticket_id", "id", "number", "ticket_number", "key")
_USER = (
    "user_id",
    "external_user_id",
    "external_id",
    "end_user_id",
    "customer_id",
    "contact_id",
    "user_external_id",
    "visitor_id",
    "uid",
)
_PEOPLE = ("user", "customer", "contact", "end_user", "visitor", "requester", "participant")
_STARTED = (
    "started_at",
    "created_at",
    "start_time",
    "started",
    "created",
    "first_message_at",
    "opened_at",
    "start",
    "begin",
    "date",
    "timestamp",
    "time",
)
_CHANGED = (
    "updated_at",
    "status_changed_at",
    "resolved_at",
    "closed_at",
    "last_message_at",
    "last_activity_at",
    "updated",
)
_SENT = ("sent_at", "created_at", "timestamp", "time", "at", "ts", "date", "created", "sent")
_MESSAGES = (
    "messages",
    "transcript",
    "turns",
    "history",
    "entries",
    "events",
    "thread",
    "conversation",
    "content",
    "log",
)
_TEXT = ("text", "message", "content", "body", "value", "utterance")
_ROLE = ("role", "sender", "author", "from", "speaker", "type", "direction", "sender_type", "author_type", "by")
_STATUS = ("status", "state", "ticket_status")
_SUBJECT = ("subject", "title", "summary")
_CURSOR = ("next_cursor", "cursor", "next_page_token", "next_token", "next", "end_cursor")
_MORE = ("has_more", "more", "has_next", "has_next_page", "truncated", "is_truncated", "incomplete")
_CUT = ("truncated", "is_truncated", "cut", "abbreviated", "partial")
_THEIRS = frozenset(
    {"assistant", "agent", "bot", "ai", "system", "halo", "operator", "outbound", "tool", "support", "staff"}
)
_OURS = frozenset({"user", "customer", "visitor", "human", "contact", "end", "client", "inbound", "requester"})
_SPEAKER = re.compile(r"^[ \t>*_\[]*(?:\d[\d:.\-TZ+ ]*\]?\s*)?([A-Za-z][\w ]{0,30}?)[\]*_]*\s*:[ \t*_]*", re.MULTILINE)
_NOT_FOUND = re.compile(r"(?i)\b(?:not[ _]?found|no such|does not exist|unknown|404)\b")
MAX_SHOWN = 200  # characters of the server's own words
_ELLIPSES = ("…", "...", "[truncated]", "(truncated)")


class Message(NamedTuple):
    """One message of a conversation. `of_user` is None where the result does not say who wrote it."""

    text: str
    of_user: bool | None = None
    sent_at: datetime | None = None
    cut: bool = False  # only its beginning is here


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation as a tool tells of it. `messages` is None where they did not come with it.

    `user_ids` are all ids that the result gives for its user: Halo's own ones may stand beside ours. `loose_text` is a
    transcript that came as one text: `messages` are what its lines seem to say. `texts` are all texts of the result.
    """

    session_id: str | None
    user_ids: frozenset[str] = frozenset()
    started_at: datetime | None = None
    messages: tuple[Message, ...] | None = None
    loose_text: str | None = None
    cut: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def texts(self) -> Iterator[str]:
        """Every text anywhere in the result."""
        return _texts(self.raw, level=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A ticket as a tool tells of it. `status` is Halo's word in lower case with underscores, such as ``in_progress``.

    `session_ids` are all sessions that the result names: Halo merges a user's tickets.
    """

    ticket_id: str
    status: str | None = None
    subject: str | None = None
    user_ids: frozenset[str] = frozenset()
    session_ids: frozenset[str] = frozenset()
    created_at: datetime | None = None
    changed_at: datetime | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Listing(NamedTuple):
    """The records of a result. `more`: there are others; `cursor` leads to them, where the result says how."""

    records: tuple[Mapping[str, Any], ...]
    more: bool | None
    cursor: str | None


class UnreadableResultError(ValueError):
    """A result in which no records can be found."""


def normalized(text: str) -> str:
    """The text as it is compared: Unicode's composed form, and every run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def payload_of(result: Any) -> Any:
    """The JSON in the result of tools/call: its structured content, else its texts. Raises UnreadableResultError."""
    if not isinstance(result, Mapping):
        raise UnreadableResultError("the result is not an object")
    structured = result.get("structuredContent")
    if isinstance(structured, Mapping | list) and structured:
        return structured
    parts = result.get("content")
    texts = [
        part["text"]
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, Mapping) and isinstance(part.get("text"), str)
    ]
    found = [_json_of(text) for text in texts]
    if not found:
        if isinstance(structured, Mapping | list):
            return structured
        raise UnreadableResultError("the result has neither structured content nor text")
    return found[0] if len(found) == 1 else found


def _json_of(text: str) -> Any:
    """The JSON that a text is, or that stands in its code fence."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    for candidate in (text, fenced[1] if fenced else ""):
        try:
            return from_json(candidate)
        except ValueError:
            continue
    raise UnreadableResultError("the result's text is not JSON")


def listing_of(payload: Any) -> Listing:
    """The records in a result of a search. Raises UnreadableResultError where none can be told."""
    if isinstance(payload, list):
        if len(payload) == 1 and isinstance(payload[0], Mapping) and _list_in(payload[0]) is not None:
            return listing_of(payload[0])
        return Listing(_records(payload), None, None)
    if not isinstance(payload, Mapping):
        raise UnreadableResultError("the result is no list")
    _raise_error_in(payload)
    found = _list_in(payload)
    if found is None:
        if any(name in payload and not payload[name] for name in ("total", "count", "total_count", *_LISTS)):
            return Listing((), False, None)
        raise UnreadableResultError(
            f"there is no list in the result, which has {', '.join(sorted(map(str, payload))[:10])}"
        )
    more, cursor = _paging(payload, level=0)
    total = _field(payload, ("total", "total_count"))
    if more is None and isinstance(total, int) and not isinstance(total, bool) and total > len(found):
        more = True
    return Listing(_records(found), more, cursor)


def record_of(payload: Any) -> Mapping[str, Any] | None:
    """The one record in the result of a tool that gets one thing; None where the result says that there is none."""
    if isinstance(payload, list):
        payload = payload[0] if len(payload) == 1 else {"messages": payload} if payload else None
    if payload is None:
        return None
    if not isinstance(payload, Mapping):
        raise UnreadableResultError("the result is no object")
    said = {name for name, value in payload.items() if value is not None or name not in _WRAPPERS}
    if payload.get("found") is False or said <= {"message", "success", "found"}:
        return None
    if (words := _field(payload, ("error", "errors"))) and _NOT_FOUND.search(str(words)):
        return None
    _raise_error_in(payload)
    inner = [payload[name] for name in _WRAPPERS if isinstance(payload.get(name), Mapping)]
    if len(inner) == 1 and _first(payload, _SESSION) is None:
        return {**{name: value for name, value in payload.items() if value is not inner[0]}, **inner[0]}
    return payload


def _raise_error_in(payload: Mapping[str, Any]) -> None:
    """Raise UnreadableResultError for an error in a result, beside which an empty list means nothing."""
    if words := _field(payload, ("error", "errors")):
        raise UnreadableResultError(f"the result tells of an error: {str(words)[:MAX_SHOWN]}")
    if payload.get("success") is False:
        raise UnreadableResultError("the result tells of a failure")


def conversation_of(record: Mapping[str, Any]) -> Conversation:
    """A record as a conversation."""
    session_id = _identifier(record, _SESSION)
    if session_id is None:
        nested = [record[name] for name in ("session", "conversation", "chat") if isinstance(record.get(name), Mapping)]
        session_id = next((each for item in nested if (each := _identifier(item, (*_SESSION, "id")))), None)
    if session_id is None:
        session_id = _identifier(record, ("id", "session", "conversation"))
    messages, loose_text = _messages(record)
    return Conversation(
        session_id=session_id,
        user_ids=frozenset(_user_ids(record)),
        started_at=_time(record, _STARTED),
        messages=messages,
        loose_text=loose_text,
        cut=any(_field(record, (name,)) is True for name in _MORE),
        raw=record,
    )


def ticket_of(record: Mapping[str, Any]) -> Ticket | None:
    """A record as a ticket; None where it has no id."""
    ticket_id = _identifier(record, _TICKET)
    if ticket_id is None:
        return None
    status = _first(record, _STATUS)
    if isinstance(status, Mapping):
        status = _first(status, ("name", "value", "label", "id"))
    subject = _first(record, _SUBJECT)
    return Ticket(
        ticket_id=ticket_id,
        status="_".join(_words(status)) or None if isinstance(status, str) else None,
        subject=subject if isinstance(subject, str) else None,
        user_ids=frozenset(_user_ids(record)),
        session_ids=frozenset(_session_ids(record, level=0)),
        created_at=_time(record, _STARTED),
        changed_at=_time(record, _CHANGED),
        raw=record,
    )


def ticket_ids_of(conversation: Conversation) -> frozenset[str]:
    """Every ticket that a conversation's own fields name; what its messages say does not count."""
    return frozenset(_ticket_ids(conversation.raw, level=0))


def _name(name: Any) -> str:
    """A field's name in the spelling that is compared."""
    return "_".join(_words(str(name)))


def _words(text: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)]


def _field(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of these names, in any spelling."""
    by_name = {_name(name): value for name, value in record.items()}
    return next((by_name[name] for name in names if name in by_name), None)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of these that is there and not empty."""
    by_name = {_name(name): value for name, value in record.items()}
    return next((by_name[name] for name in names if by_name.get(name) not in (None, "", [], {})), None)


def _identifier(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    by_name = {_name(name): value for name, value in record.items()}
    for name in names:
        value = by_name.get(name)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None


def _list_in(payload: Mapping[str, Any]) -> list[Any] | None:
    """The list of records: nearest to the top, by the names that lists usually have."""
    level: list[Mapping[str, Any]] = [payload]
    for _ in range(MAX_DEPTH):
        for each in level:
            by_name = {_name(name): value for name, value in each.items()}
            lists = {name: value for name, value in by_name.items() if isinstance(value, list)}
            named = next((lists[name] for name in _LISTS if name in lists), None)
            if named is not None:
                return named
            if len(lists) == 1:
                (only,) = lists.values()
                if all(isinstance(item, Mapping) for item in only):
                    return only
        level = [value for each in level for value in each.values() if isinstance(value, Mapping)]
        if not level:
            return None
    return None


def _records(items: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    found = []
    for item in items:
        if not isinstance(item, Mapping):
            raise UnreadableResultError("the result's list holds other things than objects")
        wrapped = [item[name] for name in _WRAPPERS if isinstance(item.get(name), Mapping)]
        found.append(
            {**{name: value for name, value in item.items() if value is not wrapped[0]}, **wrapped[0]}
            if len(wrapped) == 1 and _identifier(item, (*_SESSION, *_TICKET)) is None
            else item
        )
    return tuple(found)


def _paging(payload: Mapping[str, Any], *, level: int) -> tuple[bool | None, str | None]:
    more: bool | None = None
    cursor: str | None = None
    for name, value in payload.items():
        if _name(name) in _MORE and isinstance(value, bool):
            more = value if more is None else more or value
        elif _name(name) in _CURSOR and isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            cursor = str(value)
        elif isinstance(value, Mapping) and level < 2:  # noqa: PLR2004 -- in "meta" or "page_info" at most
            inner_more, inner_cursor = _paging(value, level=level + 1)
            more = inner_more if more is None else more
            cursor = cursor or inner_cursor
    return (True if more is None and cursor else more), cursor


def _user_ids(record: Mapping[str, Any]) -> Iterator[str]:
    """Every id the record gives for its user."""
    for name, value in record.items():
        known = _name(name)
        is_plain = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
        if known in _USER and is_plain:
            yield str(value)
        elif known in _PEOPLE and isinstance(value, Mapping):
            for inner_name, inner in value.items():
                if _name(inner_name) in {*_USER, "id"} and isinstance(inner, str | int) and not isinstance(inner, bool):
                    yield str(inner)
        elif known in _PEOPLE and is_plain:
            yield str(value)


def _session_ids(value: Any, *, level: int) -> Iterator[str]:
    """Every id of a session anywhere in a ticket."""
    if level > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            known = _name(name)
            if known.removesuffix("s") in {*_SESSION, "session", "conversation", "chat"}:
                yield from _ids(inner)
            yield from _session_ids(inner, level=level + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _session_ids(item, level=level + 1)


def _ticket_ids(value: Any, *, level: int) -> Iterator[str]:
    if level > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            known = _name(name)
            if known in {"ticket", "tickets"} and isinstance(inner, Mapping | list):
                for ticket in inner if isinstance(inner, list) else [inner]:
                    if isinstance(ticket, str):
                        yield ticket
                    elif isinstance(ticket, Mapping) and (found := _identifier(ticket, _TICKET)) is not None:
                        yield found
            elif known in {"ticket", "ticket_id", "ticket_ids"}:
                yield from (str(each) for each in (inner if isinstance(inner, list) else [inner]) if _is_id(each))
            else:
                yield from _ticket_ids(inner, level=level + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _ticket_ids(item, level=level + 1)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _ids(value: Any) -> Iterator[str]:
    match value:
        case str() if value:
            yield value
        case list():
            for item in value:
                yield from _ids(item)
        case Mapping():
            found = _identifier(value, (*_SESSION, "id"))
            if found is not None:
                yield found


def _time(record: Mapping[str, Any], names: Sequence[str]) -> datetime | None:
    by_name = {_name(name): value for name, value in record.items()}
    return next((found for name in names if (found := time_of(by_name.get(name))) is not None), None)


def time_of(value: Any) -> datetime | None:
    """A time in ISO 8601 with its zone, or in seconds or milliseconds since 1970; None for anything else.

    A date without a time, and a time without a zone, say less than is needed to compare them.
    """
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        try:
            return datetime.fromtimestamp(number / 1000 if number >= _MILLISECONDS else number, UTC)
        except (ValueError, OverflowError, OSError):
            return None
    if not isinstance(value, str) or len(value) < len("2026-01-01T00:00"):
        return None
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else None


def _messages(record: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, str | None]:
    by_name = {_name(name): value for name, value in record.items()}
    for name in _MESSAGES:
        value = by_name.get(name)
        if isinstance(value, Mapping):
            inner, loose = _messages(value)
            if inner is not None:
                return inner, loose
        if isinstance(value, list) and value and all(isinstance(item, Mapping | str) for item in value):
            read = tuple(message for item in value if (message := _message(item)) is not None)
            return read, None
        if isinstance(value, str) and value.strip():
            return tuple(_spoken(value)), value
    return None, None


def _message(item: Any) -> Message | None:
    if isinstance(item, str):
        spoken = list(_spoken(item))
        return spoken[0] if len(spoken) == 1 else Message(item, cut=_is_cut(item))
    text = _text_in(_first(item, _TEXT))
    if text is None:
        return None
    role = _first(item, _ROLE)
    if isinstance(role, Mapping):
        role = _first(role, ("type", "role", "kind", "name"))
    cut = any(_field(item, (name,)) is True for name in _CUT) or _is_cut(text)
    return Message(text, _of_user(role), _time(item, _SENT), cut)


def _text_in(value: Any) -> str | None:
    match value:
        case str():
            return value
        case list():
            parts = [text for part in value if (text := _text_in(part)) is not None]
            return "".join(parts) if parts else None
        case Mapping():
            return _text_in(_first(value, _TEXT))
    return None


def _is_cut(text: str) -> bool:
    return text.rstrip().endswith(_ELLIPSES)


def _of_user(role: Any) -> bool | None:
    words = set(_words(role)) if isinstance(role, str) else set()
    if words & _THEIRS:
        return False
    return True if words & _OURS else None


def _spoken(text: str) -> Iterator[Message]:
    """The messages in a transcript that is one text, by the speakers that begin its lines."""
    marks = [mark for mark in _SPEAKER.finditer(text) if _of_user(mark[1]) is not None]
    if not marks:
        yield Message(text, cut=_is_cut(text))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        spoken = text[mark.end() : following.start() if following else None].strip()
        yield Message(spoken, _of_user(mark[1]), cut=_is_cut(spoken))


def _texts(value: Any, *, level: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif level <= MAX_DEPTH and isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner, level=level + 1)
    elif level <= MAX_DEPTH and isinstance(value, list):
        for inner in value:
            yield from _texts(inner, level=level + 1)
