"""HaloClient over any httpx transport: what the transport is given, and what each of its errors means."""

import asyncio
import gzip
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import httpx
import pytest

from halo_provider.client.client import HaloClient
from halo_provider.client.transport import AiohttpTransport
from halo_provider.exceptions import HaloConnectionError, HaloRateLimitError, HaloResponseError, Verdict
from halo_provider.models import Chat, ChatAnswer
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator

BASE_URL = "https://halo.example.com"
CHAT = Chat(message="Please review.", user_id="u-1")
ANSWER = b'{"session_id": "s-1", "text": "Thanks"}'


def client_of(transport: httpx.AsyncBaseTransport, *, base_url: str = BASE_URL, timeout: float = 5.0) -> HaloClient:
    """A client that sends through this transport."""
    return HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=base_url, timeout=timeout, transport=transport)


def chat(transport: httpx.AsyncBaseTransport, **options: Any) -> ChatAnswer:
    """One chat through this transport."""

    async def attempt() -> ChatAnswer:
        async with client_of(transport, **options) as client:
            return await client.chat(CHAT)

    return asyncio.run(attempt())


def raising(error: Exception) -> httpx.MockTransport:
    """A transport that fails with this error."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return httpx.MockTransport(handler)


def lost(transport: httpx.AsyncBaseTransport, **options: Any) -> HaloConnectionError:
    """The error in which a chat through this transport ends, without the widget key in it."""
    with pytest.raises(HaloConnectionError) as caught:
        chat(transport, **options)
    assert EXAMPLE_WIDGET_KEY not in "".join(traceback.format_exception(caught.value)) + str(vars(caught.value))
    return caught.value


class Streaming(httpx.AsyncBaseTransport):
    """Answers 200 with a body that arrives in parts, and notes when body and transport are closed."""

    def __init__(self, parts: Callable[[], AsyncIterator[bytes]], **headers: str) -> None:
        self._parts = parts
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.events: list[str] = []

    async def __aenter__(self) -> Self:
        self.events.append("entered")
        return self

    async def aclose(self) -> None:
        """The client leaves."""
        self.events.append("closed")

    async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
        """Answer."""
        transport = self

        class Body(httpx.AsyncByteStream):
            def __aiter__(self) -> AsyncIterator[bytes]:
                return transport._parts()

            async def aclose(self) -> None:
                transport.events.append("body closed")

        return httpx.Response(200, headers=self._headers, stream=Body())


def test_transport_is_given_the_whole_request() -> None:
    """Address, headers, body and timeouts are where every httpx transport expects them."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"session_id": "s-1"})

    answer = chat(httpx.MockTransport(handler), timeout=30.0)

    [request] = requests
    assert answer.session_id == "s-1"
    assert (request.method, str(request.url)) == ("POST", f"{BASE_URL}/api/sdk/chat")
    assert request.content == b'{"message":"Please review.","user_id":"u-1"}'
    assert request.headers["host"] == "halo.example.com"
    assert request.headers["authorization"] == f"Bearer {EXAMPLE_WIDGET_KEY}"
    assert request.headers["content-length"] == str(len(request.content))
    assert request.headers["content-type"] == request.headers["accept"] == "application/json"
    assert request.extensions["timeout"] == {"connect": 10.0, "pool": 10.0, "read": None, "write": None}


def test_connecting_ends_before_the_attempt() -> None:
    """Else nobody could say that nothing was sent when the attempt's time is over."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=ANSWER)

    chat(httpx.MockTransport(handler), timeout=3.0)

    assert requests[0].extensions["timeout"]["connect"] == 1.5


def test_each_path_has_its_address() -> None:
    """A base URL with a path of its own stays in front of each."""
    addresses: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        addresses.append(str(request.url))
        return httpx.Response(200, content=ANSWER)

    chat(httpx.MockTransport(handler), base_url="http://127.0.0.1:8080/halo/sdk/")

    assert addresses == ["http://127.0.0.1:8080/halo/sdk/chat"]


def test_error_status_of_any_transport_is_typed() -> None:
    """The answer means the same, whoever brought it."""
    answer = httpx.Response(429, headers={"Retry-After": "7"}, json={"error": "slow down"})

    with pytest.raises(HaloRateLimitError) as caught:
        chat(httpx.MockTransport(lambda _: answer))

    assert (caught.value.message, caught.value.retry_after) == ("slow down", 7.0)


def test_transport_is_entered_and_closed_with_the_client() -> None:
    """As httpx.AsyncClient does."""

    async def parts() -> AsyncIterator[bytes]:
        yield ANSWER[:10]
        yield ANSWER[10:]

    transport = Streaming(parts)

    assert chat(transport).session_id == "s-1"
    assert transport.events == ["entered", "body closed", "closed"]


def test_proxies_of_the_environment_are_for_the_packages_own_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gives a transport decides about proxies, as with httpx.AsyncClient."""
    monkeypatch.setenv("https_proxy", "what://x")

    assert chat(httpx.MockTransport(lambda _: httpx.Response(200, content=ANSWER))).session_id == "s-1"


