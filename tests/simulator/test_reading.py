"""Halo's MCP server: JSON-RPC, tools in every variant, what they find, and what goes wrong on order."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from halo_provider.simulator import (
    EXAMPLE_WIDGET_KEY,
    ConcurrencyLimit,
    Fault,
    FixedWindow,
    Reading,
    Simulator,
    WrongResult,
)
from tests.simulator.programs import Program

MESSAGE = "Please escalate this.\n\n  Two  lines. "
CONTEXT = {"reference": {"label": "Reference", "value": "row-1"}}
VARIANTS = ["structured", "text", "paged"]
# How each variant is asked for a user's conversations and tickets, for one of them, and for a text.
BY_USER: dict[str, Callable[[str], dict[str, Any]]] = {
    "structured": lambda user_id: {"user_id": user_id},
    "text": lambda user_id: {"customerId": user_id},
    "paged": lambda user_id: {"filter": {"contact_id": user_id}},
}
BY_TEXT: dict[str, Callable[[str], dict[str, Any]]] = {
    "structured": lambda text: {"query": text},
    "text": lambda text: {"searchText": text},
    "paged": lambda text: {"filter": {"contains": text}},
}
SESSION_KEY = {"structured": "session_id", "text": "conversationId", "paged": "id"}
TICKET_KEY = {"structured": "ticket_id", "text": "ticketId", "paged": "id"}
SINCE: dict[str, Callable[[datetime], dict[str, Any]]] = {
    "structured": lambda moment: {"since": moment.isoformat()},
    "text": lambda moment: {"fromTimestamp": int(moment.timestamp() * 1000)},
    "paged": lambda moment: {"filter": {"updated_after": moment.isoformat()}},
}


@pytest.fixture
def reader(program: Program) -> Program:
    """A program that is signed in."""
    return program.sign_in()


def chat(halo: httpx.Client, message: str = MESSAGE, *, user_id: str = "user-1", **other: Any) -> str:
    """Send a message, and return its session."""
    answer = halo.post("/chat", json={"message": message, "user_id": user_id, **other})
    session_id: str = answer.json()["session_id"]
    return session_id


def set_variant(simulator: Simulator, variant: str, **other: Any) -> None:
    """Choose a variant, and what else is given."""
    simulator.reading = Reading.model_validate({"variant": variant, **other})


def records(answer: Any) -> list[dict[str, Any]]:
    """Return the list in an answer."""
    (found,) = [value for value in answer.values() if isinstance(value, list)]
    return list(found)


def sessions(reader: Program, variant: str, **arguments: Any) -> list[str]:
    """Search conversations, and return their ids."""
    found = records(reader.call("data_search_transcripts", **arguments))
    return [each[SESSION_KEY[variant]] for each in found]


def test_server_introduces_itself(reader: Program) -> None:
    """The version of the protocol, and that it has tools."""
    hello = reader.rpc("initialize", {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {}})

    assert hello["protocolVersion"] == "2025-03-26"
    assert "tools" in hello["capabilities"]


def test_notification_gets_no_answer(reader: Program) -> None:
    """202, without a body."""
    headers = {
        "Authorization": f"Bearer {reader.tokens['access_token']}",
        "Accept": "application/json, text/event-stream",
    }
    answer = reader.web.post(
        "/api/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers
    )

    assert (answer.status_code, answer.content) == (202, b"")


@pytest.mark.parametrize(
    ("method", "parameters", "code"),
    [
        ("resources/list", {}, -32601),
        ("initialize", {}, -32602),
        ("tools/list", {"cursor": "made up"}, -32602),
        ("tools/call", {"name": "data_delete_user", "arguments": {}}, -32602),
        ("tools/call", {"name": "data_get_ticket", "arguments": {}}, -32602),
        ("tools/call", {"name": "data_get_ticket", "arguments": {"ticket_id": 1}}, -32602),
        ("tools/call", {"name": "data_search_tickets", "arguments": {"customerId": "user-1"}}, -32602),
        ("tools/call", {"name": "data_search_tickets", "arguments": {"since": "2026-11-01"}}, -32602),
        ("tools/call", {"name": "data_search_tickets", "arguments": []}, -32602),
    ],
)
def test_wrong_calls_are_errors_of_json_rpc(
    reader: Program, method: str, parameters: dict[str, Any], code: int
) -> None:
    """Unknown methods and tools, and arguments that the schema does not have."""
    answer = reader.post(method, parameters)

    assert (answer.status_code, answer.json()["error"]["code"]) == (200, code)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', {}, 400),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', {}, 400),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}', {"Content-Type": "text/plain"}, 415),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}', {"Accept": "application/json"}, 406),
    ],
)
def test_what_is_no_message_is_refused(reader: Program, content: bytes, headers: dict[str, str], status: int) -> None:
    """By HTTP's status."""
    given = {
        "Authorization": f"Bearer {reader.tokens['access_token']}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }

    assert reader.web.post("/api/mcp", content=content, headers=given | headers).status_code == status


@pytest.mark.parametrize("variant", [*VARIANTS, "prose"])
def test_tools_are_listed_with_their_schemas(simulator: Simulator, reader: Program, variant: str) -> None:
    """In every variant the documented names, each with a schema of an object, on as many pages as there are."""
    set_variant(simulator, variant)
    tools: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    pages = 0
    while pages == 0 or cursor:
        listed = reader.rpc("tools/list", cursor)
        tools += listed["tools"]
        cursor = {"cursor": listed["nextCursor"]} if "nextCursor" in listed else {}
        pages += 1

    assert {"data_find_user", "data_search_transcripts", "data_get_transcript", "data_search_tickets"} <= {
        tool["name"] for tool in tools
    }
    assert len({tool["name"] for tool in tools}) == len(tools)
    assert all(tool["inputSchema"]["type"] == "object" and tool["inputSchema"]["properties"] for tool in tools)
    assert pages == (2 if variant == "paged" else 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_conversations_are_found_by_user_text_and_time(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str
) -> None:
    """The newest first, and nothing that does not meet the condition."""
    set_variant(simulator, variant)
    began = datetime.now(UTC)
    first = chat(halo)
    chat(halo, user_id="user-2")
    second = chat(halo, "Another matter")
    later = datetime.now(UTC) + timedelta(hours=1)

    assert sessions(reader, variant, **BY_USER[variant]("user-1")) == [second, first]
    assert sessions(reader, variant, **BY_USER[variant]("nobody")) == []
    assert sessions(reader, variant, **BY_TEXT[variant]("ANOTHER  matter")) == [second]
    assert len(sessions(reader, variant, **SINCE[variant](began))) == 3
    assert sessions(reader, variant, **SINCE[variant](later)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_conversation_has_its_messages(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str
) -> None:
    """The message as it was sent, and the reply; the context where the variant has one."""
    set_variant(simulator, variant)
    session_id = chat(halo, context=CONTEXT)
    shown = json.dumps(reader.call("data_get_transcript", **{SESSION_KEY[variant]: session_id}))

    assert json.dumps(MESSAGE) in shown
    assert simulator.chats[0].reply in shown
    assert ("row-1" in shown) == (variant != "text")
    assert ("row-1" in json.dumps(reader.call("data_search_transcripts"))) == (variant == "structured")


@pytest.mark.parametrize(
    ("variant", "nothing"), [("structured", {"found": False}), ("text", None), ("paged", {"data": None})]
)
def test_unknown_id_is_told_in_each_variants_own_way(
    simulator: Simulator, reader: Program, variant: str, nothing: object
) -> None:
    """There is no such conversation, nor such a ticket."""
    set_variant(simulator, variant)

    assert reader.call("data_get_transcript", **{SESSION_KEY[variant]: "sess_unknown"}) == nothing
    assert reader.call("data_get_ticket", **{TICKET_KEY[variant]: "ticket_1"}) == nothing


def test_searches_of_text_variant_go_by_the_start(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """A later message in an old session is found by `structured`, and not by `text`."""
    session_id = chat(halo)
    simulator.chats[0].received_at -= timedelta(days=1)
    began = datetime.now(UTC)
    chat(halo, "More of it", session_id=session_id)

    assert sessions(reader, "structured", **SINCE["structured"](began)) == [session_id]
    set_variant(simulator, "text")
    assert sessions(reader, "text", **SINCE["text"](began)) == []


def test_users_and_companies_are_found(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """By id, by e-mail and by words of their traits."""
    halo.post("/users/identify", json={"user_id": "user-1", "traits": {"email": "a@example.com", "name": "Ada"}})
    halo.post("/companies/identify", json={"company_id": "company-1", "user_id": "user-1", "traits": {"name": "Acme"}})

    assert reader.call("data_find_user", user_id="a@example.com")["user"]["external_id"] == "user-1"
    assert reader.call("data_find_user", user_id="nobody") == {"found": False}
    assert [user["external_id"] for user in records(reader.call("data_search_users", query="ada"))] == ["user-1"]
    assert reader.call("data_find_company", company_id="company-1")["company"]["team_size"] == 1
    assert records(reader.call("data_search_companies", query="nothing")) == []
    for variant, user in (("text", "customerId"), ("paged", "id")):
        set_variant(simulator, variant)
        assert "user-1" in json.dumps(reader.call("data_find_user", **{user: "user-1"}))
        assert "Acme" in json.dumps(reader.call("data_search_companies"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_cursor_or_offset_leads_through_all_conversations(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str
) -> None:
    """Each is seen once, also when others come meanwhile; `text` says only that there is more."""
    set_variant(simulator, variant, page_size=2)
    made = [chat(halo, f"Message {number}") for number in range(5)]
    answer = reader.call("data_search_transcripts")
    seen = [each[SESSION_KEY[variant]] for each in records(answer)]
    if variant == "text":
        assert (seen, answer["truncated"]) == (made[:2:-1], True)
        return
    if variant == "paged":
        chat(halo, "Meanwhile")
    while answer.get("has_more") or answer.get("page_info", {}).get("has_next_page"):
        following = {"offset": len(seen)} if variant == "structured" else {"cursor": answer["page_info"]["end_cursor"]}
        answer = reader.call("data_search_transcripts", **following)
        seen += [each[SESSION_KEY[variant]] for each in records(answer)]

    assert seen == made[::-1]


def test_limit_makes_a_page_smaller_and_never_larger(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """The server's own size is the most."""
    set_variant(simulator, "structured", page_size=3)
    for _ in range(5):
        chat(halo)

    assert [len(sessions(reader, "structured", limit=limit)) for limit in (2, 100)] == [2, 3]


def test_prose_is_for_people(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """Markdown that has the conversation, and no JSON."""
    set_variant(simulator, "prose")
    session_id = chat(halo)
    today = datetime.now(UTC).date().isoformat()
    result = reader.rpc(
        "tools/call", {"name": "data_search_transcripts", "arguments": {"user": "user-1", "after": today}}
    )

    assert result["content"][0]["text"].startswith("# ")
    assert session_id in result["content"][0]["text"]
    assert "structuredContent" not in result


def test_answers_can_be_events(simulator: Simulator, reader: Program) -> None:
    """As the protocol allows."""
    simulator.reading = Reading(event_stream=True)
    answer = reader.post("ping")

    assert answer.headers["Content-Type"] == "text/event-stream"
    assert json.loads(answer.text.partition("data: ")[2])["result"] == {}


def test_conversation_is_found_after_its_lag(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """Neither it nor its ticket before; a later message of a session has a lag of its own."""
    simulator.reading = Reading(lag=10)
    session_id = chat(halo)
    early = sessions(reader, "structured"), records(reader.call("data_search_tickets"))
    simulator.advance(10)
    chat(halo, "More of it", session_id=session_id)

    assert early == ([], [])
    (found,) = records(reader.call("data_search_transcripts"))
    assert len(found["messages"]) == 2
    assert len(records(reader.call("data_search_tickets"))) == 1
    simulator.advance(10)
    assert len(reader.call("data_get_transcript", session_id=session_id)["transcript"]["messages"]) == 4


def test_lags_in_a_range_differ_and_stay(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """Each message has its own: at half time some are found, and at the end all."""
    simulator.reading = Reading(lag=(0, 1_000))
    for _ in range(40):
        chat(halo)
    numbers = []
    for _ in range(2):
        simulator.advance(500)
        numbers.append(reader.call("data_search_transcripts")["total"])

    assert 0 < numbers[0] < numbers[1] == 40


@pytest.mark.parametrize(
    ("white_space", "expected"),
    [
        ("kept", MESSAGE),
        ("trimmed", "Please escalate this.\n\n  Two  lines."),
        ("collapsed", "Please escalate this. Two lines."),
        ("lines", "Please escalate this. \r\n \r\n  Two  lines. \r\n"),
    ],
)
def test_white_space_of_messages_may_change(
    halo: httpx.Client, simulator: Simulator, reader: Program, white_space: str, expected: str
) -> None:
    """What Halo does to it is not documented."""
    set_variant(simulator, "structured", white_space=white_space)
    chat(halo)

    (found,) = records(reader.call("data_search_transcripts"))
    assert found["messages"][0]["content"] == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_tickets_are_consolidated_and_followed_to_their_end(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str
) -> None:
    """Two sessions are in one ticket; once it is resolved the next escalation makes another."""
    set_variant(simulator, variant)
    first, second = chat(halo), chat(halo)
    halo.post("/chat", json={"message": "Thanks", "user_id": "user-3"})
    opened = reader.call("data_get_ticket", **{TICKET_KEY[variant]: "ticket_1"})
    reader.web.post("/_simulator/tickets", json={"status": "resolved", "ticket_id": "ticket_1"})
    third = chat(halo)
    found = records(reader.call("data_search_tickets", **BY_USER[variant]("user-1")))
    resolved = json.dumps(reader.call("data_get_ticket", **{TICKET_KEY[variant]: "ticket_1"}))

    assert {each for each in (first, second) if each in json.dumps(opened)} == {first, second}
    assert "open" in json.dumps(opened).lower()
    assert "resolved" in resolved.lower()
    assert third not in resolved
    assert sorted(each[TICKET_KEY[variant]] for each in found) == ["ticket_1", "ticket_2"]
    assert records(reader.call("data_search_tickets", **BY_USER[variant]("user-3"))) == []


def test_tickets_are_found_by_session_and_status(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """Where the variant has these arguments; the session of a merged escalation leads to the ticket it is in."""
    chat(halo)
    merged = chat(halo)
    chat(halo, user_id="user-2")
    assert simulator.set_ticket_status("in_progress", ticket_id="ticket_1") == 1

    by_session = records(reader.call("data_search_tickets", session_id=merged))
    in_progress = records(reader.call("data_search_tickets", status="in_progress"))

    assert [each["ticket_id"] for each in by_session] == ["ticket_1"]
    assert [(each["ticket_id"], each["status"]) for each in in_progress] == [("ticket_1", "In Progress")]
    set_variant(simulator, "paged")
    found = records(reader.call("data_search_tickets", filter={"conversation_id": merged}))
    assert [each["id"] for each in found] == ["ticket_1"]


def test_all_tickets_can_be_resolved_at_once(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """Those that are neither resolved nor spam; an unknown one is a mistake."""
    for number in range(3):
        chat(halo, user_id=f"user-{number}")
    simulator.set_ticket_status("spam", ticket_id="ticket_2")

    answer = reader.web.post("/_simulator/tickets", json={"status": "resolved"})
    unknown = reader.web.post("/_simulator/tickets", json={"status": "resolved", "ticket_id": "ticket_9"})

    assert answer.json() == {"success": True, "changed": 2}
    assert [ticket.status for ticket in simulator.tickets] == ["resolved", "spam", "resolved"]
    assert simulator.tickets[0].resolved_at is not None
    assert unknown.status_code == 400


def test_switched_off_is_403(simulator: Simulator, reader: Program) -> None:
    """For every call, and the sign-in stays good."""
    simulator.reading = Reading(enabled=False)
    refused = reader.post("ping").status_code
    simulator.reading = Reading()

    assert (refused, reader.post("ping").status_code) == (403, 200)


def test_calls_have_a_limit_of_their_own(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """429 with Retry-After; messages are not counted, and the clock ends it."""
    simulator.reading = Reading(limit=FixedWindow(requests=2, seconds=60))
    chat(halo)
    answers = [reader.post("ping") for _ in range(3)]
    simulator.advance(60)

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["Retry-After"]) in range(1, 61)
    assert reader.post("ping").status_code == 200
    chat(halo)
    assert len(simulator.chats) == 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "wrong", [WrongResult.EMPTY, WrongResult.ANOTHER_USER, WrongResult.SIMILAR_MESSAGE, WrongResult.OLD_CONVERSATION]
)
def test_wrong_results_never_have_the_right_conversation(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str, wrong: WrongResult
) -> None:
    """One call is wrong, whatever it was asked; the next one is right again."""
    set_variant(simulator, variant)
    began = datetime.now(UTC)
    session_id = chat(halo, context=CONTEXT)
    other = chat(halo, user_id="user-2")
    simulator.script(path="/api/mcp/data_search_transcripts", faults=[Fault.wrong_result(wrong)])
    asked = BY_USER[variant]("user-1")
    if variant != "paged":
        asked |= SINCE[variant](began)

    answer = reader.call("data_search_transcripts", **asked)
    found = [each[SESSION_KEY[variant]] for each in records(answer)]

    expected = {
        WrongResult.EMPTY: [],
        WrongResult.ANOTHER_USER: [f"{session_id}_other", other],
        WrongResult.SIMILAR_MESSAGE: [f"{session_id}_similar"],
        WrongResult.OLD_CONVERSATION: [f"{session_id}_old"],
    }
    assert sorted(found) == sorted(expected[wrong])
    assert "row-1" not in json.dumps(answer) or wrong is WrongResult.ANOTHER_USER
    assert sessions(reader, variant, **asked) == [session_id]


@pytest.mark.parametrize("variant", VARIANTS)
def test_truncated_texts_are_the_first_half(
    halo: httpx.Client, simulator: Simulator, reader: Program, variant: str
) -> None:
    """Of the right conversation, for as long as that is ordered."""
    set_variant(simulator, variant)
    session_id = chat(halo)
    simulator.always("/api/mcp/data_get_transcript", Fault.wrong_result("truncated"))

    for _ in range(2):
        shown = json.dumps(reader.call("data_get_transcript", **{SESSION_KEY[variant]: session_id}), ensure_ascii=False)
        assert "Please escalate th…" in shown
        assert "lines" not in shown


def test_tool_fails_or_answers_what_nobody_can_read(simulator: Simulator, reader: Program) -> None:
    """In the protocol's own form."""
    orders = [Fault.wrong_result("tool_error"), Fault.wrong_result("unreadable")]
    simulator.script(path="/api/mcp/data_search_tickets", faults=orders)
    asked = {"name": "data_search_tickets", "arguments": {}}
    failed, unreadable = reader.rpc("tools/call", asked), reader.rpc("tools/call", asked)

    assert failed["isError"] is True
    assert unreadable["content"][0]["text"].startswith("<p>")


def test_faults_can_be_ordered_for_a_tool_a_user_or_every_call(
    halo: httpx.Client, simulator: Simulator, reader: Program
) -> None:
    """Over HTTP too: those for a user come first, then those for the tool, then those for the server."""
    chat(halo)
    orders: list[dict[str, Any]] = [
        {"path": "/api/mcp", "faults": [{"kind": "status", "code": 503}]},
        {"path": "/api/mcp/data_search_transcripts", "faults": [{"kind": "status", "code": 401}]},
        {"path": "/api/mcp", "user_id": "user-1", "faults": [{"kind": "rate_limited", "retry_after": 7}]},
    ]
    answers = [reader.web.post("/_simulator/faults", json=order).status_code for order in orders]
    asked = {"name": "data_search_transcripts", "arguments": {"user_id": "user-1"}}
    statuses = [reader.post("tools/call", asked).status_code for _ in range(4)]

    assert answers == [200, 200, 200]
    assert statuses == [429, 401, 503, 200]
    assert simulator.counts()["/api/mcp/data_search_transcripts"] == {"429": 1, "401": 1, "503": 1, "200": 1}


def test_lost_and_broken_answers(simulator: Simulator, reader: Program) -> None:
    """The same faults as the SDK has."""
    simulator.script(path="/api/mcp/ping", faults=[Fault.garbage(), Fault.half_answer(), Fault.drop_after_acceptance()])

    for _ in range(3):
        with pytest.raises(httpx.RemoteProtocolError):
            reader.post("ping")
    simulator.script(path="/api/mcp/ping", faults=[Fault.invalid_json()])
    with pytest.raises(ValueError, match="Expecting"):
        reader.post("ping").json()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/api/mcp/data_search_ticket", Fault.garbage()),
        ("/chat", Fault.wrong_result("empty")),
        ("/oauth/token", Fault.wrong_result("empty")),
        ("/oauth/token", Fault.missing_session_id()),
    ],
)
def test_fault_that_cannot_happen_is_a_mistake(simulator: Simulator, path: str, fault: Fault) -> None:
    """A typo in a test does not go unnoticed."""
    with pytest.raises(ValueError, match=path if fault.kind != "garbage" else "no endpoint"):
        simulator.script(path=path, faults=[fault])


def test_latency_of_reads_is_their_own(simulator: Simulator, reader: Program) -> None:
    """A call takes at least its time."""
    simulator.reading = Reading(latency=0.05)
    reader.rpc("ping")

    record = simulator.reads[-1]
    assert record.ended is not None
    assert record.ended - record.started >= 0.05


def test_reads_are_recorded_apart_from_messages(halo: httpx.Client, simulator: Simulator, reader: Program) -> None:
    """With the tool, the user and the body, as Halo's audit log has them."""
    chat(halo)
    reader.call("data_search_tickets", user_id="user-1")

    record = simulator.reads[-1]
    assert (record.path, record.user_id, record.status) == ("/api/mcp/data_search_tickets", "user-1", 200)
    assert record.body is not None
    assert record.body["params"]["arguments"] == {"user_id": "user-1"}
    assert [each.path for each in simulator.requests] == ["/chat"]


def test_other_processes_set_reading_and_clock(simulator: Simulator, reader: Program) -> None:
    """What is ordered is in the state; what cannot be is refused; a reset returns to the first."""
    ordered = {"variant": "paged", "lag": [0, 10], "limit": {"kind": "token_bucket", "rate": 5}}
    answers = [
        reader.web.post("/_simulator/reading", json={"reading": ordered}).status_code,
        reader.web.post("/_simulator/reading", json={"reading": {"variant": "guessed"}}).status_code,
        reader.web.post("/_simulator/reading", json={"reading": {"lag": [10, 0]}}).status_code,
        reader.web.post("/_simulator/clock", json={"advance": -1}).status_code,
        reader.web.post("/_simulator/clock", json={"advance": 3600}).status_code,
    ]
    state = reader.web.get("/_simulator/state").json()

    assert answers == [200, 422, 422, 422, 200]
    assert (state["reading"]["variant"], state["reading"]["lag"]) == ("paged", [0, 10])
    assert reader.post("ping").status_code == 401
    simulator.reset()
    assert simulator.reading == Reading()
    with pytest.raises(ValueError, match="forward"):
        simulator.advance(-1)


def test_command_takes_reading_as_json() -> None:
    """The command says where the MCP server is, and serves it as ordered."""
    ordered = {"variant": "paged", "consent": "approved", "limit": {"kind": "concurrency_limit", "requests": 4}}
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", "--reading", json.dumps(ordered)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announced = process.stdout.readline()
        found = re.search(r"MCP (\S+)/api/mcp", announced)
        assert found, announced
        program = Program(found[1]).sign_in()
        headers = {"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"}
        session_id = program.web.post(
            "/api/sdk/chat", json={"message": MESSAGE, "user_id": "user-1"}, headers=headers
        ).json()["session_id"]
        listed = sessions(program, "paged", **BY_USER["paged"]("user-1"))
        limit = program.web.get("/_simulator/state").json()["reading"]["limit"]
        program.close()
        process.send_signal(signal.SIGINT)
        process.wait(10)

    assert listed == [session_id]
    assert limit["kind"] == ConcurrencyLimit(requests=4).kind


@pytest.mark.parametrize("reading", ['{"variant": "guessed"}', '{"lag": [10, 0]}', "{", '{"speed": 1}'])
def test_command_explains_a_wrong_reading(reading: str) -> None:
    """A usage error, not a traceback."""
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", "--reading", reading]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert finished.returncode == 2
    assert "argument --reading:" in finished.stderr
    assert "Traceback" not in finished.stderr
