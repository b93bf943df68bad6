"""HaloClient's six calls as the simulator saw them, its tokens, and the typed error of every answer."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from halo_provider.client.address import DEFAULT_BASE_URL, sdk_url
from halo_provider.client.answers import MAX_RETRY_AFTER, error_message, retry_after
from halo_provider.client.client import UPDATE_TOKEN_LIFETIME, USER_TOKEN_LIFETIME, HaloClient
from halo_provider.exceptions import (
    HaloAuthenticationError,
    HaloCallError,
    HaloConfigurationError,
    HaloPermissionError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloRejectedError,
    HaloResponseError,
    HaloServerError,
    HaloStatusError,
    Verdict,
)
from halo_provider.models import (
    Chat,
    ContextEntry,
    CreateTicket,
    Event,
    Events,
    IdentifyCompany,
    IdentifyUser,
    UpdateUsers,
    UserTraits,
)
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, RequestRecord, Simulator

IDENTITY_SECRET = "ha_secret_example_identity_secret"
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
Call = Callable[[HaloClient], Awaitable[BaseModel]]

CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "/users/identify": (
        lambda halo: halo.identify_user(IdentifyUser(user_id="u-1", traits={"name": "Ada", "plan": None})),
        {"user_id": "u-1", "traits": {"name": "Ada", "plan": None}, "context": {}},
    ),
    "/companies/identify": (
        lambda halo: halo.identify_company(IdentifyCompany(company_id="c-1", user_id="u-1", traits={"mrr": 12.5})),
        {"company_id": "c-1", "user_id": "u-1", "traits": {"mrr": 12.5}, "context": {}},
    ),
    "/chat": (
        lambda halo: halo.chat(
            Chat(
                message="Größe {x} ✓",
                user_id="u-1",
                company_id="c-1",
                context={"form": ContextEntry(label="Form", type="custom", value={"note": None})},
                custom_fields={"source": "csv"},
            )
        ),
        {
            "message": "Größe {x} ✓",
            "user_id": "u-1",
            "company_id": "c-1",
            "context": {"form": {"label": "Form", "type": "custom", "value": {"note": None}}},
            "custom_fields": {"source": "csv"},
        },
    ),
    "/tickets/create": (
        lambda halo: halo.create_ticket(
            CreateTicket(user_id="u-1", subject="Help", message="Please", source="airflow")
        ),
        {"user_id": "u-1", "subject": "Help", "message": "Please", "source": "airflow"},
    ),
    "/events": (
        lambda halo: halo.send_events(Events(user_id="u-1", events=[Event(event_type="click", metadata={"n": 1})])),
        {"user_id": "u-1", "events": [{"event_type": "click", "metadata": {"n": 1}}]},
    ),
}


def attempt(client: HaloClient, *calls: Call) -> Any:
    """Make the calls one after the other and return the last one's answer."""

    async def all_calls() -> Any:
        answer = None
        async with client:
            for call in calls:
                answer = await call(client)
        return answer

    return asyncio.run(all_calls())


def failure(client: HaloClient, call: Call = CALLS["/chat"][0]) -> Any:
    """The error in which the call ends."""
    with pytest.raises(HaloCallError) as caught:
        attempt(client, call)
    return caught.value


def only_request(halo: Simulator) -> RequestRecord:
    """The one request that came."""
    assert len(halo.requests) == 1
    return halo.requests[0]


@pytest.fixture
def unsigned(halo_url: str) -> HaloClient:
    """A client without an identity secret."""
    return HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url, timeout=10.0)


@pytest.mark.parametrize("path", CALLS)
def test_call_arrives_under_its_path_with_its_body(halo: Simulator, unsigned: HaloClient, path: str) -> None:
    """Halo takes it, authorised, exactly as given: nothing added, nothing null where a field was left out."""
    call, body = CALLS[path]

    attempt(unsigned, call)

    request = only_request(halo)
    assert (request.path, request.authorized, request.accepted, request.body) == (path, True, True, body)


def test_users_update_arrives_with_its_scope_token(halo: Simulator, client: HaloClient) -> None:
    """Up to a thousand users in one call, the token naming the scope and nobody."""
    users = [UserTraits(user_id="u-1", traits={"name": "Ada"}), UserTraits(user_id="u-2")]

    answer = attempt(client, lambda halo: halo.update_users(UpdateUsers(users=users, update_only=True)))

    request = only_request(halo)
    token = request.body.pop("user_token")
    assert (request.path, request.accepted, answer.skipped) == ("/users/update", True, 2)
    assert request.body == {
        "users": [
            {"user_id": "u-1", "traits": {"name": "Ada"}, "context": {}},
            {"user_id": "u-2", "traits": {}, "context": {}},
        ],
        "update_only": True,
    }
    assert set(token) == {"scope", "iat", "exp"}
    assert token["scope"] == "users.update"
    assert token["exp"] - time.time() == pytest.approx(UPDATE_TOKEN_LIFETIME, abs=5)


