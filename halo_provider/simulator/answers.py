"""What Halo's documentation leaves open about its answers, so that a client can be tried under each of them."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from halo_provider.simulator.rules import Refused
from halo_provider.simulator.wire import Answer

RATE_WINDOW = 60  # seconds


class Answers(BaseModel):
    """How Halo answers where it documents nothing; equal to its JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replace_unknown_sessions: bool = False
    """A chat with a session_id that Halo did not make gets a new session instead of 400."""
    name_tickets: bool = False
    """The answer of a chat that was escalated has ``ticket_id``."""
    rate_limit: Annotated[int, Field(ge=1)] | None = None
    """Every answer has X-RateLimit-Limit, -Remaining and -Reset, for so many requests a minute. It limits nothing."""
    error_shape: Literal["error", "message", "nested", "text"] = "error"
    """An error's JSON has ``error`` or ``message``, or an object with both under ``error``; or it is plain text."""
    largest_body: Annotated[int, Field(ge=1)] | None = None
    """Bytes; a larger body is refused with 413."""

    def refusal(self, refused: Refused) -> Answer:
        """Return the answer to a request that is not accepted."""
        bodies: dict[str, Any] = {
            "error": {"error": refused.message},
            "message": {"message": refused.message},
            "nested": {"error": {"message": refused.message, "code": refused.status}},
            "text": refused.message,
        }
        return Answer(refused.status, bodies[self.error_shape], refused.headers)


class RateHeaders:
    """Counts requests for the headers that name a limit."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window: int | None = None
        self._requests = 0

    def of_next_answer(self, limit: int) -> dict[str, str]:
        """Return the headers, and count the request."""
        now = self._clock()
        window = int(now // RATE_WINDOW)
        if window != self._window:
            self._window, self._requests = window, 0
        self._requests += 1
        return {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(0, limit - self._requests)),
            "X-RateLimit-Reset": str(int((window + 1) * RATE_WINDOW - now) + 1),
        }


PARSER: TypeAdapter[Answers] = TypeAdapter(Answers)
"""Reads answers from JSON."""
