"""The durable table of rows: their statuses, who may send them, and what people decided about them."""

from halo_provider.ledger.ledger import Attempt, Ledger
from halo_provider.ledger.statuses import Fate, Status

__all__ = ["Attempt", "Fate", "Ledger", "Status"]