def test_compressed_answer_is_decompressed_once() -> None:
    """A raw stream is the client's to decompress; a body that the transport has read is not."""

    async def parts() -> AsyncIterator[bytes]:
        yield gzip.compress(ANSWER)

    read = httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(ANSWER))

    assert chat(Streaming(parts, content_encoding="gzip")).text == "Thanks"
    assert chat(httpx.MockTransport(lambda _: read)).text == "Thanks"


def test_answer_that_cannot_be_decompressed_is_in_doubt() -> None:
    """httpx.DecodingError comes after sending."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"this is not gzip"

    transport = Streaming(parts, content_encoding="gzip")
    error = lost(transport)

    assert (error.sent, type(error.__cause__)) == (True, httpx.DecodingError)
    assert "body closed" in transport.events


def test_body_that_breaks_off_is_in_doubt_and_closed() -> None:
    """A transport may raise while the body arrives, too."""

    async def parts() -> AsyncIterator[bytes]:
        yield ANSWER[:10]
        raise httpx.ReadError("connection lost")

    transport = Streaming(parts)
    error = lost(transport)

    assert (error.sent, error.reason) == (True, "connection lost")
    assert "body closed" in transport.events


def test_attempt_is_bounded_whatever_the_transport_does() -> None:
    """A body that drips ends with the attempt's time."""

    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    started = time.monotonic()
    error = lost(Streaming(parts), timeout=0.2)

    assert (error.sent, error.reason) == (True, "no answer within 0.2 s")
    assert 0.2 <= time.monotonic() - started < 30.0


NOT_SENT = {
    "CloseError": False,
    "ConnectError": True,
    "ConnectTimeout": True,
    "DecodingError": False,
    "HTTPError": False,
    "HTTPStatusError": False,
    "LocalProtocolError": False,
    "NetworkError": False,
    "PoolTimeout": True,
    "ProtocolError": False,
    "ProxyError": True,
    "ReadError": False,
    "ReadTimeout": False,
    "RemoteProtocolError": False,
    "RequestError": False,
    "TimeoutException": False,
    "TooManyRedirects": False,
    "TransportError": False,
    "UnsupportedProtocol": True,
    "WriteError": False,
    "WriteTimeout": False,
}


def every_kind_of(error: type[Exception]) -> Iterator[type[Exception]]:
    """The class and its subclasses, as far as httpx defines them."""
    if error.__module__ == "httpx":
        yield error
    for kind in error.__subclasses__():
        yield from every_kind_of(kind)


def meaning(kind: type[Exception]) -> bool:
    """Whether a chat whose transport raises this counts as not sent."""
    error = kind.__new__(kind)
    error.args = ("the reason",)
    failed = lost(raising(error))
    assert failed.verdict is (Verdict.IN_DOUBT if failed.sent else Verdict.NOT_ACCEPTED)
    return not failed.sent


def test_every_error_of_httpx_is_classified_on_purpose() -> None:
    """Only what is raised before sending counts as not sent; a new class of httpx fails here until it is listed."""
    assert {kind.__name__: meaning(kind) for kind in every_kind_of(httpx.HTTPError)} == NOT_SENT


@pytest.mark.parametrize("error", [OSError("x"), ValueError("x"), RuntimeError("x"), TimeoutError(), KeyError("x")])
def test_error_that_is_not_httpxs_is_in_doubt(error: Exception) -> None:
    """A transport may raise anything; the request may have been sent before it did."""
    failed = lost(raising(error))

    assert failed.sent
    assert failed.__cause__ is error


def test_error_without_a_text_is_told_by_its_name() -> None:
    """An empty reason would say nothing."""
    assert lost(raising(httpx.WriteError(""))).reason == "WriteError"


def test_success_without_an_object_is_in_doubt_over_any_transport() -> None:
    """200 and no JSON."""
    with pytest.raises(HaloResponseError):
        chat(httpx.MockTransport(lambda _: httpx.Response(200, text="hello")))


def test_packages_transport_serves_httpx_itself(halo: Simulator, halo_url: str) -> None:
    """It is a real httpx transport: httpx.AsyncClient sends through it, with headers and timeouts of its own."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=AiohttpTransport(), timeout=5.0) as client:
            return await client.post(
                f"{halo_url}/api/sdk/chat",
                json={"message": "m"},
                headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"},
            )

    response = asyncio.run(post())

    assert response.json()["session_id"]
    assert len(halo.chats) == 1


def test_packages_transport_obeys_httpxs_read_timeout() -> None:
    """`read` bounds each wait for bytes of the answer, as in every httpx transport."""

    async def post() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with httpx.AsyncClient(transport=AiohttpTransport(), timeout=0.1) as client:
                await client.post(f"http://127.0.0.1:{port}/", content=b"{}")

    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(post())
