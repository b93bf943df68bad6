"""The ledger's rows for people: found, and settled by hand, which each row's history tells."""

import getpass
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, insert, not_, or_, select, tuple_, update
from sqlalchemy.engine import Connection

from halo_provider.ledger import rules
from halo_provider.ledger.claims import count_changes
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import Change
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions

if TYPE_CHECKING:
    from sqlalchemy.sql import Select

PAGE = 100  # rows of a page, unless told otherwise
SEARCHED = 50_000  # rows of a status that one page of a search reads
CHUNK = 500  # rows changed in one transaction

# The statuses from which a person may move a row whose lease is over. A row in flight whose lease ran out is in doubt,
# though only the next claim would write that.
PRUNE_FROM = (LedgerStatus.DELIVERED, LedgerStatus.REJECTED)
REQUEUE_FROM = tuple(status for status in LedgerStatus if status not in {LedgerStatus.PENDING, LedgerStatus.DELIVERED})
RESOLVE_FROM = tuple(status for status in LedgerStatus if status is not LedgerStatus.DELIVERED)
REJECT_FROM = tuple(status for status in LedgerStatus if status not in PRUNE_FROM)
BY_URGENCY = (  # those that wait for a decision first
    LedgerStatus.IN_DOUBT,
    LedgerStatus.FAILED,
    LedgerStatus.REJECTED,
    LedgerStatus.PENDING,
    LedgerStatus.IN_FLIGHT,
    LedgerStatus.DELIVERED,
)


