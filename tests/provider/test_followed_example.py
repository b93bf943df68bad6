"""The example that asks and follows its tickets, in real task runs over a day of its table."""

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from sqlalchemy.engine import make_url

from halo_provider.hooks.ledger import open_ledger
from halo_provider.simulator import Fault, Reading, Simulator
from tests.acceptance.sign_in_worker import KEY, sign_in_at
from tests.provider.runs import Connect, Run, Statuses, register
from tests.provider.source_databases import SourceDatabase
from tests.provider.test_example_dags import DAGS, fill


def test_followed_example_ends_with_every_ticket(
    *,
    airflow_home: Path,
    connect: Connect,
    statuses: Statuses,
    halo: Simulator,
    halo_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer is lost on the way: the row is found, nothing is sent twice, and both tickets are in XCom."""
    database = SourceDatabase(make_url(f"sqlite:///{tmp_path}/source.db"))
    monkeypatch.setenv("AIRFLOW_CONN_HALO_SOURCE_DB", database.connection)
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    keys = fill(database, table="applications", moment="submitted_at")
    halo.reading = Reading(consent="approved")
    with closing(open_ledger()) as ledger:
        sign_in_at(f"{halo_url}/api/mcp", ledger)
    halo.script(path="/chat", faults=[Fault.drop_after_acceptance()])
    dag = DagBag(dag_folder=DAGS).dags["halo_applications_followed"]
    register(dag)

    result = Run(dag.dag_id, dag.test(logical_date=datetime(2026, 11, 3, tzinfo=UTC)).run_id)

    assert (result.state("tickets"), result.xcom("tickets")["delivered"], len(halo.chats)) == ("success", 2, 2)
    assert result.state("created") == "success"
    assert result.xcom("created")["ticket_ids"].keys() == set(keys[1:3])
