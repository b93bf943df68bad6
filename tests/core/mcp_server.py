"""A small authorization and MCP server for tests of the client, which shares no code with it.

It rotates refresh tokens and revokes everything when an old one comes again. Its tool finds each of the simulator's
chats after a lag of its own.
"""

import asyncio
import base64
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from halo_provider.simulator import Simulator

MCP = "/api/mcp"
TEXT = {"type": "string"}
TOOLS = {
    "data_search_transcripts": {"user_id": TEXT, "query": TEXT, "started_after": {**TEXT, "format": "date-time"}},
    "data_get_transcript": {"session_id": TEXT},
}


@dataclass(slots=True)
class McpServer:
    """`lifetime` is how many seconds an access token is valid, `lag` at most until a chat can be found."""

    halo: Simulator | None = None
    lifetime: float = 3600.0
    lag: float = 0.0
    refresh_delay: float = 0.0
    is_down: bool = False
    requests: Counter[str] = field(default_factory=Counter)
    refreshes: list[float] = field(default_factory=list)
    revoked: bool = False
    scopes: list[str] = field(default_factory=list)
    _codes: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    _access: dict[str, float] = field(default_factory=dict)
    _refresh: str | None = None
    _used: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.Lock)

    def app(self) -> Starlette:
        """The server."""
        return Starlette(
            routes=[
                Route(MCP, self.mcp, methods=["POST"]),
                Route(f"/.well-known/oauth-protected-resource{MCP}", self.resource),
                Route("/.well-known/oauth-authorization-server", self.metadata),
                Route("/register", self.register, methods=["POST"]),
                Route("/authorize", self.authorize),
                Route("/token", self.token, methods=["POST"]),
                Route("/revoke", self.revoke, methods=["POST"]),
            ]
        )

    async def resource(self, request: Request) -> Response:
        """RFC 9728."""
        origin = str(request.base_url).rstrip("/")
        return JSONResponse({"resource": f"{origin}{MCP}", "authorization_servers": [origin]})

    async def metadata(self, request: Request) -> Response:
        """RFC 8414."""
        origin = str(request.base_url).rstrip("/")
        places = {
            name: f"{origin}/{path}"
            for name, path in (
                ("authorization_endpoint", "authorize"),
                ("token_endpoint", "token"),
                ("registration_endpoint", "register"),
                ("revocation_endpoint", "revoke"),
            )
        }
        return JSONResponse({"issuer": origin, "code_challenge_methods_supported": ["S256"], **places})

    async def register(self, request: Request) -> Response:
        """RFC 7591."""
        return JSONResponse({**await request.json(), "client_id": "client-1"}, status_code=201)

    async def authorize(self, request: Request) -> Response:
        """A person who approves at once."""
        asked = request.query_params
        self.scopes.append(asked["scope"])
        code = secrets.token_urlsafe(8)
        self._codes[code] = (asked["client_id"], asked["redirect_uri"], asked["code_challenge"])
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}")

    async def token(self, request: Request) -> Response:
        """Codes with their verifier, and refresh tokens once."""
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.requests[form["grant_type"]] += 1
        with self._lock:
            if form["grant_type"] == "authorization_code":
                known = self._codes.pop(form["code"], None)
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
                if known != (form["client_id"], form["redirect_uri"], challenge):
                    return JSONResponse({"error": "invalid_grant"}, status_code=400)
            else:
                if form["refresh_token"] in self._used:
                    self.revoked = True
                    self._access.clear()
                    self._refresh = None
                if form["refresh_token"] != self._refresh:
                    return JSONResponse({"error": "invalid_grant", "error_description": "used"}, status_code=400)
                self._used.add(form["refresh_token"])
                self.refreshes.append(time.monotonic())
            self._refresh = f"halo_rt_example_{secrets.token_urlsafe(8)}"
            access = f"halo_at_example_{secrets.token_urlsafe(8)}"
            self._access[access] = time.monotonic() + self.lifetime
            answer = {"access_token": access, "token_type": "Bearer", "expires_in": self.lifetime}
            answer |= {"refresh_token": self._refresh, "scope": "data:read"}
        if self.refresh_delay and form["grant_type"] == "refresh_token":
            await asyncio.sleep(self.refresh_delay)
        return JSONResponse(answer)

    async def revoke(self, request: Request) -> Response:
        """RFC 7009."""
        form = parse_qs((await request.body()).decode())
        if form["token"][0] == self._refresh:
            self._refresh = None
            self._access.clear()
        return Response()

    async def mcp(self, request: Request) -> Response:
        """JSON-RPC."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.is_down:
            return Response(status_code=503)
        if self._access.get(token, 0.0) < time.monotonic():
            place = f"{str(request.base_url).rstrip('/')}/.well-known/oauth-protected-resource{MCP}"
            return Response(status_code=401, headers={"WWW-Authenticate": f'Bearer resource_metadata="{place}"'})
        body = await request.json()
        self.requests[body["method"]] += 1
        return JSONResponse({"jsonrpc": "2.0", "id": body["id"], "result": self._result(body)})

    def _result(self, body: Any) -> Any:
        if body["method"] == "initialize":
            return {"protocolVersion": "2025-03-26", "capabilities": {}}
        if body["method"] == "tools/list":
            return {
                "tools": [
                    {"name": name, "inputSchema": {"type": "object", "properties": properties}}
                    for name, properties in TOOLS.items()
                ]
            }
        asked = body["params"]["arguments"]
        found = self._conversations(user_id=asked.get("user_id"), session_id=asked.get("session_id"))
        value: Any = {"conversations": found, "has_more": False} if "user_id" in asked else next(iter(found), None)
        return {"content": [{"type": "text", "text": json.dumps(value)}]}

    def _conversations(self, *, user_id: str | None, session_id: str | None) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [
            {
                "id": chat.session_id,
                "contact": {"id": "usr_internal", "external_id": chat.user_id},
                "created_at": chat.received_at.isoformat(),
                "messages": [
                    {"role": "user", "content": f" {chat.message}\n", "created_at": chat.received_at.isoformat()},
                    {"role": "assistant", "content": chat.reply},
                ],
            }
            for chat in list(self.halo.chats if self.halo else ())
            if chat.started + self.lag * int(chat.session_id[-2:], 16) / 255 <= now
            and (chat.user_id == user_id or chat.session_id == session_id)
            and (chat.user_id == user_id or chat.session_id == session_id)
        ]
