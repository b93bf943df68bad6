"""The ledger's rows for people: found, and settled by hand, which each row's history tells and which can be undone."""

import getpass
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, delete, func, insert, not_, or_, select, union_all, update
from sqlalchemy.engine import Connection

from halo_provider.exceptions import DecisionOutdatedError
from halo_provider.ledger import rules
from halo_provider.ledger.claims import count_changes
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.refs import task_ref
from halo_provider.ledger.row_filter import RowCursor, RowFilter, cursor_of, keys_of, values_by_status
from halo_provider.ledger.rules import Change
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import deliveries, events, submissions
from halo_provider.ledger.tombstones import no_tombstone

PAGE = 100  # rows of a page, unless told otherwise
SEARCH_STEP = 500  # rows that a search reads at a time
SEARCH_TIME = 0.15  # seconds after which a page of a search ends, with what it has found
MAX_SORTED = 20_000  # rows that are read to sort them
NAMED_TOGETHER = 100  # task instances whose names are read by one statement
CHUNK = 500  # rows changed in one transaction
EXAMPLES = 5  # rows that a confirmation names
NOT_MAPPED = -1  # the map index of a task that is not mapped
MYSQL = ("mysql", "mariadb")  # dialects

# The statuses from which a person may move a row whose lease is over. A row in flight whose lease ran out is in doubt,
# though only the next claim would write that.
PRUNE_FROM = (LedgerStatus.DELIVERED, LedgerStatus.REJECTED)
REQUEUE_FROM = tuple(status for status in LedgerStatus if status not in {LedgerStatus.PENDING, LedgerStatus.DELIVERED})
RESOLVE_FROM = (LedgerStatus.IN_DOUBT, LedgerStatus.IN_FLIGHT)
REJECT_FROM = tuple(status for status in LedgerStatus if status not in PRUNE_FROM)
BY_URGENCY = (  # those that wait for a decision first
    LedgerStatus.IN_DOUBT,
    LedgerStatus.FAILED,
    LedgerStatus.REJECTED,
    LedgerStatus.PENDING,
    LedgerStatus.IN_FLIGHT,
    LedgerStatus.DELIVERED,
)
ROW_COLUMNS = tuple(submissions.c.keys())
CURSOR_COLUMNS = ("status", "namespace", "row_key", "task_ref")
NAMES = ("dag_id", "run_id", "task_id", "map_index")  # of which the numbers in the indexes are made
DECISIONS = ("requeued", "resolved", "rejected")  # events that can be undone


def current_user() -> str:
    """The name of who is logged in; in containers some have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class UrgencyCursor:
    """The last row of a page of `LedgerAdmin.urgent_first`."""

    status: LedgerStatus
    row: RowCursor

    @classmethod
    def of(cls, row: Any) -> "UrgencyCursor":
        """The cursor of this row."""
        return cls(row.status, cursor_of(row))


@dataclass(frozen=True, slots=True)
class UrgencyPage:
    """Rows, and the cursor after which the next page begins; None on the last page."""

    rows: list[Any]
    following: UrgencyCursor | None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a person was shown before a decision: so many rows, as they were at that time."""

    count: int
    as_of: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The rows that a decision would be about: how many of each status, some of them, and the time of the look.

    `tasks` has the run and the task that took them last, or two of these where there are more.
    """

    counts: dict[LedgerStatus, int]
    examples: list[Any]
    tasks: list[Any]
    as_of: datetime

    @property
    def confirmation(self) -> Confirmation:
        """What is confirmed when a person agrees."""
        return Confirmation(sum(self.counts.values()), self.as_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision as the rows' histories tell it; `undoable` of its rows are still as it left them.

    `undone` counts those that have been given back; a run or another decision has acted on the others.
    """

    id: str
    event: str
    actor: str
    at: datetime
    rows: int
    undoable: int
    undone: int


