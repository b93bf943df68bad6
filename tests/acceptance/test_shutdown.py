"""A real scheduler ends a task that is sending: by hand, or because its time is over."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from halo_provider.demo.airflow import AirflowApi, Run
from halo_provider.demo.processes import Home, Processes
from halo_provider.demo.report import COUNTS
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Simulator, serving
from tests.acceptance.airflows import running_airflow

pytestmark = pytest.mark.acceptance

ROWS = 40
CONCURRENCY = 4
LATENCY = 0.5  # seconds: five of them until a run is over
HEARTBEAT = 1  # seconds between the supervisor's looks at what Airflow wants
STOP_LIMIT = HEARTBEAT + 5.0  # seconds from the wish until the run has given back what it held
EXECUTION_TIMEOUT = 8.0  # seconds, of which the last half is for winding up
PATIENCE = 120.0  # seconds
SUBMISSIONS = ("marked_failed", "cleared", "timed_out")

DAGS = f"""
from datetime import timedelta

from airflow.sdk import DAG

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

for name in {SUBMISSIONS!r}:
    timed_out = name == "timed_out"
    with DAG(name, schedule=None):
        HaloTicketOperator(
            task_id="tickets",
            rows=[{{"id": str(number), "user": f"{{name}}-{{number}}"}} for number in range({ROWS})],
            submission=Submission(name=name, key="id", user=User(id="user"), message="Number {{id}}."),
            concurrency={CONCURRENCY},
            execution_timeout=timedelta(seconds={EXECUTION_TIMEOUT}) if timed_out else None,
        )
"""

_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A scheduler with its DAGs, before a Halo that is slow until told otherwise."""

    halo: Simulator
    airflow: AirflowApi
    processes: Processes
    ledger: Path

    def wait(self, ready: Callable[[], _ResultT | None], stage: str) -> _ResultT:
        """The first result that is not None."""
        return self.processes.wait(ready, stage=stage, timeout=PATIENCE)

    def statuses(self, submission: str) -> dict[LedgerStatus, int]:
        """How many rows the ledger has of each status."""
        with closing(Ledger.at_path(self.ledger)) as ledger:
            return RowReader(ledger).counts(RowFilter(namespace=f"halo_default/{submission}"))

    def accepted(self, submission: str) -> Counter[str]:
        """How often Halo took each row."""
        found = (str(chat.user_id).partition("-") for chat in self.halo.chats)
        return Counter(row_key for name, _, row_key in found if name == submission)

    def sending(self, submission: str) -> tuple[Run, psutil.Process]:
        """Trigger the DAG; its run and its task's process, once some rows are with Halo."""
        self.halo.chat_latency = (LATENCY, LATENCY)
        run = self.airflow.trigger(submission)
        self.wait(lambda: self.accepted(submission).total() >= 2 * CONCURRENCY or None, f"{submission} sends")
        with closing(Ledger.at_path(self.ledger)) as ledger:
            row = RowReader(ledger).row(f"halo_default/{submission}", "0")
        _, process_id, _ = row.owner.split(":")
        return run, psutil.Process(int(process_id))

    def stop(self, run: Run, process: psutil.Process) -> float:
        """Wait until the try holds no row any more, then for its process; the seconds the first took.

        The process lives until the supervisor has told Airflow how it ended, or kills it.
        """
        began = time.monotonic()
        with closing(Ledger.at_path(self.ledger)) as ledger:
            admin, wanted = LedgerAdmin(ledger, actor="test"), RowFilter(namespace=f"halo_default/{run.dag_id}")
            while any(str(process.pid) in row.owner and row.lease_expires_at for row in admin.rows.page(wanted)):
                assert time.monotonic() < began + PATIENCE
                time.sleep(0.02)
            seconds = time.monotonic() - began
        process.wait(PATIENCE)
        return seconds

    def state(self, run: Run) -> str | None:
        """The task's state."""
        (task,) = self.airflow.tasks(run)
        state: str | None = task["state"]
        return state

    def reaches(self, run: Run, state: str) -> None:
        """Wait for the task's state."""
        self.wait(lambda: self.state(run) == state or None, f"{run} is to be {state}")

    def send_the_rest(self, run: Run) -> dict[str, Any]:
        """Clear the task, now that Halo is quick, and return the summary of the try that follows."""
        self.halo.chat_latency = (0.0, 0.0)
        self.clear(run)
        self.wait(lambda: self.state(run) != "failed" or None, f"{run} is to begin again")
        self.reaches(run, "success")
        summary: dict[str, Any] = self.airflow.returned(run, "tickets")
        return summary

    def clear(self, run: Run) -> None:
        """Clear the task over REST."""
        wanted = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": ["tickets"], "only_failed": False}
        self.rest("POST", f"/api/v2/dags/{run.dag_id}/clearTaskInstances", wanted)

    def mark_failed(self, run: Run) -> None:
        """Mark the task as failed over REST."""
        self.rest("PATCH", f"{run.path}/taskInstances/tickets", {"new_state": "failed"})

    def rest(self, method: str, path: str, wanted: dict[str, Any]) -> None:
        """What a person does in Airflow's UI."""
        self.airflow.request(method, path, json=wanted)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, metadata_url: str | None) -> Iterator[Stage]:
    """Start Airflow over DAGs of our own."""
    home = Home(tmp_path_factory.mktemp("shutdown"))
    dags = home.path / "dags"
    dags.mkdir()
    (dags / "shutdown.py").write_text(DAGS, encoding="utf-8")
    halo = Simulator()
    with serving(halo) as url:
        settings = {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps({"conn_type": "halo", "host": url, "password": EXAMPLE_WIDGET_KEY}),
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": str(HEARTBEAT),
        }
        with running_airflow(home, dag_ids=SUBMISSIONS, settings=settings, metadata_url=metadata_url) as running:
            airflow, processes = running
            yield Stage(halo=halo, airflow=airflow, processes=processes, ledger=home.ledger)


