"""The example that waits for a person, on a running scheduler: rejected, approved, and approved for fewer rows."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from halo_provider.demo.airflow import AirflowApi, Run
from halo_provider.demo.processes import CHECKOUT, Home, Processes
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from tests.acceptance.airflows import running_airflow

pytestmark = pytest.mark.acceptance

DAG_ID = "halo_applications_approved"
PATIENCE = 300.0  # seconds for whatever Airflow has to do


@dataclass(frozen=True, kw_only=True)
class Approval:
    """One run, what the person was shown, and what Halo had when it was asked and at the end."""

    shown: dict[str, Any]
    chats_when_asked: int
    chats_at_the_end: int
    state: str
    tasks: dict[str, str]
    planned: dict[str, Any]
    sent: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running Airflow with the example and a file of its own, and a local Halo."""

    home: Home
    processes: Processes
    airflow: AirflowApi
    halo: Simulator
    applications: Path

    def run(self, answer: str, *, before_it: Callable[[], None] = lambda: None) -> Approval:
        """Trigger the DAG, read what it asks, do something, answer, and wait for the end."""
        run = self.airflow.trigger(DAG_ID)
        details = f"{run.path}/taskInstances/approve/-1/hitlDetails"
        self.wait(lambda: self.is_parked(run), reason="the question")
        shown = self.airflow.request("GET", details).json()
        asked = len(self.halo.chats)
        before_it()
        self.airflow.request("PATCH", details, json={"chosen_options": [answer], "params_input": {}})
        self.wait(lambda: self.airflow.state(run) in {"success", "failed"}, reason="the end")
        return Approval(
            shown=shown,
            chats_when_asked=asked,
            chats_at_the_end=len(self.halo.chats),
            state=self.airflow.state(run),
            tasks={task["task_id"]: task["state"] for task in self.airflow.tasks(run)},
            planned=self.airflow.returned(run, "plan"),
            sent=self.airflow.returned(run, "tickets"),
        )

    def is_parked(self, run: Run) -> bool:
        """Whether the task waits for a person, and the scheduler knows that its process has ended.

        Airflow 3.3.2 takes an answer in between for the end of the resumed task, and lets the task ask again.
        """
        ended = re.compile(
            rf"TaskInstance Finished: .*task_id=approve, run_id={re.escape(run.run_id)},.*awaiting_input"
        )
        return ended.search((self.home.logs / "scheduler.log").read_text(encoding="utf-8")) is not None

    def apply(self, key: str) -> None:
        """Let one more application arrive."""
        with self.applications.open(encoding="utf-8", newline="") as file:
            names, first = list(csv.reader(file))[:2]
        with self.applications.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([key, f"usr-{key}", *first[2:]])
        assert names[:2] == ["submission_id", "applicant_id"]

    def wait(self, true: Callable[[], Any], *, reason: str) -> None:
        """Return as soon as it is."""
        self.processes.wait(lambda: true() or None, stage=f"waiting for {reason}", timeout=PATIENCE)


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened, in this order, over a file with so many rows."""

    rows: int
    texts: set[str]
    rejected: Approval
    approved: Approval
    outgrown: Approval


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, metadata_url: str | None) -> Story:
    """Everything, once, in a real Airflow that knows this example and nothing else."""
    home = Home(tmp_path_factory.mktemp("approval"))
    dags = home.path / "dags"
    shutil.copytree(CHECKOUT / "dags" / "data", dags / "data")
    shutil.copy(CHECKOUT / "dags" / f"{DAG_ID}.py", dags)
    applications = dags / "data" / "applications.csv"
    with applications.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    halo = Simulator()
    with serving(halo) as halo_url:
        connection = {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY}
        settings = {"AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection), "AIRFLOW__CORE__PARALLELISM": "4"}
        with running_airflow(home, dag_ids=[DAG_ID], settings=settings, metadata_url=metadata_url) as running:
            airflow, processes = running
            stage = Stage(home=home, processes=processes, airflow=airflow, halo=halo, applications=applications)
            rejected = stage.run("Reject")
            approved = stage.run("Approve")
            stage.apply("APP-LATER-1")
            outgrown = stage.run("Approve", before_it=lambda: stage.apply("APP-LATER-2"))
    return Story(
        rows=len(rows),
        texts={row[name] for row in rows for name in ("contact_name", "contact_email", "use_case")},
        rejected=rejected,
        approved=approved,
        outgrown=outgrown,
    )


def test_person_sees_the_counts_and_masked_examples(story: Story) -> None:
    """Before anything is sent, and nothing of a row's own words."""
    shown = story.rejected.shown
    assert shown["subject"] == f"Send {story.rows} applications to Halo?"
    assert f"| {story.rows} | **{story.rows}** | 0 | 0 | 0 | 0 |" in shown["body"]
    examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", shown["body"], re.DOTALL)]
    assert examples == story.rejected.planned["examples"]
    assert len(examples) == 3
    assert [text for text in story.texts if text in shown["body"]] == []
    assert story.rejected.chats_when_asked == 0


def test_rejected_plan_sends_nothing(story: Story) -> None:
    """The run is over, and the tickets are skipped."""
    assert story.rejected.tasks == {"plan": "success", "approve": "success", "tickets": "skipped"}
    assert (story.rejected.state, story.rejected.chats_at_the_end) == ("success", 0)


def test_approved_plan_is_sent(story: Story) -> None:
    """Every row, and the number that was approved is the limit."""
    assert story.approved.tasks == dict.fromkeys(("plan", "approve", "tickets"), "success")
    assert story.approved.planned["would_send"] == story.rows
    assert story.approved.sent is not None
    assert story.approved.sent["delivered"] == story.rows
    assert (story.approved.chats_when_asked, story.approved.chats_at_the_end) == (0, story.rows)


def test_more_rows_than_were_approved_are_not_sent(story: Story) -> None:
    """One came after the plan: red before the first request, at the first try."""
    assert f"| {story.rows + 1} | **1** | {story.rows} |" in story.outgrown.shown["body"]
    assert (story.outgrown.state, story.outgrown.tasks["tickets"]) == ("failed", "failed")
    assert story.outgrown.sent is not None
    assert (story.outgrown.sent["not_attempted"], story.outgrown.sent["delivered"]) == (2, 0)
    assert story.outgrown.chats_at_the_end == story.rows
