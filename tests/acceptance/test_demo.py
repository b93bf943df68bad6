"""`make demo` as a newcomer meets it: real processes, twice over the same home."""

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from halo_provider.demo.airflow import IDENTITY_SECRET, REQUEST_TIMEOUT, WIDGET_KEY
from halo_provider.demo.processes import CHECKOUT
from halo_provider.demo.report import COUNTS
from halo_provider.demo.source import BACKFILL

pytestmark = pytest.mark.acceptance

APPLICATIONS, CANCELLATIONS = 60, 25  # rows of the example files
DAY = 12  # rows of a day in the source table
ROWS = APPLICATIONS + CANCELLATIONS + BACKFILL * DAY
PRIVATE_COLUMNS = {  # what becomes a message, a context or a trait, and is long enough to be recognised
    "contact_name", "contact_email", "company_name", "use_case", "customer_name", "customer_email", "reason",
}  # fmt: skip


class Demos(NamedTuple):
    """What two demos over one home said, and the pages seen while the second stayed."""

    home: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    pages: dict[str, httpx.Response]


def _start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "halo_provider.demo", "--home", str(home), *arguments],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read_until(demo: subprocess.Popen[str], words: str) -> str:
    said = ""
    for line in demo.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"the demo ended before it said {words!r}:\n{said}")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    """Run the demo with --once, then again until Ctrl-C."""
    home = tmp_path_factory.mktemp("demo")
    demo = _start(home, "--once")
    first, _ = demo.communicate()
    again = _start(home)
    try:
        second = _read_until(again, "Press Ctrl-C")
        addresses = dict(re.findall(r"(Airflow UI|Halo's inbox):\s+(\S+)", second))
        pages = {
            name: httpx.get(address, follow_redirects=True, timeout=REQUEST_TIMEOUT)
            for name, address in addresses.items()
        }
    finally:
        again.send_signal(signal.SIGINT)
        rest, _ = again.communicate()
    return Demos(
        home=home,
        first=subprocess.CompletedProcess(demo.args, demo.returncode, stdout=first),
        second=subprocess.CompletedProcess(again.args, again.returncode, stdout=second + rest),
        pages=pages,
    )


def _fates(said: str) -> list[str]:
    """The statuses of the tables' rows; each has a key, a user, a status and a session."""
    return re.findall(r"^(?:APP|CAN)-\d{4}-\d{4}  usr_\d+ +(\w+) +\S+$", said, flags=re.MULTILINE)


def _counts(said: str) -> dict[str, dict[str, int]]:
    """The counts of each run: the DAG's id, its day if it has one, then the numbers."""
    lines = re.findall(r"^(halo_\w+(?: \d{4}-\d\d-\d\d)?)((?: +\d+)+)$", said, flags=re.MULTILINE)
    return {run: dict(zip(("read", *COUNTS), map(int, numbers.split()), strict=True)) for run, numbers in lines}


def _processes_of(home: Path) -> list[str]:
    """The processes that have this home, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in process.environ().get("AIRFLOW_HOME", "") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def test_first_demo_delivers_every_row(demos: Demos) -> None:
    """All rows of both files and of the backfilled days reach the simulated Halo, each with a session in the table."""
    assert demos.first.returncode == 0, demos.first.stdout
    assert _fates(demos.first.stdout) == ["delivered"] * ROWS
    assert f"Halo got {ROWS} chats" in demos.first.stdout


def test_second_demo_sends_nothing(demos: Demos) -> None:
    """The ledger remembers every row, and the new, empty Halo stays empty."""
    assert demos.second.returncode == 0, demos.second.stdout
    assert _fates(demos.second.stdout) == ["already_delivered"] * ROWS
    assert "Halo got 0 chats" in demos.second.stdout


@pytest.mark.parametrize(("demo", "status"), [("first", "delivered"), ("second", "already_delivered")])
def test_counts_of_both_runs_balance(demos: Demos, demo: str, status: str) -> None:
    """Every row read has one status, and the demo prints the proof."""
    nothing = dict.fromkeys(COUNTS, 0)
    counts = _counts(getattr(demos, demo).stdout)
    assert len(counts) == 2 + BACKFILL
    assert counts.pop("halo_applications_csv") == nothing | {"read": APPLICATIONS, status: APPLICATIONS}
    assert counts.pop("halo_cancellations_csv") == nothing | {"read": CANCELLATIONS, status: CANCELLATIONS}
    assert all(day.startswith("halo_applications_daily ") for day in counts)
    assert list(counts.values()) == [nothing | {"read": DAY, status: DAY}] * BACKFILL


@pytest.mark.parametrize("demo", ["first", "second"])
def test_backfill_makes_nobody_active_today(demos: Demos, demo: str) -> None:
    """History is told by users/update alone."""
    said = f"The backfill of {BACKFILL} days: 0 identify calls, {BACKFILL * DAY} users updated"
    assert said in getattr(demos, demo).stdout


def test_second_demo_is_about_the_same_days(demos: Demos) -> None:
    """The source table is kept, so that what was delivered can be recognised."""
    assert list(_counts(demos.first.stdout)) == list(_counts(demos.second.stdout))


def test_pages_can_be_opened_while_the_demo_stays(demos: Demos) -> None:
    """The two addresses at the end lead to pages for people."""
    assert set(demos.pages) == {"Airflow UI", "Halo's inbox"}
    for page in demos.pages.values():
        assert page.status_code == httpx.codes.OK
        assert "<html" in page.text


def test_no_process_is_left_behind(demos: Demos) -> None:
    """Neither --once nor Ctrl-C leaves anything running."""
    assert _processes_of(demos.home) == []


def test_logs_hold_no_secret_and_no_payload(demos: Demos) -> None:
    """Neither a key nor a token, a message or a trait stands in any log of the processes and the tasks."""
    private = {WIDGET_KEY, IDENTITY_SECRET}
    for path in sorted((CHECKOUT / "dags" / "data").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            private |= {row[column] for row in csv.DictReader(file) for column in PRIVATE_COLUMNS & row.keys()}
    private |= {json.dumps(value)[1:-1] for value in private}
    logs = [path for path in (demos.home / "logs").rglob("*") if path.is_file()]
    assert {"scheduler.log", "dag-processor.log", "api-server.log", "simulator.log", "attempt=1.log"} <= {
        log.name for log in logs
    }
    written = "\n".join(log.read_text(errors="replace") for log in logs)
    assert [value for value in private if value in written] == []
    assert re.findall(r"eyJ[\w-]+\.eyJ[\w-]+", written) == []


def test_interrupted_start_leaves_no_process(tmp_path: Path) -> None:
    """A SIGTERM while Airflow starts ends everything that has been started, and the exit code tells."""
    demo = _start(tmp_path, "--once")
    _read_until(demo, "starting Airflow")
    demo.terminate()
    demo.communicate()
    assert demo.returncode == 128 + signal.SIGTERM
    assert _processes_of(tmp_path) == []


def test_dead_process_fails_the_demo_at_once(tmp_path: Path) -> None:
    """The demo does not wait for what cannot come: it names the process that died, and stops the others."""
    demo = _start(tmp_path, "--once")
    _read_until(demo, "starting Airflow")
    children = psutil.Process(demo.pid).children()
    next(child for child in children if "halo_provider.simulator" in child.cmdline()).kill()
    said, _ = demo.communicate()
    assert demo.returncode == 1
    assert "FAILED: simulator ended with exit code -9" in said
    assert _processes_of(tmp_path) == []
