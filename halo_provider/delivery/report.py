"""What a delivery tells: the end of every row, the counts, and why it ended early."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from halo_provider.delivery.pace import Pace
from halo_provider.exceptions import (
    AccountingError,
    DeliveryIncompleteError,
    HaloCallError,
    RowError,
    RowsChangedError,
    Verdict,
)
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.rows import Row


class Outcome(NamedTuple):
    """One row's end in this run. `error` says why, where it is not delivered.

    `is_listed` is false for a row that cannot have a line of its own in the ledger: without a key, or with another
    row's.
    """

    row: Row
    row_key: str | None
    user_id: str | None
    status: RowStatus
    session_id: str | None = None
    attempts: int = 0
    error: RowError | None = None
    is_listed: bool = True


@dataclass(slots=True, kw_only=True)
class DeliveryReport:
    """What a run did. `error` is what ended it early, `stopped` the same in words; `pace` what limited most requests.

    `first_reasons` says why the first row of a status ended so. `observer_error` is what an observer raised, such as a
    results file on a full disk: the run went on without it.
    """

    counts: Counter[RowStatus] = field(default_factory=Counter)
    read: int = 0
    requests: int = 0
    refused: int = 0
    changed: int = 0
    changed_error: RowsChangedError | None = None
    first_reasons: dict[RowStatus, str] = field(default_factory=dict)
    seconds: float = 0.0
    pace: Pace | None = None
    stopped: str | None = None
    error: Exception | None = None
    observer_error: Exception | None = None

    def add(self, outcome: Outcome) -> None:
        """Count a row that has ended."""
        self.counts[outcome.status] += 1
        if outcome.error is not None and outcome.status not in self.first_reasons:
            self.first_reasons[outcome.status] = f"row {outcome.row.place}: {outcome.error}"

    def summary(self) -> dict[str, int]:
        """`read` and the count of every status. Raises AccountingError where they do not balance."""
        counts = {"read": self.read, **{status.value: self.counts[status] for status in RowStatus}}
        if self.counts.total() != self.read:
            raise AccountingError(counts)
        return counts

    def failure(self) -> Exception | None:
        """Why not every row that could be delivered was: the typed error behind it, or the rows it left unsettled."""
        error = self.error
        if error is not None and not (isinstance(error, HaloCallError) and error.verdict is not Verdict.FORBIDDEN):
            return error
        counts = self.counts
        if not (
            self.stopped or counts[RowStatus.FAILED] or counts[RowStatus.IN_DOUBT] or counts[RowStatus.NOT_ATTEMPTED]
        ):
            return self.changed_error or self.observer_error
        return DeliveryIncompleteError(
            failed=counts[RowStatus.FAILED],
            in_doubt=counts[RowStatus.IN_DOUBT],
            not_attempted=counts[RowStatus.NOT_ATTEMPTED],
            reason=self.stopped or self._first_reasons(),
            retry_after=error.retry_after if error is not None else None,
        )

    def _first_reasons(self) -> str | None:
        """Why the first row of each unsettled status was not delivered, in its own words."""
        unsettled = (RowStatus.FAILED, RowStatus.IN_DOUBT, RowStatus.NOT_ATTEMPTED)
        reasons = [self.first_reasons[status] for status in unsettled if status in self.first_reasons]
        return "; ".join(reasons) or None


class SessionIds:
    """The session ids of the first `limit` rows that have one, by row key."""

    def __init__(self, limit: int) -> None:
        self.found: dict[str, str] = {}
        self.truncated = False
        self._limit = limit

    def add(self, outcome: Outcome) -> None:
        """Take the outcome's, if it has one and there is room."""
        if outcome.session_id is None or outcome.row_key is None:
            return
        if len(self.found) < self._limit:
            self.found[outcome.row_key] = outcome.session_id
        else:
            self.truncated = True
