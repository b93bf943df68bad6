"""A source's rows, prepared batch by batch: read, given their keys, checked for duplicates, and rendered."""

import sqlite3
from collections.abc import Generator, Mapping
from itertools import islice
from typing import NamedTuple

from pydantic_core import to_json

from halo_provider.exceptions import HaloError, RowError, SourceError, redact
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import RenderedSubmission, Submission


class PreparedRow(NamedTuple):
    """One row as it was read: a duplicate, an error (with its key, where it has one), or a submission.

    `waits_for` says why its submission cannot be sent in this run: the row that it follows is not delivered yet.
    `repeats` is the place of an earlier row of the source with the same key and another content, which this one
    follows up.
    """

    row: Row
    row_key: str | None = None
    duplicate: bool = False
    error: RowError | None = None
    submission: RenderedSubmission | None = None
    waits_for: str | None = None
    repeats: str | None = None
    is_first: bool = True

    @property
    def is_candidate(self) -> bool:
        """Whether the ledger is to be asked about it: it has a key, and is the first row that has it."""
        return self.row_key is not None and self.is_first


class SeenRow(NamedTuple):
    """What is remembered of the first row that had a key."""

    place: str
    payload_hash: str | None
    user_id: str | None


class SeenKeys:
    """The keys one run has met, in a temporary database that leaves memory for the disk by itself."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute(
            "CREATE TABLE seen (row_key TEXT PRIMARY KEY, place TEXT, payload_hash TEXT, user_id TEXT) WITHOUT ROWID"
        )

    def add(self, rows: Mapping[str, SeenRow]) -> dict[str, SeenRow]:
        """Remember these rows by their keys; those that had the keys before.

        By two statements, however many keys: at each step of one, the GIL goes to another thread and back.
        """
        asked = to_json(list(rows)).decode()
        met = self._db.execute("SELECT * FROM seen WHERE row_key IN (SELECT value FROM json_each(?))", (asked,))
        met_before = {row_key: SeenRow(*row) for row_key, *row in met}
        new = to_json([(row_key, *row) for row_key, row in rows.items()]).decode()
        self._db.execute(
            "INSERT OR IGNORE INTO seen SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),"
            " json_extract(value, '$[2]'), json_extract(value, '$[3]') FROM json_each(?)",
            (new,),
        )
        return met_before

    def close(self) -> None:
        """Forget them all."""
        self._db.close()


def _rows(source: Source, submission: Submission) -> Generator[Row, None, None]:
    yield from source.rows(required=submission.columns)  # asked for only when the first one is wanted


class Reader:
    """Reads `batch_size` rows at a time. Blocks: belongs on a thread of its own.

    With `follows_up` a second content under one key is not rejected, but sent after the first.
    """

    def __init__(self, source: Source, submission: Submission, *, batch_size: int, follows_up: bool = False) -> None:
        self.batch_size = batch_size
        self._rows = _rows(source, submission)
        self._submission = submission
        self._follows_up = follows_up
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
        self._mark_repeated(prepared_rows)
        return prepared_rows

    def _mark_repeated(self, prepared_rows: list[PreparedRow]) -> None:
        """Tell the rows whose key was met before in this run from the first ones."""
        firsts: dict[str, SeenRow] = {}
        for prepared in prepared_rows:
            if prepared.row_key is not None:
                firsts.setdefault(prepared.row_key, _seen(prepared))
        met_before = self._seen.add(firsts)
        for place, prepared in enumerate(prepared_rows):
            if prepared.row_key is None:
                continue
            first = met_before.get(prepared.row_key) or firsts[prepared.row_key]
            if first.place != prepared.row.place:
                prepared_rows[place] = self._repeated(prepared, first)

    def _repeated(self, prepared: PreparedRow, first: SeenRow) -> PreparedRow:
        """The same content is a duplicate; another one follows up where that is wanted, else it is rejected."""
        row, row_key, submission = prepared.row, prepared.row_key, prepared.submission
        if submission is None:
            return prepared._replace(is_first=False)
        if submission.payload_hash == first.payload_hash:
            return PreparedRow(row, row_key, duplicate=True, is_first=False)
        if self._follows_up and first.payload_hash is not None and submission.user_id == first.user_id:
            return prepared._replace(repeats=first.place, is_first=False)
        remedy = "give each a key of its own"
        if not self._follows_up:
            remedy += ", or send the second one after the first with on_change='follow_up'"
        reason = f"rows {first.place} and {row.place} have the same key {row_key!r} and different content; {remedy}"
        return PreparedRow(row, row_key, error=RowError(reason), is_first=False)

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


def _seen(prepared: PreparedRow) -> SeenRow:
    submission = prepared.submission
    return SeenRow(
        prepared.row.place,
        submission.payload_hash if submission else None,
        submission.user_id if submission else None,
    )
