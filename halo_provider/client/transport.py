"""An httpx transport over aiohttp's connections, whose errors say whether a request can have been sent.

httpx's own connection pool makes 150 to 350 requests a second where aiohttp's makes 3,700. httpx-aiohttp 0.2, which
joins the two, raises ``httpx.ConnectTimeout`` for a connection that was lost *after* the request was sent, as for one
that was refused. This package has to tell the two apart, so this transport translates aiohttp's errors itself:
`httpx.ConnectError`, `httpx.ConnectTimeout` and `httpx.ProxyError` mean that the request was *not sent*, every other
error that it *may* have been.

aiohttp is slow to import, and not needed where a DAG is parsed: import this module where a transport is opened.
"""

from collections.abc import AsyncIterator
from functools import lru_cache

import aiohttp
import httpx

KEEPALIVE = 5.0  # seconds an idle connection is kept: when the server closes it first, the next request is in doubt


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends whole requests over aiohttp's connections, and streams the answers. Needs a running event loop.

    The body of an answer is as it came: httpx.Response decompresses it.

    Of a request's timeouts (``extensions["timeout"]``, seconds) ``connect`` bounds name, connection and TLS, ``read``
    each wait for bytes of the answer. There is nothing for ``pool`` to bound, as the number of connections is not
    limited, and aiohttp has no ``write``: bound the whole attempt.
    """

    def __init__(self, *, proxy: httpx.Proxy | None = None) -> None:
        # Without aiohttp's trust_env: it reads ~/.netrc at every request, and an entry there refuses our own key.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE, ssl=httpx.create_ssl_context()),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        self._proxy = None
        if proxy is not None:
            username, password = proxy.auth or (None, None)
            self._proxy = str(proxy.url.copy_with(username=username, password=password) if username else proxy.url)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one attempt, and return as soon as the answer's status is there. Raises httpx.TransportError."""
        content = await request.aread()
        url = str(request.url)
        headers = [(name.decode(), value.decode()) for name, value in request.headers.raw]
        timeouts = request.extensions.get("timeout", {})
        try:
            response = await self._session.request(
                request.method,
                url,
                data=aiohttp.BytesPayload(content),
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
                timeout=_client_timeout(timeouts.get("connect"), timeouts.get("read")),
            )
        except Exception as error:  # noqa: BLE001 -- every error is translated
            raise httpx_kind(error)(_text(error)) from (None if _may_quote(error) else error)
        return httpx.Response(response.status, headers=response.raw_headers, stream=_Stream(response))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


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
        self._response.close()


@lru_cache
def _client_timeout(connect: float | None, read: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect, sock_read=read)


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
