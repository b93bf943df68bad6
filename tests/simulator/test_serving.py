"""Latency, rate limit, records, the pages for people, and the process."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Simulator, serving

MESSAGE = {"message": "Please review.", "user_id": "user-1"}
Served = Callable[..., tuple[Simulator, httpx.Client]]


def test_latency_is_within_its_range(served: Served) -> None:
    """A chat takes at least the shortest latency, other calls have their own, and refusals come at once."""
    simulator, halo = served(chat_latency=(0.1, 0.11))

    halo.post("/chat", json=MESSAGE)
    halo.post("/users/identify", json={"user_id": "user-1"})
    halo.post("/chat", json={})

    durations = [record.ended - record.started for record in simulator.requests if record.ended is not None]
    assert durations[0] >= 0.1
    assert max(durations[1:]) < 0.1


def test_rate_limit_lets_a_burst_pass_and_then_asks_for_patience(served: Served) -> None:
    """Beyond the burst it is 429 with whole seconds to wait; what is refused is not accepted."""
    simulator, halo = served(requests_per_second=0.5, burst=2)

    answers = [halo.post("/chat", json=MESSAGE) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["Retry-After"] == "2"
    assert len(simulator.chats) == 2


def test_requests_are_recorded_with_their_fate(halo: httpx.Client, simulator: Simulator) -> None:
    """Path, body, user, status, acceptance and times of every request, the refused ones included."""
    halo.post("/chat", json=MESSAGE)
    halo.post("/users/identify", json={"traits": {}})

    chat, identify = simulator.requests
    assert (chat.path, chat.body, chat.user_id, chat.status) == ("/chat", MESSAGE, "user-1", 200)
    assert (chat.accepted, chat.authorized, chat.chat) == (True, True, simulator.chats[0])
    assert (identify.path, identify.status, identify.accepted) == ("/users/identify", 400, False)
    assert chat.ended is not None
    assert chat.started <= chat.ended <= identify.started


def test_counts_are_by_path_and_status(halo: httpx.Client, simulator: Simulator) -> None:
    """An answer that was never sent counts as none."""
    simulator.script(path="/chat", faults=[None, Fault.status(503), Fault.drop_after_acceptance()])
    for _ in range(2):
        halo.post("/chat", json=MESSAGE)
    with pytest.raises(httpx.RemoteProtocolError):
        halo.post("/chat", json=MESSAGE)

    assert simulator.counts() == {"/chat": {"200": 1, "503": 1, "none": 1}}


def test_without_bodies_only_content_is_missing(served: Served) -> None:
    """Ids and counts stay, so that a long run can still be checked."""
    simulator, halo = served(record_bodies=False)

    halo.post("/chat", json={**MESSAGE, "context": {"a": {"label": "A", "value": 1}}, "custom_fields": {"b": 2}})

    chat = simulator.chats[0]
    assert (chat.user_id, chat.message, chat.context, chat.custom_fields) == ("user-1", "", {}, {})
    assert (simulator.requests[0].body, simulator.counts()) == (None, {"/chat": {"200": 1}})
    assert simulator.tickets[0].user_id == "user-1"


def test_reset_forgets_everything(halo: httpx.Client, simulator: Simulator) -> None:
    """A reset over HTTP leaves an empty workspace without faults."""
    halo.post("/users/identify", json={"user_id": "user-1"})
    halo.post("/chat", json=MESSAGE)
    simulator.always("/chat", Fault.garbage())

    httpx.post(f"{halo.base_url.join('/')}_simulator/reset")

    assert (simulator.users, simulator.chats, simulator.requests, simulator.counts()) == ({}, [], [], {})
    assert halo.post("/chat", json=MESSAGE).status_code == 200


def test_state_tells_other_processes_what_was_accepted(halo: httpx.Client, simulator: Simulator) -> None:
    """The state as JSON, with or without what the workspace holds."""
    halo.post("/users/identify", json={"user_id": "user-1"})
    halo.post("/companies/identify", json={"company_id": "company-1", "user_id": "user-1"})
    answer = halo.post("/chat", json={**MESSAGE, "context": {"a": {"label": "A", "value": 1}}}).json()
    url = f"{halo.base_url.join('/')}_simulator/state"

    state, totals = httpx.get(url).json(), httpx.get(url, params={"details": "false"}).json()

    assert state["totals"] == totals["totals"] == {"chats": 1, "users": 1, "companies": 1, "tickets": 1}
    assert state["counts"]["/chat"] == {"200": 1}
    assert state["chats"][0]["session_id"] == answer["session_id"]
    assert state["users"][0]["user_id"] == "user-1"
    assert state["companies"][0]["user_ids"] == ["user-1"]
    assert state["tickets"][0]["chats"][0]["user_id"] == "user-1"
    assert "chats" not in totals


HOSTILE = '<script>alert("x")</script>'


def test_pages_show_what_was_sent_and_escape_it(halo: httpx.Client) -> None:
    """Tickets, conversations, contacts and companies are there for people, and nothing in them is markup."""
    body: dict[str, Any] = {
        "message": f"Please escalate this. {HOSTILE}",
        "user_id": HOSTILE,
        "company_id": HOSTILE,
        "custom_fields": {HOSTILE: HOSTILE},
        "context": {HOSTILE: {"label": f"Label {HOSTILE}", "value": {HOSTILE: [HOSTILE, {"deep": [[[[[[1]]]]]]}]}}},
    }
    halo.post("/users/identify", json={"user_id": HOSTILE, "traits": {"name": HOSTILE, HOSTILE: HOSTILE}})
    halo.post("/companies/identify", json={"company_id": HOSTILE, "user_id": HOSTILE, "traits": {"name": HOSTILE}})
    session_id = halo.post("/chat", json=body).json()["session_id"]
    halo.post("/chat", json=body)
    halo.post("/tickets/create", json={"user_id": HOSTILE, "subject": HOSTILE, "metadata": {HOSTILE: HOSTILE}})

    for path in ("", f"sessions/{session_id}", "contacts", "companies"):
        page = httpx.get(f"{halo.base_url.join('/')}{path}")
        assert page.status_code == 200
        assert "<script" not in page.text
        assert "&lt;script&gt;" in page.text
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_inbox_counts_and_refreshes_itself(halo: httpx.Client) -> None:
    """The page reloads every few seconds until a person pauses it."""
    halo.post("/chat", json={**MESSAGE, "message": "I need human help"})
    origin = str(halo.base_url.join("/"))

    live, paused = httpx.get(origin).text, httpx.get(origin, params={"live": "false"}).text

    assert re.search(r"<dd>1</dd><dt>Tickets</dt>", live)
    assert "I need human help" in live
    assert 'http-equiv="refresh"' in live
    assert 'http-equiv="refresh"' not in paused


def test_unknown_session_has_a_page_that_says_so(halo: httpx.Client) -> None:
    """A link to a session of an earlier run ends in an explanation."""
    page = httpx.get(f"{halo.base_url.join('/')}sessions/sess_of_yesterday")

    assert (page.status_code, "There is no such session" in page.text) == (404, True)


def test_server_stops_at_once_with_requests_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a silent nor a slow answer holds the end up, and nothing is logged."""
    simulator = Simulator(chat_latency=(60.0, 60.0))
    simulator.script(path="/chat", faults=[Fault.silence(), None])

    def meet_the_end(url: str) -> None:
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{url}/api/sdk/chat", json=MESSAGE, headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"})

    with serving(simulator) as url:
        threads = [threading.Thread(target=meet_the_end, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while simulator.chats_in_flight < 2:
            time.sleep(0.002)
        began = time.monotonic()
    took = time.monotonic() - began
    for thread in threads:
        thread.join()

    assert took < 1
    assert caplog.records == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_command_serves_until_interrupted() -> None:
    """The command says where it is, takes its secrets from the environment, and Ctrl-C ends it without a word."""
    environment = {**os.environ, "HALO_SIMULATOR_WIDGET_KEY": "ab_live_example_other_key"}
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", "--latency", "0.01-0.02"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        announced = process.stdout.readline()
        found = re.search(r"SDK (\S+)", announced)
        assert found, announced
        answers = [
            httpx.post(f"{found[1]}/chat", json=MESSAGE, headers={"Authorization": f"Bearer {key}"}).status_code
            for key in ("ab_live_example_other_key", EXAMPLE_WIDGET_KEY)
        ]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)

    assert answers == [200, 401]
    assert (process.returncode, rest, errors) == (0, "", "")
    assert "ab_live" not in announced


@pytest.mark.parametrize("options", [["--latency", "2-1"], ["--enforce-verification"], ["--host", "127.0.0.300"]])
def test_command_explains_wrong_options(options: list[str]) -> None:
    """A wrong option is a usage error in one line, not a traceback."""
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALO_SIMULATOR")}

    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)

    assert finished.returncode == 2
    assert "error:" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_simulator_shares_no_code_with_the_provider() -> None:
    """It must not inherit the client's mistakes: nothing else of the package is imported, nor airflow."""
    program = (
        "import sys, halo_provider.simulator.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'airflow' or (name.startswith('halo_provider.')"
        " and not name.startswith('halo_provider.simulator'))])"
    )

    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert finished.stdout.strip() == "[]"
