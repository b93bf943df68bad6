"""Answers on the wire, and the ways in which a connection can fail, below ASGI where needed."""

import asyncio
import contextlib
import json
import math
import time
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, cast

from starlette.types import Receive, Send

PAGE_HEADERS = {
    # Nothing but the page itself and its own stylesheet: what a message says can neither run nor load anything.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; text is sent as text, any other body as JSON."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        """Return the bytes of the body."""
        return self.body.encode() if isinstance(self.body, str) else json.dumps(self.body).encode()

    def head(self, *, length: int) -> dict[str, Any]:
        """Return the ASGI message that begins this answer."""
        headers = {
            "content-type": "text/plain; charset=utf-8" if isinstance(self.body, str) else "application/json",
            **{name.lower(): value for name, value in self.headers.items()},
            "content-length": str(length),
        }
        return {
            "type": "http.response.start",
            "status": self.status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }


def error(status: int, message: str | None = None, *, headers: dict[str, str] | None = None) -> Answer:
    """Return an answer in Halo's error form, with the status's own words when there are no better ones."""
    return Answer(status, {"error": message or responses.get(status, "Unknown")}, headers or {})


async def read_body(receive: Receive) -> bytes | None:
    """Return the request's body, or None when the client left before it was complete."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message["body"])
        if not message["more_body"]:
            return b"".join(chunks)


async def client_leaves(receive: Receive, *, within: float | None) -> bool:
    """Wait so many seconds (None: for ever), and no less, and return whether the client has gone meanwhile.

    Every pause of the simulator is this one, so that closing the connections ends them all.
    """
    ends = math.inf if within is None else time.monotonic() + within
    # uvloop counts whole milliseconds from when its turn began, and so ends a timeout too early.
    while (left := ends - time.monotonic()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if within is None else left):
                while (await receive())["type"] != "http.disconnect":
                    pass
                return True
    return False


async def send_answer(answer: Answer, send: Send) -> None:
    """Send the whole answer."""
    content = answer.content()
    await send(answer.head(length=len(content)))
    await send({"type": "http.response.body", "body": content})


async def send_half(answer: Answer, send: Send) -> None:
    """Send the headers and half of the body, then close the connection."""
    content = answer.content()
    await send(answer.head(length=len(content)))
    await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
    _transport(send).close()


def send_garbage(send: Send) -> None:
    """Send bytes that are not HTTP, then close the connection."""
    transport = _transport(send)
    transport.write(b"\x16\x03\x01 this is not HTTP \xff\xfe\r\n\r\n")
    transport.close()


def cut(send: Send) -> None:
    """Cut the connection."""
    _transport(send).abort()


def _transport(send: Send) -> asyncio.Transport:
    # uvicorn gives the application a bound method of the object that owns the connection.
    transport: asyncio.Transport = cast("Any", send).__self__.transport
    return transport
