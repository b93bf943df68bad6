"""Where the ledger is: an Airflow connection's database, or a SQLite file beside Airflow's own."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.engine import URL

from halo_provider.compat import conf, get_current_context
from halo_provider.exceptions import HaloConfigurationError
from halo_provider.hooks.database import database_engine
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.database import new_engine

if TYPE_CHECKING:
    from halo_provider.compat import Context

OWN_LEDGER_KEY = "halo_ledger"  # of the XCom that says which connection has a task's rows, where it is not everybody's
IN_MEMORY = "sqlite://"
DEFAULT_LEDGER = "default"  # the name of the SQLite ledger in reports


def ledger_connection_id(ledger_conn_id: str | None) -> str | None:
    """The connection that holds the ledger: the one given, else ``[halo] ledger_conn_id``, else none."""
    return ledger_conn_id or conf.get("halo", "ledger_conn_id", fallback=None) or None


def retention_days() -> float | None:
    """How long delivered and rejected rows are kept: ``[halo] retention_days``; None for ever.

    :raises HaloConfigurationError: if it is no number of days
    """
    written = conf.get("halo", "retention_days", fallback=None)
    if not written:
        return None
    with suppress(ValueError):
        days = float(written)
        if 0 < days < math.inf:
            return days
    raise HaloConfigurationError(f"[halo] retention_days must be a number of days, and more than 0, not {written!r}")


def own_ledger(ledger_conn_id: str | None) -> str | None:
    """The connection that holds a task's ledger, where the pages in Airflow's UI do not show it."""
    conn_id = ledger_connection_id(ledger_conn_id)
    return conn_id if conn_id != ledger_connection_id(None) else None


def open_ledger(ledger_conn_id: str | None = None, *, create: bool = True) -> Ledger:
    """
    Open the ledger and create what is missing; or, with ``create=False``, an empty one in memory for a missing one.

    :param ledger_conn_id: an Airflow connection to PostgreSQL, MySQL or MariaDB; by default ``[halo] ledger_conn_id``,
        else SQLite at ``$AIRFLOW_HOME/halo_ledger.db``, which serves tasks that all run on one host
    :param create: whether a missing ledger is created
    :raises LedgerError: if it cannot be reached
    """
    conn_id = ledger_connection_id(ledger_conn_id)
    path = airflow_home() / "halo_ledger.db"
    if conn_id is None:
        return Ledger.at_path(path) if create or path.exists() else Ledger.at(IN_MEMORY)
    ledger = Ledger(database_engine(conn_id))
    if create or ledger.exists():
        ledger.prepare()
        return ledger
    ledger.close()
    return Ledger.at(IN_MEMORY)


def ledger_place() -> str:
    """What tells the configured ledger from others: the connection as it is now, or the file's path."""
    conn_id = ledger_connection_id(None)
    if conn_id is None:
        return str(airflow_home() / "halo_ledger.db")
    return database_engine(conn_id).url.render_as_string()


def open_ledger_to_read(ledger_conn_id: str | None = None) -> Ledger | None:
    """
    Open the ledger for people who look: nothing is created or written, and no writer is waited for.

    :param ledger_conn_id: as for ``open_ledger``
    :returns: None where there is no ledger yet
    :raises LedgerError: if it cannot be reached, or is of another version
    """
    conn_id = ledger_connection_id(ledger_conn_id)
    path = airflow_home() / "halo_ledger.db"
    if conn_id is None and not path.exists():
        return None
    engine = new_engine(URL.create("sqlite", database=str(path))) if conn_id is None else database_engine(conn_id)
    ledger = Ledger(engine)
    if ledger.prepare_to_read():
        return ledger
    ledger.close()
    return None


def current_task_instance() -> TaskInstanceRef:
    """Which task instance this is; outside a task, none."""
    try:
        context = get_current_context()
    except RuntimeError:
        return TaskInstanceRef()
    return task_instance_of(context)


def task_instance_of(context: Context) -> TaskInstanceRef:
    """Which task instance the context belongs to, as the ledger writes it beside every row."""
    ti = context["ti"]
    return TaskInstanceRef(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=ti.map_index,
        try_number=ti.try_number,
        logical_date=context.get("logical_date"),
    )


def airflow_home() -> Path:
    """Airflow's home directory, by Airflow's own rule."""
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
