"""Signing in for reading, by OAuth 2.1: discovery, registration, authorization code with PKCE, refresh, revocation.

Authlib makes the requests' contents and reads the answers' meaning; this package's own transport carries them, as it
carries everything else. Halo documents RFC 9728, 8414, 7591, 7636 and 7009, and that a refresh token is good for one
use: used again, it revokes everything that was derived from it.
"""

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from pydantic_core import to_json

from halo_provider.client.web import Reply, Web
from halo_provider.exceptions import HaloConfigurationError, HaloReadError, HaloSignInError
from halo_provider.models import SignIn

SCOPE = "data:read"
CLIENT_NAME = "airflow-provider-halo"
# Errors of a token endpoint (RFC 6749, 5.2) that no repetition changes.
_FINAL_ERRORS = frozenset({"invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type"})


class Endpoints(NamedTuple):
    """The addresses of the authorization server, and the resource that tokens are for."""

    resource: str
    issuer: str
    authorization: str
    token: str
    registration: str | None
    revocation: str | None


class Client(NamedTuple):
    """What the server registered this program as."""

    client_id: str
    client_secret: str | None
    auth: str


class Request(NamedTuple):
    """A sign-in under way: the address that a person opens, and what belongs to it."""

    url: str
    state: str
    verifier: str
    redirect_uri: str


class Renewed(NamedTuple):
    """New tokens, and the seconds that the access token is valid; None where the server does not say."""

    sign_in: SignIn
    lifetime: float | None


def check_installed() -> None:
    """Raise HaloConfigurationError where Authlib is not installed."""
    _authlib()


async def discover(web: Web, mcp_url: str) -> Endpoints:
    """The addresses, by RFC 9728 and 8414. Raises HaloReadError."""
    library = _authlib()
    challenge = await web.send("POST", mcp_url, content=b"{}", headers={"content-type": "application/json"})
    place = _metadata_place(challenge) or _well_known(mcp_url)
    described = (await web.send("GET", place)).json()
    resource = described if isinstance(described, Mapping) else {}
    servers = resource.get("authorization_servers")
    parts = urlsplit(mcp_url)
    issuer = servers[0] if isinstance(servers, list) and servers else f"{parts.scheme}://{parts.netloc}"
    found = (await web.send("GET", library.get_well_known_url(str(issuer), external=True))).json()
    if not isinstance(found, Mapping):
        raise HaloReadError(f"{issuer} describes no authorization server (RFC 8414)")
    methods = found.get("code_challenge_methods_supported")
    if isinstance(methods, list) and "S256" not in methods:
        raise HaloReadError(f"{issuer} does not take PKCE with S256")
    return Endpoints(
        resource=str(resource.get("resource") or mcp_url),
        issuer=str(issuer),
        authorization=_secure(found, "authorization_endpoint") or _missing("authorization_endpoint", issuer),
        token=_secure(found, "token_endpoint") or _missing("token_endpoint", issuer),
        registration=_secure(found, "registration_endpoint"),
        revocation=_secure(found, "revocation_endpoint"),
    )


async def register(web: Web, endpoints: Endpoints, *, redirect_uri: str) -> Client:
    """Register this program, by RFC 7591; Halo takes ten an hour from one address. Raises HaloReadError."""
    if endpoints.registration is None:
        raise HaloReadError(f"{endpoints.issuer} registers no programs (RFC 7591)")
    wanted = {
        "client_name": CLIENT_NAME,
        "redirect_uris": [redirect_uri],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "scope": SCOPE,
    }
    headers = {"content-type": "application/json"}
    reply = await web.send("POST", endpoints.registration, content=to_json(wanted), headers=headers)
    found = reply.json()
    if reply.status not in {200, 201} or not isinstance(found, Mapping) or not found.get("client_id"):
        raise HaloReadError(f"registering failed with {reply.status}: {_error_of(found)}")
    client_secret = found.get("client_secret")
    default = "client_secret_basic" if client_secret else "none"
    return Client(str(found["client_id"]), client_secret, str(found.get("token_endpoint_auth_method") or default))


def begin(endpoints: Endpoints, client: Client, *, redirect_uri: str) -> Request:
    """The address that a person opens to approve."""
    library = _authlib()
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
    url = library.prepare_grant_uri(
        endpoints.authorization,
        client.client_id,
        "code",
        redirect_uri=redirect_uri,
        scope=SCOPE,
        state=state,
        code_challenge=library.create_s256_code_challenge(verifier),
        code_challenge_method="S256",
        resource=endpoints.resource,
    )
    return Request(str(url), state, verifier, redirect_uri)


async def finish(web: Web, endpoints: Endpoints, client: Client, request: Request, *, answer: str) -> Renewed:
    """Change the code for tokens. `answer` is the address to which the person was sent back. Raises HaloSignInError."""
    library = _authlib()
    answered = {name: values[0] for name, values in parse_qs(urlsplit(answer).query).items()}
    if not secrets.compare_digest(answered.get("state", ""), request.state):
        raise HaloSignInError("the answer does not belong to this sign-in")
    if answered.get("iss", endpoints.issuer) != endpoints.issuer:
        raise HaloSignInError("the answer is another server's")
    if "code" not in answered:
        raise HaloSignInError(f"the sign-in was not approved: {answered.get('error', 'no code came back')}")
    body = library.prepare_token_request(
        "authorization_code",
        redirect_uri=request.redirect_uri,
        code=answered["code"],
        code_verifier=request.verifier,
        resource=endpoints.resource,
    )
    sign_in = SignIn.model_validate(
        {
            "client_id": client.client_id,
            "client_secret": client.client_secret,
            "client_auth": client.auth,
            "token_endpoint": endpoints.token,
            "revocation_endpoint": endpoints.revocation,
            "resource": endpoints.resource,
            "access_token": "none yet",
        }
    )
    return await _tokens(web, sign_in, body)


