"""The SQL of claims: rows are claimed, sent under an intent, settled and renewed by their owner alone.

A row's life::

    (new) -> pending -> in_flight -> delivered | rejected | in_doubt | failed

A claim makes a row pending under one owner and a lease (a row in doubt stays in doubt); an intent makes it in_flight
before its first byte is sent; a settlement records the outcome right after. An attempt that Halo certainly did not take
makes it pending again. Every change is a conditional UPDATE on owner and status whose row count is checked. No other
owner may change a row while its lease lives; an in_flight row whose lease ran out is in doubt. Never stored: messages,
context, traits, secrets.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import and_, bindparam, case, func, insert, not_, or_, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.sql import Insert

from halo_provider.exceptions import HaloConfigurationError, LedgerError
from halo_provider.ledger import rules
from halo_provider.ledger.clock import seconds_since_boot
from halo_provider.ledger.database import Database, refuses_content
from halo_provider.ledger.rules import (
    Candidate,
    Change,
    Claim,
    ClaimResult,
    Commit,
    KnownRow,
    OnInDoubt,
    Rivals,
    Settlement,
    TaskInstanceRef,
    Writer,
)
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import UtcDateTime, events, submissions
from halo_provider.ledger.tombstones import find_tombstones


class LeaseHolder:
    """One process start's claims in one namespace: `owner` is unique to it. One thread at a time may use it."""

    def __init__(self, database: Database, namespace: str, *, task_instance: TaskInstanceRef, lease: float) -> None:
        self.owner = f"{os.uname().nodename[:60]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        self.namespace = namespace
        self.lease = lease
        self._database = database
        self._actor = task_instance.name or self.owner
        self._task_instance = task_instance.columns
        self._held: set[str] = set()
        self._renewed = seconds_since_boot()

    @property
    def lease_left(self) -> float:
        """Seconds until other owners may claim the rows that this one holds."""
        return self._renewed + self.lease - seconds_since_boot()

    def claim(self, candidates: Sequence[Candidate], *, on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        """Claim the rows that may be sent, in one transaction, and answer every candidate by its key.

        Candidates with an error become rejected, unless they are delivered or another's. Keys must not repeat.
        """
        if not candidates:
            return {}
        renewed = seconds_since_boot()
        claims = self._database.transaction(lambda db: self._claim(db, candidates, on_in_doubt))
        if not self._held:
            self._renewed = renewed
        self._held.update(key for key, claim in claims.items() if claim.result is ClaimResult.CLAIMED)
        return claims

    def followed(self, submission_name: str, row_keys: Sequence[str]) -> dict[str, KnownRow]:
        """The rows of another submission on the same connection, by key; unknown ones are left out."""
        namespace = f"{self.namespace.rpartition('/')[0]}/{submission_name}"
        return self._database.transaction(lambda db: find(db, namespace, row_keys))

    def preview(self, candidates: Sequence[Candidate], *, on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        """Answer every candidate as `claim` would, and write nothing."""
        now, found = self._database.transaction(
            lambda db: (self._database.times(db).lease_now, self._known(db, candidates))
        )
        claims: dict[str, Claim] = {}
        for candidate in candidates:
            row = found.get(candidate.row_key)
            result = rules.claim_result(row, candidate, owner=self.owner, now=now, on_in_doubt=on_in_doubt)
            claims[candidate.row_key] = rules.claim_answer(result, row, candidate)
        return claims

    def commit(self, *, settlements: Sequence[Settlement] = (), intents: Sequence[str] = ()) -> Commit:
        """Record outcomes, then intents, in one transaction: when it returns, the intents' rows may be sent.

        A key may stand in both: its earlier attempt is settled before its next one begins. Rows of another owner are
        not changed, and the answer names them. It also names a settlement whose session_id does not fit: its row is in
        doubt. Where the database refuses a value, each settlement is recorded in a transaction of its own, the refused
        one without its texts.
        """
        recordable = [rules.recordable(settlement) for settlement in settlements]
        try:
            commit = self._database.transaction(lambda db: self._commit(db, recordable, intents))
        except LedgerError as error:
            if not recordable or not refuses_content(error):
                raise
            commit = self._commit_one_by_one(recordable, intents)
        self._held.difference_update(settlement.row_key for settlement in settlements if settlement.final)
        unusable = {
            settlement.row_key
            for settlement, recorded in zip(settlements, recordable, strict=True)
            if recorded is not settlement
        }
        return replace(commit, lost_settlements=commit.lost_settlements | unusable) if unusable else commit

    def _commit_one_by_one(self, settlements: Sequence[Settlement], intents: Sequence[str]) -> Commit:
        lost: set[str] = set()
        for settlement in settlements:
            try:
                lost |= self._commit_alone(settlement)
            except LedgerError as error:
                if not refuses_content(error):
                    raise
                lost |= self._commit_alone(rules.without_texts(settlement))
        commit = self._database.transaction(lambda db: self._commit(db, (), intents))
        return replace(commit, lost_settlements=frozenset(lost))

    def _commit_alone(self, settlement: Settlement) -> frozenset[str]:
        return self._database.transaction(lambda db: self._commit(db, [settlement], ())).lost_settlements

    def clear_doubt(self, candidate: Candidate, *, detail: str) -> bool:
        """Make a row pending that was in doubt and is not with Halo, and its content what is to be sent.

        Whether it is still this owner's and in doubt.
        """
        return self._database.transaction(lambda db: self._renew_content(db, candidate, not_found=detail))

    def renew_content(self, candidate: Candidate) -> bool:
        """Make what is to be sent the content of a row that stays in doubt; whether it is still this owner's."""
        return self._database.transaction(lambda db: self._renew_content(db, candidate, not_found=None))

    def _renew_content(self, db: Connection, candidate: Candidate, *, not_found: str | None) -> bool:
        writer = self._writer(db)
        values = {
            "status": LedgerStatus.IN_DOUBT if not_found is None else LedgerStatus.PENDING,
            "user_id": candidate.user_id,
            "payload_hash": candidate.payload_hash,
            "message_hash": candidate.message_hash,
            "into_session": rules.storable(candidate.into_session),
            "reference": rules.storable(candidate.reference),
            "updated_at": writer.now,
        }
        row_key = candidate.row_key
        if not db.execute(_RENEW_CONTENT, self._rows([row_key]) | values).rowcount:
            return False
        if not_found is not None:
            told = rules.event(
                rules.NOT_FOUND,
                self.namespace,
                row_key,
                actor=writer.actor,
                now=writer.now,
                detail=not_found,
                belongs_to=writer.task_instance,
            )
            db.execute(insert(events), [told])
        return True

    def rivals(
        self,
        row_key: str,
        *,
        user_id: str | None,
        message_hash: str | None,
        into_session: str | None,
        session_ids: Sequence[str],
    ) -> Rivals:
        """Whose else the sessions may be in which a row in doubt was found: other rows', of any connection.

        Reads the whole table; any thread may.
        """
        own = {"b_namespace": self.namespace, "b_row_key": row_key}
        asked = {**own, "b_session_ids": list(session_ids)}
        same = {**own, "b_user_id": user_id, "b_message_hash": message_hash, "b_into_session": into_session or ""}

        def read(db: Connection) -> Rivals:
            # In this order: a row that is settled in between is seen by its session.
            is_unsettled = db.execute(_SAME_WORDS, same).first() is not None
            return Rivals(frozenset(db.scalars(_SESSIONS_OF_OTHERS, asked)), is_unsettled)

        return self._database.transaction(read, read_only=True)

    def witness(self, *, older_than: float) -> tuple[str, str] | None:
        """The user and the session of the row of this connection that was delivered last, so many seconds ago or more.

        None where there is none. Reads the whole table; any thread may.
        """
        connection = f"{self.namespace.rpartition('/')[0]}/"

        def read(db: Connection) -> tuple[str, str] | None:
            before = self._database.times(db).now - timedelta(seconds=older_than)
            row = db.execute(_WITNESS, {"b_connection": connection, "b_before": before}).first()
            return None if row is None else (row.user_id, row.session_id)

        return self._database.transaction(read, read_only=True)

    def release(self, row_keys: Sequence[str]) -> None:
        """Give claims back that were not sent: the rows keep their status, and any owner may claim them at once.

        A row in flight keeps its lease, a settled row and a row of another owner do not change.
        """
        if row_keys:
            self._database.transaction(lambda db: self._release(db, row_keys))
            self._held.difference_update(row_keys)

    def renew(self) -> None:
        """Extend every lease that this owner holds: of all rows claimed and neither settled nor released."""
        renewed = seconds_since_boot()
        held = sorted(self._held)
        if held:
            self._database.transaction(lambda db: self._renew(db, held))
        self._renewed = renewed

    def finish_within(self, seconds: float) -> None:
        """Let no call to the ledger last longer than this from now on: for a run that has to end."""
        self._database.finish_within(seconds)

    def _writer(self, db: Connection) -> Writer:
        now, lease_now = self._database.times(db)
        lease_end = lease_now + timedelta(seconds=self.lease)
        return Writer(self.namespace, self.owner, self._actor, self._task_instance, now, lease_now, lease_end)

    def _claim(self, db: Connection, candidates: Sequence[Candidate], on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        writer = self._writer(db)
        found = self._known(db, candidates)
        claims: dict[str, Claim] = {}
        new_rows: list[dict[str, Any]] = []
        claimed: list[KnownRow] = []
        claimed_rows: list[dict[str, Any]] = []
        for candidate in sorted(candidates, key=_row_key):  # all writers in one order, or they deadlock
            row = found.get(candidate.row_key)
            result = rules.claim_result(row, candidate, owner=self.owner, now=writer.lease_now, on_in_doubt=on_in_doubt)
            claims[candidate.row_key] = rules.claim_answer(result, row, candidate)
            if row is None:
                new_rows.append(rules.new_row(result, candidate, writer))
            elif rules.claim_changes_row(result, row, candidate):
                as_found = {**self._one_row(row.row_key, row.owner), "b_status": row.status, "b_now": writer.lease_now}
                claimed_rows.append(
                    {**as_found, **rules.claimed_row(result, row, candidate, writer, on_in_doubt=on_in_doubt)}
                )
                claimed.append(row)
        if new_rows:
            db.execute(_insert_or_leave(db.dialect.name), new_rows)
        if claimed_rows:
            db.execute(_CLAIM, claimed_rows)
        if (new_rows or claimed_rows) and db.dialect.name != "sqlite":  # whose transactions exclude other writers
            self._confirm(db, claims)
        doubts = [
            rules.doubt_event(
                self.namespace, row.row_key, actor=writer.actor, now=writer.now, belongs_to=writer.task_instance
            )
            for row in claimed
            if rules.claim_finds_doubt(claims[row.row_key].result, row)
        ]
        if doubts:
            db.execute(insert(events), doubts)
        return claims

    def _known(self, db: Connection, candidates: Sequence[Candidate]) -> dict[str, KnownRow]:
        """The rows that the ledger has, those of users who are forgotten included."""
        found = find(db, self.namespace, [candidate.row_key for candidate in candidates])
        new = [candidate for candidate in candidates if candidate.row_key not in found]
        return found | find_tombstones(db, self.namespace, new) if new else found

    def _confirm(self, db: Connection, claims: dict[str, Claim]) -> None:
        """Answer BUSY for the rows that another owner claimed after this transaction had read them."""
        claimed = [key for key, claim in claims.items() if claim.result is ClaimResult.CLAIMED]
        owned = set(db.scalars(_OWNED, self._rows(claimed))) if claimed else set()
        for key in claimed:
            if key not in owned:
                claims[key] = Claim(ClaimResult.BUSY)

    def _commit(self, db: Connection, settlements: Sequence[Settlement], intents: Sequence[str]) -> Commit:
        writer = self._writer(db)
        lost_settlements: set[str] = set()
        for status, statement in _SETTLE.items():
            group = [settlement for settlement in settlements if settlement.status is status]
            if group and not _execute_counted(db, statement, [self._settled(each, writer) for each in group]):
                lost_settlements |= self._lost(db, [settlement.row_key for settlement in group], status)
        if lost_settlements:
            settlements = [settlement for settlement in settlements if settlement.row_key not in lost_settlements]
        changes = [each.change for each in settlements if each.change and each.status is LedgerStatus.DELIVERED]
        count_changes(db, self.namespace, changes, now=writer.now)
        told = [rules.settlement_event(each, writer) for each in settlements if rules.settlement_is_told(each)]
        if told:
            db.execute(insert(events), told)
        lost_intents: set[str] = set()
        if intents:
            values = {"lease_expires_at": writer.lease_expires_at, "updated_at": writer.now}
            changed = db.execute(_INTEND, self._rows(intents) | values).rowcount
            if changed != len(intents):
                lost_intents = self._lost(db, intents, LedgerStatus.IN_FLIGHT)
        return Commit(frozenset(intents) - lost_intents, frozenset(lost_intents), frozenset(lost_settlements))

    def _lost(self, db: Connection, row_keys: Sequence[str], status: LedgerStatus) -> set[str]:
        """Those that are not this owner's with this status: a repeated commit finds its rows changed already."""
        return set(row_keys) - set(db.scalars(_OWNED_WITH_STATUS, self._rows(row_keys) | {"b_status": status}))

    def _renew(self, db: Connection, held: Sequence[str]) -> None:
        db.execute(_RENEW, self._rows(held) | {"lease_expires_at": self._writer(db).lease_expires_at})

    def _release(self, db: Connection, row_keys: Sequence[str]) -> None:
        db.execute(_RELEASE, self._rows(row_keys) | {"updated_at": self._writer(db).now})

    def _rows(self, row_keys: Sequence[str]) -> dict[str, Any]:
        return {"b_namespace": self.namespace, "b_keys": list(row_keys), "b_owner": self.owner}

    def _settled(self, settlement: Settlement, writer: Writer) -> dict[str, Any]:
        columns = rules.settled_row(settlement, writer)
        columns.update(b_namespace=self.namespace, b_row_key=settlement.row_key, b_owner=self.owner)
        return columns

    def _one_row(self, row_key: str, owner: str | None) -> dict[str, Any]:
        return {"b_namespace": self.namespace, "b_row_key": row_key, "b_owner": owner}


def find(db: Connection, namespace: str, row_keys: Sequence[str]) -> dict[str, KnownRow]:
    """The rows of these keys, by key."""
    found = db.execute(_FIND, {"b_namespace": namespace, "b_keys": list(row_keys)})
    return {row.row_key: row for row in map(KnownRow._make, found)}


def count_changes(db: Connection, namespace: str, changes: Sequence[Change], *, now: datetime) -> None:
    """Record beside the rows that these changes of theirs are with Halo; a change that is recorded stays as it is."""
    counted = [(change, change.number) for change in changes if change.number is not None]
    if counted:
        db.execute(
            _COUNT_CHANGE,
            [
                {
                    "b_namespace": namespace,
                    "b_row_key": change.row_key,
                    "b_before": number - 1,
                    "number": number,
                    "payload_hash": change.payload_hash,
                    "updated_at": now,
                }
                for change, number in counted
            ],
        )


def _row_key(candidate: Candidate) -> str:
    return candidate.row_key


@cache
def _insert_or_leave(dialect: str) -> Insert:
    match dialect:
        case "mysql" | "mariadb":
            statement = mysql.insert(submissions)
            return statement.on_duplicate_key_update(row_key=statement.inserted.row_key)
        case "postgresql":
            return postgresql.insert(submissions).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(submissions).on_conflict_do_nothing()
    raise HaloConfigurationError(f"the ledger runs on SQLite, PostgreSQL, MySQL and MariaDB, not on {dialect}")


def _execute_counted(db: Connection, statement: Any, parameters: list[dict[str, Any]]) -> bool:
    """Run the statement for every set of parameters; whether it is certain that each changed its one row."""
    changed: int = db.execute(statement, parameters).rowcount
    return db.dialect.supports_sane_multi_rowcount and changed == len(parameters)


# Statements are made once: SQLAlchemy's are full of cycles, and one made for each batch would keep its keys in memory.
_ONE_ROW = and_(submissions.c.namespace == bindparam("b_namespace"), submissions.c.row_key == bindparam("b_row_key"))
_ROWS = and_(
    submissions.c.namespace == bindparam("b_namespace"),
    submissions.c.row_key.in_(bindparam("b_keys", expanding=True)),
)
_OWN_ROWS = and_(_ROWS, submissions.c.owner == bindparam("b_owner"))

_FIND = select(*(submissions.c[name] for name in KnownRow._fields)).where(_ROWS)
_OWNED = select(submissions.c.row_key).where(_OWN_ROWS)
_OWNED_WITH_STATUS = _OWNED.where(submissions.c.status == bindparam("b_status"))
_RENEW = (
    update(submissions)
    .where(_OWN_ROWS, submissions.c.lease_expires_at.is_not(None))
    .values(lease_expires_at=bindparam("lease_expires_at"))
)

_RELEASE = (
    update(submissions)
    .where(_OWN_ROWS, submissions.c.status.in_(rules.INTENDED_FROM), submissions.c.lease_expires_at.is_not(None))
    .values(lease_expires_at=None, updated_at=bindparam("updated_at"))
)

_CONTENT = ("user_id", "payload_hash", "message_hash", "into_session", "reference")
_CLAIM = (
    update(submissions)
    .where(
        _ONE_ROW,
        submissions.c.status == bindparam("b_status"),
        submissions.c.owner == bindparam("b_owner"),
        or_(submissions.c.lease_expires_at.is_(None), submissions.c.lease_expires_at <= bindparam("b_now")),
    )
    .values({name: bindparam(name) for name in ("status", *_CONTENT, "error", "owner")})
    .values({name: bindparam(name) for name in ("lease_expires_at", "updated_at", *TaskInstanceRef().columns)})
)

# In this order: MySQL computes a value from those that stand before it.
_INTEND = (
    update(submissions)
    .where(_OWN_ROWS, submissions.c.status.in_(rules.INTENDED_FROM))
    .ordered_values(
        (
            submissions.c.doubt_since,
            case(
                (
                    submissions.c.status == LedgerStatus.IN_DOUBT,
                    func.coalesce(submissions.c.doubt_since, bindparam("updated_at", type_=UtcDateTime())),
                ),
                else_=bindparam("updated_at", type_=UtcDateTime()),
            ),
        ),
        (submissions.c.status, LedgerStatus.IN_FLIGHT),
        (submissions.c.attempts, submissions.c.attempts + 1),
        (submissions.c.lease_expires_at, bindparam("lease_expires_at")),
        (submissions.c.updated_at, bindparam("updated_at")),
    )
)

_RENEW_CONTENT = (
    update(submissions)
    .where(_OWN_ROWS, submissions.c.status == LedgerStatus.IN_DOUBT)
    .values({name: bindparam(name) for name in ("status", *_CONTENT, "updated_at")})
)
_WITNESS = (
    select(submissions.c.user_id, submissions.c.session_id)
    .where(
        submissions.c.status == LedgerStatus.DELIVERED,
        submissions.c.namespace.startswith(bindparam("b_connection"), autoescape=False),
        submissions.c.user_id.is_not(None),
        submissions.c.session_id.is_not(None),
        submissions.c.updated_at <= bindparam("b_before", type_=UtcDateTime()),
    )
    .order_by(submissions.c.updated_at.desc())
    .limit(1)
)
_SAME_WORDS = (
    select(submissions.c.row_key)
    .where(
        submissions.c.status.in_((LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT)),
        submissions.c.user_id == bindparam("b_user_id"),
        submissions.c.message_hash == bindparam("b_message_hash"),
        func.coalesce(submissions.c.into_session, "") == bindparam("b_into_session"),
        not_(_ONE_ROW),
    )
    .limit(1)
)
_SESSIONS_OF_OTHERS = select(submissions.c.session_id).where(
    submissions.c.session_id.in_(bindparam("b_session_ids", expanding=True)), not_(_ONE_ROW)
)

_COUNT_CHANGE = (
    update(submissions)
    .where(_ONE_ROW, func.coalesce(submissions.c.changes, 0) == bindparam("b_before"))
    .values(changes=bindparam("number"), payload_hash=bindparam("payload_hash"), updated_at=bindparam("updated_at"))
)
_SETTLED_COLUMNS = ("session_id", "agent_id", "error", "reply", "response", "lease_expires_at", "updated_at")
_SETTLE = {
    status: update(submissions)
    .where(_ONE_ROW, submissions.c.owner == bindparam("b_owner"), or_(*(submissions.c.status == one for one in before)))
    .values(status=status, **{name: bindparam(name) for name in _SETTLED_COLUMNS})
    for status, before in rules.SETTLED_FROM.items()
}
