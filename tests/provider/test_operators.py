"""The operators in a real Airflow: what a task sends, returns, writes and leaves behind, on green and on red."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from airflow.sdk import DAG, ObjectStoragePath, task
from sqlalchemy import create_engine, make_url, text

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from halo_provider.submission import Submission
from tests.conftest import IDENTITY_SECRET
from tests.provider.conftest import (
    NOTE,
    Attempt,
    Connect,
    Run,
    RunDag,
    Statuses,
    Supervise,
    csv_text,
    meanwhile,
    rows,
    wait_until,
)

KILL_LIMIT = 4.0  # seconds, of the five that Airflow leaves before SIGKILL
COUNTS = ("delivered", "already_delivered", "duplicate", "rejected", "in_doubt", "failed", "not_attempted")


def counts(summary: dict[str, Any]) -> dict[str, int]:
    """The summary's counts that are not zero, once they are known to balance."""
    assert summary["read"] == sum(summary[name] for name in COUNTS)
    return {name: summary[name] for name in COUNTS if summary[name]}


def chat_ids(halo: Simulator) -> list[str]:
    """The ids in the messages that Halo accepted, sorted."""
    return sorted(chat.message.removeprefix("Text ") for chat in halo.chats)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A CSV file with three rows for NOTE."""
    path = tmp_path / "notes.csv"
    path.write_text(csv_text(rows(3)), encoding="utf-8")
    return path


@pytest.fixture
def faulty_file(file: Path) -> Path:
    """A CSV file with four rows, of which the second (line 3) lacks the user."""
    faulty = rows(4)
    faulty[1]["user"] = ""
    file.write_text(csv_text(faulty), encoding="utf-8")
    return file


def test_green_task_returns_the_whole_summary(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """XCom holds every field that is promised, and nothing else."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2))
    result = run(dag)
    summary = result.xcom("tickets")
    sessions = {str(chat.user_id).removeprefix("user_"): chat.session_id for chat in halo.chats}
    seconds, pace = summary.pop("seconds"), summary.pop("rows_per_second")
    assert result.state("tickets") == "success"
    assert summary == {
        "read": 2,
        **dict.fromkeys(COUNTS, 0),
        "delivered": 2,
        "changed": 0,
        "session_ids": sessions,
        "session_ids_truncated": False,
        "results_path": None,
        "ledger": "default",
    }
    assert pace == pytest.approx(2 / seconds, rel=0.05)


def test_second_run_sends_nothing_and_returns_the_same_sessions(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A delivered row is never sent again, and its session is still told."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3))
    first = run(dag).xcom("tickets")
    second = run(dag).xcom("tickets")
    assert counts(second) == {"already_delivered": 3}
    assert second["session_ids"] == first["session_ids"]
    assert len(halo.chats) == 3


def test_another_dag_over_the_same_rows_sends_nothing(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """The ledger knows rows by connection and submission, whatever DAG or task brings them."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2))
    run(dag)
    other = DAG(f"{dag.dag_id}_other", schedule=None)
    HaloTicketOperator(task_id="others", dag=other, submission=NOTE, rows=rows(3))
    assert counts(run(other).xcom("others")) == {"already_delivered": 2, "delivered": 1}
    assert chat_ids(halo) == ["1", "2", "3"]


def test_rejected_row_ends_red_with_the_summary(
    dag: DAG, run: RunDag, faulty_file: Path, errors: list[BaseException]
) -> None:
    """By default no row may be rejected; the error names the first one and what to do."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_file))
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 3, "rejected": 1}
    assert "row 3: column 'user': the user's id is empty" in str(errors[0])


def test_row_that_halo_rejects_ends_red_with_the_summary(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """A 422 is Halo's word on one row, which may quote it and so is no word for a log; the others go their way."""
    halo.script_for(user_id="user_2", faults=[Fault.status(422, body={"error": "the plan is unknown"})])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3))
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 2, "rejected": 1}
    assert "Halo answered 422" in str(errors[0])
    assert "the plan is unknown" not in str(errors[0])


