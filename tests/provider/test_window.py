"""run_window: every run is about a slice of time, never about everything and never, by accident, about nothing."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import DAG, task

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.operators.window import Window, run_window
from tests.provider.runs import RunDag

NOON = datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
INDIA = timezone(timedelta(hours=5, minutes=30))


@dataclass(frozen=True)
class DagRun:
    """What the window reads of a run."""

    run_after: datetime


def context(
    *, params: dict[str, Any] | None = None, interval: Any = None, run_after: datetime = NOON
) -> dict[str, Any]:
    """A task's context: Airflow leaves the interval's names out where a run has none."""
    dates = dict(zip(("data_interval_start", "data_interval_end"), interval, strict=True)) if interval else {}
    return {"params": params or {}, "dag_run": DagRun(run_after), **dates}


def day(number: int) -> datetime:
    """Midnight, in UTC, at the beginning of a day in November."""
    return datetime(2026, 11, number, tzinfo=UTC)


def test_run_with_an_interval_is_about_its_interval() -> None:
    """Scheduled and backfilled runs have one, and their params are empty."""
    found = run_window(context(params={"start": None, "end": None}, interval=(day(1), day(2))))
    assert found == Window(start=day(1), end=day(2))


def test_interval_of_any_length_is_taken_as_it_is() -> None:
    """`length` is for runs without an interval."""
    found = run_window(context(interval=(day(1), day(4))), length=timedelta(hours=1))
    assert found == Window(start=day(1), end=day(4))


@pytest.mark.parametrize("interval", [(NOON, NOON), (None, None), None])
def test_run_without_an_interval_is_about_the_last_whole_day(interval: Any) -> None:
    """A plain cron string gives intervals without length, and a run triggered without a logical date has none."""
    assert run_window(context(interval=interval)) == Window(start=day(4), end=day(5))


@pytest.mark.parametrize(
    ("run_after", "expected"),
    [
        (day(5), Window(start=day(4), end=day(5))),
        (day(5) - timedelta(microseconds=1), Window(start=day(3), end=day(4))),
        (datetime(2026, 11, 5, 3, 0, tzinfo=INDIA), Window(start=day(3), end=day(4))),
    ],
)
def test_last_whole_day_ends_no_later_than_the_run_begins(run_after: datetime, expected: Window) -> None:
    """A day that is not over yet would be selected in part, and its rest never. Days are UTC's."""
    assert run_window(context(run_after=run_after)) == expected


def test_run_without_an_interval_may_be_about_another_length() -> None:
    """An hourly DAG asks for the last whole hour."""
    found = run_window(context(), length=timedelta(hours=1))
    assert found == Window(start=NOON.replace(hour=11, minute=0), end=NOON.replace(minute=0))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-01", "2026-11-03"),
        ("2026-11-01T00:00", "2026-11-03 00:00:00"),
        ("2026-11-01T00:00:00Z", "2026-11-03T00:00:00+00:00"),
        ("2026-11-01T05:30+05:30", "2026-11-02T19:00-05:00"),
        (day(1), day(3).replace(tzinfo=None)),
    ],
)
@pytest.mark.parametrize("interval", [(day(20), day(21)), None])
def test_params_say_exactly_what_a_run_is_about(start: Any, end: Any, interval: Any) -> None:
    """Dates or moments, with a zone or in UTC, and they come before any interval."""
    found = run_window(context(params={"start": start, "end": end}, interval=interval))
    assert found == Window(start=day(1), end=day(3))


@pytest.mark.parametrize("params", [{"start": "2026-11-01"}, {"start": "", "end": "2026-11-01"}])
def test_window_with_only_a_start_or_only_an_end_is_refused(params: dict[str, str]) -> None:
    """An open end would mean everything."""
    with pytest.raises(HaloConfigurationError, match="give both start and end, or neither"):
        run_window(context(params=params))


@pytest.mark.parametrize("end", ["2026-11-03", "2026-11-02"])
def test_window_whose_end_is_not_after_its_start_is_refused(end: str) -> None:
    """It would select nothing and be green."""
    with pytest.raises(HaloConfigurationError, match="start must come before end"):
        run_window(context(params={"start": "2026-11-03", "end": end}))


@pytest.mark.parametrize("start", ["yesterday", "01.11.2026", 20261101])
def test_param_that_is_no_date_is_named(start: Any) -> None:
    """The error says which one, and how it is written."""
    with pytest.raises(HaloConfigurationError, match="start must be a date or a moment in ISO 8601"):
        run_window(context(params={"start": start, "end": "2026-11-03"}))


def test_window_reaches_the_next_task_as_moments(dag: DAG, run: RunDag) -> None:
    """XCom gives them back as aware datetimes, to the microsecond."""
    found: list[Window] = []

    @task(task_id="window", dag=dag, params={"start": "2026-11-01T12:00:00.000001+01:00", "end": "2026-11-03"})
    def window(**context: Any) -> Window:
        return run_window(context)

    @task(task_id="reader", dag=dag)
    def reader(window: Window) -> None:
        found.append(window)

    reader(window())
    run(dag)
    assert found == [Window(start=day(1).replace(hour=11, microsecond=1), end=day(3))]
    assert all(isinstance(moment, datetime) and moment.tzinfo for moment in found[0].values())
