"""Where an operator's rows come from: files, object storage, frames, upstream tasks, a file for each mapped task."""

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from airflow.sdk import DAG, task

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, csv_text, rows
from tests.provider.runs import Run, RunDag
from tests.provider.summaries import chat_ids, counts


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


def test_source_may_be_in_object_storage(dag: DAG, run: RunDag, notes_csv: Path) -> None:
    """csv_path, too, may be any ObjectStoragePath URL."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=f"file://{notes_csv}")
    assert counts(run(dag).xcom("tickets")) == {"delivered": 3}


@pytest.fixture
def mapped(dag: DAG, run: RunDag, notes_csv: Path, tmp_path: Path) -> Run:
    """A mapped operator over two files: one in order, one with a row that is rejected."""
    other = tmp_path / "others.csv"
    other.write_text(csv_text([{**rows(4)[3], "user": ""}, rows(5)[4]]), encoding="utf-8")
    HaloTicketOperator.partial(
        task_id="tickets", dag=dag, submission=NOTE, retries=3, retry_delay=timedelta(0), concurrency=2
    ).expand(csv_path=[str(notes_csv), str(other)])
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
