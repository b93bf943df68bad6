"""The durable table of rows: their statuses, who may send them, and what people decided about them."""

from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.ledger import LEASE, Ledger
from halo_provider.ledger.rules import (
    MAX_RESPONSE,
    Candidate,
    Change,
    Claim,
    ClaimResult,
    Commit,
    Doubt,
    KnownRow,
    OnInDoubt,
    Rivals,
    Settlement,
    TaskInstanceRef,
    session_id_fits,
)
from halo_provider.ledger.statuses import LedgerStatus, RowStatus

__all__ = [
    "LEASE",
    "MAX_RESPONSE",
    "Candidate",
    "Change",
    "Claim",
    "ClaimResult",
    "Commit",
    "Doubt",
    "KnownRow",
    "LeaseHolder",
    "Ledger",
    "LedgerStatus",
    "OnInDoubt",
    "Rivals",
    "RowStatus",
    "Settlement",
    "TaskInstanceRef",
    "session_id_fits",
]
