"""HaloTicketTrigger: follows the tickets of many rows in the triggerer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from halo_provider.compat import BaseTrigger, TriggerEvent, facts_log
from halo_provider.exceptions import HaloError
from halo_provider.hooks.tickets import TicketQuestion, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from halo_provider.delivery.tickets import Round

SETTLED, TIMED_OUT, FAILED = "settled", "timed_out", "failed"


class HaloTicketTrigger(BaseTrigger):
    """
    Looks at the tickets of all wanted rows every ``poke_interval`` seconds, and fires once, at the end.

    What it sees is recorded in the ledger at once, and what is left to look at is asked of the ledger: a triggerer that
    takes over from another goes on where that one was.

    The event is ``{"outcome": "settled" | "timed_out" | "failed", "calls": …, "others": {…}, "reason": …}``, where
    ``others`` are the tickets of sessions that the ledger does not have.

    :param question: :meth:`TicketQuestion.as_dict`
    :param poke_interval: seconds between looks
    :param end_at: when to give up, as ISO 8601
    """

    def __init__(self, *, question: Mapping[str, Any], poke_interval: float, end_at: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in Airflow
        self.question = dict(question)
        self.poke_interval = poke_interval
        self.end_at = end_at

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class, and what it is made with."""
        return (
            "halo_provider.triggers.halo.HaloTicketTrigger",
            {"question": self.question, "poke_interval": self.poke_interval, "end_at": self.end_at},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until everything is settled, or the time is over."""
        try:
            event = await self._follow()
        except HaloError as error:
            event = {"outcome": FAILED, "reason": str(error), "final": not error.retry_can_help}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]  # untyped in Airflow

    async def _follow(self) -> dict[str, Any]:
        question = TicketQuestion.of(self.question)
        ends = datetime.fromisoformat(self.end_at)
        calls = 0
        ledger, reader, follower = await asyncio.to_thread(question.open)
        try:
            async with reader:
                while True:
                    seen = await follower.look()
                    for sentence in follower.limits() if not calls else ():
                        self.log.warning("looking tickets up: %s", sentence)
                    calls += seen.calls
                    self._tell(seen)
                    is_settled = seen.counts.is_settled(question.until or "created")
                    if is_settled or datetime.now(UTC) >= ends:
                        return {
                            "outcome": SETTLED if is_settled else TIMED_OUT,
                            "reason": seen.problem,
                            "calls": calls,
                            "others": written(follower.others),
                        }
                    left = (ends - datetime.now(UTC)).total_seconds()
                    await asyncio.sleep(max(0.0, min(self.poke_interval, left)))
        finally:
            await asyncio.to_thread(ledger.close)

    def _tell(self, seen: Round) -> None:
        log = facts_log(self.log)
        log.info(seen.counts.sentence(), calls=seen.calls)
        if seen.problem is not None:
            log.warning("not every row could be looked at, which the next look makes good: %s", seen.problem)
