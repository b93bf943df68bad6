"""Which rows' tickets a task is about, in a form that a trigger can be given; and what it takes to look at them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from halo_provider.delivery.tickets import TicketFollower
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import open_ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.tickets import TicketFact, TicketRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from halo_provider.client.reader import HaloReader
    from halo_provider.ledger import Ledger
    from halo_provider.ledger.tickets import Until


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketQuestion:
    """
    The delivered rows whose tickets are wanted: of one namespace, of one run, or of given sessions.

    :param halo_conn_id: the Halo connection, with a sign-in by ``halo-login``
    :param ledger_conn_id: the database of the ledger
    :param until: what is waited for; None is to look at every row once
    :param ticket_within: seconds after its delivery in which a row's ticket can appear
    :param asked_at: when the task began to ask, as ISO 8601: the age of sessions that the ledger does not have
    :param namespace: rows of this namespace
    :param dag_id: rows that a task of this DAG delivered
    :param run_id: rows that were delivered in this run
    :param task_id: rows that this task delivered
    :param session_ids: rows of these sessions; those that the ledger does not have are looked at too
    """

    halo_conn_id: str
    ledger_conn_id: str | None
    until: Until | None
    ticket_within: float
    asked_at: str
    namespace: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    session_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> TicketQuestion:
        """Read it back from what :meth:`as_dict` made, whatever JSON did to it."""
        return cls(**{**written, "session_ids": tuple(written["session_ids"])})

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {**asdict(self), "session_ids": list(self.session_ids)}

    @property
    def wanted(self) -> RowFilter:
        """The rows, as the ledger is asked for them."""
        return RowFilter(
            namespace=self.namespace,
            dag_ids=None if self.dag_id is None else (self.dag_id,),
            run_id=self.run_id,
            task_id=self.task_id,
            session_ids=self.session_ids,
        )

    def open(self) -> tuple[Ledger, HaloReader, TicketFollower]:
        """
        Open the ledger, and make what looks at Halo; the reader has to be entered. Blocks.

        :raises HaloConfigurationError: if the connection cannot work, or Airflow has no Fernet key
        :raises LedgerError: if the ledger cannot be reached
        """
        ledger = open_ledger(self.ledger_conn_id)
        try:
            reader = HaloHook(self.halo_conn_id).reader(ledger)
        except BaseException:
            ledger.close()
            raise
        follower = TicketFollower(
            reader,
            TicketRows(ledger),
            self.wanted,
            until=self.until,
            ticket_within=self.ticket_within,
            asked_at=datetime.fromisoformat(self.asked_at),
        )
        return ledger, reader, follower


def written(others: Mapping[str, TicketFact | None]) -> dict[str, list[str | None] | None]:
    """Tickets by session as JSON."""
    return {
        session_id: None if fact is None else [fact.ticket_id, fact.status, fact.at.isoformat() if fact.at else None]
        for session_id, fact in others.items()
    }


def read_back(others: Mapping[str, Any]) -> dict[str, TicketFact | None]:
    """The tickets that `written` wrote."""
    facts: dict[str, TicketFact | None] = {}
    for session_id, fact in others.items():
        if fact is None:
            facts[session_id] = None
        else:
            ticket_id, status, at = fact
            facts[session_id] = TicketFact(ticket_id, status, datetime.fromisoformat(at) if at else None)
    return facts
