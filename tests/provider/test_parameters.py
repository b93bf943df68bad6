"""The operators' parameters: what is refused before anything is sent, and what Airflow renders."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import RunDag
from tests.provider.summaries import counts

TEXT_IS_NO_ROWS = (
    "rows must be a list of dicts or a DataFrame, not a str; where a template makes the rows, set "
    "render_template_as_native_obj=True on the DAG, or give the upstream task's output itself (rows=read())"
)


def refused(**given: Any) -> str:
    """What the author of a DAG reads when it is parsed."""
    with pytest.raises(HaloConfigurationError) as caught:
        HaloTicketOperator(**{"task_id": "tickets", "submission": NOTE, **given})
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "none"),
        ({"rows": [], "csv_path": "notes.csv"}, "csv_path and rows"),
        ({"rows": [], "sql": "SELECT 1"}, "sql and rows"),
        ({"csv_path": "{{ params.path }}", "file_path": "notes.parquet"}, "csv_path and file_path"),
    ],
)
def test_anything_but_one_source_is_refused_when_the_dag_is_parsed(given: dict[str, Any], named: str) -> None:
    """The error names the sources given; a template is one."""
    assert refused(**given) == f"give exactly one of csv_path, file_path, sql and rows, not {named}"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number, at least 1, not 0"),
        ({"concurrency": "64"}, "concurrency must be a whole number, at least 1, not '64'"),
        ({"max_attempts": True}, "max_attempts must be a whole number, at least 1, not True"),
        ({"batch_size": 10_001}, "batch_size must be a whole number, between 1 and 10,000, not 10001"),
        ({"min_rows": -1}, "min_rows must be a whole number, at least 0, not -1"),
        ({"max_submissions": 1.5}, "max_submissions must be a whole number, at least 0, not 1.5"),
        ({"max_submissions": "ten"}, "max_submissions must be a whole number, at least 0, not 'ten'"),
        ({"xcom_limit": None}, "xcom_limit must be a whole number, at least 0, not None"),
        ({"timeout": 0}, "timeout must be a number, and more than 0, not 0"),
        ({"requests_per_second": "many"}, "requests_per_second must be a number, and more than 0, not 'many'"),
        (
            {"max_rejected": -1},
            "max_rejected must be a number of rows (int), or a share of them from 0.0 to 1.0, not -1",
        ),
        (
            {"max_rejected": 1.5},
            "max_rejected must be a number of rows (int), or a share of them from 0.0 to 1.0, not 1.5",
        ),
        ({"on_in_doubt": "forget"}, "not 'forget'"),
        ({"own_session_ids": "yes"}, "own_session_ids must be True or False, not 'yes'; it is no templated field"),
        ({"on_change": "update"}, "on_change must be 'skip', 'fail' or 'follow_up', not 'update'"),
        ({"on_empty": "ignore"}, "on_empty must be 'succeed', 'skip' or 'fail', not 'ignore'"),
        (
            {"dry_run": "{{ params.dry }}"},
            "dry_run must be True or False, not '{{ params.dry }}'; it is no templated field",
        ),
        (
            {"csv_options": {"separator": ";"}},
            "csv_options: separator: there is no such name; there are delimiter, encoding, quotechar",
        ),
        (
            {"csv_options": {"delimeter": ";"}},
            "delimeter: there is no such name (did you mean 'delimiter'?); there are delimiter, encoding, quotechar",
        ),
        (
            {"csv_options": {"encoding": "klingon"}},
            "csv_options: encoding: there is no text encoding 'klingon'",
        ),
        ({"csv_options": "delimiter=;"}, "csv_options must be a dict, not a str"),
        ({"results_path": "results.xlsx"}, "results_path must end in .csv, .jsonl or .parquet, not .xlsx"),
        (
            {"rejects_path": "notes.csv"},
            "rejects_path and csv_path are the same file, 'notes.csv'; give it another name",
        ),
        (
            {"results_path": "./notes.csv"},
            "results_path and csv_path are the same file, './notes.csv'; give it another name",
        ),
        (
            {"rejects_path": "out.csv", "results_path": "out.csv"},
            "rejects_path and results_path are the same file, 'out.csv'",
        ),
        ({"shard": "9/8"}, "shard must be 'i/n', such as '3/8', not '9/8'"),
        ({"csv_path": ""}, "csv_path is empty"),
        ({"csv_path": 7}, "csv_path must be a path, a pattern or a list of them, not a int"),
        ({"submission": None}, "submission must be a halo_provider.submission.Submission; it is missing"),
        ({"submission": {}}, "submission must be a halo_provider.submission.Submission; not a dict"),
        ({"csvpath": "notes.csv"}, "HaloTicketOperator has no parameter 'csvpath' (did you mean 'csv_path'?)"),
    ],
    ids=str,
)
def test_parameter_that_cannot_work_is_named_when_the_dag_is_parsed(wrong: dict[str, Any], words: str) -> None:
    """With its choices, and in no other library's words."""
    assert refused(**{"csv_path": "notes.csv", **wrong}).endswith(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sql": "SELECT 1"}, "sql needs sql_conn_id, the connection of the database to ask"),
        ({"file_path": "notes.csv"}, "file_path: 'notes.csv' is a CSV file by its name; give it as csv_path"),
        (
            {"file_path": "notes.avro"},
            "file_path: the name 'notes.avro' tells no format; it must end in .parquet, .pq, ",
        ),
        (
            {"file_path": "notes", "file_options": {"format": "avro"}},
            "file_options: format: it must be 'parquet', 'jsonl' or 'excel'",
        ),
        (
            {"csv_path": "/data/*.csv", "rejects_path": "/data/rejects.csv"},
            "rejects_path and csv_path are the same file, '/data/rejects.csv'; give it another name",
        ),
        (
            {"rows": "[{'id': 1}]"},
            TEXT_IS_NO_ROWS,
        ),
        ({"rows": {"id": 1}}, "rows must be a list of dicts or a DataFrame, not a dict"),
    ],
    ids=str,
)
def test_source_that_cannot_be_one_is_named_when_the_dag_is_parsed(given: dict[str, Any], words: str) -> None:
    """Before it is looked for."""
    assert refused(**given).startswith(words)


