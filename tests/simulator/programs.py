"""A program that signs in at the simulator and calls its tools; it shares nothing with the provider's client."""

import base64
import hashlib
import itertools
import json
import re
import secrets
import ssl
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

REDIRECT = "http://127.0.0.1:53682/callback"
# Nothing here speaks TLS, and loading the system's certificates for each client takes longer than most tests.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Program:
    """It registers with `auth_method` and keeps what it is given."""

    def __init__(self, url: str, *, auth_method: str = "none") -> None:
        self.url = url
        self.auth_method = auth_method
        self.web = httpx.Client(base_url=url, timeout=10, trust_env=False, verify=NO_CERTIFICATES)
        self.client: dict[str, Any] = {}
        self.tokens: dict[str, Any] = {}
        self.verifier = secrets.token_urlsafe(48)
        self._ids = itertools.count(1)

    def register(self, **changed: Any) -> httpx.Response:
        """Register, with these members changed; None leaves one out."""
        wanted = {
            "client_name": "A test",
            "redirect_uris": [REDIRECT],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": self.auth_method,
            "scope": "data:read",
        } | changed
        answer = self.web.post(
            "/oauth/register", json={name: each for name, each in wanted.items() if each is not None}
        )
        if answer.status_code == 201:
            self.client = answer.json()
        return answer

    def ask(self, **changed: str | None) -> httpx.Response:
        """Open the authorization endpoint, with these parameters changed; None leaves one out."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        wanted = {
            "response_type": "code",
            "client_id": self.client.get("client_id", ""),
            "redirect_uri": REDIRECT,
            "scope": "data:read",
            "state": "state-1",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        } | changed
        parameters = {name: each for name, each in wanted.items() if each is not None}
        return self.web.get("/oauth/authorize", params=parameters)

    def decide(self, page: httpx.Response, *, decision: str = "approve") -> httpx.Response:
        """Press a button on the page."""
        number = re.search(r'name="request" value="([^"]+)"', page.text)
        assert number, page.text
        return self.web.post("/oauth/authorize", data={"request": number[1], "decision": decision})

    def token(self, **form: str | None) -> httpx.Response:
        """Ask the token endpoint, authenticated in the way that was registered."""
        answer = self.post_form("/oauth/token", **form)
        if answer.status_code == 200:
            self.tokens = answer.json()
        return answer

    def post_form(self, path: str, **form: str | None) -> httpx.Response:
        """Post a form with the client's authentication; None leaves a parameter out."""
        content: dict[str, str] = {name: each for name, each in form.items() if each is not None}
        credentials: tuple[str, str] | None = None
        match self.auth_method:
            case "client_secret_basic":
                credentials = self.client["client_id"], self.client["client_secret"]
            case "client_secret_post":
                content |= {"client_id": self.client["client_id"], "client_secret": self.client["client_secret"]}
            case _:
                content |= {"client_id": self.client["client_id"]}
        return self.web.post(path, data=content, auth=credentials or httpx.USE_CLIENT_DEFAULT)

    def exchange(self, code: str, /, **changed: str | None) -> httpx.Response:
        """Exchange a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT,
            "code_verifier": self.verifier,
        }
        return self.token(**(form | changed))

    def refresh(self, token: str | None = None) -> httpx.Response:
        """Refresh with this token, else with the last one."""
        return self.token(grant_type="refresh_token", refresh_token=token or self.tokens["refresh_token"])

    def sign_in(self) -> "Program":
        """Register, let a person approve where there is a page, and exchange the code."""
        self.register()
        answer = self.ask()
        if answer.status_code == 200:
            answer = self.decide(answer)
        assert self.exchange(answered(answer)["code"]).status_code == 200
        return self

    def post(self, method: str, parameters: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        """Send one request of JSON-RPC."""
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": parameters or {}}
        given = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {self.tokens.get('access_token', 'none')}",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.web.post("/api/mcp", json=body, headers=given)

    def rpc(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the result of a request, or fail with its answer."""
        answer = self.post(method, parameters)
        assert answer.status_code == 200, answer.text
        message = answer.json()
        assert "result" in message, message
        result: dict[str, Any] = message["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> Any:
        """Return what a tool answers: its structured content, else the JSON in its text."""
        result = self.rpc("tools/call", {"name": tool, "arguments": arguments})
        return (
            result["structuredContent"] if "structuredContent" in result else json.loads(result["content"][0]["text"])
        )

    def close(self) -> None:
        """Close the connections."""
        self.web.close()


def answered(redirect: httpx.Response) -> dict[str, str]:
    """Return the parameters with which a person is sent back to the program."""
    assert redirect.status_code in {302, 303}, redirect.text
    location = redirect.headers["Location"]
    assert location.startswith(REDIRECT)
    return dict(parse_qsl(urlsplit(location).query))
