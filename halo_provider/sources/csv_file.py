"""Rows from CSV files, one at a time.

The tokenizer is the standard library's `csv`, and every value stays the text that it is. pandas.read_csv does not serve
here: a row that is not well-formed has to be rejected with its line and its values, and pandas 3.1 does this instead:

* Short row: it pads the missing values with NaN. The row cannot be told from one with empty values.
* Long row: it raises a ParserError for the whole file. With ``on_bad_lines="skip"`` or ``"warn"`` it drops the row; the
  warning names the line, not the values. Where the first row is longer than the header, it takes the first values of
  every row as the index, so that all others stand under the wrong column, and raises nothing.
* Quote that is not closed: it raises a ParserError at the end of the file, also with ``on_bad_lines="skip"``. Where a
  quote in a later row closes it, it swallows the rows between as one value, and raises nothing.
"""

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import IO, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from halo_provider.exceptions import HaloError, RowError, SourceError, redact
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, doubled_columns
from halo_provider.submission import is_unicode

MAX_RECORD = 2_000_000  # characters in one CSV record, line breaks included
MAX_FIELD = 1_000_000  # characters in one CSV value: more than Halo accepts; it ends a value whose quote is not closed
_AT_ONCE = MAX_RECORD + 1  # characters: no more of a line is in memory
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WITHOUT_MARK = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}  # for a line in mid-file


