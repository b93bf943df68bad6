"""The submissions of one run that are on their way, and the order in which those of one user are sent."""

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from halo_provider.delivery.place import Send, Wait
from halo_provider.delivery.prepare import PreparedRow
from halo_provider.delivery.report import Outcome
from halo_provider.delivery.send import Sending
from halo_provider.exceptions import RowError
from halo_provider.ledger.rules import Change, Doubt
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.sources.rows import Row
from halo_provider.submission import RenderedSubmission

HOLDS_BACK = frozenset({RowStatus.IN_DOUBT, RowStatus.FAILED, RowStatus.NOT_ATTEMPTED})  # its user's later rows wait


@dataclass(slots=True, eq=False)
class Work:
    """One submission on its way. `claimed` is False while another run holds it; `doubtful` once Halo may have it.

    `doubt` is what Halo may have of it from an earlier run; `doubt_since` is when this run's first attempt began whose
    outcome is not known. `failures` are attempts that used one up.
    """

    prepared: PreparedRow
    submission: RenderedSubmission
    change: Change | None = None
    claimed: bool = False
    doubtful: bool = False
    doubt: Doubt | None = None
    doubt_since: datetime | None = None
    settled: bool = False
    attempts: int = 0
    failures: int = 0

    @classmethod
    def of(cls, prepared: PreparedRow, place: Send | Wait) -> "Work":
        """The work that a place makes of a row."""
        work = cls(prepared, place.submission)
        work.take(place)
        return work

    def take(self, place: Send | Wait) -> None:
        """Take a place, the first one or a later one."""
        self.submission = place.submission
        self.change = place.change
        if isinstance(place, Send):
            self.claimed = True
            self.doubtful = place.doubt is not None
            self.doubt = place.doubt

    @property
    def row(self) -> Row:
        """The row it was made of."""
        return self.prepared.row

    @property
    def row_key(self) -> str:
        """The row's."""
        return self.submission.row_key

    @property
    def user_id(self) -> str | None:
        """The submission's."""
        return self.submission.user_id

    @property
    def queue_key(self) -> str:
        """Which queue it waits in: its user's, or one of its own."""
        return self.submission.user_id or f"\t{self.submission.row_key}"

    @property
    def ledger_key(self) -> str:
        """Its key in the ledger; a follow-up has a key of its own."""
        return self.change.ledger_key if self.change else self.submission.row_key

    @property
    def is_another_content(self) -> bool:
        """Whether Halo may have another content of it than is to be sent now."""
        return self.doubt is not None and self.doubt.payload_hash != self.submission.payload_hash

    @property
    def resting_ledger_status(self) -> LedgerStatus:
        """What the ledger holds between attempts, and once the claim is given back."""
        return LedgerStatus.IN_DOUBT if self.doubtful else LedgerStatus.PENDING

    @property
    def resting_status(self) -> RowStatus:
        """How it ends when the claim is given back: what Halo may have is in doubt, whenever it was sent."""
        return RowStatus.IN_DOUBT if self.doubtful else RowStatus.NOT_ATTEMPTED

    def outcome(self, status: RowStatus, reason: str | None = None, *, session_id: str | None = None) -> Outcome:
        """Its end in this run."""
        return Outcome(
            row=self.row,
            row_key=self.row_key,
            user_id=self.user_id,
            status=status,
            session_id=session_id,
            attempts=self.attempts,
            error=RowError(reason) if reason else None,
        )


class UserQueues:
    """One queue for each user: the first in it is sent, the others wait. Anonymous submissions have one for each row.

    In a queue no claimed submission stands behind one that is not: a run holds no claim while it waits for another
    run's row, so that two runs never wait for each other.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Work]] = {}
        self._closed: set[str] = set()

    def is_closed(self, user_id: str | None) -> bool:
        """Whether an earlier submission of the user was not delivered, so that later ones wait for another run."""
        return user_id in self._closed

    def close(self, user_id: str | None) -> None:
        """Let no later submission of this user enter; those that have entered are still sent."""
        if user_id is not None:
            self._closed.add(user_id)

    def waits_for_another_run(self, work: Work) -> bool:
        """Whether a submission of the same queue is not claimed by this run."""
        queue = self._queues.get(work.queue_key)
        return queue is not None and not queue[-1].claimed

    def enter(self, work: Work) -> bool:
        """Put it at the end of its queue; whether it is the first there, and may be sent."""
        queue = self._queues.setdefault(work.queue_key, deque())
        queue.append(work)
        return queue[0] is work

    def leave(self, work: Work, *, delivered: bool) -> list[Work]:
        """Take the first of a queue out: the next one that may be sent, or all the others where it was not delivered.

        One that is not the first of its queue leaves nothing behind: it never entered, or was given back before.
        """
        if not delivered:
            self.close(work.user_id)
        queue = self._queues.get(work.queue_key)
        if not queue or queue[0] is not work:
            return []
        queue.popleft()
        if queue and delivered:
            return [queue[0]]
        del self._queues[work.queue_key]
        return list(queue)


class SendQueue(asyncio.Queue[Sending | None]):
    """What may be sent now: what Halo refused before, and the others, by turns.

    Behind all rows that were read, a refused one would tell late whether Halo refuses it again; before all of them,
    many that Halo always refuses would let no other through.
    """

    def _init(self, maxsize: int) -> None:  # noqa: ARG002 -- it has no bound
        self._refused: deque[Sending | None] = deque()
        self._others: deque[Sending | None] = deque()
        self._gave_refused = False

    def qsize(self) -> int:
        """How many there are."""
        return len(self._refused) + len(self._others)

    def empty(self) -> bool:
        """Whether there is none."""
        return not self._refused and not self._others

    def _put(self, item: Sending | None) -> None:
        was_refused = item is not None and item.refusals.count > 0
        (self._refused if was_refused else self._others).append(item)

    def _get(self) -> Sending | None:
        self._gave_refused = bool(self._refused) and not (self._gave_refused and self._others)
        return (self._refused if self._gave_refused else self._others).popleft()
