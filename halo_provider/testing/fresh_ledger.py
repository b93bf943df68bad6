"""A ledger for one test, behind an Airflow connection."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import URL

from halo_provider.ledger import Ledger
from halo_provider.ledger.database import new_engine
from halo_provider.ledger.tables import submissions

CONN_ID = "halo_ledger_of_this_test"


class FreshLedger(Ledger):
    """An empty ledger in a file of its own, made the default of operators and hooks by `set_environment` (name, value).

    It is a :class:`halo_provider.ledger.Ledger`; `statuses` and `row` are what tests ask most.
    """

    def __init__(self, path: Path, *, set_environment: Callable[[str, str], Any]) -> None:
        super().__init__(new_engine(URL.create("sqlite", database=str(path))))
        self.path = path
        self.prepare()
        self._set_environment = set_environment
        self.connect(CONN_ID)
        set_environment("AIRFLOW__HALO__LEDGER_CONN_ID", CONN_ID)

    def connect(self, ledger_conn_id: str) -> None:
        """Be this Airflow connection too, for tasks that name one by ``ledger_conn_id``."""
        connection = {"conn_type": "sqlite", "host": str(self.path)}
        self._set_environment(f"AIRFLOW_CONN_{ledger_conn_id.upper()}", json.dumps(connection))

    def statuses(self, namespace: str | None = None) -> dict[str, str]:
        """The status of each row by its row_key; of one namespace, ``<connection id>/<submission name>``, or of all.

        Raises ValueError where two namespaces have the same row_key and none was named.
        """
        rows = self._rows(namespace)
        statuses = {row.row_key: str(row.status) for row in rows}
        if len(statuses) < len(rows):
            raise ValueError(f"name the namespace, one of {', '.join(sorted({row.namespace for row in rows}))}")
        return statuses

    def row(self, row_key: str, namespace: str | None = None) -> Any:
        """What the ledger knows of one row, by column name. Raises LookupError where there is not exactly one."""
        found = [row for row in self._rows(namespace) if row.row_key == row_key]
        if len(found) != 1:
            namespaces = ", ".join(row.namespace for row in found) or "no namespace"
            raise LookupError(f"row {row_key!r} is in {namespaces}")
        return found[0]

    def _rows(self, namespace: str | None) -> list[Any]:
        statement = select(submissions).order_by(submissions.c.namespace, submissions.c.row_key)
        if namespace is not None:
            statement = statement.where(submissions.c.namespace == namespace)
        return self.transaction(lambda db: list(db.execute(statement)), read_only=True)
