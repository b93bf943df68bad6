"""How Airflow connects to its metadata in SQLite.

A transaction that has read cannot write any more once another one has written: SQLite refuses that at once, whatever
the timeout. A backfill has such transactions: each begins with a savepoint, looks for a run, and then makes it. Here
they begin as writers, which wait for each other. The setting sql_alchemy_connect_args leads Airflow to `CONNECT_ARGS`.
"""

import sqlite3
from typing import Any


class Cursor(sqlite3.Cursor):
    """Begins a writer's transaction where a savepoint would begin a reader's."""

    def execute(self, statement: str, parameters: Any = (), /) -> "Cursor":
        """Run one statement."""
        if statement.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        super().execute(statement, parameters)
        return self


class Connection(sqlite3.Connection):
    """A connection with such cursors."""

    def cursor(self, factory: Any = Cursor) -> Any:
        """A new one."""
        return super().cursor(factory)


CONNECT_ARGS = {"factory": Connection}
