"""A source's rows, prepared batch by batch: read, given their keys, checked for duplicates, and rendered."""

import sqlite3
from collections.abc import Generator, Sequence
from itertools import islice
from typing import NamedTuple

from pydantic_core import to_json

from halo_provider.exceptions import HaloError, RowError, SourceError, redact
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import RenderedSubmission, Submission


class PreparedRow(NamedTuple):
    """One row as it was read: a duplicate, an error (with its key, where it has one), or a submission.

    `waits_for` says why its submission cannot be sent in this run: the row that it follows is not delivered yet.
    """

    row: Row
    row_key: str | None = None
    duplicate: bool = False
    error: RowError | None = None
    submission: RenderedSubmission | None = None
    waits_for: str | None = None

    @property
    def is_candidate(self) -> bool:
        """Whether the ledger is to be asked about it: it has a key, and is the first row that has it."""
        return self.row_key is not None and not self.duplicate


class SeenKeys:
    """The keys one run has met, in a temporary database that leaves memory for the disk by itself."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE seen (row_key TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, row_keys: Sequence[str]) -> set[str]:
        """Remember the keys; which of them were met before.

        By two statements, however many keys: at each step of one, the GIL goes to another thread and back.
        """
        asked = to_json(row_keys).decode()
        met = self._db.execute("SELECT row_key FROM seen WHERE row_key IN (SELECT value FROM json_each(?))", (asked,))
        met_before = {row_key for (row_key,) in met}
        self._db.execute("INSERT OR IGNORE INTO seen SELECT value FROM json_each(?)", (asked,))
        return met_before

    def close(self) -> None:
        """Forget them all."""
        self._db.close()


def _rows(source: Source, submission: Submission) -> Generator[Row, None, None]:
    yield from source.rows(required=submission.columns)  # asked for only when the first one is wanted


class Reader:
    """Reads `batch_size` rows at a time. Blocks: belongs on a thread of its own."""

    def __init__(self, source: Source, submission: Submission, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self._rows = _rows(source, submission)
        self._submission = submission
        self._seen = SeenKeys()
        self._error: HaloError | None = None
        self._read = 0  # rows

    def next_batch(self) -> list[PreparedRow]:
        """The next rows; none at the end. Raises HaloError, such as SourceError, after the rows that came before it."""
        if self._error is not None:
            raise self._error
        prepared_rows: list[PreparedRow] = []
        try:
            prepared_rows.extend(self._prepare(row) for row in islice(self._rows, self.batch_size))
        except HaloError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 -- a source may be anybody's
            reason = f"the source broke off after row {self._read + len(prepared_rows)}: {type(error).__name__}"
            self._error = SourceError(redact(f"{reason}: {error}"))
            self._error.__cause__ = error
        if self._error is not None and not prepared_rows:
            raise self._error
        self._read += len(prepared_rows)
        self._mark_duplicates(prepared_rows)
        return prepared_rows

    def _mark_duplicates(self, prepared_rows: list[PreparedRow]) -> None:
        met = self._seen.add([prepared.row_key for prepared in prepared_rows if prepared.row_key is not None])
        for place, prepared in enumerate(prepared_rows):
            if prepared.row_key in met:
                prepared_rows[place] = PreparedRow(prepared.row, prepared.row_key, duplicate=True)
            elif prepared.row_key is not None:
                met.add(prepared.row_key)

    def _prepare(self, row: Row) -> PreparedRow:
        if row.error is not None:
            return PreparedRow(row, error=row.error)
        row_key = None
        try:
            row_key = self._submission.row_key(row.values)
            return PreparedRow(row, row_key, submission=self._submission.render(row.values, row_key=row_key))
        except RowError as error:
            return PreparedRow(row, row_key, error=error)
        except Exception as error:  # noqa: BLE001 -- the values of a row may be anybody's objects
            reason = f"a value of the row raises {type(error).__name__} when it is read; cast it at the source"
            return PreparedRow(row, row_key, error=RowError(reason))

    def close(self) -> None:
        """Close the source and forget the keys."""
        self._rows.close()
        self._seen.close()
