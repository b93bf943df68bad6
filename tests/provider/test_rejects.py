"""Rejected rows: how many a task accepts, the file they are written to, and how they are repaired."""

import csv
from pathlib import Path

import pytest
from airflow.sdk import DAG, ObjectStoragePath

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, RunDag
from tests.provider.summaries import chat_ids, counts


@pytest.mark.parametrize(
    ("max_rejected", "state"),
    [(0, "failed"), (1, "success"), (0.24, "failed"), (0.25, "success"), (1.0, "success"), (0.0, "failed")],
)
def test_max_rejected_is_a_number_or_a_share(
    dag: DAG, run: RunDag, faulty_csv: Path, max_rejected: float, state: str
) -> None:
    """An int counts rows, a float is a share of the rows read; the limit itself is still green."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_csv), max_rejected=max_rejected)
    assert run(dag).state("tickets") == state


def test_rejects_file_holds_the_rejected_rows_and_why(dag: DAG, run: RunDag, faulty_csv: Path) -> None:
    """The original columns, the line, the column to blame and the reason."""
    rejects = faulty_csv.parent / "made" / "on" / "demand" / "rejects.csv"
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_csv), rejects_path=str(rejects))
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


def test_rejects_file_may_be_in_object_storage(dag: DAG, run: RunDag, faulty_csv: Path) -> None:
    """Any ObjectStoragePath URL will do."""
    url = f"file://{faulty_csv.parent}/stored.csv"
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_csv), rejects_path=url)
    run(dag)
    with ObjectStoragePath(url).open("r", newline="") as lines:
        assert [reject["_row"] for reject in csv.DictReader(lines)] == ["3"]


def test_run_that_cannot_begin_leaves_the_last_rejects_file_alone(
    dag: DAG, run: RunDag, connect: Connect, faulty_csv: Path, tmp_path: Path
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
    dag: DAG, run: RunDag, faulty_csv: Path, tmp_path: Path
) -> None:
    """Rows are delivered by then: the task is red for the file's sake, and XCom tells what happened."""
    (tmp_path / "blocked").write_text("a file, and no folder", encoding="utf-8")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=str(faulty_csv),
        max_rejected=1,
        rejects_path=f"file://{tmp_path}/blocked/rejects.csv",
    )
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 3, "rejected": 1}


def test_repaired_rejects_send_the_repaired_rows_only(
    dag: DAG, run: RunDag, halo: Simulator, faulty_csv: Path, tmp_path: Path
) -> None:
    """The rejects file, put right, is a source as it stands."""
    rejects = tmp_path / "rejects.csv"
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, csv_path="{{ params.csv_path }}", rejects_path=str(rejects)
    )
    dag.params["csv_path"] = str(faulty_csv)
    run(dag)
    repaired = tmp_path / "repaired.csv"
    repaired.write_text(rejects.read_text(encoding="utf-8").replace("2,,", "2,user_2,"), encoding="utf-8")
    dag.params["csv_path"] = str(repaired)
    result = run(dag)
    assert result.state("tickets") == "success"
    assert counts(result.xcom("tickets")) == {"delivered": 1}
    assert chat_ids(halo) == ["1", "2", "3", "4"]


def test_original_file_is_settled_once_its_rejects_are_repaired(
    dag: DAG, run: RunDag, halo: Simulator, faulty_csv: Path
) -> None:
    """The key decides, not the file: the row with the fault is known as delivered."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_csv))
    run(dag)
    repairing = DAG(f"{dag.dag_id}_repairing", schedule=None)
    HaloTicketOperator(task_id="tickets", dag=repairing, submission=NOTE, rows=[rows(2)[1]])
    run(repairing)
    result = run(dag)
    assert result.state("tickets") == "success"
    assert counts(result.xcom("tickets")) == {"already_delivered": 4}
