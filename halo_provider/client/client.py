"""HaloClient: one call is one HTTP attempt, and every way it can fail is one typed error."""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from halo_provider import __version__
from halo_provider.client.address import DEFAULT_BASE_URL, sdk_url
from halo_provider.client.answers import AnswerT, read_answer
from halo_provider.client.body import ACCEPT_ENCODING, Body, read_body
from halo_provider.client.over_transport import OverTransport
from halo_provider.exceptions import HaloConfigurationError, HaloConnectionError
from halo_provider.models import (
    ANONYMOUS,
    Answer,
    Chat,
    ChatAnswer,
    CreateTicket,
    Events,
    IdentifyCompany,
    IdentifyUser,
    Json,
    Request,
    UpdateUsers,
    UpdateUsersAnswer,
    request_of,
)

PATHS = ("/users/identify", "/users/update", "/companies/identify", "/chat", "/tickets/create", "/events")
CONNECT_TIMEOUT = 10.0  # seconds at most for name, connection and TLS, within the time of the attempt
USER_TOKEN_LIFETIME = 300  # seconds
UPDATE_TOKEN_LIFETIME = 900  # seconds; Halo accepts at most one hour

# httpx raises these before a byte of the request is written. Every other error leaves the request in doubt.
NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


_RequestT = TypeVar("_RequestT", bound=Request)


