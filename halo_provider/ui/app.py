"""The application behind /halo: pages rendered on the server, for those who may see them by Airflow's authorisation.

Each request opens the ledger in the thread that answers it, and closes it. Where the ledger is missing, down or slow,
these pages say so, and Airflow's own pages are not affected.
"""

import csv
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from threading import BoundedSemaphore
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, Response, status
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse

from halo_provider.compat import GetUserDep
from halo_provider.exceptions import LedgerError
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import open_ledger
from halo_provider.ledger import Ledger
from halo_provider.ledger.admin import (
    BY_URGENCY,
    PAGE,
    REJECT_FROM,
    REQUEUE_FROM,
    RESOLVE_FROM,
    LedgerAdmin,
    RowFilter,
    UrgencyCursor,
    UrgencyPage,
)
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ui import charts
from halo_provider.ui.access import DECIDES, SAME_ORIGIN, SEES_ROWS, decides, visible
from halo_provider.ui.queries import PageCursor, RowQuery, following_page, url
from halo_provider.ui.templates import page

# Requests that may use the ledger at a time: one that hangs must not occupy every thread of the API server.
MAX_LEDGER_REQUESTS = 8
DELIVERIES_SHOWN = 40  # in the charts of the overview
STUCK_SHOWN = 5  # rows on the overview
CSV_PAGE = 1000  # rows read from the ledger at a time for a download
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
ASSETS = {"halo.css": "text/css", "halo.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Action = Literal["requeue", "resolve", "reject"]
ACTIONS_FROM = {"requeue": REQUEUE_FROM, "resolve": RESOLVE_FROM, "reject": REJECT_FROM}
RowQueryDep = Annotated[RowQuery, Depends()]

router = APIRouter()
_ledger_requests = BoundedSemaphore(MAX_LEDGER_REQUESTS)


def create_app() -> FastAPI:
    """Make the application that Airflow mounts."""
    app = FastAPI(title="Halo", openapi_url=None)
    app.include_router(router)
    app.add_exception_handler(LedgerError, _ledger_is_unavailable)
    app.add_exception_handler(HTTPException, _refusal)

    @app.middleware("http")
    async def protect(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    return app


@contextmanager
def _ledger() -> Iterator[Ledger]:
    """Open the configured ledger for one request; where none was made yet it is empty. Raises LedgerError."""
    if not _ledger_requests.acquire(blocking=False):
        raise LedgerError("too many pages are waiting for the ledger at this moment")
    try:
        try:
            ledger = open_ledger(create=False)
        except LedgerError:
            raise
        except Exception as error:  # e.g. an unknown connection, or a driver that is not installed
            raise LedgerError(f"the ledger cannot be opened: {error}") from error
        try:
            yield ledger
        finally:
            ledger.close()
    finally:
        _ledger_requests.release()


@router.get("/")
def overview(request: Request, user: GetUserDep) -> HTMLResponse:
    """The latest deliveries of every DAG the user may see, and the rows that were not delivered."""
    with _ledger() as ledger:
        admin, deliveries = LedgerAdmin(ledger, actor=user.get_name()), DeliveryRecords(ledger)
        dag_ids = tuple(visible(sorted({*admin.dag_ids(), *deliveries.dag_ids()}), user))
        shown = deliveries.latest(dag_ids=dag_ids, limit=DELIVERIES_SHOWN)
        counts = admin.counts(RowFilter(dag_ids=dag_ids))
        stuck = admin.urgent_first(RowFilter(dag_ids=dag_ids, statuses=STUCK), limit=STUCK_SHOWN).rows
        now = ledger.now()
    return page(
        request,
        "overview.html",
        deliveries=shown,
        counts={each: counts.get(each, 0) for each in BY_URGENCY},
        stuck=stuck,
        stuck_count=sum(counts.get(each, 0) for each in STUCK),
        shares=charts.share_bar({each.value: counts.get(each, 0) for each in reversed(BY_URGENCY)}),
        statuses=charts.statuses(shown, slots=DELIVERIES_SHOWN),
        throughput=charts.throughput(shown, slots=DELIVERIES_SHOWN),
        errors=charts.errors(shown, slots=DELIVERIES_SHOWN),
        running=any(delivery.is_running(now) for delivery in shown),
        now=now,
    )


@router.get("/dags/{dag_id}/rows", dependencies=[SEES_ROWS])
def rows(
    request: Request, user: GetUserDep, dag_id: str, wanted: RowQueryDep, page_cursor: Annotated[PageCursor, Depends()]
) -> HTMLResponse:
    """The rows of a DAG, one of its runs or one of its task instances."""
    with _ledger() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        scope = wanted.scope(dag_id)
        counts = admin.counts(scope)
        found = _found(admin, wanted.filter(dag_id), after=page_cursor.cursor)
        deliveries = DeliveryRecords(ledger).latest(
            dag_ids=(dag_id,), run_id=scope.run_id, task_id=scope.task_id, map_index=scope.map_index, limit=PAGE
        )
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
        searched_in_part=bool(wanted.search and found.following and len(found.rows) < PAGE),
        is_first=page_cursor.cursor is None,
        deliveries=deliveries,
        running=any(delivery.is_running(now) for delivery in deliveries),
        may_decide=decides(dag_id, user),
        now=now,
    )


@router.get("/dags/{dag_id}/rows.csv", dependencies=[SEES_ROWS])
def rows_as_csv(user: GetUserDep, dag_id: str, wanted: RowQueryDep) -> StreamingResponse:
    """All rows of that query, as a CSV file."""
    with _ledger():  # raises here, while an error can still be answered: the file has not begun
        pass

    def lines() -> Iterator[str]:
        yield _csv_line(CSV_COLUMNS)
        cursor = None
        with _ledger() as ledger:
            admin = LedgerAdmin(ledger, actor=user.get_name())
            while True:
                found = admin.urgent_first(wanted.filter(dag_id), after=cursor, limit=CSV_PAGE)
                yield "".join(_csv_line([getattr(row, name) for name in CSV_COLUMNS]) for row in found.rows)
                cursor = found.following
                if cursor is None:
                    return

    headers = {"Content-Disposition": 'attachment; filename="halo-rows.csv"'}
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/dags/{dag_id}/row", dependencies=[SEES_ROWS])
def row(request: Request, user: GetUserDep, dag_id: str, namespace: str, row_key: str) -> HTMLResponse:
    """One row: its columns and its history."""
    with _ledger() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        found = admin.row(namespace, row_key)
        if found is None or found.dag_id != dag_id:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"the ledger has no such row of {dag_id}")
        history = admin.history(namespace, row_key)
        now = ledger.now()
    is_held = found.lease_expires_at is not None and found.lease_expires_at > now
    return page(
        request,
        "row.html",
        dag_id=dag_id,
        row=found,
        history=history,
        dashboard_url=_dashboard_url(namespace.rpartition("/")[0]),
        actions=[name for name, allowed in ACTIONS_FROM.items() if found.status in allowed and not is_held],
        may_decide=decides(dag_id, user),
        wanted=RowQuery(namespace=namespace, row_key=row_key),
    )


