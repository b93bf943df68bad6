"""What a delivery tells while it runs: to its watchers, the task state store, the ledger's account, and the log."""

import asyncio
import json
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.delivery.pace import LimitedBy, Pace
from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import HaloConnectionError, HaloRateLimitError, RowError
from halo_provider.ledger import Ledger
from halo_provider.ledger.delivery_records import DeliveryCounts, DeliveryRecord, DeliveryRecords, duration
from halo_provider.ledger.statuses import RowStatus
from halo_provider.operators import progress as module
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.operators.progress import Progress
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.rows import Row
from tests.provider.notes import NOTE, csv_text, rows
from tests.provider.runs import Attempt, Run, Supervise


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **values: Any) -> None:
        """Take a line."""
        self.lines.append((event, values))

    warning = info


class Watcher:
    """Remembers what it is told, and in which thread."""

    def __init__(self) -> None:
        self.tallies: list[DeliveryCounts] = []
        self.ends: list[bool] = []
        self.threads: set[int] = set()

    def __call__(self, counts: DeliveryCounts, *, ended: bool) -> None:
        """Take a report."""
        self.tallies.append(counts)
        self.ends.append(ended)
        self.threads.add(threading.get_ident())


def outcome(status: RowStatus, error: str | None = None) -> Outcome:
    """A row's end."""
    return Outcome(row=Row(1, {}), row_key="1", user_id="user", status=status, error=RowError(error) if error else None)


def progress(log: Log, *, batch_size: int = 100, total: int | None = None, **watchers: Any) -> Progress:
    """A delivery's progress."""
    running = Progress(log=log, batch_size=batch_size, watchers=watchers)
    if total is not None:
        running.rows_read(total, share=1.0)
    return running


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_INTERVAL", 0.01)


def account(airflow_home: Path) -> list[DeliveryRecord]:
    """The lines of the default ledger's account, the newest first."""
    with closing(Ledger.at_path(airflow_home / "halo_ledger.db")) as ledger:
        deliveries = DeliveryRecords(ledger)
        return deliveries.latest(dag_ids=deliveries.dag_ids(), limit=100)


def task_state(run: Run, task_id: str) -> Any:
    """What the task left in the task state store."""
    from airflow.models.task_state_store import TaskStateStoreModel  # noqa: PLC0415 -- needs the migrated database

    found = run.only_record(TaskStateStoreModel, task_id=task_id, key=module.STATE_KEY)
    return json.loads(found.value) if found else None


def test_report_names_the_rejected_rows_that_the_ledger_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many of them that a record stays small."""
    monkeypatch.setattr(module, "MAX_UNLISTED", 2)
    watcher = Watcher()
    running = progress(Log(), watcher=watcher)

    async def deliver() -> None:
        async with running.reported():
            running.row_ended(outcome(RowStatus.REJECTED, "listed"))
            for _ in range(3):
                running.row_ended(outcome(RowStatus.REJECTED, "no key")._replace(row_key=None, is_listed=False))

    asyncio.run(deliver())
    assert watcher.tallies[-1].unlisted == (("row 1", "no key"),) * 2


def test_watchers_see_the_counts_grow_and_the_end_once() -> None:
    """Reports come while the delivery runs, all in one thread that is not the loop's, and a last one after it."""
    watcher = Watcher()
    running = progress(Log(), total=20, watcher=watcher)

    async def deliver() -> None:
        async with running.reported():
            for _ in range(20):
                running.request_ended(0.5, None)
                running.row_ended(outcome(RowStatus.DELIVERED))
                await asyncio.sleep(0.01)

    asyncio.run(deliver())
    settled = [counts.settled for counts in watcher.tallies]
    assert settled == sorted(settled)
    assert len(set(settled)) > 3
    assert watcher.ends == [False] * (len(settled) - 1) + [True]
    assert len(watcher.threads) == 1
    assert threading.get_ident() not in watcher.threads
    assert (watcher.tallies[-1].delivered, watcher.tallies[-1].requests) == (20, 20)
    assert watcher.tallies[-1].seconds_per_request == 0.5


