"""dry_run(): what a delivery would do, without sending or writing anything."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halo_provider.delivery.delivery import OnChange
from halo_provider.delivery.prepare import PreparedRow, Reader, candidate, candidate_of, next_change
from halo_provider.exceptions import RowError
from halo_provider.ledger import Change, Claim, ClaimResult, LeaseHolder, OnInDoubt
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Submission, masked

EXAMPLES = 3  # rendered requests shown

STATUSES = {
    ClaimResult.DELIVERED: RowStatus.ALREADY_DELIVERED,
    ClaimResult.REJECTED: RowStatus.REJECTED,
    ClaimResult.IN_DOUBT: RowStatus.IN_DOUBT,
    ClaimResult.CLAIMED: RowStatus.NOT_ATTEMPTED,
    ClaimResult.BUSY: RowStatus.NOT_ATTEMPTED,
}


@dataclass(slots=True, kw_only=True)
class DryRun:
    """What would happen: `would_send` rows (not_attempted among the counts), and the first of them, masked."""

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
    on_in_doubt: OnInDoubt,
    on_change: OnChange = "skip",
    batch_size: int = 500,
    on_rejected: Callable[[Row, RowError], None] = lambda _row, _error: None,
) -> DryRun:
    """Read, map, validate, and look the ledger up. Raises SourceError and LedgerError."""
    planned = DryRun()
    reader = Reader(source, submission, batch_size=batch_size)
    try:
        while prepared_rows := reader.next_batch():
            candidates = [candidate_of(prepared) for prepared in prepared_rows if prepared.is_candidate]
            claims = lease_holder.preview(candidates, on_in_doubt=on_in_doubt)
            if on_change == "follow_up":
                claims |= _follow_ups(prepared_rows, claims, lease_holder, on_in_doubt)
            for prepared in prepared_rows:
                claim = claims[prepared.row_key] if prepared.is_candidate and prepared.row_key else None
                status = (
                    STATUSES[claim.result]
                    if claim
                    else RowStatus.DUPLICATE
                    if prepared.duplicate
                    else RowStatus.REJECTED
                )
                planned.counts[status] += 1
                if status is RowStatus.REJECTED:
                    on_rejected(prepared.row, prepared.error or RowError((claim and claim.error) or "rejected before"))
                elif status is RowStatus.NOT_ATTEMPTED and len(planned.examples) < EXAMPLES and prepared.submission:
                    planned.examples.append(masked(submission, prepared.submission, prepared.row.values))
            planned.read += len(prepared_rows)
    finally:
        reader.close()
    planned.would_send = planned.counts[RowStatus.NOT_ATTEMPTED]
    return planned


def _follow_ups(
    prepared_rows: Sequence[PreparedRow], claims: Mapping[str, Claim], lease_holder: LeaseHolder, on_in_doubt: OnInDoubt
) -> dict[str, Claim]:
    """Where the follow-ups of delivered rows stand that have changed since, by the rows' keys."""
    changes: list[Change] = []
    candidates = []
    for prepared in prepared_rows:
        claim = claims.get(prepared.row_key or "") if prepared.is_candidate else None
        if claim is not None and prepared.submission is not None and claim.has_changed and claim.session_id:
            change = next_change(prepared.submission, claim)
            changes.append(change)
            candidates.append(candidate(prepared.submission, change))
    found = lease_holder.preview(candidates, on_in_doubt=on_in_doubt)
    return {change.row_key: found[change.ledger_key] for change in changes}
