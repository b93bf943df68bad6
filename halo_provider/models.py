"""Halo's wire format: requests that know the documented limits, responses that keep what is not documented.

Every limit and every system-managed name here is from Halo's SDK documentation (docs.haloagents.ai, api-reference),
read in November 2026.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_serializer, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError, to_json

from halo_provider.exceptions import HaloConfigurationError

MAX_MESSAGE = 10_000  # characters
MAX_CUSTOM_FIELDS = 10_000  # characters of JSON
MAX_CONVERSATION_HISTORY = 50  # entries
MAX_USER_TRAITS = 20_000  # bytes of JSON, traits and context together
MAX_COMPANY_TRAITS = 50_000  # bytes of JSON, traits and context together
MAX_USERS_PER_UPDATE = 1_000  # users
MAX_SUBJECT = 1_000  # characters
MAX_TICKET_MESSAGE = 50_000  # characters
MAX_TICKET_METADATA = 50_000  # bytes of JSON
MAX_SOURCE = 50  # characters
MAX_EVENTS = 100  # events
MAX_EVENT_METADATA = 10_000  # bytes of JSON
ANONYMOUS = "anonymous"  # the user_id Halo reads as "unknown"

USER_SYSTEM_FIELDS = frozenset(
    {
        "id",
        "external_id",
        "org_id",
        "company_id",
        "created_at",
        "updated_at",
        "first_seen",
        "last_seen",
        "last_contacted_at",
    }
)
COMPANY_SYSTEM_FIELDS = frozenset(
    {
        "id",
        "external_id",
        "org_id",
        "created_at",
        "updated_at",
        "health_score",
        "team_size",
        "last_contacted_at",
    }
)
_TERMS = ("annual", "bi_annual", "monthly", "quarterly")
ENUMERATED_TRAITS = {
    "renewal_status": (
        "up_for_renewal",
        "in_progress",
        "likely_to_renew",
        "expansion_opportunity",
        "set_to_cancel",
        "set_to_cancel_trial",
        "at_risk",
        "renewed",
        "lost",
    ),
    "contract_term": _TERMS,
    "payment_terms": _TERMS,
}

_RequestT = TypeVar("_RequestT", bound="Request")

Json = dict[str, Any]
Identifier = Annotated[str, StringConstraints(min_length=1)]
EntryType = Literal["list", "integration", "error", "status", "config", "feature", "metric", "relationship", "custom"]


def json_size(value: Any) -> int:
    """Bytes of `value` as compact UTF-8 JSON."""
    return len(to_json(value))


def check_traits(traits: Json, context: Json, *, system_fields: frozenset[str], limit: int) -> None:
    """Raise ValueError if Halo would refuse these traits, without naming a value."""
    if managed := sorted(system_fields & traits.keys()):
        raise _trait_error(managed[0], "is managed by Halo and cannot be set")
    for trait, allowed in ENUMERATED_TRAITS.items():
        if trait in traits and traits[trait] is not None and traits[trait] not in allowed:
            raise _trait_error(trait, f"must be one of {', '.join(allowed)}")
    if (size := json_size(traits) + json_size(context)) > limit:
        raise ValueError(f"traits and context are {size:,} bytes together, Halo accepts {limit:,}")


def _trait_error(trait: str, reason: str) -> PydanticCustomError:
    return PydanticCustomError("trait", "trait '{trait}' {reason}", {"trait": trait, "reason": reason})


class Problem(NamedTuple):
    """The first thing wrong with a request: its text never holds a value; `trait` names the trait to blame."""

    message: str
    trait: str | None


def first_error(error: ValidationError) -> Problem:
    """What pydantic found first, as text for people."""
    details = error.errors(include_url=False, include_input=False)[0]
    if details["type"] == "trait":
        return Problem(details["msg"], details["ctx"]["trait"])
    place = ".".join(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    return Problem(f"{place}: {message}" if place else message, None)


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """Everything that pydantic found wrong, as text for people: a line each, which names the field and the remedy."""
    return "\n".join(_line(details, model) for details in error.errors(include_url=False, include_input=False))


def request_of(model: type[_RequestT], **fields: Any) -> _RequestT:
    """Build a request of its fields. Raises HaloConfigurationError, which names each field that is wrong, no value."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise HaloConfigurationError(f"{model.__name__}: {explained(error, model)}") from None


