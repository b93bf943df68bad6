"""What a delivery tells while it runs: to the log, the task state store, the ledger's account and the metrics."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.exceptions import HaloStatusError, Verdict
from halo_provider.ledger.delivery_records import MAX_UNLISTED, DeliveryCounts, duration
from halo_provider.ledger.rules import MAX_TEXT
from halo_provider.ledger.statuses import RowStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from halo_provider.delivery.pace import Pace
    from halo_provider.delivery.report import Outcome
    from halo_provider.exceptions import HaloCallError
    from halo_provider.ledger import LeaseHolder, TaskInstanceRef
    from halo_provider.ledger.delivery_records import DeliveryRecords

REPORT_INTERVAL = 1.5  # seconds between reports
LOG_INTERVAL = 10.0  # seconds after which a batch that is not full yet gets its line all the same
LAST_REPORT_TIMEOUT = 1.0  # seconds the task waits for its last report: a killed one has 4 in all
STATE_KEY = "halo_progress"  # in the task state store


class Watcher(Protocol):
    """Told about a delivery now and then, and once when it has ended."""

    def __call__(self, counts: DeliveryCounts, *, ended: bool) -> None:
        """Show, or keep, how far it is."""


class Progress(DeliveryObserver):
    """
    Counts what becomes of the rows, and reports it.

    ``row_ended`` and ``request_ended`` are called on the loop, and only count. The watchers are
    called in one thread of their own, one after the other: they block, and Airflow's supervisor serves one thread at a
    time. A watcher that fails is left out from then on: no report is worth a delivery.

    :param log: the task's
    :param batch_size: settled rows for which there is a line in the log
    :param watchers: by what the log calls them
    """

    def __init__(self, *, log: Any, batch_size: int, watchers: Mapping[str, Watcher]) -> None:
        self._log = log
        self._batch_size = batch_size
        self._read = 0
        self._total: int | None = None  # rows of the source; an estimate until all of it is read
        self._watchers = dict(watchers)
        self._counts: Counter[str] = Counter()
        self._request_seconds = 0.0
        self._error: str | None = None
        self._unlisted: list[tuple[str, str]] = []
        self._pace: Pace | None = None
        self._started = time.monotonic()
        self._logged = DeliveryCounts()
        self._unlogged = 0

    def rows_read(self, rows: int, *, share: float | None) -> None:
        """Estimate from the share of the source that is read how many rows it has; all of it read, that is exact."""
        self._read += rows
        self._total = round(self._read / share) if share else None

    def row_ended(self, outcome: Outcome) -> None:
        """Count a row whose status is committed."""
        self._counts[outcome.status.value] += 1
        self._unlogged += 1
        if outcome.error is not None:
            self._error = str(outcome.error)
        is_missing = outcome.status is RowStatus.REJECTED and not outcome.is_listed
        if is_missing and len(self._unlisted) < MAX_UNLISTED:
            self._unlisted.append((f"row {outcome.row.place}", str(outcome.error)[:MAX_TEXT]))
        if self._unlogged >= self._batch_size or self._elapsed - self._logged.seconds >= LOG_INTERVAL:
            self._log_batch()

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """Count a request, the seconds it took, and what became of it."""
        self._counts["requests"] += 1
        self._request_seconds += seconds
        if error is not None:
            self._counts["refused"] += isinstance(error, HaloStatusError) and error.verdict is Verdict.NOT_ACCEPTED
            self._error = str(error)

    def paced(self, pace: Pace) -> None:
        """Remember what limits the sending."""
        self._pace = pace

    def stopped(self, reason: str | None) -> None:
        """Remember why the run ended before its time, if it did."""
        self._error = reason or self._error

    @asynccontextmanager
    async def reported(self) -> AsyncIterator[None]:
        """Report while the block runs, and once more after it."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="halo-progress")
        reporting = asyncio.create_task(self._report_always(thread))
        self._log.info("::group::Batches")
        try:
            yield
        finally:
            reporting.cancel()
            if self._unlogged:
                self._log_batch()
            self._log.info("::endgroup::")
            last_report = asyncio.get_running_loop().run_in_executor(thread, self._report, True)
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(last_report), LAST_REPORT_TIMEOUT)
            thread.shutdown(wait=False)
            self._log.info(self._delivery_counts().sentence(ended=True))

    async def _report_always(self, thread: ThreadPoolExecutor) -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(thread, self._report, False)
            await asyncio.sleep(REPORT_INTERVAL)

    def _report(self, ended: bool) -> None:  # noqa: FBT001 -- run_in_executor passes by place
        counts = self._delivery_counts()
        for name, watcher in list(self._watchers.items()):
            try:
                watcher(counts, ended=ended)
            except Exception as error:  # noqa: BLE001 -- every watcher has errors of its own
                del self._watchers[name]
                self._log.warning("progress is no longer reported here", to=name, reason=str(error))

    def _delivery_counts(self) -> DeliveryCounts:
        return DeliveryCounts(
            **self._counts,
            request_seconds=self._request_seconds,
            seconds=self._elapsed,
            total=self._total,
            error=self._error,
            unlisted=tuple(self._unlisted),
            pace=self._pace.sentence if self._pace is not None else None,
        )

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _log_batch(self) -> None:
        before, now = self._logged, self._delivery_counts()
        statuses = {name: count - getattr(before, name) for name, count in self._counts.items()}
        self._log.info(
            "batch settled",
            rows=self._unlogged,
            **{name: count for name, count in statuses.items() if count},
            seconds=round(now.seconds - before.seconds, 1),
            settled_so_far=now.settled,
            total=self._total,
            pace=now.pace,
        )
        self._logged, self._unlogged = now, 0


class DeliveryRecordWatcher:
    """
    Keeps the delivery's line in the ledger's account, from which the pages in Airflow's UI are made.

    :param deliveries: the account
    :param lease_holder: who delivers
    :param attempt: which task instance that is
    """

    def __init__(
        self, deliveries: DeliveryRecords, *, lease_holder: LeaseHolder, task_instance: TaskInstanceRef
    ) -> None:
        self._deliveries = deliveries
        self._lease_holder = lease_holder
        self._task_instance = task_instance
        self._begun = False

    def __call__(self, counts: DeliveryCounts, *, ended: bool) -> None:
        """Begin the line, and bring it up to date."""
        owner = self._lease_holder.owner
        if not self._begun:
            self._deliveries.begin(
                owner, namespace=self._lease_holder.namespace, task_instance=self._task_instance, total=counts.total
            )
            self._begun = True
        self._deliveries.update(owner, counts, ended=ended)


class StateStoreWatcher:
    """
    Shows the counts in Airflow's task state store, which its UI shows while the task runs. Needs Airflow 3.3.

    :param store: ``context["task_state_store"]``
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __call__(self, counts: DeliveryCounts, *, ended: bool) -> None:
        """Write it under ``halo_progress``."""
        left = counts.seconds_left
        self._store.set(
            STATE_KEY,
            {
                "progress": counts.sentence(ended=ended),
                "state": "ended" if ended else "running",
                "total": counts.total,
                "settled": counts.settled,
                **{name: getattr(counts, name) for name in ("delivered", "already_delivered", "duplicate")},
                **{name: getattr(counts, name) for name in ("rejected", "in_doubt", "failed", "not_attempted")},
                "requests": counts.requests,
                "refused": counts.refused,
                "pace": counts.pace,
                "rows_per_second": round(counts.rows_per_second, 1),
                "time_left": duration(left) if left is not None and not ended else None,
                "last_error": counts.error,
                "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        )
