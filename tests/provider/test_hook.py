"""HaloHook: what a connection may look like, what its test says, and what each method sends."""

import logging
import re
import socket
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from halo_provider.exceptions import HaloAuthenticationError, HaloConfigurationError, HaloRejectedError
from halo_provider.hooks.halo import EXTRAS, HaloHook
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Simulator
from tests.example_keys import IDENTITY_SECRET
from tests.provider.runs import Connect

NOT_THERE = "cannot be used: No such file or directory"


def only_body(halo: Simulator, path: str) -> dict[str, Any]:
    """The body of the one request there was."""
    (request,) = halo.requests
    assert request.path == path
    assert request.body is not None
    return request.body


@pytest.fixture
def free_port() -> int:
    """A loopback port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("fields", "base_url"),
    [
        ({"host": None}, "https://api.haloagents.ai/api/sdk"),
        ({"host": ""}, "https://api.haloagents.ai/api/sdk"),
        ({"host": "https://halo.example.com"}, "https://halo.example.com/api/sdk"),
        ({"host": "https://halo.example.com/"}, "https://halo.example.com/api/sdk"),
        ({"host": " halo.example.com "}, "https://halo.example.com/api/sdk"),
        ({"host": "halo.example.com", "port": 8443}, "https://halo.example.com:8443/api/sdk"),
        ({"host": "http://127.0.0.1", "port": 8080}, "http://127.0.0.1:8080/api/sdk"),
        ({"host": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080/api/sdk"),
        ({"host": "http://[::1]", "port": 8080}, "http://[::1]:8080/api/sdk"),
        ({"host": "https://example.com/halo/v2/"}, "https://example.com/halo/v2"),
        ({"host": "https://example.com/halo", "port": 8443}, "https://example.com:8443/halo"),
    ],
    ids=str,
)
def test_base_url_comes_from_host_and_port(connect: Connect, fields: dict[str, Any], base_url: str) -> None:
    """The scheme may be left out, the port be apart, and a path replace the SDK's own."""
    connect(**fields)
    assert HaloHook().client().base_url == base_url


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "ftp://halo.example.com"},
        {"host": "http://"},
        {"host": "http://halo.example.com:eighty"},
        {"host": "https://name:word@halo.example.com"},
        {"host": "https://halo.example.com/?key=1"},
    ],
    ids=str,
)
def test_host_that_is_no_plain_address_is_refused(connect: Connect, fields: dict[str, Any]) -> None:
    """The error says that it is about the host, and does not repeat it: it may hold a password."""
    connect(**fields)
    with pytest.raises(HaloConfigurationError, match="the connection's host") as caught:
        HaloHook().client()
    assert "word" not in str(caught.value)


def test_port_beside_a_host_that_has_one_is_explained(connect: Connect) -> None:
    """A port in both fields is the likeliest mistake of all."""
    connect(host="http://127.0.0.1:8080", port=8080)
    with pytest.raises(HaloConfigurationError, match="port"):
        HaloHook().client()