@router.get("/dags/{dag_id}/decision", dependencies=[SEES_ROWS, DECIDES])
def decision(request: Request, user: GetUserDep, dag_id: str, action: Action, wanted: RowQueryDep) -> HTMLResponse:
    """Ask for confirmation: which rows, how many, and what will happen to them."""
    with _ledger() as ledger:
        chosen = wanted.filter(dag_id)
        statuses = tuple(each for each in ACTIONS_FROM[action] if each in chosen.statuses or not chosen.statuses)
        possible = (
            LedgerAdmin(ledger, actor=user.get_name()).counts(replace(chosen, statuses=statuses)) if statuses else {}
        )
    return page(request, "decision.html", dag_id=dag_id, action=action, wanted=wanted, possible=possible, user=user)


@router.post("/dags/{dag_id}/decision", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
def decide(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request,
    user: GetUserDep,
    dag_id: str,
    action: Action,
    wanted: RowQueryDep,
    session_id: Annotated[str, Form()] = "",
    reason: Annotated[str, Form()] = "",
) -> RedirectResponse:
    """Change the rows through the ledger's own functions; their history names the user."""
    session_id, reason = session_id.strip(), reason.strip()
    if (action == "resolve" and not session_id) or (action == "reject" and not reason):
        missing = "the session that was found in Halo" if action == "resolve" else "a reason"
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"to {action} rows, give {missing}")
    with _ledger() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        chosen = wanted.filter(dag_id)
        match action:
            case "requeue":
                changed = admin.requeue(chosen, reason=reason or None)
            case "resolve":
                changed = admin.resolve(chosen, session_id=session_id, reason=reason or None)
            case "reject":
                changed = admin.reject(chosen, reason=reason)
    back = "row" if wanted.row_key else "rows"
    query = wanted.query(done=action, changed=changed)
    return RedirectResponse(url(request.scope["root_path"], dag_id, back, query), status.HTTP_303_SEE_OTHER)


@router.get("/assets/{name}")
def asset(user: GetUserDep, name: str) -> Response:  # noqa: ARG001 -- requires a login, as every route here
    """The stylesheet and the script."""
    if name not in ASSETS:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    content = files("halo_provider.ui").joinpath("assets", name).read_bytes()
    return Response(content, media_type=ASSETS[name])


def _found(admin: LedgerAdmin, wanted: RowFilter, *, after: UrgencyCursor | None) -> UrgencyPage:
    """One page of rows. A search for a complete row key is answered from an index, however many rows there are."""
    if wanted.search and after is None:
        exact = admin.page(replace(wanted, search=None, row_keys=(wanted.search,)))
        if exact:
            return UrgencyPage(exact, None)
    return admin.urgent_first(wanted, after=after)


async def _ledger_is_unavailable(request: Request, error: Exception) -> Response:
    return page(request, "unavailable.html", status.HTTP_503_SERVICE_UNAVAILABLE, reason=str(error))


async def _refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if "text/html" in request.headers.get("accept", ""):
        return page(request, "refusal.html", error.status_code, reason=error.detail)
    return await http_exception_handler(request, error)


def _dashboard_url(conn_id: str) -> str | None:
    """The URL of Halo's dashboard in the connection; None unless it is http or https."""
    try:
        url = HaloHook(conn_id).dashboard_url
    except Exception:  # noqa: BLE001 -- without the connection only the link is missing
        return None
    return url if url and url.startswith(("https://", "http://")) else None


def _csv_line(values: Any) -> str:
    line = io.StringIO()
    csv.writer(line).writerow([_csv_cell(value) for value in values])
    return line.getvalue()


def _csv_cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
