"""Scripted faults, as a client meets them on a real socket."""

import contextlib
import json
import socket
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from halo_provider.simulator import Fault, Simulator
from tests.waiting import wait_until

MESSAGE = {"message": "Please review.", "user_id": "user-1"}


@pytest.mark.parametrize(
    ("fault", "fate"),
    [
        (Fault.drop_before_acceptance(), (False, None)),
        (Fault.drop_after_acceptance(), (True, None)),
        (Fault.half_answer(), (True, 200)),
        (Fault.garbage(), (True, None)),
    ],
)
def test_broken_connection_is_seen_by_the_client(
    halo: httpx.Client,
    simulator: Simulator,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    fate: tuple[bool, int | None],
) -> None:
    """The client gets no answer; whether Halo accepted the chat is another matter, and the server does not mind."""
    simulator.script(path="/chat", faults=[fault])

    with pytest.raises(httpx.RemoteProtocolError):
        halo.post("/chat", json=MESSAGE)

    record = simulator.requests[0]
    assert (record.accepted, record.status) == fate
    assert len(simulator.chats) == int(record.accepted)
    assert halo.post("/chat", json=MESSAGE).status_code == 200
    assert caplog.records == []


@pytest.mark.parametrize("fault", [Fault.silence(accepted=True), Fault.silence(accepted=False)])
def test_silence_lasts_until_the_client_leaves(halo: httpx.Client, simulator: Simulator, fault: Fault) -> None:
    """No answer comes, accepted or not, and the chat is in flight until the client gives up."""
    simulator.script(path="/chat", faults=[fault])

    with pytest.raises(httpx.ReadTimeout):
        halo.post("/chat", json=MESSAGE, timeout=1.0)

    wait_until(lambda: simulator.chats_in_flight == 0)
    assert (len(simulator.chats), simulator.requests[0].status) == (int(fault.accepted), None)
    assert simulator.requests[0].ended is not None


@pytest.mark.parametrize(("retry_after", "header"), [(None, None), (2, "2"), (0.05, "0.05")])
def test_rate_limit_says_when_to_come_back(
    halo: httpx.Client, simulator: Simulator, retry_after: float | None, header: str | None
) -> None:
    """429 with Retry-After in seconds, or without; nothing is accepted."""
    simulator.script(path="/chat", faults=[Fault.rate_limited(retry_after=retry_after)])

    answer = halo.post("/chat", json=MESSAGE)

    assert (answer.status_code, answer.headers.get("Retry-After"), simulator.chats) == (429, header, [])


