"""How a row becomes requests: pure, and checked when the DAG is parsed."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from hashlib import sha256
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeGuard, TypeVar
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticSerializationError, from_json, to_json

from halo_provider.exceptions import HaloConfigurationError, RowError
from halo_provider.models import (
    ANONYMOUS,
    COMPANY_SYSTEM_FIELDS,
    MAX_MESSAGE,
    USER_SYSTEM_FIELDS,
    Chat,
    ContextEntry,
    EntryType,
    Identifier,
    IdentifyCompany,
    Json,
    Request,
    UserTraits,
    explained,
    first_error,
)

MAX_ROW_KEY = 480  # characters: what the ledger's primary key holds on every database, less the mark of a follow-up
# Bytes in UTF-8: an index entry of PostgreSQL's holds 2,704. The ledger's widest index has the longest ids of a DAG
# (250 characters of up to 4 bytes) and of a run, and a namespace (250 bytes each), which leave 1,164 for the key.
MAX_ROW_KEY_BYTES = 1_000
REJECT_COLUMNS = ("_row", "_field", "_reason")  # what a rejects file adds to the original columns
ASKS_FOR_A_HUMAN = ("please create a support ticket", "i need human help", "please escalate this")
REFERENCE_ENTRY = "reference"  # the key of the context entry that reference=True adds
REFERENCE_MARK = "airflow:"  # how every reference begins
REFERENCE_DIGITS = 12  # of the content's hash
_LISTS = frozenset({"list", "error"})  # entry types whose documented value is a list of items
MAX_DEPTH = 100  # levels of lists and dicts in one value; pydantic's serializer gives up at about twice as many
MAX_ITEMS = 100_000  # items of all lists and dicts in one value
MAX_EXPONENT = 1_000  # of a Decimal that is written out in full: 1E+1000000000 would make a text of a gigabyte
_PANDAS_MISSING = frozenset({"NaTType", "NAType"})  # by name: pandas is slow to import
_ARRAY_PACKAGES = frozenset({"numpy", "pandas"})  # likewise
_FINER_THAN_PYTHON = ("[ns]", "[ps]", "[fs]", "[as]")  # units of numpy's that become integers, not datetimes

RowValues = Mapping[str, Any]
_RequestT = TypeVar("_RequestT", bound=Request)


def is_unicode(value: str) -> bool:
    """Whether the text can be written as UTF-8; a lone surrogate (half an emoji, a byte not decoded) cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def python_value(value: Any) -> Any:
    """A scalar or an array of numpy's or pandas' as Python's own value; any other value as it is.

    A scalar becomes a number, a text, a truth value, a datetime or a timedelta (in microseconds, the finest unit that
    Python has), a missing one None; an array becomes a list. The types are recognised by the module that they name.
    """
    if type(value).__module__.partition(".")[0] not in _ARRAY_PACKAGES or not hasattr(value, "tolist"):
        return value
    dtype = str(getattr(value, "dtype", ""))
    if dtype.startswith(("datetime64", "timedelta64")) and dtype.endswith(_FINER_THAN_PYTHON):
        value = value.astype(f"{dtype.partition('[')[0]}[us]")
    found = value.tolist()
    return float(found) if type(found) is type(value) else found  # a long double has no counterpart in Python


def json_value(value: Any) -> Any:
    """Turn what a CSV file or a database yields into JSON, keeping its worth: dates as ISO 8601, exact decimals.

    A Decimal that a JSON number cannot carry exactly becomes a string, a set a sorted list. Raises RowError for bytes
    and other things JSON has no room for, for a value that contains itself or has too many levels or items, and where
    the value itself raises anything.
    """
    try:
        return _json_value(value, _Extent(), level=0)
    except RowError:
        raise
    except Exception as error:  # noqa: BLE001 -- a value's own code may raise anything
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> RowError:
    """What is wrong with a value whose own code raised this. Without the error's text, which may hold the value."""
    return RowError(f"the value cannot be read, its own code raised {type(error).__name__}; cast it at the source")


class _Extent:
    """Counts the items of a value, so that one which contains itself, or one list many times, comes to an end."""

    def __init__(self) -> None:
        self._items = 0

    def add(self, items: Sized, *, level: int) -> None:
        """Count the items of one list or dict. Raises RowError where it is one too many, or too deep."""
        if level >= MAX_DEPTH:
            raise RowError(f"the value has more than {MAX_DEPTH} levels of lists and dicts; flatten it at the source")
        self._items += len(items)
        if self._items > MAX_ITEMS:
            raise RowError(f"the value has more than {MAX_ITEMS:,} items; shorten it at the source")


