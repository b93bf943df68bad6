"""What every Airflow from 2.11 on does with this package, under its own scheduler. `make matrix` runs it on each."""

import csv
import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pkgutil import walk_packages

import pytest

import halo_provider
from halo_provider import compat
from halo_provider.demo.processes import CHECKOUT
from halo_provider.demo.source import first_day
from halo_provider.ledger import Ledger
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, TokenBucket, serving
from tests.core.databases import own_database
from tests.example_keys import IDENTITY_SECRET
from tests.matrix.airflows import HAS_SDK, AnyAirflow, any_airflow, errors

EXAMPLES = {
    "halo_applications_approved",
    "halo_applications_csv",
    "halo_applications_daily",
    "halo_applications_followed",
    "halo_cancellations_csv",
    "halo_cancellations_daily",
    "halo_subscription_webhook",
}
with (CHECKOUT / "dags" / "data" / "applications.csv").open(encoding="utf-8", newline="") as file:
    APPLICATIONS = len(list(csv.DictReader(file)))  # rows of the example
RATE = TokenBucket(rate=10, burst=2)  # requests a second: the file takes about six seconds
IMPOSSIBLE = """
from airflow import DAG

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission

with DAG("impossible", schedule=None):
    HaloTicketOperator(
        task_id="tickets", rows=[{"id": "1"}], results_path="{{ 'results.xlsx' }}", retries=3,
        submission=Submission(name="impossible", key="id", user=None, message="Number {id}."),
    )
"""
UI_MODULES = ("access", "app", "asking", "decisions", "rows")  # that need Airflow's API server
FORM_FIELDS = {
    "identity_secret", "agent_id", "timeout", "dashboard_url", "user_url", "session_url", "mcp_url",
    "ca_file", "client_cert",
}  # fmt: skip
ALERTING = """
from airflow import DAG

from halo_provider.compat import task
from halo_provider.notifications.halo import HaloNotifier

with DAG("alerting", schedule=None):
    @task(on_failure_callback=HaloNotifier(message="{{ ti.task_id }} of {{ run_id }} is broken."))
    def load():
        raise ValueError("broken")
    load()
"""
FORM = """
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
(form,) = (each for each in HookMetaService.hook_meta_data() if each.connection_type == "halo")
print(*form.extra_fields)
"""
FORM_OF_HOOK = """
from airflow.providers_manager import ProvidersManager
print(*(name[13:] for name in ProvidersManager().connection_form_widgets if name.startswith("extra__halo__")))
"""


class StatsD:
    """Listens as a StatsD server does."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.lines: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                self.lines += self._socket.recv(65_536).decode().splitlines()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def counted(self, name: str) -> float:
        """The sum of a counter's reports."""
        reports = (line.partition("|")[0].rpartition(":") for line in self.lines if "|c" in line)
        return sum(float(value) for key, _, value in reports if key.startswith(name))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A running Airflow, a local Halo, and who listens to the metrics."""

    airflow: AnyAirflow
    halo: Simulator
    statsd: StatsD

    def statuses(self, submission: str) -> dict[LedgerStatus, int]:
        """How many rows the ledger has of each status."""
        with closing(Ledger.at_path(self.airflow.home.ledger)) as ledger:
            return RowReader(ledger).counts(RowFilter(namespace=f"halo_default/{submission}"))

    def has_ended(self, dag_id: str, run_id: str) -> bool:
        """Whether the run's last delivery has ended, by its record in the ledger, which its own process writes."""
        with closing(Ledger.at_path(self.airflow.home.ledger)) as ledger:
            found = DeliveryRecords(ledger).latest(dag_ids=[dag_id], run_id=run_id, limit=1)
            return bool(found) and found[0].ended_at is not None


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Stage]:
    """Airflow with the example DAGs, one that cannot work, and one that tells Halo of its failure."""
    halo = Simulator(identity_secret=IDENTITY_SECRET)
    with (
        closing(StatsD()) as statsd,
        serving(halo) as url,
        own_database(postgres_url, force=True) as metadata_url,
        any_airflow(
            tmp_path_factory.mktemp("matrix"),
            metadata_url=metadata_url,
            dags={"impossible": IMPOSSIBLE, "alerting": ALERTING},
            settings={
                "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(
                    {
                        "conn_type": "halo",
                        "host": url,
                        "password": EXAMPLE_WIDGET_KEY,
                        "extra": {"identity_secret": IDENTITY_SECRET, "dashboard_url": "https://dashboard.example.com"},
                    }
                ),
                "AIRFLOW__METRICS__STATSD_ON": "True",
                "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
                "AIRFLOW__METRICS__STATSD_PORT": str(statsd.port),
                "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",  # seconds between the looks at what Airflow wants
                "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            },
        ) as airflow,
    ):
        yield Stage(airflow=airflow, halo=halo, statsd=statsd)


