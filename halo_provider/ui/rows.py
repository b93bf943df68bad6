"""The pages to look at: the overview, the rows of a DAG, a run or a task instance, one row, and the download."""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, status
from fastapi.responses import HTMLResponse, StreamingResponse

from halo_provider.compat import GetUserDep
from halo_provider.exceptions import LedgerError
from halo_provider.hooks.halo import HaloHook
from halo_provider.ledger.admin import (
    BY_URGENCY,
    DECISIONS,
    PAGE,
    REJECT_FROM,
    REQUEUE_FROM,
    RESOLVE_FROM,
    LedgerAdmin,
    UrgencyCursor,
    UrgencyPage,
)
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ui import charts
from halo_provider.ui.access import SEES_ROWS, decides, visible
from halo_provider.ui.asking import may_ask
from halo_provider.ui.ledgers import DOWNLOAD_WAIT, reading
from halo_provider.ui.queries import MAX_ID, MAX_KEY, PageCursor, RowQuery, following_page
from halo_provider.ui.templates import page

DELIVERIES_SHOWN = 40  # in the charts of the overview
STUCK_SHOWN = 5  # rows on the overview
CSV_PAGE = 5_000  # rows read from the ledger at a time for a download
STUCK = (LedgerStatus.IN_DOUBT, LedgerStatus.FAILED, LedgerStatus.REJECTED)  # not delivered: shown first
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
ACTIONS_FROM = {"requeue": REQUEUE_FROM, "resolve": RESOLVE_FROM, "reject": REJECT_FROM}
RowQueryDep = Annotated[RowQuery, Depends()]
DecisionId = Annotated[str, Query(pattern=r"^([0-9a-f]{32})?$")]
DagId = Annotated[str, Path(max_length=MAX_ID)]

router = APIRouter()


@router.get("/")
def overview(request: Request, user: GetUserDep) -> HTMLResponse:
    """The latest deliveries of every DAG the user may see, and the rows that were not delivered."""
    with reading() as ledger:
        admin, deliveries = LedgerAdmin(ledger, actor=user.get_name()), DeliveryRecords(ledger)
        dag_ids = tuple(visible(sorted({*admin.dag_ids(), *deliveries.dag_ids()}), user))
        shown = deliveries.latest(dag_ids=dag_ids, limit=DELIVERIES_SHOWN)
        counts = admin.counts(RowFilter(dag_ids=dag_ids, statuses=STUCK))
        stuck = admin.urgent_first(RowFilter(dag_ids=dag_ids, statuses=STUCK), limit=STUCK_SHOWN).rows
        now = ledger.now()
    return page(
        request,
        "overview.html",
        deliveries=shown,
        counts={each: counts.get(each, 0) for each in STUCK},
        stuck=stuck,
        stuck_count=sum(counts.values()),
        statuses=charts.statuses(shown, slots=DELIVERIES_SHOWN),
        throughput=charts.throughput(shown, slots=DELIVERIES_SHOWN),
        errors=charts.errors(shown, slots=DELIVERIES_SHOWN),
        running=any(delivery.is_running(now) for delivery in shown),
        now=now,
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
        counts = admin.counts(scope)
        found = _found(admin, chosen, after=cursor)
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
        rows=found.rows,
        following=following_page(found.following) if found.following else None,
        searched_in_part=bool((chosen.search or chosen.error) and found.following and len(found.rows) < PAGE),
        is_first=cursor is None,
        deliveries=deliveries,
        decided=decided,
        running=any(delivery.is_running(now) for delivery in deliveries),
        may_decide=decides(dag_id, user),
        actions=[action for action, allowed in ACTIONS_FROM.items() if wanted.status in allowed],
        now=now,
    )


@router.get("/dags/{dag_id}/rows.csv", dependencies=[SEES_ROWS])
def rows_as_csv(user: GetUserDep, dag_id: DagId, wanted: RowQueryDep) -> StreamingResponse:
    """All rows of that query, as a CSV file.

    Between two pages of it a download holds neither a thread nor a seat at the ledger: slow readers stop nobody.
    One that cannot go on says so in its last line: an answer that breaks off looks whole behind some proxies.
    """
    chosen = wanted.filter(dag_id)

    def read(cursor: UrgencyCursor | None) -> UrgencyPage:
        with reading(wait=DOWNLOAD_WAIT) as ledger:
            return LedgerAdmin(ledger, actor=user.get_name()).urgent_first(
                chosen, after=cursor, limit=CSV_PAGE, columns=CSV_COLUMNS
            )

    first = read(None)  # an error can still be answered: the file has not begun

    def lines() -> Iterator[str]:
        yield _csv_text([CSV_COLUMNS])
        found = first
        written = 0
        while True:
            yield _csv_text([getattr(row, name) for name in CSV_COLUMNS] for row in found.rows)
            written += len(found.rows)
            if found.following is None:
                return
            try:
                found = read(found.following)
            except LedgerError as error:
                yield _csv_text([[f"INCOMPLETE: only {written:,} rows were written: {error}"]])
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
        found = admin.row(namespace, row_key)
        if found is None or found.dag_id != dag_id:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"the ledger has no such row of {dag_id}")
        history = admin.history(namespace, row_key)
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
        decided=decided,
        pages=_pages_in_halo(found),
        actions=[name for name, allowed in ACTIONS_FROM.items() if found.status in allowed and not is_held],
        may_decide=decides(dag_id, user),
        may_ask=may_ask(found, now),
        wanted=RowQuery(namespace=namespace, row_key=row_key),
    )


def _found(admin: LedgerAdmin, wanted: RowFilter, *, after: UrgencyCursor | None) -> UrgencyPage:
    """One page of rows. A search for a complete row key is answered from an index, however many rows there are."""
    if wanted.search and after is None:
        exact = admin.page(replace(wanted, search=None, row_keys=(wanted.search,)))
        if exact:
            return UrgencyPage(exact, None)
    return admin.urgent_first(wanted, after=after)


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


def _csv_text(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([_csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
