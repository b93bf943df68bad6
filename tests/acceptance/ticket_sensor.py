"""A sensor that follows many tickets: a real Airflow with a triggerer, which is killed while it waits.

``python -m tests.acceptance.ticket_sensor --rows 10000`` delivers the rows to the simulator, lets a HaloTicketSensor
wait until their tickets are resolved, kills its triggerer by SIGKILL, starts another one, resolves the tickets, and
prints how many calls that took, how much memory, and how long.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import csv
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psutil

from halo_provider.demo.airflow import AirflowApi, Run
from halo_provider.demo.processes import Child, Home, Processes, kill
from halo_provider.ledger import Ledger
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Reading, Simulator, serving
from halo_provider.simulator.reading import Variant
from tests.acceptance.airflows import running_airflow
from tests.acceptance.sign_in_worker import KEY, sign_in_at
from tests.core.databases import own_database

DAG_ID = "tickets_followed"
PAGE = 100  # tickets that Halo gives at a time
POKE_INTERVAL = 5.0  # seconds between looks
WITHOUT_TICKET = 40  # every so manieth row is answered without a ticket
HEALTH = 6  # seconds after which Airflow takes a triggerer for dead; usually 30
PATIENCE = 300.0  # seconds for whatever Airflow has to do
POSTGRES_URL = "postgresql+psycopg2://root@127.0.0.1/test"
DAG = f"""
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.sensors.halo import HaloTicketSensor
from halo_provider.submission import Submission, User

with DAG("{DAG_ID}", schedule=None):
    tickets = HaloTicketOperator(
        task_id="tickets",
        csv_path="{{path}}",
        submission=Submission(name="note", key="id", user=User(id="user"), message="{{{{text}}}}"),
    )
    resolved = HaloTicketSensor(
        task_id="resolved", until="resolved", poke_interval={POKE_INTERVAL}, timeout=3600, ticket_within=1.0
    )
    tickets >> resolved
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What following the tickets took. Memory is that of the triggerer with all its processes, in MB.

    `calls` are to Halo's tools: in the first look over all rows, and in all. `look` and `settled` are seconds: the
    first look, and from the tickets' resolution to the end of the sensor.
    """

    rows: int
    states: dict[str, str]  # of the tasks
    summary: dict[str, Any]  # the sensor's XCom
    calls_of_first_look: int
    calls: int
    look: float
    settled: float
    memory_idle: float
    memory_peak: float
    triggerers: int  # that have looked


class Memory(threading.Thread):
    """Measures a process with all its descendants, now and then."""

    def __init__(self, child: Child) -> None:
        super().__init__(daemon=True)
        self._child = child
        self._ended = threading.Event()
        self.idle = self.peak = 0.0

    def rest(self) -> None:
        """Note what it has now as what it needs for itself."""
        self.idle = _megabytes(self._child)

    def run(self) -> None:
        """Measure until the end."""
        while not self._ended.wait(0.25):
            self.peak = max(self.peak, _megabytes(self._child))

    def end(self) -> None:
        """Stop measuring."""
        self._ended.set()
        self.join()


def _megabytes(child: Child) -> float:
    total = 0
    for process in child.members():
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 1e6


def write_rows(path: Path, *, rows: int) -> None:
    """A CSV file of rows, each of a user of its own; most of them ask for a person."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "user", "text"])
        for number in range(rows):
            asks = number % WITHOUT_TICKET != 0
            writer.writerow([f"r{number}", f"u{number}", f"Please escalate this: {number}" if asks else "Thank you."])


def calls_of(halo: Simulator) -> Counter[str]:
    """How often each tool was called."""
    return Counter(each.path for each in list(halo.reads) if each.path.startswith("/api/mcp/data_"))


class Site:
    """The Airflow, its Halo, and the triggerers that it has one after the other."""

    def __init__(self, halo: Simulator, airflow: AirflowApi, processes: Processes) -> None:
        self.halo = halo
        self.airflow = airflow
        self._processes = processes
        self._triggerers = 0

    def start_triggerer(self) -> Child:
        """Start one."""
        self._triggerers += 1
        return self._processes.start(f"triggerer-{self._triggerers}", "airflow", "triggerer", "--skip-serve-logs")

    def wait(self, ready: Callable[[], Any], *, reason: str) -> Any:
        """Return what it gives, as soon as that is true."""
        return self._processes.wait(lambda: ready() or None, stage=f"waiting for {reason}", timeout=PATIENCE)

    def state(self, run: Run, task_id: str) -> str | None:
        """The task's."""
        (task,) = (task for task in self.airflow.tasks(run) if task["task_id"] == task_id)
        found: str | None = task["state"]
        return found