class HaloClient(OverTransport):
    """Halo's SDK API. Use it as an async context manager; calls may run concurrently.

    Each method makes exactly one HTTP attempt, which lasts at most `timeout` seconds, and raises a HaloCallError whose
    `verdict` says what is known about the request. It takes the fields of its request by keyword, or the request itself
    (of halo_provider.models), and raises HaloConfigurationError for one that Halo would never take.

    With an `identity_secret` every user-scoped call carries a new token. `agent_id` is the agent of chats that name
    none themselves. `ssl_context` says whose certificates are trusted (see halo_provider.client.tls).

    `transport` sends the requests instead of this package's own: an httpx.MockTransport, a recorder, a pool with a
    proxy. As in httpx.AsyncClient the environment's proxies are not used then, and the transport is entered and closed
    together with the client. Its errors decide what a failed attempt means: those in NOT_SENT say that nothing was
    sent, every other exception leaves the request in doubt.
    """

    def __init__(
        self,
        *,
        widget_key: str,
        base_url: str = DEFAULT_BASE_URL,
        identity_secret: str | None = None,
        agent_id: str | None = None,
        timeout: float = 120.0,
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = sdk_url(base_url)
        super().__init__(self.base_url, transport=transport, ssl_context=ssl_context)
        self.agent_id = agent_id
        self.timeout = timeout
        self._identity_secret = identity_secret
        self._clock = clock
        self._urls = {path: httpx.URL(self.base_url + path) for path in PATHS}
        self._headers = httpx.Headers(
            {
                "host": httpx.URL(self.base_url).netloc.decode(),
                "authorization": f"Bearer {widget_key}",
                "content-type": "application/json",
                "accept": "application/json",
                "accept-encoding": ACCEPT_ENCODING,
                "user-agent": f"airflow-provider-halo/{__version__}",
            },
            encoding="utf-8",
        )
        # Connecting ends before the attempt's own time does: only then is it certain that nothing was sent. The attempt
        # as a whole is bounded in attempt, so that reading and writing need no limits of their own.
        connect_timeout = min(CONNECT_TIMEOUT, timeout / 2)
        timeouts = httpx.Timeout(None, connect=connect_timeout, pool=connect_timeout)
        self._extensions = {"timeout": timeouts.as_dict()}

    def __repr__(self) -> str:
        """The address alone: a representation must not show the keys."""
        return f"HaloClient({self.base_url!r})"

    @property
    def signs_tokens(self) -> bool:
        """Whether there is an identity secret to sign user tokens with."""
        return self._identity_secret is not None

    async def identify_user(
        self,
        user_id: str | IdentifyUser,
        *,
        traits: Json | None = None,
        context: Json | None = None,
        session_id: str | None = None,
    ) -> Answer:
        """POST /users/identify: upserts the user and **sets last_seen to now**; never use it over history."""
        request = _request(IdentifyUser, user_id=user_id, traits=traits, context=context, session_id=session_id)
        return await self._post("/users/identify", self._with_user_token(request, request.user_id), Answer)

    async def update_users(
        self, users: Sequence[Mapping[str, Any]] | UpdateUsers, *, update_only: bool = False
    ) -> UpdateUsersAnswer:
        """POST /users/update: up to 1,000 users, never touching last_seen. Needs an identity secret."""
        request = _request(UpdateUsers, users=users, update_only=update_only or None)
        if self._identity_secret is None:
            raise HaloConfigurationError(
                "users/update needs a token signed with the identity secret: put identity_secret (ha_secret_…) "
                "into the connection's extra"
            )
        token = self._sign({"scope": "users.update"}, self._identity_secret, lifetime=UPDATE_TOKEN_LIFETIME)
        return await self._post("/users/update", request.model_copy(update={"user_token": token}), UpdateUsersAnswer)

    async def identify_company(
        self,
        company_id: str | IdentifyCompany,
        *,
        traits: Json | None = None,
        context: Json | None = None,
        user_id: str | None = None,
    ) -> Answer:
        """POST /companies/identify: upserts the company, and links the user when one is named."""
        request = _request(IdentifyCompany, company_id=company_id, traits=traits, context=context, user_id=user_id)
        return await self._post("/companies/identify", self._with_user_token(request, request.user_id), Answer)

    async def chat(self, message: str | Chat, *, user_id: str | None = None, **fields: Any) -> ChatAnswer:
        """POST /chat: the agent answers, and may make a ticket. Takes seconds; there is no idempotency key."""
        request = _request(Chat, message=message, user_id=user_id, **fields)
        if request.agent_id is None and self.agent_id is not None:
            request = request.model_copy(update={"agent_id": self.agent_id})
        return await self._post("/chat", self._with_user_token(request, request.user_id), ChatAnswer)

    async def create_ticket(
        self, subject: str | CreateTicket, *, user_id: str | None = None, email: str | None = None, **fields: Any
    ) -> Answer:
        """POST /tickets/create: a ticket without the AI. One of `user_id` and `email` is required."""
        request = _request(CreateTicket, subject=subject, user_id=user_id, email=email, **fields)
        return await self._post("/tickets/create", self._with_user_token(request, request.user_id), Answer)

    async def send_events(
        self,
        events: Sequence[Mapping[str, Any]] | Events,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> Answer:
        """POST /events: up to 100 behavioural events."""
        request = _request(Events, events=events, user_id=user_id, session_id=session_id)
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

    async def _post(self, path: str, body: Request, answer: type[AnswerT]) -> AnswerT:
        response, content = await self.attempt(path, body.model_dump_json(exclude_none=True).encode())
        return read_answer(path, response, content, answer, url=self.base_url + path, request=body)

    def _request(self, path: str, body: bytes) -> httpx.Request:
        """The request that ``httpx.Request(content=body)`` gives, without preparing the same headers for each call."""
        self._headers["content-length"] = str(len(body))  # the request takes a copy
        request = httpx.Request(
            "POST", self._urls[path], headers=self._headers, stream=httpx.ByteStream(body), extensions=self._extensions
        )
        request.read()
        return request

    async def attempt(self, path: str, body: bytes) -> tuple[httpx.Response, Body]:
        """POST these bytes as they are, one attempt, and return the answer, whatever its status, read and decompressed.

        For what the methods above do not send: they check a request first, and turn the answer into its model. Raises
        HaloConnectionError.
        """
        if self._transport is None:
            raise RuntimeError("HaloClient is an async context manager: async with client: …")
        request = self._request(path, body)
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._transport.handle_async_request(request)
                content = await read_body(response)
        except NOT_SENT as error:
            raise HaloConnectionError(path, sent=False, reason=_reason(error)) from error
        except (TimeoutError, httpx.ReadTimeout) as error:
            raise HaloConnectionError(path, sent=True, reason=f"no answer within {self.timeout:g} s") from error
        except Exception as error:
            raise HaloConnectionError(path, sent=True, reason=_reason(error)) from error
        return response, content


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _request(model: type[_RequestT], **fields: Any) -> _RequestT:
    """The request that the first field already is, or the one that has these fields; None is a field not given."""
    first = next(iter(fields.values()))
    given = {name: value for name, value in fields.items() if value is not None}
    if not isinstance(first, model):
        return request_of(model, **given)
    if len(given) > 1:
        raise TypeError(f"give a {model.__name__} or its fields, not both")
    return first