def test_users_update_without_an_identity_secret_is_never_sent(halo: Simulator, unsigned: HaloClient) -> None:
    """Halo requires a signed token there; the error says where the secret goes."""
    with pytest.raises(HaloConfigurationError, match="identity_secret"):
        attempt(unsigned, lambda halo: halo.update_users(UpdateUsers(users=[UserTraits(user_id="u")])))

    assert halo.requests == []


@pytest.mark.parametrize("path", CALLS)
def test_every_user_scoped_call_carries_the_users_token(halo: Simulator, client: HaloClient, path: str) -> None:
    """Signed with the identity secret, naming the body's own user, and short-lived."""
    attempt(client, CALLS[path][0])

    request = only_request(halo)
    token = request.body["user_token"]
    assert request.accepted
    assert set(token) == {"user_id", "iat", "exp"}
    assert token["user_id"] == "u-1"
    assert token["exp"] - token["iat"] == USER_TOKEN_LIFETIME
    assert token["iat"] == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("path", CALLS)
def test_there_is_no_token_without_an_identity_secret(halo: Simulator, unsigned: HaloClient, path: str) -> None:
    """Nothing to sign with, nothing sent."""
    attempt(unsigned, CALLS[path][0])

    assert not unsigned.signs_tokens
    assert "user_token" not in only_request(halo).body


@pytest.mark.parametrize(
    "call",
    [
        lambda halo: halo.chat(Chat(message="m")),
        lambda halo: halo.chat(Chat(message="m", user_id="anonymous")),
        lambda halo: halo.identify_company(IdentifyCompany(company_id="c")),
        lambda halo: halo.create_ticket(CreateTicket(email="ada@example.com", subject="s")),
        lambda halo: halo.send_events(Events(events=[])),
    ],
)
def test_nobody_in_particular_gets_no_token(halo: Simulator, client: HaloClient, call: Call) -> None:
    """An anonymous call, or one that names no user, has no identity to prove."""
    attempt(client, call)

    assert client.signs_tokens
    assert only_request(halo).accepted
    assert "user_token" not in halo.requests[0].body


def test_each_call_signs_a_token_of_its_own(halo: Simulator, halo_url: str) -> None:
    """A run of hours never presents a token signed at its start."""
    clock = iter([time.time() - 60.0, time.time()])
    client = HaloClient(
        widget_key=EXAMPLE_WIDGET_KEY,
        base_url=halo_url,
        identity_secret=IDENTITY_SECRET,
        clock=lambda: next(clock),
    )

    attempt(client, CALLS["/chat"][0], CALLS["/chat"][0])

    first, second = (request.body["user_token"]["exp"] for request in halo.requests)
    assert second - first == pytest.approx(60, abs=1)


def test_token_is_signed_with_the_identity_secret_itself(client: HaloClient) -> None:
    """HS256 and nothing else, so that Halo can verify it."""
    token = client._with_user_token(Chat(message="m", user_id="u-1"), "u-1").user_token

    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    assert jwt.decode(token, IDENTITY_SECRET, algorithms=["HS256"])["user_id"] == "u-1"


def test_token_lifetimes_are_within_halos_limits() -> None:
    """At most an hour for bulk updates, and long enough for one attempt of two minutes."""
    assert 120 < USER_TOKEN_LIFETIME <= 600
    assert 120 < UPDATE_TOKEN_LIFETIME < 3_600


def test_wrong_identity_secret_is_a_permission_error(halo: Simulator, halo_url: str) -> None:
    """Halo refuses the token: everything stops, and the error names the secret's place."""
    client = HaloClient(
        widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url, identity_secret="ha_secret_example_of_another_workspace"
    )

    error = failure(client)

    assert (type(error), error.verdict) == (HaloPermissionError, Verdict.FORBIDDEN)
    assert halo.chats == []


def test_wrong_widget_key_is_an_authentication_error(halo: Simulator, halo_url: str) -> None:
    """Everything stops, and the error says which field of the connection to mend."""
    error = failure(HaloClient(widget_key="ab_live_example_of_another_workspace", base_url=halo_url))

    assert (type(error), error.status, error.verdict) == (HaloAuthenticationError, 401, Verdict.FORBIDDEN)
    assert not only_request(halo).authorized


