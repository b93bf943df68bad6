"""HaloHook.deliver: a few rows through the ledger from a task of one's own, as the webhook example does it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG, task

from halo_provider.exceptions import DeliveryIncompleteError, HaloConfigurationError, RowsRejectedError, SourceError
from halo_provider.hooks.halo import HaloHook
from halo_provider.simulator import Fault, Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, Run, RunDag, Statuses, register

WEBHOOK = Path(__file__).resolve().parents[2] / "dags" / "halo_subscription_webhook.py"
NAMESPACE = "halo_default/cancelled_subscription"
EVENT = {
    "id": "evt_1001",
    "type": "subscription.cancelled",
    "data": {
        "customer": {"id": "usr_2001", "name": "Ada Example"},
        "plan": "Growth",
        "reason": "Too expensive",
        "mrr_lost": "199.00",
        "cancelled_at": "2026-11-09T11:19:00Z",
    },
}

Receive = Callable[[dict[str, Any] | None], Run]


@pytest.fixture
def receive(
    airflow_home: Path, connect: Connect, statuses: Statuses, halo: Simulator, errors: list[BaseException]
) -> Receive:
    """Trigger the webhook example with an event as its conf."""
    dag = DagBag(dag_folder=WEBHOOK).dags[WEBHOOK.stem]
    dag.task_dict["ticket"].on_failure_callback = [lambda context: errors.append(context["exception"])]
    register(dag)

    def receive(event: dict[str, Any] | None) -> Run:
        return Run(dag.dag_id, dag.test(run_conf=event).run_id)

    return receive


def without(*path: str) -> dict[str, Any]:
    """The event, without what the path leads to."""
    *outer, name = path
    event: dict[str, Any] = {**EVENT, "data": {**EVENT["data"], "customer": {**EVENT["data"]["customer"]}}}
    part = event
    for step in outer:
        part = part[step]
    del part[name]
    return event


def test_event_delivered_twice_makes_one_ticket(receive: Receive, halo: Simulator, statuses: Statuses) -> None:
    """The second run finds it in the ledger, by the event's id, and tells the first one's session."""
    first, second = (receive(EVENT).xcom("ticket") for _ in range(2))
    (chat,) = halo.chats
    (ticket,) = halo.tickets
    assert (first["delivered"], second["delivered"], second["already_delivered"]) == (1, 0, 1)
    assert first["session_ids"] == second["session_ids"] == {"evt_1001": chat.session_id}
    assert (ticket.user_id, ticket.merged) == ("usr_2001", 0)
    assert statuses() == {(NAMESPACE, "evt_1001"): "delivered"}


def test_event_becomes_the_documented_entry(receive: Receive, halo: Simulator) -> None:
    """What the agent is to see of a cancellation, with a request for a human."""
    receive(EVENT)
    (chat,) = halo.chats
    assert chat.message.endswith("Please create a support ticket.")
    assert chat.context == {
        "cancellation": {
            "label": "Cancellation",
            "type": "custom",
            "value": {
                "customer_name": "Ada Example",
                "plan": "Growth",
                "reason": "Too expensive",
                "mrr_lost": 199,
                "cancelled_at": "2026-11-09T11:19:00+00:00",
            },
        }
    }


def test_another_event_makes_another_delivery(receive: Receive, halo: Simulator) -> None:
    """The key is the event's id and not its customer's."""
    receive(EVENT)
    receive(EVENT | {"id": "evt_1002"})
    assert len(halo.chats) == 2


@pytest.mark.parametrize(
    ("event", "missing"),
    [
        (without("id"), "id: Field required"),
        (without("type"), "type: Field required"),
        (without("data"), "data: Field required"),
        (without("data", "customer", "id"), "data.customer.id: Field required"),
        (None, "id: Field required; type: Field required; data: Field required"),
    ],
)
def test_event_that_lacks_something_fails_and_says_what(
    receive: Receive, halo: Simulator, errors: list[BaseException], event: dict[str, Any] | None, missing: str
) -> None:
    """At once, without a retry; the error holds nothing of the event itself, and nothing is sent."""
    assert receive(event).state("ticket") == "failed"
    (error,) = errors
    assert str(error) == f"the run's conf is no subscription.cancelled event; {missing}"
    assert halo.requests == []


def test_event_of_another_type_is_skipped(receive: Receive, halo: Simulator) -> None:
    """It is nothing to fail for, even where the rest of it looks quite different."""
    assert receive({"id": "evt_1", "type": "invoice.paid", "data": {"amount": 1}}).state("ticket") == "skipped"
    assert halo.requests == []


def test_ledger_knows_the_task_that_delivered(dag: DAG, run: RunDag, airflow_home: Path) -> None:
    """A row delivered by a task of one's own can be traced to it like any other."""

    @task(task_id="own", dag=dag)
    def own() -> None:
        HaloHook().deliver(rows(1), submission=NOTE)

    own()
    result = run(dag)
    with closing(sqlite3.connect(airflow_home / "halo_ledger.db")) as db:
        found = db.execute("SELECT dag_id, run_id, task_id, try_number FROM halo_submissions").fetchall()
    assert found == [(dag.dag_id, result.run_id, "own", 1)]


