"""A few rows through the ledger from a task of one's own: what `HaloHook.deliver` and `adeliver` share."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.delivery.report import Outcome, SessionIds
from halo_provider.exceptions import RowsRejectedError
from halo_provider.hooks.ledger import open_ledger
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.lists import ListSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from halo_provider.client.client import HaloClient
    from halo_provider.client.reader import HaloReader
    from halo_provider.delivery.options import DeliveryOptions
    from halo_provider.ledger import Ledger, TaskInstanceRef
    from halo_provider.submission import Submission


class FewRows:
    """
    One delivery: `open` it where it may block, `run` it on a loop, `close` it.

    :param rows: a list of dicts
    :param submission: how a row becomes a message with context
    :param halo_conn_id: the connection it goes through
    :param client: makes its client
    :param reader: makes what asks Halo, given the open ledger
    :param ledger_conn_id: the database that holds the ledger
    :param options: how to deliver
    :param task_instance: whose rows they are
    """

    def __init__(
        self,
        rows: Any,
        *,
        submission: Submission,
        halo_conn_id: str,
        client: Callable[[], HaloClient],
        reader: Callable[[Ledger], HaloReader],
        ledger_conn_id: str | None,
        options: DeliveryOptions,
        task_instance: TaskInstanceRef,
    ) -> None:
        self._rows = rows
        self._submission = submission
        self._namespace = f"{halo_conn_id}/{submission.name}"
        self._make_client = client
        self._make_reader = reader
        self._ledger_conn_id = ledger_conn_id
        self._options = options
        self._task_instance = task_instance
        self._ledger: Ledger | None = None
        self._client: HaloClient
        self._reader: HaloReader | None = None

    def open(self) -> None:
        """Look the connections up, and open the ledger: all that asks Airflow."""
        self._ledger = open_ledger(self._ledger_conn_id)
        self._client = self._make_client()
        if self._options.on_in_doubt == "ask":
            self._reader = self._make_reader(self._ledger)

    async def run(self) -> dict[str, Any]:
        """Deliver the rows; the counts, and the session of every row. Raises what `HaloHook.deliver` raises."""
        if self._ledger is None:
            raise RuntimeError("open() comes before run()")
        kept = _Kept()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._client)
            reader = await stack.enter_async_context(self._reader) if self._reader else None
            report = await deliver(
                ListSource(self._rows),
                submission=self._submission,
                client=client,
                lease_holder=self._ledger.lease_holder(self._namespace, task_instance=self._task_instance),
                options=self._options,
                observer=kept,
                reader=reader,
            )
        counts = report.summary()
        if error := report.failure():
            raise error
        if kept.first_rejected is not None:
            raise RowsRejectedError(
                rejected=counts[RowStatus.REJECTED], read=report.read, first=kept.first_rejected, rejects_path=None
            )
        return {**counts, "session_ids": kept.session_ids.found}

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()


class _Kept(DeliveryObserver):
    """What is kept of the rows: every session id, and why the first row was rejected."""

    def __init__(self) -> None:
        self.session_ids = SessionIds(sys.maxsize)
        self.first_rejected: str | None = None

    def row_ended(self, outcome: Outcome) -> None:
        self.session_ids.add(outcome)
        if outcome.status is RowStatus.REJECTED and self.first_rejected is None:
            self.first_rejected = f"row {outcome.row.place}: {outcome.error}"
