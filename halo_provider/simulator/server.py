"""The simulator under uvicorn."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

STARTUP = 10.0  # seconds at most
SHUTDOWN = 5.0  # seconds at most


class Server(uvicorn.Server):
    """uvicorn for one application, without logs of its own, that announces itself and stops at once."""

    def __init__(self, application: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                access_log=False,
                lifespan="off",
                log_config=None,
                log_level="warning",
                proxy_headers=False,
                ws="none",
            )
        )
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut every connection instead of waiting for slow or silent answers, which end with their connection."""
        for listener in self.servers:
            listener.close()
        for each in sockets or []:
            each.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=SHUTDOWN)


def listen(*, host: str, port: int) -> tuple[socket.socket, str]:
    """Return a listening socket and the origin it serves; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def serving(application: ASGIApp) -> Iterator[str]:
    """Serve on a free loopback port, in a thread, while the block runs; yield the origin, such as http://127.0.0.1:1234.

    Raises TimeoutError if the server does not start.
    """
    listener, origin = listen(host="127.0.0.1", port=0)
    server = Server(application)
    thread = threading.Thread(target=server.run, args=([listener],), name="halo-simulator", daemon=True)
    thread.start()
    try:
        if not server.ready.wait(STARTUP):
            raise TimeoutError(f"the simulator did not start within {STARTUP:g} s")
        yield origin
    finally:
        server.should_exit = True
        thread.join(SHUTDOWN)
