"""What each way of losing a connection says about the request: every one driven through a real socket.

docs/architecture.md: only what certainly failed before sending counts as not sent; everything unknown is in doubt.
"""

import asyncio
import gzip
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import httpx
import pytest

from halo_provider.client.transport import httpx_kind
from halo_provider.exceptions import HaloConfigurationError, HaloConnectionError, Verdict
from halo_provider.models import ChatAnswer
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Simulator
from tests.core.servers import (
    ANSWER,
    CHAT,
    OK,
    Behaviour,
    answering,
    chat,
    chat_with,
    client_of,
    closing_at_once,
    listening,
    request_from,
    resetting,
)
from tests.example_keys import IDENTITY_SECRET

PROXY_PASSWORD = "example-proxy-password"


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take everything and say nothing until the client leaves."""
    while await reader.read(65_536):
        pass


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer promptly, and send the body a byte at a time, for ever as far as the client can tell."""
    await request_from(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.01)


def lost(chatting: Awaitable[ChatAnswer]) -> HaloConnectionError:
    """The error in which a chat ends, free of every secret."""

    async def attempt() -> ChatAnswer:
        return await chatting

    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(attempt())
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    for secret in (EXAMPLE_WIDGET_KEY, IDENTITY_SECRET, PROXY_PASSWORD, "eyJ", CHAT.message):
        assert secret not in shown
    return error


def is_not_sent(error: HaloConnectionError) -> bool:
    """Whether the error, by all it says, is of a request that never left."""
    assert error.path == "/chat"
    assert error.verdict is (Verdict.IN_DOUBT if error.sent else Verdict.NOT_ACCEPTED)
    assert ("was not sent" in str(error)) is not error.sent
    return not error.sent


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_refused_connection_was_not_sent(closed_port: int) -> None:
    """Nobody listens: nothing left."""
    error = lost(chat(client_of(f"http://127.0.0.1:{closed_port}")))

    assert is_not_sent(error)
    assert error.reason.startswith("ClientConnectorError: Cannot connect to host 127.0.0.1")


def test_unknown_host_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name has no address: there was nobody to send to."""

    def unknown(*_: Any, **__: Any) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    error = lost(chat(client_of("http://halo.example.com")))

    assert is_not_sent(error)
    assert "halo.example.com" in error.reason


def test_name_that_is_never_resolved_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs counts against the time for connecting, which ends before the attempt's."""
    answered = threading.Event()

    def hanging(*_: Any, **__: Any) -> NoReturn:
        answered.wait(0.3)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)

    assert is_not_sent(lost(chat(client_of("http://halo.example.com", timeout=0.2))))


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that the system answers no further one."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


def test_connection_that_is_never_accepted_was_not_sent(full_port: int) -> None:
    """The time for connecting is over before the attempt's own: it is certain that nothing left."""
    error = lost(chat(client_of(f"http://127.0.0.1:{full_port}", timeout=3.0)))

    assert is_not_sent(error)
    assert error.reason == "no connection in time"


def test_tls_handshake_that_never_ends_was_not_sent() -> None:
    """A server that accepts and stays silent has not seen the request yet."""
    assert is_not_sent(lost(chat_with(silent, scheme="https", timeout=3.0)))


