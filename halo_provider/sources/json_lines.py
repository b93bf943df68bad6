"""Rows from JSON Lines, one at a time.

Python's own json reads them, and not pandas.read_json, which makes dates of texts that look like some, and floats of
whole numbers in a column where one is missing, and stops at the first line that is no JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from halo_provider.exceptions import RowError, SourceError
from halo_provider.sources.lines import Lines, RecordTooLongError
from halo_provider.sources.rows import MAX_RAW_TEXT, Row, check_row
from halo_provider.sources.stored import stored_file
from halo_provider.submission import is_unicode


class JsonLinesSource:
    """A file with one JSON object a line, in UTF-8, which may be compressed; blank lines are left out.

    A row's number is its line. A line that is no object, names a column twice, or lacks a required column, carries an
    error. `open_binary` opens the file for each reading.
    """

    def __init__(self, *, path: str, open_binary: Callable[[], IO[bytes]]) -> None:
        self.description = path
        self._open_binary = open_binary
        self._share_read = 0.0

    @property
    def share_read(self) -> float:
        """The share of the file's bytes that the rows yielded so far take up; 1.0 at the end of the file."""
        return self._share_read

    def columns(self) -> list[str]:
        """Every column that some line has, in the order of their first appearance: it reads the whole file."""
        share_read = self._share_read
        found: dict[str, None] = {}
        for row in self.rows(required=[]):
            found.update(dict.fromkeys(row.values))
        self._share_read = share_read
        return list(found)

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield the rows. Raises SourceError where the file cannot be read."""
        self._share_read = 0.0
        with stored_file(self.description, self._open_binary, wanted=None) as stored:
            lines = Lines(stored, encoding="utf-8")
            for line, error in _each(lines):
                self._share_read = lines.share_read
                if error is not None or line.strip():
                    yield self._row(lines.number, line, error, required=required)
            self._share_read = 1.0

    def _row(self, number: int, line: str, error: str | None, *, required: Sequence[str]) -> Row:
        if error is None:
            found, error = _parsed(line)
            if error is None and isinstance(found, dict):
                return check_row(number, found, required=required)
            if line.lstrip().startswith("[") and number == 1:
                raise SourceError(f"{self.description}: {_NO_ARRAY}")
            error = error or f"it is a {type(found).__name__}, and not an object"
        reason = f"line {number} is not a row of JSON ({error}); write one object of column and value a line"
        return Row(number, {}, RowError(reason, detail=f"text: {line[:MAX_RAW_TEXT]!r}"))


_NO_ARRAY = "this is a JSON array, and not JSON Lines; write one object a line (jq -c '.[]' does it)"


def _each(lines: Lines) -> Iterator[tuple[str, str | None]]:
    """Every line; one that is too long by its beginning, with what is wrong."""
    while True:
        lines.begin_record()
        try:
            line = next(lines, None)
        except RecordTooLongError as error:
            yield lines.latest[0], str(error)
            continue
        if line is None:
            return
        yield line, None if is_unicode(line) else "it holds bytes that are not UTF-8"


class _NameTwiceError(Exception):
    """An object has two values of one name."""


def _parsed(line: str) -> tuple[Any, str | None]:
    """What the line holds, or why it holds nothing; never with its values."""
    try:
        return json.loads(line, object_pairs_hook=_object), None
    except json.JSONDecodeError as error:
        return None, f"{error.msg} at character {error.pos + 1}"
    except _NameTwiceError:
        return None, "an object has two values of the same name"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list of thousands of levels
        return None, f"it raises {type(error).__name__}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NameTwiceError
    return found