class LedgerAdmin:
    """Finds rows and settles them; `actor` is the name of the person, for the rows' history.

    Every method raises LedgerError where the database cannot be used. A row with a live lease is never changed. Each
    settling method returns how many rows it changed. With a `confirmation` it changes exactly the rows that a person
    was shown, or raises DecisionOutdatedError and changes none. Its `decision` is the id by which it can be undone.
    """

    def __init__(self, ledger: Ledger, *, actor: str) -> None:
        self._ledger = ledger
        self._actor = actor
        self._task_names: dict[int, tuple[str, int]] = {}  # task and map index by the task instance's number

    def page(
        self,
        wanted: RowFilter,
        *,
        after: RowCursor | None = None,
        until: RowCursor | None = None,
        limit: int = PAGE,
        columns: Sequence[str] = ROW_COLUMNS,
    ) -> list[Any]:
        """One page of rows, none of them beyond `until`: by namespace and key; of a run, by task instance first."""
        fields = [submissions.c[name] for name in dict.fromkeys((*columns, *CURSOR_COLUMNS, *NAMES))]
        behind = [self._behind(after, wanted)] if after is not None else []
        scope = wanted.without_search()
        dialect = self._ledger.engine.dialect.name
        reads_keys_first = scope.is_of_an_index if dialect in MYSQL else until is not None and dialect != "sqlite"
        if not reads_keys_first:
            bounds = [*behind, not_(self._behind(until, wanted))] if until is not None else behind
            # By numbers alone: PostgreSQL takes each name for another choice, and reads and sorts all rows that are
            # left where it expects fewer than a page.
            rows = select(*fields).where(*wanted.conditions(by_numbers=True), *bounds).order_by(*wanted.order())
            return [row for row in self._all(rows.limit(limit)) if wanted.names(row)]
        # MySQL would sort whole rows where an index has their keys in this order, and for a bound on both sides
        # PostgreSQL reads all of the table. SQLite does neither, but would read all of an index for the join.
        key = (submissions.c.namespace, submissions.c.row_key)
        keys = select(*dict.fromkeys((*key, *wanted.order()))).where(*scope.conditions(by_numbers=True), *behind)
        page = keys.order_by(*wanted.order()).limit(limit if scope == wanted else SEARCH_STEP).subquery()
        rows = select(*fields).where(*wanted.conditions())
        rows = rows.select_from(page.join(submissions, and_(*(page.c[column.name] == column for column in key))))
        if until is not None:
            rows = rows.where(not_(self._behind(until, wanted, columns=page.c)))
        for each in MYSQL:
            rows = rows.prefix_with("STRAIGHT_JOIN", dialect=each)
        return self._all(rows.order_by(*wanted.order()).limit(limit))

    def urgent_first(
        self,
        wanted: RowFilter,
        *,
        after: UrgencyCursor | None = None,
        limit: int = PAGE,
        columns: Sequence[str] = ROW_COLUMNS,
    ) -> UrgencyPage:
        """One page of rows, those that wait for a decision first, then in the order of namespace and key.

        One query for each status: an index has the rows of one DAG, or run, and status in this order, however many
        they are. A search ends after `SEARCH_TIME` and leaves the rest to the next page.
        """
        search_ends = time.monotonic() + SEARCH_TIME
        found: list[Any] = []
        scans = self._scans(wanted)
        for number, (status, one) in enumerate(scans, start=1):
            behind = None
            if after is not None:
                place = (status, one.task_number) if one.is_of_one_task else (status, None)
                if place != (after.status, after.row.task if one.is_of_one_task else None):
                    continue
                behind, after = after.row, None
            while True:
                until = self._end_of_step(one, after=behind) if wanted.is_search else None
                found += self.page(one, after=behind, until=until, limit=limit - len(found) + 1, columns=columns)
                if len(found) > limit:
                    return UrgencyPage(found[:limit], UrgencyCursor.of(found[limit - 1]))
                if wanted.is_search and time.monotonic() >= search_ends:
                    # Between scans, too: a run may have thousands of task instances, each of them a scan.
                    end = until or (self._end_of_scan(one, after=behind) if number < len(scans) else None)
                    if end is not None:
                        return UrgencyPage(found, UrgencyCursor(status, end))
                if until is None:
                    break
                behind = until
        return UrgencyPage(found, None)

    def sorted_page(
        self, wanted: RowFilter, *, by: str, descending: bool = False, limit: int = PAGE, offset: int = 0
    ) -> list[Any]:
        """One page of rows in the order of a column. It reads every wanted row: for `MAX_SORTED` at most."""
        column = submissions.c[by]
        order = [
            column.is_(None),
            column.desc() if descending else column,
            submissions.c.namespace,
            submissions.c.row_key,
        ]
        return self._all(select(submissions).where(*wanted.conditions()).order_by(*order).limit(limit).offset(offset))

    def _scans(self, wanted: RowFilter) -> list[tuple[LedgerStatus, RowFilter]]:
        """The filters, each of rows that stand together in an index, that make up the wanted one."""
        statuses = [status for status in BY_URGENCY if status in wanted.statuses or not wanted.statuses]
        if not wanted.is_of_some_tasks:
            return [(status, replace(wanted, statuses=(status,))) for status in statuses]
        tasks = self._tasks(wanted)
        return [
            (status, replace(wanted, statuses=(status,), task_id=task_id, map_index=map_index))
            for status in statuses
            for (known, _), (task_id, map_index) in sorted(tasks.items())
            if known is status
        ]

    def _tasks(self, wanted: RowFilter) -> dict[tuple[LedgerStatus, int], tuple[str, int]]:
        """Task and map index of the wanted task instances of one run, by status and number."""
        run = RowFilter(dag_ids=wanted.dag_ids, run_id=wanted.run_id)
        statuses = wanted.statuses or tuple(LedgerStatus)
        return self._wanted_tasks(
            wanted, self._values(submissions.c.task_ref, statuses, *run.conditions(by_numbers=True))
        )

    def _wanted_tasks(
        self, wanted: RowFilter, pairs: Iterable[tuple[LedgerStatus, int | None]]
    ) -> dict[tuple[LedgerStatus, int], tuple[str, int]]:
        """Those of these pairs of status and number, with their names."""
        known = [(status, number) for status, number in pairs if number is not None]
        names = self._task_names
        if any(number not in names for _, number in known):
            run = RowFilter(dag_ids=wanted.dag_ids, run_id=wanted.run_id)
            self._name_tasks(run, {number: status for status, number in known})
        return {
            (status, number): names[number]
            for status, number in known
            if number in names
            and wanted.task_id in {None, names[number][0]}
            and wanted.map_index in {None, names[number][1]}
        }

    def _name_tasks(self, run: RowFilter, statuses: Mapping[int, LedgerStatus]) -> None:
        """Learn the names of a run's task instances, given by number with a status that each has.

        The records of deliveries tell them, in one query; of those that have no record, a row of each is read.
        """
        columns, names = submissions.c, self._task_names
        recorded = select(deliveries.c.task_id, deliveries.c.map_index).distinct()
        recorded = recorded.where(deliveries.c.dag_id.in_(run.dag_ids or ()), deliveries.c.run_id == run.run_id)
        for task_id, map_index in self._all(recorded):
            number = task_ref(task_id, map_index)
            if number is not None:
                names[number] = (task_id, NOT_MAPPED if map_index is None else map_index)
        unknown = sorted(statuses.keys() - names.keys())
        for start in range(0, len(unknown), NAMED_TOGETHER):
            one_of_each = [
                select(
                    select(columns.task_ref, columns.task_id, columns.map_index)
                    .where(*run.conditions(by_numbers=True), columns.task_ref == number)
                    .where(columns.status == statuses[number].value)
                    .limit(1)
                    .subquery()
                )
                for number in unknown[start : start + NAMED_TOGETHER]
            ]
            for row in self._all(union_all(*one_of_each)):
                names[row.task_ref] = (row.task_id, NOT_MAPPED if row.map_index is None else row.map_index)

    def _end_of_step(self, wanted: RowFilter, *, after: RowCursor | None) -> RowCursor | None:
        """The cursor of the row that is `SEARCH_STEP` rows further; None where there are fewer."""
        return self._cursor(wanted, after, lambda rows: rows.order_by(*wanted.order()).offset(SEARCH_STEP - 1))

    def _end_of_scan(self, wanted: RowFilter, *, after: RowCursor | None) -> RowCursor | None:
        """The cursor of the last row; None where there is none behind `after`."""
        return self._cursor(wanted, after, lambda rows: rows.order_by(*(each.desc() for each in wanted.order())))

    def _cursor(self, wanted: RowFilter, after: RowCursor | None, ordered: Callable[[Any], Any]) -> RowCursor | None:
        # No column but those of the index: MySQL would sort the rows.
        columns = dict.fromkeys((submissions.c.namespace, submissions.c.row_key, *wanted.order()))
        statement = select(*columns).where(*wanted.without_search().conditions(by_numbers=True))
        if after is not None:
            statement = statement.where(self._behind(after, wanted))
        found = self._all(ordered(statement).limit(1))
        if not found:
            return None
        task = found[0].task_ref if submissions.c.task_ref in columns else wanted.task_number
        return RowCursor(found[0].namespace, found[0].row_key, task)

    def dag_ids(self, statuses: Sequence[LedgerStatus] = tuple(LedgerStatus)) -> list[str]:
        """The DAGs that rows of these statuses belong to."""
        found = self._values(submissions.c.dag_id, statuses)
        return sorted({dag_id for _, dag_id in found if dag_id is not None})

    def namespaces(self) -> list[str]:
        """Every namespace of the ledger: a query of the primary key for each, however many rows it has."""
        column = submissions.c.namespace
        found: list[str] = []
        while True:
            following = select(func.min(column)).where(column > (found[-1] if found else ""))
            namespace = self._all(following)[0][0]
            if namespace is None:
                return found
            found.append(namespace)

    def counts(self, wanted: RowFilter) -> dict[LedgerStatus, int]:
        """How many rows there are of each status."""
        columns = submissions.c
        wanted = replace(wanted, statuses=wanted.statuses or tuple(LedgerStatus))  # which both indexes begin with
        every = replace(wanted, task_id=None, map_index=None) if wanted.is_of_some_tasks else wanted
        # Grouped by the index's other column as well, or MySQL chooses for the grouping an index that lacks it.
        part = columns.dag_id
        if wanted.is_of_one_run:
            part = columns.task_ref if wanted.is_of_some_tasks else columns.run_ref
        statement = select(columns.status, part, func.count()).where(*every.conditions(by_numbers=True))
        found = self._all(statement.group_by(columns.status, part))
        if wanted.is_of_some_tasks:
            tasks = self._wanted_tasks(wanted, [(status, number) for status, number, _ in found])
            found = [each for each in found if (each[0], each[1]) in tasks]
        counts: Counter[LedgerStatus] = Counter()
        for status, _, count in found:
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

    def choice(self, wanted: RowFilter, before: Sequence[LedgerStatus]) -> Choice:
        """The rows that a decision from these statuses would change now."""
        columns = submissions.c

        def look(db: Connection) -> Choice:
            times = self._ledger.times(db)
            conditions = [*wanted.conditions(), *_changeable(before, lease_now=times.lease_now)]
            counted = db.execute(select(columns.status, func.count()).where(*conditions).group_by(columns.status))
            counts = {status: count for status, count in counted}  # noqa: C416 -- rows are no pairs to the type checker
            some = db.execute(select(submissions).where(*conditions).order_by(*wanted.order()).limit(EXAMPLES))
            tasks = db.execute(select(columns.run_id, columns.task_id).where(*conditions).distinct().limit(2))
            return Choice(counts=counts, examples=list(some), tasks=list(tasks), as_of=times.now)

        return self._ledger.transaction(look, read_only=True)

    def requeue(
        self,
        wanted: RowFilter,
        *,
        reason: str | None = None,
        confirmation: Confirmation | None = None,
        decision: str | None = None,
    ) -> int:
        """Let the next run send rows that are in doubt, failed or rejected; in doubt, that may be a second time."""

        def settled(_row: Any) -> dict[str, Any]:
            return {"status": LedgerStatus.PENDING}

        return self._settle(
            wanted, REQUEUE_FROM, "requeued", lambda _: reason, settled, confirmation=confirmation, decision=decision
        )

    def resolve(
        self,
        wanted: RowFilter,
        *,
        session_ids: Mapping[str, str],
        reason: str | None = None,
        confirmation: Confirmation | None = None,
        decision: str | None = None,
    ) -> int:
        """Take rows in doubt as delivered, each with the session that was found in Halo: they are never sent again.

        `session_ids` has one for each row key that is wanted; rows of other keys are left alone.
        """

        def settled(row: Any) -> dict[str, Any]:
            return {"status": LedgerStatus.DELIVERED, "session_id": session_ids[row.row_key], "error": None}

        def detail(row: Any) -> str:
            return f"session {session_ids[row.row_key]}" + (f": {reason}" if reason else "")

        changed = 0
        row_keys = sorted(session_ids)
        if confirmation is not None:
            self._check(replace(wanted, row_keys=tuple(row_keys)), RESOLVE_FROM, confirmation)
        decision = decision or uuid.uuid4().hex
        for start in range(0, len(row_keys), CHUNK):
            some = replace(wanted, row_keys=tuple(row_keys[start : start + CHUNK]))
            if confirmation is not None:
                some = replace(some, unchanged_since=confirmation.as_of)
            changed += self._settle(some, RESOLVE_FROM, "resolved", detail, settled, decision=decision)
        return changed

    def reject(
        self,
        wanted: RowFilter,
        *,
        reason: str,
        confirmation: Confirmation | None = None,
        decision: str | None = None,
    ) -> int:
        """Take rows as rejected: they are sent again only when their content changes."""

        def settled(_row: Any) -> dict[str, Any]:
            return {"status": LedgerStatus.REJECTED, "error": rules.shortened(reason)}

        return self._settle(
            wanted, REJECT_FROM, "rejected", lambda _: reason, settled, confirmation=confirmation, decision=decision
        )

    def decision(self, decision: str, *, dag_ids: Sequence[str]) -> Decision | None:
        """What was decided under this id about rows of these DAGs; None where nothing was."""
        counted = (
            select(events.c.event, events.c.actor, events.c.at, events.c.id, submissions.c.updated_at)
            .select_from(events.outerjoin(submissions, _row_as_decided()))
            .where(events.c.decision == decision, events.c.dag_id.in_(dag_ids))
        ).subquery()
        made = counted.c.event.in_(DECISIONS)
        statement = select(
            func.max(case((made, counted.c.event))),
            func.max(case((made, counted.c.actor))),
            func.min(counted.c.at),
            func.count(case((made, 1))),
            func.count(case((made, counted.c.updated_at))),
            func.count(case((not_(made), 1))),
        )
        event, actor, at, rows, undoable, undone = self._all(statement)[0]
        if not rows:
            return None
        return Decision(id=decision, event=event, actor=actor, at=at, rows=rows, undoable=undoable, undone=undone)

    def undo(self, decision: str, *, dag_ids: Sequence[str], row: RowCursor | None = None) -> int:
        """Give rows back what a decision replaced, or only this one: those that no run and nobody changed since."""
        undone = 0
        conditions = [events.c.decision == decision, submissions.c.dag_id.in_(dag_ids), events.c.event.in_(DECISIONS)]
        if row is not None:
            conditions += [events.c.namespace == row.namespace, events.c.row_key == row.row_key]
        told = select(
            *(events.c[name] for name in ("id", "namespace", "row_key", "event", "before")),
            *(submissions.c[name] for name in ("dag_id", "run_ref", "payload_hash")),
        ).select_from(events.join(submissions, _row_as_decided()))
        last = 0

        def one_chunk(db: Connection) -> list[Any]:
            statement = told.where(*conditions, events.c.id > last).order_by(events.c.id).limit(CHUNK)
            some = list(db.execute(statement.with_for_update()))
            if some:
                self._undo(db, some, decision)
            return some

        while some := self._ledger.transaction(one_chunk):
            undone += len(some)
            last = some[-1].id
        return undone

    def _undo(self, db: Connection, some: Sequence[Any], decision: str) -> None:
        now = self._ledger.times(db).now
        for one in some:
            before = one.before or {}
            values = {name: before.get(name) for name in ("status", "session_id", "error")}
            here = and_(submissions.c.namespace == one.namespace, submissions.c.row_key == one.row_key)
            db.execute(update(submissions).where(here).values(**values, updated_at=now))
            followed = Change.at(one.row_key, one.payload_hash)
            if followed is not None and "changes" in before:
                db.execute(
                    update(submissions)
                    .where(
                        submissions.c.namespace == one.namespace,
                        submissions.c.row_key == followed.row_key,
                        submissions.c.changes == followed.number,
                    )
                    .values(changes=before["changes"], payload_hash=before["payload_hash"], updated_at=now)
                )
        db.execute(
            insert(events),
            [
                rules.event(
                    "undone",
                    one.namespace,
                    one.row_key,
                    actor=self._actor,
                    now=now,
                    detail=f"{one.event} is undone",
                    belongs_to={"dag_id": one.dag_id, "run_ref": one.run_ref},
                    decision=decision,
                )
                for one in some
            ],
        )

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
                db.execute(delete(table).where(keys_of(table, [*some, *follow_ups])))

        return self._in_chunks(wanted, PRUNE_FROM, [submissions.c.updated_at < before], delete_rows)

    def _settle(
        self,
        wanted: RowFilter,
        before: tuple[LedgerStatus, ...],
        event: str,
        detail_of: Callable[[Any], str | None],
        settled: Callable[[Any], dict[str, Any]],
        *,
        confirmation: Confirmation | None = None,
        decision: str | None = None,
    ) -> int:
        """Change rows to what `settled` gives for each, and tell it in their histories."""
        decision = decision or uuid.uuid4().hex
        if confirmation is not None:
            self._check(wanted, before, confirmation)
            wanted = replace(wanted, unchanged_since=confirmation.as_of)

        def change(db: Connection, some: Sequence[Any], _keys: Any) -> None:
            now = self._ledger.times(db).now
            told: list[dict[str, Any]] = []
            alike: dict[tuple[tuple[str, Any], ...], list[Any]] = {}
            for row in some:
                alike.setdefault(tuple(settled(row).items()), []).append(row)
            for values, rows in alike.items():
                changed = update(submissions).where(keys_of(submissions, rows))
                db.execute(changed.values(updated_at=now, lease_expires_at=None, **dict(values)))
            for row in some:
                belongs_to = {"dag_id": row.dag_id, "run_ref": row.run_ref}
                replaced = {"status": row.status.value, "session_id": row.session_id, "error": row.error}
                if row.status is LedgerStatus.IN_FLIGHT:
                    doubt = rules.doubt_event(
                        row.namespace, row.row_key, actor=self._actor, now=now, belongs_to=belongs_to
                    )
                    told.append(doubt)
                    replaced["status"] = LedgerStatus.IN_DOUBT.value
                if event == "resolved":
                    replaced |= _count_follow_up(db, row, now=now)
                told.append(
                    rules.event(
                        event,
                        row.namespace,
                        row.row_key,
                        actor=self._actor,
                        now=now,
                        detail=detail_of(row),
                        belongs_to=belongs_to,
                        decision=decision,
                        before=replaced,
                    )
                )
            db.execute(insert(events), told)

        return self._in_chunks(wanted, before, [], change)

    def _check(self, wanted: RowFilter, before: Sequence[LedgerStatus], confirmation: Confirmation) -> None:
        """Raise DecisionOutdatedError unless exactly the rows that were confirmed would change."""
        matching = sum(self.choice(wanted, before).counts.values())
        known = replace(wanted, unchanged_since=confirmation.as_of)
        unchanged = sum(self.choice(known, before).counts.values())
        if not matching == unchanged == confirmation.count:
            raise DecisionOutdatedError(matching=matching, confirmed=confirmation.count)

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
        names = ("namespace", "row_key", "task_ref", "status", "session_id", "error", "payload_hash", "changes")

        def one_chunk(db: Connection) -> list[Any]:
            allowed = _changeable(before, lease_now=self._ledger.times(db).lease_now)
            fields = [submissions.c[name] for name in (*names, "dag_id", "run_ref")]
            statement = select(*fields).where(*wanted.conditions(), *conditions, *allowed)
            if after is not None:
                statement = statement.where(self._behind(after, wanted))
            statement = statement.order_by(*wanted.order()).limit(CHUNK).with_for_update()
            some = list(db.execute(statement))
            if some:
                change(db, some, keys_of(submissions, some))
            return some

        while some := self._ledger.transaction(one_chunk):
            changed += len(some)
            after = cursor_of(some[-1])
        return changed

    def _behind(self, cursor: RowCursor, wanted: RowFilter, *, columns: Any = submissions.c) -> Any:
        return wanted.behind(cursor, dialect=self._ledger.engine.dialect.name, columns=columns)

    def _values(self, column: Any, statuses: Sequence[LedgerStatus], *conditions: Any) -> list[Any]:
        return self._all(values_by_status(column, statuses, *conditions, dialect=self._ledger.engine.dialect.name))

    def _all(self, statement: Any) -> list[Any]:
        return self._ledger.transaction(lambda db: list(db.execute(statement)), read_only=True)