@pytest.mark.parametrize(
    ("uri", "base_url"),
    [
        ("halo://:{key}@", "https://api.haloagents.ai/api/sdk"),
        ("halo://:{key}@halo.example.com", "https://halo.example.com/api/sdk"),
        ("halo://:{key}@127.0.0.1:8080/http", "http://127.0.0.1:8080/api/sdk"),
        ("halo://:{key}@halo.example.com:8443/https?timeout=30", "https://halo.example.com:8443/api/sdk"),
        ("halo://http://:{key}@127.0.0.1:8080", "http://127.0.0.1:8080/api/sdk"),
        ("halo://:{key}@https%3A%2F%2Fhalo.example.com%2Fv2", "https://halo.example.com/v2"),
    ],
)
def test_connection_may_be_a_uri(monkeypatch: pytest.MonkeyPatch, uri: str, base_url: str) -> None:
    """The schema is http or https, as in Airflow's HTTP connections; extras are the query."""
    monkeypatch.setenv("AIRFLOW_CONN_HALO_URI", uri.format(key=EXAMPLE_WIDGET_KEY))
    client = HaloHook("halo_uri").client()
    assert (client.base_url, client.timeout) == (base_url, 30.0 if "timeout" in uri else 120.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": "ftp"}, ": schema must be http or https, not 'ftp'; a path belongs into the host"),
        (
            {"host": "https://halo.example.com", "schema": "http"},
            ": its host and its schema (http) name two schemes; leave the schema empty",
        ),
        ({"extra": {"agent_id": ["a"]}}, ": agent_id must be text, not a list"),
        ({"extra": {"timeout": "soon"}}, ": timeout must be a number of seconds, and more than 0"),
        (
            {"extra": {"client_cert": ["a", "b", "c"]}},
            ": client_cert must be the path of a PEM file, or two: of the certificate and of its key",
        ),
        (
            {"extra": {"ca_file": "/nowhere/ca.pem"}},
            f": ca_file '/nowhere/ca.pem' {NOT_THERE}; it must hold certificates in PEM format",
        ),
        (
            {"extra": {"client_cert": "/nowhere/me.pem"}},
            f": client_cert '/nowhere/me.pem' {NOT_THERE}; it must hold a certificate and its key in PEM format",
        ),
        (
            {"password": "", "login": EXAMPLE_WIDGET_KEY},
            " has no widget key: put it (ab_live_…) into the password, not into the login",
        ),
    ],
    ids=str,
)
def test_value_that_cannot_work_is_refused(connect: Connect, fields: dict[str, Any], words: str) -> None:
    """With the connection's id, what is wrong, and what would be right."""
    connect(**fields)
    with pytest.raises(HaloConfigurationError) as caught:
        HaloHook().client()
    assert str(caught.value) == f"connection 'halo_default'{words}"


def test_dashboard_that_is_no_address_is_refused(connect: Connect) -> None:
    """It becomes a link on a page."""
    connect(extra={"dashboard_url": "javascript:alert(1)"})
    with pytest.raises(HaloConfigurationError, match="dashboard_url must be an address with http:// or https://"):
        _ = HaloHook().dashboard_url


