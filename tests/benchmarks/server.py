"""A Halo that does nothing but answer: raw sockets on uvloop in a process of its own, so that it is never the limit.

Run as ``python server.py SECONDS`` it prints its port, answers every POST after that many seconds, and ends with stdin.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import uvloop

BODY = (
    b'{"session_id": "sess_0123456789abcdef", "text": "Thank you. A colleague will get back to you.", '
    b'"agent_id": "agent"}'
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
BACKLOG = 2048  # connections that may wait to be accepted


class Answering(asyncio.Protocol):
    """One connection: counts whole requests by their content-length, and answers each."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 : (head + b"\r\n").find(b"\r\n", start)]) if start >= 0 else 0
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length :]
            if self._seconds:
                asyncio.get_running_loop().call_later(self._seconds, self._answer)
            else:
                self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def serve(seconds: float) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(seconds=seconds), "127.0.0.1", 0, backlog=BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)


class Server:
    """The server's process, as the benchmarks see it."""

    def __init__(self, *, url: str, pid: int) -> None:
        self.url = url
        self._process = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """The processor time it has used."""
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving(*, seconds: float) -> Iterator[Server]:
    """A server that answers after so many seconds, as long as the block runs."""
    with subprocess.Popen(
        [sys.executable, __file__, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield Server(url=f"http://127.0.0.1:{port}", pid=process.pid)
        process.stdin.close()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
