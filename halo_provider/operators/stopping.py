"""How a task's run is ended early: Airflow's kill and its execution_timeout become one `Stop`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from halo_provider.delivery.stop import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import timedelta
    from typing import Any

KILLED = "the task was killed"
KILL_GRACE = 2.0  # seconds for requests in flight when the task is killed: Airflow's SIGKILL follows after about 5
TIMEOUT_MARGIN = 5.0  # seconds before execution_timeout at which the run is ended

_ResultT = TypeVar("_ResultT")


class TaskStop:
    """Runs a coroutine on a loop of its own, and ends it when Airflow kills the task or its time is nearly over."""

    def __init__(self) -> None:
        self._killed = False
        self._request: Callable[[str, float], None] | None = None

    def kill(self) -> None:
        """End the run, also one that has not begun. Called in Airflow's signal handler."""
        self._killed = True
        if self._request is not None:
            self._request(KILLED, KILL_GRACE)

    def run(
        self, work: Callable[[Stop], Coroutine[Any, Any, _ResultT]], *, execution_timeout: timedelta | None
    ) -> _ResultT:
        """
        Run the coroutine that `work` makes, and return its result.

        :param work: is given the stop that it has to obey
        :param execution_timeout: the task's; Airflow would end the loop without letting the coroutine finish
        """

        async def run() -> _ResultT:
            loop = asyncio.get_running_loop()
            stop = Stop()

            def request(reason: str, grace: float) -> None:
                loop.call_soon_threadsafe(partial(stop.request, reason, grace=grace))

            self._request = request
            if self._killed:  # before the loop ran
                stop.request(KILLED, grace=KILL_GRACE)
            if execution_timeout is not None:
                seconds = execution_timeout.total_seconds()
                margin = min(TIMEOUT_MARGIN, seconds / 2)
                reason = f"execution_timeout of {seconds:g} s is nearly over"
                loop.call_later(seconds - margin, partial(stop.request, reason, grace=margin / 2))
            try:
                return await work(stop)
            finally:
                self._request = None

        try:
            return asyncio.run(run())
        except ExceptionGroup as group:  # a task group's own text tells nobody what is wrong
            raise _first(group) from group


def _first(error: Exception) -> Exception:
    """The first error of a group, whatever groups it stands in."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
