"""The pages that change rows: a decision is shown, confirmed as it was shown, carried out, and undone.

Who confirms is bound to what was shown: the status, how many rows, and when. Every decision is in Airflow's audit log
before it is carried out, and in each row's history with it.
"""

import uuid
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, HTTPException, Query, Request, UploadFile, status
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from halo_provider.compat import BaseUser, GetUserDep
from halo_provider.ledger.admin import Choice, Confirmation, LedgerAdmin
from halo_provider.ledger.row_filter import RowCursor
from halo_provider.ledger.rules import storable
from halo_provider.ui.access import DECIDES, SAME_ORIGIN, SEES_ROWS, audit, clears
from halo_provider.ui.ledgers import deciding, reading
from halo_provider.ui.queries import (
    MAX_PASTED,
    MAX_REASON,
    MAX_SESSION,
    RowQuery,
    pasted_sessions,
    selected_rows,
    url,
)
from halo_provider.ui.rows import ACTIONS_FROM, DagId, RowQueryDep
from halo_provider.ui.templates import page

MAX_SESSIONS = 10_000  # rows of one list: a statement about all of them has to fit into the variables it may have

Action = Literal["requeue", "resolve", "reject"]
Rows = Annotated[list[str] | None, Form(alias="row")]
Pasted = Annotated[str, Form(max_length=MAX_PASTED)]

router = APIRouter()


@router.get("/dags/{dag_id}/decision", dependencies=[SEES_ROWS, DECIDES])
def decision(request: Request, user: GetUserDep, dag_id: DagId, action: Action, wanted: RowQueryDep) -> HTMLResponse:
    """Ask for confirmation: which rows, how many, some of their keys, and what will happen to them.

    A decision about more than one row is about one status; without one, the page asks for it.
    """
    if action == "resolve" and not wanted.row_key:
        return page(request, "sessions.html", dag_id=dag_id, wanted=wanted, problems=(), pasted="")
    return _confirmation(request, user, dag_id, action, wanted)


@router.post("/dags/{dag_id}/selection", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
def selection(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request, user: GetUserDep, dag_id: DagId, action: Action, wanted: RowQueryDep, row: Rows = None
) -> HTMLResponse:
    """The same for rows that were chosen one by one."""
    chosen = selected_rows(row or [])
    if not chosen:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"choose the rows to {action} by their check boxes first")
    return _confirmation(request, user, dag_id, action, wanted, selected=chosen, values=row or [])


@router.post("/dags/{dag_id}/sessions", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
async def sessions(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request,
    user: GetUserDep,
    dag_id: DagId,
    wanted: RowQueryDep,
    pasted: Pasted = "",
    file: UploadFile | None = None,
) -> HTMLResponse:
    """The same for a list of row keys, each with the session that was found in Halo."""
    if file is not None and file.filename:
        content = await file.read(MAX_PASTED + 1)
        if len(content) > MAX_PASTED:
            raise HTTPException(status.HTTP_400_BAD_REQUEST, f"the file is larger than {MAX_PASTED:,} bytes")
        pasted = content.decode("utf-8-sig", errors="replace")
    return await run_in_threadpool(_sessions, request, user, dag_id, wanted, pasted)


def _sessions(request: Request, user: BaseUser, dag_id: str, wanted: RowQuery, pasted: str) -> HTMLResponse:
    found, problems = pasted_sessions(pasted)
    if len(found) > MAX_SESSIONS:
        problems.append(f"the list has more than {MAX_SESSIONS:,} rows: split it")
    if not found or problems:
        return page(
            request,
            "sessions.html",
            status.HTTP_400_BAD_REQUEST,
            dag_id=dag_id,
            wanted=wanted,
            problems=problems or ["no row key with a session was found"],
            pasted=pasted,
        )
    return _confirmation(request, user, dag_id, "resolve", wanted, sessions=found, pasted=pasted)


@router.post("/dags/{dag_id}/decision", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
def decide(  # noqa: PLR0917 -- FastAPI passes by name
    request: Request,
    user: GetUserDep,
    dag_id: DagId,
    action: Action,
    wanted: RowQueryDep,
    count: Annotated[int, Form(ge=1, le=2**31)],
    as_of: Annotated[datetime, Form()],
    session_id: Annotated[str, Form(max_length=MAX_SESSION)] = "",
    reason: Annotated[str, Form(max_length=MAX_REASON)] = "",
    pasted: Pasted = "",
    row: Rows = None,
) -> RedirectResponse:
    """Change the rows that were confirmed through the ledger's own functions; their history names the user."""
    session_id, reason = (storable(session_id) or "").strip(), (storable(reason) or "").strip()
    selected = selected_rows(row or [])
    by_key = {wanted.row_key: session_id} if session_id and wanted.row_key else pasted_sessions(pasted)[0]
    if action == "resolve" and not by_key:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "to resolve a row, give the session that was found in Halo")
    if action == "reject" and not reason:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "to reject rows, give a reason")
    if action != "resolve" and not (wanted.is_of_one_status or wanted.row_key or selected):
        raise HTTPException(status.HTTP_400_BAD_REQUEST, f"to {action} more than one row, name their status")
    if as_of.tzinfo is None:
        raise HTTPException(status.HTTP_400_BAD_REQUEST, "as_of: the time of the confirmation has no time zone")
    chosen = replace(wanted.filter(dag_id), rows=selected)
    made = uuid.uuid4().hex
    bound: dict[str, Any] = {"confirmation": Confirmation(count, as_of), "decision": made}
    with deciding() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        details = {**wanted.query(), "rows": count, "reason": reason, "decision": made}
        audit(user, f"halo_{action}", dag_id=dag_id, run_id=wanted.run_id or None, details=details)
        match action:
            case "requeue":
                admin.requeue(chosen, reason=reason or None, **bound)
            case "resolve":
                admin.resolve(chosen, session_ids=by_key, reason=reason or None, **bound)
            case "reject":
                admin.reject(chosen, reason=reason, **bound)
    return _back(request, dag_id, wanted, made)