def test_plain_server_under_an_https_address_was_not_sent() -> None:
    """No TLS, no request."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    error = lost(chat_with(plain, scheme="https"))

    assert is_not_sent(error)
    assert error.reason.startswith("ClientConnectorSSLError")


def test_connection_closed_in_the_tls_handshake_was_not_sent() -> None:
    """Closed before the request could be written."""
    assert is_not_sent(lost(chat_with(closing_at_once, scheme="https")))


def test_certificate_nobody_vouches_for_was_not_sent(tls: ssl.SSLContext) -> None:
    """A self-signed certificate is refused: verification is never off."""
    error = lost(chat_with(answering(OK), tls=tls))

    assert is_not_sent(error)
    assert "CERTIFICATE_VERIFY_FAILED" in error.reason


def test_certificate_of_another_host_was_not_sent(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trusted, but for an address that is not the one called."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def attempt() -> ChatAnswer:
        async with listening(answering(OK), tls=tls) as port:
            return await chat(client_of(f"https://localhost:{port}"))

    assert is_not_sent(lost(attempt()))


def test_certificate_authority_of_the_environment_is_trusted(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSL_CERT_FILE adds a company's own authority, as everywhere."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    assert asyncio.run(chat_with(answering(OK), tls=tls)).session_id == "s-1"


@pytest.mark.parametrize(
    "behaviour",
    [
        resetting,
        answering(b""),
        answering(b"HTTP/1.1 200 OK\r\nContent-Le"),
        answering(OK[:-5]),
        answering(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ses'),
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot-a-length\r\n{}"),
        answering(b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nAuthorization Bearer " + EXAMPLE_WIDGET_KEY.encode() + b"\r\n\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"),
        answering(b"SSH-2.0-OpenSSH_9.6\r\n"),
    ],
    ids=[
        "reset",
        "no answer",
        "half a head",
        "half a body",
        "half a chunk",
        "broken chunk",
        "garbage",
        "garbage that repeats the key",
        "garbage in a header",
        "garbage under gzip",
        "another protocol",
    ],
)
def test_connection_lost_once_open_is_in_doubt(behaviour: Behaviour) -> None:
    """Whatever goes wrong after connecting, Halo may have taken the request."""
    assert not is_not_sent(lost(chat_with(behaviour)))


@pytest.mark.parametrize("behaviour", [resetting, answering(b""), answering(OK[:-5])])
def test_tls_connection_lost_once_open_is_in_doubt(
    behaviour: Behaviour, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same under TLS, whose errors look like those of connecting."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    assert not is_not_sent(lost(chat_with(behaviour, tls=tls)))


@pytest.mark.parametrize("behaviour", [silent, dripping])
def test_answer_that_does_not_come_in_time_is_in_doubt(behaviour: Behaviour) -> None:
    """`timeout` bounds the whole attempt: a body that drips does not prolong it."""
    started = time.monotonic()

    error = lost(chat_with(behaviour, timeout=0.2))

    assert not is_not_sent(error)
    assert error.reason == "no answer within 0.2 s"
    assert 0.2 <= time.monotonic() - started < 30.0


@pytest.mark.parametrize(
    ("fault", "accepted"),
    [
        (Fault.drop_before_acceptance(), False),
        (Fault.drop_after_acceptance(), True),
        (Fault.half_answer(), True),
        (Fault.garbage(), True),
        (Fault.silence(accepted=True), True),
        (Fault.silence(accepted=False), False),
    ],
)
def test_doubt_is_right_whatever_halo_did(halo: Simulator, halo_url: str, fault: Fault, accepted: bool) -> None:  # noqa: FBT001 -- a parameter
    """The same failure here, the chat taken or not there: neither may be claimed."""
    halo.script(path="/chat", faults=[fault])

    assert not is_not_sent(lost(chat(client_of(halo_url, timeout=3.0 if fault.kind == "silence" else 30.0))))
    assert len(halo.chats) == accepted


def test_cause_is_kept_where_it_repeats_nothing(closed_port: int) -> None:
    """Whoever looks into a failed connection finds aiohttp's error, and the system's."""
    refused = lost(chat(client_of(f"http://127.0.0.1:{closed_port}")))
    garbled = lost(chat_with(answering(b"garbage\r\n\r\n")))

    assert isinstance(refused.__cause__.__cause__, aiohttp.ClientConnectorError)
    assert garbled.__cause__.__cause__ is None


def test_cancellation_is_no_failure_of_halo() -> None:
    """A task that is cancelled stays cancelled."""

    async def cancelled() -> None:
        async with listening(silent) as port, client_of(f"http://127.0.0.1:{port}") as client:
            task = asyncio.create_task(client.chat(CHAT))
            await asyncio.sleep(0.05)
            task.cancel()
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


SENT = {
    "ClientConnectionError": True,
    "ClientConnectionResetError": True,
    "ClientConnectorCertificateError": False,
    "ClientConnectorDNSError": False,
    "ClientConnectorError": False,
    "ClientConnectorSSLError": False,
    "ClientHttpProxyError": False,
    "ClientOSError": True,
    "ClientPayloadError": True,
    "ClientProxyConnectionError": False,
    "ClientResponseError": True,
    "ClientSSLError": False,
    "ConnectionTimeoutError": False,
    "ContentTypeError": True,
    "InvalidURL": True,
    "InvalidUrlClientError": True,
    "InvalidUrlRedirectClientError": True,
    "NonHttpUrlClientError": True,
    "NonHttpUrlRedirectClientError": True,
    "RedirectClientError": True,
    "ServerConnectionError": True,
    "ServerDisconnectedError": True,
    "ServerFingerprintMismatch": True,
    "ServerTimeoutError": True,
    "SocketTimeoutError": True,
    "TooManyRedirects": True,
    "UnixClientConnectorError": False,
    "UploadAbortedError": True,
    "WSServerHandshakeError": True,
}


NOT_SENT = {httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError}


def every_kind_of(error: type[Exception]) -> Iterator[type[Exception]]:
    """The class's subclasses, all the way down, as far as aiohttp defines them."""
    for kind in error.__subclasses__():
        if kind.__module__.startswith("aiohttp."):
            yield kind
        yield from every_kind_of(kind)


