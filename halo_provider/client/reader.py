"""HaloReader: asks Halo's MCP server for conversations and tickets. It only reads, and may be asked again and again.

The server speaks JSON-RPC 2.0 over one address, each request for itself. Its tools are discovered once
(``tools/list``); how their arguments are called and what their results look like is told by `tools.py` and
`records.py`. Calls are few at a time and at a pace of their own: they share nothing with what sends.
"""

import asyncio
import itertools
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import httpx
from pydantic_core import from_json, to_json

from halo_provider.client.answers import error_message, retry_after
from halo_provider.client.records import (
    Conversation,
    Listing,
    Ticket,
    UnreadableResultError,
    conversation_of,
    listing_of,
    payload_of,
    record_of,
    ticket_of,
)
from halo_provider.client.tools import Argument, Tool
from halo_provider.client.web import Reply, Web
from halo_provider.exceptions import HaloReadError, HaloSignInError

DEFAULT_MCP_URL = "https://app.haloagents.ai/api/mcp"
PROTOCOL_VERSION = "2025-03-26"
CALLS_AT_ONCE = 2
PAUSE = 0.05  # seconds between the starts of calls, at first
MAX_PAUSE = 30.0  # seconds, after many refusals
MAX_REFUSALS = 4  # of one call, by 429 or 5xx
MAX_WAIT = 120.0  # seconds for one refusal: a question can be asked again by the next run
REFUSALS_IN_A_ROW = 10  # of all calls, after which the server is left alone
LEFT_ALONE = 60.0  # seconds
MAX_PAGES = 20  # of one search
ROUND_PAGE = 5  # records: pages have this number, or a multiple of it
MAX_SHOWN = 200  # characters of the server's own words

SEARCH_TRANSCRIPTS = "data_search_transcripts"
GET_TRANSCRIPT = "data_get_transcript"
SEARCH_TICKETS = "data_search_tickets"
GET_TICKET = "data_get_ticket"

_RecordT = TypeVar("_RecordT")


class AccessTokens(Protocol):
    """Where access tokens come from."""

    async def token(self, *, refused: str | None = None) -> str:
        """A token that is valid now; another one than `refused`, which Halo did not take. Raises HaloSignInError."""
        ...

    async def close(self) -> None:
        """Bring to an end what must not be broken off."""
        ...


class Found(NamedTuple, Generic[_RecordT]):
    """What a search found. `complete`: there is nothing else that it could have found.

    `applied` are the conditions that the tool took; the others have to be checked by whoever asked, and so do these: a
    tool may leave out what it does not understand.
    """

    records: tuple[_RecordT, ...]
    complete: bool
    applied: frozenset[Argument]


