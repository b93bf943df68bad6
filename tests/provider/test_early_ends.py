"""Tasks that end early: by a kill, a signal or the execution timeout, each in time and with every row accounted for."""

import os
import signal
import time
import uuid
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from halo_provider.ledger.ledger import Ledger
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Fault, Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.private_dag import PRIVATE_DAG
from tests.provider.runs import Connect, RunDag, Statuses, Supervise
from tests.provider.summaries import counts
from tests.waiting import meanwhile, wait_until

KILL_LIMIT = 4.0  # seconds, of the five that Airflow leaves before SIGKILL


def test_run_ends_in_order_before_its_execution_timeout(
    *, dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses, errors: list[BaseException], airflow_home: Path
) -> None:
    """What is in flight is in doubt, the rest is given back, and the summary is in XCom when the time is up."""
    Ledger.at_path(airflow_home / "halo_ledger.db").close()  # on a busy machine, making it takes much of the time
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
        wait_until(lambda: len(halo.requests) >= 3)
        killed_at.append(time.monotonic())
        executing[0].on_kill()

    with meanwhile(kill):
        result = run(dag)
    assert time.monotonic() - killed_at[0] < KILL_LIMIT
    assert counts(result.xcom("tickets")) == {"in_doubt": 3, "not_attempted": 7}
    assert sorted(statuses().values()) == ["in_doubt"] * 3 + ["pending"] * 7


def test_kill_lets_an_answer_that_comes_soon_count(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """What is in flight is given a short while."""
    halo.always("/chat", Fault.slow(1.0))
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
        wait_until(lambda: len(halo.requests) >= 2)
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
        wait_until(lambda: len(halo.requests) >= 2)
        signalled_at.append(time.monotonic())
        os.kill(process_id, signal.SIGTERM)

    dag_file = PRIVATE_DAG.format(dag_id=f"killed_{uuid.uuid4().hex}", csv_path=str(path))
    result, _ = supervise(dag_file, "tickets", meanwhile=terminate)
    assert time.monotonic() - signalled_at[0] < KILL_LIMIT
    assert result.state("tickets") == "failed"
    assert counts(result.xcom("tickets")) == {"in_doubt": 2, "not_attempted": 4}
    assert sorted(statuses().values()) == ["in_doubt"] * 2 + ["pending"] * 4