def test_every_module_is_imported_that_has_what_it_needs() -> None:
    """Only what this Airflow cannot have is missing: its pages or its retry policies."""
    missing = set()
    for module in walk_packages(halo_provider.__path__, "halo_provider."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                missing.add((module.name, "this Airflow has no" in str(error)))
    allowed = {("halo_provider.operators.retry_policy", True)}
    if not HAS_SDK:
        allowed |= {(f"halo_provider.ui.{module}", True) for module in UI_MODULES}
    assert missing <= allowed


def test_airflow_finds_provider_and_plugin_and_example_dags(stage: Stage) -> None:
    """By its own commands; no DAG file breaks."""
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415 -- reads the configuration

    found = ProvidersManager()
    assert "airflow-provider-halo" in found.providers
    assert found.hooks["halo"].hook_name == "Halo"
    assert "halo_provider.operators.links.HaloDeliveriesLink" in found.extra_links_class_names
    assert "HaloPlugin" in stage.airflow.command("plugins", "--output", "json")
    assert errors(stage.airflow) == []
    assert {dag_id for (dag_id,) in stage.airflow.rows("SELECT dag_id FROM dag")} == EXAMPLES | {
        "impossible",
        "alerting",
    }


def test_run_that_is_killed_is_finished_by_the_next_try_and_nothing_is_sent_twice(stage: Stage) -> None:
    """Marked failed while it sends, then cleared: every row of the example is delivered.

    Only a row that the first try left in doubt may reach Halo twice; a machine that stands still leaves some.
    """
    airflow, halo = stage.airflow, stage.halo
    airflow.trigger("halo_applications_csv", "killed")
    airflow.wait(lambda: airflow.task("killed", "identify")[0] == "success", stage="identifying")
    halo.limit = RATE  # before the process of the next task has started
    airflow.wait(lambda: len(halo.chats) >= 10, stage="sending")
    airflow.mark_failed("killed", "tickets")
    airflow.wait(lambda: stage.has_ended("halo_applications_csv", "killed"), stage="giving up")
    assert stage.statuses("application").get(LedgerStatus.IN_FLIGHT, 0) == 0
    airflow.wait(lambda: airflow.run_states("halo_applications_csv", run_type="manual") == ["failed"], stage="failing")
    left = stage.statuses("application")
    delivered, in_doubt = left[LedgerStatus.DELIVERED], left.get(LedgerStatus.IN_DOUBT, 0)
    assert delivered <= len(halo.chats) <= delivered + in_doubt
    assert delivered + in_doubt < APPLICATIONS

    halo.limit = None
    airflow.clear("halo_applications_csv", "killed", "tickets")
    airflow.wait(lambda: airflow.run_states("halo_applications_csv", run_type="manual") == ["success"], stage="again")

    assert stage.statuses("application") == {LedgerStatus.DELIVERED: APPLICATIONS}
    assert APPLICATIONS <= len(halo.chats) <= APPLICATIONS + in_doubt
    (summary,) = airflow.returned("halo_applications_csv", "tickets", run_type="manual")
    counts = {name: summary[name] for name in ("read", "delivered", "already_delivered")}
    assert counts == {
        "read": APPLICATIONS,
        "delivered": APPLICATIONS - delivered,
        "already_delivered": delivered,
    }
    assert len(summary["session_ids"]) == APPLICATIONS
    log = airflow.log("killed", "tickets")
    assert "delivery ended" in log
    assert EXAMPLE_WIDGET_KEY not in log


def test_link_leads_to_the_pages_or_to_the_dashboard(stage: Stage) -> None:
    """The tab, or, where Airflow's UI shows no pages of plugins, the dashboard of the connection."""
    (address,) = stage.airflow.pushed("killed", "tickets", "halo_deliveries")
    if compat.has_tabs():
        assert "/dags/halo_applications_csv/runs/killed/tasks/tickets/plugin/halo-task" in address
    else:
        assert address == "https://dashboard.example.com"


def test_metrics_arrive(stage: Stage) -> None:
    """What both tries delivered has been counted."""
    assert stage.statsd.counted("airflow.halo.delivered") == APPLICATIONS


def test_backfill_twice_sends_once_and_marks_nobody_active(stage: Stage) -> None:
    """The second run over the same days finds all their rows delivered; both update users in bulk."""
    airflow, halo = stage.airflow, stage.halo
    day, chats = first_day(airflow.home.source), len(halo.chats)

    def finished(times: int) -> bool:
        summaries = airflow.returned("halo_applications_daily", "tickets", run_type="backfill")
        done = airflow.run_states("halo_applications_daily", run_type="backfill") == ["success"]
        return done and len(summaries) == 1 and (times == 1 or summaries[0]["already_delivered"] > 0)

    airflow.backfill("halo_applications_daily", first=str(day), last=str(day))
    airflow.wait(lambda: finished(1), stage="backfilling")
    (first,) = airflow.returned("halo_applications_daily", "tickets", run_type="backfill")
    airflow.backfill("halo_applications_daily", first=str(day), last=str(day))
    airflow.wait(lambda: finished(2), stage="backfilling again")
    (second,) = airflow.returned("halo_applications_daily", "tickets", run_type="backfill")

    assert first["delivered"] > 0
    assert second["already_delivered"] == first["delivered"]
    assert len(halo.chats) - chats == first["delivered"]
    (identified,) = airflow.returned("halo_applications_daily", "identify", run_type="backfill")
    assert identified["mode"] == "update"


def test_error_that_no_retry_can_help_is_tried_once(stage: Stage) -> None:
    """A template that renders to what cannot work, with retries=3: the run is over after one try, and says why."""
    stage.airflow.trigger("impossible", "impossible")
    stage.airflow.wait(lambda: stage.airflow.task("impossible", "tickets")[0] == "failed", stage="failing")
    assert stage.airflow.task("impossible", "tickets")[1] == 1
    assert "results_path must end in .csv, .jsonl or .parquet, not .xlsx" in stage.airflow.log("impossible", "tickets")


def test_failed_task_is_told_in_halo(stage: Stage) -> None:
    """By HaloNotifier, from the task's own process."""
    stage.airflow.trigger("alerting", "alerting")
    stage.airflow.wait(lambda: stage.airflow.task("alerting", "load")[0] == "failed", stage="failing")
    stage.airflow.wait(lambda: stage.statuses("airflow_alert"), stage="telling Halo")
    (chat,) = (chat for chat in stage.halo.chats if chat.user_id == "airflow/alerting/load")
    assert chat.message == "load of alerting is broken. Please create a support ticket."


@pytest.mark.skipif(
    HAS_SDK and not compat.has_tabs(), reason="Airflow 3.0 makes its forms with packages that it does not bring"
)
def test_connection_form_has_the_fields_of_halo() -> None:
    """By metadata where Airflow reads it, else by what the hook says."""
    program = FORM if HAS_SDK else FORM_OF_HOOK
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert set(said.splitlines()[-1].split()) == FORM_FIELDS
