"""The sensor and the operator bring tickets into the ledger, XCom and results, in real task runs."""

import asyncio
import csv
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.exceptions import HaloConfigurationError, WithoutTicketError
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import open_ledger
from halo_provider.operators.halo import HaloTicketOperator, HaloTicketStatusOperator
from halo_provider.sensors.halo import HaloTicketSensor
from halo_provider.simulator import Fault, Reading, Simulator
from halo_provider.triggers.halo import HaloTicketTrigger
from tests.acceptance.sign_in_worker import KEY, sign_in_at
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Attempt, Connect, RunDag, Statuses
from tests.waiting import meanwhile, wait_until


@pytest.fixture
def signed_in(
    halo: Simulator, halo_url: str, connect: Connect, statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulator]:
    """The simulator, at which somebody has signed in for halo_default."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    halo.reading = Reading(consent="approved")
    ledger = open_ledger()
    sign_in_at(f"{halo_url}/api/mcp", ledger)
    ledger.close()
    yield halo
    halo.reset()


def escalated(number: int, *, without: int = 0) -> list[dict[str, str]]:
    """Rows that make a ticket each, but for the last ones."""
    made = rows(number)
    for row in made[: number - without]:
        row["text"] = f"Please escalate this: {row['id']}"
    return made


def deliver(source: list[dict[str, str]]) -> HaloTicketOperator:
    """The task whose rows have tickets."""
    return HaloTicketOperator(task_id="tickets", rows=source, submission=NOTE)


def test_sensor_defers_and_brings_every_ticket(dag: DAG, run: RunDag, signed_in: Simulator, tmp_path: Path) -> None:
    """XCom, ledger and results have ticket, status and time."""
    with dag:
        sensor = HaloTicketSensor(
            task_id="created", poke_interval=0.1, ticket_within=0.1, results_path=str(tmp_path / "tickets.csv")
        )
        deliver(escalated(4, without=1)) >> sensor

    ended = run(dag)

    told = ended.xcom("created")
    assert ended.state("created") == "success"
    assert {name: told[name] for name in ("rows", "tickets", "without_ticket", "not_found", "waiting")} == {
        "rows": 4,
        "tickets": 3,
        "without_ticket": 1,
        "not_found": 0,
        "waiting": 0,
    }
    assert told["statuses"] == {"open": 3}
    assert sorted(told["ticket_ids"]) == ["1", "2", "3"]
    assert set(told["ticket_ids"].values()) == {ticket.ticket_id for ticket in signed_in.tickets}
    with (tmp_path / "tickets.csv").open(encoding="utf-8") as file:
        lines = {line["row_key"]: line for line in csv.DictReader(file)}
    assert (lines["1"]["ticket_id"], lines["1"]["ticket_status"]) == (told["ticket_ids"]["1"], "open")
    assert (lines["4"]["ticket_id"], lines["4"]["ticket_status"]) == ("", "none")
    assert datetime.fromisoformat(lines["1"]["ticket_at"]).tzinfo is not None
    frame = HaloHook().submissions_df()
    assert list(frame.sort_values("row_key")["ticket_status"]) == ["open", "open", "open", "none"]


def test_sensor_waits_until_tickets_are_resolved(dag: DAG, run: RunDag, signed_in: Simulator) -> None:
    """A person resolves one after the other."""

    def resolve() -> None:
        wait_until(lambda: len([each for each in signed_in.reads if "data_search_tickets" in each.path]) > 1)
        signed_in.set_ticket_status("resolved")

    with dag:
        sensor = HaloTicketSensor(task_id="resolved", until="resolved", poke_interval=0.1)
        deliver(escalated(3)) >> sensor
    with meanwhile(resolve):
        ended = run(dag)

    assert (ended.state("resolved"), ended.xcom("resolved")["resolved"]) == ("success", 3)


@pytest.mark.parametrize("deferrable", [True, False])
def test_too_many_rows_without_a_ticket_are_an_error(
    dag: DAG, run: RunDag, signed_in: Simulator, errors: list[BaseException], *, deferrable: bool
) -> None:
    """max_without_ticket is a policy, like max_rejected: the counts are in XCom all the same, and no retry is made."""
    with dag:
        sensor = HaloTicketSensor(
            task_id="created",
            poke_interval=0.1,
            ticket_within=0.1,
            max_without_ticket=0.25,
            deferrable=deferrable,
            retries=3,
            retry_delay=timedelta(0),
        )
        deliver(escalated(4, without=2)) >> sensor

    ended = run(dag)

    assert (ended.state("created"), ended.task("created").try_number) == ("failed", 1)
    assert "2 of 4 delivered rows have no ticket, more than max_without_ticket allows" in str(errors[-1])
    assert isinstance(errors[-1].__cause__, WithoutTicketError)
    assert ended.xcom("created")["without_ticket"] == 2


@pytest.mark.parametrize("deferrable", [True, False])
def test_sensor_that_takes_too_long_says_what_is_missing(
    dag: DAG, run: RunDag, signed_in: Simulator, errors: list[BaseException], *, deferrable: bool
) -> None:
    """The counts so far are in XCom."""
    with dag:
        sensor = HaloTicketSensor(
            task_id="resolved", until="resolved", poke_interval=0.1, timeout=0.3, deferrable=deferrable
        )
        deliver(escalated(2)) >> sensor

    ended = run(dag)

    assert ended.state("resolved") == "failed"
    assert (ended.xcom("resolved")["tickets"], ended.xcom("resolved")["resolved"]) == (2, 0)
    assert type(errors[-1]).__name__ == "AirflowSensorTimeout"
    if deferrable:
        assert "not every ticket is resolved: 2 tickets, 0 answered without a ticket" in str(errors[-1])


def test_soft_fail_skips(dag: DAG, run: RunDag, signed_in: Simulator) -> None:
    """As with every sensor of Airflow."""
    with dag:
        sensor = HaloTicketSensor(task_id="resolved", until="resolved", poke_interval=0.1, timeout=0.2, soft_fail=True)
        deliver(escalated(1)) >> sensor

    assert run(dag).state("resolved") == "skipped"


def test_nobody_signed_in_ends_the_sensor_at_once(
    dag: DAG, run: RunDag, signed_in: Simulator, errors: list[BaseException]
) -> None:
    """The error names the command, and no retry is made."""
    signed_in.revoke_sign_ins()
    with dag:
        sensor = HaloTicketSensor(task_id="created", poke_interval=0.1, retries=3, retry_delay=timedelta(0))
        deliver(escalated(1)) >> sensor

    ended = run(dag)

    assert (ended.state("created"), ended.task("created").try_number) == ("failed", 1)
    assert "halo-login --conn-id halo_default" in str(errors[-1])


def test_operator_looks_once(dag: DAG, run: RunDag, signed_in: Simulator) -> None:
    """What has no ticket yet is told as not known yet, and is no error."""
    with dag:
        status = HaloTicketStatusOperator(task_id="status", ticket_within=3_600)
        deliver(escalated(3, without=1)) >> status

    told = run(dag).xcom("status")

    assert (told["tickets"], told["without_ticket"], told["waiting"], told["ledger"]) == (2, 0, 1, "default")


def test_operator_looks_again_at_rows_that_had_none(
    dag: DAG, run: RunDag, attempt: Attempt, signed_in: Simulator, halo_url: str
) -> None:
    """A ticket that a person makes later is found, and what is reopened, too; a namespace has the rows of every run."""
    with dag:
        HaloTicketStatusOperator(task_id="status", namespace="halo_default/note", ticket_within=0.001)
        deliver(escalated(2, without=1))
    attempt(dag, "tickets")
    first = attempt(dag, "status").xcom("status")
    session_id = signed_in.chats[1].session_id
    HaloHook().chat("Please escalate this", user_id="user_2", session_id=session_id)

    second = attempt(dag, "status").xcom("status")

    assert (first["tickets"], first["without_ticket"]) == (1, 1)
    assert (second["tickets"], second["without_ticket"]) == (2, 0)


def test_operator_takes_sessions_from_xcom(dag: DAG, run: RunDag, signed_in: Simulator) -> None:
    """What HaloTicketOperator returned, or whatever else has session ids."""
    with dag:
        tickets = deliver(escalated(2))
        HaloTicketStatusOperator(task_id="status", session_ids=tickets.output)

    told = run(dag).xcom("status")

    assert (told["rows"], told["tickets"], sorted(told["ticket_ids"])) == (2, 2, ["1", "2"])


def test_operator_that_cannot_ask_fails_and_says_why(
    dag: DAG, run: RunDag, signed_in: Simulator, errors: list[BaseException]
) -> None:
    """With what is known in XCom."""
    signed_in.reading = Reading(consent="approved", variant="prose")
    with dag:
        deliver(escalated(4)) >> HaloTicketStatusOperator(task_id="status")

    ended = run(dag)

    assert (ended.state("status"), ended.xcom("status")["waiting"]) == ("failed", 4)
    assert "not every row could be looked at" in str(errors[-1])


def test_no_parameter_that_cannot_work_gets_as_far_as_a_run() -> None:
    """They are refused when the DAG is parsed."""
    for wrong in (
        {"until": "closed"},
        {"ticket_within": 0},
        {"max_without_ticket": -1},
        {"session_ids": "sess_1"},
        {"session_ids": ["s"] * 20_000},
        {"session_ids": {"session_ids": {"1": "s"}, "session_ids_truncated": True}},
        {"session_ids": ["s"], "namespace": "halo_default/note"},
        {"results_path": "tickets.txt"},
        {"deferrable": "yes"},
    ):
        with pytest.raises(HaloConfigurationError):
            HaloTicketSensor(task_id="created", **wrong)


def test_trigger_is_made_again_from_what_it_serializes(signed_in: Simulator, airflow_home: Path) -> None:
    """Through JSON, as Airflow's database has it."""
    question = {
        "halo_conn_id": "halo_default",
        "ledger_conn_id": None,
        "until": "created",
        "ticket_within": 60.0,
        "asked_at": datetime.now(UTC).isoformat(),
        "namespace": None,
        "dag_id": None,
        "run_id": None,
        "task_id": None,
        "session_ids": ["sess_unknown"],
    }
    first = HaloTicketTrigger(
        question=question, poke_interval=0.05, end_at=(datetime.now(UTC) + timedelta(seconds=0.2)).isoformat()
    )
    path, arguments = first.serialize()
    again = HaloTicketTrigger(**json.loads(json.dumps(arguments)))

    async def fired() -> list[Any]:
        return [event.payload async for event in again.run()]

    (event,) = asyncio.run(fired())
    assert path == f"{HaloTicketTrigger.__module__}.{HaloTicketTrigger.__qualname__}"
    assert (event["outcome"], event["others"]) == ("timed_out", {"sess_unknown": None})


def test_trigger_tells_of_errors_instead_of_raising_them(
    connect: Connect, statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow would show no more than that the trigger failed."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")
    sensor = HaloTicketSensor(task_id="created", namespace="halo_default/note")
    question = sensor._question({"ti": None}, until="created")  # type: ignore[typeddict-item]
    trigger = HaloTicketTrigger(question=question.as_dict(), poke_interval=1.0, end_at=datetime.now(UTC).isoformat())

    async def fired() -> list[Any]:
        return [event.payload async for event in trigger.run()]

    (event,) = asyncio.run(fired())
    assert (event["outcome"], event["final"]) == ("failed", True)
    assert "fernet_key" in event["reason"]


def test_calls_that_fail_for_a_while_end_no_sensor(dag: DAG, run: RunDag, signed_in: Simulator) -> None:
    """The next look makes good what one could not see."""
    broken: list[Callable[[], Any]] = [Fault.garbage, Fault.drop_after_acceptance, lambda: Fault.status(404)]
    signed_in.script(path="/api/mcp/tools/list", faults=[make() for make in broken])
    with dag:
        deliver(escalated(2)) >> HaloTicketSensor(task_id="created", poke_interval=0.05)

    assert run(dag).xcom("created")["tickets"] == 2