@pytest.mark.parametrize(("named", "answering"), [(None, "agent_default"), ("agent_own", "agent_own")])
def test_clients_agent_answers_where_the_chat_names_none(
    halo: Simulator, halo_url: str, named: str | None, answering: str
) -> None:
    """The connection's agent is a default; a submission's own agent goes before it."""
    client = HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url, agent_id="agent_default")

    attempt(client, lambda halo: halo.chat(Chat(message="m", agent_id=named)))

    assert only_request(halo).body["agent_id"] == answering


def test_chat_answer_brings_session_text_and_agent(halo: Simulator, unsigned: HaloClient) -> None:
    """And keeps what Halo does not document."""
    halo.script(
        path="/chat",
        faults=[Fault.status(200, body={"session_id": 5, "text": "Thanks", "agent_id": "a", "ticket": {"id": 1}})],
    )

    answer = attempt(unsigned, CALLS["/chat"][0])

    assert (answer.session_id, answer.text, answer.agent_id) == ("5", "Thanks", "a")
    assert answer.model_extra == {"ticket": {"id": 1}}


def test_any_success_status_is_a_success(halo: Simulator, unsigned: HaloClient) -> None:
    """201 with a session is as good as 200."""
    halo.script(path="/chat", faults=[Fault.status(201, body={"session_id": "s"})])

    assert attempt(unsigned, CALLS["/chat"][0]).session_id == "s"


def test_one_call_is_one_attempt(halo: Simulator, unsigned: HaloClient) -> None:
    """Retrying is for deliver(), which keeps the ledger: a failed call is not repeated underneath it."""
    halo.always("/chat", Fault.status(503))

    failure(unsigned)

    assert len(halo.requests) == 1


STATUSES = {
    301: (HaloRedirectError, Verdict.FORBIDDEN),
    302: (HaloRedirectError, Verdict.FORBIDDEN),
    307: (HaloRedirectError, Verdict.FORBIDDEN),
    308: (HaloRedirectError, Verdict.FORBIDDEN),
    400: (HaloRejectedError, Verdict.REJECTED),
    401: (HaloAuthenticationError, Verdict.FORBIDDEN),
    403: (HaloPermissionError, Verdict.FORBIDDEN),
    404: (HaloRejectedError, Verdict.REJECTED),
    409: (HaloRejectedError, Verdict.REJECTED),
    413: (HaloRejectedError, Verdict.REJECTED),
    422: (HaloRejectedError, Verdict.REJECTED),
    429: (HaloRateLimitError, Verdict.NOT_ACCEPTED),
    500: (HaloServerError, Verdict.IN_DOUBT),
    502: (HaloServerError, Verdict.IN_DOUBT),
    503: (HaloServerError, Verdict.IN_DOUBT),
    504: (HaloServerError, Verdict.IN_DOUBT),
    599: (HaloServerError, Verdict.IN_DOUBT),
}


@pytest.mark.parametrize("status", STATUSES)
def test_error_status_becomes_its_typed_error(halo: Simulator, unsigned: HaloClient, status: int) -> None:
    """Each status has one error, with what it means for the request."""
    halo.script(path="/chat", faults=[Fault.status(status, body={"error": "as Halo says"})])

    error = failure(unsigned)

    assert (type(error), error.verdict) == STATUSES[status]
    assert (error.path, error.status, error.message) == ("/chat", status, "as Halo says")
    assert str(error).startswith(f"POST /chat: Halo answered {status}: as Halo says")


def test_redirect_is_not_followed(halo: Simulator, halo_url: str, unsigned: HaloClient) -> None:
    """The key goes to no address that is not on the connection."""
    moved = {"Location": f"{halo_url}/api/sdk/events"}
    halo.script(path="/chat", faults=[Fault.status(308, headers=moved)])

    error = failure(unsigned)

    assert isinstance(error, HaloRedirectError)
    assert [request.path for request in halo.requests] == ["/chat"]


@pytest.mark.parametrize("status", [301, 404, 405, 410, 415, 501])
def test_status_of_another_server_names_its_address(halo: Simulator, halo_url: str, status: int) -> None:
    """Whoever wrote a wrong base URL reads which one it is, and where to correct it."""
    halo.script(path="/chat", faults=[Fault.status(status)])

    error = failure(HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url))

    assert error.suggests_wrong_url
    assert error.url == f"{halo_url}/api/sdk/chat"
    assert str(error.as_wrong_url()).startswith(f"{halo_url}/api/sdk/chat answered {status}: ")