def test_every_error_of_aiohttp_is_classified_on_purpose() -> None:
    """Only failures of connecting count as not sent; a class new in aiohttp fails here until it is in the table."""
    kinds = set(every_kind_of(aiohttp.ClientError))

    assert {kind.__name__: httpx_kind(kind.__new__(kind)) not in NOT_SENT for kind in kinds} == SENT


@pytest.mark.parametrize("error", [OSError(), ValueError(), RuntimeError(), TimeoutError(), EOFError()])
def test_error_nobody_thought_of_is_in_doubt(error: Exception) -> None:
    """Unknown is never "not sent"."""
    assert httpx_kind(error) not in NOT_SENT


def recorded(requests: list[bytes], *answers: bytes) -> Behaviour:
    """Write down every request of a connection, giving these answers in turn, then close it."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            requests.append(await request_from(reader))
            writer.write(answer)
            await writer.drain()

    return behaviour


def headers_of(request: bytes) -> dict[str, str]:
    """The request's headers, their names in lower case."""
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def test_request_on_the_wire_is_plain_json_with_the_key() -> None:
    """The header lines Halo documents, and no chunks."""
    requests: list[bytes] = []

    asyncio.run(chat_with(recorded(requests, OK), identity_secret=None))

    [request] = requests
    headers = headers_of(request)
    assert request.startswith(b"POST /api/sdk/chat HTTP/1.1\r\n")
    assert request.endswith(b'\r\n\r\n{"message":"Please review.","user_id":"u-1"}')
    assert headers["authorization"] == f"Bearer {EXAMPLE_WIDGET_KEY}"
    assert headers["content-type"] == headers["accept"] == "application/json"
    assert re.fullmatch(r"airflow-provider-halo/[\w.]+", headers["user-agent"])
    assert "transfer-encoding" not in headers
    assert "cookie" not in headers


def test_netrc_entry_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ~/.netrc with a default entry is not ours to send, and does not stop us from sending."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    requests: list[bytes] = []

    asyncio.run(chat_with(recorded(requests, OK)))

    assert headers_of(requests[0])["authorization"] == f"Bearer {EXAMPLE_WIDGET_KEY}"


def test_compressed_answer_is_understood() -> None:
    """What the request's accept-encoding offers can be read."""
    body = gzip.compress(ANSWER)
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    assert asyncio.run(chat_with(answering(answer))).text == "Thanks"


async def two_chats(behaviour: Behaviour, *, pause: float = 0.0) -> None:
    """Two chats, one after the other, by one client."""
    async with listening(behaviour) as port, client_of(f"http://127.0.0.1:{port}") as client:
        await client.chat(CHAT)
        await asyncio.sleep(pause)
        await client.chat(CHAT)


def test_connection_is_used_again_and_cookies_are_not() -> None:
    """The second chat goes over the first one's connection, without the cookie that came over it."""
    requests: list[bytes] = []
    with_cookie = OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n", 1)

    asyncio.run(two_chats(recorded(requests, with_cookie, OK)))

    assert len(requests) == 2
    assert "cookie" not in headers_of(requests[1])


def test_connection_closed_while_idle_is_replaced() -> None:
    """A server that closes after its answer costs nothing: the next chat opens a connection of its own."""
    requests: list[bytes] = []

    asyncio.run(two_chats(recorded(requests, OK), pause=0.05))

    assert len(requests) == 2


def test_request_on_a_dying_connection_is_not_repeated_underneath() -> None:
    """A used connection lost under a request leaves it in doubt: nothing below us sends it again."""
    requests: list[bytes] = []

    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(two_chats(recorded(requests, OK, b"")))

    assert not is_not_sent(caught.value)
    assert len(requests) == 2


