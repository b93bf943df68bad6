"""An httpx transport over aiohttp's connections, whose errors say whether a request can have been sent.

httpx's own connection pool makes 150 to 350 requests a second where aiohttp's makes 3,700. httpx-aiohttp 0.2, which
joins the two, raises ``httpx.ConnectTimeout`` for a connection that was lost *after* the request was sent, as for one
that was refused. This package has to tell the two apart, so this transport translates aiohttp's errors itself:
`httpx.ConnectError`, `httpx.ConnectTimeout` and `httpx.ProxyError` mean that the request was *not sent*, every other
error that it *may* have been.

aiohttp is slow to import, and not needed where a DAG is parsed: import this module where a transport is opened.
"""

import select
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.http import StreamWriter

from halo_provider.client.tls import tls_context

# Seconds an idle connection is kept. When the server closes it at the moment of the next request, that request is in
# doubt; common servers close after 5 s.
KEEPALIVE = 2.0


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends whole requests over aiohttp's connections, and streams the answers. Needs a running event loop.

    The body of an answer is as it came: httpx.Response decompresses it.

    Of a request's timeouts (``extensions["timeout"]``, seconds) ``connect`` bounds name, connection and TLS, ``read``
    each wait for bytes of the answer. There is nothing for ``pool`` to bound, as the number of connections is not
    limited, and aiohttp has no ``write``: bound the whole attempt.
    """

    def __init__(self, *, proxy: httpx.Proxy | None = None, ssl_context: ssl.SSLContext | None = None) -> None:
        # Without aiohttp's trust_env: it reads ~/.netrc at every request, and an entry there refuses our own key.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE, ssl=ssl_context or tls_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._used: WeakSet[Any] = WeakSet()  # the protocols of connections that have carried a request
        self._proxy = None
        if proxy is not None:
            username, password = proxy.auth or (None, None)
            self._proxy = str(proxy.url.copy_with(username=username, password=password) if username else proxy.url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one attempt, and return as soon as the answer's status is there. Raises httpx.TransportError."""
        content = await request.aread()
        url = str(request.url)
        headers = [(_text_of(name), _text_of(value)) for name, value in request.headers.raw]
        timeouts = request.extensions.get("timeout", {})
        while True:
            body = _Body(content, used=self._used)
            try:
                response = await self._session.request(
                    request.method,
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._proxy,
                    timeout=_client_timeout(timeouts.get("connect"), timeouts.get("read")),
                )
            except Exception as error:  # noqa: BLE001 -- every error is translated
                if body.stale:
                    continue  # nothing was written, and aiohttp has dropped the closed connection
                kind = httpx_kind(error) if body.sent or not content else unsent_kind(error)
                raise kind(_text(error)) from (None if _may_quote(error) else error)
            return httpx.Response(response.status, headers=response.raw_headers, stream=_Stream(response))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


class _Body(aiohttp.BytesPayload):
    """The body of one request, which knows whether a byte of the request was written.

    aiohttp writes a request's head together with the beginning of its body, here.
    """

    def __init__(self, content: bytes, *, used: WeakSet[Any]) -> None:
        super().__init__(content)
        self._used = used
        self.sent = False
        self.stale = False  # the server had closed a used connection before anything was written

    async def write(self, writer: StreamWriter) -> None:  # type: ignore[override]  # a client session's writer
        """Write the request, as aiohttp before 3.12 asks."""
        self._check(writer)
        await super().write(writer)

    async def write_with_length(  # type: ignore[override]
        self, writer: StreamWriter, content_length: int | None
    ) -> None:
        """Write the request, as aiohttp asks since 3.12."""
        self._check(writer)
        await super().write_with_length(writer, content_length)

    def _check(self, writer: StreamWriter) -> None:
        """Note that the request is written now. Raises ConnectionResetError if its connection is closed already."""
        used = writer.protocol in self._used
        transport = writer.transport
        is_closed = transport is None or transport.is_closing() or (used and _is_readable(transport))
        self.stale = used and is_closed
        if is_closed:
            raise ConnectionResetError("the connection was closed before the request was written")
        if not used:
            self._used.add(writer.protocol)
        self.sent = True


class _Stream(httpx.AsyncByteStream):
    """The body of one answer, read as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        content = self._response.content
        if content.at_eof():
            raise StopAsyncIteration
        try:
            part = await content.readany()
        except Exception as error:  # noqa: BLE001 -- every error is translated
            raise httpx_kind(error)(_text(error)) from (None if _may_quote(error) else error)
        if not part:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        """Release the connection. One with an unread rest of the answer is closed."""
        if not self._response.closed:
            self._response.close()


_text_of = lru_cache(maxsize=256)(bytes.decode)  # the same few headers come with each request


@lru_cache
def _client_timeout(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_read=read)


def _is_readable(transport: Any) -> bool:
    """Whether something has arrived on an idle connection: its end, or bytes that belong to no request."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def httpx_kind(error: Exception) -> type[httpx.TransportError]:
    """The class of httpx for an error of aiohttp. An error that is not listed here counts as after sending."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return httpx.ConnectTimeout
        case aiohttp.ClientHttpProxyError():
            return httpx.ProxyError
        case aiohttp.ClientConnectorError():
            return httpx.ConnectError
        case TimeoutError():
            return httpx.ReadTimeout
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | aiohttp.ClientPayloadError():
            return httpx.ReadError
    return httpx.RemoteProtocolError


def unsent_kind(error: Exception) -> type[httpx.TransportError]:
    """The class of httpx for an error before the first byte of a request was written."""
    kind = httpx_kind(error)
    return kind if issubclass(kind, httpx.ConnectTimeout | httpx.ProxyError) else httpx.ConnectError


def _may_quote(error: Exception) -> bool:
    """Whether the error's text may quote what the server sent, which may quote our own request."""
    return isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError)


def _text(error: Exception) -> str:
    """The error's name, with its text only where the operating system wrote it."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answered {error.status}"
        case aiohttp.ConnectionTimeoutError():
            return "no connection in time"
        case OSError() if str(error):
            return f"{type(error).__name__}: {error}"
    return type(error).__name__
