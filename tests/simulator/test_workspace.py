"""What accepted requests do to users, companies, sessions and tickets."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest

from halo_provider.simulator import Simulator

IDENTITY_SECRET = "ha_secret_example_" + "0" * 32
CONTEXT = {"application": {"label": "Partnership Application", "value": {"company": "Example Ltd"}}}
Served = Callable[..., tuple[Simulator, httpx.Client]]


def chat(halo: httpx.Client, **body: Any) -> dict[str, Any]:
    """Send a chat that must be accepted, and return the answer."""
    answer = halo.post("/chat", json={"message": "Please review.", **body})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def update(halo: httpx.Client, **body: Any) -> dict[str, Any]:
    """Send a bulk update that must be accepted, and return the answer."""
    claims = {"scope": "users.update", "exp": int(time.time()) + 60}
    answer = halo.post("/users/update", json={**body, "user_token": jwt.encode(claims, IDENTITY_SECRET)})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def test_identify_merges_traits_and_marks_the_user_seen_now(halo: httpx.Client, simulator: Simulator) -> None:
    """New keys win, old ones stay, every call counts as activity."""
    halo.post("/users/identify", json={"user_id": "user-1", "traits": {"name": "Ada", "plan": "Starter"}})
    halo.post("/users/identify", json={"user_id": "user-1", "traits": {"plan": "Growth"}})

    user = simulator.users["user-1"]
    assert user.traits == {"name": "Ada", "plan": "Growth"}
    assert user.automation_enrolments == 2
    assert user.last_seen is not None
    assert datetime.now(UTC) - user.last_seen < timedelta(seconds=5)


def test_bulk_update_never_touches_when_a_user_was_seen(served: Served) -> None:
    """Traits change; first_seen, last_seen and automations do not."""
    simulator, halo = served(identity_secret=IDENTITY_SECRET)
    halo.post("/users/identify", json={"user_id": "user-1"})
    user = simulator.users["user-1"]
    seen = (user.first_seen, user.last_seen)

    update(halo, users=[{"user_id": "user-1", "traits": {"plan": "Growth", "signed_up_at": "2020-01-01"}}])

    assert user.traits["plan"] == "Growth"
    assert (user.first_seen, user.last_seen, user.automation_enrolments) == (*seen, 1)


def test_bulk_update_dates_new_users_by_their_signing_up(served: Served) -> None:
    """A new user's first_seen is signed_up_at, and nobody has seen them live."""
    simulator, halo = served(identity_secret=IDENTITY_SECRET)

    update(halo, user_id="user-1", traits={"signed_up_at": "2020-01-01T00:00:00Z"})

    user = simulator.users["user-1"]
    assert (user.first_seen, user.last_seen, user.automation_enrolments) == (datetime(2020, 1, 1, tzinfo=UTC), None, 0)


def test_bulk_update_counts_what_it_did(served: Served) -> None:
    """Created, updated and, with update_only, skipped users are counted apart."""
    simulator, halo = served(identity_secret=IDENTITY_SECRET)

    first = update(halo, users=[{"user_id": "user-1"}, {"user_id": "user-2"}])
    second = update(halo, users=[{"user_id": "user-2"}, {"user_id": "user-3"}], update_only=True)

    assert first == {"success": True, "created": 2, "updated": 0, "skipped": 0}
    assert second == {"success": True, "created": 0, "updated": 1, "skipped": 1}
    assert [*simulator.users] == ["user-1", "user-2"]


def test_company_collects_traits_and_users(halo: httpx.Client, simulator: Simulator) -> None:
    """Traits merge, and each user named is linked."""
    halo.post("/companies/identify", json={"company_id": "company-1", "user_id": "user-1", "traits": {"name": "A"}})
    halo.post("/companies/identify", json={"company_id": "company-1", "user_id": "user-2", "traits": {"plan": "B"}})

    company = simulator.companies["company-1"]
    assert (company.traits, company.user_ids) == ({"name": "A", "plan": "B"}, {"user-1", "user-2"})


def test_chat_answers_with_ids_and_more(halo: httpx.Client, simulator: Simulator) -> None:
    """The answer has the documented fields and one that is not documented."""
    answer = chat(halo, user_id="user-1", agent_id="agent_7")

    assert answer.keys() == {"text", "session_id", "agent_id", "message_id"}
    assert answer["agent_id"] == "agent_7"
    assert answer["session_id"] in simulator.sessions


def test_chat_is_recorded_as_it_came(halo: httpx.Client, simulator: Simulator) -> None:
    """Tests can see who asked what, in which session and when."""
    answer = chat(halo, user_id="user-1", company_id="company-1", context=CONTEXT, custom_fields={"mrr": 7})

    recorded = simulator.chats[0]
    assert (recorded.user_id, recorded.company_id, recorded.message) == ("user-1", "company-1", "Please review.")
    assert (recorded.context, recorded.custom_fields) == (CONTEXT, {"mrr": 7})
    assert (recorded.session_id, recorded.agent_id) == (answer["session_id"], "agent_default")
    assert recorded.ended is not None
    assert recorded.started <= recorded.ended


def test_chat_does_not_change_last_seen(halo: httpx.Client, simulator: Simulator) -> None:
    """Only identify calls count as activity."""
    halo.post("/users/identify", json={"user_id": "user-1"})
    seen = simulator.users["user-1"].last_seen

    chat(halo, user_id="user-1")

    assert simulator.users["user-1"].last_seen == seen