@pytest.fixture
def hook(airflow_home: Path, connect: Connect, statuses: Statuses, halo: Simulator) -> HaloHook:
    """A hook on the simulator, outside of any task, and no ledger yet."""
    return HaloHook()


def test_rejected_row_raises_after_the_others_are_delivered(hook: HaloHook, statuses: Statuses) -> None:
    """A caller that goes on would lose it; the error names the first one and its column."""
    faulty = rows(3)
    faulty[1]["user"] = ""
    with pytest.raises(RowsRejectedError, match=r"1 of 3 rows were rejected.*row 2: column 'user'"):
        hook.deliver(faulty, submission=NOTE)
    assert {key: status for (_, key), status in statuses().items()} == {
        "1": "delivered",
        "2": "rejected",
        "3": "delivered",
    }


def test_row_in_doubt_raises(hook: HaloHook, halo: Simulator, statuses: Statuses) -> None:
    """With hold it waits for a decision, and is not sent again by another call."""
    halo.script(path="/chat", faults=[Fault.drop_after_acceptance()])
    for _ in range(2):
        with pytest.raises(DeliveryIncompleteError, match="1 are in doubt"):
            hook.deliver(rows(1), submission=NOTE, on_in_doubt="hold")
    assert list(statuses().values()) == ["in_doubt"]
    assert len(halo.chats) == 1


def test_row_in_doubt_is_resent_by_default(hook: HaloHook, halo: Simulator) -> None:
    """At least once, as with the operator."""
    halo.script(path="/chat", faults=[Fault.drop_before_acceptance()])
    assert hook.deliver(rows(1), submission=NOTE)["delivered"] == 1
    assert len(halo.chats) == 1


def test_failed_row_raises_and_goes_with_the_next_call(hook: HaloHook, halo: Simulator) -> None:
    """A retry of the task settles what could not be sent."""
    halo.script(path="/chat", faults=[Fault.status(503, headers={"Retry-After": "0"})])
    with pytest.raises(DeliveryIncompleteError, match="1 rows failed"):
        hook.deliver(rows(1), submission=NOTE, max_attempts=1)
    assert hook.deliver(rows(1), submission=NOTE)["delivered"] == 1


def test_result_holds_every_count_and_every_session(hook: HaloHook, halo: Simulator) -> None:
    """The sum is that of the rows read, and no session is left out, however many there are."""
    result = hook.deliver([*rows(2), rows(1)[0]], submission=NOTE)
    sessions = result.pop("session_ids")
    assert result == {
        "read": 3,
        "delivered": 2,
        "already_delivered": 0,
        "duplicate": 1,
        "rejected": 0,
        "in_doubt": 0,
        "failed": 0,
        "not_attempted": 0,
    }
    assert set(sessions.values()) == {chat.session_id for chat in halo.chats}


def test_another_connection_is_another_set_of_rows(hook: HaloHook, connect: Connect, statuses: Statuses) -> None:
    """The connection's id is part of the rows' namespace, as with the operator."""
    connect("halo_other")
    hook.deliver(rows(1), submission=NOTE)
    HaloHook("halo_other").deliver(rows(1), submission=NOTE)
    assert list(statuses()) == [("halo_default/note", "1"), ("halo_other/note", "1")]


def test_rows_that_are_no_list_are_refused(hook: HaloHook, halo: Simulator) -> None:
    """A single row is easily given without its list."""
    with pytest.raises(SourceError, match="rows must be a list of dicts"):
        hook.deliver(rows(1)[0], submission=NOTE)
    assert halo.requests == []


def test_connection_without_a_key_is_refused_before_anything_is_claimed(
    hook: HaloHook, connect: Connect, statuses: Statuses
) -> None:
    """The row is not left claimed by a run that could never have sent it."""
    connect(password="")
    with pytest.raises(HaloConfigurationError, match="has no widget key"):
        hook.deliver(rows(1), submission=NOTE)
    assert statuses() == {}