def test_unknown_extras_are_named_in_a_warning(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a hook, without their values, and with what they may have been meant to be."""
    connect(extra={"identitysecret": IDENTITY_SECRET, "colour": "red", "timeout": 30})
    warnings: list[str] = []
    log = SimpleNamespace(warning=lambda text, *facts: warnings.append(text % facts))
    monkeypatch.setattr(HaloHook, "log", log)
    hook = HaloHook()
    hook.client()
    hook.client()
    assert warnings == [
        "connection 'halo_default': there is no extra 'identitysecret' (did you mean 'identity_secret'?)",
        f"connection 'halo_default': there is no extra 'colour'; known are {', '.join(EXTRAS)}",
    ]


@pytest.mark.parametrize("password", [None, "", "  "])
def test_missing_widget_key_is_named(connect: Connect, password: str | None) -> None:
    """The error says where to put it."""
    connect(password=password)
    with pytest.raises(HaloConfigurationError, match=r"'halo_default' has no widget key: put it .* into the password"):
        HaloHook().client()


@pytest.mark.parametrize("field", ["password", "identity_secret"])
@pytest.mark.parametrize("key", ["ab_live_example\nX-Other: header", "ab_live_exampłe", "ab_live_example\x00"])
def test_key_with_impossible_characters_is_refused(connect: Connect, field: str, key: str) -> None:
    """What came along with a paste is found before it is sent, and is not repeated."""
    connect(**({"password": key} if field == "password" else {"extra": {field: key}}))
    with pytest.raises(HaloConfigurationError, match="paste it again") as caught:
        HaloHook().client()
    assert "ab_live" not in str(caught.value)


def test_key_pasted_with_a_line_break_works(connect: Connect, halo: Simulator) -> None:
    """White space around a key is nobody's wish."""
    connect(password=f" {EXAMPLE_WIDGET_KEY}\n")
    HaloHook().chat("Hello")
    assert len(halo.chats) == 1


@pytest.mark.parametrize("empty", [None, ""])
def test_extras_without_a_value_are_as_good_as_absent(connect: Connect, halo: Simulator, empty: str | None) -> None:
    """Airflow's form stores null for every field that is left empty."""
    connect(extra=dict.fromkeys(("identity_secret", "agent_id", "timeout", "dashboard_url"), empty))
    hook = HaloHook()
    hook.chat("Hello", user_id="u1")
    assert only_body(halo, "/chat") == {"message": "Hello", "user_id": "u1"}
    assert hook.client().timeout == 120.0
    assert hook.dashboard_url is None


@pytest.mark.parametrize(("configured", "timeout"), [("30", 30.0), (" 2.5 ", 2.5), (45, 45.0), (0.5, 0.5)])
def test_timeout_may_be_a_number_or_its_text(connect: Connect, configured: object, timeout: float) -> None:
    """Forms give numbers, URIs and environment variables text."""
    connect(extra={"timeout": configured})
    assert HaloHook().client().timeout == timeout


@pytest.mark.parametrize("configured", ["soon", "0", 0, -1, "nan", "inf"])
def test_timeout_that_is_no_time_is_refused(connect: Connect, configured: object) -> None:
    """No attempt can succeed in no time, and none may last for ever."""
    connect(extra={"timeout": configured})
    with pytest.raises(HaloConfigurationError, match="'halo_default': timeout must be a number of seconds"):
        HaloHook().client()


def test_timeout_of_a_caller_goes_before_the_connection(connect: Connect) -> None:
    """The operators have a parameter of their own."""
    connect(extra={"timeout": 30})
    assert HaloHook().client(timeout=5.0).timeout == 5.0


def test_connection_is_looked_up_by_its_id(connect: Connect, halo: Simulator) -> None:
    """A hook may use any connection."""
    connect("halo_emea", extra={"dashboard_url": "https://dashboard.example.com", "agent_id": "agent_emea"})
    hook = HaloHook("halo_emea")
    hook.chat("Hello")
    assert only_body(halo, "/chat") == {"message": "Hello", "agent_id": "agent_emea"}
    assert hook.dashboard_url == "https://dashboard.example.com"


def test_connection_test_changes_nothing_in_halo(connect: Connect, halo: Simulator) -> None:
    """It proves address and key without leaving anything in the workspace."""
    assert HaloHook().test_connection() == (True, "Halo answers, and takes the widget key.")
    assert (halo.users, halo.sessions, halo.tickets, halo.events) == ({}, {}, [], [])


def test_connection_test_accepts_a_halo_that_wants_an_event(connect: Connect, halo: Simulator) -> None:
    """Whether an empty list of events is valid is not documented: a 400 comes after the key was accepted."""
    halo.script(path="/events", faults=[Fault.status(400, body={"error": "events must not be empty"})])
    assert HaloHook().test_connection()[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.status(403, body={"error": "verification is enforced"}), "Halo answered 403: .* identity_secret"),
        (Fault.status(500, body={"error": "out of order"}), "Halo answered 500: out of order"),
        (Fault.rate_limited(), "Halo answered 429"),
        (
            Fault.status(302, headers={"Location": "https://example.com/"}),
            "Halo answered 302: .* put the API's final address into the connection's host",
        ),
        (Fault.silence(), r"no answer within 0\.2 s"),
        (Fault.garbage(), "whether Halo took the request is unknown"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_connection_test_tells_what_halo_answered(connect: Connect, halo: Simulator, fault: Fault, words: str) -> None:
    """The message names the cause and, where there is one, the remedy; it never raises."""
    connect(extra={"timeout": 0.2 if fault.kind == "silence" else 30.0})
    halo.script(path="/events", faults=[fault])
    passed, message = HaloHook().test_connection()
    assert not passed
    assert re.search(words, message)


def test_connection_test_tells_that_the_key_is_wrong(connect: Connect) -> None:
    """Halo's 401, and where the key belongs."""
    connect(password="ab_live_example_wrong_key")
    passed, message = HaloHook().test_connection()
    assert not passed
    assert "Halo answered 401" in message
    assert "Put the widget key (ab_live_…) into the connection's password" in message


def test_connection_test_tells_that_there_is_no_key(connect: Connect, halo: Simulator) -> None:
    """A connection that cannot work is not tried."""
    connect(password="")
    passed, message = HaloHook().test_connection()
    assert not passed
    assert "'halo_default' has no widget key" in message
    assert halo.requests == []


def test_connection_test_tells_that_the_path_is_wrong(connect: Connect, halo_url: str) -> None:
    """Something answers there, and it is not Halo's SDK."""
    connect(host=f"{halo_url}/elsewhere")
    passed, message = HaloHook().test_connection()
    assert not passed
    assert "Halo answered 404" in message


def test_connection_test_tells_that_the_name_is_unknown(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in the host; no name server is asked here."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    connect(host="http://halo.example.com")
    passed, message = HaloHook().test_connection()
    assert not passed
    assert "Name or service not known" in message
    assert "the request was not sent (ClientConnectorDNSError)" in message


def test_connection_test_tells_that_tls_failed(connect: Connect, halo_url: str) -> None:
    """The host says https where there is only http."""
    connect(host=halo_url.replace("http:", "https:"))
    passed, message = HaloHook().test_connection()
    assert not passed
    assert "the request was not sent (ClientConnectorSSLError)" in message


def test_connection_test_tells_when_nothing_listens(connect: Connect, free_port: int) -> None:
    """A refused connection names the address."""
    connect(host="http://127.0.0.1", port=free_port)
    passed, message = HaloHook().test_connection()
    assert not passed
    assert f"127.0.0.1:{free_port}" in message
    assert "the request was not sent" in message


def test_identify_user_sends_the_user(connect: Connect, halo: Simulator) -> None:
    """Traits and the session to link; the answer comes back as a dict."""
    answer = HaloHook().identify_user("u1", traits={"plan": "pro"}, session_id="sess_1")
    assert only_body(halo, "/users/identify") == {
        "user_id": "u1",
        "traits": {"plan": "pro"},
        "context": {},
        "session_id": "sess_1",
    }
    assert answer["user_id"] == "u1"


def test_identify_company_sends_the_company(connect: Connect, halo: Simulator) -> None:
    """Traits and the user to link."""
    HaloHook().identify_company("c1", traits={"domain": "example.com"}, user_id="u1")
    assert only_body(halo, "/companies/identify") == {
        "company_id": "c1",
        "user_id": "u1",
        "traits": {"domain": "example.com"},
        "context": {},
    }


def test_update_users_sends_many_users_with_a_scoped_token(connect: Connect, halo: Simulator) -> None:
    """One call for all of them; the token names the scope and no user."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    users = [{"user_id": "u1", "traits": {"plan": "pro"}}, {"user_id": "u2"}]
    answer = HaloHook().update_users(users, update_only=True)
    body = only_body(halo, "/users/update")
    claims = body.pop("user_token")
    assert body == {
        "users": [
            {"user_id": "u1", "traits": {"plan": "pro"}, "context": {}},
            {"user_id": "u2", "traits": {}, "context": {}},
        ],
        "update_only": True,
    }
    assert claims["scope"] == "users.update"
    assert "user_id" not in claims
    assert answer["skipped"] == 2


def test_update_users_without_identity_secret_says_where_to_put_it(connect: Connect, halo: Simulator) -> None:
    """Halo would refuse the call: it is not made."""
    with pytest.raises(HaloConfigurationError, match=r"put identity_secret .* into the connection's extra"):
        HaloHook().update_users([{"user_id": "u1"}])
    assert halo.requests == []


def test_chat_sends_the_message_with_everything_else_it_is_given(connect: Connect, halo: Simulator) -> None:
    """Any field of Halo's documentation may come along; unknown fields of the answer come back."""
    entry = {"label": "Plan", "type": "status", "value": {"plan": "pro"}}
    answer = HaloHook().chat("Hello", user_id="u1", context={"plan": entry}, custom_fields={"region": "emea"})
    assert only_body(halo, "/chat") == {
        "message": "Hello",
        "user_id": "u1",
        "context": {"plan": entry},
        "custom_fields": {"region": "emea"},
    }
    assert answer["session_id"] == halo.chats[0].session_id
    assert answer["message_id"] == halo.chats[0].message_id


def test_create_ticket_sends_the_ticket(connect: Connect, halo: Simulator) -> None:
    """A ticket without the AI."""
    HaloHook().create_ticket("Broken", email="sam@example.com", message="It is broken.", priority="priority")
    assert only_body(halo, "/tickets/create") == {
        "subject": "Broken",
        "email": "sam@example.com",
        "message": "It is broken.",
        "priority": "priority",
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda hook: hook.identify_user("u1"),
        lambda hook: hook.identify_company("c1", user_id="u1"),
        lambda hook: hook.chat("Hello", user_id="u1"),
        lambda hook: hook.create_ticket("Broken", user_id="u1"),
    ],
    ids=["identify_user", "identify_company", "chat", "create_ticket"],
)
def test_user_scoped_call_carries_a_fresh_token(
    connect: Connect, halo: Simulator, call: Callable[[HaloHook], object]
) -> None:
    """With an identity secret every call about a user proves to be about that user."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    call(HaloHook())
    (request,) = halo.requests
    assert request.status == 200
    assert request.body is not None
    claims = request.body["user_token"]
    assert (claims["user_id"], claims["exp"] - claims["iat"]) == ("u1", 300)


def test_anonymous_call_carries_no_token(connect: Connect, halo: Simulator) -> None:
    """An anonymous message proves nothing."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    HaloHook().chat("Hello")
    assert "user_token" not in only_body(halo, "/chat")


def test_error_of_a_call_holds_no_secret(connect: Connect, halo: Simulator) -> None:
    """Neither the text nor the traceback, whatever Halo quotes."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    quote = f"bad key {EXAMPLE_WIDGET_KEY}, secret {IDENTITY_SECRET}, token eyJhbGciOi.eyJ1c2VyX2lk.c2lnbmF0dXJl"
    halo.script(path="/chat", faults=[Fault.status(422, body={"error": quote})])
    with pytest.raises(HaloRejectedError) as caught:
        HaloHook().chat("Hello", user_id="u1")
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "bad key ***, secret ***, token ***" in told
    assert [word for word in (EXAMPLE_WIDGET_KEY, IDENTITY_SECRET, "eyJ") if word in told] == []


def test_error_of_a_connection_holds_no_secret(connect: Connect, free_port: int, caplog: Any) -> None:
    """A refused connection does not drag the request into the log."""
    caplog.set_level(logging.DEBUG)
    connect(host="http://127.0.0.1", port=free_port, extra={"identity_secret": IDENTITY_SECRET})
    _, message = HaloHook().test_connection()
    told = message + caplog.text
    assert [word for word in (EXAMPLE_WIDGET_KEY, IDENTITY_SECRET, "eyJ") if word in told] == []


def test_refused_request_does_not_repeat_its_values(connect: Connect, halo: Simulator) -> None:
    """A request that Halo could never take is refused here, by the field's name alone."""
    with pytest.raises(HaloConfigurationError) as caught:
        HaloHook().chat("Confidential " * 1_000)
    assert "message" in str(caught.value)
    assert "Confidential" not in str(caught.value)
    assert halo.requests == []


def test_client_says_nothing_about_its_keys(connect: Connect) -> None:
    """A client may be printed."""
    connect(extra={"identity_secret": IDENTITY_SECRET})
    told = f"{HaloHook().get_conn()!r} {vars(HaloHook())}"
    assert EXAMPLE_WIDGET_KEY not in told
    assert IDENTITY_SECRET not in told


def test_wrong_key_raises_its_own_error(connect: Connect) -> None:
    """People's own tasks can tell the errors apart."""
    connect(password="ab_live_example_wrong_key")
    with pytest.raises(HaloAuthenticationError):
        HaloHook().chat("Hello")