def _line(details: ErrorDetails, model: type[BaseModel]) -> str:
    place = ".".join(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    match details["type"]:
        case "extra_forbidden":
            known = list(model.model_fields) if len(details["loc"]) == 1 else []
            message = f"there is no such name{did_you_mean(str(details['loc'][-1]), known)}"
            message += f"; there are {', '.join(known)}" if known else ""
        case "missing":
            message = "it is missing"
    return f"{place}: {message}" if place else message


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known name that an unknown one is like, as the end of a message; nothing where there is none."""
    alike = get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {alike[0]!r}?)" if alike else ""


class Request(BaseModel):
    """A body this package sends: unknown fields are mistakes, and no error repeats a value."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Response(BaseModel):
    """A body Halo sends: what is not documented is kept in ``model_extra``."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True, coerce_numbers_to_str=True)


class UserTraits(Request):
    """One user with traits: the part that identify and update have in common."""

    user_id: Identifier
    traits: Json = {}
    context: Json = {}

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        check_traits(self.traits, self.context, system_fields=USER_SYSTEM_FIELDS, limit=MAX_USER_TRAITS)
        return self


class IdentifyUser(UserTraits):
    """POST /users/identify. Sets the user's last_seen to now and may enrol the user in automations."""

    session_id: str | None = None
    user_token: str | None = None


class UpdateUsers(Request):
    """POST /users/update. Never touches last_seen; `user_token` is required there and comes from the client."""

    users: Annotated[list[UserTraits], Field(min_length=1, max_length=MAX_USERS_PER_UPDATE)]
    update_only: bool = False
    user_token: str | None = None


class IdentifyCompany(Request):
    """POST /companies/identify; `user_id` links that user to the company."""

    company_id: Identifier
    user_id: Identifier | None = None
    traits: Json = {}
    context: Json = {}
    user_token: str | None = None

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        check_traits(self.traits, self.context, system_fields=COMPANY_SYSTEM_FIELDS, limit=MAX_COMPANY_TRAITS)
        return self


class ContextEntry(Request):
    """One labelled piece of context: the label is a header in the AI's prompt."""

    label: Identifier
    type: EntryType | None = None
    value: Any

    @model_serializer
    def _with_its_value(self) -> Json:
        """Every entry has a value, also where that is null: only the type is left out where there is none."""
        return {"label": self.label, **({"type": self.type} if self.type else {}), "value": self.value}


class Chat(Request):
    """POST /chat: the message that Halo's agent answers and may turn into a ticket."""

    message: Annotated[str, StringConstraints(min_length=1, max_length=MAX_MESSAGE)]
    user_id: Identifier | None = None
    session_id: Identifier | None = None
    company_id: Identifier | None = None
    mode: Literal["chat", "voice", "video", "livehelp"] | None = None
    agent_id: Identifier | None = None
    images: list[str] | None = None
    custom_fields: Json | None = None
    context: dict[str, ContextEntry] | None = None
    conversation_history: Annotated[list[Json], Field(max_length=MAX_CONVERSATION_HISTORY)] | None = None
    user_token: str | None = None

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        if self.custom_fields and (size := len(to_json(self.custom_fields).decode())) > MAX_CUSTOM_FIELDS:
            raise ValueError(f"custom_fields are {size:,} characters, Halo accepts {MAX_CUSTOM_FIELDS:,}")
        return self


class CreateTicket(Request):
    """POST /tickets/create: a ticket without the AI. One of `user_id` and `email` is required."""

    user_id: Identifier | None = None
    email: Identifier | None = None
    name: str | None = None
    subject: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SUBJECT)]
    message: Annotated[str, StringConstraints(max_length=MAX_TICKET_MESSAGE)] | None = None
    metadata: Json | None = None
    source: Annotated[str, StringConstraints(max_length=MAX_SOURCE)] | None = None
    priority: str | None = None
    user_token: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.user_id is None and self.email is None:
            raise ValueError("one of user_id and email is required")
        if self.metadata and (size := json_size(self.metadata)) > MAX_TICKET_METADATA:
            raise ValueError(f"metadata is {size:,} bytes, Halo accepts {MAX_TICKET_METADATA:,}")
        return self


class Event(Request):
    """One entry of POST /events."""

    event_type: Identifier
    page_url: str | None = None
    element_selector: str | None = None
    metadata: Json | None = None

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        if self.metadata and (size := json_size(self.metadata)) > MAX_EVENT_METADATA:
            raise ValueError(f"metadata is {size:,} bytes, Halo accepts {MAX_EVENT_METADATA:,}")
        return self


class Events(Request):
    """POST /events."""

    events: Annotated[list[Event], Field(max_length=MAX_EVENTS)]
    user_id: Identifier | None = None
    session_id: Identifier | None = None
    user_token: str | None = None


class ChatAnswer(Response):
    """The answer of /chat. Whether a ticket was created is not among the documented fields."""

    session_id: Identifier
    text: Any = None
    agent_id: str | None = None


class UpdateUsersAnswer(Response):
    """The answer of /users/update; only the name `skipped` is documented among its counts."""

    skipped: int = 0


class Answer(Response):
    """An answer whose fields are not documented."""


class SignIn(BaseModel):
    """What a person's sign-in for reading gave: tokens, and where they are renewed. A secret as a whole."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    client_id: str
    client_secret: Annotated[str | None, Field(repr=False)] = None
    client_auth: Literal["none", "client_secret_basic", "client_secret_post"] = "none"
    token_endpoint: str
    revocation_endpoint: str | None = None
    resource: str
    access_token: Annotated[str, Field(repr=False)]
    refresh_token: Annotated[str | None, Field(repr=False)] = None
    scope: str | None = None


class Turn(NamedTuple):
    """What the store of a sign-in says to who needs a token: `renews` if it is this one's turn to renew it.

    `seconds_left` is the access token's, by the store's clock; None where it has no known end. `waits` is how many
    seconds another process may still take to renew it, or this one, before others try. `interrupted`: one that renewed
    it before never recorded the answer, so that the refresh token may be used up.
    """

    sign_in: SignIn
    seconds_left: float | None
    renews: bool = False
    waits: float = 0.0
    interrupted: bool = False
