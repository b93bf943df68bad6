"""The pages to look at: the overview, the rows of a DAG, a run or a task instance, one row, and the download."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, status
from fastapi.responses import HTMLResponse, StreamingResponse

from halo_provider.compat import BaseUser, GetUserDep
from halo_provider.exceptions import LedgerError
from halo_provider.hooks.halo import HaloHook
from halo_provider.ledger import Ledger
from halo_provider.ledger.admin import DECISIONS, REJECT_FROM, REQUEUE_FROM, RESOLVE_FROM, LedgerAdmin
from halo_provider.ledger.delivery_records import DeliveryRecord, DeliveryRecords
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.row_reader import BY_URGENCY, MAX_SORTED, PAGE, RowReader, UrgencyCursor, UrgencyPage
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.triage import STUCK, StuckRows, Triage, WentOn
from halo_provider.ui import charts
from halo_provider.ui.access import SEES_ROWS, decides, other_ledgers, visible
from halo_provider.ui.asking import may_ask
from halo_provider.ui.ledgers import DOWNLOAD_WAIT, reading
from halo_provider.ui.queries import MAX_ID, MAX_KEY, PageCursor, RowQuery, following_page
from halo_provider.ui.templates import page

DELIVERIES_SHOWN = 40  # in the charts of the overview
STUCK_SHOWN = 5  # rows on the overview
CSV_PAGE = 5_000  # rows read from the ledger at a time for a download
CSV_COLUMNS = (
    "namespace",
    "row_key",
    "status",
    "user_id",
    "session_id",
    "attempts",
    "error",
    "dag_id",
    "run_id",
    "task_id",
    "map_index",
    "try_number",
    "created_at",
    "updated_at",
)
CSV_OTHERS = frozenset({"status", "attempts", "map_index", "try_number", "created_at", "updated_at"})  # not free text
FORMULA_BEGINS = frozenset("=+-@\t\r")  # of text that a spreadsheet takes for a formula
ACTIONS_FROM = {"requeue": REQUEUE_FROM, "resolve": RESOLVE_FROM, "reject": REJECT_FROM}
RowQueryDep = Annotated[RowQuery, Depends()]
DecisionId = Annotated[str, Query(pattern=r"^([0-9a-f]{32})?$")]
DagId = Annotated[str, Path(max_length=MAX_ID)]

router = APIRouter()


@router.get("/")
def overview(request: Request, user: GetUserDep) -> HTMLResponse:
    """The latest deliveries of every DAG the user may see, and the rows that were not delivered."""
    with reading() as ledger:
        reader, deliveries = RowReader(ledger), DeliveryRecords(ledger)
        dag_ids = tuple(visible(sorted({*reader.dag_ids(), *deliveries.dag_ids()}), user))
        shown = deliveries.latest(dag_ids=dag_ids, limit=DELIVERIES_SHOWN)
        now = ledger.now()
        board = _board(dag_ids, Triage(ledger).stuck(dag_ids, now=now), deliveries.last_of_each(dag_ids=dag_ids))
        stuck = reader.urgent_first(RowFilter(dag_ids=dag_ids, statuses=STUCK), limit=STUCK_SHOWN).rows
    return page(
        request,
        "overview.html",
        deliveries=shown,
        board=board,
        stuck=stuck,
        stuck_count=sum(sum(line.counts.values()) for line, _ in board),
        statuses=charts.statuses(shown),
        throughput=charts.throughput(shown),
        errors=charts.errors(shown),
        running=any(delivery.is_running(now) for delivery in shown),
        now=now,
        elsewhere=[each for each in other_ledgers(None) if visible({each[0]}, user)],
    )


@router.get("/dags/{dag_id}/rows", dependencies=[SEES_ROWS])
def rows(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request,
    user: GetUserDep,
    dag_id: DagId,
    wanted: RowQueryDep,
    page_cursor: Annotated[PageCursor, Depends()],
    decision: DecisionId = "",
) -> HTMLResponse:
    """The rows of a DAG, one of its runs or one of its task instances."""
    scope, chosen = wanted.scope(dag_id), wanted.filter(dag_id)
    cursor = page_cursor.cursor(chosen)
    with reading() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        counts = admin.rows.counts(scope)
        matching = sum(counts.get(each, 0) for each in chosen.statuses or LedgerStatus)
        listing = _listing(admin.rows, wanted, chosen, after=cursor, offset=page_cursor.offset, matching=matching)
        gone = _gone_on(ledger, user, scope, wanted, search=chosen.search, offset=page_cursor.offset)
        causes = Triage(ledger).causes(scope) if not wanted.row_key else None
        deliveries = DeliveryRecords(ledger).latest(
            dag_ids=(dag_id,), run_id=scope.run_id, task_id=scope.task_id, map_index=scope.map_index, limit=PAGE
        )
        decided = admin.decision(decision, dag_ids=(dag_id,)) if decision else None
        now = ledger.now()
    return page(
        request,
        "rows.html",
        dag_id=dag_id,
        wanted=wanted,
        counts={each: counts.get(each, 0) for each in BY_URGENCY},
        shares=charts.share_bar({each.value: counts.get(each, 0) for each in reversed(BY_URGENCY)}),
        listing=listing,
        gone=gone,
        causes=causes,
        max_sorted=MAX_SORTED,
        is_first=cursor is None and not page_cursor.offset,
        deliveries=deliveries,
        decided=decided,
        running=any(delivery.is_running(now) for delivery in deliveries),
        may_decide=decides(dag_id, user),
        actions=[action for action, allowed in ACTIONS_FROM.items() if wanted.status in allowed],
        now=now,
        elsewhere=other_ledgers((dag_id,), run_id=scope.run_id),
    )


@router.get("/dags/{dag_id}/rows.csv", dependencies=[SEES_ROWS])
def rows_as_csv(dag_id: DagId, wanted: RowQueryDep) -> StreamingResponse:
    """All rows of that query, as a CSV file.

    Between two pages of it a download holds neither a thread nor a seat at the ledger: slow readers stop nobody.
    One that cannot go on says so in its last line: an answer that breaks off looks whole behind some proxies.
    """
    chosen = wanted.filter(dag_id)

    def read(cursor: UrgencyCursor | None) -> UrgencyPage:
        with reading(wait=DOWNLOAD_WAIT) as ledger:
            return RowReader(ledger).urgent_first(chosen, after=cursor, limit=CSV_PAGE, columns=CSV_COLUMNS)

    first = read(None)  # an error can still be answered: the file has not begun

    def lines() -> Iterator[str]:
        yield _csv_line(CSV_COLUMNS)
        found = first
        written = 0
        while True:
            yield _csv_text(found.rows)
            written += len(found.rows)
            if found.following is None:
                return
            try:
                found = read(found.following)
            except LedgerError as error:
                yield _csv_line([f"INCOMPLETE: only {written:,} rows were written: {error}"])
                return

    headers = {"Content-Disposition": 'attachment; filename="halo-rows.csv"'}
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/dags/{dag_id}/row", dependencies=[SEES_ROWS])
def row(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request,
    user: GetUserDep,
    dag_id: DagId,
    namespace: Annotated[str, Query(max_length=MAX_ID)],
    row_key: Annotated[str, Query(max_length=MAX_KEY)],
    decision: DecisionId = "",
) -> HTMLResponse:
    """One row: its columns and its history, as far as the user may see the DAGs that it is about."""
    with reading() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        found = admin.rows.row(namespace, row_key)
        if found is None or found.dag_id != dag_id:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"the ledger has no such row of {dag_id}")
        history = admin.rows.history(namespace, row_key)
        decided = admin.decision(decision, dag_ids=(dag_id,)) if decision else None
        now = ledger.now()
    seen = set(visible({event.dag_id for event in history if event.dag_id}, user)) | {dag_id}
    is_held = found.lease_expires_at is not None and found.lease_expires_at > now
    return page(
        request,
        "row.html",
        dag_id=dag_id,
        row=found,
        history=[event for event in history if event.dag_id in seen],
        hidden=sum(event.dag_id not in seen for event in history),
        decisions=DECISIONS,
        running=found.status is LedgerStatus.IN_FLIGHT,
        decided=decided,
        pages=_pages_in_halo(found),
        actions=[name for name, allowed in ACTIONS_FROM.items() if found.status in allowed and not is_held],
        may_decide=decides(dag_id, user),
        may_ask=may_ask(found, now),
        wanted=RowQuery(namespace=namespace, row_key=row_key),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Rows of a page. `following` is the query of the next one; `is_part` says that a search has not read all rows."""

    rows: list[Any]
    following: Mapping[str, Any] | None
    is_part: bool = False
    is_sorted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneOn:
    """Rows that had trouble in a run and are another one's by now; `hidden` are of DAGs that the user may not see."""

    to: list[WentOn]
    hidden: int
    listing: Listing | None

    @property
    def total(self) -> int:
        """All of them."""
        return self.hidden + sum(each.total for each in self.to)


