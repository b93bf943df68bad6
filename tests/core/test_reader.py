"""HaloReader: discovers, asks, turns pages, waits where it is refused, and says what it cannot know."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from halo_provider.client.reader import REFUSALS_IN_A_ROW, HaloReader
from halo_provider.client.tools import Argument
from halo_provider.exceptions import HaloReadError, HaloSignInError

SINCE = datetime(2026, 11, 25, 7, 30, 15, tzinfo=UTC)
SEARCH = {
    "name": "data_search_transcripts",
    "inputSchema": {
        "type": "object",
        "properties": {"user_id": {"type": "string"}, "cursor": {"type": "string"}, "limit": {"type": "integer"}},
    },
}
Answer = Callable[[dict[str, Any]], httpx.Response]


class Tokens:
    """Gives a new token each time one is refused."""

    def __init__(self) -> None:
        self.given = 0

    async def token(self, *, refused: str | None = None) -> str:
        """The next one where the last was refused."""
        self.given += refused is not None
        return f"halo_at_example_{self.given}"

    async def close(self) -> None:
        """Nothing is under way."""


async def no_sleep(_seconds: float) -> None:
    """Pass the turn on without waiting."""
    await asyncio.sleep(0)


def result(value: Any, **headers: str) -> httpx.Response:
    """An answer of JSON-RPC."""
    return httpx.Response(200, json={"jsonrpc": "2.0", "id": 1, "result": value}, headers=headers)


def tool_result(value: Any) -> httpx.Response:
    """An answer of tools/call."""
    return result({"content": [{"type": "text", "text": json.dumps(value)}]})


class Server:
    """An MCP server without a socket, with one tool; `asked` are the arguments of its calls."""

    def __init__(self, *answers: Answer | httpx.Response, tools: list[dict[str, Any]] | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self._answers = list(answers)
        self._tools = [SEARCH] if tools is None else tools

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        body = json.loads(request.content)
        if body["method"] == "initialize":
            return result({"protocolVersion": "2025-03-26", "capabilities": {"tools": {}}})
        if body["method"] == "tools/list":
            return result({"tools": self._tools})
        self.asked.append(body["params"]["arguments"])
        self.tokens.append(request.headers["authorization"])
        answer = self._answers.pop(0)
        return answer if isinstance(answer, httpx.Response) else answer(body)


def ask(server: Server, question: Callable[[HaloReader], Any]) -> Any:
    """Ask one question."""

    async def asked() -> Any:
        reader = HaloReader(
            access=Tokens(),
            url="https://mcp.example.com/api/mcp",
            transport=httpx.MockTransport(server),
            sleep=no_sleep,
        )
        async with reader:
            return await question(reader)

    return asyncio.run(asked())


def search(reader: HaloReader) -> Any:
    """The user's conversations since a time."""
    return reader.search_transcripts(user_id="u-1", since=SINCE)


def test_search_turns_pages_to_the_end() -> None:
    """What is on the second page is found, too."""
    server = Server(
        tool_result({"items": [{"session_id": "s-1"}], "next_cursor": "two"}),
        tool_result({"items": [{"session_id": "s-2"}]}),
    )

    found = ask(server, search)

    assert [each.session_id for each in found.records] == ["s-1", "s-2"]
    assert (found.complete, found.applied) == (True, frozenset({Argument.USER}))
    assert server.asked == [{"user_id": "u-1", "limit": 50}, {"user_id": "u-1", "limit": 50, "cursor": "two"}]


def test_search_whose_pages_cannot_be_turned_is_not_complete() -> None:
    """More was promised, and nothing says how to get it."""
    found = ask(Server(tool_result({"items": [{"session_id": "s-1"}], "has_more": True})), search)

    assert (len(found.records), found.complete) == (1, False)


def test_round_number_of_records_may_be_a_page() -> None:
    """A server whose page is smaller than what was asked for may not say that there is more."""
    ten = [{"session_id": f"s-{number}"} for number in range(10)]

    assert not ask(Server(tool_result(ten)), search).complete
    assert ask(Server(tool_result(ten[:3])), search).complete


def test_result_as_a_stream_of_events_is_read() -> None:
    """MCP over HTTP may answer so."""
    event = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"structuredContent": {"items": [{"session_id": "s-1"}]}}})
    stream = httpx.Response(
        200, content=f"event: message\ndata: {event}\n\n", headers={"content-type": "text/event-stream"}
    )

    assert len(ask(Server(stream), search).records) == 1


def test_refused_token_is_replaced_once() -> None:
    """A token may end in mid-run."""
    server = Server(httpx.Response(401), tool_result([]))

    ask(server, search)

    assert server.tokens == ["Bearer halo_at_example_0", "Bearer halo_at_example_1"]


def test_second_refused_token_ends_reading() -> None:
    """Nobody is signed in any more: the remedy is in the error."""
    with pytest.raises(HaloSignInError, match="halo-login"):
        ask(Server(httpx.Response(401), httpx.Response(401)), search)


def test_switched_off_server_is_asked_once() -> None:
    """403: every further question ends so without a call."""
    server = Server(httpx.Response(403, json={"error": "MCP is off"}))

    async def twice(reader: HaloReader) -> list[Any]:
        return [await asyncio.gather(search(reader), return_exceptions=True) for _ in range(2)]

    first, second = ask(server, twice)

    assert "switched off" in str(first[0])
    assert second == first
    assert len(server.asked) == 1


def test_refusal_for_load_is_waited_for() -> None:
    """429 and 5xx are tried again: reading can be repeated."""
    server = Server(
        httpx.Response(429, headers={"retry-after": "0"}), httpx.Response(502), tool_result([{"session_id": "s-1"}])
    )

    assert len(ask(server, search).records) == 1
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json={"jsonrpc": "2.0", "id": 1}),
        httpx.Response(200, json={"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "bad argument"}}),
        httpx.Response(404),
        result({"isError": True, "content": [{"type": "text", "text": "it failed"}]}),
        result({"content": [{"type": "text", "text": "no conversations"}]}),
        result({"structuredContent": {"answer": "yes"}}),
    ],
)
def test_answer_that_cannot_be_used_is_an_error(answer: httpx.Response) -> None:
    """It must never look like an empty result."""
    with pytest.raises(HaloReadError, match="Halo cannot be asked"):
        ask(Server(answer), search)


def test_lost_connection_is_an_error() -> None:
    """Nothing is known then."""

    def lost(_body: Any) -> httpx.Response:
        raise httpx.ReadError("reset")

    with pytest.raises(HaloReadError, match="reset"):
        ask(Server(lost), search)


def test_what_the_tools_lack_is_said() -> None:
    """One sentence for each part that cannot be asked."""
    told = ask(Server(), lambda reader: reader.limits())

    assert "data_search_transcripts has no argument for 'since'" in told
    assert "Halo's server has no tool data_get_ticket" in told


def test_error_never_holds_a_token() -> None:
    """The server's words may quote it."""
    server = Server(httpx.Response(400, json={"error": "token halo_at_example_0 is odd"}))

    with pytest.raises(HaloReadError) as raised:
        ask(server, search)
    assert "halo_at" not in str(raised.value)


def test_server_that_refuses_everything_is_left_alone() -> None:
    """A few calls are tried again and again; the next ones fail at once."""
    server = Server(*[httpx.Response(503) for _ in range(2 * REFUSALS_IN_A_ROW)])

    async def asked(reader: HaloReader) -> int:
        for _ in range(4):
            with pytest.raises(HaloReadError):
                await reader.search_transcripts(user_id="u-1")
        return len(server.asked)

    assert ask(server, asked) == REFUSALS_IN_A_ROW
