"""What people look at first: where rows are stuck and since when, why, and which rows of a run another run has by now.

Counts come from an index. What an index does not have is read from so many rows at most that a page stays fast, and
the answer says where that is not all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, case, func, or_, select
from sqlalchemy.engine import Connection

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.refs import run_ref
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions

STUCK = (LedgerStatus.IN_DOUBT, LedgerStatus.FAILED, LedgerStatus.REJECTED)  # not delivered: shown first
MAX_READ = 10_000  # rows of each status that are read for what no index has
RECENT = timedelta(hours=24)
CAUSES_SHOWN = 20


@dataclass(kw_only=True, slots=True)
class StuckRows:
    """The rows of one DAG and one submission that are stuck.

    `oldest` is when the first of them came into its status, and `recent` how many did so within `RECENT` of now. With
    `is_older` not all of them were read: one may be older, and more may be recent.
    """

    dag_id: str
    namespace: str
    counts: dict[LedgerStatus, int] = field(default_factory=dict)
    oldest: datetime | None = None
    recent: int = 0
    is_older: bool = False


@dataclass(frozen=True, slots=True)
class Cause:
    """Why rows are stuck: how many of a status have this error."""

    status: LedgerStatus
    error: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Causes:
    """The most frequent causes first. `is_whole` is false where more rows are stuck than were read."""

    found: list[Cause]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class WentOn:
    """How many rows that had trouble in one run are another run's by now, by their status there."""

    dag_id: str
    run_id: str | None
    counts: dict[LedgerStatus, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())


class Triage:
    """Reads only. Every method raises LedgerError where the database cannot be used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def stuck(self, dag_ids: Sequence[str], *, now: datetime) -> list[StuckRows]:
        """Where rows are stuck, those with the most in doubt first."""
        columns = submissions.c
        place = (columns.dag_id, columns.namespace)
        found: dict[tuple[str, str], StuckRows] = {}

        def read(db: Connection) -> None:
            found.clear()
            for status in STUCK:
                conditions = RowFilter(dag_ids=tuple(dag_ids), statuses=(status,)).conditions()
                total = 0
                for dag_id, namespace, count in db.execute(
                    select(*place, func.count()).where(*conditions).group_by(*place)
                ):
                    line = found.setdefault((dag_id, namespace), StuckRows(dag_id=dag_id, namespace=namespace))
                    line.counts[status] = count
                    total += count
                some = select(*place, columns.updated_at).where(*conditions).limit(MAX_READ).subquery()
                is_recent = case((some.c.updated_at >= now - RECENT, 1))
                ages = select(some.c.dag_id, some.c.namespace, func.min(some.c.updated_at), func.count(is_recent))
                for dag_id, namespace, oldest, recent in db.execute(ages.group_by(some.c.dag_id, some.c.namespace)):
                    line = found[dag_id, namespace]
                    line.oldest = oldest if line.oldest is None else min(line.oldest, oldest)
                    line.recent += recent
                    line.is_older |= total > MAX_READ

        self._ledger.transaction(read, read_only=True)
        return sorted(found.values(), key=lambda line: [-line.counts.get(status, 0) for status in STUCK])

    def causes(self, wanted: RowFilter) -> Causes:
        """Why the wanted rows are stuck."""
        found: list[Cause] = []
        is_whole = True

        def read(db: Connection) -> None:
            nonlocal is_whole
            found.clear()
            for status in STUCK:
                if wanted.statuses and status not in wanted.statuses:
                    continue
                conditions = replace(wanted, statuses=(status,)).conditions()
                some = select(submissions.c.error).where(*conditions).limit(MAX_READ).subquery()
                causes = [
                    Cause(status, error, count)
                    for error, count in db.execute(select(some.c.error, func.count()).group_by(some.c.error))
                ]
                is_whole &= sum(cause.count for cause in causes) < MAX_READ
                found.extend(causes)

        self._ledger.transaction(read, read_only=True)
        found.sort(key=lambda cause: -cause.count)
        return Causes(found[:CAUSES_SHOWN], is_whole and len(found) <= CAUSES_SHOWN)

    def went_on(self, dag_id: str, run_id: str) -> list[WentOn]:
        """Where the rows are by now that had trouble in a run and were claimed by another one since."""
        columns = submissions.c
        where = (columns.dag_id, columns.run_id)
        statement = select(*where, columns.status, func.count()).select_from(_rows_of_history(dag_id, run_id))
        statement = statement.where(_is_elsewhere(dag_id, run_id)).group_by(*where, columns.status)
        counts: dict[tuple[str, str | None], dict[LedgerStatus, int]] = {}
        for now_dag, now_run, status, count in self._all(statement):
            counts.setdefault((now_dag, now_run), {})[status] = count
        return [WentOn(*place, by_status) for place, by_status in counts.items()]

    def rows_that_went_on(
        self, dag_id: str, run_id: str, *, dag_ids: Sequence[str], search: str | None, limit: int, offset: int = 0
    ) -> list[Any]:
        """These rows, as far as they are of `dag_ids` now; `search` is as in `RowFilter`."""
        columns = submissions.c
        statement = select(submissions).select_from(_rows_of_history(dag_id, run_id))
        statement = statement.where(_is_elsewhere(dag_id, run_id), columns.dag_id.in_(list(dag_ids)))
        if search:
            found_in = (columns.row_key, columns.user_id, columns.session_id)
            statement = statement.where(or_(*(column.contains(search, autoescape=True) for column in found_in)))
        return self._all(statement.order_by(columns.namespace, columns.row_key).limit(limit).offset(offset))

    def _all(self, statement: Any) -> list[Any]:
        return self._ledger.transaction(lambda db: list(db.execute(statement)), read_only=True)


def _rows_of_history(dag_id: str, run_id: str) -> Any:
    """The rows whose history has an event of this run, `MAX_READ` of them at most."""
    keys = (events.c.namespace, events.c.row_key)
    told = select(*keys).where(events.c.run_ref == run_ref(dag_id, run_id), events.c.dag_id == dag_id)
    some = told.distinct().limit(MAX_READ).subquery()
    columns = submissions.c
    return some.join(submissions, and_(columns.namespace == some.c.namespace, columns.row_key == some.c.row_key))


def _is_elsewhere(dag_id: str, run_id: str) -> Any:
    columns = submissions.c
    return or_(columns.dag_id != dag_id, columns.run_id != run_id)