class HaloReader:
    """Halo's reading tools; an async context manager. Calls may run concurrently.

    Every method raises HaloReadError where nothing is known in the end: no answer, a refusal, a tool that is not there,
    an argument that it lacks, or a result that cannot be read; HaloSignInError where nobody is signed in. One call
    lasts at most `timeout` seconds; refusals for load are waited for and tried again a few times. A server that refuses
    `REFUSALS_IN_A_ROW` calls one after the other is left alone for `LEFT_ALONE` seconds, in which every call raises.
    `ssl_context` says whose certificates are trusted.
    """

    def __init__(
        self,
        *,
        access: AccessTokens,
        url: str = DEFAULT_MCP_URL,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        ssl_context: ssl.SSLContext | None = None,
        calls_at_once: int = CALLS_AT_ONCE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self.calls = 0  # made so far, to any method of the server
        self._access = access
        self._web = Web(url, timeout=timeout, transport=transport, ssl_context=ssl_context)
        self._pace = _Pace(calls_at_once, sleep=sleep)
        self._ids = itertools.count(1)
        self._tools: dict[str, Tool] | None = None
        self._discovering = asyncio.Lock()
        self._closed_by: HaloReadError | None = None  # what every further call would end with

    def __repr__(self) -> str:
        """The address alone."""
        return f"HaloReader({self.url!r})"

    async def __aenter__(self) -> Self:
        await self._web.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._access.close()
        await self._web.__aexit__(exc_type, exc, traceback)

    async def tools(self) -> Mapping[str, Tool]:
        """The server's tools by name, discovered once."""
        async with self._discovering:
            if self._tools is None:
                self._tools = await self._discover()
            return self._tools

    async def search_transcripts(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        text: str | None = None,
        since: datetime | None = None,
    ) -> Found[Conversation]:
        """Conversations by these conditions, where the tool takes them; the others are without effect."""
        found = await self._search(
            SEARCH_TRANSCRIPTS,
            {Argument.USER: user_id, Argument.SESSION: session_id, Argument.TEXT: text, Argument.SINCE: since},
        )
        return Found(tuple(map(conversation_of, found.records)), found.complete, found.applied)

    async def transcript(self, session_id: str) -> Conversation | None:
        """One conversation with its messages; None where Halo says that there is none."""
        record = await self._get(GET_TRANSCRIPT, {Argument.SESSION: session_id})
        return None if record is None else conversation_of(record)

    async def search_tickets(
        self, *, user_id: str | None = None, session_id: str | None = None, since: datetime | None = None
    ) -> Found[Ticket]:
        """Tickets by these conditions, where the tool takes them."""
        found = await self._search(
            SEARCH_TICKETS, {Argument.USER: user_id, Argument.SESSION: session_id, Argument.SINCE: since}
        )
        tickets = [ticket_of(record) for record in found.records]
        known = tuple(ticket for ticket in tickets if ticket is not None)
        return Found(known, found.complete and len(known) == len(tickets), found.applied)

    async def list_tickets(self, *, since: datetime, take: Callable[[Ticket], None], max_pages: int) -> bool:
        """Tell every ticket since a time, page by page, and keep none; whether these are all.

        Raises HaloReadError, also where the tool cannot be asked by time.
        """
        tool = await self._tool(SEARCH_TICKETS)
        if not tool.takes(Argument.SINCE):
            raise HaloReadError(f"{SEARCH_TICKETS} has no argument for {Argument.SINCE.value!r}")
        unread = 0

        def keep(record: Mapping[str, Any]) -> None:
            nonlocal unread
            ticket = ticket_of(record)
            if ticket is None:
                unread += 1
            else:
                take(ticket)

        values = {Argument.SINCE: since}
        is_whole, _ = await self._pages(tool, values, keep=keep, limit=tool.largest_limit(), max_pages=max_pages)
        return is_whole and not unread

    async def ticket(self, ticket_id: str) -> Ticket | None:
        """One ticket; None where Halo says that there is none."""
        record = await self._get(GET_TICKET, {Argument.TICKET: ticket_id})
        return None if record is None else ticket_of(record)

    async def limits(self) -> list[str]:
        """What these tools cannot be asked, and why: one sentence each, for the log."""
        tools = await self.tools()
        told = []
        for name, wanted in (
            (SEARCH_TRANSCRIPTS, (Argument.USER, Argument.SINCE)),
            (GET_TRANSCRIPT, (Argument.SESSION,)),
            (SEARCH_TICKETS, (Argument.USER, Argument.SESSION)),
            (GET_TICKET, (Argument.TICKET,)),
        ):
            tool = tools.get(name)
            if tool is None:
                told.append(f"Halo's server has no tool {name}")
                continue
            told += [
                f"{name} has no argument for {argument.value!r}" for argument in wanted if not tool.takes(argument)
            ]
            told += [f"{name} requires {place!r}, whose meaning is not known" for place in tool.unknown_required]
        return told

    async def _search(self, name: str, values: Mapping[Argument, Any]) -> Found[Mapping[str, Any]]:
        """All pages of one search."""
        tool = await self._tool(name)
        records: list[Mapping[str, Any]] = []
        found = await self._pages(tool, values, keep=records.append, limit=tool.limit(), max_pages=MAX_PAGES)
        return Found(tuple(records), *found)

    async def _pages(
        self,
        tool: Tool,
        values: Mapping[Argument, Any],
        *,
        keep: Callable[[Mapping[str, Any]], None],
        limit: int | None,
        max_pages: int,
    ) -> tuple[bool, frozenset[Argument]]:
        """Give `keep` the records of one search; whether they are all, and the conditions that the tool took."""
        name = tool.name
        conditions = {argument: value for argument, value in values.items() if value is not None}
        asked: dict[Argument, Any] = {**conditions, Argument.LIMIT: limit}
        if missing := tool.missing(asked):
            raise HaloReadError(f"{name} requires {', '.join(missing)}, which is not known here")
        applied = frozenset(argument for argument in conditions if tool.takes(argument))
        seen: set[bytes] = set()
        for page in range(1, max_pages + 1):
            listing = await self._page(name, tool.arguments(asked))
            known = len(seen)
            for record in listing.records:
                digest = blake2b(to_json(record), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    keep(record)
            is_last = not _may_be_full(len(listing.records), asked[Argument.LIMIT])
            if listing.more is False or (listing.more is None and is_last):
                return True, applied
            if len(seen) == known or not _turn(asked, tool, listing, page=page, records=len(seen)):
                break
        return False, applied

    async def _page(self, name: str, arguments: Mapping[str, Any]) -> Listing:
        result = await self._call_tool(name, arguments)
        try:
            return listing_of(payload_of(result))
        except UnreadableResultError as error:
            raise HaloReadError(f"{name}: {error}") from error

    async def _get(self, name: str, values: Mapping[Argument, Any]) -> Mapping[str, Any] | None:
        tool = await self._tool(name)
        if missing := tool.missing(values):
            raise HaloReadError(f"{name} requires {', '.join(missing)}, which is not known here")
        if not any(tool.takes(argument) for argument in values):
            raise HaloReadError(f"{name} has no argument for {', '.join(values)}")
        result = await self._call_tool(name, tool.arguments(values))
        try:
            return record_of(payload_of(result))
        except UnreadableResultError as error:
            raise HaloReadError(f"{name}: {error}") from error

    async def _tool(self, name: str) -> Tool:
        tool = (await self.tools()).get(name)
        if tool is None:
            raise HaloReadError(f"Halo's server has no tool {name}", lasting=True)
        return tool

    async def _discover(self) -> dict[str, Tool]:
        await self._request(
            "initialize",
            {
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {},
                "clientInfo": {"name": "airflow-provider-halo", "version": "1"},
            },
        )
        tools: dict[str, Tool] = {}
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            result = await self._request("tools/list", {"cursor": cursor} if cursor else {})
            listed = result.get("tools") if isinstance(result, Mapping) else None
            if not isinstance(listed, list):
                raise HaloReadError("tools/list: the result has no list of tools")
            for each in listed:
                if isinstance(each, Mapping) and isinstance(each.get("name"), str):
                    tools[each["name"]] = Tool.of(each["name"], each.get("inputSchema"))
            cursor = result.get("nextCursor")
            if not isinstance(cursor, str) or not cursor:
                break
        return tools

    async def _call_tool(self, name: str, arguments: Mapping[str, Any]) -> Any:
        result = await self._request("tools/call", {"name": name, "arguments": arguments})
        if isinstance(result, Mapping) and result.get("isError"):
            parts = result.get("content")
            texts = (
                [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
                if isinstance(parts, list)
                else []
            )
            raise HaloReadError(f"{name}: {' '.join(texts)[:MAX_SHOWN] or 'the tool failed'}")
        return result

    async def _request(self, method: str, parameters: Mapping[str, Any]) -> Any:
        """One request of JSON-RPC, tried again where that can help. Returns its result."""
        refused: str | None = None
        refusals = 0
        while True:
            if self._closed_by is not None:
                raise self._closed_by
            token = await self._token(refused)
            async with self._pace.slot():
                if self._pace.leaves_alone:
                    raise HaloReadError(f"{method}: Halo refused the last {REFUSALS_IN_A_ROW} calls")
                self.calls += 1
                reply = await self._post(method, parameters, token=token)
            match reply.status:
                case 200:
                    self._pace.succeeded()
                    return _result_of(method, reply)
                case 401 if refused is None:
                    refused = token
                    continue
                case 401:
                    self._closed_by = HaloSignInError("Halo does not take the access token")
                    raise self._closed_by
                case 403:
                    words = error_message(reply.content)[:MAX_SHOWN]
                    reason = f"Halo answered 403 ({words}); reading may be switched off for the workspace"
                    self._closed_by = HaloReadError(reason, lasting=True)
                    raise self._closed_by
                case 429 | 500 | 502 | 503 | 504:
                    refusals += 1
                    asked = retry_after(reply.headers.get("retry-after"), now=datetime.now(UTC))
                    self._pace.refused(asked)
                    if refusals > MAX_REFUSALS or (asked or 0.0) > MAX_WAIT:
                        raise HaloReadError(f"{method}: Halo answered {reply.status} {refusals} times")
                case status:
                    raise HaloReadError(f"{method}: Halo answered {status}: {error_message(reply.content)[:MAX_SHOWN]}")

    async def _token(self, refused: str | None) -> str:
        try:
            return await self._access.token(refused=refused)
        except HaloSignInError as error:
            self._closed_by = error
            raise

    async def _post(self, method: str, parameters: Mapping[str, Any], *, token: str) -> Reply:
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": parameters}
        return await self._web.send(
            "POST",
            self.url,
            content=to_json(body),
            headers={
                "authorization": f"Bearer {token}",
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": PROTOCOL_VERSION,
            },
        )


def _result_of(method: str, reply: Reply) -> Any:
    """The result in an answer of JSON-RPC, as JSON or as the event of a stream. Raises HaloReadError."""
    answer = reply.json()
    if "text/event-stream" in reply.headers.get("content-type", ""):
        answer = _last_event(reply.content)
    if isinstance(answer, list) and len(answer) == 1:
        (answer,) = answer
    if not isinstance(answer, Mapping) or not ({"result", "error"} & answer.keys()):
        raise HaloReadError(f"{method}: the answer is not JSON-RPC")
    if (error := answer.get("error")) is not None:
        words = error.get("message") if isinstance(error, Mapping) else error
        raise HaloReadError(f"{method}: {str(words)[:MAX_SHOWN]}")
    return answer["result"]


def _last_event(content: bytes) -> Any:
    """The last JSON-RPC answer in a stream of events."""
    answer = None
    for block in content.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n\n"):
        lines = [line.removeprefix("data:").strip() for line in block.split("\n") if line.startswith("data:")]
        try:
            event = from_json("\n".join(lines)) if lines else None
        except ValueError:
            continue
        if isinstance(event, Mapping) and ({"result", "error"} & event.keys()):
            answer = event
    return answer


def _may_be_full(records: int, limit: int | None) -> bool:
    """Whether a page of so many records may have another one behind it, where the result does not say.

    The server's own page may be smaller than the limit asked for; it hardly has a number that is not a round one.
    """
    return records > 0 and ((limit is not None and records >= limit) or records % ROUND_PAGE == 0)


def _turn(asked: dict[Argument, Any], tool: Tool, listing: Listing, *, page: int, records: int) -> bool:
    """Ask for the next page, in whatever way the tool has; whether it has one."""
    if tool.takes(Argument.CURSOR) and listing.cursor is not None:
        asked[Argument.CURSOR] = listing.cursor
    elif tool.takes(Argument.OFFSET):
        asked[Argument.OFFSET] = records
    elif tool.takes(Argument.PAGE):
        first = tool.slots[Argument.PAGE].schema
        asked[Argument.PAGE] = page + (0 if first.get("default") == 0 or first.get("minimum") == 0 else 1)
    else:
        return False
    return True


class _Pace:
    """A few calls at once, each a pause after the one before it; refusals make the pause longer."""

    def __init__(self, calls_at_once: int, *, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._slots = asyncio.Semaphore(calls_at_once)
        self._sleep = sleep
        self._pause = PAUSE
        self._next_start = 0.0
        self._refused_in_a_row = 0
        self._left_alone_until = 0.0

    @property
    def leaves_alone(self) -> bool:
        """Whether nothing is asked at this moment, since nothing was answered."""
        return time.monotonic() < self._left_alone_until

    def slot(self) -> "_Slot":
        return _Slot(self)

    async def begin(self) -> None:
        await self._slots.acquire()
        try:
            while (wait := self._next_start - time.monotonic()) > 0:
                await self._sleep(wait)
            self._next_start = time.monotonic() + self._pause
        except BaseException:
            self._slots.release()
            raise

    def end(self) -> None:
        self._slots.release()

    def succeeded(self) -> None:
        self._refused_in_a_row = 0
        self._pause = max(PAUSE, self._pause * 0.8)

    def refused(self, asked: float | None) -> None:
        self._pause = min(MAX_PAUSE, 2 * self._pause)
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS_IN_A_ROW:
            self._left_alone_until = time.monotonic() + LEFT_ALONE
            self._pause, self._next_start = PAUSE, 0.0
            return
        self._next_start = max(self._next_start, time.monotonic() + min(asked or self._pause, MAX_WAIT))


class _Slot:
    """One call's place in the pace."""

    def __init__(self, pace: _Pace) -> None:
        self._pace = pace

    async def __aenter__(self) -> None:
        await self._pace.begin()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pace.end()