def _listing(
    reader: RowReader,
    wanted: RowQuery,
    chosen: RowFilter,
    *,
    after: UrgencyCursor | None,
    offset: int,
    matching: int,
) -> Listing:
    """The rows of the page: sorted where that is asked for and they are not too many, else the most urgent first."""
    if wanted.sort and matching <= MAX_SORTED:
        by = wanted.sort.removeprefix("-")
        rows = reader.sorted_page(chosen, by=by, descending=wanted.sort.startswith("-"), limit=PAGE + 1, offset=offset)
        return Listing(rows=rows[:PAGE], following=_next_offset(rows, offset), is_sorted=True)
    found = _found(reader, chosen, after=after)
    following = following_page(found.following) if found.following else None
    is_part = chosen.is_search and following is not None and len(found.rows) < PAGE
    return Listing(rows=found.rows, following=following, is_part=is_part)


def _gone_on(
    ledger: Ledger, user: BaseUser, scope: RowFilter, wanted: RowQuery, *, search: str | None, offset: int
) -> GoneOn | None:
    """What became of a run's rows in later runs: counted, and listed where they are asked for or searched."""
    if not scope.is_of_one_run or scope.dag_ids is None or scope.run_id is None:
        return None
    dag_id, run_id = scope.dag_ids[0], scope.run_id
    triage = Triage(ledger)
    to = triage.went_on(dag_id, run_id)
    if not to:
        return None
    seen = visible({each.dag_id for each in to if each.dag_id}, user)
    listing = None
    if wanted.went_on or search:
        offset = offset if wanted.went_on else 0
        rows = triage.rows_that_went_on(dag_id, run_id, dag_ids=seen, search=search, limit=PAGE + 1, offset=offset)
        listing = Listing(rows=rows[:PAGE], following=_next_offset(rows, offset))
    shown = [each for each in to if each.dag_id in seen]
    return GoneOn(to=shown, hidden=sum(each.total for each in to if each.dag_id not in seen), listing=listing)