def test_failed_row_ends_red_with_the_summary(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A row that Halo certainly did not take within max_attempts has failed, this time."""
    unavailable = Fault.status(503, headers={"Retry-After": "0"})
    halo.script_for(user_id="user_1", faults=[unavailable, unavailable])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2), max_attempts=2)
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 1, "failed": 1}


def test_row_in_doubt_ends_red_with_the_summary(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """A connection lost after sending leaves the row in doubt; the error says what to do next."""
    halo.script_for(user_id="user_1", faults=[Fault.drop_after_acceptance()])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2), max_attempts=1)
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 1, "in_doubt": 1}
    assert "1 are in doubt" in str(errors[0])
    assert "Run the task again" in str(errors[0])


def test_wrong_widget_key_ends_red_at_once_with_the_summary(
    dag: DAG, run: RunDag, connect: Connect, halo: Simulator, statuses: Statuses
) -> None:
    """A 401 stops everything: no row is used up, and no retry can help."""
    connect(password="ab_live_example_wrong_key")
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, rows=rows(3), retries=3, retry_delay=timedelta(0), concurrency=1
    )
    result = run(dag)
    assert (result.state("tickets"), result.task("tickets").try_number) == ("failed", 1)
    assert counts(result.xcom("tickets")) == {"not_attempted": 3}
    assert set(statuses().values()) == {"pending"}
    assert len(halo.requests) == 1


def test_retried_task_returns_the_summary_of_its_last_try(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """The second try sends what the first one left over, and nothing else."""
    halo.script_for(user_id="user_1", faults=[Fault.drop_before_acceptance()])
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(3),
        max_attempts=1,
        retries=1,
        retry_delay=timedelta(0),
    )
    result = run(dag)
    summary = result.xcom("tickets")
    assert (result.state("tickets"), result.task("tickets").try_number) == ("success", 2)
    assert counts(summary) == {"delivered": 1, "already_delivered": 2}
    assert sorted(summary["session_ids"]) == ["1", "2", "3"]
    assert chat_ids(halo) == ["1", "2", "3"]


def test_row_in_doubt_is_held_back_where_it_may_be_sent_only_once(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses
) -> None:
    """With on_in_doubt="hold" the task stays red, and the row waits for a decision."""
    halo.script(path="/chat", faults=[Fault.drop_after_acceptance()])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(1), on_in_doubt="hold")
    run(dag)
    again = run(dag)
    assert again.state("tickets") == "failed"
    assert counts(again.xcom("tickets")) == {"in_doubt": 1}
    assert set(statuses().values()) == {"in_doubt"}
    assert len(halo.chats) == 1


@pytest.mark.parametrize(("limit", "named"), [(2, 2), (3, 3), (0, 0)])
def test_xcom_names_the_sessions_of_no_more_rows_than_its_limit(dag: DAG, run: RunDag, limit: int, named: int) -> None:
    """session_ids stops at xcom_limit, and session_ids_truncated says whether that left anything out."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3), xcom_limit=limit)
    summary = run(dag).xcom("tickets")
    assert (len(summary["session_ids"]), summary["session_ids_truncated"]) == (named, named < 3)


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
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], file: Path, wrong: dict[str, Any]
) -> None:
    """The task fails without a retry, before anything is sent."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(file),
        retries=3,
        retry_delay=timedelta(0),
        **wrong,
    )
    assert run(dag).task("tickets").try_number == 1
    assert next(iter(wrong)) in str(errors[0])
    assert halo.requests == []


def test_templates_are_rendered_from_params(dag: DAG, run: RunDag, file: Path) -> None:
    """Paths and options may come from the run's params."""
    file.write_text(file.read_text(encoding="utf-8").replace(",", ";"), encoding="utf-8")
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
    assert summary["results_path"] == str(file.parent / "tickets.jsonl")
    assert {path.name for path in file.parent.iterdir()} == {"notes.csv", "tickets-rejects.csv", "tickets.jsonl"}


def test_file_name_with_braces_in_a_value_is_not_rendered_again(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Rows are values: what looks like a template in them reaches Halo as it stands."""
    looks_like_a_template = "{id} {{ ds }} {% raw %} $HOME"

    @task(dag=dag)
    def read() -> list[dict[str, str]]:
        return [{**rows(1)[0], "text": looks_like_a_template}]

    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=read())
    assert run(dag).state("tickets") == "success"
    assert [chat.message for chat in halo.chats] == [looks_like_a_template]


def test_rows_come_from_an_upstream_task(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A list of dicts travels through XCom."""

    @task(dag=dag)
    def read() -> list[dict[str, str]]:
        return rows(2)

    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=read())
    assert counts(run(dag).xcom("tickets")) == {"delivered": 2}
    assert chat_ids(halo) == ["1", "2"]


