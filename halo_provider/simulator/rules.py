"""What Halo accepts in a request body, from its SDK documentation (docs.haloagents.ai, api-reference).

Where the documentation is silent the strict answer is given, so that a client's typo is seen here first:
unknown fields, ``null`` and blank identifiers are refused.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Json = dict[str, Any]
Check = Callable[[Any, str], None]
"""Takes a value and the name to call it by; raises Refused."""

MAX_USERS = 1_000  # of one users/update
USER_SIZE = 20_000  # bytes of JSON, traits and context together
COMPANY_SIZE = 50_000  # bytes of JSON, traits and context together

USER_SYSTEM_MANAGED = frozenset(
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
COMPANY_SYSTEM_MANAGED = frozenset(
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
TERMS = ("monthly", "quarterly", "annual", "bi_annual")
RENEWAL_STATUSES = (
    "up_for_renewal",
    "in_progress",
    "likely_to_renew",
    "expansion_opportunity",
    "set_to_cancel",
    "set_to_cancel_trial",
    "at_risk",
    "renewed",
    "lost",
)
ENTRY_TYPES = (
    "list",
    "integration",
    "error",
    "status",
    "config",
    "feature",
    "metric",
    "relationship",
    "custom",
)


class Refused(Exception):  # noqa: N818 - an answer to the client, not an error of the simulator
    """The simulator will not accept this request; the answer is a JSON body with ``error``."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


def parse(content: bytes) -> Json | None:
    """Return the JSON object in `content`, or None when there is none (NaN and lone surrogates are not JSON)."""
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
        if b"\\ud" in content.lower():
            # An escaped half of a surrogate pair parses, but is no text that any database could hold.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def compact(value: Any) -> str:
    """Return `value` as the JSON whose size Halo's limits are about."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def text(*, at_most: int | None = None, may_be_blank: bool = False) -> Check:
    """Text of at most so many characters."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, str):
            raise Refused(400, f"{name} must be text")
        if not may_be_blank and not value.strip():
            raise Refused(400, f"{name} must not be empty")
        if at_most is not None and len(value) > at_most:
            raise Refused(400, f"{name} must be at most {at_most:,} characters")

    return check