class CsvOptions(BaseModel):
    """How a CSV file is written. Encodings marked by a byte order mark are recognised whatever `encoding` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    quotechar: str = Field(default='"', min_length=1, max_length=1)

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"there is no text encoding {encoding!r}") from None
        return encoding

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.delimiter == self.quotechar or {self.delimiter, self.quotechar} & set("\r\n"):
            raise ValueError("delimiter and quotechar must be two different characters, and no line breaks")
        return self


class CsvSource:
    """A CSV file with a header. `open_binary` opens it for each reading; `path` is how messages call it."""

    def __init__(self, *, path: str, open_binary: Callable[[], IO[bytes]], options: CsvOptions) -> None:
        self.path = path
        self.options = options
        self._open_binary = open_binary
        self._share_read = 0.0

    @property
    def share_read(self) -> float:
        """The share of the file's bytes that the rows yielded so far take up; 1.0 at the end of the file."""
        return self._share_read

    @property
    def description(self) -> str:
        """The path."""
        return self.path

    def columns(self) -> list[str]:
        """The header's names, ``column 3`` where one is blank; none for an empty file.

        Raises SourceError where the file cannot be read.
        """
        with self._lines() as lines:
            return self._header(self._records(lines))

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; an empty file has none. Raises SourceError where the header lacks a required column."""
        self._share_read = 0.0
        with self._lines() as lines:
            records = self._records(lines)
            if columns := self._header(records):
                self._check_columns(columns, required)
                for record in records:
                    self._share_read = lines.share_read
                    yield self._row(record, columns)
            self._share_read = 1.0

    def _header(self, records: Iterator["_Record"]) -> list[str]:
        header = next(records, None)
        if header is None:
            return []
        if header.error:
            raise SourceError(f"{self.path}: the header cannot be read: {header.error}")
        return [name.strip() or f"column {place}" for place, name in enumerate(header.fields, start=1)]

    def _check_columns(self, columns: Sequence[str], required: Sequence[str]) -> None:
        if doubled := doubled_columns(columns):
            raise SourceError(f"{self.path}: the header names a column twice: {doubled}")
        missing = [name for name in required if name not in columns]
        if missing:
            hint = ""
            if len(columns) == 1:
                hint = f" The header was read as one column: is the delimiter really {self.options.delimiter!r}?"
            raise SourceError(
                f"{self.path}: the submission needs {', '.join(map(repr, missing))}, which the file does not have. "
                f"Its columns are {', '.join(map(repr, columns))}.{hint}"
            )

    def _row(self, record: "_Record", columns: Sequence[str]) -> Row:
        values = dict(zip(columns, record.fields, strict=False))
        return Row(record.first_line, values, self._fault(record, width=len(columns)))

    def _fault(self, record: "_Record", *, width: int) -> RowError | None:
        fields, line = record.fields, record.first_line
        if record.error:
            reason = f"line {line} is not valid CSV ({record.error}); check the quotes"
            return RowError(reason, detail=f"text: {record.raw[:MAX_RAW_TEXT]!r}")
        if len(fields) != width:
            reason = f"line {line} has {len(fields)} values where the header has {width} columns; repair the line"
            if record.last_line > line:
                reason += f" (a quoted value runs to line {record.last_line}: is a quote missing?)"
            extra = f"values beyond the header: {fields[width:]!r}" if len(fields) > width else None
            return RowError(reason, detail=extra)
        # What could not be decoded stands in its value as a lone surrogate.
        if not is_unicode("".join(fields)):
            return RowError(
                f"line {line} holds bytes that are not {self.options.encoding}; give csv_options the file's own "
                "encoding, e.g. {'encoding': 'cp1252'}"
            )
        return None

    @contextmanager
    def _lines(self) -> Iterator["_Lines"]:
        """Open the file and give its lines."""
        previous_limit = csv.field_size_limit(MAX_FIELD)
        try:
            with self._open_binary() as binary:
                opened = _written(binary)
                start = binary.read(3)
                size = binary.seek(0, io.SEEK_END)
                binary.seek(0)
                marked = (name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark))
                encoding = next(marked, self.options.encoding)
                text = io.TextIOWrapper(binary, encoding=encoding, errors="surrogateescape", newline="")
                yield _Lines(
                    text, encoding=encoding, size=size, check_end=self._end_check(binary, size=size, opened=opened)
                )
        except UnicodeError as error:
            encoding = getattr(error, "encoding", self.options.encoding)
            raise SourceError(
                f"{self.path}: it cannot be read as {encoding}; give csv_options the file's own encoding"
            ) from error
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror or error}") from error
        except HaloError:
            raise
        except Exception as error:  # every storage has errors of its own
            raise SourceError(f"{self.path}: {redact(f'{type(error).__name__}: {error}')}") from error
        finally:
            csv.field_size_limit(previous_limit)

    def _end_check(self, binary: IO[bytes], *, size: int, opened: tuple[int, int] | None) -> Callable[[], None]:
        """What raises SourceError at the end of a file that was changed since it was opened."""

        def check_end() -> None:
            end = binary.tell()
            if end < size:
                raise SourceError(
                    f"{self.path}: it ended after {end:,} of the {size:,} bytes that it had when it was opened; "
                    "run the task again when the file is complete"
                )
            if _written(binary) != opened:
                raise SourceError(
                    f"{self.path}: it was written to while it was read; run the task again when the file is complete"
                )

        return check_end

    def _records(self, lines: "_Lines") -> Iterator["_Record"]:
        """Parse the lines; blank ones are left out."""
        reader = csv.reader(lines, delimiter=self.options.delimiter, quotechar=self.options.quotechar, strict=True)
        while True:
            lines.begin_record()
            first_line = lines.number + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # A quote that is never closed takes in the lines after it, which may be rows: each of them is rejected.
                reasons = chain([str(error)], repeat(f"it belongs to the quoted value of line {first_line}"))
                for line, reason, content in zip(count(first_line), reasons, lines.latest, strict=False):
                    if content.strip("\r\n"):
                        yield _Record(line, line, [], error=reason, raw=content)
                continue
            if fields is None:
                return
            if fields:
                yield _Record(first_line, lines.number, fields)


class _Lines:
    """A file's lines, with their ends. `number` counts them, `latest` are those of the record that is being parsed.

    Raises csv.Error, and goes on with the next line after that, where a record is longer than `MAX_RECORD`. Calls
    `check_end` at the end of the file, and before a last line without a line end.
    """

    def __init__(self, text: IO[str], *, encoding: str, size: int, check_end: Callable[[], None]) -> None:
        self.latest: list[str] = []
        self.number = 0
        self._text = text
        self._check_end = check_end
        self._length = 0  # characters of the latest lines
        self._ended_in_mid_line_end = False  # between the two characters of a line end that were read apart
        self._encoding = _WITHOUT_MARK.get(codecs.lookup(encoding).name, encoding)
        self._size = size
        self._bytes_read = 0

    @property
    def share_read(self) -> float:
        """The share of the file that the lines read so far take up, at most 1.0."""
        return min(self._bytes_read / self._size, 1.0) if self._size else 1.0

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
            self._check_end()
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
            raise csv.Error(f"it has more than {MAX_RECORD:,} characters")
        return line

    def _read_on(self) -> str:
        some = self._text.readline(_AT_ONCE)
        # Not the stream's position, which is ahead by a buffer: in a small file by everything.
        self._bytes_read += len(some.encode(self._encoding, errors="replace"))
        return some


def _written(binary: IO[bytes]) -> tuple[int, int] | None:
    """The size of a local file and when it was last written to; None for what is no local file."""
    try:
        state = os.fstat(binary.fileno())
    except (OSError, AttributeError):
        return None
    return state.st_size, state.st_mtime_ns


class _Record(NamedTuple):
    """What the CSV parser found between two line numbers, or why it found nothing."""

    first_line: int
    last_line: int
    fields: list[str]
    error: str | None = None
    raw: str = ""
