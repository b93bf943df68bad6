"""HaloNotifier: each failed or late task once in Halo, whoever calls the callback and how often."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, AsyncCallback, task
from airflow.triggers.callback import CallbackTrigger

from halo_provider.exceptions import HaloConfigurationError, RowsRejectedError
from halo_provider.notifications.alerts import alert_of
from halo_provider.notifications.halo import HaloNotifier
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from halo_provider.submission import MAX_ROW_KEY
from tests.provider.notes import NOTE
from tests.provider.runs import Connect, Run, RunDag, Statuses

LATE = {
    "dag_run": {"dag_id": "daily", "dag_run_id": "scheduled__2026-11-28", "state": "running"},
    "deadline": {"id": "0198-deadline", "deadline_time": datetime(2026, 11, 28, 6, tzinfo=UTC)},
}


@task
def breaks(text: str) -> None:
    """Fail with a text that quotes a person."""
    raise ValueError(text)


def task_context(**parts: Any) -> dict[str, Any]:
    """The context of a task instance's callback."""
    ids = {"dag_id": "daily", "run_id": "manual__1", "task_id": "load", "map_index": -1, "try_number": 1}
    return {"ti": SimpleNamespace(**ids | parts)}


def notified(notifier: HaloNotifier, dag: DAG, *, run: RunDag, **task_kwargs: Any) -> Run:
    """Run a DAG whose only task fails and has this notifier."""
    with dag:
        breaks.override(task_id="load", on_failure_callback=notifier, **task_kwargs)("jane@example.com is unknown")
    return run(dag)


def test_failed_task_becomes_a_ticket(dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses) -> None:
    """With the ids and the class of the error as context, in the name of the task."""
    notified(HaloNotifier(), dag, run=run)

    (ticket,) = halo.tickets
    (chat,) = ticket.chats
    assert ticket.reason == "asked for a human"
    assert chat.user_id == f"airflow/{dag.dag_id}/load"
    assert chat.message.startswith(f"The Airflow task {dag.dag_id}.load failed in its try 1 (run manual__")
    assert chat.message.endswith("): ValueError. Please create a support ticket.")
    facts = chat.context["airflow"]["value"]
    assert (facts["task_id"], facts["try_number"], facts["error"]) == ("load", 1, "ValueError")
    ((namespace, row_key), status) = statuses().popitem()
    assert (namespace, status) == ("halo_default/airflow_alert", "delivered")
    assert row_key.startswith(f"task/{dag.dag_id}/manual__")
    assert row_key.endswith("/load/-1/1")


