"""Plain HTTP for what is not the SDK's API: sign-ins, and Halo's MCP server."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
from pydantic_core import from_json

from halo_provider import __version__
from halo_provider.client.body import ACCEPT_ENCODING, read_body
from halo_provider.client.client import NOT_SENT
from halo_provider.client.over_transport import OverTransport
from halo_provider.exceptions import HaloReadError

MAX_RESULT = 4_194_304  # bytes after decompression of a tool's result, which may hold whole transcripts


class Reply(NamedTuple):
    """An answer, read to its end."""

    status: int
    headers: httpx.Headers
    content: bytes

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return from_json(self.content)
        except ValueError:
            return None


class Web(OverTransport):
    """Makes single requests; an async context manager. Redirects are not followed.

    `ssl_context` says whose certificates are trusted (see halo_provider.client.tls), where no `transport` is given.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        transport: httpx.AsyncBaseTransport | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(url, transport=transport, ssl_context=ssl_context)
        self._timeout = timeout

    async def send(
        self, method: str, url: str, *, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Make one request. Raises HaloReadError where no whole answer came."""
        if self._transport is None:
            raise RuntimeError("it is an async context manager: async with …")
        common = {
            "accept": "application/json",
            "accept-encoding": ACCEPT_ENCODING,
            "user-agent": f"airflow-provider-halo/{__version__}",
        }
        try:
            request = httpx.Request(method, url, headers={**common, **(headers or {})}, content=content)
            async with asyncio.timeout(self._timeout):
                response = await self._transport.handle_async_request(request)
                body = await read_body(response, limit=MAX_RESULT)
        except TimeoutError as error:
            raise HaloReadError(f"no answer from {_place(url)} within {self._timeout:g} s") from error
        except NOT_SENT as error:
            raise HaloReadError(f"{_place(url)}: {error or type(error).__name__}", sent=False) from error
        except Exception as error:
            raise HaloReadError(f"{_place(url)}: {error or type(error).__name__}") from error
        if not body.whole:
            raise HaloReadError(f"the answer of {_place(url)} is larger than {MAX_RESULT:,} bytes")
        return Reply(response.status_code, response.headers, body.content)


def _place(url: str) -> str:
    """The address without its query, which may hold a code."""
    return url.partition("?")[0]
