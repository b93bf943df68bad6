"""What a ledger holds, counted: by namespace, and by status within each."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import submissions


class StatusSummary(NamedTuple):
    """The rows of one status in one namespace, and when the first and the last of them changed."""

    namespace: str
    status: LedgerStatus
    rows: int
    oldest: datetime
    newest: datetime


def summary(ledger: Ledger, wanted: RowFilter) -> list[StatusSummary]:
    """Count the rows that are wanted, in the order of namespaces and of a row's life. Raises LedgerError."""
    columns = submissions.c
    changed = columns.updated_at
    statement = (
        select(columns.namespace, columns.status, func.count(), func.min(changed), func.max(changed))
        .where(*wanted.conditions())
        .group_by(columns.namespace, columns.status)
    )
    found = ledger.transaction(lambda db: [StatusSummary(*row) for row in db.execute(statement)], read_only=True)
    life = list(LedgerStatus)
    return sorted(found, key=lambda each: (each.namespace, life.index(each.status)))


def by_namespace(found: Iterable[StatusSummary]) -> list[dict[str, Any]]:
    """The same with one record for each namespace: its rows, those of each status, and the last change."""
    grouped: dict[str, list[StatusSummary]] = defaultdict(list)
    for each in found:
        grouped[each.namespace].append(each)
    return [
        {
            "namespace": namespace,
            "rows": sum(each.rows for each in group),
            **{status.value: 0 for status in LedgerStatus},
            **{each.status.value: each.rows for each in group},
            "last_change": max(each.newest for each in group),
        }
        for namespace, group in grouped.items()
    ]
