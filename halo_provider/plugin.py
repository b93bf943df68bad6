"""The plugin that puts the ledger into Airflow's UI: an overview in the navigation, and tabs on runs and tasks.

Airflow loads plugins in every process, task processes included, so this module imports next to nothing: the pages come
with the first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halo_provider.compat import AirflowPlugin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from starlette.types import ASGIApp

    Message = MutableMapping[str, Any]

URL_PREFIX = "/halo"
ROWS = f"{URL_PREFIX}/dags/{{DAG_ID}}/rows"  # Airflow fills the names in, percent-encoded


class Pages:
    """The pages as an ASGI application that is made when it is first asked."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer a request."""
        if self._app is None:
            from halo_provider.ui.app import create_app  # noqa: PLC0415 -- not in every process

            self._app = create_app()
        await self._app(scope, receive, send)


class HaloPlugin(AirflowPlugin):
    """What Airflow finds behind the entry point."""

    name = "halo"
    fastapi_apps: list[Any] = [  # noqa: RUF012 -- as Airflow's base class has it
        {"name": "Halo", "url_prefix": URL_PREFIX, "app": Pages()}
    ]
    external_views: list[Any] = [  # noqa: RUF012
        {
            "name": "Halo",
            "destination": "nav",
            "category": "browse",
            "url_route": "halo",
            "href": f"{URL_PREFIX}/",
        },
        {
            "name": "Halo",
            "destination": "dag_run",
            "url_route": "halo-run",
            "href": f"{ROWS}?run_id={{RUN_ID}}",
        },
        {
            "name": "Halo",
            "destination": "task_instance",
            "url_route": "halo-task",
            "href": f"{ROWS}?run_id={{RUN_ID}}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        },
    ]
