"""What a task leaves of its rows: the rejects file, the results file, and the session ids for XCom."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Self

from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.delivery.report import Outcome, SessionIds
from halo_provider.delivery.results import ResultsFile, results_writer
from halo_provider.exceptions import HaloError, OutputError
from halo_provider.ledger.statuses import RowStatus
from halo_provider.operators.files import atomic_write
from halo_provider.sources.rejects import RejectsFile
from halo_provider.sources.stored import words_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from halo_provider.exceptions import RowError
    from halo_provider.sources.csv_file import CsvOptions
    from halo_provider.sources.rows import Row, Source


class RowOutput(DeliveryObserver):
    """
    Opened before the first row, fed with every row that ends, and closed after the last one.

    The files appear whole when the block ends well, and not at all when it raises. What keeps them from their places
    is then in ``error``.

    :param source: whose columns the rejects file has. Entering raises SourceError where it cannot be read, so that
        the files of the last run stay
    :param csv_options: the format of the rejects file
    :param rejects_path: where rejected rows go
    :param results_path: where the results of all rows go
    :param xcom_limit: rows whose session id is kept
    """

    def __init__(
        self,
        source: Source,
        *,
        csv_options: CsvOptions,
        rejects_path: str | None = None,
        results_path: str | None = None,
        xcom_limit: int = 0,
    ) -> None:
        self.session_ids = SessionIds(xcom_limit)
        self.first_rejected: str | None = None
        self.error: Exception | None = None
        self._source = source
        self._csv_options = csv_options
        self._rejects_path = rejects_path
        self._results_path = results_path
        self._rejects = _OutputFile("the rejects file")
        self._results = _OutputFile("the results file")

    def __enter__(self) -> Self:
        if self._rejects_path:
            columns = self._source.columns()
            options = self._csv_options
            self._rejects.open(self._rejects_path, partial(RejectsFile, columns=columns, options=options))
        try:
            if self._results_path:
                self._results.open(self._results_path, results_writer(self._results_path))
        except BaseException as error:
            self._rejects.discard(error)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._rejects, self._results):
            if exc is not None:
                file.discard(exc)
            else:
                file.close()
        self.error = self._rejects.error or self._results.error

    @property
    def written(self) -> tuple[str | None, str | None]:
        """The paths of the rejects file and of the results file, of those that are in their places."""
        rejects_path = self._rejects_path if self._rejects.error is None else None
        results_path = self._results_path if self._results.error is None else None
        return rejects_path, results_path

    def row_ended(self, outcome: Outcome) -> None:
        """Keep what the row left."""
        self.session_ids.add(outcome)
        self._results.write(outcome)
        if outcome.status is RowStatus.REJECTED and outcome.error is not None:
            self.reject(outcome.row, outcome.error)

    def reject(self, row: Row, error: RowError) -> None:
        """Keep a rejected row, and the first one's reason for people."""
        if self.first_rejected is None:
            self.first_rejected = f"row {row.place}: {error}"
        self._rejects.write(row, error)


class _OutputFile:
    """A file that appears whole at the end. What it raises ends this file alone, and is kept in `error`."""

    def __init__(self, name: str) -> None:
        self.error: Exception | None = None
        self._name = name
        self._writer: RejectsFile | ResultsFile | None = None
        self._stack = ExitStack()

    def open(self, path: str, make: Callable[[IO[bytes]], RejectsFile | ResultsFile]) -> None:
        """Begin to write."""
        self._name += f" {path}"
        with ExitStack() as stack:
            self._writer = make(stack.enter_context(atomic_write(path)))
            stack.callback(self._writer.close)
            self._stack = stack.pop_all()

    def write(self, *row: Any) -> None:
        """Add a row, unless the file has failed or was never wanted."""
        if self._writer is None:
            return
        try:
            self._writer.write(*row)
        except Exception as error:  # noqa: BLE001 -- every storage has errors of its own
            self.error = error
            self.discard(error)

    def discard(self, reason: BaseException) -> None:
        """Leave no file, because of this."""
        self._writer = None
        with suppress(Exception):  # what has failed may fail again
            self._stack.__exit__(type(reason), reason, reason.__traceback__)

    def close(self) -> None:
        """Put the file in its place."""
        self._writer = None
        try:
            self._stack.close()
        except HaloError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 -- every storage has errors of its own
            self.error = OutputError(self._name, error, words=words_of(error))
            self.error.__cause__ = error
