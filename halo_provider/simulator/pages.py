"""What people see, an inbox, and what other processes may ask: faults, limits, the clock, a reset, the state."""

from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader
from pydantic import BaseModel, ConfigDict, Field

from halo_provider.simulator.faults import Fault
from halo_provider.simulator.halo import SimulatedHalo
from halo_provider.simulator.limits import AnyLimit
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.wire import PAGE_HEADERS
from halo_provider.simulator.workspace import TicketStatus

SHOWN = 100  # items on one page, the newest


class FaultOrder(BaseModel):
    """POST /_simulator/faults: the same as Simulator.script, script_for and always."""

    model_config = ConfigDict(extra="forbid")

    path: str
    user_id: str | None = None
    always: bool = False
    faults: Annotated[list[Fault | None], Field(min_length=1)]


class LimitOrder(BaseModel):
    """POST /_simulator/limit: the same as setting Simulator.limit; null lifts it."""

    model_config = ConfigDict(extra="forbid")

    limit: AnyLimit | None


class ReadingOrder(BaseModel):
    """POST /_simulator/reading: the same as setting Simulator.reading."""

    model_config = ConfigDict(extra="forbid")

    reading: Reading


class ClockOrder(BaseModel):
    """POST /_simulator/clock: the same as Simulator.advance."""

    model_config = ConfigDict(extra="forbid")

    advance: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SignInsOrder(BaseModel):
    """POST /_simulator/sign-ins: the same as Simulator.expire_access_tokens and revoke_sign_ins."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["expire_access_tokens", "revoke"]


class TicketOrder(BaseModel):
    """POST /_simulator/tickets: the same as Simulator.set_ticket_status."""

    model_config = ConfigDict(extra="forbid")

    status: TicketStatus
    ticket_id: str | None = None


def create_pages(simulator: SimulatedHalo) -> FastAPI:
    """Return the application for everything that is not Halo's SDK."""
    application = FastAPI(title="Halo simulator", docs_url=None, redoc_url=None)
    templates = Environment(
        loader=PackageLoader("halo_provider.simulator"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["moment"] = moment

    def page(request: Request, template: str, *, live: bool, status: int = 200, **items: Any) -> HTMLResponse:
        content = templates.get_template(template).render(
            simulator=simulator, path=request.url.path, live=live, shown=SHOWN, **items
        )
        return HTMLResponse(content, status_code=status, headers=PAGE_HEADERS)

    @application.get("/")
    async def inbox(request: Request, *, live: bool = True) -> HTMLResponse:
        tickets = list(islice(reversed(simulator.tickets), SHOWN))
        return page(request, "inbox.html", live=live, tickets=tickets)

    @application.get("/sessions/{session_id}")
    async def conversation(request: Request, session_id: str, *, live: bool = True) -> HTMLResponse:
        session = simulator.sessions.get(session_id)
        status = 200 if session is not None else 404
        return page(request, "session.html", live=live, status=status, session=session)

    @application.get("/contacts")
    async def contacts(request: Request, *, live: bool = True) -> HTMLResponse:
        users = list(islice(reversed(simulator.users.values()), SHOWN))
        return page(request, "contacts.html", live=live, users=users)

    @application.get("/companies")
    async def companies(request: Request, *, live: bool = True) -> HTMLResponse:
        newest = islice(reversed(simulator.companies.values()), SHOWN)
        rows = [(company, _last_seen(simulator, company.user_ids)) for company in newest]
        return page(request, "companies.html", live=live, rows=rows)

    @application.post("/_simulator/faults")
    async def order_faults(order: FaultOrder) -> dict[str, Any]:
        try:
            if order.always:
                simulator.always(order.path, order.faults[-1])
            elif order.user_id is not None:
                simulator.script_for(path=order.path, user_id=order.user_id, faults=order.faults)
            else:
                simulator.script(path=order.path, faults=order.faults)
        except ValueError as exc:
            raise HTTPException(400, str(exc)) from exc
        return {"success": True}

    @application.post("/_simulator/limit")
    async def order_limit(order: LimitOrder) -> dict[str, Any]:
        simulator.limit = order.limit
        return {"success": True}

    @application.post("/_simulator/reading")
    async def order_reading(order: ReadingOrder) -> dict[str, Any]:
        simulator.reading = order.reading
        return {"success": True}

    @application.post("/_simulator/clock")
    async def order_clock(order: ClockOrder) -> dict[str, Any]:
        simulator.advance(order.advance)
        return {"success": True}

    @application.post("/_simulator/sign-ins")
    async def order_sign_ins(order: SignInsOrder) -> dict[str, Any]:
        if order.action == "revoke":
            simulator.revoke_sign_ins()
        else:
            simulator.expire_access_tokens()
        return {"success": True}

    @application.post("/_simulator/tickets")
    async def order_tickets(order: TicketOrder) -> dict[str, Any]:
        try:
            return {"success": True, "changed": simulator.set_ticket_status(order.status, ticket_id=order.ticket_id)}
        except ValueError as exc:
            raise HTTPException(400, str(exc)) from exc

    @application.post("/_simulator/reset")
    async def reset() -> dict[str, Any]:
        simulator.reset()
        return {"success": True}

    @application.get("/_simulator/state")
    async def state(*, details: bool = True) -> dict[str, Any]:
        return simulator.state(details=details)

    return application


def moment(time: datetime | None) -> str:
    """Return a time as people read it."""
    return "never" if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _last_seen(simulator: SimulatedHalo, user_ids: set[str]) -> datetime | None:
    users = (simulator.users.get(user_id) for user_id in user_ids)
    return max((user.last_seen for user in users if user is not None and user.last_seen), default=None)
