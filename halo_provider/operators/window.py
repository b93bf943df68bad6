"""Which slice of history a run is about: never everything, and never nothing, by accident."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypedDict

from halo_provider.exceptions import HaloConfigurationError

if TYPE_CHECKING:
    from halo_provider.compat import Context

DAY = timedelta(days=1)


class Window(TypedDict):
    """A half-open interval of aware moments: ``start <= moment < end``. Fits ``sql_parameters`` as it is."""

    start: datetime
    end: datetime


def run_window(context: Context, *, length: timedelta = DAY) -> Window:
    """
    Return the run's window: what its params ask for, else its data interval, else the last whole `length` before it.

    A plain cron schedule gives every run an interval of zero length, and a run triggered over REST may have no logical
    date and so no interval at all: both get the last whole `length` (by default a day, in UTC) before the run.

    :param context: the task's context; ``params`` may hold ``start`` and ``end``, as ISO 8601 dates or moments, UTC
        where they name no zone
    :param length: the window of a run without an interval
    :raises HaloConfigurationError: if only one of start and end is given, or they are not in order
    """
    params = context["params"]
    if params.get("start") or params.get("end"):
        start, end = (_timestamp(name, params.get(name)) for name in ("start", "end"))
        if start >= end:
            raise HaloConfigurationError("params: start must come before end")
        return Window(start=start, end=end)
    interval_start, interval_end = context.get("data_interval_start"), context.get("data_interval_end")
    if interval_start is not None and interval_end is not None and interval_start < interval_end:
        return Window(start=interval_start, end=interval_end)
    run_after = context["dag_run"].run_after
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    end = epoch + (run_after - epoch) // length * length
    return Window(start=end - length, end=end)


def _timestamp(name: str, value: str | datetime | None) -> datetime:
    if not value:
        raise HaloConfigurationError("params: give both start and end, or neither")
    try:
        timestamp = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise HaloConfigurationError(f"params: {name} must be a date or a moment in ISO 8601") from None
    # In UTC, since Airflow's XCom cannot give back a moment with a fixed offset.
    return timestamp.astimezone(UTC) if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
