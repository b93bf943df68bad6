"""No log and no output of a task holds a key, a token or anything that stands in a row."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from halo_provider.simulator import Fault, Simulator
from tests.example_keys import IDENTITY_SECRET
from tests.provider.private_dag import PRIVATE_DAG
from tests.provider.runs import Connect, Supervise

PRIVATE_WORDS = ("Confidential complaint", "Secretive Sam", "sam.secretive@example.com", "Hidden remark")


@pytest.fixture
def private_dag(connect: Connect, halo: Simulator, tmp_path: Path) -> str:
    """A DAG file over private words: one row is too long, one unreadable, one in doubt, and one quoted by Halo."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    halo.script_for(user_id="u1", faults=[Fault.drop_after_acceptance()])
    message, name, email, note = PRIVATE_WORDS
    quoting = f"{name} <{email}> wrote {message}, which is no message"
    halo.script_for(user_id="u4", faults=[Fault.status(422, body={"error": quoting})])
    path = tmp_path / "private.csv"
    lines = [
        "id,user,name,email,text,note",
        f"1,u1,{name},{email},{message},{note}",
        f"2,u2,{name},{email},{message * 500},{note}",
        f"3,u3,{name},{email},{message},{note},{note}",
        f"4,u4,{name},{email},{message},{note}",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return PRIVATE_DAG.format(dag_id=f"private_{uuid.uuid4().hex}", csv_path=str(path))


def private_words(log: str) -> list[str]:
    """What of keys, secrets, tokens and rows stands in a log."""
    return [word for word in (*PRIVATE_WORDS, "ab_live_example", IDENTITY_SECRET, "eyJ") if word in log]


@pytest.mark.parametrize("task_id", ["identify", "tickets"])
def test_log_of_a_real_task_process_holds_nothing_private(
    supervise: Supervise, private_dag: str, halo: Simulator, monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    """Neither the red end nor the most talkative log level gives away a key, a token or a row."""
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "DEBUG")
    result, log = supervise(private_dag, task_id)
    assert result.state(task_id) == "failed"
    assert "Task failed with exception" in log
    assert any(request.body and "user_token" in request.body for request in halo.requests)
    assert private_words(log) == []


def test_output_of_a_whole_dag_run_holds_nothing_private(
    airflow_home: Path, connect: Connect, private_dag: str
) -> None:
    """`airflow dags test` masks nothing: what is not there was never written."""
    path = airflow_home / "dags" / "private.py"
    path.write_text(private_dag, encoding="utf-8")
    dag_id = re.search(r"private_\w{32}", private_dag)
    assert dag_id
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "airflow", "dags", "test", dag_id.group()],
            env={**os.environ, "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.unlink()
    assert "DeliveryIncompleteError" in ended.stdout + ended.stderr
    logs = [path.read_text(encoding="utf-8") for path in (airflow_home / "logs").rglob("*") if path.is_file()]
    assert private_words("\n".join([ended.stdout, ended.stderr, *logs])) == []
