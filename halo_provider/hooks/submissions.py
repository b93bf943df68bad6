"""The ledger's rows as a DataFrame, for people who join them to their own tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.ledger.row_filter import RowCursor, RowFilter, cursor_of
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.rules import Change
from halo_provider.ledger.statuses import LedgerStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from halo_provider.ledger.ledger import Ledger

PAGE = 5_000  # rows read from the ledger together
_UTC = "datetime64[us, UTC]"
COLUMNS = {  # of the frame, and their types
    "submission_name": "string",
    "row_key": "string",
    "follow_up": "Int32",
    "status": "string",
    "user_id": "string",
    "session_id": "string",
    "agent_id": "string",
    "ticket_id": "string",
    "ticket_status": "string",
    "ticket_at": _UTC,
    "attempts": "Int32",
    "error": "string",
    "reply": "string",
    "dag_id": "string",
    "run_id": "string",
    "task_id": "string",
    "map_index": "Int32",
    "try_number": "Int32",
    "logical_date": _UTC,
    "created_at": _UTC,
    "updated_at": _UTC,
}


def submissions_frame(
    ledger: Ledger, *, halo_conn_id: str, submission_name: str | None, dag_id: str | None, status: str | None
) -> pd.DataFrame:
    """
    Return the rows of one Halo connection, in the order of their namespaces and keys.

    :param ledger: where they are
    :param halo_conn_id: the connection they were delivered through
    :param submission_name: only rows of this submission
    :param dag_id: only rows that a task of this DAG had last
    :param status: only rows of this status
    :raises HaloConfigurationError: if there is no such status
    :raises LedgerError: if the ledger cannot be used
    """
    import pandas as pd  # noqa: PLC0415 -- slow to import

    wanted = RowFilter(
        namespace=None if submission_name is None else f"{halo_conn_id}/{submission_name}",
        dag_ids=None if dag_id is None else (dag_id,),
        statuses=() if status is None else (_status(status),),
    )
    frames = [
        pd.DataFrame(page, columns=list(COLUMNS)).astype(COLUMNS)
        for page in _pages(ledger, wanted, halo_conn_id=halo_conn_id)
    ]
    return pd.concat(frames, ignore_index=True)


def _status(status: str) -> LedgerStatus:
    try:
        return LedgerStatus(status)
    except ValueError:
        raise HaloConfigurationError(f"status must be one of {', '.join(LedgerStatus)}, not {status!r}") from None


def _pages(ledger: Ledger, wanted: RowFilter, *, halo_conn_id: str) -> Iterator[list[tuple[Any, ...]]]:
    """Read page by page, so that no statement takes long; the last page may be empty, and is there."""
    reader = RowReader(ledger)
    after: RowCursor | None = None
    while True:
        rows = reader.page(wanted, after=after, limit=PAGE)
        yield [_values(row) for row in rows if row.namespace.rpartition("/")[0] == halo_conn_id]
        if len(rows) < PAGE:
            return
        after = cursor_of(rows[-1])


def _values(row: Any) -> tuple[Any, ...]:
    change = Change.at(row.row_key, row.payload_hash)
    own = {
        "submission_name": row.namespace.rpartition("/")[2],
        "row_key": change.row_key if change else row.row_key,
        "follow_up": change.number if change else None,
    }
    return tuple(own[name] if name in own else getattr(row, name) for name in COLUMNS)