def test_session_continues_under_its_id(halo: httpx.Client, simulator: Simulator) -> None:
    """A known session_id adds to the conversation, none begins another."""
    session_id = chat(halo, user_id="user-1")["session_id"]

    assert chat(halo, user_id="user-1", session_id=session_id)["session_id"] == session_id
    assert chat(halo, user_id="user-1")["session_id"] != session_id
    assert len(simulator.sessions[session_id].chats) == 2


def test_session_of_another_user_is_refused(halo: httpx.Client) -> None:
    """A client that mixes up its users' sessions is told."""
    session_id = chat(halo, user_id="user-1")["session_id"]

    answer = halo.post("/chat", json={"message": "Hello", "user_id": "user-2", "session_id": session_id})

    assert answer.status_code == 400


def test_session_id_that_halo_did_not_make_is_refused(halo: httpx.Client, simulator: Simulator) -> None:
    """The strict answer to what is not documented."""
    answer = halo.post("/chat", json={"message": "Please review.", "session_id": "mine"})

    assert answer.status_code == 400
    assert simulator.sessions == {}


def test_simulator_can_take_session_ids_that_it_did_not_make(served: Served) -> None:
    """The other answer: the first message begins the session, and it stays its user's."""
    simulator, halo = served(accept_unknown_sessions=True)

    sessions = [chat(halo, user_id="user-1", session_id="mine")["session_id"] for _ in range(2)]
    other = halo.post("/chat", json={"message": "Please review.", "user_id": "user-2", "session_id": "mine"})

    assert (sessions, other.status_code) == (["mine", "mine"], 400)
    assert [each.user_id for each in simulator.sessions.values()] == ["user-1"]


def test_identify_links_an_orphaned_session_and_its_ticket(halo: httpx.Client, simulator: Simulator) -> None:
    """What an anonymous visitor said belongs to the user they turn out to be."""
    session_id = chat(halo, context=CONTEXT)["session_id"]

    halo.post("/users/identify", json={"user_id": "user-1", "session_id": session_id})

    assert simulator.sessions[session_id].user_id == "user-1"
    assert simulator.tickets[0].user_id == "user-1"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"message": "Thank you for the demo."}, None),
        ({"message": "The export fails since Monday."}, "triage"),
        ({"message": "New application.", "context": CONTEXT}, "triage"),
        ({"message": "I NEED HUMAN HELP, now."}, "asked for a human"),
        ({"message": "Please create a support ticket.", "context": CONTEXT}, "asked for a human"),
        ({"message": "…please escalate this!"}, "asked for a human"),
    ],
)
def test_ticket_is_made_when_one_is_needed(
    halo: httpx.Client, simulator: Simulator, body: dict[str, Any], reason: str | None
) -> None:
    """Context, a problem or asking for a human makes a ticket; small talk does not."""
    chat(halo, user_id="user-1", **body)

    assert [ticket.reason for ticket in simulator.tickets] == ([reason] if reason else [])


def test_escalations_of_a_user_merge_into_the_open_ticket(halo: httpx.Client, simulator: Simulator) -> None:
    """While a user has an open ticket there is no other; other users have their own."""
    for user_id in ("user-1", "user-2", "user-1"):
        chat(halo, user_id=user_id, context=CONTEXT)

    assert [(ticket.user_id, len(ticket.chats)) for ticket in simulator.tickets] == [("user-1", 2), ("user-2", 1)]
    assert simulator.merged_escalations == 1


def test_escalation_after_closing_makes_a_new_ticket(halo: httpx.Client, simulator: Simulator) -> None:
    """A closed ticket takes nothing more."""
    chat(halo, user_id="user-1", context=CONTEXT)
    simulator.set_ticket_status("resolved", ticket_id=simulator.tickets[0].ticket_id)

    chat(halo, user_id="user-1", context=CONTEXT)

    assert len(simulator.tickets) == 2


def test_anonymous_sessions_have_their_own_tickets(halo: httpx.Client, simulator: Simulator) -> None:
    """Two unknown people are not one user."""
    first = chat(halo, user_id="anonymous", context=CONTEXT)
    chat(halo, context=CONTEXT)
    chat(halo, session_id=first["session_id"], context=CONTEXT)

    assert [len(ticket.chats) for ticket in simulator.tickets] == [2, 1]


def test_created_ticket_belongs_to_the_user_found(halo: httpx.Client, simulator: Simulator) -> None:
    """A user is found by user_id, then by email, else created."""
    halo.post("/users/identify", json={"user_id": "user-1", "traits": {"email": "ada@example.com"}})

    answers = [
        halo.post("/tickets/create", json={"subject": "Help", **whose}).json()["user_id"]
        for whose in ({"user_id": "user-1"}, {"email": "ada@example.com"}, {"email": "bo@example.com", "name": "Bo"})
    ]

    assert answers[:2] == ["user-1", "user-1"]
    assert simulator.users[answers[2]].traits == {"email": "bo@example.com", "name": "Bo"}


def test_created_ticket_keeps_what_it_was_given(halo: httpx.Client, simulator: Simulator) -> None:
    """The source is "api" and the priority normal unless the request says otherwise."""
    halo.post("/tickets/create", json={"user_id": "user-1", "subject": "Help"})
    halo.post("/tickets/create", json={"user_id": "user-1", "subject": "Help", "source": "crm", "priority": "priority"})

    assert [(ticket.source, ticket.priority) for ticket in simulator.tickets] == [
        ("api", "normal"),
        ("crm", "priority"),
    ]


def test_events_are_kept(halo: httpx.Client, simulator: Simulator) -> None:
    """An event is accepted and can be looked at."""
    answer = halo.post("/events", json={"events": [{"event_type": "click"}], "user_id": "user-1"})

    assert (answer.json(), simulator.events) == ({"success": True}, [{"event_type": "click"}])
