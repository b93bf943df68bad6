"""What ``make demo`` runs: a local Halo, a real Airflow, the example DAGs, and the status of every row.

The two DAGs over CSV files run once. Then a few days of history are backfilled from a SQLite table, by users/update
and not by users/identify, so that nobody becomes active today.

Everything lives in one directory, by default ``.demo`` in the checkout: ``airflow/`` is the AIRFLOW_HOME with the
ledger, ``source.db`` the table, ``logs/`` what the processes and the tasks wrote. It is kept, so a second demo finds
every row already delivered, although its simulated Halo starts empty. Only loopback addresses are used, and no process
is left behind on any way out but a SIGKILL.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from halo_provider.demo.airflow import (
    LOOPBACK,
    REQUEST_TIMEOUT,
    AirflowApi,
    Run,
    airflow_environment,
    free_ports,
    start_airflow,
)
from halo_provider.demo.ledger import ledger_rows
from halo_provider.demo.processes import CHECKOUT, DemoError, Home, Processes, Progress, StopRequested
from halo_provider.demo.report import History, Outcome, print_report
from halo_provider.demo.source import BACKFILL, create_source, first_day
from halo_provider.exceptions import LedgerError
from halo_provider.ledger.statuses import LedgerStatus

SIMULATED_LATENCY = "0.2-1.5"  # seconds per chat, as long as a quick AI pipeline takes
RUN_TIMEOUT = 600.0  # seconds for one DAG run: both retries of both tasks fit
CSV_DAGS = ("halo_applications_csv", "halo_cancellations_csv")
DATABASE_DAG = "halo_applications_daily"


class Demo:
    """One demo. What it starts, the stack stops."""

    def __init__(self, *, home: Home, stack: ExitStack) -> None:
        self.home = home
        self.progress = Progress()
        simulator_port, airflow_port = free_ports(2)
        environment = airflow_environment(home, simulator_port=simulator_port, airflow_port=airflow_port)
        stack.callback(self.progress.clear)
        self.airflow = stack.enter_context(AirflowApi(f"http://{LOOPBACK}:{airflow_port}"))
        self._processes = Processes(home=home, environment=environment, stack=stack, progress=self.progress)
        self._processes.heed_signals()
        self._simulator_port = simulator_port
        self.simulator_url = f"http://{LOOPBACK}:{simulator_port}"

    def start(self) -> None:
        """Start the simulator and Airflow; return when the example DAGs can be triggered."""
        create_source(self.home.source)
        address = ("--host", LOOPBACK, "--port", str(self._simulator_port))
        halo = ("--enforce-verification", "--latency", SIMULATED_LATENCY)
        self._processes.serve("simulator", "halo_provider.simulator", *address, *halo)
        start_airflow(self._processes, self.airflow, dag_ids=[*CSV_DAGS, DATABASE_DAG])

    def run(self, dag_id: str) -> Outcome:
        """Trigger the DAG and follow its run to the end."""
        began = datetime.now(UTC)
        self.airflow.abandon_runs(dag_id)
        run = self.airflow.trigger(dag_id)
        self._follow([run], stage=lambda: self._tasks(run))
        return self._outcome(run, began=began)

    def backfill(self, dag_id: str) -> History:
        """Backfill the first days of the source table and follow the runs to the end."""
        began = datetime.now(UTC)
        earlier_calls = self._identify_calls()
        self.airflow.abandon_runs(dag_id)
        first = first_day(self.home.source)
        runs = self.airflow.backfill(dag_id, first=first, last=first + timedelta(days=BACKFILL - 1))
        self._follow(runs, stage=lambda: f"{sum(map(self._has_ended, runs))} of {len(runs)} days done")
        return History(
            outcomes=[self._outcome(run, began=began) for run in runs],
            identify_calls=self._identify_calls() - earlier_calls,
            updated_users=sum(user["last_seen"] is None for user in self.halo_state(details=True)["users"]),
        )

    def halo_state(self, *, details: bool) -> dict[str, Any]:
        """What the simulated Halo holds and has counted; it starts empty."""
        url = f"{self.simulator_url}/_simulator/state"
        answer = httpx.get(url, params={"details": details}, timeout=REQUEST_TIMEOUT, trust_env=False)
        state: dict[str, Any] = answer.raise_for_status().json()
        return state

    def stay(self) -> None:
        """Keep everything running until a signal."""
        while True:
            self._processes.pause()

    def _follow(self, runs: Sequence[Run], *, stage: Callable[[], str]) -> None:
        """Show how the runs of one DAG get on; return when all have ended."""

        def progress() -> str:
            rows = [row for run in runs for row in ledger_rows(self.home.ledger, run=run)]
            delivered = sum(row.status is LedgerStatus.DELIVERED for row in rows)
            rows_delivered = f", {delivered} of {len(rows)} rows delivered" if rows else ""
            return f"{runs[0].dag_id}: {stage()}{rows_delivered}"

        self._processes.wait(lambda: all(map(self._has_ended, runs)) or None, stage=progress, timeout=RUN_TIMEOUT)

    def _identify_calls(self) -> int:
        return sum(self.halo_state(details=False)["counts"].get("/users/identify", {}).values())

    def _has_ended(self, run: Run) -> bool:
        return self.airflow.state(run) in {"success", "failed"}

    def _tasks(self, run: Run) -> str:
        return ", ".join(f"{task['task_id']} {task['state'] or 'waiting'}" for task in self.airflow.tasks(run))

    def _outcome(self, run: Run, *, began: datetime) -> Outcome:
        return Outcome(
            run=run,
            state=self.airflow.state(run),
            tasks=self.airflow.tasks(run),
            summary=self.airflow.returned(run, "tickets"),
            rows=ledger_rows(self.home.ledger, run=run),
            began=began,
            ended=datetime.now(UTC),
        )


def _play(demo: Demo, *, once: bool) -> int:
    """Run the demo and return its exit code."""
    try:
        demo.start()
        start_seconds = demo.progress.seconds
        outcomes = [demo.run(dag_id) for dag_id in CSV_DAGS]
        history = demo.backfill(DATABASE_DAG)
        outcomes += history.outcomes
        demo.progress.clear()
        print_report(
            outcomes,
            history,
            halo_totals=demo.halo_state(details=False)["totals"],
            seconds=demo.progress.seconds,
            start_seconds=start_seconds,
            airflow_url=demo.airflow.url,
            halo_url=demo.simulator_url,
        )
        problems = [*(problem for outcome in outcomes for problem in outcome.problems(demo.home)), *history.problems()]
        for problem in problems:
            print(f"\nFAILED: {problem}", file=sys.stderr, flush=True)
        if not once:
            print("\nPress Ctrl-C to stop.", flush=True)
            with suppress(StopRequested):
                demo.stay()
        return 1 if problems else 0
    finally:
        demo.progress.show("stopping every process")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo as the command line says; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m halo_provider.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit after the runs: 0 only if all rows are delivered")
    parser.add_argument("--fresh", action="store_true", help="forget earlier demos first")
    parser.add_argument(
        "--home", type=Path, default=CHECKOUT / ".demo", help="where to keep it all (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not (CHECKOUT / "dags").is_dir():
        parser.error(f"the demo is a tool of the checkout of airflow-provider-halo; there is no {CHECKOUT / 'dags'}")
    home = Home(options.home.resolve())
    try:
        with home.locked(), ExitStack() as stack:
            if options.fresh:
                home.remove()
            return _play(Demo(home=home, stack=stack), once=options.once)
    except (DemoError, LedgerError, httpx.HTTPError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except StopRequested as request:
        return request.exit_code


if __name__ == "__main__":
    sys.exit(main())
