"""The tickets of delivered rows, as they were last seen in Halo. No row's status depends on them."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import and_, bindparam, func, not_, or_, select, update
from sqlalchemy.engine import Connection

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import MAX_TICKET_STATUS, submissions

Until = Literal["created", "resolved"]

NO_TICKET = "none"  # Halo answered, and made no ticket
NOT_FOUND = "not_found"  # Halo's tools do not know the row's session
WITHOUT = (NO_TICKET, NOT_FOUND)
# Halo documents Resolved and Spam; the others are what such a status is usually called.
RESOLVED = ("resolved", "closed", "solved", "done", "spam")


class TicketFact(NamedTuple):
    """What is known of a row's ticket. `status` is Halo's word, `NO_TICKET` or `NOT_FOUND`; `at` is since when."""

    ticket_id: str | None
    status: str
    at: datetime | None

    @property
    def is_resolved(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.status in RESOLVED


class FollowedRow(NamedTuple):
    """A delivered row. `age` is how many seconds ago it was delivered; without a `namespace` the ledger has no row."""

    namespace: str | None
    row_key: str
    user_id: str | None
    session_id: str
    delivered_at: datetime
    age: float
    known: TicketFact | None = None


class Waiting(NamedTuple):
    """How many rows are not settled, and when the first of them was delivered."""

    rows: int
    since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketCounts:
    """What is known of the tickets of some rows.

    `rows` = `with_ticket` + `without_ticket` + `not_found` + `waiting`. `tickets` are fewer than `with_ticket` where
    Halo merged a user's tickets. `statuses` counts the rows with a ticket by its status.
    """

    rows: int = 0
    with_ticket: int = 0
    tickets: int = 0
    without_ticket: int = 0
    not_found: int = 0
    waiting: int = 0
    statuses: Mapping[str, int]

    @property
    def resolved(self) -> int:
        """Rows whose ticket is at its end."""
        return sum(count for status, count in self.statuses.items() if status in RESOLVED)

    def is_settled(self, until: Until) -> bool:
        """Whether there is nothing left to wait for."""
        return self.waiting == 0 and (until == "created" or self.resolved == self.with_ticket)

    def sentence(self) -> str:
        """The same for people, in one line."""
        merged = f" for {self.with_ticket:,} rows" if self.tickets != self.with_ticket else ""
        parts = [f"{self.tickets:,} {'ticket' if self.tickets == 1 else 'tickets'}{merged}"]
        if self.resolved:
            parts[0] += f", {self.resolved:,} resolved" if not merged else f", those of {self.resolved:,} resolved"
        parts.append(f"{self.without_ticket:,} answered without a ticket")
        parts.append(f"{self.not_found:,} not to be found")
        if self.waiting:
            parts.append(f"{self.waiting:,} not known yet")
        return ", ".join(parts)


class TicketRows:
    """Reads and records the tickets of delivered rows. Every method blocks, and raises LedgerError."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def waiting(self, wanted: RowFilter, *, until: Until | None) -> Waiting:
        """The rows that are not settled; `until=None` is all rows."""
        columns = submissions.c
        statement = select(func.count(), func.min(columns.updated_at)).where(*_delivered(wanted), *_open(until))
        rows, since = self._ledger.transaction(lambda db: db.execute(statement).one(), read_only=True)
        return Waiting(rows, since)

    def page(
        self, wanted: RowFilter, *, until: Until | None, after: RowCursor | None, limit: int
    ) -> tuple[list[FollowedRow], RowCursor | None]:
        """One page of rows, and the cursor of the next; `until=None` is all rows, settled ones too."""
        columns = submissions.c
        statement = select(submissions).where(*_delivered(wanted), *_open(until))
        if after is not None:
            behind = and_(columns.namespace == after.namespace, columns.row_key > after.row_key)
            statement = statement.where(or_(columns.namespace > after.namespace, behind))
        statement = statement.order_by(columns.namespace, columns.row_key).limit(limit)

        def read(db: Connection) -> tuple[list[Any], datetime]:
            return list(db.execute(statement)), self._ledger.times(db).now

        found, now = self._ledger.transaction(read, read_only=True)
        cursor = RowCursor(found[-1].namespace, found[-1].row_key) if len(found) == limit else None
        return [_followed(row, now) for row in found], cursor

    def known_sessions(self, wanted: RowFilter) -> set[str]:
        """Which of the wanted sessions the ledger has as delivered rows."""
        statement = select(submissions.c.session_id).where(*_delivered(wanted))
        return set(self._ledger.transaction(lambda db: list(db.scalars(statement)), read_only=True))

    def record(self, facts: Iterable[tuple[FollowedRow, TicketFact]]) -> None:
        """Keep what was seen; a row that the ledger does not have as delivered is left."""
        columns = submissions.c
        seen = [(row, fact) for row, fact in facts if row.namespace is not None and fact != row.known]
        if not seen:
            return
        statement = (
            update(submissions)
            .where(
                columns.namespace == bindparam("of_namespace"),
                columns.row_key == bindparam("of_row_key"),
                columns.status == LedgerStatus.DELIVERED.value,
            )
            .values(
                ticket_id=bindparam("to_ticket_id"),
                ticket_status=bindparam("to_ticket_status"),
                ticket_at=bindparam("to_ticket_at"),
            )
        )

        def write(db: Connection) -> None:
            now = self._ledger.times(db).now
            db.execute(statement, [_written(row, fact, now) for row, fact in seen])

        self._ledger.transaction(write)

    def counts(self, wanted: RowFilter) -> TicketCounts:
        """What is known of the wanted rows."""
        columns = submissions.c
        by_status = select(columns.ticket_status, func.count()).where(*_delivered(wanted))
        tickets = select(func.count(columns.ticket_id.distinct())).where(*_delivered(wanted))

        def read(db: Connection) -> tuple[Any, int]:
            return list(db.execute(by_status.group_by(columns.ticket_status))), db.execute(tickets).scalar_one()

        found, number = self._ledger.transaction(read, read_only=True)
        return counts_of(dict(found), tickets=number)


