"""Which rows of the ledger people ask for, as SQL: a filter, an order, and the place in it where a page begins."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, false, func, literal, or_, select, tuple_, type_coerce, union_all

from halo_provider.ledger.refs import run_ref, task_ref
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import MYSQL, submissions

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement


@dataclass(frozen=True, slots=True)
class RowCursor:
    """A row's place in the order of a page. `task` is its task instance's number, where that comes before its key."""

    namespace: str
    row_key: str
    task: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """Which rows: every part given must hold. `search` is found in the row key, the user id or the session id.

    `rows` names rows one by one, `row_keys` those of these keys in any namespace. `unchanged_since` leaves out what
    was changed later; `changed_since` and `changed_before` are for people who look for a time, `updated_at` for a row
    that must be as it was when it was read. `ticket_statuses` are Halo's words, or `NO_TICKET` and `NOT_FOUND` of
    `ledger.tickets`.
    """

    namespace: str | None = None
    statuses: tuple[LedgerStatus, ...] = ()
    row_keys: tuple[str, ...] = ()
    rows: tuple[RowCursor, ...] = ()
    dag_ids: tuple[str, ...] | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    session_ids: tuple[str, ...] = ()
    ticket_statuses: tuple[str, ...] = ()
    search: str | None = None
    error: str | None = None
    unchanged_since: datetime | None = None
    updated_at: datetime | None = None
    changed_since: datetime | None = None
    changed_before: datetime | None = None

    @property
    def is_of_one_run(self) -> bool:
        """Whether the rows' run has a number, by which an index finds them."""
        return self.run_id is not None and self.dag_ids is not None and len(self.dag_ids) == 1

    @property
    def is_search(self) -> bool:
        """Whether rows have to be read to know whether they are wanted."""
        return self != self.without_search()

    def without_search(self) -> "RowFilter":
        """The same without what only the rows themselves tell."""
        return replace(self, search=None, error=None, changed_since=None, changed_before=None)

    @property
    def is_of_an_index(self) -> bool:
        """Whether an index has the rows of each status in the order of the pages, and knows which are wanted."""
        others = (self.row_keys, self.rows, self.session_ids, self.ticket_statuses, self.search, self.error)
        is_of_dags = self.dag_ids is not None and len(self.dag_ids) == 1
        times = (self.unchanged_since, self.updated_at, self.changed_since, self.changed_before)
        is_plain = not any(others) and not any(time is not None for time in times)
        return is_of_dags and len(self.statuses) == 1 and is_plain

    @property
    def is_of_one_task(self) -> bool:
        """The same for the task instance within the run."""
        return self.is_of_one_run and self.task_id is not None and self.map_index is not None

    @property
    def is_of_some_tasks(self) -> bool:
        """Whether it names a task or a map index of a run, but not both: several task instances may be meant."""
        return self.is_of_one_run and (self.task_id is None) != (self.map_index is None)

    @property
    def task_number(self) -> int | None:
        """The number of the task instance, where it is one."""
        return task_ref(self.task_id, self.map_index) if self.is_of_one_task else None

    def conditions(self, *, by_numbers: bool = False) -> list[Any]:
        """The same as SQL; `by_numbers` leaves out the names of a run and a task instance, which no index has."""
        columns = submissions.c
        conditions: list[Any] = []
        if self.is_of_one_run and self.dag_ids is not None:
            conditions.append(columns.run_ref == run_ref(self.dag_ids[0], self.run_id))
        if self.is_of_one_task:
            conditions.append(columns.task_ref == self.task_number)
        run_is_known = by_numbers and self.is_of_one_run
        task_is_known = by_numbers and self.is_of_one_task
        for column, wanted, is_known in (
            (columns.namespace, self.namespace, False),
            (columns.run_id, self.run_id, run_is_known),
            (columns.task_id, self.task_id, task_is_known),
            (columns.map_index, self.map_index, task_is_known),
            (columns.error, self.error, False),
            (columns.updated_at, self.updated_at, False),
        ):
            if wanted is not None and not is_known:
                conditions.append(column == wanted)
        if self.statuses:
            conditions.append(_one_of(columns.status, [status.value for status in self.statuses]))
        if self.dag_ids is not None and not run_is_known:
            conditions.append(_one_of(columns.dag_id, self.dag_ids) if self.dag_ids else false())
        return conditions + self._conditions_on_rows()

    def names(self, row: Any) -> bool:
        """Whether a row that was found by numbers has the names that are wanted: other names may have these numbers."""
        if not self.is_of_one_run or self.dag_ids is None:
            return True
        is_of_run = row.run_id == self.run_id and row.dag_id == self.dag_ids[0]
        return is_of_run and (not self.is_of_one_task or (row.task_id, row.map_index) == (self.task_id, self.map_index))

    def _conditions_on_rows(self) -> list[Any]:
        """Those about single rows, and what only they tell."""
        columns = submissions.c
        conditions: list[Any] = [
            column.in_(wanted)
            for column, wanted in (
                (columns.row_key, self.row_keys),
                (columns.session_id, self.session_ids),
                (columns.ticket_status, self.ticket_statuses),
            )
            if wanted
        ]
        if self.rows:
            conditions.append(keys_of(submissions, self.rows))
        if self.search:
            found_in = (columns.row_key, columns.user_id, columns.session_id)
            conditions.append(or_(*(column.contains(self.search, autoescape=True) for column in found_in)))
        if self.unchanged_since is not None:
            conditions.append(columns.updated_at <= self.unchanged_since)
        if self.changed_since is not None:
            conditions.append(columns.updated_at >= self.changed_since)
        if self.changed_before is not None:
            conditions.append(columns.updated_at < self.changed_before)
        return conditions

    def order(self) -> list[Any]:
        """The columns by which pages are ordered: as an index has the rows of one status."""
        columns = submissions.c
        task = [columns.task_ref] if self.is_of_one_run and not self.is_of_one_task else []
        namespace = [columns.namespace] if self.namespace is None else []
        return [*task, *namespace, columns.row_key]

    def behind(self, cursor: RowCursor, *, dialect: str, columns: Any = submissions.c) -> "ColumnElement[bool]":
        """The rows after the cursor in that order: in the form with which each database begins there in its index.

        `columns` are the table's, or a subquery's with the same names.
        """
        order = [columns[each.name] for each in self.order()]
        places = {"task_ref": cursor.task, "namespace": cursor.namespace, "row_key": cursor.row_key}
        values = [places[column.name] for column in order]
        if dialect not in MYSQL:
            return tuple_(*order) > tuple_(*values)
        behind: list[ColumnElement[bool]] = []
        for number, (column, value) in enumerate(zip(order, values, strict=True)):
            same = [earlier == known for earlier, known in zip(order[:number], values[:number], strict=True)]
            behind.append(and_(*same, column > value))
        # The first bound stands alone, too: it is where MySQL begins in its index.
        return and_(order[0] >= values[0], or_(*behind))