@router.post("/dags/{dag_id}/undo", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
def undo(
    request: Request,
    user: GetUserDep,
    dag_id: DagId,
    wanted: RowQueryDep,
    decision: Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")],
) -> RedirectResponse:
    """Undo a decision: all of it, or about one row. Rows that a run has taken since stay as they are."""
    one = RowCursor(wanted.namespace, wanted.row_key) if wanted.row_key else None
    with deciding() as ledger:
        details = {**wanted.query(), "decision": decision}
        audit(user, "halo_undo", dag_id=dag_id, run_id=wanted.run_id or None, details=details)
        LedgerAdmin(ledger, actor=user.get_name()).undo(decision, dag_ids=(dag_id,), row=one)
    return _back(request, dag_id, wanted, decision)


def _confirmation(
    request: Request,
    user: BaseUser,
    dag_id: str,
    action: Action,
    wanted: RowQuery,
    *,
    selected: tuple[RowCursor, ...] = (),
    values: list[str] | None = None,
    sessions: dict[str, str] | None = None,
    pasted: str = "",
) -> HTMLResponse:
    chosen = replace(wanted.filter(dag_id), rows=selected)
    statuses = tuple(each for each in ACTIONS_FROM[action] if each in chosen.statuses or not chosen.statuses)
    with reading() as ledger:
        admin = LedgerAdmin(ledger, actor=user.get_name())
        choice = admin.choice(replace(chosen, row_keys=tuple(sorted(sessions or ())) or chosen.row_keys), statuses)
    return page(
        request,
        "decision.html",
        dag_id=dag_id,
        action=action,
        wanted=wanted,
        choice=choice,
        asks_for_status=not (wanted.is_of_one_status or wanted.row_key or selected or sessions),
        selected=values or [],
        sessions=sessions or {},
        pasted=pasted,
        user=user,
        may_clear=clears(dag_id, user),
        clear=_to_clear(choice) if action == "requeue" else None,
    )


def _to_clear(choice: Choice) -> tuple[str, str | list[str | int]] | None:
    """The run, and its task as Airflow's API names it, that sends these rows when it is cleared; None for several."""
    if len(choice.tasks) != 1 or None in tuple(choice.tasks[0]):
        return None
    run_id, task_id = choice.tasks[0]
    mapped = choice.examples[0].map_index
    if choice.confirmation.count == 1 and mapped is not None and mapped >= 0:
        return run_id, [task_id, mapped]
    return run_id, task_id


def _back(request: Request, dag_id: str, wanted: RowQuery, decision: str) -> RedirectResponse:
    """The page from which the decision was made; it says what the ledger has of the decision."""
    query = wanted.query(decision=decision)
    name = "row" if wanted.row_key else "rows"
    return RedirectResponse(url(request.scope["root_path"], dag_id, name, query), status.HTTP_303_SEE_OTHER)
