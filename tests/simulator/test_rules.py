"""What the simulator refuses, beside what it just accepts."""

from typing import Any

import httpx
import pytest

from halo_provider.simulator import Simulator

ENTRY = {"label": "Partnership Application", "type": "custom", "value": {"company": "Example Ltd"}}


def traits_of_size(size: int) -> dict[str, str]:
    """Traits of exactly so many bytes of compact JSON, mostly in two-byte characters."""
    frame = len('{"note":""}')
    return {"note": "é" * ((size - frame) // 2) + "e" * ((size - frame) % 2)}


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("/chat", {"message": "x" * 10_000}),
    ("/chat", {"message": "Hello", "user_id": "anonymous", "mode": "livehelp", "agent_id": "agent_7"}),
    ("/chat", {"message": "Hello", "images": ["https://example.com/a.png"], "behavioral_data": {"pages": 3}}),
    ("/chat", {"message": "Hello", "conversation_history": [{"role": "user"}] * 50}),
    ("/chat", {"message": "Hello", "custom_fields": {"note": "é" * 9_989}}),
    ("/chat", {"message": "Hello", "context": {"application": ENTRY, "plain": {"label": "Plan", "value": None}}}),
    ("/users/identify", {"user_id": "user-1", "traits": {"renewal_status": "at_risk", "mrr": 120}}),
    ("/users/identify", {"user_id": "user-1", "traits": traits_of_size(19_998)}),
    ("/companies/identify", {"company_id": "company-1", "user_id": "user-1", "context": {"source": "crm"}}),
    ("/companies/identify", {"company_id": "company-1", "traits": traits_of_size(49_998)}),
    ("/tickets/create", {"email": "ada@example.com", "subject": "x" * 1_000, "message": "x" * 50_000}),
    ("/tickets/create", {"user_id": "user-1", "subject": "Help", "metadata": traits_of_size(50_000)}),
    ("/events", {"events": [{"event_type": "click", "metadata": traits_of_size(10_000)}] * 100}),
]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/chat", {}, "message is required"),
    ("/chat", {"message": "  "}, "message must not be empty"),
    ("/chat", {"message": 7}, "message must be text"),
    ("/chat", {"message": "x" * 10_001}, "message must be at most 10,000 characters"),
    ("/chat", {"message": "Hello", "user_id": None}, "user_id must be text"),
    ("/chat", {"message": "Hello", "userId": "user-1"}, "unknown field userId"),
    ("/chat", {"message": "Hello", "mode": "fax"}, "mode must be one of chat, voice, video, livehelp"),
    ("/chat", {"message": "Hello", "images": "a.png"}, "images must be a list"),
    ("/chat", {"message": "Hello", "custom_fields": {"note": "é" * 9_990}}, "custom_fields must be at most"),
    ("/chat", {"message": "Hello", "behavioral_data": "x" * 4_999}, "behavioral_data must be at most"),
    ("/chat", {"message": "Hello", "conversation_history": [{}] * 51}, "conversation_history must have at most 50"),
    ("/chat", {"message": "Hello", "context": [ENTRY]}, "context must be an object"),
    ("/chat", {"message": "Hello", "context": {"plan": "Growth"}}, "context.plan must be an object"),
    ("/chat", {"message": "Hello", "context": {"plan": {"label": "Plan"}}}, "context.plan.value is required"),
    (
        "/chat",
        {"message": "Hello", "context": {"plan": {"label": "", "value": 1}}},
        "context.plan.label must not be empty",
    ),
    ("/chat", {"message": "Hello", "context": {"plan": {**ENTRY, "type": "form"}}}, "context.plan.type must be one of"),
    ("/chat", {"message": "Hello", "context": {"plan": {**ENTRY, "title": "x"}}}, "unknown field context.plan.title"),
    ("/chat", {"message": "Hello", "session_id": "sess_of_my_own"}, "session_id is unknown"),
    ("/users/identify", {"traits": {}}, "user_id is required"),
    ("/users/identify", {"user_id": ""}, "user_id must not be empty"),
    ("/users/identify", {"user_id": "user-1", "traits": []}, "traits must be an object"),
    (
        "/users/identify",
        {"user_id": "user-1", "traits": {"last_seen": "2026-01-01"}},
        "traits.last_seen is managed by the system",
    ),
    (
        "/users/identify",
        {"user_id": "user-1", "traits": {"company_id": "company-1"}},
        "traits.company_id is managed by the system",
    ),
    ("/users/identify", {"user_id": "user-1", "traits": {"renewal_status": "sad"}}, "traits.renewal_status must be"),
    ("/users/identify", {"user_id": "user-1", "traits": {"contract_term": "daily"}}, "traits.contract_term must be"),
    ("/users/identify", {"user_id": "user-1", "traits": {"signed_up_at": "May"}}, "traits.signed_up_at must be an ISO"),
    (
        "/users/identify",
        {"user_id": "user-1", "traits": traits_of_size(19_990), "context": {"page": "a"}},
        "traits and context must be at most 20,000 bytes",
    ),
    ("/users/update", {"users": [], "user_token": "x"}, "users must not be empty"),
    ("/users/update", {"users": [{"user_id": "user-1"}] * 1_001}, "users must have at most 1,000 items"),
    ("/users/update", {"users": [{"user_id": "user-1"}], "user_id": "user-1"}, "unknown field user_id"),
    ("/users/update", {"users": [{"user_id": "user-1"}, {"traits": {}}]}, "users[1].user_id is required"),
    (
        "/users/update",
        {"users": [{"user_id": "user-1", "traits": {"first_seen": "2026-01-01"}}]},
        "users[0].traits.first_seen is managed by the system",
    ),
    ("/users/update", {"user_id": "user-1", "update_only": "yes"}, "update_only must be true or false"),
    ("/companies/identify", {"user_id": "user-1"}, "company_id is required"),
    (
        "/companies/identify",
        {"company_id": "company-1", "traits": {"health_score": 9}},
        "traits.health_score is managed by the system",
    ),
    (
        "/companies/identify",
        {"company_id": "company-1", "traits": {"payment_terms": "never"}},
        "traits.payment_terms must be",
    ),
    ("/companies/identify", {"company_id": "company-1", "traits": traits_of_size(49_999)}, "at most 50,000 bytes"),
    ("/tickets/create", {"subject": "Help"}, "user_id or email is required"),
    ("/tickets/create", {"email": "ada@example.com"}, "subject is required"),
    ("/tickets/create", {"email": "ada@example.com", "subject": "x" * 1_001}, "subject must be at most 1,000"),
    ("/tickets/create", {"email": "ada@example.com", "subject": "Help", "source": "x" * 51}, "source must be at most"),
    ("/events", {"events": [{"event_type": "click"}] * 101}, "events must have at most 100 items"),
    ("/events", {"events": [{"page_url": "https://example.com"}]}, "events[0].event_type is required"),
    ("/events", {"events": [{"event_type": "click", "metadata": traits_of_size(10_001)}]}, "at most 10,000 bytes"),
]