def _json_value(value: Any, extent: _Extent, *, level: int) -> Any:
    match value:
        case str():
            if not is_unicode(value):
                raise RowError("the text is not valid Unicode; clean it at the source")
            return value
        case None | bool() | int():
            return value
        case _ if type(value).__name__ in _PANDAS_MISSING:
            return None
        case float() | Decimal():
            return _json_number(value)
        case datetime() | date() | time():
            return value.isoformat()
        case UUID() | timedelta():
            return str(value)
        case Mapping():
            extent.add(value, level=level)
            return {
                _json_value(str(name), extent, level=level): _json_value(item, extent, level=level + 1)
                for name, item in value.items()
            }
        case list() | tuple() | set() | frozenset():
            extent.add(value, level=level)
            items = [_json_value(item, extent, level=level + 1) for item in value]
            return sorted(items, key=to_json) if isinstance(value, set | frozenset) else items
        case bytes() | bytearray() | memoryview():
            raise RowError("binary values cannot be sent; select a text form of the column, or leave it out")
    if (found := python_value(value)) is not value:
        return _json_value(found, extent, level=level)
    raise RowError(f"a value of type {type(value).__name__} cannot be sent; cast it to text at the source")


def _json_number(number: float | Decimal) -> float | str | None:
    if number.is_nan() if isinstance(number, Decimal) else math.isnan(number):
        return None
    if number in (math.inf, -math.inf):
        raise RowError("an infinite number has no place in JSON; replace it at the source")
    if isinstance(number, float):
        return number
    if number == number.to_integral_value() and -(2**53) < number < 2**53:
        return int(number)
    return float(number) if Decimal(repr(float(number))) == number else str(number)


def text(value: Any) -> str:
    """The text of a value in a message or a label; nothing for a missing one."""
    if _is_plain(value):
        return value
    match value:
        case Decimal() if value.is_finite() and abs(value.adjusted()) <= MAX_EXPONENT:
            return f"{value:f}"
    match json_value(value):
        case None:
            return ""
        case str(plain):
            return plain
        case other:
            return to_json(other).decode()


def identifier(row: RowValues, column: str) -> str:
    """The column's value as a stable id: trimmed text, whole numbers without a fraction, "" for a missing one."""
    value = row[column]
    found: str = (value if _is_plain(value) else _in_column(column, _id_text, value)).strip()
    if not found.isprintable():
        raise RowError("an id cannot hold control characters or line breaks; clean the value", column=column)
    return found


def _id_text(value: Any) -> str:
    number = python_value(value)
    if isinstance(number, Decimal) and number.is_nan():  # first, as a signaling NaN raises where it is compared
        return ""
    if isinstance(number, float | Decimal) and math.isfinite(number) and number == int(number):
        return str(int(number))
    return text(number)


def _in_column(column: str, convert: Any, value: Any) -> Any:
    try:
        return convert(value)
    except RowError as error:
        raise RowError(error.reason, column=column) from error
    except Exception as error:  # noqa: BLE001 -- a value's own code may raise anything
        raise RowError(_unreadable(error).reason, column=column) from None


def _column(row: RowValues, column: str) -> Any:
    value = row[column]
    return value if _is_plain(value) else _in_column(column, json_value, value)


def _is_plain(value: Any) -> TypeGuard[str]:
    """Whether it is what most values are, text that needs no conversion: looked at first, as rows come in millions."""
    return type(value) is str and value.isascii()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


class Template:
    """Text with ``{column}`` placeholders; ``{{`` and ``}}`` are braces. Values are never expanded again."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._parts: list[tuple[str, str | None]] = []
        for literal, column, format_spec, conversion in Formatter().parse(source):
            if column is not None and (not column.strip() or set("[]") & set(column) or "." in column):
                raise ValueError(
                    f"placeholder {{{column}}}: only a column name may stand in braces; write {{{{ for a brace"
                )
            if format_spec or conversion:
                raise ValueError(
                    f"placeholder {{{column}}}: formats and conversions are not supported, format at the source"
                )
            self._parts.append((literal, column))

    @property
    def columns(self) -> list[str]:
        """The columns it names, in order."""
        return [column for _, column in self._parts if column is not None]

    def render(self, row: RowValues) -> str:
        """Fill the placeholders with the row's values."""
        filled = []
        for literal, column in self._parts:
            filled.append(literal)
            if column is not None:
                value = row[column]
                filled.append(value if _is_plain(value) else _in_column(column, text, value))
        return "".join(filled)