def _one_of(column: "ColumnElement[Any]", values: Sequence[str]) -> "ColumnElement[bool]":
    """Equality where it is one value: MySQL takes IN for a range, and sorts what its index has in order."""
    return column == values[0] if len(values) == 1 else column.in_(values)


def cursor_of(row: Any) -> RowCursor:
    """The place of this row."""
    return RowCursor(row.namespace, row.row_key, row.task_ref)


def keys_of(table: Any, rows: Sequence[Any]) -> "ColumnElement[bool]":
    """The table's lines about these rows."""
    by_namespace: dict[str, list[str]] = {}
    for row in rows:
        by_namespace.setdefault(row.namespace, []).append(row.row_key)
    return or_(
        *(
            and_(table.c.namespace == namespace, table.c.row_key.in_(row_keys))
            for namespace, row_keys in by_namespace.items()
        )
    )


def values_by_status(
    column: "ColumnElement[Any]", statuses: Sequence[LedgerStatus], *conditions: Any, dialect: str
) -> Any:
    """A statement for the values of a column beside each status that has them.

    `column` stands behind the status in an index that begins with what the conditions name. The index is read from
    value to value, however many rows each has: MySQL does so for DISTINCT, the others for a recursive query.
    """
    status = submissions.c.status
    if dialect in MYSQL:
        return select(status, column).where(*conditions, status.in_([each.value for each in statuses])).distinct()

    def least(of: Any, *more: Any) -> Any:
        return select(func.min(column)).where(*conditions, status == of, *more).scalar_subquery()

    each = union_all(*(select(literal(one.value).label("status")) for one in statuses)).subquery()
    found = select(each.c.status, least(each.c.status).label("value")).cte("found", recursive=True)
    following = select(found.c.status, least(found.c.status, column > found.c.value)).where(found.c.value.is_not(None))
    found = found.union_all(following)
    return select(type_coerce(found.c.status, status.type), found.c.value).where(found.c.value.is_not(None))
