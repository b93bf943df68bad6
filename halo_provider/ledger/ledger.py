"""The ledger: the durable table that knows each row's status, and the only place where a status changes.

A row's life::

    (new) -> pending -> in_flight -> delivered | rejected | in_doubt | failed

A claim makes a row pending under one owner and a lease (a row in doubt stays in doubt); an intent makes it in_flight
before its first byte is sent; a settlement records the outcome right after. An attempt that Halo certainly did not take
goes back to pending. Every change is a conditional UPDATE on owner and status whose row count is checked. A live lease
keeps everybody else away; an in_flight row whose lease ran out is in doubt. Never stored: messages, context, traits,
secrets.

The calls block; one thread at a time may use a LeaseHolder.
"""

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Insert,
    and_,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    inspect,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from halo_provider.exceptions import HaloConfigurationError, LedgerError, redact
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import MAX_NAMESPACE, create_tables, events, submissions

MAX_TEXT = 500  # characters kept of an error and of a reply
MAX_RESPONSE = 10_000  # characters of JSON kept of an answer's undocumented fields
LEASE = 60.0  # seconds a claim lives without being renewed
TRANSACTION_ATTEMPTS = 5  # a transaction the database gave up for another's sake is simply run again
BUSY_TIMEOUT = 30.0  # seconds a writer waits for SQLite's lock
BUSY_POLL = 0.02  # seconds between tries where SQLite does not wait by itself

_CHANGE_MARK = "\tchange "

OnInDoubt = Literal["resend", "hold"]
_T = TypeVar("_T")


class ClaimResult(StrEnum):
    """What a claim found out about a row."""

    CLAIMED = "claimed"  # this owner may send it
    DELIVERED = "delivered"  # nothing to do
    REJECTED = "rejected"  # the same payload was rejected before, or the row cannot be rendered
    IN_DOUBT = "in_doubt"  # held back by on_in_doubt="hold"
    BUSY = "busy"  # another owner has a live lease


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInstanceRef:
    """Which Airflow task instance speaks: written beside every row it claims."""

    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    logical_date: datetime | None = None

    @property
    def name(self) -> str | None:
        """What the history calls it."""
        if self.task_id is None:
            return None
        mapped = f"[{self.map_index}]" if self.map_index is not None and self.map_index >= 0 else ""
        return f"{self.dag_id} {self.run_id} {self.task_id}{mapped} try {self.try_number}"


class Candidate(NamedTuple):
    """A row that asks to be claimed; one that could not be rendered comes with the error instead of a hash."""

    row_key: str
    user_id: str | None = None
    payload_hash: str | None = None
    error: str | None = None


class Claim(NamedTuple):
    """The answer to a Candidate.

    `doubtful`: Halo may have it from an earlier attempt already. `changed`: it was delivered with another payload;
    `changes` counts the follow-ups delivered since.
    """

    result: ClaimResult
    session_id: str | None = None
    error: str | None = None
    doubtful: bool = False
    changed: bool = False
    changes: int = 0

    @property
    def has_changed(self) -> bool:
        """Whether it is a delivered row that has another content now."""
        return self.result is ClaimResult.DELIVERED and self.changed


class KnownRow(NamedTuple):
    """A row of the table, as far as a claim looks at it."""

    row_key: str
    status: str
    user_id: str | None
    session_id: str | None
    payload_hash: str | None
    changes: int | None
    error: str | None
    owner: str | None
    lease_expires_at: datetime | None


class Change(NamedTuple):
    """Which change of a delivered row a follow-up carries; counted from 1."""

    row_key: str
    number: int
    payload_hash: str

    @property
    def ledger_key(self) -> str:
        """The follow-up's own key in the ledger: a row's key never holds a tab."""
        return f"{self.row_key}{_CHANGE_MARK}{self.number}"

    @classmethod
    def at(cls, ledger_key: str, payload_hash: str) -> "Change | None":
        """The change whose key this is; None for a row's own key."""
        row_key, mark, number = ledger_key.partition(_CHANGE_MARK)
        return cls(row_key, int(number), payload_hash) if mark else None


