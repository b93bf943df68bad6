"""What the demo prints at its end: the status of every row, the counts of every run, and what is wrong with them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from halo_provider.demo.airflow import Run
from halo_provider.demo.ledger import LedgerRow
from halo_provider.demo.processes import Home, lines_of, tail
from halo_provider.ledger.statuses import RowStatus

COUNTS = tuple(status.value for status in RowStatus)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One DAG run, ended."""

    run: Run
    state: str
    tasks: list[dict[str, Any]]
    summary: dict[str, Any] | None
    rows: list[LedgerRow]
    began: datetime
    ended: datetime

    def problems(self, home: Home) -> Iterator[str]:
        """Everything that keeps this run from being perfect."""
        for task in self.tasks:
            if task["state"] not in {"success", "upstream_failed"}:
                log = home.task_logs.joinpath(
                    f"dag_id={self.run.dag_id}",
                    f"run_id={self.run.run_id}",
                    f"task_id={task['task_id']}",
                    f"attempt={task['try_number']}.log",
                )
                yield (
                    f"{self.run}: the task {task['task_id']} ended {task['state']} in try {task['try_number']};"
                    f" the end of {log}:\n{tail(_task_log_lines(log))}"
                )
        if self.state != "success":
            yield f"{self.run}: the run ended {self.state}"
        if self.summary is None:
            yield f"{self.run}: the task tickets left no counts in XCom"
            return
        read, accounted = self.summary["read"], sum(self.summary[count] for count in COUNTS)
        if read != accounted:
            yield f"{self.run}: {read} rows were read, but {accounted} are accounted for"
        if read != self.summary["delivered"] + self.summary["already_delivered"]:
            yield f"{self.run}: not every row is delivered"
        if read > len(self.rows):
            yield f"{self.run}: {read} rows were read, but the ledger holds {len(self.rows)}"


@dataclass(frozen=True, kw_only=True)
class History:
    """A backfill: its runs, and what Halo heard of the users in them."""

    outcomes: list[Outcome]
    identify_calls: int
    updated_users: int

    def problems(self) -> Iterator[str]:
        """Whether history was told as if it happened today."""
        if self.identify_calls:
            yield f"the backfill called users/identify {self.identify_calls} times, which makes users active today"


def print_report(
    outcomes: Sequence[Outcome],
    history: History,
    *,
    halo_totals: Mapping[str, int],
    seconds: float,
    start_seconds: float,
    airflow_url: str,
    halo_url: str,
) -> None:
    """Print every row's status, the counts of each run, the times and the addresses."""
    for outcome in outcomes:
        print(f"\n{outcome.run.dag_id}, run {outcome.run.run_id}: {outcome.state}\n")
        header = ("row_key", "user", "status", "session_id")
        rows = [
            (row.row_key, row.user_id or "", row.status_in(outcome.began), row.session_id or "") for row in outcome.rows
        ]
        print(table(header, rows))
    counts = [
        (str(outcome.run), outcome.summary["read"], *(outcome.summary[count] for count in COUNTS))
        for outcome in outcomes
        if outcome.summary is not None
    ]
    print(f"\nEvery row read has one status: read = {' + '.join(COUNTS)}\n")
    print(table(("run", "read", *COUNTS), counts))
    print(
        f"\nHalo got {halo_totals['chats']} chats this time and made {halo_totals['tickets']} tickets"
        " (a user's open ticket takes in what follows)."
    )
    print(
        f"The backfill of {len(history.outcomes)} days: {history.identify_calls} identify calls,"
        f" {history.updated_users} users updated without becoming active today."
    )
    taken = {outcome.run.dag_id: (outcome.ended - outcome.began).total_seconds() for outcome in outcomes}
    runs = ", ".join(f"{dag_id} {of_dag:.1f} s" for dag_id, of_dag in taken.items())
    print(f"Time: {seconds:.1f} s (start {start_seconds:.1f} s, {runs})")
    print(f"Airflow UI:    {airflow_url}/")
    print(f"Halo's inbox:  {halo_url}/", flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell, columns of numbers to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(str(cell)) for cell in column) for column in columns]
    aligns = [">" if rows and all(isinstance(cell, int) for cell in column[1:]) else "<" for column in columns]
    lines = [
        "  ".join(f"{cell!s:{align}{width}}" for cell, align, width in zip(row, aligns, widths, strict=True)).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def _task_log_lines(log: Path) -> Iterator[str]:
    """The lines of a task's log for a person: Airflow writes one JSON object per line."""
    for line in lines_of(log):
        try:
            record = json.loads(line)
        except ValueError:
            yield line
            continue
        yield f"{record.get('level', ''):8} {record.get('event', '')}"
        for error in record.get("error_detail") or []:
            yield f"{'':8} {error.get('exc_type')}: {error.get('exc_value')}"
