"""The submissions of one run that are on their way, and the order in which those of one user are sent."""

from collections import deque
from dataclasses import dataclass

from halo_provider.delivery.place import Send, Wait, candidate
from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import RowError
from halo_provider.ledger.ledger import Candidate, Change
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.sources.rows import Row
from halo_provider.submission import RenderedSubmission

HOLDS_BACK = frozenset({RowStatus.IN_DOUBT, RowStatus.FAILED, RowStatus.NOT_ATTEMPTED})  # its user's later rows wait


@dataclass(slots=True, eq=False)
class Work:
    """One submission on its way. `claimed` is False while another run holds it; `doubtful` once Halo may have it."""

    row: Row
    submission: RenderedSubmission
    change: Change | None = None
    claimed: bool = False
    doubtful: bool = False
    settled: bool = False
    attempts: int = 0

    @classmethod
    def of(cls, row: Row, place: Send | Wait) -> "Work":
        """The work that a place makes of a row."""
        work = cls(row, place.submission, place.change)
        if isinstance(place, Send):
            work.claim(place)
        return work

    def claim(self, place: Send) -> None:
        """This run holds the claim from now on."""
        self.claimed = True
        self.doubtful = place.doubtful

    @property
    def row_key(self) -> str:
        """The row's."""
        return self.submission.row_key

    @property
    def user_id(self) -> str | None:
        """The submission's."""
        return self.submission.user_id

    @property
    def ledger_key(self) -> str:
        """Its key in the ledger; a follow-up has a key of its own."""
        return self.change.ledger_key if self.change else self.submission.row_key

    @property
    def candidate(self) -> Candidate:
        """What the ledger is asked about it."""
        return candidate(self.submission, self.change)

    @property
    def resting_ledger_status(self) -> LedgerStatus:
        """What the ledger holds between attempts, and once the claim is given back."""
        return LedgerStatus.IN_DOUBT if self.doubtful else LedgerStatus.PENDING

    @property
    def resting_status(self) -> RowStatus:
        """How it ends when the claim is given back: what Halo may have is in doubt, whenever it was sent."""
        return RowStatus.IN_DOUBT if self.doubtful else RowStatus.NOT_ATTEMPTED

    def outcome(
        self, status: RowStatus, reason: str | None = None, *, detail: str | None = None, session_id: str | None = None
    ) -> Outcome:
        """Its end in this run."""
        return Outcome(
            row=self.row,
            row_key=self.row_key,
            user_id=self.user_id,
            status=status,
            session_id=session_id,
            attempts=self.attempts,
            error=RowError(reason, detail=detail) if reason else None,
        )


class UserQueues:
    """One queue for each user: the first in it is sent, the others wait. Anonymous submissions never wait."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Work]] = {}
        self._blocked: set[str] = set()

    def is_blocked(self, user_id: str | None) -> bool:
        """Whether an earlier submission of the user was not delivered, so that later ones wait for another run."""
        return user_id in self._blocked

    def block(self, user_id: str | None) -> None:
        """Send nothing more of this user in this run."""
        if user_id is not None:
            self._blocked.add(user_id)

    def enter(self, work: Work) -> bool:
        """Put it at the end of its user's queue; whether it is the first there, and may be sent."""
        if work.user_id is None:
            return True
        queue = self._queues.setdefault(work.user_id, deque())
        queue.append(work)
        return queue[0] is work

    def leave(self, work: Work) -> list[Work]:
        """Take the first of a queue out: the next one that may be sent, or all the others where the user is blocked.

        One that is not the first of its queue leaves nothing behind: it never entered, or was given back before.
        """
        if work.user_id is None:
            return []
        queue = self._queues.get(work.user_id)
        if not queue or queue[0] is not work:
            return []
        queue.popleft()
        if queue and work.user_id not in self._blocked:
            return [queue[0]]
        del self._queues[work.user_id]
        return list(queue)
