"""The daily example on a running scheduler: scheduled, backfilled twice, and triggered with and without dates."""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from halo_provider.demo.airflow import REQUEST_TIMEOUT, AirflowApi, Run
from halo_provider.demo.processes import CHECKOUT, Home, Processes
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from tests.acceptance.airflows import running_airflow
from tests.example_keys import IDENTITY_SECRET

pytestmark = pytest.mark.acceptance

DAG_ID = "halo_applications_daily"
ROWS = (2, 3, 4, 5, 1, 6, 7)  # of each of the last six whole days and of today: a run's count tells its day
BACKFILLED = range(4)  # the days that are backfilled
FOURTH, DAY_BEFORE_YESTERDAY, YESTERDAY, TODAY = range(3, 7)
PATIENCE = 300.0  # seconds for whatever Airflow has to do


def keys(day: int) -> set[str]:
    """The keys of the day's rows."""
    return {f"APP-{day}-{hour}" for hour in range(ROWS[day])}


def create_source(path: Path, *, first_day: date) -> None:
    """Fill the table of applications: on each day one at each full hour from midnight on, of a user of its own."""
    names = (
        "submission_id, applicant_id, contact_name, contact_email, contact_role, company_id, company_name, country,"
        " application_type, use_case, submitted_at"
    )
    rows = [
        (
            f"APP-{day}-{hour}", f"usr-{day}-{hour}", "Ada Example", "ada@example.com", "Founder",
            "cmp-1", "Example Ltd", "GB", "Reseller", "To resell Halo",
            str(datetime.combine(first_day + timedelta(days=day), time(hour))),
        )
        for day, count in enumerate(ROWS)
        for hour in range(count)
    ]  # fmt: skip
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE applications ({names})")
        db.executemany("INSERT INTO applications VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What some runs did, in the order in which they were begun, and what Halo noticed of them."""

    tickets: list[dict[str, Any]]
    identified: list[dict[str, Any]]
    new_chats: int
    new_tickets: int
    calls: Counter[str]
    last_seen_before: dict[str, datetime | None]
    last_seen_after: dict[str, datetime | None]

    def counts(self, name: str) -> list[int]:
        """One of the counts of each run's summary."""
        return [summary[name] for summary in self.tickets]

    def keys(self) -> list[set[str]]:
        """The rows that each run delivered or found delivered."""
        return [set(summary["session_ids"]) for summary in self.tickets]

    def modes(self) -> set[str]:
        """How the runs told Halo who the users are."""
        return {summary["mode"] for summary in self.identified}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running Airflow with the daily example, its source, and a local Halo."""

    processes: Processes
    airflow: AirflowApi
    halo: Simulator

    def step(self, begin: Callable[[], list[Run]]) -> Step:
        """Begin some runs, wait until all have succeeded, and compare Halo with what it was before."""
        calls, chats, tickets, last_seen = self.calls(), len(self.halo.chats), len(self.halo.tickets), self.last_seen()
        runs = begin()
        self.wait(lambda: all(self.airflow.state(run) in {"success", "failed"} for run in runs), reason="runs")
        assert {self.airflow.state(run) for run in runs} == {"success"}
        return Step(
            tickets=[self.airflow.returned(run, "tickets") for run in runs],
            identified=[self.airflow.returned(run, "identify") for run in runs],
            new_chats=len(self.halo.chats) - chats,
            new_tickets=len(self.halo.tickets) - tickets,
            calls=self.calls() - calls,
            last_seen_before=last_seen,
            last_seen_after=self.last_seen(),
        )

    def calls(self) -> Counter[str]:
        """How often each of Halo's endpoints was called."""
        return Counter({path: sum(statuses.values()) for path, statuses in self.halo.counts().items()})

    def last_seen(self) -> dict[str, datetime | None]:
        """When each user was active last, as Halo has it."""
        return {user_id: user.last_seen for user_id, user in self.halo.users.items()}

    def wait(self, true: Callable[[], Any], *, reason: str) -> None:
        """Return as soon as it is."""
        self.processes.wait(lambda: true() or None, stage=f"waiting for {reason}", timeout=PATIENCE)

    def scheduled(self) -> list[Run]:
        """The run that the scheduler makes by itself once it knows the DAG."""
        self.wait(lambda: self.airflow.runs(DAG_ID, run_type="scheduled"), reason="the scheduled run")
        return self.airflow.runs(DAG_ID, run_type="scheduled")

    def backfilled(self, *arguments: str, first_day: date) -> list[Run]:
        """``airflow backfill create``, which an earlier backfill stands in the way of."""
        self.airflow.abandon_runs(DAG_ID)  # all are over, but Airflow looks for that only every half minute
        days = [str(first_day + timedelta(days=day)) for day in BACKFILLED]
        command = ("backfill", "create", "--dag-id", DAG_ID, "--from-date", days[0], "--to-date", days[-1], *arguments)
        self.processes.run("backfill", "airflow", *command, stage="creating the backfill")
        return self.airflow.runs(DAG_ID, run_type="backfill")

    def triggered(self, *, first_day: date) -> list[Run]:
        """Runs by hand: without a date, with one, and with a window of their own."""

        def moment(day: int, hour: int) -> datetime:
            return datetime.combine(first_day + timedelta(days=day), time(hour), tzinfo=UTC)

        india = timezone(timedelta(hours=5, minutes=30))
        window = {
            "start": moment(FOURTH, 2).astimezone(india).isoformat(),
            "end": str(first_day + timedelta(days=DAY_BEFORE_YESTERDAY)),
        }
        return [
            self.airflow.trigger(DAG_ID),
            self.airflow.trigger(DAG_ID, logical_date=moment(YESTERDAY, 12)),
            self.airflow.trigger(DAG_ID, conf=window),
        ]


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened, in this order."""

    scheduled: Step
    backfilled: Step
    triggered: Step
    backfilled_again: Step


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, metadata_url: str | None) -> Story:
    """Everything, once, in a real Airflow that knows the daily example and nothing else."""
    home = Home(tmp_path_factory.mktemp("backfill"))
    dags = home.path / "dags"
    shutil.copytree(CHECKOUT / "dags" / "sql", dags / "sql")
    shutil.copy(CHECKOUT / "dags" / f"{DAG_ID}.py", dags)
    first_day = datetime.now(UTC).date() - timedelta(days=TODAY)
    create_source(home.source, first_day=first_day)
    halo = Simulator(identity_secret=IDENTITY_SECRET)
    with serving(halo) as halo_url:
        be_active(halo_url, user_id="usr-0-0")
        connection = {
            "conn_type": "halo",
            "host": halo_url,
            "password": EXAMPLE_WIDGET_KEY,
            "extra": {"identity_secret": IDENTITY_SECRET},
        }
        settings = {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection),
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
        }
        with running_airflow(home, dag_ids=[DAG_ID], settings=settings, metadata_url=metadata_url) as running:
            airflow, processes = running
            stage = Stage(processes=processes, airflow=airflow, halo=halo)
            return Story(
                scheduled=stage.step(stage.scheduled),
                backfilled=stage.step(lambda: stage.backfilled(first_day=first_day)),
                triggered=stage.step(lambda: stage.triggered(first_day=first_day)),
                backfilled_again=stage.step(
                    lambda: stage.backfilled("--reprocess-behavior", "completed", first_day=first_day)
                ),
            )


def be_active(halo_url: str, *, user_id: str) -> None:
    """Let a user have been seen live, before any run."""
    answer = httpx.post(
        f"{halo_url}/api/sdk/users/identify",
        json={"user_id": user_id},
        headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"},
        timeout=REQUEST_TIMEOUT,
        trust_env=False,
    )
    answer.raise_for_status()


def test_scheduled_run_is_about_yesterday(story: Story) -> None:
    """The day that has just ended, and nothing of today; its users are active now."""
    step = story.scheduled
    assert (step.counts("read"), step.counts("delivered")) == ([ROWS[YESTERDAY]], [ROWS[YESTERDAY]])
    assert step.keys() == [keys(YESTERDAY)]
    assert step.modes() == {"identify"}


def test_backfill_makes_one_ticket_for_each_row_in_range(story: Story) -> None:
    """Each of its runs is about its own day, and the days beyond are left alone."""
    step = story.backfilled
    expected = [ROWS[day] for day in BACKFILLED]
    assert (step.counts("read"), step.counts("delivered")) == (expected, expected)
    assert step.keys() == [keys(day) for day in BACKFILLED]
    assert step.new_chats == step.new_tickets == sum(expected)


def test_backfill_run_again_sends_nothing(story: Story) -> None:
    """Every run reads its day again and finds it delivered."""
    step = story.backfilled_again
    expected = [ROWS[day] for day in BACKFILLED]
    assert (step.counts("read"), step.counts("already_delivered")) == (expected, expected)
    assert step.keys() == story.backfilled.keys()
    assert (step.new_chats, step.calls["/chat"]) == (0, 0)


@pytest.mark.parametrize("backfill", ["backfilled", "backfilled_again"])
def test_backfill_never_identifies_anybody_live(story: Story, backfill: str) -> None:
    """Users are updated in bulk, one call a day here."""
    step: Step = getattr(story, backfill)
    assert step.modes() == {"update"}
    assert (step.calls["/users/identify"], step.calls["/users/update"]) == (0, len(BACKFILLED))


@pytest.mark.parametrize("backfill", ["backfilled", "backfilled_again"])
def test_backfill_makes_nobody_active_today(story: Story, backfill: str) -> None:
    """Whoever had been active before was so at that very time, and the others never."""
    step: Step = getattr(story, backfill)
    assert step.last_seen_before["usr-0-0"] is not None
    assert {user_id for user_id, moment in step.last_seen_after.items() if moment} == {
        user_id for user_id, moment in step.last_seen_before.items() if moment
    }
    assert step.last_seen_before.items() <= step.last_seen_after.items()


def test_runs_by_hand_are_about_exactly_their_windows(story: Story) -> None:
    """Without a date: yesterday. With one: the last whole day before it. With start and end: what lies between."""
    step = story.triggered
    assert step.keys() == [keys(YESTERDAY), keys(DAY_BEFORE_YESTERDAY), keys(FOURTH) - {"APP-3-0", "APP-3-1"}]
    assert step.counts("read") == [6, 1, 3]
    assert step.counts("delivered") == [0, 1, 0]
    assert step.new_chats == 1