def _changeable(before: Sequence[LedgerStatus], *, lease_now: datetime) -> list[Any]:
    """Rows in one of these statuses that no running task holds, and whose user is not forgotten."""
    columns = submissions.c
    free = or_(columns.lease_expires_at.is_(None), columns.lease_expires_at <= lease_now)
    return [free, columns.status.in_([status.value for status in before]), no_tombstone()]


def _row_as_decided() -> Any:
    """Joins a decision's event with its row while the row is as the decision left it: both were written at one time."""
    return and_(
        submissions.c.namespace == events.c.namespace,
        submissions.c.row_key == events.c.row_key,
        submissions.c.updated_at == events.c.at,
    )


def _count_follow_up(db: Connection, row: Any, *, now: datetime) -> dict[str, Any]:
    """Count a follow-up that is delivered by decision beside the row it follows; return what that replaced."""
    follow_up = Change.at(row.row_key, row.payload_hash)
    if follow_up is None:
        return {}
    columns = submissions.c
    here = (columns.namespace == row.namespace, columns.row_key == follow_up.row_key)
    replaced = db.execute(select(columns.changes, columns.payload_hash).where(*here)).one_or_none()
    count_changes(db, row.namespace, [follow_up], now=now)
    return {} if replaced is None else {"changes": replaced.changes, "payload_hash": replaced.payload_hash}
