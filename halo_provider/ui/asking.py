"""The button on a row's page that asks Halo whether it has the row: what is found is resolved, what is not is requeued.

Another application than this one is asked while a person waits, so a look is short, few run at a time, and only rows
are looked up whose last attempt is so long ago that Halo has surely made it visible.
"""

import asyncio
from datetime import datetime
from threading import BoundedSemaphore
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query, Request, status
from fastapi.responses import HTMLResponse

from halo_provider.compat import GetUserDep
from halo_provider.delivery.ask_later import ask_later
from halo_provider.delivery.lookup import Look, Sight
from halo_provider.exceptions import HaloError
from halo_provider.hooks.halo import HaloHook
from halo_provider.ledger import Ledger
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ui.access import DECIDES, SAME_ORIGIN, SEES_ROWS, audit
from halo_provider.ui.ledgers import deciding
from halo_provider.ui.queries import MAX_ID, MAX_KEY
from halo_provider.ui.templates import page

MIN_AGE = 60.0  # seconds since a row's last attempt, before it can be looked up here
APART = 2.0  # seconds between the two looks
LONGEST = 45.0  # seconds for all of it
MAX_ASKING = 2  # requests that ask at a time: each keeps a thread of the API server

router = APIRouter()
_asking = BoundedSemaphore(MAX_ASKING)


def may_ask(row: Any, now: datetime) -> bool:
    """Whether a row can be looked up: Halo may have it, and no running task holds it."""
    is_doubtful = row.status in {LedgerStatus.IN_DOUBT, LedgerStatus.IN_FLIGHT}
    is_held = row.lease_expires_at is not None and row.lease_expires_at > now
    return is_doubtful and not is_held and (now - row.updated_at).total_seconds() >= MIN_AGE


@router.post("/dags/{dag_id}/ask", dependencies=[SAME_ORIGIN, SEES_ROWS, DECIDES])
def ask(
    request: Request,
    user: GetUserDep,
    dag_id: Annotated[str, Path(max_length=MAX_ID)],
    namespace: Annotated[str, Query(max_length=MAX_ID)],
    row_key: Annotated[str, Query(max_length=MAX_KEY)],
) -> HTMLResponse:
    """Look one row up, and settle it by the answer; its history names the user."""
    if not _asking.acquire(blocking=False):
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "other rows are being looked up; try again soon")
    try:
        with deciding() as ledger:
            admin = LedgerAdmin(ledger, actor=user.get_name())
            found = admin.rows.row(namespace, row_key)
            if found is None or found.dag_id != dag_id:
                raise HTTPException(status.HTTP_404_NOT_FOUND, f"the ledger has no such row of {dag_id}")
            if not may_ask(found, ledger.now()):
                refusal = f"only a row in doubt can be looked up, {MIN_AGE:g} s or more after it was sent"
                raise HTTPException(status.HTTP_409_CONFLICT, refusal)
            details = {"namespace": namespace, "row_key": row_key}
            audit(user, "halo_ask", dag_id=dag_id, run_id=found.run_id, details=details)
            look = _look(ledger, admin, namespace=namespace, row_key=row_key)
            row = admin.rows.row(namespace, row_key)
    finally:
        _asking.release()
    return page(request, "asked.html", dag_id=dag_id, row=row, look=look)


def _look(ledger: Ledger, admin: LedgerAdmin, *, namespace: str, row_key: str) -> Look:
    """What Halo says, or why it says nothing."""
    looks: list[Look] = []

    async def look() -> None:
        async with asyncio.timeout(LONGEST), HaloHook(namespace.rpartition("/")[0]).reader(ledger) as reader:
            await ask_later(
                ledger,
                RowFilter(namespace=namespace, row_keys=(row_key,)),
                admin=admin,
                reader=reader,
                ask_after=APART,
                on_answer=lambda _row, answer: looks.append(answer),
            )

    try:
        asyncio.run(look())
    except TimeoutError:
        return Look(Sight.UNCLEAR, reason=f"Halo did not answer within {LONGEST:g} s")
    except HaloError as error:
        return Look(Sight.UNCLEAR, reason=str(error))
    return looks[0] if looks else Look(Sight.UNCLEAR, reason="a running task has taken the row meanwhile")
