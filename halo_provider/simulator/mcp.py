"""Halo's MCP server over HTTP: JSON-RPC for signed-in programs, the description of it, and the record of it all."""

import base64
import json
import random
import time
from typing import Any

from starlette.types import Receive, Scope, Send

from halo_provider.simulator import rules, signing_in, wire
from halo_provider.simulator.endpoints import METHODS
from halo_provider.simulator.exchange import exchange
from halo_provider.simulator.faults import MCP_PATH, Fault, WrongResult
from halo_provider.simulator.halo import SimulatedHalo
from halo_provider.simulator.journal import RequestRecord
from halo_provider.simulator.limits import Arrival
from halo_provider.simulator.reading import range_of
from halo_provider.simulator.rules import Json
from halo_provider.simulator.search import Query
from halo_provider.simulator.shapes import Item
from halo_provider.simulator.signing_in import RESOURCE_METADATA, SIGN_IN_PATHS, SignInRequest
from halo_provider.simulator.variants import SINGULAR, TOOLS, VARIANTS
from halo_provider.simulator.wire import Answer

PROTOCOL_VERSION = "2025-03-26"
READING_PATHS = SIGN_IN_PATHS | {MCP_PATH}
PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602


class RpcError(Exception):
    """An error of JSON-RPC."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ReadingSide:
    """The ASGI application for everything that has to do with reading; `seed` is that of its latencies."""

    def __init__(self, halo: SimulatedHalo, *, seed: int) -> None:
        self._halo = halo
        self._random = random.Random(seed)  # noqa: S311 - reproducible latencies, no cryptography

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        started = time.monotonic()
        content = await wire.read_body(receive)
        if content is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        body = rules.parse(content)
        is_call = (scope["method"], scope["path"]) == ("POST", MCP_PATH)
        origin = f"{scope['scheme']}://{headers.get('host', '127.0.0.1')}"
        record = RequestRecord(
            path=_path_of(body) if is_call else scope["path"],
            started=started,
            authorized=self._halo.authorization.is_valid(_bearer(headers)),
            user_id=self._user_id(body) if is_call else None,
            body=body if is_call and self._halo.record_bodies else None,
        )
        fault = self._halo.take_fault(path=record.path, user_id=record.user_id) or Fault.slow(0.0)

        def respond() -> tuple[Answer, float]:
            allowed = signing_in.methods_of(scope["path"])
            if scope["method"] not in allowed:
                return wire.error(405, headers={"Allow": ", ".join(allowed)}), 0.0
            if is_call:
                return self._call(body, headers=headers, record=record, origin=origin, wrong=fault.result)
            if scope["path"] == MCP_PATH:
                return Answer(200, _description(origin)), 0.0
            request = SignInRequest(
                method=scope["method"],
                path=scope["path"],
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                content=content,
                body=body,
                origin=origin,
                address=scope["client"][0] if scope["client"] else "",
            )
            answer = signing_in.answer(self._halo.authorization, request, consent=self._halo.reading.consent)
            record.accepted = answer.status < 400  # noqa: PLR2004 - what HTTP calls an error
            return answer, 0.0

        journal = self._halo.read_journal
        await exchange(record, fault=fault, journal=journal, respond=respond, receive=receive, send=send)

    def _call(
        self,
        body: Json | None,
        *,
        headers: dict[str, str],
        record: RequestRecord,
        origin: str,
        wrong: WrongResult | None,
    ) -> tuple[Answer, float]:
        """Answer a POST, and say how many seconds that takes."""
        if not record.authorized:
            place = f'Bearer resource_metadata="{origin}{RESOURCE_METADATA}"'
            invalid = ', error="invalid_token"' if _bearer(headers) else ""
            refused = wire.error(401, "a valid access token is required", headers={"WWW-Authenticate": place + invalid})
            return refused, 0.0
        reading = self._halo.reading
        if not reading.enabled:
            return wire.error(403, "the MCP server is switched off for this workspace"), 0.0
        journal = self._halo.read_journal
        arrival = Arrival(now=self._halo.now(), in_flight=journal.in_flight, user_id=record.user_id)
        if (refusal := self._halo.read_limiter.admit(arrival)) is not None:
            return wire.error(refusal.status, "too many requests", headers=refusal.headers()), 0.0
        journal.admit(record)
        base = self._random.uniform(*range_of(reading.latency))
        return self._rpc(body, headers=headers, record=record, wrong=wrong), self._halo.read_limiter.latency(
            arrival, base=base
        )

    def _rpc(
        self, body: Json | None, *, headers: dict[str, str], record: RequestRecord, wrong: WrongResult | None
    ) -> Answer:
        """Answer one message of JSON-RPC."""
        if not headers.get("content-type", "").startswith("application/json"):
            return wire.error(415, "Content-Type must be application/json")
        accepted = headers.get("accept", "")
        if "application/json" not in accepted or "text/event-stream" not in accepted:
            return wire.error(406, "Accept must list application/json and text/event-stream")
        if body is None:
            return Answer(400, _error(None, PARSE_ERROR, "the body must be a JSON object in UTF-8"))
        number, method, parameters = body.get("id"), body.get("method"), body.get("params", {})
        if body.get("jsonrpc") != "2.0" or not isinstance(method, str) or not isinstance(parameters, dict):
            return Answer(400, _error(None, INVALID_REQUEST, "the body is no request of JSON-RPC 2.0"))
        if "id" not in body:
            return Answer(202, "")
        if isinstance(number, bool) or not isinstance(number, str | int):
            return Answer(400, _error(None, INVALID_REQUEST, "id is a text or a whole number"))
        try:
            message = {"jsonrpc": "2.0", "id": number, "result": self._result(method, parameters, wrong=wrong)}
            record.accepted = True
        except RpcError as error:
            message = _error(number, error.code, str(error))
        if self._halo.reading.event_stream:
            event = f"event: message\ndata: {json.dumps(message)}\n\n"
            return Answer(200, event, {"Content-Type": "text/event-stream"})
        return Answer(200, message)

    def _result(self, method: str, parameters: Json, *, wrong: WrongResult | None) -> Json:
        match method:
            case "initialize":
                if not isinstance(parameters.get("protocolVersion"), str):
                    raise RpcError(INVALID_PARAMS, "protocolVersion is required")
                return {
                    "protocolVersion": PROTOCOL_VERSION,
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "halo-simulator", "version": "1"},
                }
            case "ping":
                return {}
            case "tools/list":
                return self._tools(parameters)
            case "tools/call":
                return self._tool_result(parameters, wrong=wrong)
            case _:
                raise RpcError(METHOD_NOT_FOUND, f"there is no method {method!r}")

    def _tools(self, parameters: Json) -> Json:
        variant = VARIANTS[self._halo.reading.variant]
        first = _position(parameters.get("cursor"), default=0)
        tools = variant.schemas()
        end = first + variant.tools_at_once
        following = {"nextCursor": _cursor(end)} if end < len(tools) else {}
        return {"tools": tools[first:end], **following}

    def _tool_result(self, parameters: Json, *, wrong: WrongResult | None) -> Json:
        name = parameters.get("name")
        if not isinstance(name, str) or name not in TOOLS:
            raise RpcError(INVALID_PARAMS, f"there is no tool {name!r}")
        tool, variant = TOOLS[name], VARIANTS[self._halo.reading.variant]
        try:
            query = variant.query(name, parameters.get("arguments", {}))
        except ValueError as exc:
            raise RpcError(INVALID_PARAMS, f"{name}: {exc}") from exc
        if wrong is WrongResult.TOOL_ERROR:
            return {"content": [{"type": "text", "text": "The tool failed."}], "isError": True}
        if wrong is WrongResult.UNREADABLE:
            return {"content": [{"type": "text", "text": "<p>Something was <b>found</b>.</p>"}]}
        found = self._found(tool.things, query, wrong=wrong)
        shape = variant.shape
        if tool.gets_one:
            record = shape.show(found[0], whole=True) if found else None
            return shape.result(shape.one(SINGULAR[tool.things], record))
        page, left = self._page(found, query)
        records = [shape.show(each, whole=False) for each in page]
        cursor = _cursor(left) if left else None
        return shape.result(shape.search(tool.things, records, total=len(found), cursor=cursor))

    def _found(self, things: str, query: Query, *, wrong: WrongResult | None) -> list[Item]:
        library = self._halo.library
        match things:
            case "users":
                return [] if wrong is WrongResult.EMPTY else [*library.users(query)]
            case "companies":
                return [] if wrong is WrongResult.EMPTY else [*library.companies(query)]
            case "transcripts":
                return [*library.conversations(query, wrong=wrong)]
            case _:
                return [*library.tickets(query, wrong=wrong)]

    def _page(self, found: list[Item], query: Query) -> tuple[list[Item], int]:
        """Return one page and how many records are left behind it.

        A cursor counts what is left from the oldest on, so that new records, which come first, move no page.
        """
        first = query.offset
        if query.cursor is not None:
            first = max(len(found) - _position(query.cursor, default=0), 0)
        size = min(query.limit or self._halo.reading.page_size, self._halo.reading.page_size)
        return found[first : first + size], max(len(found) - first - size, 0)

    def _user_id(self, body: Json | None) -> str | None:
        """Return the user that a call asks about, where its arguments can be read."""
        match body:
            case {"method": "tools/call", "params": {"name": str(name), "arguments": arguments}} if name in TOOLS:
                try:
                    return VARIANTS[self._halo.reading.variant].query(name, arguments).user
                except ValueError:
                    return None
        return None


def _path_of(body: Json | None) -> str:
    """Return the path that faults and counts know a call by: with its method, or its tool."""
    match body:
        case {"method": "tools/call", "params": {"name": str(name)}} if name in TOOLS:
            return f"{MCP_PATH}/{name}"
        case {"method": str(method)} if method in METHODS:
            return f"{MCP_PATH}/{method}"
    return MCP_PATH


def _description(origin: str) -> Json:
    """Return what a bare GET tells."""
    return {
        "name": "Halo simulator",
        "protocol": "mcp",
        "protocolVersion": PROTOCOL_VERSION,
        "endpoint": f"{origin}{MCP_PATH}",
        "resource_metadata": f"{origin}{RESOURCE_METADATA}",
        "authorization_server_metadata": f"{origin}{signing_in.SERVER_METADATA}",
        **{name: place for name, place in signing_in.server_metadata(origin).items() if name.endswith("_endpoint")},
    }


def _bearer(headers: dict[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _error(number: str | int | None, code: int, message: str) -> Json:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"position:{position}".encode()).decode()


def _position(cursor: Any, *, default: int) -> int:
    """Read a cursor that was given out before. Raises RpcError."""
    if cursor is None:
        return default
    try:
        name, _, number = base64.urlsafe_b64decode(cursor).decode().partition(":")
        if name == "position" and number.isdecimal():
            return int(number)
    except (TypeError, ValueError):
        pass
    raise RpcError(INVALID_PARAMS, "the cursor was not given out by this server")
