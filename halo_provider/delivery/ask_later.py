"""Asks Halo about rows that runs have left in doubt, without their source: by what the ledger keeps of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from halo_provider.delivery.ask import Asker, ConversationReader
from halo_provider.delivery.doubts import NOT_THERE
from halo_provider.delivery.lookup import Look, Question, Sight, rivals_in
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowCursor, RowFilter, cursor_of
from halo_provider.ledger.statuses import LedgerStatus

TOGETHER = 200  # rows whose waits run at the same time


async def ask_later(
    ledger: Ledger,
    wanted: RowFilter,
    *,
    admin: LedgerAdmin,
    reader: ConversationReader,
    ask_after: float,
    on_answer: Callable[[Any, Look], None] = lambda _row, _look: None,
) -> Counter[Sight]:
    """Look the wanted rows in doubt up: what Halo has is resolved, what it does not have is requeued.

    `wanted` names a namespace. A row is told to `on_answer` with the answer; one that a run has claimed or changed
    meanwhile is left as it is. Raises LedgerError.
    """
    lookups = ledger.lease_holder(wanted.namespace or "", task_instance=TaskInstanceRef())
    asker = Asker(
        reader,
        ask_after=ask_after,
        rivals_of=lambda question, session_ids: asyncio.to_thread(rivals_in, lookups, question, session_ids),
        known=partial(asyncio.to_thread, partial(lookups.witness, older_than=ask_after)),
        wait=asyncio.sleep,
        is_ending=lambda: False,
    )
    counts: Counter[Sight] = Counter()
    in_doubt = replace(wanted, statuses=(LedgerStatus.IN_DOUBT, LedgerStatus.IN_FLIGHT))
    after: RowCursor | None = None
    while rows := admin.rows.page(in_doubt, after=after, limit=TOGETHER):
        after = cursor_of(rows[-1])
        now, lease_now = ledger.transaction(ledger.times, read_only=True)
        free = [row for row in rows if row.lease_expires_at is None or row.lease_expires_at <= lease_now]
        ages = [max(0.0, (now - row.updated_at).total_seconds()) for row in free]
        ended_at = [time.monotonic() - age for age in ages]
        questions = [_question(row) for row in free]
        looks = await asyncio.gather(
            *(asker.ask(question, ended_at=ended) for question, ended in zip(questions, ended_at, strict=True))
        )
        for row, look in zip(free, looks, strict=True):
            _settle(admin, row, look)
            counts[look.sight] += 1
            on_answer(row, look)
    return counts


def _question(row: Any) -> Question:
    return Question(
        row_key=row.row_key,
        user_id=row.user_id,
        since=row.doubt_since or row.created_at,
        message_hash=row.message_hash,
        reference=row.reference,
        session_id=row.into_session,
    )


def _settle(admin: LedgerAdmin, row: Any, look: Look) -> None:
    as_read = RowFilter(
        namespace=row.namespace, row_keys=(row.row_key,), statuses=(row.status,), updated_at=row.updated_at
    )
    if look.sight is Sight.FOUND and look.session_id is not None:
        admin.resolve(as_read, session_ids={row.row_key: look.session_id}, reason=f"found in Halo {look.reason}")
    elif look.sight is Sight.ABSENT:
        admin.requeue(as_read, reason=NOT_THERE)
