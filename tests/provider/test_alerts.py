"""What an alert can tell of a red task: counts, files, the page, and the first reasons in Halo's own words."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from airflow.sdk import DAG, task

from halo_provider.exceptions import (
    DeliveryIncompleteError,
    HaloConfigurationError,
    NoFileError,
    RowsRejectedError,
    TooFewRowsError,
)
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from halo_provider.submission import Submission, User
from tests.provider.notes import NOTE, csv_text, rows
from tests.provider.runs import RunDag
from tests.provider.summaries import chat_ids, counts

CANCELLATION = Submission(
    name="cancellation", key="id", user=User(id="user"), message="Cancelled: {text}", follows=("note", "note")
)


def test_error_carries_what_an_alert_needs(
    dag: DAG, run: RunDag, errors: list[BaseException], faulty_csv: Path, tmp_path: Path
) -> None:
    """A callback finds the summary, both files and the address of the page on the exception itself."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(faulty_csv),
        rejects_path=str(tmp_path / "rejects.csv"),
        results_path=str(tmp_path / "results.csv"),
    )
    result = run(dag)
    (error,) = errors
    assert isinstance(error, RowsRejectedError)
    assert error.summary == result.xcom("tickets")
    assert (error.rejects_path, error.results_path) == (str(tmp_path / "rejects.csv"), str(tmp_path / "results.csv"))
    assert error.page_url.endswith(
        f"/dags/{dag.dag_id}/runs/{quote(result.run_id, safe='')}/tasks/tickets/plugin/halo-task"
    )


def test_file_that_was_not_written_is_not_named(
    dag: DAG, run: RunDag, errors: list[BaseException], tmp_path: Path
) -> None:
    """A source that cannot be read leaves no file."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(tmp_path / "missing.csv"),
        rejects_path=str(tmp_path / "rejects.csv"),
    )
    run(dag)
    assert (errors[0].rejects_path, errors[0].summary["read"]) == (None, 0)


def test_error_gives_halos_own_words_without_the_rows_values(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """Of the first row that was refused; in the next run, too, which does not send it again."""
    halo.script_for(user_id="user_2", faults=[Fault.status(422, body={"error": "plan 'Text 2' has expired"})])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3))
    run(dag)
    run(dag)
    first, second = map(str, errors)
    said = "POST /chat: Halo answered 422: plan '***' has expired"
    assert f"The first: row 2: {said}." in first
    assert f"The first: row 2: rejected by an earlier run, and its content is the same: {said}." in second


def test_error_of_rows_that_failed_gives_halos_own_words(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """And of those in doubt: one reason for each kind."""
    halo.script_for(
        user_id="user_1", faults=[Fault.status(503, body={"error": "closed"}, headers={"Retry-After": "0"})]
    )
    halo.script_for(user_id="user_2", faults=[Fault.status(500, body={"error": "broken"})])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3), max_attempts=1)
    run(dag)
    assert isinstance(errors[0], DeliveryIncompleteError)
    assert str(errors[0]) == (
        "1 rows failed, 1 are in doubt, 0 were not attempted: row 1: POST /chat: Halo answered 503: closed; "
        "row 2: POST /chat: Halo answered 500: broken. Run the task again: delivered rows are never sent again."
    )


def test_error_says_what_a_row_waits_for(dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]) -> None:
    """The key of the row that it follows, how that one stands, and why."""
    halo.script_for(user_id="user_1", faults=[Fault.status(500, body={"error": "broken"})])
    notes = HaloTicketOperator(
        task_id="notes", dag=dag, submission=NOTE, rows=rows(1), max_attempts=1, on_in_doubt="hold"
    )
    following = [{"id": "c1", "user": "user_1", "text": "Bye", "note": "1"}]
    cancellations = HaloTicketOperator(
        task_id="cancellations", dag=dag, submission=CANCELLATION, rows=following, trigger_rule="all_done"
    )
    notes >> cancellations
    run(dag)
    assert (
        "0 rows failed, 0 are in doubt, 1 were not attempted: row 1: it waits for note '1', which is not delivered yet "
        "(in_doubt: POST /chat: Halo answered 500: broken)" in str(errors[-1])
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"min_rows": 3}, "it has 2 rows, fewer than min_rows=3; nothing was sent. Check what makes the source."),
        (
            {"csv_path": "{folder}/day=*.csv", "min_rows": 1},
            "no file matches '{folder}/day=*.csv'; correct it, or set on_empty='skip' where there may be none",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("operator", [HaloTicketOperator, HaloIdentifyOperator])
def test_too_few_rows_are_red_before_anything_is_sent(
    *,
    dag: DAG,
    run: RunDag,
    halo: Simulator,
    errors: list[BaseException],
    tmp_path: Path,
    given: dict,
    words: str,
    operator: type,
) -> None:
    """With how many there are, and how many there have to be."""
    path = tmp_path / "notes.csv"
    path.write_text(csv_text(rows(2)), encoding="utf-8")
    given = {"csv_path": "{folder}/notes.csv", **given}
    operator(
        task_id="tickets", dag=dag, submission=NOTE, **{**given, "csv_path": given["csv_path"].format(folder=tmp_path)}
    )
    result = run(dag)
    assert (result.state("tickets"), result.xcom("tickets")["read"]) == ("failed", 0)
    assert isinstance(errors[0], TooFewRowsError | NoFileError)
    assert str(errors[0]).endswith(words.format(folder=tmp_path))
    assert halo.requests == []


@pytest.mark.parametrize(("on_empty", "state"), [("succeed", "success"), ("skip", "skipped"), ("fail", "failed")])
@pytest.mark.parametrize("content", ["", "id,user,name,company,text\n"])
def test_source_without_rows_ends_as_the_author_wishes(
    *, dag: DAG, run: RunDag, errors: list[BaseException], tmp_path: Path, content: str, on_empty: str, state: str
) -> None:
    """Green, skipped or red, with a summary in every case."""
    path = tmp_path / "notes.csv"
    path.write_text(content, encoding="utf-8")
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(path), on_empty=on_empty)
    result = run(dag)
    assert (result.state("tickets"), result.xcom("tickets")["read"]) == (state, 0)
    assert [str(error) for error in errors] == [
        f"{path}: it has no rows, and on_empty='fail'; nothing was sent. Check what makes the source."
    ] * (on_empty == "fail")


def test_pattern_without_files_is_skipped_where_that_is_wanted(dag: DAG, run: RunDag, tmp_path: Path) -> None:
    """As a source without rows."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(tmp_path / "*.csv"), on_empty="skip")
    assert run(dag).state("tickets") == "skipped"


