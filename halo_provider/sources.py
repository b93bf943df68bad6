"""Rows from CSV files and lists, lazily and one at a time.

CSV is read with the standard library's parser, everything as text, rather than with pandas: pandas pads a short row
without a word, and names neither the line nor the content of a row that is too long, while here every row must end
accounted for. pandas is for what it does better: a DataFrame is a list of rows too.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import IO, Any, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from halo_provider.exceptions import RowError, SourceError
from halo_provider.submission import REJECT_COLUMNS, RowValues, is_unicode, text

MAX_FIELD = 1_000_000  # characters in one CSV value: far beyond what Halo takes, and the end of a quote never closed
MAX_RAW_TEXT = 2_000  # characters of an unreadable line that go to the rejects file
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class Row(NamedTuple):
    """What a source yields: `number` is a CSV file's line (the header is line 1) or a place in a list, from 1.

    `error` is set where the row cannot be used at all; `values` then holds what could be read of it.
    """

    number: int
    values: RowValues
    error: RowError | None = None


class Source(Protocol):
    """Rows that can be read more than once."""

    @property
    def description(self) -> str:
        """What people call it: a path, a query's connection, a list."""
        ...

    def columns(self) -> list[str]:
        """The columns it has; none where it is empty. Raises SourceError where it cannot be read."""
        ...

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError, before the first one, where a required column is missing."""
        ...


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
    """A CSV file with a header. `open_binary` opens it anew for each reading; `path` is its name for people."""

    def __init__(self, *, path: str, open_binary: Callable[[], IO[bytes]], options: CsvOptions) -> None:
        self.path = path
        self.options = options
        self._open_binary = open_binary

    @property
    def description(self) -> str:
        """The path."""
        return self.path

    def columns(self) -> list[str]:
        """The header's names, ``column 3`` where one is blank; none for an empty file.

        Raises SourceError where the file cannot be read.
        """
        with self._records() as records:
            return self._header(records)

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; an empty file has none. Raises SourceError where the header lacks a required column."""
        with self._records() as records:
            columns = self._header(records)
            if not columns:
                return
            self._check_columns(columns, required)
            for record in records:
                yield self._row(record, columns)

    def _header(self, records: Iterator["_Record"]) -> list[str]:
        header = next(records, None)
        if header is None:
            return []
        if header.error:
            raise SourceError(f"{self.path}: the header cannot be read: {header.error}")
        return [name.strip() or f"column {place}" for place, name in enumerate(header.fields, start=1)]

    def _check_columns(self, columns: Sequence[str], required: Sequence[str]) -> None:
        if doubled := _doubled(columns):
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
    def _records(self) -> Iterator[Iterator["_Record"]]:
        """Open the file and give its records, blank lines left out."""
        previous_limit = csv.field_size_limit(MAX_FIELD)
        try:
            with self._text() as lines:
                yield self._parse(lines)
        except UnicodeError as error:
            encoding = getattr(error, "encoding", self.options.encoding)
            raise SourceError(
                f"{self.path}: it cannot be read as {encoding}; give csv_options the file's own encoding"
            ) from error
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror or error}") from error
        finally:
            csv.field_size_limit(previous_limit)

    def _parse(self, lines: Iterable[str]) -> Iterator["_Record"]:
        raw: list[str] = []

        def remembered() -> Iterator[str]:
            for line in lines:
                raw.append(line)
                yield line

        reader = csv.reader(
            remembered(), delimiter=self.options.delimiter, quotechar=self.options.quotechar, strict=True
        )
        while True:
            raw.clear()
            first_line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                # Where a quote is never closed, what it swallowed may be rows: each of its lines is accounted for.
                reasons = chain([str(error)], repeat(f"it belongs to the quoted value of line {first_line}"))
                for line, reason, content in zip(count(first_line), reasons, raw, strict=False):
                    if content.strip("\r\n"):
                        yield _Record(line, line, [], error=reason, raw=content)
                continue
            if fields is None:
                return
            if fields:
                yield _Record(first_line, reader.line_num, fields)

    @contextmanager
    def _text(self) -> Iterator[IO[str]]:
        with self._open_binary() as binary:
            start = binary.read(3)
            binary.seek(0)
            marked = (name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark))
            encoding = next(marked, self.options.encoding)
            yield io.TextIOWrapper(binary, encoding=encoding, errors="surrogateescape", newline="")


