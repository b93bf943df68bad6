"""The lines of a text file, counted, each no longer than fits into memory."""

import codecs
import io
import re
from typing import Self

from halo_provider.sources.stored import StoredFile

MAX_RECORD = 2_000_000  # characters in one record, line breaks included
_AT_ONCE = MAX_RECORD + 1  # characters: no more of a line is in memory
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WITHOUT_MARK = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}  # for a line in mid-file
_EXCELS_FIRST_LINE = re.compile(r'\A"?sep=(.)"?(?:[\r\n]|\Z)', re.IGNORECASE)


class RecordTooLongError(Exception):
    """A record has more than `MAX_RECORD` characters; the next one can be read."""


class Lines:
    """A file's lines, with their ends. `number` counts them, `latest` are those of the record that is being parsed.

    An encoding that the file itself marks goes before the one given. Raises RecordTooLongError, and goes on with the
    next line after that, where a record is longer than `MAX_RECORD`. Checks the file's end there, and before a last
    line without a line end.
    """

    def __init__(self, stored: StoredFile, *, encoding: str) -> None:
        head = stored.head()
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), encoding)
        self.latest: list[str] = []
        self.number = 0
        self._head = head.decode(encoding, errors="ignore")
        self._stored = stored
        self._text = io.TextIOWrapper(stored.stream, encoding=encoding, errors="surrogateescape", newline="")
        self._length = 0  # characters of the latest lines
        self._ended_in_mid_line_end = False  # between the two characters of a line end that were read apart
        self._encoding = _WITHOUT_MARK.get(codecs.lookup(encoding).name, encoding)
        self._bytes_read = 0

    @property
    def share_read(self) -> float:
        """The share of the file that the lines read so far take up, at most 1.0; of a compressed file, at least."""
        if self._stored.compressed_as is not None:
            return self._stored.share_read
        return min(self._bytes_read / self._stored.size, 1.0) if self._stored.size else 1.0

    def take_separator(self) -> str | None:
        """Excel's line that names the delimiter (``sep=;``), read where it is the first one; else None."""
        named = _EXCELS_FIRST_LINE.match(self._head)
        if named is None:
            return None
        next(self)
        return named[1]

    def begin_record(self) -> None:
        """Forget the lines of the record before."""
        self.latest.clear()
        self._length = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._read_on()
        if line == "\n" and self._ended_in_mid_line_end:
            line = self._read_on()
        if not line.endswith(("\n", "\r")) and len(line) < _AT_ONCE:  # a last line may have been cut off
            self._stored.check_end()
        if not line:
            raise StopIteration
        self._ended_in_mid_line_end = False
        self.number += 1
        self.latest.append(line)
        self._length += len(line)
        if self._length > MAX_RECORD:
            while line and not line.endswith(("\n", "\r")):
                line = self._read_on()
            self._ended_in_mid_line_end = len(line) == _AT_ONCE and line.endswith("\r")
            raise RecordTooLongError(f"it has more than {MAX_RECORD:,} characters")
        return line

    def _read_on(self) -> str:
        some = self._text.readline(_AT_ONCE)
        # Not the stream's position, which is ahead by a buffer: in a small file by everything.
        self._bytes_read += len(some.encode(self._encoding, errors="replace"))
        return some
