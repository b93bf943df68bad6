"""The ledger's records of deliveries: one for every start of a delivering task, updated while it runs.

The pages show them. No row's status depends on them, and a record, unlike a row, keeps its owner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic_core import to_json
from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.engine import Connection

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import TaskInstanceRef, shortened
from halo_provider.ledger.statuses import RowStatus
from halo_provider.ledger.tables import DELIVERY_COUNTS, deliveries

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement

MAX_UNLISTED = 50  # rows
SILENCE_TIMEOUT = 60.0  # seconds without an update after which a delivery that has not ended counts as lost
MINUTE = 60.0  # seconds
HOUR = 3600.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryCounts:
    """How far a delivery is: rows by their status, requests, and how many of these Halo refused.

    `refused` counts the answers by which Halo certainly did not take a request, for its load or for the rate: 429, and
    503 with Retry-After. `request_seconds` is the time of all requests together, `total` how many rows the source has,
    where that is known, `error` the last one, of a request, a row or the run, and `pace` what limits the sending.
    `unlisted` has the place and the reason of rejected rows that the ledger has not, the first `MAX_UNLISTED` of them:
    rows without a key, and those whose key is another row's.
    """

    delivered: int = 0
    already_delivered: int = 0
    duplicate: int = 0
    rejected: int = 0
    in_doubt: int = 0
    failed: int = 0
    not_attempted: int = 0
    requests: int = 0
    refused: int = 0
    request_seconds: float = 0.0
    seconds: float = 0.0
    total: int | None = None
    error: str | None = None
    pace: str | None = None
    unlisted: Sequence[Sequence[str]] | None = None

    @property
    def settled(self) -> int:
        """Rows whose status in this delivery is known."""
        counts: list[int] = [getattr(self, status.value) for status in RowStatus]
        return sum(counts)

    @property
    def trouble(self) -> int:
        """Rows that this delivery did not bring to Halo, or not for certain."""
        return self.rejected + self.in_doubt + self.failed + self.not_attempted

    @property
    def seconds_per_request(self) -> float:
        """The mean."""
        return self.request_seconds / self.requests if self.requests else 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows that ended, by elapsed time; rows that were given back without an attempt do not count."""
        return (self.settled - self.not_attempted) / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate, where the total is known and something has been settled."""
        if self.total is None or not self.settled:
            return None
        return max(0, self.total - self.settled) * self.seconds / self.settled

    def sentence(self, *, ended: bool) -> str:
        """The same for people, in one line."""
        of_total = f" of {self.total:,}" if self.total is not None and not ended else ""
        statuses = [
            f"{count:,} {status.value.replace('_', ' ')}"
            for status in RowStatus
            if (count := getattr(self, status.value))
        ]
        left = self.seconds_left
        pace = [f"{self.rows_per_second:,.0f} rows/s" if self.rows_per_second >= 1 else ""]
        pace.append(f"in {duration(self.seconds)}" if ended else f"about {duration(left)} left" if left else "")
        pace.append(self.pace or "")
        noun = "row" if self.settled == 1 and not of_total else "rows"
        parts = (f"{self.settled:,}{of_total} {noun}", ", ".join(statuses), ", ".join(filter(None, pace)))
        return "; ".join(filter(None, parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRecord(DeliveryCounts):
    """One delivery: its counts, and the task instance that ran it."""

    namespace: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    def is_running(self, now: datetime) -> bool:
        """Whether it has not ended and was updated lately."""
        return self.ended_at is None and (now - self.updated_at).total_seconds() < SILENCE_TIMEOUT

    def is_lost(self, now: datetime) -> bool:
        """Whether its updates stopped without an end: its process was killed."""
        return self.ended_at is None and not self.is_running(now)


class DeliveryRecords:
    """Writes and reads the records. Every method raises LedgerError where the database cannot be used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def begin(self, owner: str, *, namespace: str, task_instance: TaskInstanceRef, total: int | None) -> None:
        """Start a record; `owner` is the one of the claims."""
        record = {
            "owner": owner,
            "namespace": namespace,
            "dag_id": task_instance.dag_id,
            "run_id": task_instance.run_id,
            "task_id": task_instance.task_id,
            "map_index": task_instance.map_index,
            "try_number": task_instance.try_number,
            "total": total,
            **dict.fromkeys(DELIVERY_COUNTS, 0),
            "request_seconds": 0.0,
            "seconds": 0.0,
        }

        def write(db: Connection) -> None:
            now = self._ledger.times(db).now
            db.execute(insert(deliveries).values({**record, "started_at": now, "updated_at": now}))

        self._ledger.transaction(write)

    def update(self, owner: str, counts: DeliveryCounts, *, ended: bool = False) -> None:
        """Update a record; the last update is the one with `ended`."""
        values = {name: getattr(counts, name) for name in (*DELIVERY_COUNTS, "request_seconds", "seconds")}
        statement = (
            update(deliveries)
            .where(deliveries.c.owner == owner)
            .values(**values, total=counts.total, error=shortened(counts.error), pace=counts.pace)
            .values(unlisted=to_json(counts.unlisted).decode() if counts.unlisted else None)
        )

        def write(db: Connection) -> None:
            now = self._ledger.times(db).now
            db.execute(statement.values(updated_at=now, ended_at=now if ended else None))

        self._ledger.transaction(write)

    def dag_ids(self) -> list[str]:
        """The DAGs that have delivered."""
        statement = select(deliveries.c.dag_id).distinct().where(deliveries.c.dag_id.is_not(None))
        return self._ledger.transaction(lambda db: list(db.scalars(statement)), read_only=True)

    def last_of_each(self, *, dag_ids: Sequence[str]) -> list[DeliveryRecord]:
        """The last delivery of each submission of these DAGs."""
        columns = deliveries.c
        place = (columns.dag_id, columns.namespace)
        last = select(*place, func.max(columns.started_at).label("started_at")).where(columns.dag_id.in_(dag_ids))
        newest = last.group_by(*place).subquery()
        fields = [columns[name] for name in DeliveryRecord.__dataclass_fields__]
        same = and_(*(columns[name] == newest.c[name] for name in ("dag_id", "namespace", "started_at")))
        statement = select(*fields).select_from(newest.join(deliveries, same))
        return self._ledger.transaction(
            lambda db: [DeliveryRecord(**row) for row in db.execute(statement).mappings()], read_only=True
        )

    def latest(
        self,
        *,
        dag_ids: Sequence[str],
        limit: int,
        run_id: str | None = None,
        task_id: str | None = None,
        map_index: int | None = None,
    ) -> list[DeliveryRecord]:
        """The last deliveries of these DAGs, or of one run, task or mapped task instance, the newest first."""
        columns = deliveries.c
        conditions: list[ColumnElement[bool]] = [columns.dag_id.in_(dag_ids)]
        for column, wanted in ((columns.run_id, run_id), (columns.task_id, task_id), (columns.map_index, map_index)):
            if wanted is not None:
                conditions.append(column == wanted)
        fields = [columns[name] for name in DeliveryRecord.__dataclass_fields__]
        statement = select(*fields).where(*conditions).order_by(columns.started_at.desc()).limit(limit)
        return self._ledger.transaction(
            lambda db: [DeliveryRecord(**row) for row in db.execute(statement).mappings()], read_only=True
        )


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < MINUTE:
        return f"{seconds:.1f} s" if seconds < MINUTE / 6 else f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"