def test_rows_may_be_a_frame_from_an_upstream_task(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A DataFrame travels through XCom (as Parquet), and its missing values are empty."""
    pytest.importorskip("pyarrow")

    @task(dag=dag)
    def read() -> pd.DataFrame:
        return pd.DataFrame([*rows(1), {**rows(2)[1], "user": None}])

    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=read(), max_rejected=1)
    assert counts(run(dag).xcom("tickets")) == {"delivered": 1, "rejected": 1}
    assert chat_ids(halo) == ["1"]


def test_rows_may_be_a_frame_of_the_dag_file(dag: DAG, run: RunDag) -> None:
    """A DataFrame may stand in the DAG itself."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=pd.DataFrame(rows(2)))
    assert counts(run(dag).xcom("tickets")) == {"delivered": 2}


def test_no_rows_are_a_green_run(dag: DAG, run: RunDag) -> None:
    """Nothing to do is no failure."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=[])
    result = run(dag)
    assert (result.state("tickets"), result.xcom("tickets")["read"]) == ("success", 0)


def test_source_that_cannot_be_read_sends_nothing(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], tmp_path: Path
) -> None:
    """A missing file is named, and the summary counts nothing."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(tmp_path / "missing.csv"))
    result = run(dag)
    assert (result.state("tickets"), result.xcom("tickets")["read"]) == ("failed", 0)
    assert "missing.csv" in str(errors[0])
    assert halo.requests == []


@pytest.fixture
def mapped(dag: DAG, run: RunDag, file: Path, tmp_path: Path) -> Run:
    """A mapped operator over two files: one in order, one with a row that is rejected."""
    other = tmp_path / "others.csv"
    other.write_text(csv_text([{**rows(4)[3], "user": ""}, rows(5)[4]]), encoding="utf-8")
    HaloTicketOperator.partial(
        task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), concurrency=2
    ).expand(csv_path=[str(file), str(other)])
    return run(dag)


def test_mapped_tasks_account_for_their_own_rows(mapped: Run, halo: Simulator) -> None:
    """Each mapped task has its file, its summary and its state."""
    assert counts(mapped.xcom("tickets", map_index=0)) == {"delivered": 3}
    assert counts(mapped.xcom("tickets", map_index=1)) == {"delivered": 1, "rejected": 1}
    assert [mapped.state("tickets", map_index=index) for index in (0, 1)] == ["success", "failed"]
    assert chat_ids(halo) == ["1", "2", "3", "5"]


def test_mapped_tasks_have_the_retry_policy(mapped: Run) -> None:
    """A rejected row stays rejected: a mapped task, too, does not try it again."""
    assert mapped.task("tickets", map_index=1).try_number == 1


@pytest.mark.parametrize(
    ("max_rejected", "state"),
    [(0, "failed"), (1, "success"), (0.24, "failed"), (0.25, "success"), (1.0, "success"), (0.0, "failed")],
)
def test_max_rejected_is_a_number_or_a_share(
    dag: DAG, run: RunDag, faulty_file: Path, max_rejected: float, state: str
) -> None:
    """An int counts rows, a float is a share of the rows read; the limit itself is still green."""
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_file), max_rejected=max_rejected
    )
    assert run(dag).state("tickets") == state


def test_rejects_file_holds_the_rejected_rows_and_why(dag: DAG, run: RunDag, faulty_file: Path) -> None:
    """The original columns, the line, the column to blame and the reason."""
    rejects = faulty_file.parent / "made" / "on" / "demand" / "rejects.csv"
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_file), rejects_path=str(rejects)
    )
    run(dag)
    with rejects.open(encoding="utf-8", newline="") as lines:
        (reject,) = csv.DictReader(lines)
    assert reject == {
        **rows(2)[1],
        "user": "",
        "_row": "3",
        "_field": "user",
        "_reason": "the user's id is empty; fill it, or leave user out of the submission",
    }


def test_rejects_file_may_be_in_object_storage(dag: DAG, run: RunDag, faulty_file: Path) -> None:
    """Any ObjectStoragePath URL will do."""
    url = f"file://{faulty_file.parent}/stored.csv"
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_file), rejects_path=url)
    run(dag)
    with ObjectStoragePath(url).open("r", newline="") as lines:
        assert [reject["_row"] for reject in csv.DictReader(lines)] == ["3"]


