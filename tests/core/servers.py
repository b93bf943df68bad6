"""Servers on real sockets that answer byte by byte as a test says, and clients of them."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from halo_provider.client.client import HaloClient
from halo_provider.models import Chat, ChatAnswer
from halo_provider.simulator import EXAMPLE_WIDGET_KEY
from tests.example_keys import IDENTITY_SECRET

CHAT = Chat(message="Please review.", user_id="u-1")
ANSWER = b'{"session_id": "s-1", "text": "Thanks"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(behaviour: Behaviour, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve on a loopback port, each connection with `behaviour`, until every client has left."""
    conversations: set[asyncio.Task[Any]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.current_task())
        with suppress(OSError, EOFError):
            await behaviour(reader, writer)
        writer.close()

    async with await asyncio.start_server(converse, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        if conversations:
            await asyncio.wait(conversations, timeout=5)


async def request_from(reader: asyncio.StreamReader) -> bytes:
    """The whole request: head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


def answering(answer: bytes) -> Behaviour:
    """Read one request, write these bytes, close the connection."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_from(reader)
        writer.write(answer)
        await writer.drain()

    return behaviour


async def closing_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection before anything is read."""


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the request, then cut the connection with a reset."""
    await request_from(reader)
    writer.transport.abort()


def client_of(url: str, **options: Any) -> HaloClient:
    """A client with both secrets and little patience."""
    return HaloClient(
        widget_key=EXAMPLE_WIDGET_KEY,
        base_url=url,
        **{"identity_secret": IDENTITY_SECRET, "timeout": 5.0, **options},
    )


async def chat(client: HaloClient) -> ChatAnswer:
    """One chat over connections of its own."""
    async with client:
        return await client.chat(CHAT)


async def chat_with(
    behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, scheme: str | None = None, **options: Any
) -> ChatAnswer:
    """One chat with a server of this behaviour."""
    scheme = scheme or ("https" if tls else "http")
    async with listening(behaviour, tls=tls) as port:
        return await chat(client_of(f"{scheme}://127.0.0.1:{port}", **options))
