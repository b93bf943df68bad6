"""What Halo's documentation leaves open about its answers, as the simulator plays it."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from halo_provider.simulator import Answers, Simulator
from halo_provider.simulator.__main__ import parser
from halo_provider.simulator.search import Query

Served = Callable[..., tuple[Simulator, httpx.Client]]
ESCALATION = "Please create a support ticket."


def test_unknown_session_is_refused_unless_told_otherwise(halo: httpx.Client) -> None:
    """The strict answer comes first: a client that makes ids up must not find that out in production."""
    answer = halo.post("/chat", json={"message": "Hello.", "session_id": "mine"})

    assert answer.status_code == 400
    assert "unknown" in answer.json()["error"]


def test_unknown_session_begins_one_and_continues_it(served: Served) -> None:
    """Two chats with an id of the client's own are one conversation of the user, which reading finds, too."""
    simulator, halo = served(accept_unknown_sessions=True)

    answers = [
        halo.post("/chat", json={"message": "Hello.", "session_id": "mine", "user_id": "user-1"}).json()
        for _ in range(2)
    ]

    assert [answer["session_id"] for answer in answers] == ["mine", "mine"]
    assert len(simulator.sessions["mine"].chats) == 2
    assert len(simulator.library.conversations(Query(user="user-1"))) == 1


def test_unknown_session_is_replaced(served: Served) -> None:
    """Halo may take the chat and give it a session of its own; one that it knows is continued."""
    _, halo = served(answers=Answers(replace_unknown_sessions=True))

    first = halo.post("/chat", json={"message": "Hello.", "session_id": "mine"}).json()["session_id"]
    second = halo.post("/chat", json={"message": "Hello.", "session_id": first}).json()["session_id"]

    assert first != "mine"
    assert second == first


def test_ticket_is_named_in_the_answer_of_its_chat_only(served: Served) -> None:
    """The chat that made it, and the one that was merged into it; not the one in between."""
    simulator, halo = served(answers=Answers(name_tickets=True))

    answers = [
        halo.post("/chat", json={"message": message, "user_id": "user-1"}).json()
        for message in (ESCALATION, "Thank you.", ESCALATION)
    ]

    (ticket,) = simulator.tickets
    assert [answer.get("ticket_id") for answer in answers] == [ticket.ticket_id, None, ticket.ticket_id]


def test_rate_headers_count_every_answer(served: Served) -> None:
    """Also that of a request which is refused; and nothing is limited."""
    _, halo = served(answers=Answers(rate_limit=2), clock=lambda: 30.0)

    answers = [halo.post("/events", json=body) for body in ({"events": []}, {}, {"events": []})]

    assert [answer.status_code for answer in answers] == [200, 400, 200]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
    assert {(answer.headers["X-RateLimit-Limit"], answer.headers["X-RateLimit-Reset"]) for answer in answers} == {
        ("2", "31")
    }


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ("error", {"error": "message is required"}),
        ("message", {"message": "message is required"}),
        ("nested", {"error": {"message": "message is required", "code": 400}}),
    ],
)
def test_error_has_the_shape_that_was_chosen(served: Served, shape: Any, body: dict[str, Any]) -> None:
    """None of them is documented, so a client must read each."""
    _, halo = served(answers=Answers(error_shape=shape))

    answer = halo.post("/chat", json={})

    assert (answer.status_code, answer.json()) == (400, body)


def test_error_may_be_plain_text(served: Served) -> None:
    """As proxies answer."""
    _, halo = served(answers=Answers(error_shape="text"))

    answer = halo.post("/chat", json={})

    assert answer.text == "message is required"
    assert answer.headers["content-type"].startswith("text/plain")


def test_large_body_is_refused(served: Served) -> None:
    """By its bytes, before anything in it is looked at."""
    _, halo = served(answers=Answers(largest_body=100))

    assert halo.post("/chat", json={"message": "x" * 100}).status_code == 413
    assert halo.post("/chat", json={"message": "x"}).status_code == 200


def test_command_line_takes_both() -> None:
    """As JSON, like the limit and the reading."""
    chosen = parser().parse_args(["--accept-unknown-sessions", "--answers", '{"error_shape": "nested"}'])

    assert chosen.accept_unknown_sessions is True
    assert chosen.answers == Answers(error_shape="nested")
