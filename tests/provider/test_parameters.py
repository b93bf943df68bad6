"""The operators' parameters: what is refused before anything is sent, and what Airflow renders."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import RunDag
from tests.provider.summaries import counts


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "none"),
        ({"rows": [], "csv_path": "notes.csv"}, "csv_path and rows"),
        ({"rows": [], "sql": "SELECT 1"}, "sql and rows"),
    ],
)
def test_anything_but_one_source_fails_at_once(
    dag: DAG, run: RunDag, errors: list[BaseException], given: dict[str, Any], named: str
) -> None:
    """The error names the sources given; another try cannot help."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), **given)
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]) == f"give exactly one of csv_path, sql and rows, not {named}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"max_attempts": 0},
        {"batch_size": 0},
        {"batch_size": 10_001},
        {"timeout": 0},
        {"requests_per_second": 0},
        {"max_rejected": -1},
        {"max_rejected": 1.5},
        {"on_in_doubt": "forget"},
        {"csv_options": {"encoding": "klingon"}},
        {"csv_options": {"separator": ";"}},
        {"results_path": "results.xlsx"},
    ],
    ids=str,
)
def test_parameter_that_cannot_work_is_named_at_once(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], notes_csv: Path, wrong: dict[str, Any]
) -> None:
    """The task fails without a retry, before anything is sent."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(notes_csv),
        retries=3,
        retry_delay=timedelta(0),
        **wrong,
    )
    assert run(dag).task("tickets").try_number == 1
    assert next(iter(wrong)) in str(errors[0])
    assert halo.requests == []


@pytest.mark.parametrize("parameter", ["csv_path", "rejects_path", "results_path"])
def test_object_storage_that_nothing_serves_is_named_before_anything_is_sent(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], notes_csv: Path, parameter: str
) -> None:
    """A provider package that is missing must not be found out when the rows are delivered; no retry helps."""
    paths = {"csv_path": str(notes_csv), parameter: "s3://bucket/notes.csv"}
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), **paths)
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]).startswith("s3://bucket/notes.csv: ")
    assert halo.requests == []


def test_templates_are_rendered_from_params(dag: DAG, run: RunDag, notes_csv: Path) -> None:
    """Paths and options may come from the run's params."""
    notes_csv.write_text(notes_csv.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
    dag.params["delimiter"] = ";"
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path="{{ params.folder }}/notes.csv",
        csv_options={"delimiter": "{{ params.delimiter }}"},
        rejects_path="{{ params.folder }}/{{ ti.task_id }}-rejects.csv",
        results_path="{{ params.folder }}/{{ ti.task_id }}.jsonl",
    )
    summary = run(dag).xcom("tickets")
    assert counts(summary) == {"delivered": 3}
    assert summary["results_path"] == str(notes_csv.parent / "tickets.jsonl")
    assert {path.name for path in notes_csv.parent.iterdir()} == {"notes.csv", "tickets-rejects.csv", "tickets.jsonl"}


def test_template_syntax_in_a_row_is_not_rendered(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Rows are values: what looks like a template in them reaches Halo as it stands."""
    looks_like_a_template = "{id} {{ ds }} {% raw %} $HOME"

    @task(dag=dag)
    def read() -> list[dict[str, str]]:
        return [{**rows(1)[0], "text": looks_like_a_template}]

    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=read())
    assert run(dag).state("tickets") == "success"
    assert [chat.message for chat in halo.chats] == [looks_like_a_template]
