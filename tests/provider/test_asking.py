"""A person signs in once; operator, hook and command then look rows in doubt up."""

import os
import re
import sqlite3
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from airflow.sdk import DAG

from halo_provider.cli import main as halo_ledger
from halo_provider.exceptions import HaloConfigurationError
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.reading import reading_url
from halo_provider.login import main as halo_login
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Fault, Reading, Simulator
from tests.acceptance.sign_in_worker import KEY
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Connect, RunDag, Statuses

NAMESPACE = "halo_default/note"
LOST, NEVER = Fault.drop_after_acceptance(), Fault.drop_before_acceptance()


@pytest.fixture
def readable(
    halo: Simulator, connect: Connect, airflow_home: Path, statuses: Statuses, monkeypatch: pytest.MonkeyPatch
) -> Simulator:
    """A Halo that can be read once somebody has signed in; Airflow has a Fernet key."""
    halo.reading = Reading(consent="approved")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    return halo


@pytest.fixture
def approves(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A browser whose person approves at once."""
    visits: list[threading.Thread] = []

    def visit(url: str) -> bool:
        visits.append(threading.Thread(target=lambda: urlopen(url).read()))  # noqa: S310 -- loopback
        visits[-1].start()
        return True

    monkeypatch.setattr(webbrowser, "open", visit)
    yield
    for each in visits:
        each.join()


@pytest.fixture
def signed_in(readable: Simulator, approves: None) -> Simulator:
    """The same, and somebody has signed in."""
    assert halo_login(["--actor", "somebody"]) == 0
    return readable


def columns(airflow_home: Path, query: str) -> list[tuple[object, ...]]:
    """What the ledger's file holds."""
    with closing(sqlite3.connect(airflow_home / "halo_ledger.db")) as db:
        return db.execute(query).fetchall()


@pytest.mark.usefixtures("approves")
def test_sign_in_keeps_nothing_readable(
    readable: Simulator, airflow_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokens are encrypted; what is printed has none; only reading was asked for."""
    assert halo_login([]) == 0
    ((secrets,),) = columns(airflow_home, "SELECT secrets FROM halo_sign_ins")
    printed = "".join(capsys.readouterr())

    assert b"halo_at" not in b"".join(path.read_bytes() for path in airflow_home.glob("halo_ledger.db*"))
    assert str(secrets).startswith("gAAAA")
    assert "halo_at" not in printed
    assert "Signed in for reading (data:read)" in printed
    assert [each.scope for each in readable.sign_ins] == ["data:read"]


@pytest.mark.usefixtures("signed_in")
def test_status_tells_who_is_signed_in(capsys: pytest.CaptureFixture[str]) -> None:
    """And that nobody is, once they signed out."""
    assert halo_login(["--status"]) == 0
    assert "somebody signed in on" in capsys.readouterr().out

    assert halo_login(["--revoke"]) == 0
    assert halo_login(["--status"]) == 1
    assert "halo-login --conn-id halo_default" in capsys.readouterr().out
    assert halo_login(["--revoke"]) == 1


def test_signing_out_ends_the_tokens(signed_in: Simulator) -> None:
    """Halo forgets them, too."""
    assert halo_login(["--revoke"]) == 0

    assert [each.revoked for each in signed_in.sign_ins] == [True]


@pytest.mark.usefixtures("readable")
def test_sign_in_without_a_browser_takes_a_pasted_answer(airflow_home: Path) -> None:
    """The browser may be on another machine, where the answer leads nowhere."""
    command = [str(Path(sys.executable).parent / "halo-login"), "--no-browser"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as login:
        assert login.stdin is not None
        assert login.stdout is not None
        url = next(line.strip() for line in login.stdout if "/authorize?" in line)
        login.stdin.write(f"{answer_to(url)}\n")
        login.stdin.close()
        printed = login.stdout.read()

    assert login.returncode == 0
    assert "Signed in for reading" in printed
    assert columns(airflow_home, "SELECT conn_id FROM halo_sign_ins") == [("halo_default",)]


def answer_to(url: str) -> str:
    """The address that a browser is sent to when its person approves."""
    from http.client import HTTPConnection  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415

    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc)
    connection.request("GET", f"{parts.path}?{parts.query}")
    return connection.getresponse().headers["location"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answer: answer.replace("state=", "state=other"), "does not belong to this sign-in"),
        (lambda answer: re.sub("code=[^&]*", "error=access_denied", answer), "access_denied"),
        (lambda answer: re.sub("code=[^&]*", "code=made-up", answer), "invalid_grant"),
    ],
)
@pytest.mark.usefixtures("readable")
def test_wrong_answer_signs_nobody_in(
    airflow_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    words: str,
) -> None:
    """Another program's answer, a person who refuses, a code that is none."""
    monkeypatch.setattr("halo_provider.login._pasted", lambda url, _loopback: change(answer_to(url)))

    assert halo_login(["--no-browser"]) == 1

    assert words in capsys.readouterr().err
    assert columns(airflow_home, "SELECT conn_id FROM halo_sign_ins") == []


@pytest.mark.usefixtures("signed_in")
def test_operator_looks_rows_up(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """What was lost is found, what never arrived is sent: a green task, and each row with Halo once."""
    halo.script_for(user_id="user_1", faults=[LOST])
    halo.script_for(user_id="user_2", faults=[NEVER])
    with dag:
        HaloTicketOperator(task_id="tickets", rows=rows(4), submission=NOTE, on_in_doubt="ask", ask_after=1.0)

    ended = run(dag)

    assert ended.state("tickets") == "success"
    assert ended.xcom("tickets")["delivered"] == 4
    assert sorted(str(chat.user_id) for chat in halo.chats) == ["user_1", "user_2", "user_3", "user_4"]


@pytest.mark.usefixtures("readable")
def test_operator_without_a_sign_in_holds_and_says_so(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses
) -> None:
    """The reason and the remedy stand beside the row."""
    halo.script_for(user_id="user_1", faults=[LOST])
    with dag:
        HaloTicketOperator(task_id="tickets", rows=rows(3), submission=NOTE, on_in_doubt="ask", ask_after=1.0)

    assert run(dag).state("tickets") == "failed"

    assert statuses()[NAMESPACE, "1"] == "in_doubt"
    assert len(halo.chats) == 3


@pytest.mark.usefixtures("signed_in")
def test_command_looks_up_what_runs_left_in_doubt(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the source: what Halo has is resolved, what it does not have is requeued, with the person's name."""
    halo.script_for(user_id="user_1", faults=[LOST])
    halo.script_for(user_id="user_2", faults=[NEVER])
    with dag:
        HaloTicketOperator(task_id="tickets", rows=rows(3), submission=NOTE, on_in_doubt="hold")
    run(dag)
    capsys.readouterr()

    assert halo_ledger(["--actor", "somebody", "ask", "--namespace", NAMESPACE, "--ask-after", "1"]) == 0

    assert "1 found and resolved, 1 not there and requeued, 0 left in doubt" in capsys.readouterr().out
    assert (statuses()[NAMESPACE, "1"], statuses()[NAMESPACE, "2"]) == ("delivered", "pending")
    (lost,) = (chat for chat in halo.chats if chat.user_id == "user_1")
    told = columns(
        Path(os.environ["AIRFLOW_HOME"]),
        "SELECT actor, event, detail FROM halo_submission_events WHERE event = 'resolved'",
    )
    assert told == [("somebody", "resolved", f"session {lost.session_id}: found in Halo by its message")]


@pytest.mark.usefixtures("readable")
def test_command_leaves_what_it_cannot_tell(
    dag: DAG, run: RunDag, halo: Simulator, statuses: Statuses, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody is signed in: nothing changes, and the command says why."""
    halo.script_for(user_id="user_1", faults=[LOST])
    with dag:
        HaloTicketOperator(task_id="tickets", rows=rows(1), submission=NOTE, on_in_doubt="hold")
    run(dag)
    capsys.readouterr()

    assert halo_ledger(["ask", "--namespace", NAMESPACE, "--ask-after", "1"]) == 1

    printed = capsys.readouterr().out
    assert "nobody is signed in; run `halo-login --conn-id halo_default`" in printed
    assert statuses()[NAMESPACE, "1"] == "in_doubt"


@pytest.mark.parametrize(
    ("host", "configured", "url"),
    [
        ("https://api.haloagents.ai", None, "https://app.haloagents.ai/api/mcp"),
        ("http://127.0.0.1:8800/api/sdk", None, "http://127.0.0.1:8800/api/mcp"),
        ("https://api.haloagents.ai", "https://mcp.example.com/x", "https://mcp.example.com/x"),
    ],
)
def test_reading_has_an_address_of_its_own(host: str, configured: str | None, url: str) -> None:
    """Halo's own, that of another host, or what the connection says."""
    assert reading_url(host, configured) == url


def test_reading_needs_a_fernet_key(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the tokens would lie open."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "")

    with pytest.raises(HaloConfigurationError, match="fernet_key"):
        HaloHook().reader(ledger=None)  # type: ignore[arg-type]


def test_login_tells_of_a_server_that_is_not_there(
    connect: Connect, airflow_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, but the address."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    connect(extra={"mcp_url": "http://127.0.0.1:9/api/mcp"})

    assert halo_login([]) == 1
    assert "http://127.0.0.1:9/api/mcp" in capsys.readouterr().err
