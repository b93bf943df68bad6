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

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import IO, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.lines import Lines, RecordTooLongError
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, doubled_columns
from halo_provider.sources.stored import stored_file
from halo_provider.submission import is_unicode

MAX_FIELD = 1_000_000  # characters in one CSV value: more than Halo accepts; it ends a value whose quote is not closed


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
    def _lines(self) -> Iterator[Lines]:
        """Open the file and give its lines."""
        previous_limit = csv.field_size_limit(MAX_FIELD)
        try:
            with stored_file(self.path, self._open_binary, wanted=None) as stored:
                try:
                    yield Lines(stored, encoding=self.options.encoding)
                except UnicodeError as error:
                    encoding = getattr(error, "encoding", self.options.encoding)
                    raise SourceError(
                        f"{self.path}: it cannot be read as {encoding}; give csv_options the file's own encoding"
                    ) from error
        finally:
            csv.field_size_limit(previous_limit)

    def _records(self, lines: Lines) -> Iterator["_Record"]:
        """Parse the lines; blank ones are left out, and Excel's line that names the delimiter."""
        delimiter = lines.take_separator() or self.options.delimiter
        reader = csv.reader(lines, delimiter=delimiter, quotechar=self.options.quotechar, strict=True)
        while True:
            lines.begin_record()
            first_line = lines.number + 1
            try:
                fields = next(reader, None)
            except (csv.Error, RecordTooLongError) as error:
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


class _Record(NamedTuple):
    """What the CSV parser found between two line numbers, or why it found nothing."""

    first_line: int
    last_line: int
    fields: list[str]
    error: str | None = None
    raw: str = ""
