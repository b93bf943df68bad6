"""The ledger's rows as people look at them: a page at a time, those first that wait for a decision, and counted."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import and_, func, not_, select, union_all

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.refs import task_ref
from halo_provider.ledger.row_filter import RowCursor, RowFilter, cursor_of, values_by_status
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import MYSQL, deliveries, events, submissions

PAGE = 100  # rows of a page, unless told otherwise
SEARCH_STEP = 500  # rows that a search reads at a time
SEARCH_TIME = 0.15  # seconds after which a page of a search ends, with what it has found
MAX_SORTED = 20_000  # rows that are read to sort them
NAMED_TOGETHER = 100  # task instances whose names are read by one statement
NOT_MAPPED = -1  # the map index of a task that is not mapped
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


@dataclass(frozen=True, slots=True)
class UrgencyCursor:
    """The last row of a page of `RowReader.urgent_first`."""

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


class RowReader:
    """Finds rows, and changes none. Every method raises LedgerError where the database cannot be used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
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
        # By numbers alone: PostgreSQL takes each name for another choice, and reads and sorts all rows that are left
        # where it expects fewer than a page.
        rows = select(*fields).where(*wanted.conditions(by_numbers=True))
        bounds = [*behind, not_(self._behind(until, wanted))] if until is not None else behind
        if reads_keys_first:
            # MySQL would sort whole rows where an index has their keys in this order, and for a bound on both sides
            # PostgreSQL reads all of the table. SQLite does neither, but would read all of an index for the join.
            key = (submissions.c.namespace, submissions.c.row_key)
            keys = select(*dict.fromkeys((*key, *wanted.order()))).where(*scope.conditions(by_numbers=True), *behind)
            page = keys.order_by(*wanted.order()).limit(limit if scope == wanted else SEARCH_STEP).subquery()
            rows = rows.select_from(page.join(submissions, and_(*(page.c[column.name] == column for column in key))))
            bounds = [not_(self._behind(until, wanted, columns=page.c))] if until is not None else []
            for each in MYSQL:
                rows = rows.prefix_with("STRAIGHT_JOIN", dialect=each)
        found = self._all(rows.where(*bounds).order_by(*wanted.order()).limit(limit))
        named = [row for row in found if wanted.names(row)]
        if len(named) == len(found):
            return named
        # A page that is not full is taken for the last one.
        left = limit - len(named)
        return named + self.page(wanted, after=cursor_of(found[-1]), until=until, limit=left, columns=columns)

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
        by_task = wanted.is_of_some_tasks
        every = replace(wanted, task_id=None, map_index=None) if by_task else wanted
        # Grouped by the index's other column as well, or MySQL chooses for the grouping an index that lacks it.
        part = columns.task_ref if by_task else columns.run_ref if wanted.is_of_one_run else columns.dag_id
        statement = select(columns.status, part, func.count()).where(*every.conditions(by_numbers=True))
        found = self._all(statement.group_by(columns.status, part))
        if by_task:
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

    def _behind(self, cursor: RowCursor, wanted: RowFilter, *, columns: Any = submissions.c) -> Any:
        return wanted.behind(cursor, dialect=self._ledger.engine.dialect.name, columns=columns)

    def _values(self, column: Any, statuses: Sequence[LedgerStatus], *conditions: Any) -> list[Any]:
        return self._all(values_by_status(column, statuses, *conditions, dialect=self._ledger.engine.dialect.name))

    def _all(self, statement: Any) -> list[Any]:
        return self._ledger.transaction(lambda db: list(db.execute(statement)), read_only=True)