def test_watcher_that_fails_is_left_out_and_the_delivery_goes_on() -> None:
    """No report is worth a delivery: the log says once that it is missing, and the others go on."""
    log, watcher = Log(), Watcher()

    def broken(_delivery_counts: DeliveryCounts, *, ended: bool) -> None:
        raise ConnectionError("the supervisor is gone")

    running = progress(log, broken=broken, watcher=watcher)

    async def deliver() -> None:
        async with running.reported():
            await asyncio.sleep(0.05)

    asyncio.run(deliver())
    warnings = [values for event, values in log.lines if event == "progress is no longer reported here"]
    assert warnings == [{"to": "broken", "reason": "the supervisor is gone"}]
    assert watcher.ends[-1] is True


def test_delivery_does_not_wait_for_a_watcher_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed task has four seconds in all: the last report gets a part of them."""
    monkeypatch.setattr(module, "LAST_REPORT_TIMEOUT", 0.05)
    released = threading.Event()

    def hanging(_delivery_counts: DeliveryCounts, *, ended: bool) -> None:
        released.wait(10)

    async def deliver() -> None:
        async with progress(Log(), hanging=hanging).reported():
            pass

    async def deliver_in_time() -> None:
        async with asyncio.timeout(1):
            await deliver()

    try:
        asyncio.run(deliver_in_time())
    finally:
        released.set()


def test_error_of_a_request_that_is_tried_again_is_shown() -> None:
    """The last error is known before any row is given up, and answers of 429 are counted."""
    watcher = Watcher()
    running = progress(Log(), watcher=watcher)

    async def deliver() -> None:
        async with running.reported():
            running.request_ended(0.1, HaloRateLimitError("/chat", status=429, message="slow down", retry_after=1.0))
            running.request_ended(0.1, HaloConnectionError("/chat", sent=False, reason="refused"))

    asyncio.run(deliver())
    assert watcher.tallies[-1].refused == 1
    assert "refused" in str(watcher.tallies[-1].error)


@pytest.mark.parametrize(
    ("limited_by", "sentence"),
    [
        ("rate", "Halo's rate limits, at about 20.4 requests/s"),
        ("concurrency", "Halo's concurrency limits, at about 8 at a time"),
        ("refusals", "Halo refuses everybody for now"),
        ("setting", "the task's own settings limit"),
        ("source", "the source limits"),
    ],
)
def test_pace_is_told_with_what_limits_it(limited_by: LimitedBy, sentence: str) -> None:
    """Whoever waits for a run knows whom to ask for more."""
    watcher, log = Watcher(), Log()
    running = progress(log, watcher=watcher, batch_size=1)

    async def deliver() -> None:
        async with running.reported():
            running.paced(Pace(limited_by=limited_by, requests_per_second=20.4, concurrency=8, refused=3))
            running.row_ended(outcome(RowStatus.DELIVERED))

    asyncio.run(deliver())
    assert watcher.tallies[-1].pace == sentence
    assert log.lines[1][1]["pace"] == sentence
    assert log.lines[-1][0].endswith(sentence)


def test_every_batch_has_its_line_in_a_group() -> None:
    """The log folds the batches away, each a line of counts, and ends with a sentence for people."""
    log = Log()
    running = progress(log, batch_size=2)

    async def deliver() -> None:
        async with running.reported():
            for status in (RowStatus.DELIVERED, RowStatus.REJECTED, RowStatus.DELIVERED):
                running.row_ended(outcome(status))

    asyncio.run(deliver())
    first, *batches, last, sentence = log.lines
    assert (first[0], last[0]) == ("::group::Batches", "::endgroup::")
    assert [(values["rows"], values.get("rejected", 0)) for _, values in batches] == [(2, 1), (1, 0)]
    assert sentence[0].startswith("3 rows; 2 delivered, 1 rejected; ")


@pytest.mark.parametrize(
    ("counts", "ended", "sentence"),
    [
        (DeliveryCounts(), False, "0 rows"),
        (
            DeliveryCounts(delivered=1200, in_doubt=3, seconds=10.0, total=2406),
            False,
            "1,203 of 2,406 rows; 1,200 delivered, 3 in doubt; 120 rows/s, about 10 s left",
        ),
        (DeliveryCounts(already_delivered=5, seconds=0.5), True, "5 rows; 5 already delivered; 10 rows/s, in 500 ms"),
        (DeliveryCounts(delivered=1, seconds=4.0, total=1), True, "1 row; 1 delivered; in 4.0 s"),
        (
            DeliveryCounts(delivered=40, seconds=2.0, total=80, pace="Halo's rate limits, at about 20 requests/s"),
            False,
            "40 of 80 rows; 40 delivered; 20 rows/s, about 2.0 s left, Halo's rate limits, at about 20 requests/s",
        ),
    ],
)
def test_progress_sentence_tells_counts_rate_and_time_left(counts: DeliveryCounts, ended: bool, sentence: str) -> None:  # noqa: FBT001 -- a parameter
    """One line says how far it is, or how it ended."""
    assert counts.sentence(ended=ended) == sentence


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "250 ms"), (3.21, "3.2 s"), (42.0, "42 s"), (90.0, "2 min"), (5400.0, "1.5 h")]
)
def test_duration_is_rounded_more_the_longer_it_is(seconds: float, words: str) -> None:
    """The larger, the coarser."""
    assert duration(seconds) == words


def test_task_leaves_its_counts_where_airflow_shows_them(attempt: Attempt, dag: DAG) -> None:
    """The task state store has the last tally, with everything somebody may ask for."""
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(3))
    state = task_state(attempt(dag, "tickets"), "tickets")
    assert (state["state"], state["delivered"], state["settled"], state["total"]) == ("ended", 3, 3, 3)
    assert state["progress"].startswith("3 rows; 3 delivered; ")
    assert state["last_error"] is None


def test_failed_task_leaves_its_last_error(attempt: Attempt, dag: DAG, halo: Simulator, airflow_home: Path) -> None:
    """The state store and the account name what went wrong."""
    halo.always("/chat", Fault.status(401))
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(3), retries=0)
    state = task_state(attempt(dag, "tickets"), "tickets")
    (line,) = account(airflow_home)
    assert "401" in state["last_error"]
    assert "401" in str(line.error)
    assert line.trouble == 3


def test_account_has_a_line_for_every_try(attempt: Attempt, dag: DAG, airflow_home: Path, tmp_path: Path) -> None:
    """A file's rows are counted beforehand; a second run has a line of its own, in which nothing is new."""
    file = tmp_path / "notes.csv"
    file.write_text(csv_text(rows(3)), encoding="utf-8")
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, csv_path=str(file))
    attempt(dag, "tickets")
    attempt(dag, "tickets")
    second, first = account(airflow_home)
    assert (first.total, first.delivered, first.requests) == (3, 3, 3)
    assert (second.already_delivered, second.requests) == (3, 0)
    assert first.ended_at is not None
    assert first.dag_id == dag.dag_id


