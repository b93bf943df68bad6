"""Which tools Halo's MCP server has, and how their arguments are called: read from their schemas, never assumed.

Halo documents the tools' names, and neither their arguments nor their results. So an argument is recognised by the
words of its name, else of its description, and its value is given the type that the schema asks for.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

MAX_DEPTH = 4  # levels of objects in a schema that are searched for arguments
LARGEST_LIMIT = 200  # records asked for at a time, where the schema allows as many
DEFAULT_LIMIT = 50  # records asked for at a time, where the schema names no maximum below it


class Argument(StrEnum):
    """What an argument means."""

    USER = "user"
    SESSION = "session"
    TICKET = "ticket"
    SINCE = "since"
    UNTIL = "until"
    TEXT = "text"
    LIMIT = "limit"
    CURSOR = "cursor"
    PAGE = "page"
    OFFSET = "offset"


# Every word of a name must be in the second set, and one in the first.
_WORDS: dict[Argument, tuple[frozenset[str], frozenset[str]]] = {
    argument: (frozenset(core.split()), frozenset(f"{core} {other}".split()))
    for argument, core, other in (
        (
            Argument.USER,
            "user users userid uid customer customerid contact contactid visitor person member requester",
            "id ids identifier external end key ref filter by for",
        ),
        (
            Argument.SESSION,
            "session sessions sessionid conversation conversations conversationid chat transcript thread",
            "id ids identifier key ref filter by for",
        ),
        (Argument.TICKET, "ticket tickets ticketid case issue", "id ids identifier key ref number filter by"),
        (
            Argument.SINCE,
            "since from after start started begin earliest min newer gte",
            "date time datetime timestamp at created updated on ts ms iso utc or equal than filter range",
        ),
        (
            Argument.UNTIL,
            "until to before end ended latest older lte till",
            "max date time datetime timestamp at created updated on ts ms iso utc or equal than filter range",
        ),
        (
            Argument.TEXT,
            "query q text search keyword keywords phrase term terms contains message needle",
            "for string filter full contents body",
        ),
        (
            Argument.LIMIT,
            "limit count size top take first n max",
            "page per results result records rows items number of",
        ),
        (Argument.CURSOR, "cursor token pagetoken continuation", "page next start after pagination"),
        (Argument.PAGE, "page pagenumber", "number no index"),
        (Argument.OFFSET, "offset skip", "start"),
    )
}
_DESCRIPTIONS: dict[Argument, re.Pattern[str]] = {
    Argument.USER: re.compile(r"(?i)\b(?:user|customer|contact)(?:'s|s)?\s+(?:external\s+)?(?:id\b|identifier)"),
    Argument.SESSION: re.compile(r"(?i)\b(?:session|conversation|chat)(?:'s|s)?\s+(?:id\b|identifier)"),
    Argument.TICKET: re.compile(r"(?i)\bticket(?:'s|s)?\s+(?:id\b|identifier)"),
    Argument.SINCE: re.compile(r"(?i)\b(?:since|at or after|no earlier than|start of)\b"),
    Argument.TEXT: re.compile(r"(?i)\b(?:full[- ]?text|text to (?:find|search)|search (?:text|query|terms?))\b"),
}
_TIMES = frozenset({Argument.SINCE, Argument.UNTIL})
_SAYS_NOTHING = frozenset({"id", "ids", "identifier", "value"})  # words that need the name of their object
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class _Slot(NamedTuple):
    """Where an argument goes: the names that lead to it, and its schema."""

    place: tuple[str, ...]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool of the server, by its schema."""

    name: str
    slots: Mapping[Argument, _Slot]
    fixed: tuple[tuple[tuple[str, ...], Any], ...]  # arguments that are always the same, by their place
    unknown_required: tuple[str, ...]  # required arguments whose meaning is not known
    required: frozenset[Argument]

    @classmethod
    def of(cls, name: str, schema: Any) -> "Tool":
        """The tool with this JSON schema; one that is not a schema of an object has no arguments."""
        root = schema if isinstance(schema, Mapping) else {}
        slots: dict[Argument, _Slot] = {}
        fixed: list[tuple[tuple[str, ...], Any]] = []
        unknown: list[str] = []
        required: set[Argument] = set()
        properties = list(_properties(root, root, (), level=0))
        for place, found, is_required in properties:
            argument = _by_name(place, found)
            if argument is None or argument in slots:
                continue
            slots[argument] = _Slot(place, found)
            if is_required:
                required.add(argument)
        taken = {slot.place for slot in slots.values()}
        for place, found, is_required in properties:
            if place in taken:
                continue
            argument = _by_description(found, free=_DESCRIPTIONS.keys() - slots.keys())
            if argument is not None:
                slots[argument] = _Slot(place, found)
                if is_required:
                    required.add(argument)
            elif _asks_for_json(found):
                fixed.append((place, "json"))
            elif is_required and "default" not in found:
                unknown.append(".".join(place))
        if "id" in {place[-1] for place in (slot for slot, _, _ in properties)} and name.startswith("data_get_"):
            slots = _with_id(slots, properties, name=name)
            unknown = [place for place in unknown if place != "id"]
        return cls(name, slots, tuple(fixed), tuple(unknown), frozenset(required))

    def takes(self, argument: Argument) -> bool:
        """Whether there is such an argument."""
        return argument in self.slots

    def arguments(self, values: Mapping[Argument, Any]) -> dict[str, Any]:
        """The arguments of a call that say these values; a value for which there is no argument is left out."""
        built: dict[str, Any] = {}
        for argument, value in values.items():
            slot = self.slots.get(argument)
            if slot is not None and value is not None:
                _put(built, slot.place, _as_schema(value, slot))
        for place, value in self.fixed:
            _put(built, place, value)
        return built

    def missing(self, values: Mapping[Argument, Any]) -> list[str]:
        """The names of required arguments that these values do not fill."""
        unfilled = [argument for argument in self.required if values.get(argument) is None]
        return [*self.unknown_required, *(".".join(self.slots[argument].place) for argument in sorted(unfilled))]

    def limit(self, wanted: int = DEFAULT_LIMIT) -> int | None:
        """How many records to ask for at a time; None where the tool has no such argument."""
        slot = self.slots.get(Argument.LIMIT)
        if slot is None:
            return None
        maximum = slot.schema.get("maximum")
        return min(wanted, int(maximum)) if isinstance(maximum, int | float) and maximum >= 1 else wanted

    def largest_limit(self) -> int | None:
        """As many records at a time as the schema allows, up to `LARGEST_LIMIT`; `limit()` where it does not say."""
        slot = self.slots.get(Argument.LIMIT)
        return self.limit(LARGEST_LIMIT if slot and slot.schema.get("maximum") else DEFAULT_LIMIT)


