"""halo-check: what it finds in workspaces of every kind, what it never does, and what it never shows."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from halo_provider.check import main as halo_check
from halo_provider.client import check as checking
from halo_provider.hooks.halo import HaloHook
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Answers, Fault, Simulator, TokenBucket, serving
from tests.example_keys import IDENTITY_SECRET

USER = "check-user"
Check = Callable[..., tuple[dict[str, Any], Simulator]]


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Simulator]]:
    """Serve a workspace of this kind, and let halo_default lead to it."""
    with ExitStack() as stack:

        def workspace(*, with_secret: bool = True, key: str = EXAMPLE_WIDGET_KEY, **kind: Any) -> Simulator:
            simulator = Simulator(identity_secret=IDENTITY_SECRET, **kind)
            url = stack.enter_context(serving(simulator))
            extra = {"identity_secret": IDENTITY_SECRET} if with_secret else {}
            connection = {"conn_type": "halo", "host": url, "password": key, "extra": extra}
            monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps(connection))
            return simulator

        yield workspace


@pytest.fixture
def check(workspace: Callable[..., Simulator]) -> Check:
    """Check a workspace of this kind, and return the report."""

    def check(*, ticket: bool = True, **kind: Any) -> tuple[dict[str, Any], Simulator]:
        simulator = workspace(**kind)
        return HaloHook().check(USER, ticket=ticket), simulator

    return check


def results(report: dict[str, Any]) -> dict[str, str | None]:
    """What was found, by its name."""
    return {finding["name"]: finding["result"] for finding in report["findings"]}


def means(report: dict[str, Any], name: str) -> str:
    """What a finding means."""
    (found,) = [finding["means"] for finding in report["findings"] if finding["name"] == name]
    return str(found)


PLAIN = {
    "key": "accepted",
    "verification": "not enforced",
    "token": "accepted",
    "token_sub": "accepted",
    "token_claims": "accepted",
    "token_signature": "refused",
    "token_expired": "refused",
    "token_user": "refused",
    "token_update": "accepted",
    "not_json": "refused",
    "no_message": "refused",
    "too_long": "refused",
    "too_large": "refused",
    "chat": "accepted",
    "continued": "continued",
    "ticket": "not named",
    "own_session_id": "refused",
    "same_session_twice": None,
    "rate_headers": "none",
}
WITHOUT_TOKENS = {name: None for name in PLAIN if name.startswith("token")}


@pytest.mark.parametrize(
    ("kind", "differs"),
    [
        ({}, {}),
        ({"enforce_verification": True}, {"verification": "enforced"}),
        ({"accept_unknown_sessions": True}, {"own_session_id": "accepted", "same_session_twice": "one conversation"}),
        ({"answers": Answers(replace_unknown_sessions=True)}, {"own_session_id": "replaced"}),
        ({"answers": Answers(name_tickets=True)}, {"ticket": "named"}),
        ({"answers": Answers(rate_limit=600)}, {"rate_headers": "some"}),
        ({"ticket": False}, {"ticket": None}),
        ({"with_secret": False}, WITHOUT_TOKENS),
        (
            {
                "enforce_verification": True,
                "accept_unknown_sessions": True,
                "answers": Answers(name_tickets=True, rate_limit=600, error_shape="nested", largest_body=100_000),
            },
            {
                "verification": "enforced",
                "own_session_id": "accepted",
                "same_session_twice": "one conversation",
                "ticket": "named",
                "rate_headers": "some",
            },
        ),
    ],
    ids=["plain", "enforced", "own ids", "replaced ids", "ticket", "rate", "no ticket", "no secret", "all"],
)
def test_check_finds_out_what_kind_of_workspace_it_is(
    check: Check, kind: dict[str, Any], differs: dict[str, str | None]
) -> None:
    """Each variant that the simulator plays is told from the others, within the requests that were announced."""
    report, simulator = check(**kind)

    found = results(report)
    latency = found.pop("latency")
    assert found == PLAIN | differs
    assert latency is not None
    assert report["whole"] is True
    assert len(report["chat_seconds"]) == checking.LATENCIES
    assert report["requests"] == len(simulator.requests) <= checking.MAX_REQUESTS
    assert set(report["session_ids"]) == set(simulator.sessions)
    assert len(simulator.tickets) == (0 if kind.get("ticket") is False else 1)


def test_announcement_counts_what_then_happens(workspace: Callable[..., Simulator]) -> None:
    """Whoever agrees to seven calls that set last_seen gets seven."""
    simulator = workspace()
    said = "\n".join(HaloHook().what_check_does(USER))

    HaloHook().check(USER)

    assert f"{USER!r} 7 times" in said
    assert (
        simulator.users[USER].automation_enrolments
        + sum(request.path == "/users/identify" and not request.accepted for request in simulator.requests)
        == 7
    )
    assert set(simulator.users) == {USER}


@pytest.mark.parametrize(
    ("answers", "shape", "words"),
    [
        (Answers(), "{error: text}", "its field error"),
        (Answers(error_shape="message"), "{message: text}", "its field message"),
        (Answers(error_shape="nested"), "{error: {message: text, code: number}}", "its field error.message"),
        (Answers(error_shape="text"), "no JSON, 19 bytes", "the whole answer"),
    ],
    ids=lambda value: value.error_shape if isinstance(value, Answers) else "",
)
def test_shape_of_an_error_is_shown_and_where_its_words_are(
    check: Check, answers: Answers, shape: str, words: str
) -> None:
    """The reason of a rejected row is read from there."""
    report, _ = check(answers=answers)

    (found,) = [finding["found"] for finding in report["findings"] if finding["name"] == "no_message"]
    assert found == f"refused (400): {shape}"
    assert words in means(report, "no_message")


def test_server_error_to_a_malformed_body_means_doubt(workspace: Callable[..., Simulator]) -> None:
    """A row like it would be tried again, which is worth knowing."""
    simulator = workspace()
    simulator.script(path="/chat", faults=[Fault.status(500)])

    report = HaloHook().check(USER)

    assert "in doubt" in means(report, "not_json")
    assert report["whole"] is True


def test_413_is_found(check: Check) -> None:
    """What a body of a megabyte meets need not be what a long message meets."""
    report, _ = check(answers=Answers(largest_body=100_000))

    found = {finding["name"]: finding["found"] for finding in report["findings"]}
    assert found["too_long"].startswith("refused (400)")
    assert found["too_large"].startswith("refused (413)")


def test_enforced_verification_without_a_secret_is_said_and_no_chat_is_sent(check: Check) -> None:
    """Every run would stop there, too."""
    report, simulator = check(enforce_verification=True, with_secret=False)

    assert results(report)["verification"] == "enforced"
    assert "identity_secret" in means(report, "verification")
    assert report["whole"] is False
    assert "identity_secret" in report["ended_early"]
    assert simulator.chats == []
    assert report["requests"] == 2


def test_wrong_key_ends_the_check_after_one_request(check: Check) -> None:
    """Nothing else can be found out without one."""
    report, simulator = check(key="ab_live_example_another")

    assert results(report)["key"] == "refused"
    assert (report["requests"], len(simulator.requests)) == (1, 1)
    assert [finding["result"] for finding in report["findings"][1:]] == [None] * (len(PLAIN))


def test_429_ends_the_check_and_nothing_is_tried_again(check: Check) -> None:
    """A limit that it has met is found; the requests after it are not made."""
    report, simulator = check(limit=TokenBucket(rate=0.001, burst=12, retry_after=7.0))

    assert report["ended_early"] == (
        "Halo asks to send fewer requests (429) and to come back in 7 s; nothing was tried again"
    )
    assert report["requests"] == len(simulator.requests) == 13
    assert results(report)["not_json"] == "refused"


def test_lost_connection_ends_the_check(workspace: Callable[..., Simulator]) -> None:
    """What was found before is reported all the same."""
    simulator = workspace()
    simulator.script(path="/chat", faults=[None, Fault.drop_after_acceptance()])

    report = HaloHook().check(USER)

    assert report["whole"] is False
    assert "POST /chat" in report["ended_early"]
    assert results(report)["token"] == "accepted"
    assert results(report)["chat"] is None


def test_no_request_is_made_beyond_the_limit(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the workspace answers."""
    monkeypatch.setattr(checking, "MAX_REQUESTS", 5)

    report, simulator = check()

    assert len(simulator.requests) == 5
    assert report["whole"] is False