def test_503_with_retry_after_was_not_accepted(halo: Simulator, unsigned: HaloClient) -> None:
    """A server that says when to come back has done nothing; without that word it may have."""
    halo.script(path="/chat", faults=[Fault.status(503, headers={"Retry-After": "7"})])

    error = failure(unsigned)

    assert (error.verdict, error.retry_after) == (Verdict.NOT_ACCEPTED, 7.0)


def test_rate_limit_carries_its_wait_in_seconds(halo: Simulator, unsigned: HaloClient) -> None:
    """Retry-After as a number."""
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=12)])

    assert failure(unsigned).retry_after == 12.0


def test_rate_limit_carries_its_wait_until_a_date(halo: Simulator, unsigned: HaloClient) -> None:
    """Retry-After as an HTTP-date."""
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=30, as_http_date=True)])

    assert failure(unsigned).retry_after == pytest.approx(30, abs=5)


def test_wait_until_a_date_goes_by_the_clock_of_the_server() -> None:
    """A host whose clock is years off waits as long as Halo asks: the answer says when it was given."""
    headers = {"Date": format_datetime(NOW, usegmt=True)}
    headers["Retry-After"] = format_datetime(NOW + timedelta(seconds=30), usegmt=True)
    refusing = httpx.MockTransport(lambda _request: httpx.Response(429, headers=headers))

    client = HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url="http://127.0.0.1", transport=refusing)

    assert failure(client).retry_after == 30.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.25", 0.25),
        ("99999999999", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        (format_datetime(NOW + timedelta(days=400), usegmt=True), MAX_RETRY_AFTER),
        ("Sunday, 22-Nov-26 12:01:00 GMT", 60.0),
        ("Sun Nov 22 12:01:00 2026", 60.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1e3", None),
        ("7, 8", None),
        ("²", None),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", None),
        ("nan", None),
        ("inf", None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 99 Jan 2024 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    """Both forms of RFC 9110, its obsolete dates, within a day; garbage says nothing, and breaks nothing."""
    assert retry_after(header, now=NOW) == seconds


@settings(deadline=None)
@given(st.text())
def test_retry_after_survives_any_header(header: str) -> None:
    """Nothing a server may send makes reading an answer fail."""
    wait = retry_after(header, now=NOW)

    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"error": "bad key"}', "bad key"),
        (b'{"message": "bad key"}', "bad key"),
        (b'{"detail": "bad key"}', "bad key"),
        (b'{"error": {"message": "bad key", "code": 4}}', "bad key"),
        (b'{"error": {"error": {"detail": " bad key "}}}', "bad key"),
        (b'{"error": "", "message": "bad key"}', "bad key"),
        (b'{"error": null, "message": "bad key"}', "bad key"),
        (b'{"errors": ["bad key"]}', '{"errors": ["bad key"]}'),
        (b'{"error": ["bad", "key"]}', '{"error": ["bad", "key"]}'),
        (b'{"error": 17}', '{"error": 17}'),
        (b'"bad key"', "bad key"),
        (b'["bad key"]', '["bad key"]'),
        (b"{}", "{}"),
        (b"null", "null"),
        (b"<html>Bad Gateway</html>\n", "<html>Bad Gateway</html>"),
        (b"\xff\xfe bad", "\ufffd\ufffd bad"),
        (b'{"error": "bad', '{"error": "bad'),
        (b"", "no message"),
        (b"   ", "no message"),
    ],
)
def test_error_message_is_found_in_any_shape(content: bytes, message: str) -> None:
    """Halo does not document the shape of its errors: its words where there are some, else the text."""
    assert error_message(content) == message


@settings(deadline=None)
@given(st.binary())
def test_error_message_survives_any_bytes(content: bytes) -> None:
    """An unreadable error answer is still an error answer."""
    assert error_message(content)


def test_deeply_nested_error_is_still_read() -> None:
    """Nesting beyond reason is answered with the text itself."""
    assert error_message(b'{"error":' * 5_000 + b'"x"' + b"}" * 5_000).startswith('{"error":')


def test_answer_without_session_id_is_in_doubt(halo: Simulator, unsigned: HaloClient) -> None:
    """Halo took the chat, yet did not answer as documented."""
    halo.script(path="/chat", faults=[Fault.missing_session_id()])

    error = failure(unsigned)

    assert (type(error), error.verdict) == (HaloResponseError, Verdict.IN_DOUBT)
    assert str(error) == "POST /chat: the answer has no usable session_id"
    assert len(halo.chats) == 1