def _checked_template(source: Any) -> Any:
    if isinstance(source, str):
        Template(source)
    return source


def _as_columns(columns: Any) -> Any:
    return (columns,) if isinstance(columns, str) else columns


TemplateText = Annotated[str, Field(min_length=1), BeforeValidator(_checked_template)]
ColumnName = Annotated[str, Field(min_length=1)]
KeyColumns = Annotated[tuple[ColumnName, ...], Field(min_length=1)]
SubmissionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


class _Definition(BaseModel):
    """What an author of a DAG writes. Raises HaloConfigurationError, which names each field that cannot work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    if not TYPE_CHECKING:  # type checkers know the fields from pydantic

        def __init__(self, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                name = type(self).__name__
                raise HaloConfigurationError(f"{name} cannot work as given:\n{explained(error, type(self))}") from None

        # Without this mark pydantic would also call it for what stands in another definition, and lose its place there.
        __init__.__pydantic_base_init__ = True


class _Identity(_Definition):
    id: ColumnName
    traits: dict[str, ColumnName] = {}

    @property
    def columns(self) -> list[str]:
        """The columns it reads."""
        return [self.id, *self.traits.values()]

    def _refuse(self, system_fields: frozenset[str]) -> Self:
        if managed := sorted(system_fields & self.traits.keys()):
            raise ValueError(f"traits: {managed[0]!r} is managed by Halo and cannot be set; remove or rename it")
        return self

    def render_traits(self, row: RowValues) -> Json:
        """The row's traits."""
        return _given(self.traits, row)


class User(_Identity):
    """Who a row is about: the column of the user's id, and {trait: column}."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self._refuse(USER_SYSTEM_FIELDS)


class Company(_Identity):
    """The company a row is about: the column of its id, and {trait: column}."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self._refuse(COMPANY_SYSTEM_FIELDS)