def test_rate_limit_can_name_a_date(halo: httpx.Client, simulator: Simulator) -> None:
    """Retry-After as an HTTP-date is at least so many seconds ahead."""
    simulator.script(path="/chat", faults=[Fault.rate_limited(retry_after=30, as_http_date=True)])

    header = halo.post("/chat", json=MESSAGE).headers["Retry-After"]

    assert header.endswith("GMT")
    assert 28 < (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds() <= 31


@pytest.mark.parametrize(
    ("fault", "content", "content_type"),
    [
        (Fault.status(500), '{"error": "Internal Server Error"}', "application/json"),
        (Fault.status(502, body="<html>"), "<html>", "text/plain; charset=utf-8"),
        (Fault.status(599, body={"message": "no"}), '{"message": "no"}', "application/json"),
        (Fault.status(503, body="", headers={"Content-Type": "text/html"}), "", "text/html"),
    ],
)
def test_any_status_and_body_can_be_scripted(
    halo: httpx.Client, simulator: Simulator, fault: Fault, content: str, content_type: str
) -> None:
    """Text goes out as text, other bodies as JSON; nothing is accepted."""
    simulator.script(path="/chat", faults=[fault])

    answer = halo.post("/chat", json=MESSAGE)

    assert (answer.status_code, answer.text, answer.headers["Content-Type"]) == (fault.code, content, content_type)
    assert simulator.chats == []


def test_status_can_hide_an_acceptance(halo: httpx.Client, simulator: Simulator) -> None:
    """A gateway can fail after Halo has accepted the chat."""
    simulator.script(path="/chat", faults=[Fault.status(504, accepted=True)])

    assert halo.post("/chat", json=MESSAGE).status_code == 504
    assert len(simulator.chats) == 1


def test_slow_answer_is_normal_but_late(halo: httpx.Client, simulator: Simulator) -> None:
    """The chat is accepted at once and answered after the delay."""
    simulator.script(path="/chat", faults=[Fault.slow(0.05)])

    answer = halo.post("/chat", json=MESSAGE)

    chat = simulator.chats[0]
    assert answer.status_code == 200
    assert chat.ended is not None
    assert chat.ended - chat.started >= 0.05


def test_broken_answers_are_200_and_accepted(halo: httpx.Client, simulator: Simulator) -> None:
    """A body that is no JSON, and one without a session_id."""
    simulator.script(path="/chat", faults=[Fault.invalid_json(), Fault.missing_session_id()])

    broken, incomplete = halo.post("/chat", json=MESSAGE), halo.post("/chat", json=MESSAGE)

    assert (broken.status_code, incomplete.status_code, len(simulator.chats)) == (200, 200, 2)
    with pytest.raises(ValueError, match="Expecting"):
        broken.json()
    assert incomplete.json().keys() == {"text", "agent_id", "message_id"}


def test_faults_are_met_in_order_and_none_is_no_fault(halo: httpx.Client, simulator: Simulator) -> None:
    """Each request to the path meets the next fault; other paths and later requests meet none."""
    simulator.script(path="/chat", faults=[Fault.status(500), None, Fault.status(503)])

    other = halo.post("/users/identify", json={"user_id": "user-1"}).status_code
    statuses = [halo.post("/chat", json=MESSAGE).status_code for _ in range(4)]

    assert (other, statuses) == (200, [500, 200, 503, 200])


def test_faults_of_a_user_meet_only_that_user(halo: httpx.Client, simulator: Simulator) -> None:
    """A user's own faults come before those of the path, and leave other users alone."""
    simulator.script(path="/chat", faults=[Fault.status(503)])
    simulator.script_for(user_id="user-2", faults=[Fault.status(500)])

    statuses = [
        halo.post("/chat", json={**MESSAGE, "user_id": user_id}).status_code
        for user_id in ("user-2", "user-1", "user-2")
    ]

    assert statuses == [500, 503, 200]


def test_permanent_fault_stays_until_it_is_ended(halo: httpx.Client, simulator: Simulator) -> None:
    """Scripted faults come first, then the permanent one for as long as there is one."""
    simulator.always("/chat", Fault.status(503))
    simulator.script(path="/chat", faults=[None])
    statuses = [halo.post("/chat", json=MESSAGE).status_code for _ in range(3)]
    simulator.always("/chat", None)

    assert [*statuses, halo.post("/chat", json=MESSAGE).status_code] == [200, 503, 503, 200]


def test_script_for_an_unknown_path_is_a_mistake() -> None:
    """A typo in a test does not go unnoticed."""
    with pytest.raises(ValueError, match="no endpoint"):
        Simulator().script(path="/chats", faults=[Fault.garbage()])


@pytest.mark.parametrize(
    "fault",
    [{"kind": "explode"}, {"kind": "slow"}, {"kind": "garbage", "seconds": 1}, {"kind": "status", "code": 99}],
)
def test_fault_without_its_parameters_is_a_mistake(fault: dict[str, Any]) -> None:
    """A fault from JSON must be one that a constructor could have made."""
    with pytest.raises(ValidationError):
        Fault.model_validate(fault)


def test_faults_can_be_ordered_over_http(halo: httpx.Client, simulator: Simulator) -> None:
    """What Python can script, another process can: for a path, for a user, for ever."""
    origin = halo.base_url.join("/")
    orders: list[dict[str, Any]] = [
        {"path": "/chat", "faults": [{"kind": "rate_limited", "retry_after": 1}, None]},
        {"path": "/chat", "user_id": "user-2", "faults": [{"kind": "status", "code": 500}]},
        {"path": "/chat", "always": True, "faults": [{"kind": "status", "code": 503}]},
    ]
    for order in orders:
        assert httpx.post(f"{origin}_simulator/faults", json=order).status_code == 200

    left = httpx.get(f"{origin}_simulator/state").json()["faults_left"]
    statuses = [
        halo.post("/chat", json={**MESSAGE, "user_id": user_id}).status_code
        for user_id in ("user-2", "user-1", "user-1", "user-1")
    ]

    assert [order["faults"] for order in left] == [["rate_limited", None], ["status"], ["status"]]
    assert statuses == [500, 429, 200, 503]


def test_wrong_orders_over_http_are_refused(halo: httpx.Client) -> None:
    """An unknown path or fault is an error, not a silent nothing."""
    url = f"{halo.base_url.join('/')}_simulator/faults"
    orders: list[dict[str, Any]] = [
        {"path": "/chats", "faults": [None]},
        {"path": "/chat", "faults": [{"kind": "explode"}]},
        {"path": "/chat", "faults": []},
    ]

    assert [httpx.post(url, json=order).status_code for order in orders] == [400, 422, 422]


def test_concurrent_chats_are_counted_while_in_flight(halo: httpx.Client, simulator: Simulator) -> None:
    """The peak is what really was in flight at once, and stays when the clients are gone."""
    simulator.always("/chat", Fault.silence())
    body = json.dumps(MESSAGE).encode()
    request = b"POST /api/sdk/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    with contextlib.ExitStack() as connections:
        for _ in range(5):
            connection = socket.create_connection((halo.base_url.host, halo.base_url.port or 80))
            connections.enter_context(connection).sendall(request)
        wait_until(lambda: simulator.chats_in_flight == 5)

    wait_until(lambda: simulator.chats_in_flight == 0)
    assert simulator.max_concurrency == 5
