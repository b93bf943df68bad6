"""The query of a page's URL as values within limits, and the URLs for such values."""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import HTTPException, Query, status

from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.row_reader import MAX_SORTED, NOT_MAPPED, UrgencyCursor
from halo_provider.ledger.rules import MAX_TEXT
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.triage import STUCK

SORTED_BY = ("row_key", "user_id", "session_id", "attempts", "error", "updated_at")
WITHIN = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
STUCK_ROWS: Literal["stuck"] = "stuck"  # in place of a status: those that were not delivered
MAX_ID = 250  # characters of a DAG's, a run's or a task's id, and of a namespace
MAX_KEY = 520  # characters of a row's key, with the mark of a follow-up
MAX_SEARCH = 200  # characters
MAX_REASON = 300  # characters
MAX_SESSION = 1_000  # characters, as the ledger holds
MAX_SELECTED = 200  # rows chosen one by one
MAX_PASTED = 1_000_000  # characters of a pasted list

Id = Annotated[str, Query(max_length=MAX_ID)]
Key = Annotated[str, Query(max_length=MAX_KEY)]
# Airflow leaves {MAP_INDEX} unreplaced where a task is not mapped.
MapIndex = Annotated[str, Query(pattern=r"^(-?[0-9]{1,9}|\{[A-Z_]*\})?$", max_length=20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowQuery:
    """Which rows of one DAG; an empty part means all. The names are those of the URL's query."""

    run_id: Id = ""
    task_id: Id = ""
    map_index: MapIndex = ""
    status: LedgerStatus | Literal["", "stuck"] = ""
    search: Annotated[str, Query(max_length=MAX_SEARCH)] = ""
    error: Annotated[str, Query(max_length=MAX_TEXT)] = ""
    changed: Literal["", "hour", "day", "week", "before_day"] = ""
    namespace: Id = ""
    row_key: Key = ""
    went_on: Literal["", "yes"] = ""
    sort: Annotated[str, Query(pattern=rf"^-?({'|'.join(SORTED_BY)})?$")] = ""

    @property
    def map_index_number(self) -> int | None:
        """The map index as a number."""
        if not self.map_index:
            return None
        return NOT_MAPPED if self.map_index.startswith("{") else int(self.map_index)

    @property
    def is_of_one_status(self) -> bool:
        """Whether all these rows have the same status."""
        return self.status not in {"", STUCK_ROWS}

    @property
    def _statuses(self) -> tuple[LedgerStatus, ...]:
        if self.status == STUCK_ROWS:
            return STUCK
        return (LedgerStatus(self.status),) if self.status else ()

    def filter(self, dag_id: str) -> RowFilter:
        """The ledger's filter for these rows, within the DAG for which the user's permission was checked."""
        now = datetime.now(UTC)
        return replace(
            self.scope(dag_id),
            statuses=self._statuses,
            search=self.search.strip() or None,
            error=self.error or None,
            changed_since=now - WITHIN[self.changed] if self.changed in WITHIN else None,
            changed_before=now - WITHIN["day"] if self.changed == "before_day" else None,
        )

    def scope(self, dag_id: str) -> RowFilter:
        """The same without status, search and error: all rows of the DAG, run or task instance, or the one row.

        Raises HTTPException 400 for a task instance without its run.
        """
        if not self.run_id and (self.task_id or self.map_index_number is not None):
            raise HTTPException(status.HTTP_400_BAD_REQUEST, "task_id and map_index are of a run: name it in run_id")
        return RowFilter(
            namespace=self.namespace or None,
            row_keys=(self.row_key,) if self.row_key else (),
            dag_ids=(dag_id,),
            run_id=self.run_id or None,
            task_id=self.task_id or None,
            map_index=self.map_index_number,
        )

    def query(self, **changes: Any) -> dict[str, Any]:
        """The parts that are not empty, with these changes, as a URL's query."""
        return {name: value for name, value in {**asdict(self), **changes}.items() if value not in {"", None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCursor:
    """Where the page before ended; all parts are empty on the first page. `offset` is for sorted rows."""

    after_status: LedgerStatus | Literal[""] = ""
    after_namespace: Id = ""
    after_key: Key = ""
    after_task: Annotated[str, Query(pattern=r"^(-?[0-9]{1,19})?$")] = ""
    offset: Annotated[int, Query(ge=0, le=MAX_SORTED)] = 0

    def cursor(self, wanted: RowFilter) -> UrgencyCursor | None:
        """The ledger's cursor for this filter; None on the first page. Raises HTTPException 400 for half of one."""
        if not (self.after_status or self.after_namespace or self.after_key or self.after_task):
            return None
        task = int(self.after_task) if self.after_task else None
        needs_task = wanted.is_of_one_run
        is_whole = (
            self.after_status and self.after_namespace and self.after_key and (task is not None or not needs_task)
        )
        if not is_whole or self.after_status not in {*(wanted.statuses or LedgerStatus)}:
            raise HTTPException(
                status.HTTP_400_BAD_REQUEST, "this page's address is incomplete: begin with the first page"
            )
        row = RowCursor(self.after_namespace, self.after_key, task)
        return UrgencyCursor(LedgerStatus(self.after_status), row)


def following_page(after: UrgencyCursor) -> dict[str, str | int | None]:
    """The query's parts for the page that begins after this cursor."""
    return {
        "after_status": after.status,
        "after_namespace": after.row.namespace,
        "after_key": after.row.row_key,
        "after_task": after.row.task,
    }


def row_value(row: Any) -> str:
    """A row as the value of a check box."""
    return json.dumps([row.namespace, row.row_key])


def selected_rows(values: list[str]) -> tuple[RowCursor, ...]:
    """The rows whose check boxes were chosen. Raises HTTPException 400 for what is none of them."""
    if len(values) > MAX_SELECTED:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"at most {MAX_SELECTED} rows can be chosen one by one")
    rows = []
    for value in values:
        try:
            namespace, row_key = json.loads(value[: MAX_ID + 7 * MAX_KEY])
            rows.append(RowCursor(checked_text(namespace, MAX_ID), checked_text(row_key, MAX_KEY)))
        except (ValueError, TypeError) as error:
            raise HTTPException(status.HTTP_400_BAD_REQUEST, "a chosen row is not one of this page's") from error
    return tuple(rows)


def checked_text(text: Any, length: int) -> str:
    """The text itself. Raises ValueError where it is none, or longer."""
    if not isinstance(text, str) or not 0 < len(text) <= length:
        raise ValueError("not such a text")
    return text


def pasted_sessions(text: str) -> tuple[dict[str, str], list[str]]:
    """Session ids by row key from lines of both, with a comma, a semicolon or a tab between; and what is wrong."""
    sessions: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        delimiter = next((each for each in "\t;" if each in line), ",")
        *before, session_id = (part.strip() for part in next(csv.reader([line], delimiter=delimiter)))
        row_key = delimiter.join(before)
        if (row_key, session_id) == ("row_key", "session_id"):
            continue
        if not row_key or not session_id:
            problems.append(f"line {number}: a row key, a comma and a session id are expected")
        elif len(row_key) > MAX_KEY or len(session_id) > MAX_SESSION or not session_id.isprintable():
            problems.append(f"line {number}: the row key or the session id is too long, or not printable")
        elif sessions.get(row_key, session_id) != session_id:
            problems.append(f"line {number}: the key of an earlier line, with another session")
        else:
            sessions[row_key] = session_id
    return sessions, problems


def airflow_url(  # noqa: PLR0917 -- from the whole to its part, as the address has it
    root: str,
    dag_id: str,
    run_id: str | None = None,
    task_id: str | None = None,
    map_index: int | None = None,
    try_number: int | None = None,
) -> str:
    """Airflow's own page of a DAG, a run, or a task instance with its log; `root` is where the Halo pages are."""
    place = f"{airflow_root(root)}/dags/{quote(dag_id, safe='')}"
    if run_id:
        place += f"/runs/{quote(run_id, safe='')}"
    if run_id and task_id:
        place += f"/tasks/{quote(task_id, safe='')}"
        if map_index is not None and map_index >= 0:
            place += f"/mapped/{map_index}"
        if try_number:
            place += f"?try_number={try_number}"
    return place


def airflow_root(root: str) -> str:
    """Where Airflow itself is, given where it mounted these pages."""
    return root.rpartition("/")[0]


def url(root: str, dag_id: str, page: str, query: Mapping[str, Any]) -> str:
    """One of a DAG's pages; `root` is where Airflow mounted them."""
    return f"{root}/dags/{quote(dag_id, safe='')}/{page}?{urlencode(query)}"
