"""The simulator as an ASGI application: the SDK endpoints, faults, limits on requests, and the record of it all."""

import random
import time
from collections.abc import Callable
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from halo_provider.simulator import rules, tokens, wire
from halo_provider.simulator.answers import Answers, RateHeaders
from halo_provider.simulator.endpoints import CHAT, CHECKS, EFFECTS, UPDATE_USERS
from halo_provider.simulator.exchange import exchange
from halo_provider.simulator.faults import Fault
from halo_provider.simulator.halo import SimulatedHalo
from halo_provider.simulator.journal import RequestRecord
from halo_provider.simulator.limits import Arrival, Limit, TokenBucket
from halo_provider.simulator.mcp import READING_PATHS, ReadingSide
from halo_provider.simulator.pages import create_pages
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.rules import Json, Refused
from halo_provider.simulator.wire import Answer
from halo_provider.simulator.workspace import ANONYMOUS

SDK_PATH = "/api/sdk"
EXAMPLE_WIDGET_KEY = "ab_live_example_widget_key"
NO_FAULT = Fault.slow(0.0)


class Simulator(SimulatedHalo):
    """A local Halo: an ASGI application that obeys Halo's documentation strictly, to be served by uvicorn.

    `identity_secret` verifies user tokens; `enforce_verification` demands one of every call for a known user.
    With `accept_unknown_sessions` a session_id that Halo did not make begins a session, instead of 400: which of the
    two Halo does is not documented. Latencies are ranges of seconds, drawn with `seed`. `limit` is what Halo refuses or
    slows down (see `halo_provider.simulator.limits`), reckoned in the seconds of `clock`; `requests_per_second` and
    `burst` are short for a token bucket. It concerns requests with a valid key to all endpoints together; a scripted
    fault that precedes acceptance precedes the limit too. Without `record_bodies` messages, contexts and request bodies
    are not kept (then 1.5 kB a chat, 0.75 GB for half a million); ids, times and counts always are.

    `reading` is how Halo's MCP server and its sign-in behave (see `halo_provider.simulator.reading`); they see the same
    workspace, and count against a limit of their own. `answers` is what else Halo leaves open about its answers (see
    `halo_provider.simulator.answers`).

    Attributes and methods may be used from another thread than the server's while no request is being made; `limit`,
    `reading`, `answers`, `enforce_verification` and `accept_unknown_sessions` may be set at any time.
    """

    def __init__(
        self,
        *,
        widget_key: str = EXAMPLE_WIDGET_KEY,
        identity_secret: str | None = None,
        enforce_verification: bool = False,
        chat_latency: tuple[float, float] = (0.0, 0.0),
        other_latency: tuple[float, float] = (0.0, 0.0),
        limit: Limit | None = None,
        requests_per_second: float | None = None,
        burst: int | None = None,
        seed: int = 0,
        reading: Reading | None = None,
        answers: Answers | None = None,
        accept_unknown_sessions: bool = False,
        record_bodies: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if enforce_verification and identity_secret is None:
            raise ValueError("enforce_verification needs an identity_secret to verify tokens with")
        if requests_per_second is not None:
            if limit is not None:
                raise ValueError("limit and requests_per_second are two limits; AllOf makes one of several")
            limit = TokenBucket(rate=requests_per_second, burst=burst)
        super().__init__(record_bodies=record_bodies, limit=limit, reading=reading or Reading(), clock=clock)
        self.identity_secret = identity_secret
        self.enforce_verification = enforce_verification
        self.accept_unknown_sessions = accept_unknown_sessions
        self.answers = answers or Answers()
        self.chat_latency = chat_latency
        self.other_latency = other_latency
        self._authorization = f"Bearer {widget_key}".encode()
        self._random = random.Random(seed)  # noqa: S311 - reproducible latencies, no cryptography
        self._pages = create_pages(self)
        self._reading_side = ReadingSide(self, seed=seed)
        self._rate_headers = RateHeaders(clock=self.now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] == "http" and scope["path"].startswith(f"{SDK_PATH}/"):
            await self._exchange(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in READING_PATHS:
            await self._reading_side(scope, receive, send)
        else:
            await self._pages(scope, receive, send)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request, let it meet its fault, record it and answer."""
        started = time.monotonic()
        content = await wire.read_body(receive)
        if content is None:
            return
        body = rules.parse(content)
        record = RequestRecord(
            path=scope["path"].removeprefix(SDK_PATH),
            started=started,
            authorized=_header(scope, b"authorization") == self._authorization,
            user_id=_user_id(body),
            body=_without_token(body) if self.record_bodies else None,
        )
        fault = self.take_fault(path=record.path, user_id=record.user_id) or NO_FAULT

        def respond() -> tuple[Answer, float]:
            arrival = Arrival(now=self.now(), in_flight=self._journal.in_flight, user_id=record.user_id)
            answer = self._consider(scope, content, body, record=record, arrival=arrival)
            return self._with_rate_headers(answer), self._latency(record, arrival=arrival)

        await exchange(record, fault=fault, journal=self._journal, respond=respond, receive=receive, send=send)

    def _consider(
        self, scope: Scope, sent: bytes, body: Json | None, *, record: RequestRecord, arrival: Arrival
    ) -> Answer:
        """Accept or refuse a request, and return Halo's answer."""
        try:
            self._admit(scope, record=record, arrival=arrival)
            if self.answers.largest_body is not None and len(sent) > self.answers.largest_body:
                raise Refused(413, "the body is too large")  # noqa: TRY301 - the answer is made in one place
            content = self._accept(scope, body, record=record)
        except Refused as refusal:
            return self.answers.refusal(refusal)
        except RecursionError:
            return self.answers.refusal(Refused(400, "the body is nested too deeply"))
        record.accepted = True
        if record.path == CHAT:
            record.chat = self.chats[-1]
            ticket = self.sessions[record.chat.session_id].ticket
            if self.answers.name_tickets and ticket is not None and record.chat in ticket.chats:
                content["ticket_id"] = ticket.ticket_id
        return Answer(200, content)

    def _with_rate_headers(self, answer: Answer) -> Answer:
        if self.answers.rate_limit is None:
            return answer
        headers = self._rate_headers.of_next_answer(self.answers.rate_limit)
        return replace(answer, headers={**answer.headers, **headers})

    def _admit(self, scope: Scope, *, record: RequestRecord, arrival: Arrival) -> None:
        if record.path not in CHECKS:
            raise Refused(404, "there is no such endpoint")
        if scope["method"] != "POST":
            raise Refused(405, "use POST", headers={"Allow": "POST"})
        if not record.authorized:
            raise Refused(401, "the widget key is missing or invalid")
        if (refusal := self._limiter.admit(arrival)) is not None:
            raise Refused(refusal.status, "too many requests", headers=refusal.headers())
        self._journal.admit(record)

    def _accept(self, scope: Scope, body: Json | None, *, record: RequestRecord) -> Json:
        if not _header(scope, b"content-type").startswith(b"application/json"):
            raise Refused(400, "Content-Type must be application/json")
        if body is None:
            raise Refused(400, "the body must be a JSON object in UTF-8")
        CHECKS[record.path](body)
        if record.path == UPDATE_USERS:
            tokens.check_update_token(body.get("user_token"), secret=self.identity_secret)
        else:
            self._check_identity(body)
        if record.path == CHAT and self.accept_unknown_sessions:
            self._workspace.begin_session(body)
        elif record.path == CHAT and self.answers.replace_unknown_sessions:
            body = self._workspace.without_unknown_session(body)
        return EFFECTS[record.path](self._workspace, body)

    def _check_identity(self, body: Json) -> None:
        user_id, token = body.get("user_id"), body.get("user_token")
        if token is not None and self.identity_secret is not None:
            tokens.check_user_token(token, secret=self.identity_secret, user_id=user_id)
        elif self.enforce_verification and user_id not in (None, ANONYMOUS):
            raise Refused(403, "identity verification is enforced: user_token is required")

    def _latency(self, record: RequestRecord, *, arrival: Arrival) -> float:
        if not record.accepted:
            return 0.0
        base = self._random.uniform(*(self.chat_latency if record.path == CHAT else self.other_latency))
        return self._limiter.latency(arrival, base=base)


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def _user_id(body: Json | None) -> str | None:
    user_id = body.get("user_id") if body is not None else None
    return user_id if isinstance(user_id, str) else None


def _without_token(body: Json | None) -> Json | None:
    if body is None or "user_token" not in body:
        return body
    return {**body, "user_token": tokens.unverified_claims(body["user_token"])}