class Settlement(NamedTuple):
    """The outcome of an attempt, or of a claim given back. `final` also ends the lease."""

    row_key: str
    status: LedgerStatus
    final: bool = True
    session_id: str | None = None
    agent_id: str | None = None
    error: str | None = None
    reply: str | None = None
    response: Mapping[str, Any] | None = None
    change: Change | None = None

    @property
    def is_noteworthy(self) -> bool:
        """Whether the row's history should tell: something went wrong with an attempt."""
        return self.status in _TROUBLE or (self.status is LedgerStatus.PENDING and not self.final)


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did: `intents` are on the record; what is lost is no longer this owner's."""

    intents: frozenset[str] = field(default_factory=frozenset)
    lost_intents: frozenset[str] = field(default_factory=frozenset)
    lost_settlements: frozenset[str] = field(default_factory=frozenset)


class Ledger:
    """The table on one database. Build it with `open` or over an engine of your own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.engine.hide_parameters = True  # SQLAlchemy's errors would quote them
        self._clock_offset = timedelta()

    @classmethod
    def at(cls, url: str | URL) -> "Ledger":
        """Open the ledger at a SQLAlchemy URL and create what is missing. Raises LedgerError."""
        try:
            ledger = cls(create_engine(url, pool_pre_ping=True))
        except (SQLAlchemyError, ImportError) as error:
            raise LedgerError(f"the ledger cannot be opened: {_reason(error)}") from error
        ledger.prepare()
        return ledger

    @classmethod
    def at_path(cls, path: Path) -> "Ledger":
        """Open the SQLite ledger in a file: for tasks that all run on one host. Raises LedgerError."""
        return cls.at(URL.create("sqlite", database=str(path)))

    def prepare(self) -> None:
        """Create the table where it is missing and read the database's clock. Raises LedgerError."""
        if self.engine.dialect.name == "sqlite":
            _tune_sqlite(self.engine)
        else:
            _tune_server(self.engine)
        try:
            create_tables(self.engine)
            self.read_clock()
        except SQLAlchemyError as error:
            raise LedgerError(f"the ledger cannot be opened: {_reason(error)}") from error

    def exists(self) -> bool:
        """Whether the database has the table. Raises LedgerError where it cannot be reached."""
        return self.transaction(lambda db: inspect(db).has_table(submissions.name))

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def read_clock(self) -> None:
        """Learn how far this host's clock is from the database's, which decides about leases. Raises LedgerError."""
        match self.engine.dialect.name:
            case "postgresql":
                timestamp = select(func.clock_timestamp())
            case "mysql" | "mariadb":
                timestamp = select(func.utc_timestamp(6))
            case _:
                return
        found: datetime = self.transaction(lambda db: db.execute(timestamp).scalar_one())
        aware = found if found.tzinfo else found.replace(tzinfo=UTC)
        self._clock_offset = aware - datetime.now(UTC)

    def now(self) -> datetime:
        """The database's time."""
        return datetime.now(UTC) + self._clock_offset

    def transaction(self, work: Callable[[Connection], _T], *, read_only: bool = False) -> _T:
        """Run `work` in one transaction, again where the database chose it as a deadlock's victim.

        One that is `read_only` neither waits for SQLite's writer nor keeps it waiting.
        Raises LedgerError where the database cannot be reached or refuses.
        """
        engine = self.engine.execution_options(read_only=True) if read_only else self.engine
        for attempt in range(1, TRANSACTION_ATTEMPTS + 1):
            try:
                with engine.begin() as db:
                    return work(db)
            except OperationalError as error:
                if attempt == TRANSACTION_ATTEMPTS or not _is_contention(error):
                    raise LedgerError(f"the ledger cannot be used: {_reason(error)}") from error
            except SQLAlchemyError as error:
                raise LedgerError(f"the ledger cannot be used: {_reason(error)}") from error
        raise AssertionError  # the last attempt returns or raises

    def find(self, namespace: str, row_keys: Sequence[str]) -> dict[str, "KnownRow"]:
        """The rows of these keys, by key."""
        return self.transaction(lambda db: _find(db, namespace, row_keys))

    def lease_holder(self, namespace: str, *, task_instance: TaskInstanceRef, lease: float = LEASE) -> "LeaseHolder":
        """A new owner of claims in one namespace. Raises HaloConfigurationError where the namespace is too long."""
        if len(namespace) > MAX_NAMESPACE:
            raise HaloConfigurationError(
                f"connection id and submission name have {len(namespace)} characters together, at most "
                f"{MAX_NAMESPACE} fit; shorten one"
            )
        return LeaseHolder(self, namespace, task_instance=task_instance, lease=lease)