def test_task_works_without_a_task_state_store(attempt: Attempt, dag: DAG, airflow_home: Path) -> None:
    """Airflow 3.2 has none."""

    def forget(context: Any) -> None:
        del context["task_state_store"]

    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(1), pre_execute=forget)
    run = attempt(dag, "tickets")
    assert run.state("tickets") == "success"
    assert task_state(run, "tickets") is None


def test_link_to_the_rows_is_there_from_the_start(attempt: Attempt, dag: DAG, halo: Simulator) -> None:
    """A task that fails has it as well; it leads to the plugin's tab on the task instance."""
    from airflow.models.xcom import XComModel  # noqa: PLC0415 -- needs the migrated database

    halo.always("/chat", Fault.status(401))
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(1), retries=0)
    run = attempt(dag, "tickets")
    found = run.only_record(XComModel, task_id="tickets", key="halo_deliveries")
    address = XComModel.deserialize_value(found)
    assert address.endswith("/tasks/tickets/plugin/halo-task")
    assert f"/dags/{dag.dag_id}/runs/" in address
    assert "+" not in address


def test_progress_is_written_from_a_real_task_process(supervise: Supervise, airflow_home: Path) -> None:
    """Under a supervisor, where every call crosses a socket, the reports arrive and none is given up."""
    dag_file = """
from datetime import datetime
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

with DAG("progress_supervised", schedule=None, start_date=datetime(2026, 1, 1)):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="note", key="id", user=User(id="user"), message="{id}"),
        rows=[{"id": str(each), "user": f"user_{each}"} for each in range(5)],
    )
"""
    run, log = supervise(dag_file, "tickets")
    assert task_state(run, "tickets")["delivered"] == 5
    assert "progress is no longer reported here" not in log