@pytest.mark.parametrize("body", ["", "not JSON", "[]", "null", '"text"', '{"session_id": "s"', "\x00"])
def test_success_that_is_no_json_object_is_in_doubt(halo: Simulator, unsigned: HaloClient, body: str) -> None:
    """A 200 that cannot be read says nothing about what Halo did."""
    halo.script(path="/chat", faults=[Fault.status(200, body=body, accepted=True)])

    error = failure(unsigned)

    assert (type(error), error.verdict) == (HaloResponseError, Verdict.IN_DOUBT)
    assert error.reply == body


@pytest.mark.parametrize("value", ['""', "null", "[1]", '{"id": "s"}'])
def test_unusable_session_id_is_in_doubt(halo: Simulator, unsigned: HaloClient, value: str) -> None:
    """A session that cannot be stored is none."""
    halo.script(path="/chat", faults=[Fault.status(200, body=f'{{"session_id": {value}, "text": "Thanks"}}')])

    assert str(failure(unsigned)) == "POST /chat: the answer has no usable session_id"


def test_no_error_or_representation_holds_a_key(halo: Simulator, client: HaloClient) -> None:
    """Neither text, representation nor traceback, even where the server repeats what it was sent."""
    token = client._with_user_token(Chat(message="m", user_id="u-1"), "u-1").user_token
    echo = f"unacceptable: Bearer {EXAMPLE_WIDGET_KEY} {IDENTITY_SECRET} {token}"
    faults = [
        *(Fault.status(status, body={"error": echo}) for status in (400, 401, 403, 429, 500)),
        Fault.status(400, body=echo),
        Fault.status(200, body=echo),
        Fault.status(200, body={"text": echo}),
    ]
    for fault in faults:
        halo.script(path="/chat", faults=[fault])
        error: HaloStatusError | HaloResponseError = failure(client)
        shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error)) + repr(client) + str(client)
        for secret in (EXAMPLE_WIDGET_KEY, IDENTITY_SECRET, token):
            assert secret not in shown


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        (DEFAULT_BASE_URL, "https://api.haloagents.ai/api/sdk"),
        ("https://halo.example.com/", "https://halo.example.com/api/sdk"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/api/sdk"),
        ("http://[::1]:8080/", "http://[::1]:8080/api/sdk"),
        ("https://proxy.example.com/halo/sdk/", "https://proxy.example.com/halo/sdk"),
        ("https://proxy.example.com/v2", "https://proxy.example.com/v2"),
    ],
)
def test_base_url_gets_the_sdks_path_when_it_has_none(base_url: str, address: str) -> None:
    """A path of one's own stays as it is."""
    assert sdk_url(base_url) == address


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "halo.example.com",
        "ftp://halo.example.com",
        "https://",
        "https://user:secret-word@halo.example.com",
        "https://halo.example.com?key=secret-word",
        "https://halo.example.com/#secret-word",
        "https://halo.example.com:port",
        "https://halo.example.com/\x00",
    ],
)
def test_address_that_cannot_work_is_refused_at_once(base_url: str) -> None:
    """Before any request, naming the connection's host and repeating no credentials."""
    with pytest.raises(HaloConfigurationError, match="the connection's host") as caught:
        HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=base_url)

    assert "secret-word" not in str(caught.value)


def test_client_that_was_not_entered_says_so(unsigned: HaloClient) -> None:
    """A programming mistake is no Halo error."""
    with pytest.raises(RuntimeError, match="async with client"):
        asyncio.run(unsigned.chat(Chat(message="m")))


def test_client_can_be_entered_again(halo: Simulator, unsigned: HaloClient) -> None:
    """Each use opens connections of its own."""
    attempt(unsigned, CALLS["/chat"][0])
    attempt(unsigned, CALLS["/chat"][0])

    assert len(halo.chats) == 2


def test_calls_run_concurrently(halo: Simulator, unsigned: HaloClient) -> None:
    """One client serves many senders at once, without a bound of its own."""
    halo.always("/chat", Fault.slow(0.05))

    async def all_at_once() -> None:
        async with unsigned, asyncio.TaskGroup() as group:
            for _ in range(150):
                group.create_task(unsigned.chat(Chat(message="m")))

    asyncio.run(all_at_once())

    assert len(halo.chats) == 150
    assert halo.max_concurrency > 100