@pytest.mark.parametrize(("path", "body"), ACCEPTED)
def test_what_the_documentation_allows_is_accepted(halo: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """Values at the documented limits are accepted."""
    answer = halo.post(path, json=body)

    assert (answer.status_code, answer.json().get("error")) == (200, None)


@pytest.mark.parametrize(("path", "body", "message"), REFUSED)
def test_what_the_documentation_forbids_is_refused(
    halo: httpx.Client, simulator: Simulator, path: str, body: dict[str, Any], message: str
) -> None:
    """One step over a limit, a wrong name or type: 400, an error that names the field, and nothing is accepted."""
    answer = halo.post(path, json=body)

    assert (answer.status_code, answer.json().keys()) == (400, {"error"})
    assert message in answer.json()["error"]
    assert (simulator.chats, simulator.users, simulator.companies, simulator.tickets) == ([], {}, {}, [])
    assert not simulator.requests[-1].accepted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"message": ',
        b'{"message": NaN}',
        b'{"message": "\xff"}',
        b'{"message": "\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_anything_but_a_json_object_is_refused(halo: httpx.Client, content: bytes) -> None:
    """Broken JSON, NaN, broken Unicode and JSON that is no object are 400."""
    answer = halo.post("/chat", content=content, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400


def test_a_paired_surrogate_escape_is_text(halo: httpx.Client, simulator: Simulator) -> None:
    """An escaped emoji is good JSON."""
    halo.post("/chat", content=b'{"message": "\\ud83d\\ude00"}', headers={"Content-Type": "application/json"})

    assert simulator.chats[0].message == "😀"


def test_a_body_that_is_not_called_json_is_refused(halo: httpx.Client) -> None:
    """The content type must be application/json."""
    assert halo.post("/chat", content=b'{"message": "Hello"}').status_code == 400


@pytest.mark.parametrize("authorization", [None, "Bearer ab_live_example_other", "ab_live_example_widget_key"])
def test_a_missing_or_wrong_widget_key_is_refused(
    halo: httpx.Client, simulator: Simulator, authorization: str | None
) -> None:
    """Without the right bearer key the answer is 401 and nothing is accepted."""
    del halo.headers["Authorization"]
    headers = {} if authorization is None else {"Authorization": authorization}

    answer = halo.post("/chat", json={"message": "Hello"}, headers=headers)

    assert (answer.status_code, answer.json().keys()) == (401, {"error"})
    assert (simulator.chats, simulator.requests[0].authorized) == ([], False)


def test_an_unknown_endpoint_and_another_method_are_refused(halo: httpx.Client) -> None:
    """404 and 405, both with an error in JSON."""
    answers = [halo.post("/chats", json={}), halo.get("/chat")]

    assert [(answer.status_code, [*answer.json()]) for answer in answers] == [(404, ["error"]), (405, ["error"])]
