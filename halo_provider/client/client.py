"""HaloClient: one call is one HTTP attempt, and every way it can fail is one typed error."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from halo_provider import __version__
from halo_provider.client.transport import AiohttpTransport, Reply, aiohttp_transport
from halo_provider.exceptions import (
    HaloAuthenticationError,
    HaloConfigurationError,
    HaloConnectionError,
    HaloPermissionError,
    HaloProxyAuthenticationError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloRejectedError,
    HaloResponseError,
    HaloServerError,
    HaloStatusError,
)
from halo_provider.models import (
    ANONYMOUS,
    Answer,
    Chat,
    ChatAnswer,
    CreateTicket,
    Events,
    IdentifyCompany,
    IdentifyUser,
    Request,
    UpdateUsers,
    UpdateUsersAnswer,
)

DEFAULT_BASE_URL = "https://api.haloagents.ai"
SDK_PATH = "/api/sdk"
CONNECT_TIMEOUT = 10.0  # seconds at most for name, connection and TLS, within the time of the attempt
MAX_RETRY_AFTER = 86_400.0  # seconds: a longer wish is taken for a day
USER_TOKEN_LIFETIME = 300  # seconds
UPDATE_TOKEN_LIFETIME = 900  # seconds; Halo accepts at most one hour

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
_ResponseT = TypeVar("_ResponseT", bound=BaseModel)


def sdk_url(base_url: str) -> str:
    """The SDK's address: `base_url`, with ``/api/sdk`` added when it has no path of its own.

    Raises HaloConfigurationError for anything but an http or https address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise HaloConfigurationError(f"the connection's host is not an address: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise HaloConfigurationError(f"the connection's host needs a full address like {DEFAULT_BASE_URL}")
    if url.userinfo or url.query or url.fragment:
        raise HaloConfigurationError("the connection's host must be a plain address: no credentials, query or fragment")
    path = url.path.rstrip("/")
    return str(url.copy_with(path=path or SDK_PATH))


def environment_proxy(url: str) -> httpx.Proxy | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name for this address, if any.

    Raises HaloConfigurationError for one that is no http or https address; the text does not repeat it, as it may hold
    a password.
    """
    address = httpx.URL(url)
    named = getproxies().get(address.scheme)
    if not named or proxy_bypass(address.netloc.decode()):
        return None
    with suppress(httpx.InvalidURL, ValueError):
        proxy = httpx.Proxy(named if "://" in named else f"http://{named}")
        if proxy.url.scheme in {"http", "https"}:
            return proxy
    raise HaloConfigurationError(
        f"the environment's {address.scheme}_proxy is no http or https address: mend it, or put Halo into no_proxy"
    )


def retry_after(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks to wait, at most MAX_RETRY_AFTER; None if it says nothing.

    RFC 9110 has whole seconds and HTTP-dates; a fraction of a second is understood too.
    """
    if header is None:
        return None
    if _SECONDS.fullmatch(seconds := header.strip()):
        return min(float(seconds), MAX_RETRY_AFTER)
    try:
        timestamp = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    return min(max(0.0, (timestamp - now).total_seconds()), MAX_RETRY_AFTER)


def error_message(content: bytes) -> str:
    """Halo's words in an error answer, whose shape it does not document: ``error`` or ``message``, else the text."""
    try:
        body: Any = from_json(content)
    except ValueError:
        body = None
    while isinstance(body, dict):
        body = body.get("error") or body.get("message") or body.get("detail")
    if isinstance(body, str) and body.strip():
        return body.strip()
    return content.decode("utf-8", errors="replace").strip() or "no message"


def status_error(path: str, *, status: int, content: bytes, wait: float | None) -> HaloStatusError:
    """The typed error of an answer that is not a success."""
    match status:
        case 401:
            kind: type[HaloStatusError] = HaloAuthenticationError
        case 403:
            kind = HaloPermissionError
        case 407:
            kind = HaloProxyAuthenticationError
        case 429:
            kind = HaloRateLimitError
        case 408 | 425:
            kind = HaloServerError
        case _ if 400 <= status < 500:  # noqa: PLR2004 -- the class of client errors
            kind = HaloRejectedError
        case _ if 300 <= status < 400:  # noqa: PLR2004 -- the class of redirects
            kind = HaloRedirectError
        case _:
            kind = HaloServerError
    return kind(path, status=status, message=error_message(content), retry_after=wait)


class HaloClient:
    """Halo's SDK API. Use it as an async context manager; calls may run concurrently.

    Each method makes exactly one HTTP attempt, lasting at most `timeout` seconds, and raises a HaloCallError whose
    `verdict` says what is known about the request. With an `identity_secret` every user-scoped call carries a fresh
    token. `agent_id` pins chats that name no agent themselves.
    """

    def __init__(
        self,
        *,
        widget_key: str,
        base_url: str = DEFAULT_BASE_URL,
        identity_secret: str | None = None,
        agent_id: str | None = None,
        timeout: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = sdk_url(base_url)
        self.agent_id = agent_id
        self.timeout = timeout
        self._identity_secret = identity_secret
        self._clock = clock
        self._headers = {
            "authorization": f"Bearer {widget_key}",
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"airflow-provider-halo/{__version__}",
        }
        self._transport: AiohttpTransport | None = None

    def __repr__(self) -> str:
        """The address alone: keys have no place in a representation."""
        return f"HaloClient({self.base_url!r})"

    @property
    def signs_tokens(self) -> bool:
        """Whether there is an identity secret to sign user tokens with."""
        return self._identity_secret is not None

    async def __aenter__(self) -> Self:
        self._transport = aiohttp_transport(
            headers=self._headers,
            timeout=self.timeout,
            # It ends before the attempt's own time does: only then is it certain that nothing was sent.
            connect_timeout=min(CONNECT_TIMEOUT, self.timeout / 2),
            proxy=environment_proxy(self.base_url),
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    async def identify_user(self, request: IdentifyUser) -> Answer:
        """POST /users/identify: upserts the user and **sets last_seen to now**; never use it over history."""
        return await self._post("/users/identify", self._with_user_token(request, request.user_id), Answer)

    async def update_users(self, request: UpdateUsers) -> UpdateUsersAnswer:
        """POST /users/update: up to 1,000 users, never touching last_seen. Needs an identity secret."""
        if self._identity_secret is None:
            raise HaloConfigurationError(
                "users/update needs a token signed with the identity secret: put identity_secret (ha_secret_…) "
                "into the connection's extra"
            )
        token = self._sign({"scope": "users.update"}, self._identity_secret, lifetime=UPDATE_TOKEN_LIFETIME)
        return await self._post("/users/update", request.model_copy(update={"user_token": token}), UpdateUsersAnswer)

    async def identify_company(self, request: IdentifyCompany) -> Answer:
        """POST /companies/identify: upserts the company, and links the user when one is named."""
        return await self._post("/companies/identify", self._with_user_token(request, request.user_id), Answer)

    async def chat(self, request: Chat) -> ChatAnswer:
        """POST /chat: the agent answers, and may make a ticket. Takes seconds; there is no idempotency key."""
        if request.agent_id is None and self.agent_id is not None:
            request = request.model_copy(update={"agent_id": self.agent_id})
        return await self._post("/chat", self._with_user_token(request, request.user_id), ChatAnswer)

    async def create_ticket(self, request: CreateTicket) -> Answer:
        """POST /tickets/create: a ticket without the AI."""
        return await self._post("/tickets/create", self._with_user_token(request, request.user_id), Answer)

    async def send_events(self, request: Events) -> Answer:
        """POST /events: up to 100 behavioural events."""
        return await self._post("/events", self._with_user_token(request, request.user_id), Answer)

    def _with_user_token(self, request: Request, user_id: str | None) -> Request:
        if self._identity_secret is None or user_id is None or user_id == ANONYMOUS:
            return request
        token = self._sign({"user_id": user_id}, self._identity_secret, lifetime=USER_TOKEN_LIFETIME)
        return request.model_copy(update={"user_token": token})

    def _sign(self, claims: dict[str, Any], secret: str, *, lifetime: int) -> str:
        import jwt  # noqa: PLC0415 -- slow to import, and not needed where a DAG is parsed

        now = int(self._clock())
        return jwt.encode({**claims, "iat": now, "exp": now + lifetime}, secret, algorithm="HS256")

    async def _post(self, path: str, body: Request, answer: type[_ResponseT]) -> _ResponseT:
        reply = await self._attempt(path, body.model_dump_json(exclude_none=True).encode())
        if not 200 <= reply.status < 300:  # noqa: PLR2004 -- the class of successes
            wait = retry_after(reply.headers.get("retry-after"), now=datetime.now(UTC))
            raise status_error(path, status=reply.status, content=reply.content, wait=wait)
        try:
            return answer.model_validate_json(reply.content)
        except ValidationError as error:
            words = reply.content.decode("utf-8", errors="replace")
            place = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"])
            reason = f"the answer has no usable {place}" if place else "the answer is not a JSON object"
            raise HaloResponseError(path, reason=reason, reply=words) from None

    async def _attempt(self, path: str, body: bytes) -> Reply:
        if self._transport is None:
            raise RuntimeError("HaloClient is an async context manager: async with client: …")
        try:
            return await self._transport.post(self.base_url + path, body=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise HaloConnectionError(path, sent=False, reason=str(error)) from error
        except httpx.ReadTimeout as error:
            raise HaloConnectionError(path, sent=True, reason=f"no answer within {self.timeout:g} s") from error
        except httpx.TransportError as error:
            raise HaloConnectionError(path, sent=True, reason=str(error)) from error
