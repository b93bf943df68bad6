"""Which ledger a task uses, and under which namespace its rows are in it."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG

from halo_provider.cli import main
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from halo_provider.submission import Submission
from halo_provider.ui.access import other_ledgers
from tests.core.databases import own_database
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, RunDag, Statuses
from tests.provider.summaries import counts


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
def _ledger_db(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The connection `ledger_db` to a PostgreSQL database of this test's own."""
    with own_database(postgres_url, force=True) as url:
        connection = {
            "conn_type": "postgres",
            "host": url.host,
            "port": url.port,
            "login": url.username,
            "password": url.password,
            "schema": url.database,
        }
        monkeypatch.setenv("AIRFLOW_CONN_LEDGER_DB", json.dumps(connection))
        yield


@pytest.mark.usefixtures("_ledger_db")
@pytest.mark.parametrize("configured", [False, True])
def test_ledger_may_be_the_database_of_a_connection(
    *,
    dag: DAG,
    run: RunDag,
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
        submission=NOTE,
        rows=rows(2),
        ledger_conn_id=None if configured else "{{ 'ledger_db' }}",
    )
    assert run(dag).xcom("tickets")["ledger"] == "ledger_db"
    assert other_ledgers((dag.dag_id,)) == ([] if configured else [(dag.dag_id, "ledger_db")]), "as the pages are told"
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


@pytest.fixture
def old_rows(dag: DAG, run: RunDag) -> None:
    """Two delivered rows, in the default ledger."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2))
    run(dag)


def test_prune_goes_by_the_policy(
    old_rows: None, statuses: Statuses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows younger than [halo] retention_days stay; the option of the command comes before it."""
    monkeypatch.setenv("AIRFLOW__HALO__RETENTION_DAYS", "730")
    assert main(["prune", "--yes"]) == 0
    assert len(statuses()) == 2
    monkeypatch.setenv("AIRFLOW__HALO__RETENTION_DAYS", "0.000000001")
    assert main(["prune", "--yes"]) == 0
    assert statuses() == {}


@pytest.mark.parametrize("days", ["0", "-1", "nan", "two years"])
def test_policy_that_is_no_age_prunes_nothing(
    days: str, old_rows: None, statuses: Statuses, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what it has to be."""
    monkeypatch.setenv("AIRFLOW__HALO__RETENTION_DAYS", days)
    assert main(["prune", "--yes"]) == 1
    assert capsys.readouterr().err == (
        f"halo-ledger: [halo] retention_days must be a number of days, and more than 0, not {days!r}\n"
    )
    assert len(statuses()) == 2


def test_looking_into_a_default_ledger_that_is_not_there_makes_none(
    airflow_home: Path, statuses: Statuses, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rows is an answer."""
    assert main(["list"]) == 0
    assert capsys.readouterr().err == "no rows\n"
    assert not (airflow_home / "halo_ledger.db").exists()