def test_text_of_another_packages_error_stays_here(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """It may quote anything; whoever wants it writes {{ exception }} into the message."""
    notified(HaloNotifier(), dag, run=run)
    assert "jane@example.com" not in f"{halo.chats[0].message} {halo.chats[0].context}"


def test_message_is_a_template(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """The user's id too; words that ask for a human are added where escalate is not False."""
    notified(
        HaloNotifier(message="Gone: {{ exception }}", user_id="team-{{ ti.task_id }}", escalate=False), dag, run=run
    )
    assert [(chat.user_id, chat.message) for chat in halo.chats] == [("team-load", "Gone: jane@example.com is unknown")]


def test_each_try_is_told_once_and_joins_the_tasks_open_ticket(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Halo merges what a user sends while a ticket is open."""
    notifier = HaloNotifier()
    notified(
        notifier,
        dag,
        run=run,
        retries=1,
        retry_delay=timedelta(0),
        on_retry_callback=[notifier, notifier],  # as where Airflow runs a callback twice
    )
    assert [chat.context["airflow"]["value"]["try_number"] for chat in halo.chats] == [1, 2]
    assert len(halo.tickets) == 1


def test_tasks_have_tickets_of_their_own(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """One notifier may serve all tasks of a process: what it renders for one is not kept for the next."""
    notifier = HaloNotifier(message="{{ ti.task_id }} is gone.")
    with dag:
        for task_id in ("first", "second"):
            breaks.override(task_id=task_id, on_failure_callback=notifier)("x")
    run(dag)
    assert sorted(ticket.message.split(".")[0] for ticket in halo.tickets) == ["first is gone", "second is gone"]


def test_error_of_this_package_is_told_in_its_own_masked_words(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """What was rejected, and why."""
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, rows=[{"id": "1"}], on_failure_callback=HaloNotifier()
    )
    run(dag)
    assert RowsRejectedError.__name__ in halo.chats[0].context["airflow"]["value"]["error"]
    assert "1 of 1 rows" in halo.chats[0].message


def test_notifier_that_cannot_notify_leaves_the_task_as_it_is(
    dag: DAG, run: RunDag, halo: Simulator, connect: Connect
) -> None:
    """Airflow logs what the notifier raises."""
    connect(password="")
    assert notified(HaloNotifier(), dag, run=run).state("load") == "failed"
    assert halo.chats == []


def test_deadline_in_the_triggerer_is_told_once(run: RunDag, halo: Simulator, statuses: Statuses) -> None:
    """Airflow awaits HaloNotifier(**kwargs, context=…), with a run and a deadline as the only context."""
    callback = AsyncCallback(HaloNotifier, kwargs={"message": "{{ dag_run.dag_run_id }} is late."})

    async def missed() -> list[Any]:
        trigger = CallbackTrigger(callback.path, {**callback.kwargs, "context": LATE.copy()})
        return [event.payload async for event in trigger.run()]

    events = [*asyncio.run(missed()), *asyncio.run(missed())]

    assert [event["state"] for event in events] == ["running", "success"] * 2, events
    assert [(chat.user_id, chat.message) for chat in halo.chats] == [
        ("airflow/daily", "scheduled__2026-11-28 is late. Please create a support ticket.")
    ]
    assert statuses() == {("halo_default/airflow_alert", "deadline/0198-deadline"): "delivered"}


def test_deadline_says_when_it_was() -> None:
    """Its context is plain data, and has no task."""
    alert = alert_of(LATE)
    assert alert.message == (
        "The Airflow run scheduled__2026-11-28 of daily is late: its deadline was 2026-11-28 06:00:00+00:00."
    )
    assert (alert.task_instance.dag_id, alert.task_instance.task_id) == ("daily", None)


def test_run_is_told_again_when_it_was_cleared() -> None:
    """The last task instance that a DAG's callback finds in its context is not what it is about."""
    context = {"dag": SimpleNamespace(dag_id="daily"), "run_id": "manual__1", "reason": "task_failure"} | task_context()
    keys = [
        alert_of(context | {"dag_run": SimpleNamespace(run_id="manual__1", clear_number=number)}).key
        for number in (0, 1)
    ]
    assert keys == ["run/daily/manual__1/0/task_failure", "run/daily/manual__1/1/task_failure"]
    assert alert_of(context).message == "The Airflow run manual__1 of daily ended: task_failure."


def test_missed_slas_of_airflow_2_are_told() -> None:
    """Its callback gets the late tasks as a text."""
    alert = alert_of({"dag": SimpleNamespace(dag_id="daily"), "task_list": "load on 2026-11-28\nsend on 2026-11-28"})
    assert alert.message == ("Tasks of the Airflow DAG daily missed their SLA: load on 2026-11-28, send on 2026-11-28.")


def test_ids_that_are_too_long_for_a_key_end_in_a_hash() -> None:
    """Airflow allows 250 characters each; two that differ at the end only differ still."""
    keys = {alert_of(task_context(dag_id="d" * 250, run_id="r" * 250, task_id="t" * 249 + last)).key for last in "ab"}
    assert {len(key) for key in keys} == {MAX_ROW_KEY}
    assert len(keys) == 2


def test_ids_with_the_keys_own_separator_make_different_keys() -> None:
    """A run's id may hold a slash."""
    assert (
        alert_of(task_context(run_id="a/b", task_id="c")).key != alert_of(task_context(run_id="a", task_id="b/c")).key
    )


def test_mapped_task_instance_says_which() -> None:
    """Its index is part of the key and of the message."""
    alert = alert_of(task_context(map_index=7))
    assert (alert.key, "daily.load[7] failed" in alert.message) == ("task/daily/manual__1/load/7/1", True)


def test_anonymous_alerts_merge_into_nothing(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Each makes a ticket of its own."""
    notified(
        HaloNotifier(user_id="anonymous"), dag, run=run, retries=1, retry_delay=timedelta(0),
        on_retry_callback=HaloNotifier(user_id="anonymous"),
    )  # fmt: skip
    assert [chat.user_id for chat in halo.chats] == [None, None]
    assert len(halo.tickets) == 2


def test_context_of_nothing_says_what_the_notifier_is_for() -> None:
    """As where somebody calls it in a task."""
    with pytest.raises(HaloConfigurationError, match="names no task instance, run or deadline; use it as on_failure_"):
        alert_of({})


def test_empty_user_is_refused(halo: Simulator) -> None:
    """A template that renders to nothing is a mistake, and nobody's alert would merge with all others."""
    with pytest.raises(HaloConfigurationError, match="user_id is empty once it is rendered"):
        HaloNotifier(user_id=" ").notify(task_context())  # type: ignore[arg-type]


def test_message_that_is_too_long_is_cut(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Halo takes 10,000 characters, and the end asks for a human."""
    notified(HaloNotifier(message="x" * 20_000), dag, run=run)
    assert len(halo.chats[0].message) <= 10_000
    assert halo.chats[0].message.endswith("x… Please create a support ticket.")