def test_failed_attempt_spoils_nothing_for_the_next(halo: Simulator, halo_url: str) -> None:
    """The same client goes on, over a new connection."""
    halo.script(path="/chat", faults=[Fault.drop_before_acceptance()])

    async def twice() -> ChatAnswer:
        async with client_of(halo_url) as client:
            with pytest.raises(HaloConnectionError):
                await client.chat(CHAT)
            return await client.chat(CHAT)

    assert asyncio.run(twice()).session_id


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The request goes to the proxy, which learns the whole address; the host is never looked up here."""
    requests: list[bytes] = []

    async def through_proxy() -> ChatAnswer:
        async with listening(recorded(requests, OK)) as port:
            monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
            return await chat(client_of("http://halo.example.com"))

    assert asyncio.run(through_proxy()).session_id == "s-1"
    assert requests[0].startswith(b"POST http://halo.example.com/api/sdk/chat HTTP/1.1\r\n")
    assert headers_of(requests[0])["authorization"] == f"Bearer {EXAMPLE_WIDGET_KEY}"


def test_proxy_may_be_named_without_scheme_and_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """As curl takes it: user:password@host:port."""
    requests: list[bytes] = []

    async def through_proxy() -> ChatAnswer:
        async with listening(recorded(requests, OK)) as port:
            monkeypatch.setenv("http_proxy", f"airflow:{PROXY_PASSWORD}@127.0.0.1:{port}")
            return await chat(client_of("http://halo.example.com"))

    assert asyncio.run(through_proxy()).session_id == "s-1"
    assert headers_of(requests[0])["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize("exempt", ["127.0.0.1", "example.com,127.0.0.1", "*"])
def test_no_proxy_exempts_a_host(
    halo: Simulator, halo_url: str, closed_port: int, monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    """NO_PROXY goes before the proxy, which here is not even there."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("no_proxy", exempt)

    assert asyncio.run(chat(client_of(halo_url))).session_id
    assert len(halo.chats) == 1


def test_proxy_that_is_not_there_was_not_sent(
    halo: Simulator, halo_url: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing left, and nothing goes past the proxy instead."""
    monkeypatch.setenv("http_proxy", f"http://airflow:{PROXY_PASSWORD}@127.0.0.1:{closed_port}")

    error = lost(chat(client_of(halo_url)))

    assert is_not_sent(error)
    assert error.reason.startswith("ClientProxyConnectionError")
    assert halo.requests == []


def test_proxy_that_refuses_the_tunnel_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer other than 200 to CONNECT ends the attempt before the request, and its status is told."""

    async def through_proxy() -> ChatAnswer:
        refusal = answering(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        async with listening(refusal) as port:
            monkeypatch.setenv("https_proxy", f"http://airflow:{PROXY_PASSWORD}@127.0.0.1:{port}")
            return await chat(client_of("https://halo.example.com"))

    error = lost(through_proxy())

    assert is_not_sent(error)
    assert error.reason == "the proxy answered 407"


def test_https_goes_through_a_tunnel(tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees where to, and nothing of the request."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    asked_for: list[bytes] = []
    requests: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65_536):
            writer.write(some)
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked_for.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))

    async def through_proxy() -> ChatAnswer:
        async with listening(recorded(requests, OK), tls=tls) as port, listening(tunnel) as proxy_port:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy_port}")
            return await chat(client_of(f"https://127.0.0.1:{port}"))

    assert asyncio.run(through_proxy()).session_id == "s-1"
    assert asked_for[0].startswith(b"CONNECT 127.0.0.1:")
    assert EXAMPLE_WIDGET_KEY.encode() not in asked_for[0]
    assert len(requests) == 1


@pytest.mark.parametrize(
    "proxy", [f"socks5://airflow:{PROXY_PASSWORD}@127.0.0.1:1", "http://127.0.0.1:port", "what://x"]
)
def test_proxy_that_cannot_be_used_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """Known before the first request, with the variable's name and without its value."""
    monkeypatch.setenv("http_proxy", proxy)

    with pytest.raises(HaloConfigurationError, match="http_proxy") as caught:
        asyncio.run(chat(client_of("http://halo.example.com")))

    assert PROXY_PASSWORD not in "".join(traceback.format_exception(caught.value))