class LeaseHolder:
    """One process start's claims in one namespace: `owner` is unique to it."""

    def __init__(self, ledger: Ledger, namespace: str, *, task_instance: TaskInstanceRef, lease: float) -> None:
        self.owner = f"{os.uname().nodename[:60]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        self.namespace = namespace
        self.lease = lease
        self._ledger = ledger
        self._task_instance = task_instance
        self._task_instance_columns = {
            name: getattr(task_instance, name) for name in TaskInstanceRef.__dataclass_fields__
        }
        self._held: set[str] = set()
        self._renewed = time.monotonic()

    @property
    def lease_left(self) -> float:
        """Seconds until others may take over what this owner holds."""
        return self._renewed + self.lease - time.monotonic()

    def claim(self, candidates: Sequence[Candidate], *, on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        """Claim what may be sent, in one transaction, and say for every key where it stands.

        Candidates with an error become rejected, unless they are delivered or another's. Keys must not repeat.
        """
        if not candidates:
            return {}
        renewed = time.monotonic()
        claims = self._ledger.transaction(lambda db: self._claim(db, candidates, on_in_doubt))
        if not self._held:
            self._renewed = renewed
        self._held.update(key for key, claim in claims.items() if claim.result is ClaimResult.CLAIMED)
        return claims

    def followed(self, submission_name: str, row_keys: Sequence[str]) -> dict[str, KnownRow]:
        """The rows of another submission on the same connection, by key; unknown ones are left out."""
        return self._ledger.find(f"{self.namespace.rpartition('/')[0]}/{submission_name}", row_keys)

    def preview(self, candidates: Sequence[Candidate], *, on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        """Say where every key stands, as `claim` would, and write nothing."""
        now = self._ledger.now()
        found = self._ledger.find(self.namespace, [candidate.row_key for candidate in candidates])
        return {
            candidate.row_key: _claim_of(self._result_for(row, candidate, now, on_in_doubt), row, candidate)
            for candidate in candidates
            for row in [found.get(candidate.row_key)]
        }

    def _claim(self, db: Connection, candidates: Sequence[Candidate], on_in_doubt: OnInDoubt) -> dict[str, Claim]:
        now = self._ledger.now()
        lease_end = now + timedelta(seconds=self.lease)
        keys = [candidate.row_key for candidate in candidates]
        found = _find(db, self.namespace, keys)
        claims: dict[str, Claim] = {}
        fresh: list[dict[str, Any]] = []
        taken: list[dict[str, Any]] = []
        for candidate in sorted(candidates, key=_row_key):  # all writers in one order, or they deadlock
            row = found.get(candidate.row_key)
            result = self._result_for(row, candidate, now, on_in_doubt)
            claims[candidate.row_key] = _claim_of(result, row, candidate)
            if row is None:
                fresh.append(self._new_row(candidate, result, now, lease_end))
            elif result is ClaimResult.CLAIMED or _must_be_written(row, result, candidate):
                taken.append(self._takeover(row, candidate, result, now, lease_end))
        if fresh:
            db.execute(_insert_or_leave(db.dialect.name), fresh)
        if taken:
            _execute_counted(db, _TAKE_OVER, taken)
        if (fresh or taken) and db.dialect.name != "sqlite":  # whose transaction keeps other writers out from the start
            self._confirm(db, claims)
        expired = [
            self._event(
                candidate.row_key, LedgerStatus.IN_DOUBT, "the lease of the run that was sending it ran out", now
            )
            for candidate in candidates
            if candidate.row_key in found
            and found[candidate.row_key].status == LedgerStatus.IN_FLIGHT
            and claims[candidate.row_key].result is not ClaimResult.BUSY
        ]
        if expired:
            db.execute(insert(events), expired)
        return claims

    def _confirm(self, db: Connection, claims: dict[str, Claim]) -> None:
        """Somebody may have claimed a row between our look and our write: then it is theirs."""
        ours = [key for key, claim in claims.items() if claim.result is ClaimResult.CLAIMED]
        asked = {"b_namespace": self.namespace, "b_keys": ours, "b_owner": self.owner}
        won = set(db.scalars(_OWNED, asked)) if ours else set()
        for key in ours:
            if key not in won:
                claims[key] = Claim(ClaimResult.BUSY)

    def _result_for(
        self, row: KnownRow | None, candidate: Candidate, now: datetime, on_in_doubt: OnInDoubt
    ) -> ClaimResult:
        if row is not None:
            if row.status == LedgerStatus.DELIVERED:
                return ClaimResult.DELIVERED
            if row.owner != self.owner and row.lease_expires_at is not None and row.lease_expires_at > now:
                return ClaimResult.BUSY
        if candidate.error is not None:
            return ClaimResult.REJECTED
        match row.status if row is not None else None:
            case LedgerStatus.REJECTED if row is not None and row.payload_hash == candidate.payload_hash:
                return ClaimResult.REJECTED
            case LedgerStatus.IN_FLIGHT | LedgerStatus.IN_DOUBT if on_in_doubt == "hold":
                return ClaimResult.IN_DOUBT
        return ClaimResult.CLAIMED

    def _new_row(self, candidate: Candidate, result: ClaimResult, now: datetime, lease_end: datetime) -> dict[str, Any]:
        claimed = result is ClaimResult.CLAIMED
        return {
            "namespace": self.namespace,
            "row_key": candidate.row_key,
            "status": LedgerStatus.PENDING if claimed else LedgerStatus.REJECTED,
            "user_id": candidate.user_id,
            "payload_hash": candidate.payload_hash,
            "attempts": 0,
            "error": _shortened(candidate.error),
            "owner": self.owner,
            "lease_expires_at": lease_end if claimed else None,
            "created_at": now,
            "updated_at": now,
            **self._task_instance_columns,
        }

    def _takeover(
        self, row: KnownRow, candidate: Candidate, result: ClaimResult, now: datetime, lease_end: datetime
    ) -> dict[str, Any]:
        claimed = result is ClaimResult.CLAIMED
        doubtful = row.status in _DOUBTFUL
        certain = LedgerStatus.PENDING if claimed else LedgerStatus.REJECTED
        return {
            "b_namespace": self.namespace,
            "b_row_key": row.row_key,
            "b_status": row.status,
            "b_owner": row.owner,
            "b_now": now,
            "status": LedgerStatus.IN_DOUBT if doubtful else certain,
            "user_id": candidate.user_id or row.user_id,
            "payload_hash": row.payload_hash if result is ClaimResult.IN_DOUBT else candidate.payload_hash,
            "error": _shortened(candidate.error) or row.error,
            "owner": self.owner if claimed else row.owner,
            "lease_expires_at": lease_end if claimed else None,
            "updated_at": now,
            **self._task_instance_columns,
        }

    def commit(self, *, settlements: Sequence[Settlement] = (), intents: Sequence[str] = ()) -> Commit:
        """Record outcomes, then intents, in one transaction: when it returns, the intents' rows may be sent.

        A key may stand in both: its earlier attempt is settled before its next one begins. What is no longer this
        owner's is left alone and named in the answer.
        """
        commit = self._ledger.transaction(lambda db: self._commit(db, settlements, intents))
        self._held.difference_update(settlement.row_key for settlement in settlements if settlement.final)
        return commit

    def _commit(self, db: Connection, settlements: Sequence[Settlement], intents: Sequence[str]) -> Commit:
        now = self._ledger.now()
        lost_settlements: set[str] = set()
        for status, statement in _SETTLE.items():
            group = [settlement for settlement in settlements if settlement.status is status]
            if group and not _execute_counted(db, statement, [self._settled(settlement, now) for settlement in group]):
                lost_settlements |= self._not_mine(db, [settlement.row_key for settlement in group], status)
        count_changes(
            db,
            self.namespace,
            [
                settlement.change
                for settlement in settlements
                if settlement.change
                and settlement.status is LedgerStatus.DELIVERED
                and settlement.row_key not in lost_settlements
            ],
            now=now,
        )
        troubles = [
            self._event(settlement.row_key, settlement.status, settlement.error, now)
            for settlement in settlements
            if settlement.is_noteworthy
        ]
        if troubles:
            db.execute(insert(events), troubles)
        lost_intents: set[str] = set()
        if intents:
            changed = db.execute(_INTEND, self._intended(intents, now)).rowcount
            if changed != len(intents):
                lost_intents = self._not_mine(db, intents, LedgerStatus.IN_FLIGHT)
        return Commit(frozenset(intents) - lost_intents, frozenset(lost_intents), frozenset(lost_settlements))

    def _event(self, row_key: str, event: LedgerStatus, detail: str | None, now: datetime) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "row_key": row_key,
            "at": now,
            "actor": self._task_instance.name or self.owner,
            "event": event.value,
            "detail": _shortened(detail),
        }

    def _not_mine(self, db: Connection, row_keys: Sequence[str], status: LedgerStatus) -> set[str]:
        asked = {"b_namespace": self.namespace, "b_keys": list(row_keys), "b_owner": self.owner, "b_status": status}
        return set(row_keys) - set(db.scalars(_OWNED_WITH_STATUS, asked))

    def _intended(self, row_keys: Sequence[str], now: datetime) -> dict[str, Any]:
        return {
            "b_namespace": self.namespace,
            "b_owner": self.owner,
            "b_keys": list(row_keys),
            "lease_expires_at": now + timedelta(seconds=self.lease),
            "updated_at": now,
        }

    def _settled(self, settlement: Settlement, now: datetime) -> dict[str, Any]:
        return {
            "b_namespace": self.namespace,
            "b_row_key": settlement.row_key,
            "b_owner": self.owner,
            "session_id": _storable(settlement.session_id),
            "agent_id": _storable(settlement.agent_id),
            "error": _shortened(settlement.error),
            "reply": _shortened(settlement.reply),
            "response": _plain(settlement.response) if settlement.response else None,
            "lease_expires_at": None if settlement.final else now + timedelta(seconds=self.lease),
            "updated_at": now,
        }

    def renew(self) -> None:
        """Put off the end of every lease this owner holds."""
        renewed = time.monotonic()
        held = sorted(self._held)
        if held:
            self._ledger.read_clock()
            self._ledger.transaction(lambda db: self._renew(db, held))
        self._renewed = renewed

    def _renew(self, db: Connection, held: Sequence[str]) -> None:
        lease_end = self._ledger.now() + timedelta(seconds=self.lease)
        owned = {"b_namespace": self.namespace, "b_keys": list(held), "b_owner": self.owner}
        db.execute(_RENEW, {**owned, "lease_expires_at": lease_end})


def count_changes(db: Connection, namespace: str, changes: Sequence[Change], *, now: datetime) -> None:
    """Note beside the rows that these changes of theirs are with Halo; one that is noted already stays as it is."""
    if changes:
        db.execute(
            _COUNT_CHANGE,
            [
                {
                    "b_namespace": namespace,
                    "b_row_key": change.row_key,
                    "b_before": change.number - 1,
                    "number": change.number,
                    "payload_hash": change.payload_hash,
                    "updated_at": now,
                }
                for change in changes
            ],
        )


def _find(db: Connection, namespace: str, row_keys: Sequence[str]) -> dict[str, KnownRow]:
    found = db.execute(_FIND, {"b_namespace": namespace, "b_keys": list(row_keys)})
    return {row.row_key: row for row in map(KnownRow._make, found)}


def _row_key(candidate: Candidate) -> str:
    return candidate.row_key


def _claim_of(result: ClaimResult, row: KnownRow | None, candidate: Candidate) -> Claim:
    if row is None:
        return Claim(result, error=candidate.error)
    return Claim(
        result,
        session_id=row.session_id,
        error=candidate.error or row.error,
        doubtful=row.status in _DOUBTFUL,
        changed=None not in (row.payload_hash, candidate.payload_hash) and row.payload_hash != candidate.payload_hash,
        changes=row.changes or 0,
    )


def _must_be_written(row: KnownRow, result: ClaimResult, candidate: Candidate) -> bool:
    """Whether a row that is not claimed changes all the same: doubt, or a new reason to reject, becomes known."""
    match result:
        case ClaimResult.IN_DOUBT | ClaimResult.REJECTED if row.status == LedgerStatus.IN_FLIGHT:
            return True
        case ClaimResult.REJECTED if candidate.error is not None:
            return row.status != LedgerStatus.REJECTED or row.error != _shortened(candidate.error)
    return False


def _shortened(value: str | None) -> str | None:
    return _storable(redact(value)[:MAX_TEXT]) if value else None


def _storable(value: str | None) -> str | None:
    """Without NUL, which PostgreSQL's text has no room for."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if value else None


def _plain(response: Mapping[str, Any]) -> Any:
    """Without secrets, and without NaN and Infinity, which the parser takes but no database holds as JSON."""
    return from_json(redact(to_json(response, inf_nan_mode="null").decode()))


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
    """Run the statement for every set of parameters; whether each surely changed its one row."""
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

_TAKE_OVER = (
    update(submissions)
    .where(
        _ONE_ROW,
        submissions.c.status == bindparam("b_status"),
        submissions.c.owner == bindparam("b_owner"),
        or_(submissions.c.lease_expires_at.is_(None), submissions.c.lease_expires_at <= bindparam("b_now")),
    )
    .values({name: bindparam(name) for name in ("status", "user_id", "payload_hash", "error", "owner")})
    .values(
        {name: bindparam(name) for name in ("lease_expires_at", "updated_at", *TaskInstanceRef.__dataclass_fields__)}
    )
)

_INTEND = (
    update(submissions)
    .where(_OWN_ROWS, submissions.c.status.in_([LedgerStatus.PENDING, LedgerStatus.IN_DOUBT]))
    .values(status=LedgerStatus.IN_FLIGHT, attempts=submissions.c.attempts + 1)
    .values({name: bindparam(name) for name in ("lease_expires_at", "updated_at")})
)

# Where a settlement may come from. In doubt stands beside in_flight because another owner's look at an expired lease
# makes it so, and a late answer still settles it.
_LEGAL = {
    LedgerStatus.PENDING: (LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT),
    LedgerStatus.DELIVERED: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.REJECTED: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.IN_DOUBT: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.FAILED: (LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT),
}
_DOUBTFUL = frozenset({LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT})
_TROUBLE = frozenset({LedgerStatus.REJECTED, LedgerStatus.IN_DOUBT, LedgerStatus.FAILED})
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
    for status, before in _LEGAL.items()
}


def _reason(error: Exception) -> str:
    """The first line of the driver's words: those after it may quote the statement with its values."""
    words = error.orig if isinstance(error, DBAPIError) else error.args[0]
    return redact(str(words).partition("\n")[0])


def _is_contention(error: DBAPIError) -> bool:
    """Whether the database gave this transaction up for another's sake: a deadlock, a lock waited for too long."""
    sql_state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    mysql_code = error.orig.args[0] if error.orig and error.orig.args else None
    return sql_state in {"40001", "40P01"} or mysql_code in {1205, 1213} or "database is locked" in str(error.orig)


def _tune_server(engine: Engine) -> None:
    """Set READ COMMITTED once for each connection: by an option, it would be anew for each transaction, errors raw."""
    engine.dispose()

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        engine.dialect.set_isolation_level(connection, "READ COMMITTED")


def _tune_sqlite(engine: Engine) -> None:
    """Readers beside one writer, writers that wait, and a commit that is on the disk when it returns."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's recipe: the driver must not begin transactions by itself
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT * 1000)}")
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file over, once and for all. While somebody writes, SQLite refuses that without waiting."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= give_up_at:
                raise
            time.sleep(BUSY_POLL)
        else:
            return
