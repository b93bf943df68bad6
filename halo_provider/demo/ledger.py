"""What the demo shows of the ledger."""

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from halo_provider.demo.airflow import Run
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus, RowStatus

MAX_ROWS = 10_000  # rows of a DAG; the example files have some dozens


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What the demo shows of one row of the ledger."""

    row_key: str
    user_id: str | None
    status: LedgerStatus
    session_id: str | None
    updated_at: datetime

    def status_in(self, began: datetime) -> str:
        """Its status as a run that began then saw it: an earlier delivery is one that was not repeated."""
        earlier = self.updated_at < began
        return RowStatus.ALREADY_DELIVERED if self.status is LedgerStatus.DELIVERED and earlier else self.status


def ledger_rows(path: Path, *, run: Run) -> list[LedgerRow]:
    """The rows of the run's DAG and day, in the order of their keys; none before the first task has made the ledger."""
    if not path.exists():
        return []
    with closing(Ledger.at_path(path)) as ledger:
        found = RowReader(ledger).page(RowFilter(dag_ids=(run.dag_id,)), limit=MAX_ROWS)
    return [
        LedgerRow(
            row_key=row.row_key,
            user_id=row.user_id,
            status=LedgerStatus(row.status),
            session_id=row.session_id,
            updated_at=row.updated_at,
        )
        for row in found
        if row.logical_date == run.logical_date
    ]
