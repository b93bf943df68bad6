"""What provably was not sent is not in doubt: no byte of the request was written to a connection."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from halo_provider.client import transport
from halo_provider.client.transport import KEEPALIVE, AiohttpTransport
from halo_provider.exceptions import HaloConnectionError, Verdict
from tests.core.servers import (
    CHAT,
    OK,
    Behaviour,
    answering,
    chat,
    client_of,
    closing_at_once,
    listening,
    request_from,
    resetting,
)


class IdleCloser:
    """A server in threads of its own, which answers every request and closes its connections when told to."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self.connections.append(connection)
            received = b""
            while part := connection.recv(65_536):
                received += part
                if received.endswith(b"}"):  # the whole body, which older versions of aiohttp send after the head
                    self.requests.append(received)
                    connection.sendall(OK)
                    received = b""

    def close_connections(self) -> None:
        """Close them all; on loopback the other side's kernel knows at once."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, and close them all."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_connections()


@contextmanager
def idle_closer(tls: ssl.SSLContext | None = None) -> Iterator[IdleCloser]:
    """Serve as long as the block runs."""
    with ExitStack() as stack:
        server = IdleCloser(tls)
        stack.callback(server.close)
        yield server


async def chats_around_a_close(server: IdleCloser, *, scheme: str, at_once: int) -> None:
    """So many chats, then the server's close, then as many chats before the loop can hear of the close."""
    async with client_of(f"{scheme}://127.0.0.1:{server.port}") as client:
        for _ in range(2):
            await asyncio.gather(*(client.chat(CHAT) for _ in range(at_once)))
            server.close_connections()


@pytest.mark.parametrize("at_once", [1, 20])
def test_used_connection_that_the_server_has_closed_is_replaced(at_once: int) -> None:
    """Nothing of a request is written to it: each chat is delivered once, over a new connection."""
    with idle_closer() as server:
        asyncio.run(chats_around_a_close(server, scheme="http", at_once=at_once))

        assert len(server.requests) == 2 * at_once
        assert len(server.connections) > at_once


def test_used_tls_connection_that_the_server_has_closed_is_replaced(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same under TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    with idle_closer(tls) as server:
        asyncio.run(chats_around_a_close(server, scheme="https", at_once=1))

        assert (len(server.requests), len(server.connections)) == (2, 2)


def test_tls_connection_is_used_again(tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TLS sends by itself does not pass for the end of a connection."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def chats(server: IdleCloser) -> None:
        async with client_of(f"https://127.0.0.1:{server.port}") as client:
            for _ in range(3):
                await client.chat(CHAT)

    with idle_closer(tls) as server:
        asyncio.run(chats(server))

        assert (len(server.requests), len(server.connections)) == (3, 1)


def test_bytes_that_answer_no_request_end_a_connection() -> None:
    """They would pass for the next request's answer."""

    async def chats(server: IdleCloser) -> str:
        async with client_of(f"http://127.0.0.1:{server.port}") as client:
            await client.chat(CHAT)
            server.connections[0].sendall(OK.replace(b"s-1", b"s-2"))
            return (await client.chat(CHAT)).session_id

    with idle_closer() as server:
        assert asyncio.run(chats(server)) == "s-1"
        assert (len(server.requests), len(server.connections)) == (2, 2)


def test_idle_connection_is_closed_before_a_server_would() -> None:
    """Common servers keep an idle connection for 5 s: less is left to chance where ours goes first."""
    assert KEEPALIVE < 4.0


async def half_an_answer_to_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin to answer CONNECT, then close."""
    await request_from(reader)
    writer.write(b"HTTP/1.1 200 Connection est")


@pytest.mark.parametrize(
    "dying",
    [closing_at_once, resetting, answering(b""), half_an_answer_to_connect, answering(b"garbage\r\n\r\n")],
    ids=["closed at once", "reset", "closed", "half an answer", "garbage"],
)
def test_proxy_that_dies_in_connect_was_not_sent(monkeypatch: pytest.MonkeyPatch, dying: Behaviour) -> None:
    """There is no tunnel yet, so nothing of the request can have left."""

    async def through_proxy() -> None:
        async with listening(dying) as port:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
            await chat(client_of("https://halo.example.com"))

    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(through_proxy())

    assert (caught.value.sent, caught.value.verdict) == (False, Verdict.NOT_ACCEPTED)


def test_connection_that_is_closed_as_soon_as_it_is_open_is_told_as_it_was() -> None:
    """In doubt, unless the close was seen before anything was written: either may come first."""

    async def attempt() -> None:
        async with listening(closing_at_once) as port:
            await chat(client_of(f"http://127.0.0.1:{port}"))

    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(attempt())

    assert isinstance(caught.value.__cause__, httpx.ReadError if caught.value.sent else httpx.ConnectError)


def test_request_without_a_body_counts_as_sent() -> None:
    """Its head is written where nothing tells of it: only failures of connecting are not sent then."""

    async def attempt() -> None:
        async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")

        async with listening(behaviour) as port, httpx.AsyncClient(transport=AiohttpTransport()) as client:
            await client.post(f"http://127.0.0.1:{port}/")

    with pytest.raises(httpx.ReadError):
        asyncio.run(attempt())


@pytest.mark.parametrize("way", ["write", "write_with_length"])
def test_each_way_of_aiohttp_to_write_a_request_is_noticed(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Before 3.12 aiohttp asked its payloads to write, since then to write with a length: neither may go unseen."""
    if way == "write":

        async def as_before(self: aiohttp.BytesPayload, writer: Any, content_length: int | None) -> None:
            await self.write(writer)

        monkeypatch.setattr(transport._Body, "write_with_length", as_before)

    async def attempt() -> None:
        async with listening(resetting) as port:
            await chat(client_of(f"http://127.0.0.1:{port}"))

    with pytest.raises(HaloConnectionError) as caught:
        asyncio.run(attempt())

    assert caught.value.verdict is Verdict.IN_DOUBT
