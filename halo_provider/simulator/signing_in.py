"""The authorization server over HTTP: its description, and the addresses that programs and people use to sign in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader

from halo_provider.simulator.endpoints import AUTHORIZE, REGISTER, REVOKE, TOKEN
from halo_provider.simulator.faults import MCP_PATH
from halo_provider.simulator.oauth import (
    AUTH_METHODS,
    GRANT_TYPES,
    SCOPE,
    AuthorizationServer,
    OAuthError,
    RedirectedError,
)
from halo_provider.simulator.rules import Json
from halo_provider.simulator.wire import PAGE_HEADERS, Answer

RESOURCE_METADATA = f"/.well-known/oauth-protected-resource{MCP_PATH}"
SERVER_METADATA = "/.well-known/oauth-authorization-server"
SIGN_IN_PATHS = frozenset({RESOURCE_METADATA, SERVER_METADATA, REGISTER, AUTHORIZE, TOKEN, REVOKE})
NO_STORE = {"Cache-Control": "no-store"}
FORM = "application/x-www-form-urlencoded"
_CONSENT = Environment(loader=PackageLoader("halo_provider.simulator"), autoescape=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInRequest:
    """One request; `address` is the client's."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    content: bytes
    body: Json | None
    origin: str
    address: str


def methods_of(path: str) -> tuple[str, ...]:
    """Return the methods that an address allows."""
    if path in {MCP_PATH, AUTHORIZE}:
        return ("GET", "POST")
    return ("POST",) if path in {REGISTER, TOKEN, REVOKE} else ("GET",)


def resource_metadata(origin: str) -> Json:
    """Return what RFC 9728 has of the MCP server."""
    return {
        "resource": f"{origin}{MCP_PATH}",
        "authorization_servers": [origin],
        "scopes_supported": [SCOPE],
        "bearer_methods_supported": ["header"],
    }


def server_metadata(origin: str) -> Json:
    """Return what RFC 8414 has of the authorization server."""
    return {
        "issuer": origin,
        "authorization_endpoint": f"{origin}{AUTHORIZE}",
        "token_endpoint": f"{origin}{TOKEN}",
        "registration_endpoint": f"{origin}{REGISTER}",
        "revocation_endpoint": f"{origin}{REVOKE}",
        "scopes_supported": [SCOPE],
        "response_types_supported": ["code"],
        "grant_types_supported": list(GRANT_TYPES),
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "revocation_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "authorization_response_iss_parameter_supported": True,
    }


def answer(
    server: AuthorizationServer, request: SignInRequest, *, consent: Literal["page", "approved", "denied"]
) -> Answer:
    """Answer one request."""
    authorization = request.headers.get("authorization", "")
    try:
        match request.path:
            case path if path == RESOURCE_METADATA:
                return Answer(200, resource_metadata(request.origin))
            case path if path == SERVER_METADATA:
                return Answer(200, server_metadata(request.origin))
            case path if path == REGISTER:
                _demand(request, "application/json", error="invalid_client_metadata")
                return Answer(201, server.register(request.body, address=request.address), NO_STORE)
            case path if path == TOKEN:
                return Answer(200, server.token(_form(request), authorization=authorization), NO_STORE)
            case path if path == REVOKE:
                server.revoke(_form(request), authorization=authorization)
                return Answer(200, "", NO_STORE)
            case _:
                return _authorize(server, request, consent=consent)
    except OAuthError as refusal:
        return Answer(refusal.status, refusal.body, {**NO_STORE, **refusal.headers})
    except RedirectedError as refusal:
        return Answer(302, "", {"Location": refusal.location, **NO_STORE})


def _authorize(
    server: AuthorizationServer, request: SignInRequest, *, consent: Literal["page", "approved", "denied"]
) -> Answer:
    """Show the page for a person, or take what the person decided."""
    if request.method == "POST":
        decided = _form(request)
        if decided.get("decision") not in {"approve", "deny"}:
            raise OAuthError("invalid_request", "decision is approve or deny")
        is_approved = decided["decision"] == "approve"
        location = server.decide(decided.get("request", ""), approved=is_approved, issuer=request.origin)
        return Answer(303, "", {"Location": location, **NO_STORE})
    number = server.ask(_pairs(request.query), resource=f"{request.origin}{MCP_PATH}", issuer=request.origin)
    if consent != "page":
        location = server.decide(number, approved=consent == "approved", issuer=request.origin)
        return Answer(302, "", {"Location": location, **NO_STORE})
    asked = server.asked(number)
    content = _CONSENT.get_template("consent.html").render(asked=asked, number=number, action=AUTHORIZE)
    return Answer(200, content, {"Content-Type": "text/html; charset=utf-8", **PAGE_HEADERS})


def _form(request: SignInRequest) -> dict[str, str]:
    _demand(request, FORM, error="invalid_request")
    try:
        return _pairs(request.content.decode())
    except UnicodeDecodeError as exc:
        raise OAuthError("invalid_request", "the form must be in UTF-8") from exc


def _pairs(text: str) -> dict[str, str]:
    pairs = parse_qsl(text, keep_blank_values=True)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise OAuthError("invalid_request", "a parameter is there twice")
    return found


def _demand(request: SignInRequest, content_type: str, *, error: str) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != content_type:
        raise OAuthError(error, f"Content-Type must be {content_type}")