def _next_offset(rows: Sequence[Any], offset: int) -> dict[str, Any] | None:
    return {"offset": offset + PAGE} if len(rows) > PAGE else None


def _board(
    dag_ids: Sequence[str], stuck: Sequence[StuckRows], last: Sequence[DeliveryRecord]
) -> list[tuple[StuckRows, DeliveryRecord | None]]:
    """Every submission of every DAG with its last delivery: those with stuck rows first.

    A DAG that has neither, whose rows are all well and were not delivered by a task, has one line for all of them: no
    index has the submissions of delivered rows.
    """
    by_place = {(each.dag_id, each.namespace): each for each in last}
    lines = [(line, by_place.pop((line.dag_id, line.namespace), None)) for line in stuck]
    lines += [
        (StuckRows(dag_id=each.dag_id, namespace=each.namespace), each)
        for each in sorted(by_place.values(), key=lambda each: each.started_at, reverse=True)
    ]
    told = {line.dag_id for line, _ in lines}
    return lines + [(StuckRows(dag_id=dag_id, namespace=""), None) for dag_id in dag_ids if dag_id not in told]


def _found(reader: RowReader, wanted: RowFilter, *, after: UrgencyCursor | None) -> UrgencyPage:
    """One page of rows. A search for a complete row key is answered from the primary key."""
    if wanted.search and after is None:
        keys = tuple(RowCursor(namespace, wanted.search) for namespace in reader.namespaces())
        exact = reader.page(replace(wanted, search=None, rows=keys)) if keys else []
        if exact:
            return UrgencyPage(exact, None)
    return reader.urgent_first(wanted, after=after)


def _pages_in_halo(row: Any) -> dict[str, str | None]:
    """Where Halo's dashboard is, and in it the row's user and session, as far as the connection says so."""
    try:
        hook = HaloHook(row.namespace.rpartition("/")[0])
        dashboard = hook.dashboard_url
        return {
            "dashboard": dashboard if dashboard and dashboard.startswith(("https://", "http://")) else None,
            "user": hook.page_url("user", row.user_id),
            "session": hook.page_url("session", row.session_id),
        }
    except Exception:  # noqa: BLE001 -- without the connection only the links are missing
        return {"dashboard": None, "user": None, "session": None}


def _csv_text(rows: Sequence[Any]) -> str:
    """Rows as lines; column by column, for a call for each value took longer than all else."""
    columns = zip(CSV_COLUMNS, zip(*rows, strict=True), strict=False)  # those of the cursor come last
    text = io.StringIO()
    csv.writer(text).writerows(
        zip(*(values if name in CSV_OTHERS else _csv_column(values) for name, values in columns), strict=True)
    )
    return text.getvalue()


def _csv_line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _csv_column(values: Sequence[str | None]) -> Sequence[str | None]:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    if FORMULA_BEGINS.isdisjoint({value[:1] for value in values if value}):
        return values
    return [f"'{value}" if value and value[0] in FORMULA_BEGINS else value for value in values]