@pytest.mark.parametrize("parameter", ["csv_path", "rejects_path", "results_path"])
def test_object_storage_that_nothing_serves_is_named_before_anything_is_sent(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], file: Path, parameter: str
) -> None:
    """A provider package that is missing must not be found out when the rows are delivered; no retry helps."""
    paths = {"csv_path": str(file), parameter: "s3://bucket/notes.csv"}
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), **paths)
    assert run(dag).task("tickets").try_number == 1
    assert str(errors[0]).startswith("s3://bucket/notes.csv: ")
    assert halo.requests == []


def test_source_may_be_in_object_storage(dag: DAG, run: RunDag, file: Path) -> None:
    """csv_path, too, may be any ObjectStoragePath URL."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=f"file://{file}")
    assert counts(run(dag).xcom("tickets")) == {"delivered": 3}


def test_run_that_cannot_begin_leaves_the_last_rejects_file_alone(
    dag: DAG, run: RunDag, connect: Connect, faulty_file: Path, tmp_path: Path
) -> None:
    """The file is replaced as a whole by a run that read rows, or not touched."""
    rejects = tmp_path / "rejects.csv"
    rejects.write_text("from an earlier run", encoding="utf-8")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(tmp_path / "missing.csv"),
        rejects_path=str(rejects),
    )
    run(dag)
    assert rejects.read_text(encoding="utf-8") == "from an earlier run"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.csv", "rejects.csv"}


def test_rejects_file_that_cannot_be_stored_still_leaves_the_summary(
    dag: DAG, run: RunDag, faulty_file: Path, tmp_path: Path
) -> None:
    """Rows are delivered by then: the task is red for the file's sake, and XCom tells what happened."""
    (tmp_path / "blocked").write_text("a file, and no folder", encoding="utf-8")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(faulty_file),
        max_rejected=1,
        rejects_path=f"file://{tmp_path}/blocked/rejects.csv",
    )
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 3, "rejected": 1}


def test_repaired_rejects_send_the_repaired_rows_only(
    dag: DAG, run: RunDag, halo: Simulator, faulty_file: Path, tmp_path: Path
) -> None:
    """The rejects file, put right, is a source as it stands."""
    rejects = tmp_path / "rejects.csv"
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, csv_path="{{ params.csv_path }}", rejects_path=str(rejects)
    )
    dag.params["csv_path"] = str(faulty_file)
    run(dag)
    repaired = tmp_path / "repaired.csv"
    repaired.write_text(rejects.read_text(encoding="utf-8").replace("2,,", "2,user_2,"), encoding="utf-8")
    dag.params["csv_path"] = str(repaired)
    result = run(dag)
    assert result.state("tickets") == "success"
    assert counts(result.xcom("tickets")) == {"delivered": 1}
    assert chat_ids(halo) == ["1", "2", "3", "4"]


def test_original_file_is_settled_once_its_rejects_are_repaired(
    dag: DAG, run: RunDag, halo: Simulator, faulty_file: Path
) -> None:
    """The key decides, not the file: the row with the fault is known as delivered."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_file))
    run(dag)
    repairing = DAG(f"{dag.dag_id}_repairing", schedule=None)
    HaloTicketOperator(task_id="tickets", dag=repairing, submission=NOTE, rows=[rows(2)[1]])
    run(repairing)
    result = run(dag)
    assert result.state("tickets") == "success"
    assert counts(result.xcom("tickets")) == {"already_delivered": 4}


def test_identify_task_returns_the_whole_summary(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """XCom holds every field that is promised, and nothing else; a repeated user counts once, by its last row."""
    again = {**rows(1)[0], "name": "Renamed"}
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=[*rows(2), again])
    result = run(dag)
    assert result.xcom("identify") == {
        "read": 3,
        "users": 2,
        "companies": 2,
        "skipped": 0,
        "rejected": 0,
        "mode": "identify",
    }
    assert halo.users["user_1"].traits == {"name": "Renamed"}


def test_users_are_identified_before_companies(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A company is linked to a user that Halo knows already."""
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=rows(3))
    run(dag)
    assert [request.path for request in halo.requests] == ["/users/identify"] * 3 + ["/companies/identify"] * 3


