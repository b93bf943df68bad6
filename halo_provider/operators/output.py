"""What a task leaves of its rows: the rejects file, the results file, and the session ids for XCom."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from halo_provider.delivery.report import Outcome, SessionIds
from halo_provider.delivery.results import ResultsFile, results_writer
from halo_provider.ledger.statuses import RowStatus
from halo_provider.operators.files import atomic_write
from halo_provider.sources.rejects import RejectsFile

if TYPE_CHECKING:
    from types import TracebackType

    from halo_provider.exceptions import HaloCallError, RowError
    from halo_provider.sources.csv_file import CsvOptions
    from halo_provider.sources.rows import Row, Source


class RowOutput:
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
        self._rejects: RejectsFile | None = None
        self._results: ResultsFile | None = None
        self._files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as files:
            if self._rejects_path:
                columns = self._source.columns()
                stream = files.enter_context(atomic_write(self._rejects_path))
                self._rejects = RejectsFile(stream, columns=columns, options=self._csv_options)
                files.callback(self._rejects.close)
            if self._results_path:
                writer = results_writer(self._results_path)
                self._results = writer(files.enter_context(atomic_write(self._results_path)))
                files.callback(self._results.close)
            self._files = files.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None:
            self._files.__exit__(exc_type, exc, traceback)
            return
        try:
            self._files.close()
        except Exception as error:  # noqa: BLE001 -- every storage has errors of its own
            self.error = error

    def row_ended(self, outcome: Outcome) -> None:
        """Keep what the row left."""
        self.session_ids.add(outcome)
        if self._results is not None:
            self._results.write(outcome)
        if outcome.status is RowStatus.REJECTED and outcome.error is not None:
            self.reject(outcome.row, outcome.error)

    def reject(self, row: Row, error: RowError) -> None:
        """Keep a rejected row, and the first one's reason for people."""
        if self.first_rejected is None:
            self.first_rejected = f"row {row.number}: {error}"
        if self._rejects is not None:
            self._rejects.write(row, error)

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """Nothing is kept of requests."""