def words_of(name: str) -> list[str]:
    """The words of a name in any usual spelling: snake_case, camelCase, kebab-case."""
    return [part.lower() for part in _PARTS.findall(name)]


def _properties(
    schema: Mapping[str, Any], root: Mapping[str, Any], place: tuple[str, ...], *, level: int
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], bool]]:
    """Every property with its place and whether it is required; those of objects instead of the objects."""
    schema = _resolved(schema, root)
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or level > MAX_DEPTH:
        return
    required = schema.get("required")
    names = set(required) if isinstance(required, list) else set()
    for name, found in properties.items():
        inner = _resolved(found if isinstance(found, Mapping) else {}, root)
        if isinstance(inner.get("properties"), Mapping):
            for nested_place, nested, is_required in _properties(inner, root, (*place, str(name)), level=level + 1):
                yield nested_place, nested, is_required and name in names
        else:
            yield (*place, str(name)), inner, name in names


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a local reference, and the one that is not null of alternatives."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            found: Any = root
            for part in reference[2:].split("/"):
                found = found.get(part) if isinstance(found, Mapping) else None
            others = {name: value for name, value in schema.items() if name != "$ref"}
            schema = {**(found if isinstance(found, Mapping) else {}), **others}
            continue
        choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        real = [each for each in choices or () if isinstance(each, Mapping) and each.get("type") != "null"]
        if not real:
            return schema
        others = {name: value for name, value in schema.items() if name not in {"anyOf", "oneOf", "allOf"}}
        schema = {**real[0], **others}
    return schema


