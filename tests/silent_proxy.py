"""A TCP proxy on loopback that can fall silent: connections stay open, and nothing passes any more."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 65_536  # bytes


class SilentProxy:
    """Forwards to one server. While it is silent it accepts connections, keeps them open, and reads nothing."""

    def __init__(self, *, host: str, port: int) -> None:
        self._server = (host, port)
        self._speaks: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self.port = 0

    def fall_silent(self) -> None:
        """Forward nothing from now on, in either direction."""
        self._loop.call_soon_threadsafe(self._speaks.clear)

    def speak(self) -> None:
        """Forward again, also what came in the meantime."""
        self._loop.call_soon_threadsafe(self._speaks.set)

    async def serve(self, ready: threading.Event, ended: asyncio.Future[None]) -> None:
        """Listen on a free port until the end."""
        self._loop = asyncio.get_running_loop()
        self._speaks = asyncio.Event()
        self._speaks.set()
        listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await ended

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._speaks.wait()
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection(*self._server)
            await asyncio.gather(self._forward(reader, server_writer), self._forward(server_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                await self._speaks.wait()
                writer.write(chunk)
                await writer.drain()
        writer.close()


@contextmanager
def silent_proxy(*, host: str, port: int) -> Iterator[SilentProxy]:
    """A proxy to this server, in a thread, while the block runs."""
    proxy = SilentProxy(host=host, port=port)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(proxy.serve(ready, ended))
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=run, name="silent-proxy", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(ended.cancel)
        thread.join()
