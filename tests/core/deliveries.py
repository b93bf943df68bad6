"""Notes delivered from rows to the simulator, over a ledger that can be looked into."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import select

from halo_provider.client.client import HaloClient
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.refusals import Backoff
from halo_provider.delivery.report import DeliveryReport, Outcome
from halo_provider.ledger import LEASE, LeaseHolder, Ledger, TaskInstanceRef
from halo_provider.ledger.statuses import RowStatus
from halo_provider.ledger.tables import submissions
from halo_provider.simulator import EXAMPLE_WIDGET_KEY
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Source
from halo_provider.submission import Submission, User
from tests.waiting import TIMEOUT

NAMESPACE = "halo_default/note"
NOTE = Submission(name="note", key="id", user=User(id="user"), message="{text}")
AT_ONCE = Backoff(base=0.001)

OPTIONS = {option.name for option in fields(DeliveryOptions)}

Rows = Source | Sequence[dict[str, Any]]


def note(row_key: str, *, user: str | None = None, text: str = "Thank you.") -> dict[str, Any]:
    """A row; by default each has a user of its own."""
    return {"id": row_key, "user": user or f"user-{row_key}", "text": text}


def notes(count: int, *, user: str | None = None) -> list[dict[str, Any]]:
    """So many rows, with the keys 0, 1, 2 and so on."""
    return [note(str(number), user=user, text=f"Note {number}.") for number in range(count)]


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that another thread does. Raises TimeoutError where that takes longer than TIMEOUT.

    The condition should stay true once it is: on a busy machine it may be looked at late.
    """
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 -- the simulator has no event to wait for
            await asyncio.sleep(0.002)


def rows_in(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Everything the ledger holds, by row key."""
    found = ledger.transaction(lambda db: db.execute(select(submissions)).mappings().all())
    return {row["row_key"]: dict(row) for row in found}


class Teller(DeliveryObserver):
    """An observer that passes every row's outcome on to a function."""

    def __init__(self, on_outcome: Callable[[Outcome], None]) -> None:
        self.row_ended = on_outcome


@dataclass(slots=True, kw_only=True)
class Run:
    """What one delivery told: its report, and every row's outcome in the order of their ends."""

    report: DeliveryReport
    outcomes: list[Outcome]

    @property
    def counts(self) -> dict[RowStatus, int]:
        """The fates that occurred. They add up, and the outcomes told one by one are the same."""
        self.report.summary()
        assert Counter(outcome.status for outcome in self.outcomes) == +self.report.counts
        return dict(+self.report.counts)

    def of(self, row_key: str) -> Outcome:
        """The outcome of the only row with this key."""
        (outcome,) = (outcome for outcome in self.outcomes if outcome.row_key == row_key)
        return outcome


@dataclass(slots=True, kw_only=True)
class Deliveries:
    """Deliveries of notes to one Halo over one ledger. `outcomes` are those of all of them."""

    url: str
    ledger: Ledger
    outcomes: list[Outcome] = field(default_factory=list)

    def lease_holder(self, *, lease: float = LEASE) -> LeaseHolder:
        """A new owner of claims."""
        return self.ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(), lease=lease)

    def client(self, *, timeout: float = 10.0) -> HaloClient:
        """A client of this Halo whose attempts last so many seconds at most."""
        return HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=self.url, timeout=timeout)

    async def deliver(self, rows: Rows, *, timeout: float = 10.0, **options: Any) -> Run:  # noqa: ASYNC109 -- HTTP's
        """Deliver the rows on the running loop."""
        outcomes: list[Outcome] = []
        tell = options.pop("on_outcome", lambda _: None)

        def on_outcome(outcome: Outcome) -> None:
            outcomes.append(outcome)
            self.outcomes.append(outcome)
            tell(outcome)

        chosen = {"backoff": AT_ONCE} | {name: options.pop(name) for name in OPTIONS & options.keys()}
        parts = {"lease_holder": self.lease_holder(), "submission": NOTE, "observer": Teller(on_outcome)}
        source = ListSource(rows) if isinstance(rows, Sequence) else rows
        async with self.client(timeout=timeout) as client:
            report = await deliver(source, **{"client": client, **parts, **options}, options=DeliveryOptions(**chosen))
        return Run(report=report, outcomes=outcomes)

    def run(self, rows: Rows, **options: Any) -> Run:
        """Deliver the rows from beginning to end."""
        return asyncio.run(self.deliver(rows, **options))

    def statuses(self) -> dict[str, str]:
        """The ledger's status of every row, by row key."""
        return {row_key: row["status"] for row_key, row in rows_in(self.ledger).items()}