@pytest.mark.parametrize(
    ("mode", "run_type", "path"),
    [
        ("auto", "manual", "/users/identify"),
        ("auto", "scheduled", "/users/identify"),
        ("auto", "backfill", "/users/update"),
        ("identify", "backfill", "/users/identify"),
        ("update", "manual", "/users/update"),
    ],
)
def test_history_is_updated_and_the_present_identified(
    *, dag: DAG, attempt: Attempt, connect: Connect, halo: Simulator, mode: Any, run_type: str, path: str
) -> None:
    """A backfill run must not mark everyone as active today, unless that is asked for."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=rows(2), mode=mode)
    result = attempt(dag, "identify", run_type=run_type)
    assert {request.path for request in halo.requests} == {path, "/companies/identify"}
    assert result.xcom("identify")["mode"] == path.removeprefix("/users/")
    assert [user.last_seen is None for user in halo.users.values()] == [path == "/users/update"] * 2


def test_backfill_without_identity_secret_fails_at_once_and_says_why(
    dag: DAG, attempt: Attempt, halo: Simulator, errors: list[BaseException]
) -> None:
    """Nothing is identified by accident: the error names the two ways out."""
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=rows(1), retries=3)
    assert attempt(dag, "identify", run_type="backfill").state("identify") == "failed"
    assert "identity_secret" in str(errors[0])
    assert "mode='identify'" in str(errors[0])
    assert halo.requests == []


def test_identify_with_an_unknown_mode_fails_at_once(
    dag: DAG, attempt: Attempt, halo: Simulator, errors: list[BaseException]
) -> None:
    """The error names the modes there are."""
    mode: Any = "upsert"
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=rows(1), mode=mode, retries=3)
    assert attempt(dag, "identify").state("identify") == "failed"
    assert str(errors[0]) == "mode must be auto, identify or update, not 'upsert'"
    assert halo.requests == []


def test_identify_task_with_a_wrong_key_ends_red_at_once_with_the_summary(
    dag: DAG, run: RunDag, connect: Connect
) -> None:
    """A 401 leaves true counts in XCom here, too."""
    connect(password="ab_live_example_wrong_key")
    HaloIdentifyOperator(
        task_id="identify", dag=dag, submission=NOTE, rows=rows(2), retries=3, retry_delay=timedelta(0)
    )
    result = run(dag)
    assert (result.state("identify"), result.task("identify").try_number) == ("failed", 1)
    assert (result.xcom("identify")["read"], result.xcom("identify")["users"]) == (2, 0)


def test_identify_task_rejects_rows_by_the_same_policy(dag: DAG, run: RunDag, faulty_file: Path) -> None:
    """max_rejected and rejects_path work as they do for tickets."""
    rejects = faulty_file.parent / "rejects.csv"
    HaloIdentifyOperator(
        task_id="identify", dag=dag, submission=NOTE, csv_path=str(faulty_file), rejects_path=str(rejects)
    )
    result = run(dag)
    assert result.state("identify") == "failed"
    assert (result.xcom("identify")["users"], result.xcom("identify")["rejected"]) == (3, 1)
    assert len(rejects.read_text(encoding="utf-8").splitlines()) == 2


def test_connection_and_submission_are_the_namespace(
    dag: DAG, run: RunDag, connect: Connect, statuses: Statuses
) -> None:
    """The connection id counts as it is rendered."""
    connect("halo_emea")
    dag.params["region"] = "emea"
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, rows=rows(1), halo_conn_id="halo_{{ params.region }}"
    )
    run(dag)
    assert statuses() == {("halo_emea/note", "1"): "delivered"}


def test_submissions_of_different_names_do_not_collide(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses
) -> None:
    """The same key under two names is two rows."""
    reminder = Submission(name="reminder", key="id", message="Reminder {id}")
    HaloTicketOperator(task_id="notes", dag=dag, submission=NOTE, rows=rows(1))
    HaloTicketOperator(task_id="reminders", dag=dag, submission=reminder, rows=rows(1))
    run(dag)
    assert sorted(statuses()) == [("halo_default/note", "1"), ("halo_default/reminder", "1")]
    assert sorted(chat.message for chat in halo.chats) == ["Reminder 1", "Text 1"]


@pytest.fixture
def on_postgres(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submission]:
    """The connection `ledger_db` to PostgreSQL, and a submission of a name that nobody has used there."""
    url = make_url(postgres_url)
    connection = {
        "conn_type": "postgres",
        "host": url.host,
        "port": url.port,
        "login": url.username,
        "password": url.password,
        "schema": url.database,
    }
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER_DB", json.dumps(connection))
    submission = Submission(name=f"note-{uuid.uuid4().hex}", key="id", message="{text}")
    yield submission
    with create_engine(postgres_url).begin() as db:
        db.execute(
            text("DELETE FROM halo_submissions WHERE namespace = :it"), {"it": f"halo_default/{submission.name}"}
        )


@pytest.mark.parametrize("configured", [False, True])
def test_ledger_may_be_the_database_of_a_connection(
    *,
    dag: DAG,
    run: RunDag,
    on_postgres: Submission,
    airflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: bool,
) -> None:
    """ledger_conn_id, or [halo] ledger_conn_id, moves the ledger to PostgreSQL; nothing stays in the file."""
    if configured:
        monkeypatch.setenv("AIRFLOW__HALO__LEDGER_CONN_ID", "ledger_db")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=on_postgres,
        rows=rows(2),
        ledger_conn_id=None if configured else "{{ 'ledger_db' }}",
    )
    assert run(dag).xcom("tickets")["ledger"] == "ledger_db"
    assert counts(run(dag).xcom("tickets")) == {"already_delivered": 2}
    assert not (airflow_home / "halo_ledger.db").exists()


def test_ledger_on_a_connection_that_is_no_database_fails_at_once(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """Nothing is sent that could not be written down."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(1),
        ledger_conn_id="halo_default",
        retries=3,
        retry_delay=timedelta(0),
    )
    assert run(dag).task("tickets").try_number == 1
    assert "'halo_default'" in str(errors[0])
    assert halo.requests == []


