"""Readers of conversations for tests: one that sees what the simulator has, and ways in which it may be wrong."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from halo_provider.client.reader import Found
from halo_provider.client.records import Conversation, Message
from halo_provider.exceptions import HaloReadError
from halo_provider.simulator import Simulator


@dataclass(slots=True)
class SimulatorReader:
    """Sees the simulator's chats `lag` seconds after it accepted them. `distort` changes what is seen."""

    halo: Simulator
    lag: float = 0.0
    distort: Callable[[Conversation], Conversation | None] = lambda conversation: conversation
    failing: HaloReadError | None = None
    complete: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def search_transcripts(
        self, *, user_id: str | None = None, text: str | None = None, since: datetime | None = None
    ) -> Found[Conversation]:
        """The conversations of the user, or with the text in their context."""
        self.asked.append({"user_id": user_id, "text": text, "since": since})
        if self.failing:
            raise self.failing
        found = [
            each
            for each in map(self.distort, self._conversations())
            if each is not None
            and (user_id is None or user_id in each.user_ids or not each.user_ids or each.raw.get("anybody"))
            and (text is None or any(text in found for found in each.texts()))
        ]
        return Found(tuple(found), self.complete, frozenset())

    async def transcript(self, session_id: str) -> Conversation | None:
        """One conversation."""
        self.asked.append({"session_id": session_id})
        if self.failing:
            raise self.failing
        found = (each for each in map(self.distort, self._conversations()) if each is not None)
        return next((each for each in found if each.session_id == session_id), None)

    def _conversations(self) -> list[Conversation]:
        seen_until = time.monotonic() - self.lag
        by_session: dict[str, Conversation] = {}
        for chat in list(self.halo.chats):
            if chat.started > seen_until:
                continue
            message = Message(chat.message, of_user=True, sent_at=chat.received_at)
            reply = Message(chat.reply, of_user=False, sent_at=chat.received_at)
            known = by_session.get(chat.session_id) or Conversation(
                session_id=chat.session_id,
                user_ids=frozenset({chat.user_id} if chat.user_id else ()),
                started_at=chat.received_at,
                messages=(),
                raw={"contexts": []},
            )
            raw = {**known.raw, "contexts": [*known.raw["contexts"], chat.context]}
            by_session[chat.session_id] = replace(known, messages=(*(known.messages or ()), message, reply), raw=raw)
        return list(by_session.values())
