"""The record of every request the simulator met, for tests and for the counters."""

import time
from collections import Counter
from dataclasses import dataclass

from halo_provider.simulator.rules import Json
from halo_provider.simulator.workspace import Chat


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request to the SDK; times are ``time.monotonic()`` seconds.

    `body` is None when it was no JSON object or bodies are not recorded; its ``user_token`` is replaced by the
    token's claims. `status` is None while there is no answer, and for good when none was sent. `ended` is when
    the answer left, or the connection did. `admitted` is whether the limit let it through.
    """

    path: str
    started: float
    authorized: bool
    user_id: str | None
    body: Json | None
    admitted: bool = False
    accepted: bool = False
    chat: Chat | None = None
    status: int | None = None
    ended: float | None = None


class Journal:
    """Records, and counts by path and status, since the last reset."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.counts: Counter[tuple[str, int | None]] = Counter()
        self.in_flight = 0  # admitted requests of every path
        self.chats_in_flight = 0
        self.max_concurrency = 0

    def begin(self, record: RequestRecord) -> None:
        """Note a request that has arrived."""
        self.requests.append(record)
        if record.path == "/chat":
            self.chats_in_flight += 1
            self.max_concurrency = max(self.max_concurrency, self.chats_in_flight)

    def admit(self, record: RequestRecord) -> None:
        """Note that the limit let a request through."""
        record.admitted = True
        self.in_flight += 1

    def end(self, record: RequestRecord, *, status: int | None) -> None:
        """Note that a request is over, once: before its answer leaves, so that whoever reads it sees the record."""
        if record.ended is not None:
            return
        record.status = status
        record.ended = time.monotonic()
        if record.chat is not None:
            record.chat.ended = record.ended
        self.counts[record.path, status] += 1
        self.in_flight -= record.admitted
        if record.path == "/chat":
            self.chats_in_flight -= 1