def current_user() -> str:
    """The name of who is logged in; in containers some have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """Which rows: every part given must hold. `search` is found in the row key, the user id or the session id.

    `ticket_statuses` are Halo's words, or `NO_TICKET` and `NOT_FOUND` of `ledger.tickets`. `updated_at` is for a row
    that must be as it was when it was read.
    """

    namespace: str | None = None
    statuses: tuple[LedgerStatus, ...] = ()
    row_keys: tuple[str, ...] = ()
    dag_ids: tuple[str, ...] | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    session_ids: tuple[str, ...] = ()
    ticket_statuses: tuple[str, ...] = ()
    search: str | None = None
    updated_at: datetime | None = None

    def conditions(self) -> list[Any]:
        """The same as SQL."""
        columns = submissions.c
        conditions: list[Any] = []
        for column, wanted in (
            (columns.namespace, self.namespace),
            (columns.run_id, self.run_id),
            (columns.task_id, self.task_id),
            (columns.map_index, self.map_index),
            (columns.updated_at, self.updated_at),
        ):
            if wanted is not None:
                conditions.append(column == wanted)
        if self.statuses:
            conditions.append(columns.status.in_([status.value for status in self.statuses]))
        if self.row_keys:
            conditions.append(columns.row_key.in_(self.row_keys))
        if self.session_ids:
            conditions.append(columns.session_id.in_(self.session_ids))
        if self.ticket_statuses:
            conditions.append(columns.ticket_status.in_(self.ticket_statuses))
        if self.dag_ids is not None:
            conditions.append(columns.dag_id.in_(self.dag_ids))
        if self.search:
            found_in = (columns.row_key, columns.user_id, columns.session_id)
            conditions.append(or_(*(column.contains(self.search, autoescape=True) for column in found_in)))
        return conditions


@dataclass(frozen=True, slots=True)
class RowCursor:
    """The last row of a page: the next page begins after it."""

    namespace: str
    row_key: str


@dataclass(frozen=True, slots=True)
class UrgencyCursor:
    """The last row of a page of `LedgerAdmin.urgent_first`."""

    status: LedgerStatus
    row: RowCursor

    @classmethod
    def of(cls, row: Any) -> "UrgencyCursor":
        """The cursor of this row."""
        return cls(row.status, RowCursor(row.namespace, row.row_key))


@dataclass(frozen=True, slots=True)
class UrgencyPage:
    """Rows, and the cursor after which the next page begins; None on the last page."""

    rows: list[Any]
    following: UrgencyCursor | None


class LedgerAdmin:
    """Finds rows and settles them; `actor` is the name of the person, for the rows' history.

    Every method raises LedgerError where the database cannot be used. A row with a live lease is never changed. Each
    settling method returns how many rows it changed.
    """

    def __init__(self, ledger: Ledger, *, actor: str) -> None:
        self._ledger = ledger
        self._actor = actor

    def page(
        self, wanted: RowFilter, *, after: RowCursor | None = None, until: RowCursor | None = None, limit: int = PAGE
    ) -> list[Any]:
        """One page of rows, in the order of namespace and key, none of them beyond `until`."""
        columns = submissions.c
        statement = select(submissions).where(*wanted.conditions())
        if after is not None:
            statement = statement.where(self._behind(after, wanted))
        if until is not None:
            statement = statement.where(not_(self._behind(until, wanted)))
        return self._all(statement.order_by(columns.namespace, columns.row_key).limit(limit))

    def urgent_first(self, wanted: RowFilter, *, after: UrgencyCursor | None = None, limit: int = PAGE) -> UrgencyPage:
        """One page of rows, those that wait for a decision first, then in the order of namespace and key.

        One query for each status: an index has the rows of one DAG, status and run in this order, however many they
        are. A search reads `SEARCHED` rows of a status and leaves the rest to the next page, so that none takes long.
        """
        statuses = [status for status in BY_URGENCY if status in wanted.statuses or not wanted.statuses]
        found: list[Any] = []
        for status in statuses[statuses.index(after.status) :] if after else statuses:
            behind = after.row if after and status is after.status else None
            one = replace(wanted, statuses=(status,))
            until = (
                self._cursor_after(replace(one, search=None), after=behind, distance=SEARCHED)
                if wanted.search
                else None
            )
            found += self.page(one, after=behind, until=until, limit=limit - len(found) + 1)
            if len(found) > limit:
                return UrgencyPage(found[:limit], UrgencyCursor.of(found[limit - 1]))
            if until is not None:
                return UrgencyPage(found, UrgencyCursor(status, until))
        return UrgencyPage(found, None)

    def _cursor_after(self, wanted: RowFilter, *, after: RowCursor | None, distance: int) -> RowCursor | None:
        """The cursor of the row that is `distance` rows further; None where there are fewer."""
        columns = submissions.c
        statement = select(columns.namespace, columns.row_key).where(*wanted.conditions())
        if after is not None:
            statement = statement.where(self._behind(after, wanted))
        statement = statement.order_by(columns.namespace, columns.row_key).offset(distance - 1).limit(1)
        found = self._all(statement)
        return RowCursor(*found[0]) if found else None

    def dag_ids(self) -> list[str]:
        """The DAGs that rows belong to. One query of the index for each, however many rows it has."""
        column = submissions.c.dag_id
        found: list[str] = []
        while True:
            following = self._all(select(func.min(column)).where(column > found[-1] if found else column.is_not(None)))
            if following[0][0] is None:
                return found
            found.append(following[0][0])

    def counts(self, wanted: RowFilter) -> dict[LedgerStatus, int]:
        """How many rows there are of each status."""
        columns = submissions.c
        # Grouped by DAG as well, because MySQL would otherwise choose an index for the grouping that lacks the DAG.
        statement = select(columns.status, func.count()).where(*wanted.conditions())
        counts: Counter[LedgerStatus] = Counter()
        for status, count in self._all(statement.group_by(columns.dag_id, columns.status)):
            counts[status] += count
        return dict(counts)

    def row(self, namespace: str, row_key: str) -> Any | None:
        """One row."""
        found = self._all(
            select(submissions).where(submissions.c.namespace == namespace, submissions.c.row_key == row_key)
        )
        return found[0] if found else None

    def history(self, namespace: str, row_key: str) -> list[Any]:
        """What went wrong with a row and what people did about it, oldest first."""
        return self._all(
            select(events).where(events.c.namespace == namespace, events.c.row_key == row_key).order_by(events.c.id)
        )

    def requeue(self, wanted: RowFilter, *, reason: str | None = None) -> int:
        """Let the next run send rows that are in doubt, failed or rejected; in doubt, that may be a second time."""
        return self._settle(wanted, REQUEUE_FROM, "requeued", reason, status=LedgerStatus.PENDING)

    def resolve(self, wanted: RowFilter, *, session_id: str, reason: str | None = None) -> int:
        """Take rows as delivered, with the session that was found in Halo: they are never sent again."""
        detail = f"session {session_id}" + (f": {reason}" if reason else "")
        return self._settle(
            wanted, RESOLVE_FROM, "resolved", detail, status=LedgerStatus.DELIVERED, session_id=session_id, error=None
        )

    def reject(self, wanted: RowFilter, *, reason: str) -> int:
        """Take rows as rejected: they are sent again only when their content changes."""
        return self._settle(wanted, REJECT_FROM, "rejected", reason, status=LedgerStatus.REJECTED, error=reason)

    def prune(self, wanted: RowFilter, *, before: datetime) -> int:
        """Delete delivered and rejected rows unchanged since `before`; a deleted row that is read again is sent again.

        A row's follow-ups are deleted with it: its changes are counted from 1 again.
        """

        def delete_rows(db: Connection, some: Sequence[Any], _keys: Any) -> None:
            follow_ups = [
                RowCursor(row.namespace, Change(row.row_key, number, "").ledger_key)
                for row in some
                for number in range(1, (row.changes or 0) + 1)
            ]
            for table in (events, submissions):
                db.execute(delete(table).where(_keys_of(table, [*some, *follow_ups])))

        return self._in_chunks(wanted, PRUNE_FROM, [submissions.c.updated_at < before], delete_rows)

    def _settle(
        self, wanted: RowFilter, before: tuple[LedgerStatus, ...], event: str, detail: str | None, **values: Any
    ) -> int:
        def change(db: Connection, some: Sequence[Any], keys: Any) -> None:
            now = self._ledger.times(db).now
            db.execute(update(submissions).where(keys).values(updated_at=now, lease_expires_at=None, **values))
            told = [
                rules.doubt_event(row.namespace, row.row_key, actor=self._actor, now=now)
                for row in some
                if row.status is LedgerStatus.IN_FLIGHT
            ]
            told += [
                rules.event(event, row.namespace, row.row_key, actor=self._actor, now=now, detail=detail)
                for row in some
            ]
            db.execute(insert(events), told)
            if values["status"] is LedgerStatus.DELIVERED:
                for row in some:
                    if follow_up := Change.at(row.row_key, row.payload_hash):
                        count_changes(db, row.namespace, [follow_up], now=now)

        return self._in_chunks(wanted, before, [], change)

    def _in_chunks(
        self,
        wanted: RowFilter,
        before: tuple[LedgerStatus, ...],
        conditions: list[Any],
        change: Callable[[Connection, Sequence[Any], Any], None],
    ) -> int:
        """Change every row that is wanted, in one of these statuses and without a live lease, in chunks."""
        changed = 0
        after: RowCursor | None = None

        def one_chunk(db: Connection) -> list[Any]:
            columns = submissions.c
            now = self._ledger.times(db).lease_now
            free = or_(columns.lease_expires_at.is_(None), columns.lease_expires_at <= now)
            allowed = columns.status.in_([status.value for status in before])
            statement = select(
                columns.namespace, columns.row_key, columns.status, columns.payload_hash, columns.changes
            ).where(*wanted.conditions(), *conditions, free, allowed)
            if after is not None:
                statement = statement.where(self._behind(after, wanted))
            statement = statement.order_by(columns.namespace, columns.row_key).limit(CHUNK).with_for_update()
            some = list(db.execute(statement))
            if some:
                change(db, some, _keys_of(submissions, some))
            return some

        while some := self._ledger.transaction(one_chunk):
            changed += len(some)
            after = RowCursor(some[-1].namespace, some[-1].row_key)
        return changed

    def _behind(self, cursor: RowCursor, wanted: RowFilter) -> Any:
        """The rows after the cursor: in the form with which each database begins there in its index."""
        columns = submissions.c
        if wanted.namespace is not None:
            return columns.row_key > cursor.row_key
        if self._ledger.engine.dialect.name in {"mysql", "mariadb"}:
            behind = and_(columns.namespace == cursor.namespace, columns.row_key > cursor.row_key)
            return or_(columns.namespace > cursor.namespace, behind)
        return tuple_(columns.namespace, columns.row_key) > tuple_(cursor.namespace, cursor.row_key)

    def _all(self, statement: "Select[Any]") -> list[Any]:
        return self._ledger.transaction(lambda db: list(db.execute(statement)), read_only=True)


def _keys_of(table: Any, rows: Sequence[Any]) -> Any:
    by_namespace: dict[str, list[str]] = {}
    for row in rows:
        by_namespace.setdefault(row.namespace, []).append(row.row_key)
    return or_(
        *(
            and_(table.c.namespace == namespace, table.c.row_key.in_(row_keys))
            for namespace, row_keys in by_namespace.items()
        )
    )