def counts_of(by_status: Mapping[str | None, int], *, tickets: int) -> TicketCounts:
    """The counts of rows by their ticket's status, which is None where nothing is known yet."""
    statuses = {status: count for status, count in by_status.items() if status is not None and status not in WITHOUT}
    return TicketCounts(
        rows=sum(by_status.values()),
        with_ticket=sum(statuses.values()),
        tickets=tickets,
        without_ticket=by_status.get(NO_TICKET, 0),
        not_found=by_status.get(NOT_FOUND, 0),
        waiting=by_status.get(None, 0),
        statuses=dict(sorted(statuses.items())),
    )


def with_others(counts: TicketCounts, others: Collection[TicketFact | None]) -> TicketCounts:
    """The counts, and those of sessions that the ledger does not have; None is one of which nothing is known yet."""
    by_status: Counter[str | None] = Counter(counts.statuses)
    by_status.update({NO_TICKET: counts.without_ticket, NOT_FOUND: counts.not_found, None: counts.waiting})
    by_status.update(fact.status if fact else None for fact in others)
    tickets = {fact.ticket_id for fact in others if fact and fact.ticket_id}
    return counts_of(
        {status: count for status, count in by_status.items() if count}, tickets=counts.tickets + len(tickets)
    )


def _delivered(wanted: RowFilter) -> Sequence[Any]:
    columns = submissions.c
    return [*wanted.conditions(), columns.status == LedgerStatus.DELIVERED.value, columns.session_id.is_not(None)]


def _open(until: Until | None) -> Sequence[Any]:
    """What is still waited for."""
    status = submissions.c.ticket_status
    match until:
        case "created":
            return [status.is_(None)]
        case "resolved":
            return [or_(status.is_(None), not_(status.in_([*RESOLVED, *WITHOUT])))]
    return []


def _followed(row: Any, now: datetime) -> FollowedRow:
    known = TicketFact(row.ticket_id, row.ticket_status, row.ticket_at) if row.ticket_status is not None else None
    age = max(0.0, (now - row.updated_at).total_seconds())
    return FollowedRow(row.namespace, row.row_key, row.user_id, row.session_id, row.updated_at, age, known)


def _written(row: FollowedRow, fact: TicketFact, now: datetime) -> dict[str, Any]:
    is_same = row.known is not None and (row.known.ticket_id, row.known.status) == (fact.ticket_id, fact.status)
    return {
        "of_namespace": row.namespace,
        "of_row_key": row.row_key,
        "to_ticket_id": fact.ticket_id,
        "to_ticket_status": fact.status[:MAX_TICKET_STATUS],
        "to_ticket_at": fact.at or (row.known.at if is_same and row.known else now),
    }
