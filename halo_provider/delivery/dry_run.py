"""dry_run(): what a delivery would do, without sending or writing anything."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.place import End, Placer
from halo_provider.delivery.prepare import Reader
from halo_provider.delivery.queues import HOLDS_BACK, UserQueues
from halo_provider.exceptions import RowError
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Submission, masked

EXAMPLES = 3  # rendered requests shown


@dataclass(slots=True, kw_only=True)
class DryRun:
    """What would happen. `would_send` rows are counted as not attempted; `examples` are the first of them, masked."""

    counts: Counter[RowStatus] = field(default_factory=Counter)
    read: int = 0
    would_send: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, int]:
        """`read` and the count of every status, as a delivery reports them."""
        return {"read": self.read, **{status.value: self.counts[status] for status in RowStatus}}


def dry_run(
    source: Source,
    *,
    submission: Submission,
    lease_holder: LeaseHolder,
    options: DeliveryOptions,
    on_rejected: Callable[[Row, RowError], None] = lambda _row, _error: None,
) -> DryRun:
    """Read, map and validate the rows, and ask the ledger about them. Raises SourceError and LedgerError."""
    planned = DryRun()
    user_queues = UserQueues()
    placer = Placer(
        lease_holder,
        submission=submission,
        on_in_doubt=options.on_in_doubt,
        on_change=options.on_change,
        own_session_ids=options.own_session_ids,
        claims=False,
    )
    follows_up = options.on_change == "follow_up"
    reader = Reader(source, submission, batch_size=options.batch_size, follows_up=follows_up)
    try:
        while prepared_rows := reader.next_batch():
            planned.read += len(prepared_rows)
            for placed in placer.place(prepared_rows):
                (prepared, place, _) = (
                    placed if placed.prepared.repeats is None else placer.place_again([placed.prepared])[0]
                )
                user_id = prepared.submission.user_id if prepared.submission else None
                if isinstance(place, End):
                    planned.counts[place.status] += 1
                    if place.status is RowStatus.REJECTED and place.error is not None:
                        on_rejected(prepared.row, place.error)
                    if place.status in HOLDS_BACK:
                        user_queues.close(user_id)
                    continue
                planned.counts[RowStatus.NOT_ATTEMPTED] += 1
                if user_queues.is_closed(user_id):
                    continue
                planned.would_send += 1
                if len(planned.examples) < EXAMPLES:
                    planned.examples.append(masked(submission, place.submission, prepared.row.values))
    finally:
        reader.close()
    return planned