def test_task_marked_as_failed_stops_in_time_and_leaves_nothing_in_flight(stage: Stage) -> None:
    """What Halo was slow with is in doubt, the rest waits; the next try sends it, and doubles nothing but doubt."""
    stage.halo.script_for(user_id="marked_failed-1", faults=[Fault.slow(60.0)])
    run, process = stage.sending("marked_failed")
    stage.mark_failed(run)
    seconds = stage.stop(run, process)
    statuses = stage.statuses("marked_failed")
    accepted = stage.accepted("marked_failed")

    summary = stage.send_the_rest(run)

    assert seconds < STOP_LIMIT
    assert statuses[LedgerStatus.IN_DOUBT] == 1
    assert LedgerStatus.IN_FLIGHT not in statuses
    assert statuses[LedgerStatus.DELIVERED] == accepted.total() - 1
    assert (summary["delivered"], summary["already_delivered"]) == (ROWS - accepted.total() + 1, accepted.total() - 1)
    assert stage.accepted("marked_failed") == Counter(map(str, range(ROWS))) + Counter("1")


def test_cleared_task_stops_in_time_and_its_next_try_sends_the_rest(stage: Stage) -> None:
    """The next try begins while the last one ends: each row goes once all the same."""
    run, process = stage.sending("cleared")
    stage.clear(run)
    seconds = stage.stop(run, process)
    stage.halo.chat_latency = (0.0, 0.0)
    stage.reaches(run, "success")

    summary = stage.airflow.returned(run, "tickets")

    assert seconds < STOP_LIMIT
    assert summary["delivered"] + summary["already_delivered"] == ROWS
    assert summary["already_delivered"] >= 2 * CONCURRENCY - CONCURRENCY
    assert stage.statuses("cleared") == {LedgerStatus.DELIVERED: ROWS}
    assert stage.accepted("cleared") == Counter(map(str, range(ROWS)))


def test_task_whose_time_is_over_tells_its_counts_and_leaves_nothing_in_flight(stage: Stage) -> None:
    """execution_timeout: the run winds up before Airflow cuts it off, and its summary is in XCom."""
    stage.halo.script_for(user_id="timed_out-1", faults=[Fault.slow(60.0)])
    stage.halo.chat_latency = (4 * LATENCY, 4 * LATENCY)
    run = stage.airflow.trigger("timed_out")
    stage.reaches(run, "failed")
    (task,) = stage.airflow.tasks(run)
    seconds = task["duration"]  # a busy Airflow takes its time before and after
    summary = stage.airflow.returned(run, "tickets")
    statuses = stage.statuses("timed_out")
    accepted = stage.accepted("timed_out")

    rest = stage.send_the_rest(run)

    assert seconds < EXECUTION_TIMEOUT + STOP_LIMIT
    assert summary["read"] == ROWS == sum(summary[count] for count in COUNTS)
    in_doubt = summary["in_doubt"]  # the slow one, and what a machine that stood still had under way at the end
    assert 1 <= in_doubt <= CONCURRENCY
    assert summary["in_doubt"] == statuses[LedgerStatus.IN_DOUBT]
    assert summary["delivered"] == statuses[LedgerStatus.DELIVERED] == accepted.total() - in_doubt
    assert LedgerStatus.IN_FLIGHT not in statuses
    assert (rest["already_delivered"], rest["delivered"]) == (summary["delivered"], ROWS - summary["delivered"])
    again = stage.accepted("timed_out") - Counter(map(str, range(ROWS)))
    assert again["1"] == 1
    assert again.total() == in_doubt  # a row in doubt is sent again, by the default
