"""Faults a test or a person can order, and the order in which requests meet them."""

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MCP_PATH = "/api/mcp"


class FaultKind(StrEnum):
    """What goes wrong."""

    RATE_LIMITED = "rate_limited"  # 429
    STATUS = "status"  # any status and body
    SLOW = "slow"  # a normal answer, late
    DROP_BEFORE_ACCEPTANCE = "drop_before_acceptance"  # connection cut, request not accepted
    DROP_AFTER_ACCEPTANCE = "drop_after_acceptance"  # request accepted, connection cut
    HALF_ANSWER = "half_answer"  # accepted; headers and half the body, then cut
    GARBAGE = "garbage"  # accepted; bytes that are not HTTP
    INVALID_JSON = "invalid_json"  # accepted; 200 with a body that is not JSON
    MISSING_SESSION_ID = "missing_session_id"  # accepted; 200 without session_id
    SILENCE = "silence"  # no answer at all until the client leaves
    WRONG_RESULT = "wrong_result"  # a tool of the MCP server answers, and the answer is wrong


class WrongResult(StrEnum):
    """What a tool answers instead of the truth."""

    EMPTY = "empty"  # nothing found
    ANOTHER_USER = "another_user"  # the same words of somebody else, and everybody else's conversations
    SIMILAR_MESSAGE = "similar_message"  # a conversation with a word more
    TRUNCATED = "truncated"  # the first half of each message
    OLD_CONVERSATION = "old_conversation"  # another one with the same words, a year ago
    TOOL_ERROR = "tool_error"  # the tool says that it failed
    UNREADABLE = "unreadable"  # a result in no known shape


PARAMETERS: dict[FaultKind, frozenset[str]] = {
    FaultKind.RATE_LIMITED: frozenset({"retry_after", "as_http_date"}),
    FaultKind.STATUS: frozenset({"code", "body", "headers", "accepted"}),
    FaultKind.SLOW: frozenset({"seconds"}),
    FaultKind.SILENCE: frozenset({"accepted"}),
    FaultKind.WRONG_RESULT: frozenset({"result"}),
}
REQUIRED: dict[FaultKind, frozenset[str]] = {
    FaultKind.STATUS: frozenset({"code"}),
    FaultKind.SLOW: frozenset({"seconds"}),
    FaultKind.SILENCE: frozenset({"accepted"}),
    FaultKind.WRONG_RESULT: frozenset({"result"}),
}


