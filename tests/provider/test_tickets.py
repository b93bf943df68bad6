"""A ticket task in a real Airflow: what it sends, returns and leaves in the ledger, on green and on red."""

from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG, task

from halo_provider.delivery.place import own_session_id
from halo_provider.hooks.halo import HaloHook
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, RunDag, Statuses
from tests.provider.summaries import COUNTS, chat_ids, counts


def test_green_task_returns_the_whole_summary(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """XCom holds every field that is promised, and nothing else."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2))
    result = run(dag)
    summary = result.xcom("tickets")
    sessions = {str(chat.user_id).removeprefix("user_"): chat.session_id for chat in halo.chats}
    seconds, rows_per_second = summary.pop("seconds"), summary.pop("rows_per_second")
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
        "pace": {
            "limited_by": "source",
            "requests_per_second": None,
            "concurrency": 64,
            "refused": 0,
            "requests": 2,
        },
    }
    assert rows_per_second == pytest.approx(2 / seconds, rel=0.05)


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
    dag: DAG, run: RunDag, faulty_csv: Path, errors: list[BaseException]
) -> None:
    """By default no row may be rejected; the error names the first one and what to do."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(faulty_csv))
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 3, "rejected": 1}
    assert "row 3: column 'user': the user's id is empty" in str(errors[0])


def test_row_that_halo_rejects_ends_red_with_the_summary(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """A 422 is Halo's word on one row; what it quotes of people is masked. The other rows are delivered."""
    halo.script_for(
        user_id="user_2", faults=[Fault.status(422, body={"error": "the plan of ada@example.com is unknown"})]
    )
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(3))
    result = run(dag)
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"delivered": 2, "rejected": 1}
    assert "Halo answered 422" in str(errors[0])
    assert "the plan of *** is unknown" in str(errors[0])


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


def test_own_session_ids_are_the_same_for_operator_and_hook(
    dag: DAG, run: RunDag, halo: Simulator, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both make them of the namespace and the row's key, so that they can be known beforehand."""
    monkeypatch.setattr(halo, "accept_unknown_sessions", True)
    HaloTicketOperator(task_id="tickets", dag=dag, rows=rows(2), submission=NOTE, own_session_ids=True)

    sessions = run(dag).xcom("tickets")["session_ids"]
    sessions |= HaloHook().deliver(rows(3), submission=NOTE, own_session_ids=True)["session_ids"]

    assert sessions == {key: own_session_id("halo_default/note", key) for key in "123"}
    assert set(sessions.values()) == halo.sessions.keys()


@pytest.mark.parametrize(("planned", "delivered"), [(3, 3), (2, 0)])
@pytest.mark.parametrize("as_text", [True, False])
def test_limit_may_be_what_an_upstream_task_returned(
    *, dag: DAG, run: RunDag, halo: Simulator, planned: int, delivered: int, as_text: bool
) -> None:
    """As a number, or as the text that a template renders to."""
    with dag:
        plan = task(lambda: planned, task_id="plan")()
        tickets = HaloTicketOperator(
            task_id="tickets",
            submission=NOTE,
            rows=rows(3),
            max_submissions="{{ ti.xcom_pull(task_ids='plan') }}" if as_text else plan,
        )
        plan >> tickets
    run(dag)
    assert len(halo.chats) == delivered


def test_limit_that_an_upstream_task_did_not_return_is_no_permission(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException]
) -> None:
    """None would mean no limit."""
    with dag:
        forgets = task(lambda: None, task_id="plan")()
        HaloTicketOperator(task_id="tickets", submission=NOTE, rows=rows(3), max_submissions=forgets)
    run(dag)
    assert str(errors[0]).startswith("max_submissions: its template, or the upstream task, gave nothing (None)")
    assert halo.chats == []
