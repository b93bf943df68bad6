"""What sends HTTP requests over a transport, which it opens and closes."""

import ssl
from types import TracebackType
from typing import Self

import httpx

from halo_provider.client.address import environment_proxy


class OverTransport:
    """An async context manager whose transport is open inside: the one it was given, or this package's own.

    The own one goes through the environment's proxy for `url`; `ssl_context` says whose certificates it trusts (see
    halo_provider.client.tls).
    """

    def __init__(
        self, url: str, *, transport: httpx.AsyncBaseTransport | None, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._url = url
        self._given_transport = transport
        self._ssl_context = ssl_context
        self._transport: httpx.AsyncBaseTransport | None = None

    async def __aenter__(self) -> Self:
        transport = self._given_transport
        if transport is None:
            from halo_provider.client.transport import AiohttpTransport  # noqa: PLC0415 -- imports aiohttp

            transport = AiohttpTransport(proxy=environment_proxy(self._url), ssl_context=self._ssl_context)
        self._transport = await transport.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            await transport.__aexit__(exc_type, exc, traceback)
