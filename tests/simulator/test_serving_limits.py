"""Limits as a client meets them on a real socket, ordered in Python, over HTTP and on the command line."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from halo_provider.simulator import (
    EXAMPLE_WIDGET_KEY,
    AllOf,
    ChangingLimit,
    ConcurrencyLimit,
    Fault,
    FixedWindow,
    Limit,
    RefusedUsers,
    Simulator,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
    WaitingQueue,
)
from tests.waiting import wait_until

MESSAGE = {"message": "Please review.", "user_id": "user-1"}
BASE = 0.02  # seconds of latency, where there is some
Served = Callable[..., tuple[Simulator, httpx.Client]]


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """What the simulator asks."""
        return self.now


def statuses(halo: httpx.Client, *, requests: int) -> list[int]:
    """The statuses of so many chats, one after the other."""
    return [halo.post("/chat", json=MESSAGE).status_code for _ in range(requests)]


@contextlib.contextmanager
def in_flight(halo: httpx.Client, simulator: Simulator, *, requests: int) -> Iterator[None]:
    """Keep so many requests in flight, which get no answer, while the block runs."""
    simulator.script(path="/chat", faults=[Fault.silence()] * requests)
    body = json.dumps(MESSAGE)
    head = (
        f"POST /api/sdk/chat HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {EXAMPLE_WIDGET_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with contextlib.ExitStack() as connections:
        for _ in range(requests):
            connection = socket.create_connection((halo.base_url.host, halo.base_url.port or 80))
            connections.enter_context(connection).sendall(f"{head}{body}".encode())
        wait_until(lambda: simulator.chats_in_flight == requests)
        yield
    wait_until(lambda: simulator.chats_in_flight == 0)


def seconds_of(halo: httpx.Client, simulator: Simulator) -> float:
    """How long the simulator takes for one more chat."""
    assert statuses(halo, requests=1) == [200]
    chat = simulator.chats[-1]
    assert chat.ended is not None
    return chat.ended - chat.started


def order(halo: httpx.Client, limit: Any) -> httpx.Response:
    """Set the limit over HTTP."""
    return httpx.post(f"{halo.base_url.join('/')}_simulator/limit", json={"limit": limit}, trust_env=False)


def test_refusals_over_the_rate_are_told_and_counted(served: Served) -> None:
    """Nothing of them is accepted; when the time has come that was told, the next is."""
    clock = Clock()
    simulator, halo = served(limit=TokenBucket(rate=4, burst=2, retry_after="exact"), clock=clock)

    answers = [halo.post("/chat", json=MESSAGE) for _ in range(3)]
    clock.now += 0.25

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].headers["Retry-After"] == "0.25"
    assert answers[2].json() == {"error": "too many requests"}
    assert statuses(halo, requests=2) == [200, 429]
    assert simulator.counts() == {"/chat": {"200": 3, "429": 2}}
    assert [record.admitted for record in simulator.requests] == [True, True, False, True, False]
    assert len(simulator.chats) == 3


def test_refusals_of_a_window_end_with_it(served: Served) -> None:
    """503 as ordered, without Retry-After, until the window is over."""
    clock = Clock()
    simulator, halo = served(limit=FixedWindow(requests=2, seconds=10, retry_after=None, status=503), clock=clock)

    answers = [halo.post("/chat", json=MESSAGE) for _ in range(3)]
    clock.now += 10

    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert "Retry-After" not in answers[2].headers
    assert statuses(halo, requests=3) == [200, 200, 503]
    assert simulator.counts() == {"/chat": {"200": 4, "503": 2}}


def test_all_endpoints_share_a_limit(served: Served) -> None:
    """An identify call takes what a chat could have had."""
    _, halo = served(limit=TokenBucket(rate=1, burst=1), clock=Clock())

    assert halo.post("/users/identify", json={"user_id": "user-1"}).status_code == 200
    assert statuses(halo, requests=1) == [429]


def test_what_never_reached_halo_takes_nothing_from_the_limit(served: Served) -> None:
    """A wrong key, an unknown endpoint, and a fault before acceptance are not counted."""
    simulator, halo = served(limit=TokenBucket(rate=1, burst=1), clock=Clock())
    simulator.script(path="/chat", faults=[Fault.status(500)])

    before = [
        halo.post("/chat", json=MESSAGE).status_code,
        halo.post("/chats", json=MESSAGE).status_code,
        halo.post("/chat", json=MESSAGE, headers={"Authorization": "Bearer wrong"}).status_code,
    ]

    assert before == [500, 404, 401]
    assert statuses(halo, requests=2) == [200, 429]


@pytest.mark.parametrize(("retry_after", "header"), [(1, "1"), (None, None)])
def test_requests_beyond_the_concurrency_are_refused(
    served: Served, retry_after: float | None, header: str | None
) -> None:
    """A third beside two is refused, for as long as the two are in flight."""
    simulator, halo = served(limit=ConcurrencyLimit(requests=2, retry_after=retry_after))

    with in_flight(halo, simulator, requests=2):
        answer = halo.post("/chat", json=MESSAGE)

    assert (answer.status_code, answer.headers.get("Retry-After")) == (429, header)
    assert statuses(halo, requests=1) == [200]


def test_place_is_free_as_soon_as_the_answer_is_there(served: Served) -> None:
    """A client that never has more than one request in flight is never refused by a limit of one."""
    _, halo = served(limit=ConcurrencyLimit(requests=1))

    assert set(statuses(halo, requests=50)) == {200}


def test_sporadic_refusals_end_after_so_many(served: Served) -> None:
    """All are refused for a while, and then none."""
    _, halo = served(limit=SporadicRefusals(share=1, at_most=3))

    assert statuses(halo, requests=6) == [429, 429, 429, 200, 200, 200]


def test_only_refused_users_are_refused(served: Served) -> None:
    """The user that the limit names, again and again; the others and the anonymous one never."""
    _, halo = served(limit=RefusedUsers(user_ids=frozenset({"user-1"})))

    others = [{**MESSAGE, "user_id": "user-2"}, {"message": "Hello"}]

    assert statuses(halo, requests=3) == [429, 429, 429]
    assert [halo.post("/chat", json=body).status_code for body in others] == [200, 200]


def test_latency_grows_with_the_load(served: Served) -> None:
    """A third beside two takes three times as long; none is refused."""
    simulator, halo = served(limit=Slowdown(capacity=1), chat_latency=(BASE, BASE))

    with in_flight(halo, simulator, requests=2):
        took = seconds_of(halo, simulator)

    assert took >= 3 * BASE


def test_queue_is_worked_off_in_turn(served: Served) -> None:
    """Who comes while another is worked on waits for that one first."""
    simulator, halo = served(limit=WaitingQueue(capacity=1), chat_latency=(BASE, BASE), clock=Clock())

    for place in (1, 2, 3):  # at the same time, as the clock stands still
        assert seconds_of(halo, simulator) >= place * BASE


def test_full_queue_refuses(served: Served) -> None:
    """With one at work and one in the queue there is no place for a third."""
    simulator, halo = served(limit=WaitingQueue(capacity=1, length=1, status=503))

    with in_flight(halo, simulator, requests=2):
        assert statuses(halo, requests=1) == [503]

    assert statuses(halo, requests=1) == [200]


def test_limit_changes_at_its_time(served: Served) -> None:
    """Nothing is refused until the limit begins, and nothing after it has ended."""
    clock = Clock()
    steps = (Step(after=10, limit=TokenBucket(rate=1, burst=1)), Step(after=20, limit=None))
    _, halo = served(limit=ChangingLimit(steps=steps), clock=clock)

    before = statuses(halo, requests=3)
    clock.now += 10
    during = statuses(halo, requests=3)
    clock.now += 10

    assert (before, during, statuses(halo, requests=3)) == ([200] * 3, [200, 429, 429], [200] * 3)


def test_limit_is_replaced_while_requests_are_in_flight(served: Served) -> None:
    """The next request meets the new limit, which counts those that were there before it."""
    simulator, halo = served()

    with in_flight(halo, simulator, requests=2):
        seen = statuses(halo, requests=1)
        simulator.limit = ConcurrencyLimit(requests=2)
        seen += statuses(halo, requests=1)
        simulator.limit = None
        seen += statuses(halo, requests=1)

    assert seen == [200, 429, 200]


def test_limit_can_be_ordered_over_http(halo: httpx.Client, simulator: Simulator) -> None:
    """Another process can set a limit of any kind, see which one there is, and lift it."""
    limit = AllOf(limits=(RefusedUsers(share=0), SporadicRefusals(share=1, retry_after=2, status=503)))
    url = f"{halo.base_url.join('/')}_simulator/state"

    ordered = order(halo, limit.model_dump(mode="json"))
    answer = halo.post("/chat", json=MESSAGE)
    shown = httpx.get(url).json()["limit"]
    lifted = order(halo, None)

    assert (ordered.status_code, lifted.status_code) == (200, 200)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert AllOf.model_validate(shown) == limit
    assert statuses(halo, requests=1) == [200]
    assert (simulator.limit, httpx.get(url).json()["limit"]) == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"limit": {"kind": "weather"}}, {"limit": {"kind": "token_bucket", "rate": 0}}, {"limit": None, "x": 1}],
)
def test_wrong_limits_over_http_are_refused(halo: httpx.Client, simulator: Simulator, wrong: dict[str, Any]) -> None:
    """A typo is an error, and the limit stays as it was."""
    simulator.limit = before = TokenBucket(rate=20)

    assert httpx.post(f"{halo.base_url.join('/')}_simulator/limit", json=wrong).status_code == 422
    assert simulator.limit == before


@pytest.mark.parametrize("first", [None, TokenBucket(rate=1, burst=1)])
def test_reset_returns_to_the_first_limit(served: Served, first: Limit | None) -> None:
    """The limit that the simulator began with begins anew; one that was set later is forgotten."""
    simulator, halo = served(limit=first, clock=Clock())
    statuses(halo, requests=1)
    simulator.limit = SporadicRefusals(share=1)

    simulator.reset()

    assert simulator.limit == first
    assert statuses(halo, requests=1) == [200]


def test_requests_per_second_are_a_token_bucket() -> None:
    """They are short for the most usual limit, and do not go with another."""
    assert Simulator(requests_per_second=20, burst=5).limit == TokenBucket(rate=20, burst=5)
    assert Simulator().limit is None
    with pytest.raises(ValueError, match="two limits"):
        Simulator(requests_per_second=20, limit=Slowdown(capacity=8))


def test_command_takes_a_limit() -> None:
    """The command line takes the JSON that HTTP takes."""
    limit = '{"kind": "sporadic_refusals", "share": 1, "at_most": 1, "retry_after": 3}'
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", "--limit", limit]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALO_SIMULATOR")}

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announced = re.search(r"SDK (\S+)", process.stdout.readline())
        assert announced is not None
        answers = [
            httpx.post(f"{announced[1]}/chat", json=MESSAGE, headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"})
            for _ in range(2)
        ]
        process.terminate()

    assert [answer.status_code for answer in answers] == [429, 200]
    assert answers[0].headers["Retry-After"] == "3"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--limit", '{"kind": "token_bucket", "rate": -1}'], "rate: Input should be greater than 0"),
        (["--limit", "token_bucket"], "Invalid JSON"),
        (["--limit", '{"kind": "slowdown", "capacity": 1}', "--requests-per-second", "3"], "two limits"),
    ],
)
def test_command_explains_a_wrong_limit(options: list[str], reason: str) -> None:
    """A wrong limit is a usage error that says what is wrong with it, not a traceback."""
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", *options]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert finished.returncode == 2
    assert reason in finished.stderr.splitlines()[-1]