def test_empty_share_of_a_source_is_no_empty_source(dag: DAG, run: RunDag) -> None:
    """Of one row, most shares have none."""
    for shard in ("1/2", "2/2"):
        HaloTicketOperator(
            task_id=f"share_{shard[0]}",
            dag=dag,
            submission=NOTE,
            rows=rows(1),
            shard=shard,
            on_empty="fail",
            min_rows=1,
        )
    result = run(dag)
    assert [result.state("share_1"), result.state("share_2")] == ["success", "success"]


@pytest.mark.parametrize(
    ("parameter", "wanted"),
    [("rows", "a list of dicts, an empty one where there is nothing"), ("csv_path", "what it is to be")],
)
def test_upstream_task_that_returned_nothing_is_named(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], parameter: str, wanted: str
) -> None:
    """Its None is no list of no rows; another try cannot help."""

    @task(dag=dag, task_id="read_notes")
    def read() -> None:
        return None

    source = {parameter: read()}
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, retries=2, retry_delay=timedelta(0), **source)
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]) == f"{parameter}: the task 'read_notes' returned nothing (None); return {wanted}"


@pytest.mark.parametrize("native", [False, True])
def test_rows_of_a_template_need_native_objects(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], native: bool
) -> None:
    """Without them they arrive as text, and the error says what to set."""
    dag.render_template_as_native_obj = native

    @task(dag=dag, task_id="read")
    def read() -> list[dict[str, str]]:
        return rows(2)

    tickets = HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, rows="{{ ti.xcom_pull(task_ids='read') }}"
    )
    read() >> tickets
    result = run(dag)
    if native:
        assert counts(result.xcom("tickets")) == {"delivered": 2}
        assert chat_ids(halo) == ["1", "2"]
    else:
        assert isinstance(errors[0], HaloConfigurationError)
        assert "not a str; where a template makes the rows, set render_template_as_native_obj=True" in str(errors[0])