def _type_of(schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((each for each in kind if isinstance(each, str) and each != "null"), None)
    return kind if isinstance(kind, str) else None


def _by_name(place: tuple[str, ...], schema: Mapping[str, Any]) -> Argument | None:
    words = words_of(place[-1])
    if len(place) > 1 and set(words) <= _SAYS_NOTHING:
        words = [*words_of(place[-2]), *words]
    if "cursor" in str(schema.get("description", "")).lower() and _type_of(schema) == "string":
        return Argument.CURSOR
    if set(words) == {"external", "id"}:
        return Argument.USER
    is_time = str(schema.get("format", "")).startswith("date")
    if is_time and set(words) & _WORDS[Argument.SINCE][0]:
        return Argument.SINCE
    if _type_of(schema) == "boolean":
        return None
    if words and words[0] == "max" and {"results", "items", "records", "rows", "count"} & set(words):
        return Argument.LIMIT
    for argument, (core, allowed) in _WORDS.items():
        if words and set(words) & core and set(words) <= allowed:
            if argument in _TIMES and _type_of(schema) == "array":
                continue
            if argument is Argument.LIMIT and not _is_number(schema):
                continue
            return argument
    return None


def _by_description(schema: Mapping[str, Any], *, free: set[Argument]) -> Argument | None:
    description = schema.get("description")
    if not isinstance(description, str) or _type_of(schema) == "boolean":
        return None
    return next(
        (argument for argument in _DESCRIPTIONS if argument in free and _DESCRIPTIONS[argument].search(description)),
        None,
    )


def _is_number(schema: Mapping[str, Any]) -> bool:
    return _type_of(schema) in {"integer", "number"}


def _asks_for_json(schema: Mapping[str, Any]) -> bool:
    choices = schema.get("enum")
    return isinstance(choices, list) and "json" in choices


def _with_id(
    slots: Mapping[Argument, _Slot], properties: list[tuple[tuple[str, ...], Mapping[str, Any], bool]], *, name: str
) -> dict[Argument, _Slot]:
    """The slots of a tool that gets one thing by its plain ``id``."""
    (slot,) = [_Slot(place, found) for place, found, _ in properties if place[-1] == "id"][:1]
    argument = Argument.TICKET if "ticket" in name else Argument.SESSION
    return {argument: slot, **slots} if argument not in slots else dict(slots)


def _put(built: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for name in place[:-1]:
        built = built.setdefault(name, {})
    built[place[-1]] = value


def _as_schema(value: Any, slot: _Slot) -> Any:
    """The value in the type that the schema asks for."""
    schema = slot.schema
    if _type_of(schema) == "array":
        items = schema.get("items")
        inner = _Slot(slot.place, items if isinstance(items, Mapping) else {})
        return [_as_schema(value, inner)]
    if isinstance(value, datetime):
        return _time(value, slot)
    if _is_number(schema) and isinstance(value, str):
        return int(value) if value.isdecimal() else value
    return str(value) if _type_of(schema) == "string" else value


def _time(value: datetime, slot: _Slot) -> Any:
    """A time as the schema wants it: a text of ISO 8601, a date, or seconds or milliseconds since 1970."""
    schema = slot.schema
    if _is_number(schema):
        described = f"{slot.place[-1]} {schema.get('description', '')}".lower()
        in_milliseconds = "milli" in described or "ms" in words_of(slot.place[-1]) or re.search(r"\bms\b", described)
        return math.floor(value.timestamp() * (1000 if in_milliseconds else 1))
    utc = value.astimezone(UTC)
    if schema.get("format") == "date":
        return utc.date().isoformat()
    return f"{utc:%Y-%m-%dT%H:%M:%S}Z"