def test_mode_of_identifying_is_checked_when_the_dag_is_parsed() -> None:
    """The choices are named."""
    with pytest.raises(HaloConfigurationError) as caught:
        HaloIdentifyOperator(task_id="identify", submission=NOTE, rows=[], mode="live")
    assert str(caught.value) == "mode must be 'auto', 'identify' or 'update', not 'live'"


@pytest.mark.parametrize(
    "given",
    [
        {"csv_path": "{{ params.path }}"},
        {"csv_path": ["a.csv", "{{ params.path }}"]},
        {"file_path": "{{ params.path }}"},
        {"file_path": "s3://bucket/day=*/*"},
        {"csv_path": "a.csv", "csv_options": {"delimiter": "{{ params.delimiter }}"}},
        {"csv_path": "a.csv", "results_path": "{{ params.path }}", "shard": "{{ params.shard }}"},
        {"rows": "{{ ti.xcom_pull('read') }}"},
        {"csv_path": "/data/*.csv", "rejects_path": "/data/rejects/a.csv"},
    ],
    ids=str,
)
def test_template_is_not_checked_before_it_is_rendered(given: dict[str, Any]) -> None:
    """What may still become right is no mistake."""
    HaloTicketOperator(task_id="tickets", submission=NOTE, **given)


def test_template_that_cannot_work_fails_the_task_at_once(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], notes_csv: Path
) -> None:
    """Once it is rendered: without a retry, before anything is sent."""
    dag.params["ending"] = "xlsx"
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(notes_csv),
        results_path="{{ params.folder }}/results.{{ params.ending }}",
        retries=3,
        retry_delay=timedelta(0),
    )
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]) == "results_path must end in .csv, .jsonl or .parquet, not .xlsx"
    assert halo.requests == []


@pytest.mark.parametrize("parameter", ["csv_path", "rejects_path", "results_path"])
def test_object_storage_that_nothing_serves_is_named_before_anything_is_sent(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], notes_csv: Path, parameter: str
) -> None:
    """A provider package that is missing must not be found out when the rows are delivered; no retry helps."""
    paths = {"csv_path": str(notes_csv), parameter: "gs://bucket/notes.csv"}
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), **paths)
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]).startswith("gs://bucket/notes.csv: ")
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
