"""The durable table of rows: their statuses, who may send them, and what people decided about them."""

from halo_provider.ledger.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.statuses import LedgerStatus, RowStatus

__all__ = ["Ledger", "LedgerStatus", "RowStatus", "TaskInstanceRef"]