def test_command_prints_a_table_and_writes_no_ledger(
    workspace: Callable[..., Simulator], airflow_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table on standard output, what happens on standard error, and no key anywhere."""
    workspace(accept_unknown_sessions=True)
    for file in airflow_home.glob("halo_ledger.db*"):
        file.unlink()

    assert halo_check(["--user-id", USER, "--yes"]) == 0

    said, warned = capsys.readouterr()
    assert "What it means for your settings" in said
    assert "own_session_ids=True" in said
    assert "at most 30 requests" in warned
    for secret in (EXAMPLE_WIDGET_KEY, IDENTITY_SECRET, "eyJ"):
        assert secret not in said + warned
    assert list(airflow_home.glob("halo_ledger.db*")) == []


def test_command_prints_json_alone(workspace: Callable[..., Simulator], capsys: pytest.CaptureFixture[str]) -> None:
    """For jq."""
    workspace()

    assert halo_check(["--user-id", USER, "--yes", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["connection"] == "halo_default"
    assert results(report)["key"] == "accepted"


def test_warnings_do_not_get_into_the_json(
    workspace: Callable[..., Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow writes them to standard output; such as that a secret is short."""
    workspace()
    connection = json.loads(os.environ["AIRFLOW_CONN_HALO_DEFAULT"]) | {
        "extra": {"identity_secret": "ha_secret_example"}
    }
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps(connection))
    command = "import sys; from halo_provider.check import main; sys.exit(main())"

    ended = subprocess.run(
        [sys.executable, "-c", command, "--user-id", USER, "--yes", "--json"],
        check=False,
        capture_output=True,
        text=True,
    )

    assert json.loads(ended.stdout)["connection"] == "halo_default"
    assert "below the minimum recommended length" in ended.stderr


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_command_asks_before_the_first_request(
    workspace: Callable[..., Simulator], monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    """Only a yes sends anything; no answer is none."""
    simulator = workspace()
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))

    assert halo_check(["--user-id", USER]) == code
    assert bool(simulator.requests) == (code == 0)