class Fault(BaseModel):
    """One thing going wrong with one request; make it with the constructors below, or from JSON that names its kind.

    "Accepted" means accepted by Halo: the chat is in the session, the ticket in the inbox. A request that would
    be refused anyway (400, 401, 403) is refused under a fault after acceptance too, and that refusal takes the
    fault's form.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    code: Annotated[int, Field(ge=200, le=599)] = 500
    body: Any = None
    headers: dict[str, str] = {}
    retry_after: Annotated[float, Field(ge=0)] | None = None
    as_http_date: bool = False
    seconds: Annotated[float, Field(ge=0)] = 0.0
    accepted: bool = False
    result: WrongResult | None = None

    @model_validator(mode="after")
    def _has_its_parameters(self) -> Self:
        given = self.model_fields_set - {"kind"}
        if missing := REQUIRED.get(self.kind, frozenset()) - given:
            raise ValueError(f"{self.kind} needs {min(missing)}")
        if surplus := given - PARAMETERS.get(self.kind, frozenset()):
            raise ValueError(f"{self.kind} has no {min(surplus)}")
        return self

    @classmethod
    def rate_limited(cls, *, retry_after: float | None = None, as_http_date: bool = False) -> Self:
        """429, not accepted; Retry-After in seconds, or as the HTTP-date so far ahead, or absent.

        A fraction of a second is sent as it is: no HTTP, but it keeps tests short. A date is rounded up.
        """
        return cls(kind=FaultKind.RATE_LIMITED, retry_after=retry_after, as_http_date=as_http_date)

    @classmethod
    def status(
        cls, code: int, *, body: Any = None, headers: dict[str, str] | None = None, accepted: bool = False
    ) -> Self:
        """Answer with `code`; text is sent as text, other JSON as JSON, None as ``{"error": …}``."""
        return cls(kind=FaultKind.STATUS, code=code, body=body, headers=headers or {}, accepted=accepted)

    @classmethod
    def slow(cls, seconds: float) -> Self:
        """Accept at once, answer normally `seconds` later than usual."""
        return cls(kind=FaultKind.SLOW, seconds=seconds)

    @classmethod
    def drop_before_acceptance(cls) -> Self:
        """Cut the connection without accepting anything."""
        return cls(kind=FaultKind.DROP_BEFORE_ACCEPTANCE)

    @classmethod
    def drop_after_acceptance(cls) -> Self:
        """Accept, then cut the connection without a word."""
        return cls(kind=FaultKind.DROP_AFTER_ACCEPTANCE)

    @classmethod
    def half_answer(cls) -> Self:
        """Accept, send the headers and half of the body, then cut the connection."""
        return cls(kind=FaultKind.HALF_ANSWER)

    @classmethod
    def garbage(cls) -> Self:
        """Accept, then send bytes that are not HTTP."""
        return cls(kind=FaultKind.GARBAGE)

    @classmethod
    def invalid_json(cls) -> Self:
        """Accept, then answer 200 with a body that is not JSON."""
        return cls(kind=FaultKind.INVALID_JSON)

    @classmethod
    def missing_session_id(cls) -> Self:
        """Accept, then answer 200 without ``session_id``."""
        return cls(kind=FaultKind.MISSING_SESSION_ID)

    @classmethod
    def silence(cls, *, accepted: bool = True) -> Self:
        """Accept or not, and never answer."""
        return cls(kind=FaultKind.SILENCE, accepted=accepted)

    @classmethod
    def wrong_result(cls, result: WrongResult | str) -> Self:
        """Let a tool of the MCP server answer wrongly; nothing else has results."""
        return cls(kind=FaultKind.WRONG_RESULT, result=WrongResult(result))

    @property
    def precedes_acceptance(self) -> bool:
        """Whether Halo never gets to see the request."""
        match self.kind:
            case FaultKind.RATE_LIMITED | FaultKind.DROP_BEFORE_ACCEPTANCE:
                return True
            case FaultKind.STATUS | FaultKind.SILENCE:
                return not self.accepted
            case _:
                return False

    def response_status(self) -> int:
        """Return the status of this fault's own answer."""
        return 429 if self.kind is FaultKind.RATE_LIMITED else self.code

    def response_headers(self) -> dict[str, str]:
        """Return the headers of this fault's own answer, Retry-After reckoned from now."""
        if self.retry_after is None:
            return self.headers
        if not self.as_http_date:
            return {**self.headers, "Retry-After": f"{self.retry_after:g}"}
        # HTTP-dates have whole seconds, and format_datetime cuts the fraction off.
        moment = datetime.now(UTC) + timedelta(seconds=self.retry_after, microseconds=999_999)
        return {**self.headers, "Retry-After": format_datetime(moment, usegmt=True)}


class FaultScript:
    """Faults in the order in which requests meet them.

    Faults ordered for a user come first, then those for a path, then the permanent one; those for a method or tool of
    the MCP server come before those for the whole of it. None in a list lets one request pass.
    """

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str | None], deque[Fault | None]] = {}
        self._permanent: dict[str, Fault] = {}

    def add(self, *, path: str, user_id: str | None, faults: Iterable[Fault | None]) -> None:
        """Queue `faults` for the next requests to `path`, of `user_id` only when given."""
        self._queues.setdefault((path, user_id), deque()).extend(faults)

    def always(self, *, path: str, fault: Fault | None) -> None:
        """Make every request to `path` that nothing is queued for meet `fault`; None ends that."""
        if fault is None:
            self._permanent.pop(path, None)
        else:
            self._permanent[path] = fault

    def take(self, *, path: str, user_id: str | None) -> Fault | None:
        """Return the fault this request meets, and strike it off the list."""
        paths = (path, *([MCP_PATH] if path.startswith(f"{MCP_PATH}/") else []))
        for key in ((each, user) for user in (user_id, None) for each in paths):
            if queue := self._queues.get(key):
                return queue.popleft()
        return next((self._permanent[each] for each in paths if each in self._permanent), None)

    def left(self) -> list[dict[str, Any]]:
        """Return what is still queued, and what is permanent, as JSON."""
        queued = [
            {"path": path, "user_id": user_id, "always": False, "faults": [each and each.kind for each in queue]}
            for (path, user_id), queue in self._queues.items()
            if queue
        ]
        permanent = [
            {"path": path, "user_id": None, "always": True, "faults": [fault.kind]}
            for path, fault in self._permanent.items()
        ]
        return queued + permanent