def test_run_is_wound_up_before_its_execution_timeout(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses, errors: list[BaseException]
) -> None:
    """What is in flight is in doubt, the rest is given back, and the summary is in XCom when the time is up."""
    halo.always("/chat", Fault.silence())
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(4),
        concurrency=2,
        execution_timeout=timedelta(seconds=3),
    )
    result = run(dag)
    assert counts(result.xcom("tickets")) == {"in_doubt": 2, "not_attempted": 2}
    assert sorted(statuses().values()) == ["in_doubt", "in_doubt", "pending", "pending"]
    assert "execution_timeout of 3 s is nearly over" in str(errors[0])


def test_kill_from_another_thread_stops_the_run_in_time(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses
) -> None:
    """on_kill leaves no row in flight, and a true summary."""
    halo.always("/chat", Fault.silence())
    executing: list[HaloTicketOperator] = []
    killed_at: list[float] = []
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(10),
        concurrency=3,
        pre_execute=lambda context: executing.append(context["task"]),
    )

    def kill() -> None:
        wait_until(lambda: halo.chats_in_flight == 3)
        killed_at.append(time.monotonic())
        executing[0].on_kill()

    with meanwhile(kill):
        result = run(dag)
    assert time.monotonic() - killed_at[0] < KILL_LIMIT
    assert counts(result.xcom("tickets")) == {"in_doubt": 3, "not_attempted": 7}
    assert sorted(statuses().values()) == ["in_doubt"] * 3 + ["pending"] * 7


def test_kill_lets_an_answer_that_comes_soon_count(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """What is in flight is given a short while."""
    halo.always("/chat", Fault.slow(0.5))
    executing: list[HaloTicketOperator] = []
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(5),
        concurrency=2,
        pre_execute=lambda context: executing.append(context["task"]),
    )

    def kill() -> None:
        wait_until(lambda: halo.chats_in_flight == 2)
        executing[0].on_kill()

    with meanwhile(kill):
        result = run(dag)
    assert counts(result.xcom("tickets")) == {"delivered": 2, "not_attempted": 3}


