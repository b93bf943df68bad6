"""What a run does about rows in doubt: send again, hold, or look up first."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Literal, TypeVar

from halo_provider.delivery.ask import Asker, ConversationReader
from halo_provider.delivery.lookup import LONG_AGO, Look, Question, rivals_in
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.queues import Work
from halo_provider.delivery.stop import Stop
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.rules import Rivals

NOT_THERE = "looked up in Halo again and again, and not there"

_T = TypeVar("_T")


class Doubts:
    """The policy of one run. Without a reader, rows that should be looked up are treated as `ask_else` says.

    `waiting` counts the rows that are being looked up.
    """

    def __init__(
        self, options: DeliveryOptions, *, reader: ConversationReader | None, lease_holder: LeaseHolder, stop: Stop
    ) -> None:
        asks = options.on_in_doubt == "ask" and reader is not None
        self.otherwise: Literal["hold", "resend"] = (
            options.ask_else if options.on_in_doubt == "ask" else options.on_in_doubt
        )
        self.waiting = 0
        self._lease_holder = lease_holder
        # Looking up must not wait for the ledger's thread, nor keep it busy: it reads whole tables.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="halo-ask")
        self._asker: Asker | None = None
        if asks and reader is not None:
            self._asker = Asker(
                reader,
                ask_after=options.ask_after,
                rivals_of=self._rivals,
                known=partial(self._in_thread, partial(lease_holder.witness, older_than=options.ask_after)),
                wait=stop.sleep,
                is_ending=lambda: stop.requested,
            )

    @property
    def asks(self) -> bool:
        """Whether rows in doubt are looked up."""
        return self._asker is not None

    def begins(self, work: Work) -> None:
        """An attempt begins: note when, unless Halo may have the row from an earlier one."""
        if not work.doubtful or work.doubt_since is None:
            work.doubt_since = datetime.now(UTC)

    def delivered(self, work: Work, session_id: str, *, began: float) -> None:
        """Halo has answered: now and then such a row is remembered, to see whether the reader sees it."""
        if self._asker is None or work.doubt_since is None:
            return
        if self._asker.wants_witness(by_session=work.submission.continued_session is not None):
            question = Question.of(work.submission, since=work.doubt_since)
            self._asker.delivered(question, session_id, sent_at=began)

    async def look_up(self, work: Work) -> Look:
        """What became of the row, by Halo's word; its last attempt has ended by now."""
        if self._asker is None:
            raise RuntimeError("nobody can be asked")
        ended_at = time.monotonic()
        if work.doubt is not None:
            question = Question.about(work.doubt, work.submission, row_key=work.ledger_key)
        else:
            since = work.doubt_since or LONG_AGO
            question = Question.of(work.submission, since=since)._replace(row_key=work.ledger_key)
        self.waiting += 1
        try:
            return await self._asker.ask(question, ended_at=ended_at)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Let go of the thread; a call that hangs ends by its own limit."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _rivals(self, question: Question, session_ids: Sequence[str]) -> Rivals:
        return await self._in_thread(partial(rivals_in, self._lease_holder, question, session_ids))

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