def test_command_says_why_not_everything_was_checked(
    workspace: Callable[..., Simulator], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of a check that is not whole."""
    workspace(key="ab_live_example_another")

    assert halo_check(["--user-id", USER, "--yes"]) == 1

    said, warned = capsys.readouterr()
    assert "not checked" in said
    assert "does not take the widget key" in warned


@pytest.mark.parametrize("user_id", ["anonymous", " "])
def test_command_needs_a_user(workspace: Callable[..., Simulator], user_id: str) -> None:
    """The anonymous user is everybody's."""
    simulator = workspace()

    assert halo_check(["--user-id", user_id, "--yes"]) == 1
    assert simulator.requests == []


def test_command_says_that_nobody_listens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A connection that leads nowhere is the most frequent mistake."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", f"halo://:{EXAMPLE_WIDGET_KEY}@127.0.0.1:{port}/http")

    assert halo_check(["--user-id", USER, "--yes"]) == 1

    assert "the request was not sent" in capsys.readouterr().err


def test_values_of_answers_are_never_shown(workspace: Callable[..., Simulator]) -> None:
    """An answer may quote a key, and its fields may have any name."""
    simulator = workspace()
    quoted = {"error": f"bad key {EXAMPLE_WIDGET_KEY}", f"field {IDENTITY_SECRET}": {"a": [{"b": {"c": 1}}], "n": None}}
    headers = {"X-RateLimit-Limit": f"<{IDENTITY_SECRET}>"}
    simulator.script(path="/chat", faults=[Fault.status(400, body=quoted, headers=headers)])

    report = HaloHook().check(USER)

    shown = json.dumps(report)
    assert EXAMPLE_WIDGET_KEY not in shown
    assert IDENTITY_SECRET not in shown
    (found,) = [finding["found"] for finding in report["findings"] if finding["name"] == "not_json"]
    assert found == "refused (400): {error: text, …: {a: [{…}, …], n: null}}"
