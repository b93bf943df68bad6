"""The body of an answer: decompressed, and never more of it than MAX_BODY, whatever the server sends."""

import zlib
from typing import NamedTuple

import httpx

MAX_BODY = 262_144  # bytes after decompression; Halo's answers have a few hundred
ACCEPT_ENCODING = "gzip, deflate"  # what _Inflater understands

_ANY_HEADER = zlib.MAX_WBITS | 32  # gzip's or zlib's


class Body(NamedTuple):
    """What was read of an answer's body; `whole` is False where the server sent more than MAX_BODY."""

    content: bytes
    whole: bool


async def read_body(response: httpx.Response, *, limit: int = MAX_BODY) -> Body:
    """Read and close `response`, of which at most `limit` bytes are kept.

    Raises what its transport raises, and httpx.DecodingError for a success that cannot be decompressed: of an error
    status, what was read is kept.
    """
    if response.is_stream_consumed:  # the transport has read it, as httpx.MockTransport does
        return _bounded(response.content, limit)
    stream = response.stream
    if not isinstance(stream, httpx.AsyncByteStream):
        raise TypeError(f"{type(stream).__name__} is not an httpx.AsyncByteStream")
    content = bytearray()
    try:
        inflater = _inflater([value for name, value in response.headers.raw if name.lower() == b"content-encoding"])
        async for part in stream:
            content += inflater.inflate(part, limit=limit + 1 - len(content)) if inflater else part
            if len(content) > limit:
                return _bounded(bytes(content), limit)
        if inflater:
            inflater.finish()
    except httpx.DecodingError:
        if response.is_success:
            raise
    finally:
        await stream.aclose()
    return Body(bytes(content), whole=True)


def _bounded(content: bytes, limit: int) -> Body:
    return Body(content[:limit], whole=len(content) <= limit)


def _inflater(encodings: list[bytes]) -> "_Inflater | None":
    """What decompresses an answer with these Content-Encoding headers, if it is compressed."""
    match [encoding.strip().lower() for encoding in encodings]:
        case [] | [b"identity"] | [b""]:
            return None
        case [b"gzip" | b"deflate"]:
            return _Inflater()
    raise httpx.DecodingError("the answer has an encoding that was not asked for")


class _Inflater:
    """Decompresses a stream part by part; httpx's own decoders make a gigabyte of a megabyte at once."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_ANY_HEADER)

    def inflate(self, part: bytes, *, limit: int) -> bytes:
        """At most `limit` bytes of what this part holds. Raises httpx.DecodingError."""
        try:
            return self._stream.decompress(part, limit)
        except zlib.error as error:
            raise httpx.DecodingError("the answer cannot be decompressed") from error

    def finish(self) -> None:
        """Raise httpx.DecodingError if the end is missing."""
        if not self._stream.eof:
            raise httpx.DecodingError("the compressed answer is incomplete")
