"""rehearse(): what a delivery would do, without sending or writing anything."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halo_provider.delivery.delivery import OnChange
from halo_provider.delivery.prepare import Reader, Reading, candidate, candidate_of, next_change
from halo_provider.exceptions import RowError
from halo_provider.ledger.ledger import Change, Claim, Claimant, OnInDoubt, Standing
from halo_provider.ledger.statuses import Fate
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Submission, masked

EXAMPLES = 3  # rendered requests shown

FATES = {
    Standing.DELIVERED: Fate.ALREADY_DELIVERED,
    Standing.REJECTED: Fate.REJECTED,
    Standing.IN_DOUBT: Fate.IN_DOUBT,
    Standing.CLAIMED: Fate.NOT_ATTEMPTED,
    Standing.BUSY: Fate.NOT_ATTEMPTED,
}


@dataclass(slots=True, kw_only=True)
class Rehearsal:
    """What would happen: `would_send` rows (not_attempted among the counts), and the first of them, masked."""

    counts: Counter[Fate] = field(default_factory=Counter)
    read: int = 0
    would_send: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, int]:
        """`read` and the count of every fate, as a delivery reports them."""
        return {"read": self.read, **{fate.value: self.counts[fate] for fate in Fate}}


def rehearse(
    source: Source,
    *,
    submission: Submission,
    claimant: Claimant,
    on_in_doubt: OnInDoubt,
    on_change: OnChange = "skip",
    batch_size: int = 500,
    on_rejected: Callable[[Row, RowError], None] = lambda _row, _error: None,
) -> Rehearsal:
    """Read, map, validate, and look the ledger up. Raises SourceError and LedgerError."""
    rehearsal = Rehearsal()
    reader = Reader(source, submission, batch_size=batch_size)
    try:
        while readings := reader.next_batch():
            candidates = [candidate_of(reading) for reading in readings if reading.is_candidate]
            claims = claimant.preview(candidates, on_in_doubt=on_in_doubt)
            if on_change == "follow_up":
                claims |= _follow_ups(readings, claims, claimant, on_in_doubt)
            for reading in readings:
                claim = claims[reading.row_key] if reading.is_candidate and reading.row_key else None
                fate = FATES[claim.standing] if claim else Fate.DUPLICATE if reading.duplicate else Fate.REJECTED
                rehearsal.counts[fate] += 1
                if fate is Fate.REJECTED:
                    on_rejected(reading.row, reading.error or RowError((claim and claim.error) or "rejected before"))
                elif fate is Fate.NOT_ATTEMPTED and len(rehearsal.examples) < EXAMPLES and reading.submission:
                    rehearsal.examples.append(masked(submission, reading.submission, reading.row.values))
            rehearsal.read += len(readings)
    finally:
        reader.close()
    rehearsal.would_send = rehearsal.counts[Fate.NOT_ATTEMPTED]
    return rehearsal


def _follow_ups(
    readings: Sequence[Reading], claims: Mapping[str, Claim], claimant: Claimant, on_in_doubt: OnInDoubt
) -> dict[str, Claim]:
    """Where the follow-ups of delivered rows stand that have changed since, by the rows' keys."""
    changes: list[Change] = []
    candidates = []
    for reading in readings:
        claim = claims.get(reading.row_key or "") if reading.is_candidate else None
        if claim is not None and reading.submission is not None and claim.has_changed and claim.session_id:
            change = next_change(reading.submission, claim)
            changes.append(change)
            candidates.append(candidate(reading.submission, change))
    found = claimant.preview(candidates, on_in_doubt=on_in_doubt)
    return {change.row_key: found[change.ledger_key] for change in changes}
