"""Finds out about a workspace what Halo's documentation says of it, and what the documentation leaves open.

At most MAX_REQUESTS requests, one after the other, each of them once: nothing is tried again, and a refusal for want of
a key, of time or of a connection ends the check. What is reported holds names of fields, lengths, statuses and times,
and never a value of an answer, a key or a token.
"""

import json
import re
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from halo_provider.client.answers import retry_after
from halo_provider.client.client import HaloClient
from halo_provider.exceptions import HaloConfigurationError, HaloConnectionError
from halo_provider.models import ANONYMOUS, MAX_MESSAGE

MAX_REQUESTS = 30
LATENCIES = 10  # answered chats whose time is taken
TOKEN_LIFETIME = 300  # seconds
LARGE = 1_000_000  # characters of a message that no limit allows
SHOWN_FIELDS = 20  # of an object in the shape of an answer
SHOWN_DEPTH = 3
PLAIN = "This is a check of the connection by airflow-provider-halo. It needs no answer."
ASKS_FOR_A_TICKET = "Please create a support ticket. This is a check by airflow-provider-halo: it can be closed."
CONCURRENCY = 64  # the operators' default

_NAME = re.compile(r"[A-Za-z][\w.-]{0,39}")
_RATE_HEADER = re.compile(r"rate-?limit|retry-after|quota", re.IGNORECASE)
_NUMBERS = re.compile(r"[\w ,;=.:\"/-]{1,60}")
_TICKET = re.compile(r"ticket|escalat", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One question and its answer; `result` is a word for programs, or None where it was not asked."""

    name: str
    question: str
    documented: str
    result: str | None
    found: str
    means: str


@dataclass(kw_only=True)
class CheckReport:
    """What a check found, and what it left behind in the workspace."""

    base_url: str
    user_id: str
    checked_at: datetime
    findings: list[Finding] = field(default_factory=list)
    requests: int = 0
    session_ids: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of the answered chats, in their order."""
    ended_early: str | None = None
    """Why the check ended before its last request."""

    @property
    def whole(self) -> bool:
        """Whether every request was made that the connection allows."""
        return self.ended_early is None

    def summary(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "base_url": self.base_url,
            "user_id": self.user_id,
            "checked_at": self.checked_at.isoformat(timespec="seconds"),
            "whole": self.whole,
            "ended_early": self.ended_early,
            "requests": self.requests,
            "findings": [asdict(finding) for finding in self.findings],
            "chat_seconds": [round(each, 3) for each in self.seconds],
            "session_ids": self.session_ids,
        }


def announcement(*, base_url: str, user_id: str, signs_tokens: bool, ticket: bool) -> list[str]:
    """What a check is going to do, as lines for a person."""
    identified = "7 times" if signs_tokens else "once"
    return [
        f"It sends at most {MAX_REQUESTS} requests to {base_url}, one after the other. It tries nothing again.",
        f"It identifies the user {user_id!r} {identified}: Halo sets last_seen to now, and may start automations.",
        "Take a user made for tests.",
        f"It sends about {LATENCIES} chats as this user, in 1 to 3 conversations. Halo's agent answers each of them.",
        "One chat asks for a ticket: your team may be notified."
        if ticket
        else "No chat asks for a ticket; an agent that always escalates may make one all the same.",
        "It sends 3 to 4 bodies that Halo should refuse, and writes nothing to the ledger.",
    ]


class _EndedError(Exception):
    """The check cannot go on."""


class _Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any
    """Parsed from JSON; None where it is no JSON."""
    content: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300  # noqa: PLR2004 -- the class of successes

    @property
    def session_id(self) -> str | None:
        found = self.body.get("session_id") if isinstance(self.body, dict) else None
        return found if isinstance(found, str) else None

    @property
    def shape(self) -> str:
        """The names and types of the answer, without a value."""
        return _shape(self.body) if self.body is not None else f"no JSON, {len(self.content):,} bytes"

    @property
    def words(self) -> str:
        """Where this package finds Halo's words in the answer: as halo_provider.client.answers looks for them."""
        found, path = self.body, ""
        while isinstance(found, dict):
            name = next((name for name in ("error", "message", "detail") if found.get(name)), None)
            if name is None:
                return "the whole answer"
            found, path = found[name], f"{path}.{name}" if path else name
        return f"its field {path}" if path else "the whole answer"

    def means(self) -> str:
        """How a delivery takes this answer to a row."""
        if self.ok:
            return "such a row counts as delivered"
        if self.status >= 500 or self.status in {408, 425}:  # noqa: PLR2004 -- the class of server errors
            return "such a row is in doubt, and is sent again within max_attempts"
        return f"such a row is rejected, and {self.words} is quoted as the reason"


async def check_workspace(
    client: HaloClient,
    *,
    user_id: str,
    identity_secret: str | None,
    ticket: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> CheckReport:
    """Ask a workspace what `announcement` says, through an open client.

    `identity_secret` signs the tokens; without it they are not asked about. With `ticket` one chat asks for a ticket.
    Raises HaloConfigurationError for a user_id that is none.
    """
    if not user_id.strip() or user_id == ANONYMOUS:
        raise HaloConfigurationError("the check needs the id of a user made for tests, and not the anonymous user")
    check = _Check(client, user_id=user_id, identity_secret=identity_secret, ticket=ticket, clock=clock)
    try:
        await check.run()
    except _EndedError as ended:
        check.report.ended_early = str(ended)
    found = {finding.name: finding for finding in check.report.findings + check.unanswered()}
    check.report.findings = [found[name] for name in QUESTIONS]
    return check.report


class _Check:
    def __init__(
        self,
        client: HaloClient,
        *,
        user_id: str,
        identity_secret: str | None,
        ticket: bool,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._user_id = user_id
        self._secret = identity_secret
        self._ticket = ticket
        self._clock = clock
        self._rate_headers: dict[str, str] = {}
        self._why_not: dict[str, str] = {}
        """Why a question was not asked, where it is not that the check ended before."""
        self.report = CheckReport(
            base_url=client.base_url, user_id=user_id, checked_at=datetime.now(UTC).replace(microsecond=0)
        )

    async def run(self) -> None:
        """Ask everything, in an order in which what fails early saves the requests that depend on it."""
        await self._key()
        if self._secret is None:
            reason = "the connection's extra has no identity_secret to sign a token with"
            self._why_not |= {name: reason for name in QUESTIONS if name.startswith("token")}
        enforced = await self._verification()
        accepted = await self._tokens() if self._secret is not None else not enforced
        if accepted:
            await self._malformed()
            session_id = await self._answers()
            await self._own_session_id()
            await self._latency(session_id)
        self._rates()
        if not accepted:
            reason = "no chat was answered: " + (
                "Halo took no user_token" if self._secret else "identity verification needs an identity_secret"
            )
            raise _EndedError(reason)

    async def _post(self, path: str, body: dict[str, Any] | bytes) -> _Reply:
        """Make one request. Raises _EndedError where no further one makes sense."""
        if self.report.requests >= MAX_REQUESTS:
            raise _EndedError(f"{MAX_REQUESTS} requests were made")
        self.report.requests += 1
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        began = self._clock()
        try:
            response, answer = await self._client.attempt(path, content)
        except HaloConnectionError as error:
            raise _EndedError(str(error)) from error
        seconds = self._clock() - began
        for name, value in response.headers.items():
            if _RATE_HEADER.search(name) and _NAME.fullmatch(name):
                self._rate_headers[name] = value if _NUMBERS.fullmatch(value) else "…"
        if response.status_code == 429:  # noqa: PLR2004 -- too many requests
            wait = retry_after(response.headers.get("retry-after"), now=datetime.now(UTC))
            raise _EndedError(
                "Halo asks to send fewer requests (429)"
                + (f" and to come back in {wait:g} s" if wait is not None else "")
                + "; nothing was tried again"
            )
        try:
            parsed = json.loads(answer.content)
        except ValueError:
            parsed = None
        return _Reply(response.status_code, dict(response.headers), parsed, answer.content, seconds)

    async def _chat(self, **fields: Any) -> _Reply:
        """Send a chat as the test user; a valid one takes part in the latencies."""
        body = {"message": PLAIN, "user_id": self._user_id, **fields}
        if self._client.agent_id is not None:
            body["agent_id"] = self._client.agent_id
        if self._secret is not None:
            body["user_token"] = self._token({"user_id": self._user_id})
        reply = await self._post("/chat", body)
        if reply.ok:
            self.report.seconds.append(reply.seconds)
            if reply.session_id and reply.session_id not in self.report.session_ids:
                self.report.session_ids.append(reply.session_id)
        return reply

    def _token(self, claims: dict[str, Any], *, secret: str | None = None, lifetime: int = TOKEN_LIFETIME) -> str:
        import jwt  # noqa: PLC0415 -- slow to import, and not needed where a DAG is parsed

        now = int(time.time())
        signed_with = secret or self._secret or ""
        return jwt.encode({**claims, "iat": now, "exp": now + lifetime}, signed_with, algorithm="HS256")

    def _find(self, name: str, result: str, found: str, means: str) -> None:
        question, documented = QUESTIONS[name]
        self.report.findings.append(
            Finding(name=name, question=question, documented=documented, result=result, found=found, means=means)
        )

    def unanswered(self) -> list[Finding]:
        """The questions that were not asked, or have no answer."""
        asked = {finding.name for finding in self.report.findings}
        left = [name for name in QUESTIONS if name not in asked]
        return [
            Finding(
                name=name,
                question=QUESTIONS[name][0],
                documented=QUESTIONS[name][1],
                result=None,
                found="not checked",
                means=self._why_not.get(name, "the check ended before"),
            )
            for name in left
        ]

    async def _key(self) -> None:
        reply = await self._post("/events", {"events": []})
        if reply.status == 401:  # noqa: PLR2004 -- the key is not valid
            self._find("key", "refused", "401", "put the widget key (ab_live_…) into the connection's password")
            raise _EndedError("Halo does not take the widget key")
        if not reply.ok and reply.status not in {400, 422}:
            self._find("key", "unknown", f"{reply.status}", "the connection's host is hardly Halo's SDK API")
            raise _EndedError(f"{self._client.base_url} answered {reply.status} to an empty list of events")
        self._find("key", "accepted", f"accepted ({reply.status})", "address and widget key are right")

    async def _verification(self) -> bool:
        reply = await self._post("/users/identify", {"user_id": self._user_id})
        if reply.status == 403:  # noqa: PLR2004 -- identity verification
            self._find(
                "verification",
                "enforced",
                "enforced (403)",
                "the connection's extra has the identity_secret it needs"
                if self._secret
                else "put identity_secret (ha_secret_…) into the connection's extra: without it every run stops",
            )
            return True
        if not reply.ok:
            self._find("verification", "unknown", f"{reply.status}, {reply.shape}", "look at Halo's answer by hand")
            raise _EndedError(f"users/identify of the test user was answered with {reply.status}")
        self._find(
            "verification",
            "not enforced",
            "not enforced: accepted without a token",
            "whoever has the widget key can write as any user; an identity_secret is needed for users/update only",
        )
        return False

    async def _tokens(self) -> bool:
        """Try tokens of each kind; whether the kind that this package signs was taken."""
        by_user = {"user_id": self._user_id}
        usual = await self._token_finding("token", self._token(by_user), wanted=True)
        await self._token_finding("token_sub", self._token({"sub": self._user_id}), wanted=True)
        await self._token_finding("token_claims", self._token({**by_user, "name": "Halo check"}), wanted=True)
        other = uuid.uuid4().hex
        await self._token_finding("token_signature", self._token(by_user, secret=other), wanted=False)
        await self._token_finding("token_expired", self._token(by_user, lifetime=-TOKEN_LIFETIME), wanted=False)
        await self._token_finding("token_user", self._token({"user_id": f"{self._user_id}-{other}"}), wanted=False)
        await self._update_token()
        return usual

    async def _token_finding(self, name: str, token: str, *, wanted: bool) -> bool:
        reply = await self._post("/users/identify", {"user_id": self._user_id, "user_token": token})
        as_documented = reply.ok == wanted
        if name == "token" and not reply.ok:
            means = "every run stops: compare the identity_secret with Halo's dashboard, and this machine's clock"
        elif as_documented:
            means = "as documented: no setting depends on it"
        elif wanted:
            means = "this package does not use it: no setting depends on it"
        else:
            means = "a token proves nothing in this workspace: switch identity verification on in Halo's dashboard"
        self._find(name, "accepted" if reply.ok else "refused", _took(reply), means)
        return reply.ok

    async def _update_token(self) -> None:
        body = {
            "users": [{"user_id": self._user_id, "traits": {}}],
            "update_only": True,
            "user_token": self._token({"scope": "users.update"}),
        }
        reply = await self._post("/users/update", body)
        means = (
            f'HaloIdentifyOperator can backfill (mode="update"); the answer has {reply.shape}'
            if reply.ok
            else "HaloIdentifyOperator cannot backfill users in this workspace: use live calls for few users only"
        )
        self._find("token_update", "accepted" if reply.ok else "refused", _took(reply), means)

    async def _malformed(self) -> None:
        await self._refusal("not_json", b'{"message": ')
        await self._refusal("no_message", self._as_user())
        too_long = await self._refusal("too_long", {**self._as_user(), "message": "x" * (MAX_MESSAGE + 1)})
        if too_long.ok:
            self._why_not["too_large"] = "a message of 10,001 characters was accepted already"
        else:
            await self._refusal("too_large", {**self._as_user(), "message": "x" * LARGE})

    async def _refusal(self, name: str, body: dict[str, Any] | bytes) -> _Reply:
        """Send a chat that Halo should refuse, and find how it does."""
        reply = await self._post("/chat", body)
        self._find(name, "accepted" if reply.ok else "refused", f"{_took(reply)}: {reply.shape}", reply.means())
        if reply.session_id:
            self.report.session_ids.append(reply.session_id)
        return reply

    def _as_user(self) -> dict[str, Any]:
        token = {"user_token": self._token({"user_id": self._user_id})} if self._secret is not None else {}
        return {"user_id": self._user_id, **token}

    async def _answers(self) -> str:
        """Look at two answers in one conversation, of which the second asks for a ticket."""
        first = await self._chat()
        if not first.ok or first.session_id is None:
            self._find("chat", "refused", f"{_took(first)}: {first.shape}", first.means())
            raise _EndedError("a plain chat of the test user has no answer with a session_id")
        second = await self._chat(session_id=first.session_id, message=ASKS_FOR_A_TICKET if self._ticket else PLAIN)
        self._find("chat", "accepted", first.shape, "the ledger keeps fields that are not documented as response")
        continued = second.ok and second.session_id == first.session_id
        self._find(
            "continued",
            "continued" if continued else "not continued",
            "the same session_id came back" if continued else f"{_took(second)}, another session_id",
            "follows=… and on_change='follow_up' reach the row's conversation"
            if continued
            else "do not use follows=… and on_change='follow_up' in this workspace",
        )
        if not self._ticket:
            self._why_not["ticket"] = "no ticket was asked for"
        elif second.ok:
            named = sorted(name for name in _names(second.body) if _TICKET.search(name))
            self._find(
                "ticket",
                "named" if named else "not named",
                f"named in {', '.join(named)}" if named else f"no field names one: {second.shape}",
                "the ledger's column response has it"
                if named
                else "HaloTicketSensor finds the tickets of delivered rows, after halo-login",
            )
        return first.session_id

    async def _own_session_id(self) -> None:
        own = str(uuid.uuid4())
        first = await self._chat(session_id=own)
        self._why_not["same_session_twice"] = "Halo does not take a session_id of ours"
        if not first.ok:
            result = "refused" if first.status < 500 else "unknown"  # noqa: PLR2004 -- the class of server errors
            self._find("own_session_id", result, _took(first), "leave own_session_ids at False")
            return
        if first.session_id != own:
            found = "taken, but another session_id came back"
            self._find("own_session_id", "replaced", found, "leave own_session_ids at False: it would do nothing")
            return
        self._find("own_session_id", "accepted", "accepted", "own_session_ids=True can be used, see the next line")
        again = await self._chat(session_id=own)
        one = again.ok and again.session_id == own
        self._find(
            "same_session_twice",
            "one conversation" if one else "two conversations",
            "the same session_id came back twice" if one else f"{_took(again)}, another session_id",
            f"own_session_ids=True lets a row sent twice land in one conversation; look at {own} in the inbox: it "
            "must hold two messages"
            if one
            else "leave own_session_ids at False",
        )

    async def _latency(self, session_id: str) -> None:
        for _ in range(LATENCIES - len(self.report.seconds)):
            reply = await self._chat(session_id=session_id)
            if not reply.ok:
                raise _EndedError(f"a plain chat was answered with {reply.status}")
        seconds = self.report.seconds
        median, longest = statistics.median(seconds), max(seconds)
        self._find(
            "latency",
            f"{median:.3f}",
            f"{len(seconds)} chats one after the other: median {median:.2f} s, longest {longest:.2f} s",
            f"concurrency={CONCURRENCY} makes at most {CONCURRENCY / max(median, 0.001):,.0f} rows a second; "
            f"keep timeout above {max(10.0, 4 * longest):.0f} s",
        )

    def _rates(self) -> None:
        if not self._rate_headers:
            means = "the pace is found by itself; requests_per_second is a limit of your own"
            self._find("rate_headers", "none", "no header names a limit", means)
            return
        found = ", ".join(f"{name}: {value}" for name, value in sorted(self._rate_headers.items()))
        means = "Retry-After is obeyed, the others are not read: set requests_per_second below the limit they name"
        self._find("rate_headers", "some", found, means)


QUESTIONS = {
    "key": ("Is the widget key valid?", "401 where it is not"),
    "verification": ("Is identity verification enforced?", "403 without a valid user_token, where it is"),
    "token": ("Is a token with the claim user_id taken?", "yes"),
    "token_sub": ("Is sub taken in its place?", "yes, as a fallback"),
    "token_claims": ("Is the trusted claim name taken?", "yes, optional"),
    "token_signature": ("Is a token with a wrong signature refused?", "403 where verification is enforced"),
    "token_expired": ("Is an expired token refused?", "403 where verification is enforced"),
    "token_user": ("Is another user's token refused?", "403 where verification is enforced"),
    "token_update": ("Is a token for users/update taken?", "yes: scope, and an end within an hour"),
    "not_json": ("How is a body refused that is no JSON?", "400; its shape is open"),
    "no_message": ("How is a chat refused without a message?", "400; its shape is open"),
    "too_long": ("How is a message of 10,001 characters refused?", "at most 10,000 characters"),
    "too_large": ("How is a body of 1 MB refused?", "open"),
    "chat": ("Which fields has the answer to a chat?", "text, session_id, agent_id; others open"),
    "continued": ("Does a session_id of Halo's continue its conversation?", "yes"),
    "ticket": ("Does the answer name a ticket?", "open"),
    "own_session_id": ("Is a session_id of ours accepted?", "open"),
    "same_session_twice": ("Does the same one twice make one conversation?", "open"),
    "rate_headers": ("Which headers name a limit on requests?", "open; 429 with Retry-After"),
    "latency": ("How long does a chat take?", "seconds"),
}


def _took(reply: _Reply) -> str:
    return f"{'accepted' if reply.ok else 'refused'} ({reply.status})"


def _shape(value: Any, *, depth: int = 0) -> str:
    match value:
        case dict(fields):
            if depth == SHOWN_DEPTH:
                return "{…}"
            shown = [
                f"{name if _NAME.fullmatch(name) else '…'}: {_shape(fields[name], depth=depth + 1)}"
                for name in list(fields)[:SHOWN_FIELDS]
            ]
            return "{" + ", ".join([*shown, *(["…"] if len(fields) > SHOWN_FIELDS else [])]) + "}"
        case list(items):
            return f"[{_shape(items[0], depth=depth + 1)}, …]" if items and depth < SHOWN_DEPTH else "[]"
        case str():
            return "text"
        case bool():
            return "true or false"
        case None:
            return "null"
        case _:
            return "number"


def _names(value: Any, *, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The paths of an answer's fields that have a value."""
    if not isinstance(value, dict) or depth == SHOWN_DEPTH:
        return
    for name, each in value.items():
        if _NAME.fullmatch(name) and each is not None:
            yield prefix + name
            yield from _names(each, prefix=f"{prefix}{name}.", depth=depth + 1)
