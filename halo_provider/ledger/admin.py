"""The ledger's rows settled by hand, which each row's history tells and which can be undone."""

import getpass
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, delete, func, insert, not_, or_, select, update
from sqlalchemy.engine import Connection

from halo_provider.exceptions import DecisionOutdatedError
from halo_provider.ledger import rules
from halo_provider.ledger.claims import count_changes
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.row_filter import RowCursor, RowFilter, cursor_of, keys_of
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.rules import Change
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions
from halo_provider.ledger.tombstones import no_tombstone

CHUNK = 500  # rows changed in one transaction
EXAMPLES = 5  # rows that a confirmation names

# The statuses from which a person may move a row whose lease is over. A row in flight whose lease ran out is in doubt,
# though only the next claim would write that.
PRUNE_FROM = (LedgerStatus.DELIVERED, LedgerStatus.REJECTED)
REQUEUE_FROM = tuple(status for status in LedgerStatus if status not in {LedgerStatus.PENDING, LedgerStatus.DELIVERED})
RESOLVE_FROM = (LedgerStatus.IN_DOUBT, LedgerStatus.IN_FLIGHT)
REJECT_FROM = tuple(status for status in LedgerStatus if status not in PRUNE_FROM)
DECISIONS = ("requeued", "resolved", "rejected")  # events that can be undone


def current_user() -> str:
    """The name of who is logged in; in containers some have only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"uid {os.getuid()}"


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
    """Settles rows; `actor` is the name of the person, for the rows' history. `rows` finds them.

    Every method raises LedgerError where the database cannot be used. A row with a live lease is never changed. Each
    settling method returns how many rows it changed. With a `confirmation` it changes exactly the rows that a person
    was shown, or raises DecisionOutdatedError and changes none. Its `decision` is the id by which it can be undone.
    """

    def __init__(self, ledger: Ledger, *, actor: str) -> None:
        self._ledger = ledger
        self._actor = actor
        self.rows = RowReader(ledger)

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
        found = self._ledger.transaction(lambda db: db.execute(statement).one(), read_only=True)
        event, actor, at, rows, undoable, undone = found
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
                statement = statement.where(wanted.behind(after, dialect=self._ledger.engine.dialect.name))
            statement = statement.order_by(*wanted.order()).limit(CHUNK).with_for_update()
            some = list(db.execute(statement))
            if some:
                change(db, some, keys_of(submissions, some))
            return some

        while some := self._ledger.transaction(one_chunk):
            changed += len(some)
            after = cursor_of(some[-1])
        return changed


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
