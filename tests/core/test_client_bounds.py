"""What an answer may cost: never more than MAX_BODY bytes of it are held, whatever a server sends."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from halo_provider.client.body import MAX_BODY
from halo_provider.client.client import HaloClient
from halo_provider.exceptions import (
    HaloCallError,
    HaloConnectionError,
    HaloRejectedError,
    HaloResponseError,
    HaloServerError,
    Verdict,
)
from halo_provider.simulator import EXAMPLE_WIDGET_KEY
from tests.core.servers import ANSWER, CHAT, OK, Behaviour, answering, chat_with, client_of, listening, request_from

MEBIBYTE = 1024 * 1024
TOO_LARGE = f"POST /chat: the answer is larger than {MAX_BODY:,} bytes"


def answer_of(body: bytes, *, status: int = 200, encoding: str = "identity") -> bytes:
    """A whole answer with this body."""
    head = f"HTTP/1.1 {status} Status\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def endless(status: int, sent: list[int]) -> Behaviour:
    """Answer with a body that goes on as long as the client reads it, counting its bytes."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_from(reader)
        writer.write(f"HTTP/1.1 {status} Status\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        sent.append(0)
        while not writer.is_closing() and sent[-1] < 100 * MEBIBYTE:
            writer.write(chunk)
            await writer.drain()
            sent[-1] += 65_536

    return behaviour


def failure(behaviour: Behaviour) -> Any:
    """The error in which a chat with this server ends."""
    with pytest.raises(HaloCallError) as caught:
        asyncio.run(chat_with(behaviour))
    return caught.value


def answer_as_large_as(size: int) -> bytes:
    """A proper answer of so many bytes."""
    return json.dumps({"session_id": "s-1", "text": "x" * (size - 35)}).encode().ljust(size)


def test_endless_answer_is_a_response_error() -> None:
    """Whether Halo took the chat is unknown, and the rest is not read: what was sent is what sockets hold."""
    sent: list[int] = []

    error = failure(endless(200, sent))

    assert (type(error), error.verdict, str(error)) == (HaloResponseError, Verdict.IN_DOUBT, TOO_LARGE)
    assert error.reply.startswith("xxx")
    assert sent[0] < 20 * MEBIBYTE


@pytest.mark.parametrize(("status", "kind"), [(400, HaloRejectedError), (502, HaloServerError)])
def test_endless_error_keeps_its_status(status: int, kind: type[Exception]) -> None:
    """The status says what to do, and the beginning of the body why."""
    sent: list[int] = []

    error = failure(endless(status, sent))

    assert (type(error), error.status) == (kind, status)
    assert error.message.startswith("xxx")
    assert sent[0] < 20 * MEBIBYTE


@pytest.mark.parametrize("status", [200, 500])
def test_gzip_bomb_costs_no_memory(status: int) -> None:
    """A body is decompressed only as far as it is kept."""
    bomb = answer_of(gzip.compress(bytes(64 * MEBIBYTE)), status=status, encoding="gzip")
    tracemalloc.start()

    try:
        error = failure(answering(bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert type(error) is (HaloResponseError if status == 200 else HaloServerError)
    assert peak < 8 * MEBIBYTE


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize(("size", "accepted"), [(MAX_BODY, True), (MAX_BODY + 1, False)])
def test_answer_within_the_bound_is_read_whole(size: int, accepted: bool, encoding: str) -> None:  # noqa: FBT001 -- a parameter
    """The last byte counts."""
    body = answer_as_large_as(size)
    server = answering(answer_of(gzip.compress(body) if encoding == "gzip" else body, encoding=encoding))

    if accepted:
        assert asyncio.run(chat_with(server)).session_id == "s-1"
    else:
        assert str(failure(server)) == TOO_LARGE


def test_body_that_a_transport_has_read_is_bounded_too() -> None:
    """httpx.MockTransport and recorders give whole bodies."""
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=answer_as_large_as(MAX_BODY + 1)))

    async def attempt() -> None:
        async with HaloClient(widget_key=EXAMPLE_WIDGET_KEY, transport=transport) as client:
            await client.chat(CHAT)

    with pytest.raises(HaloResponseError, match="larger than"):
        asyncio.run(attempt())


def test_connection_of_an_answer_that_is_too_large_is_closed() -> None:
    """What is left of it is never taken for the next answer."""
    connections: list[asyncio.Event] = []

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = asyncio.Event()
        connections.append(left)
        await request_from(reader)
        writer.write(OK if len(connections) > 1 else answer_of(answer_as_large_as(MAX_BODY * 4)))
        with suppress(OSError):
            await reader.read()
        left.set()

    async def attempts() -> str:
        async with listening(behaviour) as port, client_of(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(HaloResponseError):
                await client.chat(CHAT)
            await asyncio.wait_for(connections[0].wait(), 5)
            return (await client.chat(CHAT)).session_id

    assert asyncio.run(attempts()) == "s-1"
    assert len(connections) == 2


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " deflate "])
def test_compressed_answer_is_read_in_parts(encoding: str) -> None:
    """However its bytes are cut into parts."""
    body = zlib.compress(ANSWER) if "deflate" in encoding else gzip.compress(ANSWER)

    class Parts(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for byte in body:
                yield bytes([byte])

    response = httpx.Response(200, headers={"content-encoding": encoding}, stream=Parts())

    async def attempt() -> str:
        transport = httpx.MockTransport(lambda _: response)
        async with HaloClient(widget_key=EXAMPLE_WIDGET_KEY, transport=transport) as client:
            return (await client.chat(CHAT)).text

    assert asyncio.run(attempt()) == "Thanks"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"{}", "gzip"), (gzip.compress(ANSWER)[:-4], "gzip"), (ANSWER, "br"), (b"", "gzip")],
    ids=["no gzip", "cut off", "not asked for", "empty"],
)
def test_success_that_cannot_be_decompressed_is_in_doubt(body: bytes, encoding: str) -> None:
    """It came after sending."""
    error = failure(answering(answer_of(body, encoding=encoding)))

    assert (type(error), error.verdict) == (HaloConnectionError, Verdict.IN_DOUBT)
    assert isinstance(error.__cause__, httpx.DecodingError)


def test_error_that_cannot_be_decompressed_keeps_its_status() -> None:
    """A refusal is a refusal, whatever its words."""
    error = failure(answering(answer_of(b"{}", status=400, encoding="gzip")))

    assert (type(error), error.status, error.message) == (HaloRejectedError, 400, "no message")
