"""halo_provider.testing, as people use it: a repository with one DAG, whose tests know nothing but its fixtures."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from halo_provider.exceptions import HaloConfigurationError, RowsRejectedError
from halo_provider.hooks.halo import HaloHook
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.testing import Fault, FreshLedger, LocalHalo
from tests.provider.notes import NOTE, rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
REFUSED = """

def test_refused_row_makes_the_run_red(halo, halo_ledger):
    halo.fail(400, user_id="user-1")
    assert dag.test().state == "failed"
    assert halo_ledger.statuses() == {"0": "delivered", "1": "rejected", "2": "delivered"}
"""


def test_dag_repository_of_ten_lines_is_tested_with_the_plugin(airflow_home: Path, tmp_path: Path) -> None:
    """As docs/testing.md has it, in a process that finds the plugin by its entry point; each test has an empty Halo."""
    dag_file, test_file = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "ten_lines.py").write_text(dag_file, encoding="utf-8")
    (tmp_path / "test_ten_lines.py").write_text(test_file + REFUSED, encoding="utf-8")

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"AIRFLOW__CORE__DAGS_FOLDER": str(dags), "PYTHONPATH": str(dags)},
    )

    assert (ended.returncode, "2 passed" in ended.stdout) == (0, True), ended.stdout[-4_000:]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FreshLedger]:
    """What the fixture `halo_ledger` gives."""
    ledger = FreshLedger(tmp_path / "halo_ledger.db", set_environment=monkeypatch.setenv)
    yield ledger
    ledger.close()


@pytest.fixture
def local_halo(monkeypatch: pytest.MonkeyPatch, ledger: FreshLedger) -> Iterator[LocalHalo]:
    """What the fixture `halo` gives."""
    with LocalHalo.serving() as halo:
        halo.begin(set_environment=monkeypatch.setenv)
        yield halo


def test_failures_meet_the_next_requests_one_each(local_halo: LocalHalo) -> None:
    """A number is a status, a Fault anything else, None lets one pass."""
    local_halo.fail(None, Fault.drop_before_acceptance(), 503)

    summary = HaloHook().deliver(rows(3), submission=NOTE)

    assert summary["delivered"] == 3
    assert local_halo.counts()["/chat"] == {"200": 3, "503": 1, "none": 1}


def test_failures_of_a_user_leave_the_others_alone(local_halo: LocalHalo, ledger: FreshLedger) -> None:
    """400 for one user rejects that user's row only."""
    local_halo.fail(400, user_id="user_2")

    with pytest.raises(RowsRejectedError):
        HaloHook().deliver(rows(3), submission=NOTE)

    assert ledger.statuses() == {"1": "delivered", "2": "rejected", "3": "delivered"}
    assert ledger.row("2").user_id == "user_2"


def test_local_halo_is_any_connection_that_a_dag_names(local_halo: LocalHalo, ledger: FreshLedger) -> None:
    """Two connections are two namespaces; a row key that both have must be asked for with one."""
    local_halo.connect("halo_eu", agent_id="agent_eu")
    for hook in (HaloHook(), HaloHook("halo_eu")):
        hook.deliver(rows(1), submission=NOTE)

    assert [chat.agent_id for chat in local_halo.chats] == ["agent_default", "agent_eu"]
    assert ledger.statuses("halo_eu/note") == {"1": "delivered"}
    with pytest.raises(ValueError, match="halo_default/note, halo_eu/note"):
        ledger.statuses()
    with pytest.raises(LookupError, match="halo_default/note, halo_eu/note"):
        ledger.row("1")
    with pytest.raises(LookupError, match="no namespace"):
        ledger.row("nobody")


def test_fresh_ledger_is_any_connection_that_a_dag_names(local_halo: LocalHalo, ledger: FreshLedger) -> None:
    """For DAGs that give ledger_conn_id: what was delivered there is not sent again by default."""
    ledger.connect("ledger_of_the_dag")

    HaloHook().deliver(rows(2), submission=NOTE, ledger_conn_id="ledger_of_the_dag")
    again = HaloHook().deliver(rows(2), submission=NOTE)

    assert (again["already_delivered"], len(local_halo.chats)) == (2, 2)


def test_users_are_updated_with_the_identity_secret_of_the_connection(local_halo: LocalHalo) -> None:
    """The simulator checks the token, so that backfills of people's DAGs run too."""
    HaloHook().update_users([{"user_id": "user_1", "traits": {"plan": "pro"}}])

    assert local_halo.users["user_1"].traits == {"plan": "pro"}


@pytest.mark.parametrize("operator", [HaloIdentifyOperator, HaloTicketOperator])
def test_execute_without_a_task_instance_says_what_to_do(
    operator: type[HaloIdentifyOperator | HaloTicketOperator], local_halo: LocalHalo
) -> None:
    """What people try first in a test ends in words, before anything is read or sent."""
    task = operator(task_id="by_hand", rows=rows(1), submission=NOTE)

    with pytest.raises(HaloConfigurationError, match=r"context of a running task, which has ti and dag_run.*dag\.test"):
        task.execute({})

    assert local_halo.requests == []