def flag(value: Any, name: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise Refused(400, f"{name} must be true or false")


def one_of(allowed: tuple[str, ...]) -> Check:
    """One of the documented names."""

    def check(value: Any, name: str) -> None:
        if value not in allowed:
            raise Refused(400, f"{name} must be one of {', '.join(allowed)}")

    return check


def anything(*, characters: int | None = None) -> Check:
    """Any JSON of at most so many characters."""

    def check(value: Any, name: str) -> None:
        if characters is not None and len(compact(value)) > characters:
            raise Refused(400, f"{name} must be at most {characters:,} characters of JSON")

    return check


def mapping(*, characters: int | None = None, size: int | None = None) -> Check:
    """An object of at most so many characters, or `size` bytes, of JSON."""
    within_characters = anything(characters=characters)

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise Refused(400, f"{name} must be an object")
        within_characters(value, name)
        if size is not None and len(compact(value).encode()) > size:
            raise Refused(400, f"{name} must be at most {size:,} bytes of JSON")

    return check


def list_of(item: Check, *, at_most: int | None = None, may_be_empty: bool = True) -> Check:
    """A list of at most so many items, each of which passes `item`."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, list):
            raise Refused(400, f"{name} must be a list")
        if not may_be_empty and not value:
            raise Refused(400, f"{name} must not be empty")
        if at_most is not None and len(value) > at_most:
            raise Refused(400, f"{name} must have at most {at_most:,} items")
        for index, each in enumerate(value):
            item(each, f"{name}[{index}]")

    return check


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields an object may have; callable as a check."""

    allowed: dict[str, Check]
    required: tuple[str, ...] = ()
    then: Check | None = field(default=None)
    """What concerns several fields at once, checked when each is right by itself."""

    def __call__(self, value: Any, name: str = "") -> None:
        """Raise Refused unless `value` is such an object."""
        prefix = f"{name}." if name else ""
        if not isinstance(value, dict):
            raise Refused(400, f"{name} must be an object")
        for known in self.required:
            if known not in value:
                raise Refused(400, f"{prefix}{known} is required")
        for key, each in value.items():
            check = self.allowed.get(key)
            if check is None:
                raise Refused(400, f"unknown field {prefix}{key}")
            check(each, prefix + key)
        if self.then is not None:
            self.then(value, name)


def traits_within(*, system_managed: frozenset[str], size: int) -> Check:
    """The rules for the traits and context of a user or a company."""
    enumerations = {
        "renewal_status": one_of(RENEWAL_STATUSES),
        "contract_term": one_of(TERMS),
        "payment_terms": one_of(TERMS),
        "signed_up_at": iso_8601,
    }

    def check(value: Any, name: str) -> None:
        prefix = f"{name}." if name else ""
        traits = value.get("traits", {})
        if managed := sorted(system_managed.intersection(traits)):
            raise Refused(400, f"{prefix}traits.{managed[0]} is managed by the system and cannot be set")
        for trait in enumerations.keys() & traits.keys():
            enumerations[trait](traits[trait], f"{prefix}traits.{trait}")
        used = len(compact(traits).encode()) + len(compact(value.get("context", {})).encode())
        if used > size:
            raise Refused(400, f"{prefix}traits and context must be at most {size:,} bytes of JSON together")

    return check


def iso_8601(value: Any, name: str) -> None:
    """A date, or a date and time."""
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise Refused(400, f"{name} must be an ISO 8601 date") from None


def entries(value: Any, name: str) -> None:
    """A chat's context: labelled entries under keys."""
    mapping()(value, name)
    for key, entry in value.items():
        ENTRY(entry, f"{name}.{key}")


def email_or_user_id(value: Any, name: str) -> None:  # noqa: ARG001 - every check is told the name
    """A ticket needs someone to belong to."""
    if "user_id" not in value and "email" not in value:
        raise Refused(400, "user_id or email is required")


IDENTITY: dict[str, Check] = {"user_id": text(), "user_token": text()}
PROFILE: dict[str, Check] = {"traits": mapping(), "context": mapping()}
ENTRY = Fields(
    allowed={"label": text(), "type": one_of(ENTRY_TYPES), "value": anything()},
    required=("label", "value"),
)
USER = Fields(
    allowed={"user_id": text(), **PROFILE},
    required=("user_id",),
    then=traits_within(system_managed=USER_SYSTEM_MANAGED, size=USER_SIZE),
)
IDENTIFY_USER = Fields(
    allowed={**IDENTITY, **PROFILE, "session_id": text()},
    required=USER.required,
    then=USER.then,
)
UPDATE_USER = Fields(
    allowed={**IDENTITY, **PROFILE, "update_only": flag},
    required=USER.required,
    then=USER.then,
)
UPDATE_USERS = Fields(
    allowed={
        "users": list_of(USER, at_most=MAX_USERS, may_be_empty=False),
        "user_token": text(),
        "update_only": flag,
    },
    required=("users",),
)
IDENTIFY_COMPANY = Fields(
    allowed={**IDENTITY, **PROFILE, "company_id": text()},
    required=("company_id",),
    then=traits_within(system_managed=COMPANY_SYSTEM_MANAGED, size=COMPANY_SIZE),
)
CHAT = Fields(
    allowed={
        **IDENTITY,
        "message": text(at_most=10_000),
        "session_id": text(),
        "company_id": text(),
        "mode": one_of(("chat", "voice", "video", "livehelp")),
        "agent_id": text(),
        "images": list_of(text()),
        "custom_fields": mapping(characters=10_000),
        "context": entries,
        "conversation_history": list_of(anything(), at_most=50),
        "behavioral_data": anything(characters=5_000),
    },
    required=("message",),
)
CREATE_TICKET = Fields(
    allowed={
        **IDENTITY,
        "email": text(),
        "name": text(),
        "subject": text(at_most=1_000),
        "message": text(at_most=50_000, may_be_blank=True),
        "metadata": mapping(size=50_000),
        "source": text(at_most=50),
        "priority": text(),
    },
    required=("subject",),
    then=email_or_user_id,
)
EVENTS = Fields(
    allowed={
        **IDENTITY,
        "session_id": text(),
        "events": list_of(
            Fields(
                allowed={
                    "event_type": text(),
                    "page_url": text(),
                    "element_selector": text(),
                    "metadata": mapping(size=10_000),
                },
                required=("event_type",),
            ),
            at_most=100,
        ),
    },
    required=("events",),
)


def check_update(body: Json) -> None:
    """Check a users/update: one user, or a list of them."""
    (UPDATE_USERS if "users" in body else UPDATE_USER)(body)
