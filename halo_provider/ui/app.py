"""The application behind /halo: pages rendered on the server, for those who may see them by Airflow's authorisation.

Where the ledger is missing, down or slow, these pages say so, and Airflow's own pages are not affected. Every answer,
errors included, carries the same security headers.
"""

from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, status
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halo_provider.compat import GetUserDep
from halo_provider.exceptions import DecisionOutdatedError, LedgerError
from halo_provider.ui import asking, decisions, rows
from halo_provider.ui.templates import page

ASSETS = {"halo.css": "text/css", "halo.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_RIGHT = (
    "your role in Airflow does not allow it for this DAG: to see its rows takes the right to see its task instances, "
    "to decide about them the right to trigger it"
)  # in place of Airflow's own word, which is "Forbidden"

router = APIRouter()


class SecurityHeaders:
    """Adds the headers around the whole application: its own answers to unexpected errors would lack them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def create_app() -> ASGIApp:
    """Make the application that Airflow mounts."""
    app = FastAPI(title="Halo", openapi_url=None)
    for part in (router, rows.router, decisions.router, asking.router):
        app.include_router(part)
    app.add_exception_handler(LedgerError, _ledger_is_unavailable)
    app.add_exception_handler(DecisionOutdatedError, _decision_is_outdated)
    app.add_exception_handler(RequestValidationError, _query_is_refused)
    app.add_exception_handler(StarletteHTTPException, _refusal)
    app.add_exception_handler(Exception, _failure)
    return SecurityHeaders(app)


@router.get("/assets/{name}")
def asset(user: GetUserDep, name: str) -> Response:  # noqa: ARG001 -- requires a login, as every route here
    """The stylesheet and the script."""
    if name not in ASSETS:
        raise HTTPException(status.HTTP_404_NOT_FOUND)
    content = files("halo_provider.ui").joinpath("assets", name).read_bytes()
    return Response(content, media_type=ASSETS[name])


async def _ledger_is_unavailable(request: Request, error: Exception) -> Response:
    return page(request, "unavailable.html", status.HTTP_503_SERVICE_UNAVAILABLE, reason=str(error))


async def _decision_is_outdated(request: Request, error: Exception) -> Response:
    return page(request, "refusal.html", status.HTTP_409_CONFLICT, reason=str(error))


async def _query_is_refused(request: Request, error: Exception) -> Response:
    """Name the parts that are not within their limits, without repeating them."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 -- what it is registered for
    parts = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return page(request, "refusal.html", status.HTTP_400_BAD_REQUEST, reason=f"this cannot be asked for: {parts}")


async def _refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, StarletteHTTPException):
        raise error
    reason = error.detail
    if (error.status_code, reason) == (status.HTTP_403_FORBIDDEN, HTTPStatus.FORBIDDEN.phrase):
        reason = NO_RIGHT
    if "text/html" in request.headers.get("accept", ""):
        return page(request, "refusal.html", error.status_code, reason=reason)
    return await http_exception_handler(request, error)


async def _failure(request: Request, error: Exception) -> Response:  # noqa: ARG001 -- logged by the server, with its trace
    reason: Any = "an unexpected error: the log of Airflow's API server has it"
    return page(request, "refusal.html", status.HTTP_500_INTERNAL_SERVER_ERROR, reason=reason)
