"""What Airflow, and what watches Airflow, learns from a delivery: asset events, metrics, spans and lineage."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from halo_provider.operators import telemetry
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from tests.provider.notes import NOTE, csv_text, rows
from tests.provider.runs import Attempt


class Stats:
    """Airflow's metrics, kept in memory."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.timings: dict[str, list[timedelta]] = {}
        self.tags: list[dict[str, Any]] = []

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, Any]) -> None:
        """Count."""
        self.counters[stat] += count
        self.tags.append(tags)

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, Any]) -> None:
        """Time."""
        self.timings.setdefault(stat, []).append(dt)
        self.tags.append(tags)


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> Stats:
    """The metrics of the tasks that the test runs."""
    stats = Stats()
    monkeypatch.setattr(telemetry, "Stats", stats)
    return stats


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of the tasks that the test runs."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry.trace, "get_tracer", provider.get_tracer)
    return exporter


def test_asset_event_carries_the_counts(attempt: Attempt, dag: DAG) -> None:
    """Whoever is scheduled by the asset sees how many rows there were."""
    from airflow.models.asset import AssetEvent  # noqa: PLC0415 -- needs the migrated database
    from airflow.utils.session import create_session  # noqa: PLC0415

    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(2), outlets=[Asset("halo://tickets")])
    run = attempt(dag, "tickets")
    with create_session() as db:
        event = db.query(AssetEvent).filter_by(source_run_id=run.run_id, source_dag_id=run.dag_id).one()
    assert event.extra["halo"]["delivered"] == 2
    assert event.extra["halo"]["read"] == 2


def test_metrics_count_rows_and_requests(attempt: Attempt, dag: DAG, halo: Simulator, stats: Stats) -> None:
    """Every row and every request counts once, however many reports there were; the tags are few."""
    halo.script_for(user_id="user_1", faults=[Fault.rate_limited(retry_after=0.1)])
    halo.script_for(user_id="user_2", faults=[Fault.status(400)])
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(3), max_rejected=1)
    attempt(dag, "tickets")
    attempt(dag, "tickets")
    assert stats.counters == {
        "halo.delivered": 2,
        "halo.already_delivered": 2,
        "halo.rejected": 2,
        "halo.requests": 4,
        "halo.refused": 1,
    }
    assert all(dt > timedelta() for dt in stats.timings["halo.request_time"])
    assert all(tags == {"dag_id": dag.dag_id, "task_id": "tickets"} for tags in stats.tags)


def test_span_covers_the_delivery(attempt: Attempt, dag: DAG, spans: InMemorySpanExporter) -> None:
    """One span for each run, with the counts, and nothing of a row."""
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(2))
    attempt(dag, "tickets")
    (span,) = [span for span in spans.get_finished_spans() if span.name == "halo.delivery"]
    assert span.attributes is not None
    assert span.attributes["halo.delivered"] == 2
    assert span.attributes["halo.namespace"] == "halo_default/note"
    assert span.attributes["airflow.dag_id"] == dag.dag_id
    assert "user_1" not in str(dict(span.attributes))


def test_delivery_needs_no_opentelemetry(attempt: Attempt, dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed there is no span, and nothing else is missing."""
    monkeypatch.setattr(telemetry, "trace", None)
    with dag:
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(1))
    assert attempt(dag, "tickets").state("tickets") == "success"


def test_lineage_names_the_file_and_counts_the_rows(attempt: Attempt, dag: DAG, tmp_path: Path) -> None:
    """OpenLineage gets the file that was read, and the submissions with the number delivered."""
    pytest.importorskip("airflow.providers.openlineage", reason="OpenLineage's provider is not installed")
    file = tmp_path / "notes.csv"
    file.write_text(csv_text(rows(2)), encoding="utf-8")
    told: list[Any] = []

    def listen(context: Any, _result: Any) -> None:
        told.append(context["task"].get_openlineage_facets_on_complete(context["ti"]))

    with dag:
        tickets = HaloTicketOperator(task_id="tickets", submission=NOTE, csv_path=str(file), post_execute=listen)
    assert tickets.get_openlineage_facets_on_start().outputs[0].outputFacets == {}
    attempt(dag, "tickets")
    (lineage,) = told
    assert [(each.namespace, each.name) for each in lineage.inputs] == [("file", str(file))]
    (output,) = lineage.outputs
    assert (output.namespace, output.name) == ("halo://halo_default", "note")
    assert output.outputFacets["outputStatistics"].rowCount == 2


def test_lineage_names_the_tables_of_a_query(dag: DAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenLineage gets every table that the query reads, by the address of its database."""
    pytest.importorskip("airflow.providers.openlineage", reason="OpenLineage's provider is not installed")
    monkeypatch.setenv("AIRFLOW_CONN_CRM", "postgres://reader@crm.example.com:5432/sales")
    sql = "SELECT a.id FROM applications a JOIN companies c ON c.id = a.company_id WHERE a.at >= :start"
    with dag:
        tickets = HaloTicketOperator(task_id="tickets", submission=NOTE, sql=sql, sql_conn_id="crm")
    names = {(each.namespace, each.name) for each in tickets.get_openlineage_facets_on_start().inputs}
    assert names == {
        ("postgres://crm.example.com:5432", "sales.applications"),
        ("postgres://crm.example.com:5432", "sales.companies"),
    }
