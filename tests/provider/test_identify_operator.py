"""An identify task in a real Airflow: what it sends and returns, in which mode, and when it fails."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.operators.halo import HaloIdentifyOperator
from halo_provider.simulator import Simulator
from tests.example_keys import IDENTITY_SECRET
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Attempt, Connect, RunDag


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
def test_auto_mode_updates_users_in_a_backfill_and_identifies_them_otherwise(
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


def test_identify_task_rejects_rows_by_the_same_policy(dag: DAG, run: RunDag, faulty_csv: Path) -> None:
    """max_rejected and rejects_path work as they do for tickets."""
    rejects = faulty_csv.parent / "rejects.csv"
    HaloIdentifyOperator(
        task_id="identify", dag=dag, submission=NOTE, csv_path=str(faulty_csv), rejects_path=str(rejects)
    )
    result = run(dag)
    assert result.state("identify") == "failed"
    assert (result.xcom("identify")["users"], result.xcom("identify")["rejected"]) == (3, 1)
    assert len(rejects.read_text(encoding="utf-8").splitlines()) == 2
