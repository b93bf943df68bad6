"""The statuses of a row: in the ledger, and at the end of one run."""

from enum import StrEnum


class LedgerStatus(StrEnum):
    """What the ledger knows about a row."""

    PENDING = "pending"  # claimed or released; certainly not with Halo
    IN_FLIGHT = "in_flight"  # an attempt is under way, or its process died
    DELIVERED = "delivered"  # Halo answered with a session_id: never sent again
    REJECTED = "rejected"  # bad row, or refused by Halo: sent again only when its payload changes
    IN_DOUBT = "in_doubt"  # sent, no trustworthy answer: `on_in_doubt` decides
    FAILED = "failed"  # gave up this time, certainly not with Halo: the next run tries again


class RowStatus(StrEnum):
    """How one run ended for one row: every row read has exactly one."""

    DELIVERED = "delivered"
    ALREADY_DELIVERED = "already_delivered"
    DUPLICATE = "duplicate"  # its key was met earlier in this run
    REJECTED = "rejected"
    IN_DOUBT = "in_doubt"
    FAILED = "failed"
    NOT_ATTEMPTED = "not_attempted"