class Entry(_Definition):
    """One context entry. Exactly one of `fields` and `column`.

    `fields` (a list of columns, {name: column}, or "*" for every column of the row) makes an object, which stands as
    the only item of a list when `type` is ``list`` or ``error`` (their documented shape). `column` takes one column
    whole, parsing JSON text when `type` is ``list`` or ``error``. `label` may hold placeholders.
    """

    label: TemplateText
    type: EntryType | None = None
    fields: list[ColumnName] | dict[str, ColumnName] | Literal["*"] | None = None
    column: ColumnName | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.fields is None) == (self.column is None):
            raise ValueError("give exactly one of fields and column")
        if self.fields is not None and not self.fields:
            raise ValueError("fields is empty")
        return self

    @cached_property
    def _label(self) -> Template:
        return Template(self.label)

    @cached_property
    def _fields(self) -> dict[str, str]:
        if isinstance(self.fields, dict):
            return self.fields
        return {column: column for column in self.fields} if isinstance(self.fields, list) else {}

    @property
    def columns(self) -> list[str]:
        """The columns it names."""
        return [*self._label.columns, *self._fields.values(), *([self.column] if self.column else [])]

    @property
    def placeholders(self) -> list[str]:
        """The columns that the label names."""
        return self._label.columns

    def render(self, row: RowValues) -> Json:
        """The entry as Halo wants it."""
        entry: Json = {"label": self.render_label(row)}
        if not entry["label"].strip():
            raise RowError("the entry's label is empty for this row", column=next(iter(self._label.columns), None))
        if self.type is not None:
            entry["type"] = self.type
        entry["value"] = self._value(row)
        return entry

    def render_label(self, row: RowValues) -> str:
        """The label with its placeholders filled."""
        return self._label.render(row)

    def _value(self, row: RowValues) -> Any:
        if self.column is not None:
            value = _column(row, self.column)
            return self._items(self.column, value) if self.type in _LISTS else value
        if self.fields == "*":
            value = {column: _column(row, column) for column in row if column not in REJECT_COLUMNS}
        else:
            value = {name: _column(row, column) for name, column in self._fields.items()}
        return [value] if self.type in _LISTS else value

    def _items(self, column: str, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = from_json(value, allow_inf_nan=False)
            except ValueError as error:
                raise RowError(f"an entry of type {self.type} needs JSON text: {error}", column=column) from None
            value = _in_column(column, json_value, value)  # 1e999 is a number to the parser
        return value if value is None or isinstance(value, list) else [value]


class RenderedSubmission(NamedTuple):
    """One row's request under its key. `payload_hash` changes when and only when the request does.

    `reference` is what the request carries so that it can be found again, if the submission has references. With
    `begins_session` the request names a session of this package's making, and none that Halo knows already.
    """

    row_key: str
    user_id: str | None
    request: Chat
    payload_hash: str
    follows_key: str | None = None
    reference: str | None = None
    begins_session: bool = False

    @property
    def continued_session(self) -> str | None:
        """The session that the message goes into, where that exists before it is sent."""
        return None if self.begins_session else self.request.session_id

    def into_session(self, session_id: str, *, begins: bool = False) -> Self:
        """The same request as a message into a session that exists, or that it `begins`."""
        request = self.request.model_copy(update={"session_id": session_id})
        return self._replace(request=request, begins_session=begins)


class Submission(_Definition):
    """How rows become chat requests; the README has an example.

    `name` is, with the connection id, the namespace of the rows' keys in the ledger. `key` is the column, or the list
    of columns, that names a row for good. `escalate` makes the message ask for a human in Halo's own words.
    `follows` names another submission and the column, or columns, that hold the key of the row this one follows: the
    message goes into the session that row has with Halo. Where there is no such row, or it was rejected,
    `follows_missing` decides: a session of its own (``new``), ``reject``, or wait for the next run (``follow_up``).
    `reference` adds a context entry that names the row and its content, by which it can be found in Halo for certain.
    """

    name: SubmissionName
    key: Annotated[KeyColumns, BeforeValidator(_as_columns)]
    user: User | None = None
    company: Company | None = None
    message: TemplateText
    context: dict[Annotated[str, Field(min_length=1)], Entry] = {}
    escalate: bool = False
    agent_id: Identifier | None = None
    custom_fields: dict[str, ColumnName] | None = None
    follows: tuple[SubmissionName, Annotated[KeyColumns, BeforeValidator(_as_columns)]] | None = None
    follows_missing: Literal["follow_up", "new", "reject"] = "new"
    reference: bool = False

    @model_validator(mode="after")
    def _keeps_place_for_reference(self) -> Self:
        if self.reference and REFERENCE_ENTRY in self.context:
            raise ValueError(f"reference=True adds a context entry {REFERENCE_ENTRY!r} itself; rename yours")
        return self

    @cached_property
    def _message(self) -> Template:
        return Template(self.message)

    @property
    def identity_columns(self) -> list[str]:
        """The columns that identifying users and companies reads, without repetition."""
        parts = [part.columns for part in (self.user, self.company) if part]
        return list(dict.fromkeys(column for part in parts for column in part))

    @property
    def placeholders(self) -> list[str]:
        """The columns that the message and the labels name."""
        return [*self._message.columns, *(name for entry in self.context.values() for name in entry.placeholders)]

    @property
    def columns(self) -> list[str]:
        """Every column the submission reads, without repetition."""
        return list(dict.fromkeys(self._columns()))

    def _columns(self) -> Iterator[str]:
        yield from self.key
        if self.user:
            yield self.user.id
        if self.company:
            yield self.company.id
        yield from self._message.columns
        for entry in self.context.values():
            yield from entry.columns
        yield from (self.custom_fields or {}).values()
        if self.follows:
            yield from self.follows[1]

    def row_key(self, row: RowValues) -> str:
        """The row's stable business key. Raises RowError where a key column is empty or the key too long."""
        parts = []
        for column in self.key:
            part = identifier(row, column)
            if not part:
                raise RowError("the row's key is empty; every row needs one, or it could be sent twice", column=column)
            parts.append(part)
        return _joined(parts, self.key)

    def follows_key(self, row: RowValues) -> str | None:
        """The key of the row this one follows; None where it names none."""
        if self.follows is None:
            return None
        _, columns = self.follows
        parts = [identifier(row, column) for column in columns]
        return _joined(parts, columns) if all(parts) else None

    def user_id(self, row: RowValues) -> str | None:
        """The row's user, or None for an anonymous submission. Raises RowError where the column is empty."""
        if self.user is None:
            return None
        user_id = identifier(row, self.user.id)
        if not user_id:
            raise RowError("the user's id is empty; fill it, or leave user out of the submission", column=self.user.id)
        return user_id

    def company_id(self, row: RowValues) -> str | None:
        """The row's company, or None where there is none."""
        return (identifier(row, self.company.id) or None) if self.company else None

    def render_user(self, row: RowValues) -> UserTraits | None:
        """The row's user with traits, or None for an anonymous row."""
        user_id = self.user_id(row)
        if self.user is None or user_id is None or user_id == ANONYMOUS:
            return None
        traits = self.user.render_traits(row)
        return _checked(UserTraits, {"user_id": user_id, "traits": traits}, columns=self.user.traits)

    def render_company(self, row: RowValues) -> IdentifyCompany | None:
        """The row's company with traits, linked to the row's user, or None where there is no company."""
        company_id = self.company_id(row)
        if self.company is None or company_id is None:
            return None
        user_id = self.user_id(row)
        fields = {
            "company_id": company_id,
            "user_id": None if user_id == ANONYMOUS else user_id,
            "traits": self.company.render_traits(row),
        }
        return _checked(IdentifyCompany, fields, columns=self.company.traits)

    def render(self, row: RowValues, *, row_key: str) -> RenderedSubmission:
        """The row's chat request. Raises RowError naming the column and the remedy."""
        user_id = self.user_id(row)
        custom_fields = self.custom_fields or {}
        request = _checked(
            Chat,
            {
                "message": self.render_message(row),
                "user_id": user_id,
                "company_id": self.company_id(row),
                "agent_id": self.agent_id,
                "custom_fields": _given(custom_fields, row) or None,
                "context": {name: entry.render(row) for name, entry in self.context.items()} or None,
            },
            columns=custom_fields,
        )
        try:
            body = request.model_dump_json(exclude_none=True)
        except PydanticSerializationError:
            raise RowError("a text of this row is not valid Unicode; clean it at the source") from None
        payload_hash = sha256(body.encode()).hexdigest()
        reference = reference_of(self.name, row_key, payload_hash) if self.reference else None
        if reference is not None:
            entry = ContextEntry(label="Reference", type="custom", value=reference)
            request = request.model_copy(update={"context": {**(request.context or {}), REFERENCE_ENTRY: entry}})
        return RenderedSubmission(
            row_key=row_key,
            user_id=user_id,
            request=request,
            payload_hash=payload_hash,
            follows_key=self.follows_key(row),
            reference=reference,
        )

    def render_message(self, row: RowValues) -> str:
        """The row's message. Raises RowError where it is empty or too long."""
        message = self._message.render(row)
        if not message.strip():
            raise RowError("the message is empty for this row", column=next(iter(self._message.columns), None))
        if self.escalate and not any(words in message.lower() for words in ASKS_FOR_A_HUMAN):
            message = f"{message.rstrip()} Please create a support ticket."
        if len(message) > MAX_MESSAGE:
            sizes = {column: len(text(row[column])) for column in self._message.columns}
            longest = max(sizes, key=sizes.__getitem__, default=None)
            share = f" ({sizes[longest]:,} of them from this column)" if longest else ""
            raise RowError(
                f"the message has {len(message):,} characters{share}, Halo accepts {MAX_MESSAGE:,}; shorten it",
                column=longest,
            )
        return message

    @classmethod
    def application(cls, **overrides: Any) -> Self:
        """A form or application: `application`, type custom."""
        return cls._ready_made(
            overrides,
            name="application",
            key="submission_id",
            user=User(id="applicant_id"),
            message="New {type} application from {applicant_name} at {company}. Please review and follow up.",
            label="Application",
            type="custom",
            fields=["applicant_name", "company", "type", "details"],
        )

    @classmethod
    def cancellation(cls, **overrides: Any) -> Self:
        """A cancellation: `cancellation`, type custom."""
        return cls._ready_made(
            overrides,
            name="cancellation",
            key="cancellation_id",
            user=User(id="customer_id"),
            message="{customer_name} cancelled the {plan} plan. Reason: {reason}. Please review and follow up.",
            label="Cancellation",
            type="custom",
            fields=["customer_name", "plan", "reason", "mrr_lost", "cancelled_at"],
        )

    @classmethod
    def support_request(cls, **overrides: Any) -> Self:
        """A problem somebody reports: `support_request`, type error, a list of one."""
        return cls._ready_made(
            overrides,
            name="support_request",
            key="request_id",
            user=User(id="user_id"),
            message="Support request about {area}: {message}",
            label="Support Request",
            type="error",
            fields=["area", "message"],
        )

    @classmethod
    def feature_request(cls, **overrides: Any) -> Self:
        """A wish for the product: `feature_request`, type custom."""
        return cls._ready_made(
            overrides,
            name="feature_request",
            key="request_id",
            user=User(id="user_id"),
            message="Feature request from {requested_by}: {title}. Please review and follow up.",
            label="Feature Request",
            type="custom",
            fields=["title", "description", "priority", "requested_by"],
        )

    @classmethod
    def order(cls, **overrides: Any) -> Self:
        """An order: `order`, type list; the column `items` holds JSON text, [{name, quantity, amount}, …]."""
        return cls._ready_made(
            overrides,
            name="order",
            key="order_id",
            user=User(id="customer_id"),
            message="New order {order_id}. Please review and follow up.",
            label="Order Items",
            type="list",
            column="items",
        )

    @classmethod
    def onboarding_request(cls, **overrides: Any) -> Self:
        """A wish to be onboarded: `onboarding_request`, type custom."""
        return cls._ready_made(
            overrides,
            name="onboarding_request",
            key="request_id",
            user=User(id="user_id"),
            message="{company} asks for onboarding on the {plan} plan, starting {preferred_start_date}. "
            "Please review and follow up.",
            label="Onboarding Request",
            type="custom",
            fields=["company", "plan", "requested_services", "preferred_start_date", "contact"],
        )

    @classmethod
    def _ready_made(cls, overrides: Json, *, name: str, key: str, user: User, message: str, **entry: Any) -> Self:
        defaults = {
            "name": name,
            "key": key,
            "user": user,
            "message": message,
            "context": {name: Entry(**entry)},
        }
        return cls(**(defaults | overrides))


def reference_of(submission_name: str, row_key: str, payload_hash: str) -> str:
    """What names a row and its content in Halo: another content of the row has another reference."""
    return f"{REFERENCE_MARK}{submission_name}/{row_key}/{payload_hash[:REFERENCE_DIGITS]}"


def _joined(parts: Sequence[str], columns: Sequence[str]) -> str:
    """One key of several parts, so that different parts never make the same key."""
    key = parts[0]
    if len(parts) > 1:
        key = "|".join(part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)
    if len(key) > MAX_ROW_KEY:
        raise RowError(
            f"the row's key has {len(key):,} characters, at most {MAX_ROW_KEY} fit; take a shorter column as the key",
            column=columns[0],
        )
    if not key.isascii() and (size := len(key.encode())) > MAX_ROW_KEY_BYTES:
        raise RowError(
            f"the row's key has {size:,} bytes in UTF-8, at most {MAX_ROW_KEY_BYTES:,} fit; "
            "take a shorter column as the key",
            column=columns[0],
        )
    return key


def masked(submission: Submission, rendered: RenderedSubmission, row: RowValues) -> Json:
    """The row's chat request for people to look at: ids and the submission's own words stay, values keep their shape.

    Letters become x and digits 0, in the message, the labels, the context and the custom fields.
    """
    hidden = {column: _hidden(text(row[column])) for column in submission.placeholders}
    request = rendered.request.model_dump(mode="json", exclude_none=True)
    request["message"] = submission.render_message(hidden)
    for name, entry in request.get("context", {}).items():
        if name == REFERENCE_ENTRY and submission.reference:
            continue  # the row's key, which stands beside it
        entry["label"] = submission.context[name].render_label(hidden)
        entry["value"] = _hidden(entry["value"])
    if "custom_fields" in request:
        request["custom_fields"] = _hidden(request["custom_fields"])
    return {"row_key": rendered.row_key, **request}


def _hidden(value: Any) -> Any:
    match value:
        case str():
            return re.sub(r"\d", "0", re.sub(r"[^\W\d_]", "x", value))
        case bool() | None:
            return value
        case int() | float():
            return 0
        case dict():
            return {name: _hidden(item) for name, item in value.items()}
        case _:
            return [_hidden(item) for item in value]


def _given(columns: Mapping[str, str], row: RowValues) -> Json:
    """The values of {name: column}; an empty one is left out, as it would wipe what Halo already knows."""
    values = {name: _column(row, column) for name, column in columns.items()}
    return {name: value for name, value in values.items() if not _is_empty(value)}


def _checked(model: type[_RequestT], fields: Json, *, columns: Mapping[str, str]) -> _RequestT:
    """Build the request; where Halo's documented limits forbid it, name the column that is to blame."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = first_error(error)
        raise RowError(problem.message, column=columns.get(problem.trait or "")) from None