class _Record(NamedTuple):
    """What the CSV parser found between two line numbers, or why it found nothing."""

    first_line: int
    last_line: int
    fields: list[str]
    error: str | None = None
    raw: str = ""


class ListSource:
    """Rows that are there already: an iterable of dicts, or a pandas DataFrame."""

    description = "rows"

    def __init__(self, rows: Any) -> None:
        if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
            raise SourceError(f"rows must be a list of dicts or a DataFrame, not a {type(rows).__name__}")
        if doubled := _doubled([str(name) for name in getattr(rows, "columns", ())]):
            raise SourceError(f"rows: the DataFrame has a column twice: {doubled}")
        self._rows = list(rows) if isinstance(rows, Iterator) else rows

    def columns(self) -> list[str]:
        """Every column that some row has, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self._mappings() if isinstance(row, Mapping) for name in row))

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; one that is no dict, or lacks a required column, carries an error."""
        for number, values in enumerate(self._mappings(), start=1):
            if not isinstance(values, Mapping):
                reason = f"row {number} is a {type(values).__name__}; every row must be a dict of column and value"
                yield Row(number, {}, RowError(reason, detail=f"row: {values!r}"[:MAX_RAW_TEXT]))
                continue
            missing = next((name for name in required if name not in values), None)
            error = RowError(f"row {number} has no such column", column=missing) if missing is not None else None
            yield Row(number, values, error)

    def _mappings(self) -> Iterable[Any]:
        return _frame_rows(self._rows) if hasattr(self._rows, "itertuples") else self._rows


def _doubled(columns: Sequence[str]) -> str:
    """The columns that are there more than once, for people."""
    return ", ".join(repr(name) for name in sorted({name for name in columns if columns.count(name) > 1}))


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """A DataFrame's rows as Python values, with None for every kind of missing one."""
    import pandas as pd  # noqa: PLC0415 -- slow to import, and already there where a DataFrame is

    columns = [str(column) for column in frame.columns]
    for values in frame.astype(object).itertuples(index=False, name=None):
        yield {
            column: None if pd.api.types.is_scalar(value) and pd.isna(value) else value
            for column, value in zip(columns, values, strict=True)
        }


class RejectsFile:
    """The rejected rows, in the source's own columns and format, with ``_row``, ``_field`` and ``_reason``.

    Repaired, it can be read in place of the source: keys are business keys, so nothing is sent twice.
    """

    def __init__(self, stream: IO[bytes], *, columns: Sequence[str], options: CsvOptions) -> None:
        self._columns = [name for name in columns if name not in REJECT_COLUMNS]
        self._encoding = options.encoding
        self._text = io.TextIOWrapper(stream, encoding=options.encoding, errors="surrogateescape", newline="")
        # Lines end with CR LF, because the writer quotes a value's own line breaks only where its line ends hold them.
        self._writer = csv.writer(
            self._text, delimiter=options.delimiter, quotechar=options.quotechar, lineterminator="\r\n"
        )
        self._writer.writerow([*self._columns, *REJECT_COLUMNS])

    def write(self, row: Row, error: RowError) -> None:
        """Add one row with what is wrong with it."""
        reason = f"{error.reason} ({error.detail})" if error.detail else error.reason
        originals = [row.values.get(name) for name in self._columns]
        self._writer.writerow([self._cell(value) for value in (*originals, row.number, error.column, reason)])

    def _cell(self, value: Any) -> str:
        try:
            cell = value if isinstance(value, str) else text(value)
        except RowError:
            cell = repr(value)
        try:
            cell.encode(self._encoding, errors="surrogateescape")
        except UnicodeEncodeError:
            return cell.encode(self._encoding, errors="backslashreplace").decode(self._encoding)
        return cell

    def close(self) -> None:
        """Hand everything to the stream, which stays open."""
        self._text.detach()