async def refresh(web: Web, sign_in: SignIn) -> Renewed:
    """New tokens for the refresh token, which is used up by that.

    Raises HaloSignInError where the server does not take it, and another HaloReadError where nothing is known; that one
    has `sent` False where the token is certainly not used up.
    """
    if sign_in.refresh_token is None:
        raise HaloSignInError("the sign-in has ended, and came without a refresh token")
    body = _authlib().prepare_token_request(
        "refresh_token", refresh_token=sign_in.refresh_token, resource=sign_in.resource
    )
    return await _tokens(web, sign_in, body)


async def revoke(web: Web, sign_in: SignIn) -> bool:
    """Let Halo forget the sign-in, by RFC 7009; whether it said that it has. Raises HaloReadError."""
    if sign_in.revocation_endpoint is None:
        return False
    token = sign_in.refresh_token or sign_in.access_token
    hint = "refresh_token" if sign_in.refresh_token else "access_token"
    body, _ = _authlib().prepare_revoke_token_request(token, hint)
    return (await _post_form(web, sign_in.revocation_endpoint, sign_in, body)).status == 200  # noqa: PLR2004 -- RFC 7009


async def _tokens(web: Web, sign_in: SignIn, body: str) -> Renewed:
    reply = await _post_form(web, sign_in.token_endpoint, sign_in, body)
    found = reply.json()
    answered: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if reply.status == 200 and isinstance(answered.get("access_token"), str):  # noqa: PLR2004 -- RFC 6749
        lifetime = answered.get("expires_in")
        renewed = sign_in.model_copy(
            update={
                "access_token": answered["access_token"],
                "refresh_token": answered.get("refresh_token") or sign_in.refresh_token,
                "scope": answered.get("scope") or sign_in.scope,
            }
        )
        return Renewed(renewed, float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else None)
    reason = f"the token endpoint answered {reply.status}: {_error_of(found)}"
    if answered.get("error") in _FINAL_ERRORS:
        raise HaloSignInError(reason)
    raise HaloReadError(reason)


async def _post_form(web: Web, url: str, sign_in: SignIn, body: str) -> Reply:
    auth = _authlib().ClientAuth(sign_in.client_id, sign_in.client_secret, sign_in.client_auth)
    url, headers, body = auth.prepare("POST", url, {"content-type": "application/x-www-form-urlencoded"}, body)
    return await web.send("POST", url, content=body.encode(), headers=headers)


def _metadata_place(challenge: Reply) -> str | None:
    """The address of the resource's description that a 401 names."""
    header: str = challenge.headers.get("www-authenticate", "")
    for part in header.replace(",", " ").split():
        name, _, value = part.partition("=")
        if name.lower() == "resource_metadata":
            return value.strip('"')
    return None


def _well_known(mcp_url: str) -> str:
    parts = urlsplit(mcp_url)
    return f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource{parts.path}"


def _secure(found: Mapping[str, Any], name: str) -> str | None:
    """The address of this name. Raises HaloReadError where it is neither https nor this host's own."""
    url: Any = found.get(name)
    if not isinstance(url, str) or not url:
        return None
    if not _authlib().is_secure_transport(url):
        raise HaloReadError(f"{name} of the authorization server is no https address")
    return str(url)


def _missing(name: str, issuer: object) -> str:
    raise HaloReadError(f"{issuer} names no {name}")


def _error_of(found: Any) -> str:
    if not isinstance(found, Mapping):
        return "no reason given"
    words = " ".join(str(found[name]) for name in ("error", "error_description") if found.get(name))
    return words[:200] or "no reason given"


class _Library(NamedTuple):
    """What is used of Authlib."""

    ClientAuth: Any
    create_s256_code_challenge: Any
    get_well_known_url: Any
    is_secure_transport: Any
    prepare_grant_uri: Any
    prepare_revoke_token_request: Any
    prepare_token_request: Any


def _authlib() -> "_Library":
    """Authlib's functions. Raises HaloConfigurationError where it is not installed."""
    try:
        from authlib.common import security  # noqa: PLC0415 -- optional, and not needed where nothing is read
        from authlib.oauth2 import ClientAuth, rfc7009, rfc7636, rfc8414  # noqa: PLC0415
        from authlib.oauth2.rfc6749 import parameters  # noqa: PLC0415
    except ImportError as error:
        raise HaloConfigurationError(
            "reading from Halo needs Authlib: pip install 'airflow-provider-halo[read]'"
        ) from error
    return _Library(
        ClientAuth,
        rfc7636.create_s256_code_challenge,
        rfc8414.get_well_known_url,
        security.is_secure_transport,
        parameters.prepare_grant_uri,
        rfc7009.prepare_revoke_token_request,
        parameters.prepare_token_request,
    )
