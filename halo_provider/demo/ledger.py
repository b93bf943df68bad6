"""What the demo shows of the ledger."""

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from halo_provider.demo.airflow import Run


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """What the demo shows of one row of the ledger."""

    row_key: str
    user_id: str | None
    status: str
    session_id: str | None
    updated_at: str

    def fate(self, began: datetime) -> str:
        """Its status as a run that began then saw it: an earlier delivery is one that was not repeated."""
        earlier = self.updated_at < _ledger_time(began)
        return "already_delivered" if self.status == "delivered" and earlier else self.status


def ledger_rows(ledger: Path, *, run: Run) -> list[LedgerRow]:
    """The rows of the run's DAG and day, in the order of their keys; none before the first task has made the ledger."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found = db.execute(
            "SELECT row_key, user_id, status, session_id, updated_at FROM halo_submissions"
            " WHERE dag_id = ? AND logical_date IS ? ORDER BY row_key",
            (run.dag_id, _ledger_time(run.logical_date) if run.logical_date else None),
        )
        return [LedgerRow(**row) for row in found]
    return []


def _ledger_time(moment: datetime) -> str:
    """A moment, in UTC, as SQLite keeps it in the ledger."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"
