"""The tools of Halo's MCP server with data:read, and how each variant names their arguments.

Halo documents the tools' names only. Each variant is a whole of its own: names and types of arguments, what searches
can be asked, and the shape of results.

* ``structured``: snake case, times in ISO 8601, `offset`; structured content. Times are those of the last message.
* ``text``: camel case, times in milliseconds, no further page; JSON in a text. Tickets cannot be found by session.
* ``paged``: conditions in an object `filter`, `cursor`; searches give previews. ``tools/list`` has two pages.
* ``prose``: short names, dates without a time; results in Markdown, which no program can rely on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, create_model

from halo_provider.simulator.rules import Json
from halo_provider.simulator.search import Query
from halo_provider.simulator.shapes import PagedShape, ProseShape, Shape, StructuredShape, TextShape


class Tool(NamedTuple):
    """A tool: what it gives, whether one of them, and what it can be asked (see `Query`)."""

    things: str
    gets_one: bool
    asks: tuple[str, ...]
    description: str


_PAGE = ("limit", "offset", "cursor")
TOOLS: dict[str, Tool] = {
    "data_find_user": Tool("users", True, ("user_key",), "Find one user by id or e-mail."),
    "data_search_users": Tool("users", False, ("text", *_PAGE), "Search users."),
    "data_find_company": Tool("companies", True, ("company_key",), "Find one company by its id."),
    "data_search_companies": Tool("companies", False, ("text", *_PAGE), "Search companies."),
    "data_search_transcripts": Tool(
        "transcripts", False, ("user", "session", "text", "since", "until", *_PAGE), "Search conversations."
    ),
    "data_get_transcript": Tool("transcripts", True, ("session_key",), "Get one conversation."),
    "data_search_tickets": Tool(
        "tickets", False, ("user", "ticket_session", "text", "status", "since", "until", *_PAGE), "Search tickets."
    ),
    "data_get_ticket": Tool("tickets", True, ("ticket_key",), "Get one ticket."),
}
SINGULAR = {"users": "user", "companies": "company", "transcripts": "transcript", "tickets": "ticket"}
_KEYS = {"user_key": "id", "company_key": "id", "session_key": "id", "ticket_key": "id", "ticket_session": "session"}


class Argument(NamedTuple):
    """What an argument is called, from the outermost object inwards, its type and its description."""

    place: tuple[str, ...]
    type: Any
    description: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which the tools may be. `by_start`: times are those of the first message, not of the last."""

    name: str
    shape: Shape
    by_start: bool
    tools_at_once: int
    arguments: Mapping[str, Argument]

    def asks(self, tool: Tool) -> dict[str, Argument]:
        """Return the tool's arguments in this variant, by what they mean."""
        return {name: self.arguments[name] for name in tool.asks if name in self.arguments}

    def query(self, tool: str, arguments: Any) -> Query:
        """Read a call's arguments. Raises ValueError, in words that name the argument."""
        try:
            given = _model(self.name, tool).model_validate_json(json.dumps(arguments), strict=True).model_dump()
        except ValidationError as exc:
            reasons = (": ".join([".".join(map(str, error["loc"])), error["msg"]]) for error in exc.errors())
            raise ValueError("; ".join(reasons)) from exc
        found: dict[str, Any] = {}
        for name, argument in self.asks(TOOLS[tool]).items():
            value: Any = given
            for part in argument.place:
                value = None if value is None else value[part]
            if value is not None:
                found[_KEYS.get(name, name)] = _moment(value) if name in {"since", "until"} else value
        return Query(**found)

    def schemas(self) -> list[Json]:
        """Return all tools as tools/list describes them."""
        return [
            {
                "name": name,
                "description": tool.description,
                "inputSchema": _model(self.name, name).model_json_schema(),
                "annotations": {"readOnlyHint": True},
            }
            for name, tool in TOOLS.items()
        ]


_STRICT = ConfigDict(extra="forbid")


