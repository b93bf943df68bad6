"""Where the ledger is: an Airflow connection's database, or a SQLite file beside Airflow's own."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import BaseHook
from airflow.sdk.configuration import conf

from halo_provider.exceptions import LedgerError
from halo_provider.ledger import Ledger

DEFAULT_LEDGER = "default"  # how reports call the SQLite ledger


def ledger_connection_id(ledger_conn_id: str | None) -> str | None:
    """The connection that holds the ledger: the one given, else ``[halo] ledger_conn_id``, else none."""
    return ledger_conn_id or conf.get("halo", "ledger_conn_id", fallback=None) or None


def open_ledger(ledger_conn_id: str | None = None) -> Ledger:
    """
    Open the ledger and create what is missing.

    :param ledger_conn_id: an Airflow connection to PostgreSQL, MySQL or MariaDB; by default ``[halo] ledger_conn_id``,
        else SQLite at ``$AIRFLOW_HOME/halo_ledger.db``, which serves tasks that all run on one host
    :raises LedgerError: if it cannot be reached
    """
    conn_id = ledger_connection_id(ledger_conn_id)
    if conn_id is None:
        return Ledger.at_path(airflow_home() / "halo_ledger.db")
    hook = BaseHook.get_hook(conn_id)
    if not hasattr(hook, "get_sqlalchemy_engine"):
        raise LedgerError(f"connection {conn_id!r} is no database connection; the ledger needs one")
    ledger = Ledger(hook.get_sqlalchemy_engine())
    ledger.prepare()
    return ledger


def airflow_home() -> Path:
    """Airflow's home directory, by Airflow's own rule."""
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