@contextmanager
def site(*, rows: int, variant: Variant, metadata_url: str | None) -> Iterator[Site]:
    """Airflow with the DAG over so many rows, and a Halo at which somebody has signed in."""
    halo = Simulator(reading=Reading(variant=variant, consent="approved", page_size=PAGE))
    with ExitStack() as stack:
        home = Home(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="halo-sensor-"))))
        dags = home.path / "dags"
        dags.mkdir(parents=True)
        home.airflow.mkdir(parents=True)
        write_rows(home.path / "rows.csv", rows=rows)
        text = DAG.replace("{path}", str(home.path / "rows.csv")).replace("{{text}}", "{text}")
        (dags / "tickets_followed.py").write_text(text, encoding="utf-8")
        url = stack.enter_context(serving(halo))
        ledger = stack.enter_context(closing(Ledger.at(f"sqlite:///{home.ledger}")))
        sign_in_at(f"{url}/api/mcp", ledger)
        connection = {"conn_type": "halo", "host": url, "password": EXAMPLE_WIDGET_KEY}
        settings = {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection),
            "AIRFLOW__CORE__FERNET_KEY": KEY.decode(),
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(HEALTH),
        }
        running = running_airflow(home, dag_ids=[DAG_ID], settings=settings, metadata_url=metadata_url)
        yield Site(halo, *stack.enter_context(running))


def play(*, rows: int, variant: Variant, metadata_url: str | None) -> Followed:
    """Deliver, follow, kill the triggerer, start another one, resolve the tickets."""
    with site(rows=rows, variant=variant, metadata_url=metadata_url) as place:
        halo = place.halo
        triggerer = place.start_triggerer()
        memory = Memory(triggerer)
        memory.start()
        run = place.airflow.trigger(DAG_ID)
        place.wait(lambda: place.state(run, "resolved") == "deferred", reason="the sensor to be deferred")
        began = time.monotonic()
        memory.rest()
        waiting = rows - -(-rows // WITHOUT_TICKET)
        first_look = FirstLook(halo)
        place.wait(first_look.has_ended, reason="the first look")
        look = first_look.last_call - began
        first = sum(calls_of(halo).values())
        memory.end()
        kill(triggerer.members())
        before = sum(calls_of(halo).values())
        successor = place.start_triggerer()
        later = Memory(successor)
        later.start()
        place.wait(lambda: sum(calls_of(halo).values()) > before, reason="the next triggerer's look")
        if halo.set_ticket_status("resolved") != waiting:
            raise RuntimeError(f"there are not {waiting} open tickets")
        resolved_at = time.monotonic()
        place.wait(lambda: place.state(run, "resolved") in {"success", "failed"}, reason="the sensor's end")
        settled = time.monotonic() - resolved_at
        later.end()
        return Followed(
            rows=rows,
            states={task["task_id"]: task["state"] for task in place.airflow.tasks(run)},
            summary=place.airflow.returned(run, "resolved"),
            calls_of_first_look=first,
            calls=sum(calls_of(halo).values()),
            look=look,
            settled=settled,
            memory_idle=memory.idle,
            memory_peak=max(memory.peak, later.peak),
            triggerers=2,
        )


class FirstLook:
    """Notices that a look is over: for a while nothing more was asked. `last_call` is when it asked last."""

    def __init__(self, halo: Simulator) -> None:
        self._halo = halo
        self._known = 0
        self.last_call = time.monotonic()

    def has_ended(self) -> bool:
        """Whether it has."""
        asked = sum(calls_of(self._halo).values())
        if asked != self._known:
            self._known, self.last_call = asked, time.monotonic()
        return asked > 0 and time.monotonic() - self.last_call > POKE_INTERVAL / 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if every sensor ended as it should."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.ticket_sensor", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=get_args(Variant), default=["structured", "text", "paged"])
    options = parser.parse_args(arguments)
    lines, broken = [], []
    for variant in options.variants:
        with own_database(POSTGRES_URL, force=True) as metadata:
            metadata_url = metadata.render_as_string(hide_password=False)
            followed = play(rows=options.rows, variant=variant, metadata_url=metadata_url)
        told = followed.summary
        lines.append(
            f"| {variant} | {followed.rows:,} | {followed.calls_of_first_look:,} | {followed.calls:,} | "
            f"{followed.look:.0f} | {followed.settled:.0f} | {followed.memory_peak - followed.memory_idle:.0f} | "
            f"{told['resolved']:,} | {told['without_ticket']:,} |"
        )
        print(lines[-1], flush=True)
        if followed.states["resolved"] != "success" or told["waiting"]:
            broken.append(f"{variant}: {followed.states}, {told}")
    print(
        "| Tools | Rows | Calls of the first look | Calls in all | First look, s | Resolved to green, s | MB more | ",
        end="",
    )
    print("Resolved | Without a ticket |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(lines))
    for fault in broken:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