@cache
def _model(variant: str, tool: str) -> type[BaseModel]:
    """Return what checks a tool's arguments, and gives their schema."""
    arguments, is_required = VARIANTS[variant].asks(TOOLS[tool]), TOOLS[tool].gets_one
    outer: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for argument in arguments.values():
        described = Field(description=argument.description)
        value = (
            (Annotated[argument.type, described], ...)
            if is_required
            else (Annotated[argument.type | None, described], None)
        )
        if len(argument.place) == 1:
            outer[argument.place[0]] = value
        else:
            group, inner = argument.place
            groups.setdefault(group, {})[inner] = value
    for group, fields in groups.items():
        outer[group] = (create_model(f"{tool}_{group}", __config__=_STRICT, **fields) | None, None)
    return create_model(tool, __config__=_STRICT, **outer)


def _moment(value: datetime | date | int) -> datetime:
    match value:
        case datetime():
            return value
        case date():
            return datetime.combine(value, time.min, UTC)
        case _:
            return datetime.fromtimestamp(value / 1000, UTC)


def _arguments(**named: tuple[str, Any, str]) -> dict[str, Argument]:
    return {name: Argument(tuple(place.split(".")), kind, said) for name, (place, kind, said) in named.items()}


_LIMIT = Annotated[int, Field(ge=1, le=1000)]
_OFFSET = Annotated[int, Field(ge=0)]
_MILLISECONDS = Annotated[int, Field(ge=0, le=253_402_300_799_999)]

_ALL = (
    Variant(
        name="structured",
        shape=StructuredShape(),
        by_start=False,
        tools_at_once=len(TOOLS),
        arguments=_arguments(
            user_key=("user_id", str, "The id of the user, or the e-mail address."),
            company_key=("company_id", str, "The id of the company."),
            session_key=("session_id", str, "The id of the session."),
            ticket_key=("ticket_id", str, "The id of the ticket."),
            user=("user_id", str, "Only those of this user."),
            session=("session_id", str, "Only this session."),
            ticket_session=("session_id", str, "Only those of this session."),
            text=("query", str, "Words that stand in it."),
            status=("status", str, "Only with this status, such as open."),
            since=("since", AwareDatetime, "Only with something new at or after this time."),
            until=("until", AwareDatetime, "Only begun at or before this time."),
            limit=("limit", _LIMIT, "At most so many."),
            offset=("offset", _OFFSET, "Leave out so many."),
        ),
    ),
    Variant(
        name="text",
        shape=TextShape(),
        by_start=True,
        tools_at_once=len(TOOLS),
        arguments=_arguments(
            user_key=("customerId", str, "The customer's id."),
            company_key=("companyId", str, "The company's id."),
            session_key=("conversationId", str, "The conversation's id."),
            ticket_key=("ticketId", str, "The ticket's id."),
            user=("customerId", str, "The customer's id."),
            text=("searchText", str, "Text to search for."),
            since=("fromTimestamp", _MILLISECONDS, "Begun at or after, in milliseconds since 1970."),
            until=("toTimestamp", _MILLISECONDS, "Begun at or before, in milliseconds since 1970."),
            limit=("maxResults", _LIMIT, "At most so many."),
        ),
    ),
    Variant(
        name="paged",
        shape=PagedShape(),
        by_start=False,
        tools_at_once=5,
        arguments=_arguments(
            user_key=("id", str, "The contact."),
            company_key=("id", str, "The company."),
            session_key=("id", str, "The conversation."),
            ticket_key=("id", str, "The ticket."),
            user=("filter.contact_id", str, "The contact."),
            ticket_session=("filter.conversation_id", str, "The conversation."),
            text=("filter.contains", str, "A phrase."),
            status=("filter.status", str, "A status."),
            since=("filter.updated_after", AwareDatetime, "Changed at or after."),
            until=("filter.created_before", AwareDatetime, "Created at or before."),
            limit=("page_size", _LIMIT, "Records on a page."),
            cursor=("cursor", str, "From the page before."),
        ),
    ),
    Variant(
        name="prose",
        shape=ProseShape(),
        by_start=True,
        tools_at_once=len(TOOLS),
        arguments=_arguments(
            user_key=("user", str, "Who."),
            company_key=("company", str, "Which."),
            session_key=("conversation", str, "Which."),
            ticket_key=("ticket", str, "Which."),
            user=("user", str, "Whose."),
            text=("q", str, "Any words."),
            since=("after", date, "From this day on."),
            until=("before", date, "Until this day."),
            limit=("n", _LIMIT, "How many."),
        ),
    ),
)
VARIANTS = {variant.name: variant for variant in _ALL}
