"""aiohttp's connections under httpx's errors: many times httpx's own requests a second, and errors that can be trusted.

The promise of this package stands on knowing whether a request was sent. httpx-aiohttp 0.2, the transport that could be
had, reports a connection lost *after* sending as ``httpx.ConnectTimeout``, like one refused before (seen on real
sockets). This one translates for itself: `httpx.ConnectError`, `httpx.ConnectTimeout` and `httpx.ProxyError` mean *not
sent*, every other error that it *may* have been. httpx's requests and responses are left out: making and reading them
takes half as long as all the rest of a call.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import httpx

if TYPE_CHECKING:
    import aiohttp

KEEPALIVE = 5.0  # seconds an idle connection is kept: a server that closes one first leaves a request in doubt


class Reply(NamedTuple):
    """A whole answer, decompressed. The headers' names may be asked for in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def aiohttp_transport(
    *, headers: Mapping[str, str], timeout: float, connect_timeout: float, proxy: httpx.Proxy | None
) -> "AiohttpTransport":
    """A transport that sends these headers with every request.

    Attempts last at most `timeout` seconds, `connect_timeout` of them for the connection.
    """
    import aiohttp  # noqa: PLC0415 -- slow to import, and not needed where a DAG is parsed

    # Without aiohttp's trust_env: it reads ~/.netrc at every request, and an entry there refuses our own key.
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE, ssl=httpx.create_ssl_context()),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout, connect=connect_timeout),
    )
    return AiohttpTransport(session, headers=headers, proxy=proxy)


class AiohttpTransport:
    """Sends whole requests through an aiohttp session, which it closes, and reads whole answers."""

    def __init__(
        self, session: "aiohttp.ClientSession", *, headers: Mapping[str, str], proxy: httpx.Proxy | None
    ) -> None:
        self._session = session
        self._headers = headers  # not the session's own, which would go to a proxy too
        self._proxy = None
        if proxy is not None:
            username, password = proxy.auth or (None, None)
            self._proxy = str(proxy.url.copy_with(username=username, password=password) if username else proxy.url)

    async def post(self, url: str, *, body: bytes) -> Reply:
        """Make one attempt, within the session's timeouts. Raises httpx.TransportError."""
        try:
            async with self._session.post(
                url, data=body, headers=self._headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except Exception as error:  # noqa: BLE001 -- translated, every one
            raise httpx_kind(error)(_text(error)) from (None if _may_quote(error) else error)

    async def aclose(self) -> None:
        """Close the session and its connections."""
        await self._session.close()


def httpx_kind(error: Exception) -> type[httpx.TransportError]:
    """The class of httpx for an error of aiohttp; what nobody thought of counts as after sending."""
    import aiohttp  # noqa: PLC0415 -- see aiohttp_transport

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
    """Whether the error's text may repeat what the other side sent, which could be our own request."""
    import aiohttp  # noqa: PLC0415 -- see aiohttp_transport

    return isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError)


def _text(error: Exception) -> str:
    """The error's name, with its text only where the system wrote it."""
    import aiohttp  # noqa: PLC0415 -- see aiohttp_transport

    match error:
        case aiohttp.ClientHttpProxyError():
            return f"the proxy answered {error.status}"
        case aiohttp.ConnectionTimeoutError():
            return "no connection in time"
        case OSError() if str(error):
            return f"{type(error).__name__}: {error}"
    return type(error).__name__