def test_kill_before_the_first_row_sends_nothing(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A signal that comes while the task is still being set up is not forgotten."""
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(2),
        pre_execute=lambda context: context["task"].on_kill(),
    )
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert halo.requests == []


def test_kill_stops_identifying_in_time(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A user that Halo keeps silent about does not keep the task alive."""
    halo.always("/users/identify", Fault.silence())
    executing: list[HaloIdentifyOperator] = []
    killed_at: list[float] = []
    HaloIdentifyOperator(
        task_id="identify",
        dag=dag,
        submission=NOTE,
        rows=rows(3),
        timeout=20.0,
        pre_execute=lambda context: executing.append(context["task"]),
    )

    def kill() -> None:
        wait_until(lambda: halo.requests)
        killed_at.append(time.monotonic())
        executing[0].on_kill()

    with meanwhile(kill):
        result = run(dag)
    assert time.monotonic() - killed_at[0] < KILL_LIMIT
    assert result.state("identify") == "failed"
    assert result.xcom("identify")["users"] == 0


PRIVATE_DAG = """
from datetime import UTC, datetime
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.submission import Entry, Submission, User

PRIVATE = Submission(
    name="private",
    key="id",
    user=User(id="user", traits={{"name": "name", "email": "email"}}),
    message="{{text}}",
    context={{"case": Entry(label="Case", fields=["text", "note"])}},
)
with DAG({dag_id!r}, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    source = {{"csv_path": {csv_path!r}, "submission": PRIVATE, "max_attempts": 1, "concurrency": 2}}
    HaloIdentifyOperator(task_id="identify", **source) >> HaloTicketOperator(
        task_id="tickets", trigger_rule="all_done", **source
    )
"""
PRIVATE_WORDS = ("Confidential complaint", "Secretive Sam", "sam.secretive@example.com", "Hidden remark")


@pytest.fixture
def private_dag(connect: Connect, halo: Simulator, tmp_path: Path) -> str:
    """A DAG file over rows with private words, of which one is too long, one unreadable, and one ends in doubt."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    halo.script_for(user_id="u1", faults=[Fault.drop_after_acceptance()])
    message, name, email, note = PRIVATE_WORDS
    path = tmp_path / "private.csv"
    lines = [
        "id,user,name,email,text,note",
        f"1,u1,{name},{email},{message},{note}",
        f"2,u2,{name},{email},{message * 500},{note}",
        f"3,u3,{name},{email},{message},{note},{note}",
        f"4,u4,{name},{email},{message},{note}",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return PRIVATE_DAG.format(dag_id=f"private_{uuid.uuid4().hex}", csv_path=str(path))


def private_words(log: str) -> list[str]:
    """What of keys, secrets, tokens and rows stands in a log."""
    return [word for word in (*PRIVATE_WORDS, "ab_live_example", IDENTITY_SECRET, "eyJ") if word in log]


@pytest.mark.parametrize("task_id", ["identify", "tickets"])
def test_log_of_a_real_task_process_holds_nothing_private(
    supervise: Supervise, private_dag: str, halo: Simulator, monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    """Neither the red end nor the most talkative log level gives away a key, a token or a row."""
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "DEBUG")
    result, log = supervise(private_dag, task_id)
    assert result.state(task_id) == "failed"
    assert "Task failed with exception" in log
    assert any(request.body and "user_token" in request.body for request in halo.requests)
    assert private_words(log) == []


def test_output_of_a_whole_dag_run_holds_nothing_private(
    airflow_home: Path, connect: Connect, private_dag: str
) -> None:
    """`airflow dags test` masks nothing: what is not there was never written."""
    path = airflow_home / "dags" / "private.py"
    path.write_text(private_dag, encoding="utf-8")
    dag_id = re.search(r"private_\w{32}", private_dag)
    assert dag_id
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "airflow", "dags", "test", dag_id.group()],
            env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.unlink()
    assert "DeliveryIncompleteError" in ended.stdout + ended.stderr
    logs = [path.read_text(encoding="utf-8") for path in (airflow_home / "logs").rglob("*") if path.is_file()]
    assert private_words("\n".join([ended.stdout, ended.stderr, *logs])) == []


def test_signal_to_a_real_task_process_stops_it_in_time(
    supervise: Supervise, connect: Connect, halo: Simulator, statuses: Statuses, tmp_path: Path
) -> None:
    """SIGTERM, as Airflow sends it, leaves no row in flight."""
    path = tmp_path / "rows.csv"
    path.write_text(
        "id,user,name,email,text,note\n" + "".join(f"{n},u{n},n,e,t,n\n" for n in range(6)), encoding="utf-8"
    )
    halo.always("/chat", Fault.silence())
    signalled_at: list[float] = []

    def terminate(process_id: int) -> None:
        wait_until(lambda: halo.chats_in_flight == 2)
        signalled_at.append(time.monotonic())
        os.kill(process_id, signal.SIGTERM)

    dag_file = PRIVATE_DAG.format(dag_id=f"killed_{uuid.uuid4().hex}", csv_path=str(path))
    result, _ = supervise(dag_file, "tickets", meanwhile=terminate)
    assert time.monotonic() - signalled_at[0] < KILL_LIMIT
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"in_doubt": 2, "not_attempted": 4}
    assert sorted(statuses().values()) == ["in_doubt"] * 2 + ["pending"] * 4
