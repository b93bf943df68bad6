"""Rows of people who are forgotten: what is left of a row, so that it is not sent again, and how it comes to that.

A tombstone is a row with nothing but its namespace, a hash in the place of its key, a status that is an end, the task
instance and times that it had, and the reason where it was not delivered. Whoever knows the row's key can find it.
"""

from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, insert, or_, select, update
from sqlalchemy.engine import Connection

from halo_provider.ledger import rules
from halo_provider.ledger.database import Database
from halo_provider.ledger.row_filter import RowCursor, keys_of
from halo_provider.ledger.rules import Candidate, KnownRow
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions

CHUNK = 500  # rows in one transaction
FORGOTTEN = "the ledger was told to forget this row's user"
_HAPPENED = "\tforgotten"  # in the place of a key: the event that tells of it, of a namespace and no row
_MARK = f"{_HAPPENED} "  # a row's key never holds a tab

_KEPT = {
    "namespace", "row_key", "status", "attempts", "updated_at", "created_at", "logical_date",
    "dag_id", "run_id", "task_id", "map_index", "try_number", "run_ref", "task_ref", "error",
}  # fmt: skip
_ERASED = dict.fromkeys(column.name for column in submissions.columns if column.name not in _KEPT)
_BURY = (
    update(submissions)
    .where(submissions.c.namespace == bindparam("b_namespace"), submissions.c.row_key == bindparam("b_row_key"))
    .values(
        row_key=bindparam("tombstone"),
        status=bindparam("end"),
        error=bindparam("why"),
        updated_at=bindparam("now"),
        **_ERASED,
    )
)
_HAS_TOMBSTONES = (
    select(events.c.id).where(events.c.namespace == bindparam("b_namespace"), events.c.row_key == _HAPPENED).limit(1)
)


class Forgotten(NamedTuple):
    """How many rows became tombstones, and how many were left since a running task holds them."""

    rows: int
    left: int


def no_tombstone() -> Any:
    """The condition for rows that people may settle and prune: a tombstone stays what it is."""
    return submissions.c.row_key.not_like(f"{_MARK}%")


def find_tombstones(db: Connection, namespace: str, candidates: Sequence[Candidate]) -> dict[str, KnownRow]:
    """Those of the candidates whose rows are forgotten, as rows at their end with the candidate's own content."""
    if not candidates or db.execute(_HAS_TOMBSTONES, {"b_namespace": namespace}).first() is None:
        return {}
    keys = {_tombstone(namespace, candidate.row_key): candidate for candidate in candidates}
    found = db.execute(
        select(submissions.c.row_key, submissions.c.status, submissions.c.error).where(
            submissions.c.namespace == namespace, submissions.c.row_key.in_(list(keys))
        )
    )
    known = {}
    for tombstone, status, error in found:
        candidate = keys[tombstone]
        known[candidate.row_key] = KnownRow(
            row_key=candidate.row_key, status=status, payload_hash=candidate.payload_hash, error=error
        )
    return known


def rows_of_user(database: Database, user_id: str) -> list[Any]:
    """The namespace, key and status of each of the user's rows. Reads the whole table. Raises LedgerError."""
    columns = submissions.c
    statement = select(columns.namespace, columns.row_key, columns.status, columns.user_id)
    found = database.transaction(
        lambda db: list(db.execute(statement.where(columns.user_id == user_id))), read_only=True
    )
    return sorted(
        (row for row in found if row.user_id == user_id),  # MySQL takes a for A
        key=lambda row: (row.namespace, row.row_key),
    )


def forget(database: Database, user_id: str, *, actor: str) -> Forgotten:
    """Make tombstones of a user's rows, and delete their histories. Raises LedgerError.

    What was delivered is a delivered tombstone, all else a rejected one. Halo still has what it got.
    """
    rows = rows_of_user(database, user_id)
    forgotten = 0
    for start in range(0, len(rows), CHUNK):
        some = [RowCursor(row.namespace, row.row_key) for row in rows[start : start + CHUNK]]
        forgotten += database.transaction(partial(_bury, database, some, user_id, actor))
    return Forgotten(forgotten, len(rows) - forgotten)


def _bury(database: Database, some: Sequence[RowCursor], user_id: str, actor: str, db: Connection) -> int:
    columns = submissions.c
    times = database.times(db)
    free = or_(columns.lease_expires_at.is_(None), columns.lease_expires_at <= times.lease_now)
    rows = list(
        db.execute(
            select(columns.namespace, columns.row_key, columns.status)
            .where(keys_of(submissions, some), columns.user_id == user_id, free)
            .with_for_update()
        )
    )
    if not rows:
        return 0
    db.execute(delete(events).where(keys_of(events, rows)))
    db.execute(
        _BURY,
        [
            {
                "b_namespace": row.namespace,
                "b_row_key": row.row_key,
                "tombstone": _tombstone(row.namespace, row.row_key),
                "end": LedgerStatus.DELIVERED if delivered else LedgerStatus.REJECTED,
                "why": None if delivered else FORGOTTEN,
                "now": times.now,
            }
            for row in rows
            for delivered in [row.status is LedgerStatus.DELIVERED]
        ],
    )
    told = [
        rules.event(
            "forgotten",
            namespace,
            _HAPPENED,
            actor=actor,
            now=times.now,
            detail=f"{sum(row.namespace == namespace for row in rows):,} rows of one user",
            belongs_to={"dag_id": None, "run_ref": None},
        )
        for namespace in sorted({row.namespace for row in rows})
    ]
    db.execute(insert(events), told)
    return len(rows)


def _tombstone(namespace: str, row_key: str) -> str:
    named = f"{namespace}\n{row_key}"
    return _MARK + sha256(named.encode(errors="surrogatepass")).hexdigest()
