"""A TCP proxy on loopback that can fall silent: it takes every byte and every connection, and passes nothing on."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class SilentProxy:
    """Stands before one server. `port` is where it listens; `swallowed` is set once it has kept something back."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._silent = threading.Event()
        self.swallowed = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def silence(self) -> None:
        """Pass nothing on any more, and close nothing."""
        self._silent.set()

    def resume(self) -> None:
        """Serve new connections again; what was swallowed is lost."""
        self._silent.clear()

    def close(self) -> None:
        """Close every connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
                self._sockets += [client, server]
                self._start(self._pump, client, server)
                self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while received := source.recv(65_536):
                if self._silent.is_set():
                    self.swallowed.set()
                else:
                    target.sendall(received)
            if not self._silent.is_set():
                target.shutdown(socket.SHUT_WR)


@contextmanager
def silent_proxy(host: str, port: int) -> Iterator[SilentProxy]:
    """A proxy before this server, closed at the end."""
    proxy = SilentProxy(host, port)
    try:
        yield proxy
    finally:
        proxy.close()
