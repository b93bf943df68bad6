"""Halo's authorization server without HTTP: registration, codes with PKCE, tokens that rotate, and their end.

After OAuth 2.1 and RFC 7591, 7636, 7009 and 9207, as strictly as they allow. Secrets are made here and stay here: no
record and no answer for other processes has them.
"""

import base64
import hashlib
import hmac
import math
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus, urlencode, urlsplit

from halo_provider.simulator.reading import Reading
from halo_provider.simulator.rules import Json

SCOPE = "data:read"
AUTH_METHODS = ("none", "client_secret_basic", "client_secret_post")
GRANT_TYPES = ("authorization_code", "refresh_token")
CODE_LIFETIME = 600.0  # seconds: RFC 6749 recommends at most ten minutes
HOUR = 3600.0  # seconds
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # what base64url makes of a SHA-256
VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class OAuthError(Exception):
    """An answer with ``error`` and ``error_description``."""

    def __init__(
        self, error: str, description: str, *, status: int = 400, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(description)
        self.status = status
        self.body = {"error": error, "error_description": description}
        self.headers = headers or {}


@dataclass(slots=True, kw_only=True)
class RegisteredClient:
    """A program that registered itself."""

    client_id: str
    client_secret: str | None = field(repr=False)
    auth_method: str
    name: str
    redirect_uris: tuple[str, ...]
    grant_types: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class SignIn:
    """What one approval led to: a chain of refresh tokens, each good for one use.

    `refreshes` are the seconds of the simulator's clock at which it was refreshed. `reuses` counts refresh tokens that
    came again; the first of them revoked the chain.
    """

    client_id: str
    scope: str
    resource: str
    refreshes: list[float] = field(default_factory=list)
    reuses: int = 0
    revoked: bool = False
    access_tokens: dict[str, float] = field(default_factory=dict, repr=False)
    refresh_token: str | None = field(default=None, repr=False)


@dataclass(slots=True, kw_only=True)
class AuthorizationRequest:
    """What a person is asked to approve."""

    client: RegisteredClient
    redirect_uri: str
    state: str | None
    scope: str
    challenge: str
    resource: str
    redirect_is_named: bool

    def answer(self, parameters: Mapping[str, str], *, issuer: str) -> str:
        """Return the address to which the person is sent back."""
        state = {} if self.state is None else {"state": self.state}
        mark = "&" if "?" in self.redirect_uri else "?"
        return f"{self.redirect_uri}{mark}{urlencode({**parameters, **state, 'iss': issuer})}"


class RedirectedError(Exception):
    """A refused authorization request, told to the program by way of the person's browser."""

    def __init__(self, location: str) -> None:
        super().__init__("the request was refused")
        self.location = location


@dataclass(slots=True, kw_only=True)
class _Code:
    request: AuthorizationRequest
    expires: float
    sign_in: SignIn | None = None  # what it was exchanged for


class AuthorizationServer:
    """Clients, codes and tokens since the last reset. `now` gives the seconds of the simulator's clock."""

    def __init__(self, *, now: Callable[[], float], reading: Callable[[], Reading]) -> None:
        self.clients: dict[str, RegisteredClient] = {}
        self.sign_ins: list[SignIn] = []
        self._now = now
        self._reading = reading
        self._registered: dict[str, deque[float]] = {}
        self._asked: dict[str, AuthorizationRequest] = {}
        self._codes: dict[str, _Code] = {}
        self._access: dict[str, SignIn] = {}
        self._refresh: dict[str, SignIn] = {}

    def register(self, body: Json | None, *, address: str) -> Json:
        """Register a program (RFC 7591)."""
        wait = self._wait_to_register(address)
        if wait > 0:
            raise OAuthError(
                "too_many_requests",
                f"at most {self._reading().registrations} registrations an hour",
                status=429,
                headers={"Retry-After": str(math.ceil(wait))},
            )
        if body is None:
            raise OAuthError("invalid_client_metadata", "the body must be a JSON object in UTF-8")
        redirect_uris = body.get("redirect_uris")
        if not isinstance(redirect_uris, list) or not redirect_uris or not all(map(_is_redirect_uri, redirect_uris)):
            raise OAuthError("invalid_redirect_uri", "redirect_uris must be https, or http on a loopback address")
        auth_method = body.get("token_endpoint_auth_method", "client_secret_basic")
        if auth_method not in AUTH_METHODS:
            raise OAuthError(
                "invalid_client_metadata", f"token_endpoint_auth_method is one of {', '.join(AUTH_METHODS)}"
            )
        grant_types = body.get("grant_types", ["authorization_code"])
        if not isinstance(grant_types, list) or not set(grant_types) <= set(GRANT_TYPES):
            raise OAuthError("invalid_client_metadata", f"grant_types are of {', '.join(GRANT_TYPES)}")
        if body.get("response_types", ["code"]) != ["code"]:
            raise OAuthError("invalid_client_metadata", 'response_types is ["code"]')
        if not _is_scope(body.get("scope", SCOPE)):
            raise OAuthError("invalid_client_metadata", f"scope is {SCOPE}")
        client = RegisteredClient(
            client_id=f"client_{secrets.token_hex(8)}",
            client_secret=None if auth_method == "none" else secrets.token_urlsafe(32),
            auth_method=auth_method,
            name=str(body.get("client_name", "A program without a name")),
            redirect_uris=tuple(redirect_uris),
            grant_types=tuple(grant_types),
        )
        self.clients[client.client_id] = client
        self._registered.setdefault(address, deque()).append(self._now())
        secret = {} if client.client_secret is None else {"client_secret": client.client_secret}
        return {
            "client_id": client.client_id,
            **secret,
            **({"client_secret_expires_at": 0} if secret else {}),
            "client_name": client.name,
            "redirect_uris": redirect_uris,
            "grant_types": grant_types,
            "response_types": ["code"],
            "token_endpoint_auth_method": auth_method,
            "scope": SCOPE,
        }

    def ask(self, asked: Mapping[str, str], *, resource: str, issuer: str) -> str:
        """Check an authorization request and return the number under which it waits for a person.

        Raises OAuthError where nobody may be redirected, and RedirectedError for every other refusal.
        """
        client = self.clients.get(asked.get("client_id", ""))
        if client is None:
            raise OAuthError("invalid_client", "client_id is not registered")
        named = asked.get("redirect_uri")
        redirect_uri = named if named is not None or len(client.redirect_uris) > 1 else client.redirect_uris[0]
        if redirect_uri not in client.redirect_uris:
            raise OAuthError("invalid_request", "redirect_uri is not one of those registered")
        request = AuthorizationRequest(
            client=client,
            redirect_uri=redirect_uri,
            state=asked.get("state"),
            scope=asked.get("scope", SCOPE),
            challenge=asked.get("code_challenge", ""),
            resource=asked.get("resource", resource),
            redirect_is_named=named is not None,
        )
        refusal = None
        if asked.get("response_type") != "code":
            refusal = "unsupported_response_type", "response_type must be code"
        elif not _is_scope(request.scope):
            refusal = "invalid_scope", f"scope is {SCOPE}"
        elif asked.get("code_challenge_method") != "S256" or not CHALLENGE.fullmatch(request.challenge):
            refusal = "invalid_request", "PKCE with S256 is required"
        elif request.resource != resource:
            refusal = "invalid_target", f"resource must be {resource}"
        if refusal is not None:
            error, description = refusal
            raise RedirectedError(request.answer({"error": error, "error_description": description}, issuer=issuer))
        number = secrets.token_urlsafe(16)
        self._asked[number] = request
        return number

    def asked(self, number: str) -> AuthorizationRequest:
        """Return a request that waits for a person. Raises OAuthError when there is none."""
        if (request := self._asked.get(number)) is None:
            raise OAuthError("invalid_request", "this request was answered already, or never made")
        return request

    def decide(self, number: str, *, approved: bool, issuer: str) -> str:
        """Answer a request and return the address to which the person is sent back. Raises OAuthError."""
        request = self.asked(number)
        del self._asked[number]
        if not approved:
            return request.answer({"error": "access_denied"}, issuer=issuer)
        code = secrets.token_urlsafe(24)
        self._codes[code] = _Code(request=request, expires=self._now() + CODE_LIFETIME)
        return request.answer({"code": code}, issuer=issuer)

    def token(self, form: Mapping[str, str], *, authorization: str) -> Json:
        """Exchange a code, or a refresh token, for tokens. Raises OAuthError."""
        client = self._client(form, authorization=authorization)
        grant_type = form.get("grant_type", "")
        if grant_type not in GRANT_TYPES:
            raise OAuthError("unsupported_grant_type", f"grant_type is one of {', '.join(GRANT_TYPES)}")
        if grant_type not in client.grant_types:
            raise OAuthError("unauthorized_client", f"this client is not registered for {grant_type}")
        sign_in = self._exchange(client, form) if grant_type == "authorization_code" else self._rotate(client, form)
        return self._issue(sign_in, client)

    def revoke(self, form: Mapping[str, str], *, authorization: str) -> None:
        """Revoke a token (RFC 7009): a refresh token with its whole chain. An unknown one is no error."""
        client = self._client(form, authorization=authorization)
        token = form.get("token")
        if not token:
            raise OAuthError("invalid_request", "token is required")
        if (sign_in := self._refresh.get(token)) is not None and sign_in.client_id == client.client_id:
            self._end(sign_in)
        elif (sign_in := self._access.get(token)) is not None and sign_in.client_id == client.client_id:
            sign_in.access_tokens.pop(token, None)
            del self._access[token]

    def is_valid(self, access_token: str) -> bool:
        """Whether this token gives access now."""
        sign_in = self._access.get(access_token)
        return sign_in is not None and sign_in.access_tokens.get(access_token, -math.inf) > self._now()

    def expire_access_tokens(self) -> None:
        """End every access token; refresh tokens stay good."""
        for sign_in in self.sign_ins:
            sign_in.access_tokens.clear()
        self._access.clear()

    def revoke_all(self) -> None:
        """End every sign-in."""
        for sign_in in self.sign_ins:
            self._end(sign_in)

    def _wait_to_register(self, address: str) -> float:
        """Return the seconds until this address may register again."""
        registered = self._registered.get(address, deque())
        while registered and registered[0] <= self._now() - HOUR:
            registered.popleft()
        allowed = self._reading().registrations
        if len(registered) < allowed:
            return 0.0
        return registered[-allowed] + HOUR - self._now() if allowed else HOUR

    def _client(self, form: Mapping[str, str], *, authorization: str) -> RegisteredClient:
        """Return the client, authenticated in the way it registered for."""
        scheme, _, credentials = authorization.partition(" ")
        by_header = scheme.lower() == "basic"
        client_id, client_secret = form.get("client_id", ""), form.get("client_secret")
        if by_header:
            client_id, client_secret = _basic(credentials)
        client = self.clients.get(client_id)
        used = "client_secret_basic" if by_header else "none" if client_secret is None else "client_secret_post"
        if (
            client is None
            or used != client.auth_method
            or not hmac.compare_digest((client.client_secret or "").encode(), (client_secret or "").encode())
        ):
            raise OAuthError(
                "invalid_client",
                "the client is unknown, or not authenticated in the way it registered for",
                status=401,
                headers={"WWW-Authenticate": 'Basic realm="halo"'} if by_header else {},
            )
        return client

    def _exchange(self, client: RegisteredClient, form: Mapping[str, str]) -> SignIn:
        code = self._codes.get(form.get("code", ""))
        if code is None or code.request.client is not client or code.expires <= self._now():
            raise OAuthError("invalid_grant", "the code is unknown or has expired")
        if code.sign_in is not None:
            self._end(code.sign_in)
            raise OAuthError("invalid_grant", "the code was used before; what it gave is revoked")
        request = code.request
        if (
            form.get("redirect_uri", None if request.redirect_is_named else request.redirect_uri)
            != request.redirect_uri
        ):
            raise OAuthError("invalid_grant", "redirect_uri is not that of the request")
        verifier = form.get("code_verifier", "")
        if not VERIFIER.fullmatch(verifier) or not hmac.compare_digest(_s256(verifier), request.challenge):
            raise OAuthError("invalid_grant", "code_verifier does not belong to the challenge")
        if form.get("resource", request.resource) != request.resource:
            raise OAuthError("invalid_target", "resource is not that of the request")
        code.sign_in = SignIn(client_id=client.client_id, scope=request.scope, resource=request.resource)
        self.sign_ins.append(code.sign_in)
        return code.sign_in

    def _rotate(self, client: RegisteredClient, form: Mapping[str, str]) -> SignIn:
        token = form.get("refresh_token", "")
        sign_in = self._refresh.get(token)
        if sign_in is None or sign_in.client_id != client.client_id:
            raise OAuthError("invalid_grant", "the refresh token is unknown")
        if token != sign_in.refresh_token and not sign_in.revoked:
            sign_in.reuses += 1
            self._end(sign_in)
            raise OAuthError("invalid_grant", "the refresh token was used before; the whole chain is revoked")
        if sign_in.revoked:
            raise OAuthError("invalid_grant", "the refresh token is revoked")
        if not _is_scope(form.get("scope", sign_in.scope)):
            raise OAuthError("invalid_scope", f"scope is {SCOPE}")
        if form.get("resource", sign_in.resource) != sign_in.resource:
            raise OAuthError("invalid_target", "resource is not that of the sign-in")
        sign_in.refreshes.append(self._now())
        return sign_in

    def _issue(self, sign_in: SignIn, client: RegisteredClient) -> Json:
        lifetime = self._reading().access_lifetime
        access_token = f"halo_at_{secrets.token_urlsafe(24)}"
        sign_in.access_tokens[access_token] = self._now() + lifetime
        self._access[access_token] = sign_in
        answer = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": math.floor(lifetime) if lifetime >= 1 else lifetime,
            "scope": sign_in.scope,
        }
        if "refresh_token" in client.grant_types:
            sign_in.refresh_token = f"halo_rt_{secrets.token_urlsafe(24)}"
            self._refresh[sign_in.refresh_token] = sign_in
            answer["refresh_token"] = sign_in.refresh_token
        return answer

    def _end(self, sign_in: SignIn) -> None:
        sign_in.revoked = True
        for access_token in sign_in.access_tokens:
            self._access.pop(access_token, None)
        sign_in.access_tokens.clear()


def _is_redirect_uri(uri: Any) -> bool:
    if not isinstance(uri, str):
        return False
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        return False
    if not host or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)


def _is_scope(scope: Any) -> bool:
    return isinstance(scope, str) and scope.split() == [SCOPE]


def _s256(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _basic(credentials: str) -> tuple[str, str]:
    try:
        client_id, _, client_secret = base64.b64decode(credentials, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return unquote_plus(client_id), unquote_plus(client_secret)
