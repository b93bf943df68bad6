"""Empty databases that Airflow connections of each kind lead to."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.engine import URL

from tests.core.databases import own_database

CONNECTION_TYPES = {"sqlite": "sqlite", "postgresql": "postgres", "mysql": "mysql"}


@dataclass(frozen=True)
class SourceDatabase:
    """A database of one test's own."""

    url: URL

    @property
    def connection(self) -> str:
        """The Airflow connection that leads to it, as in AIRFLOW_CONN_…; without an extra it needs no provider."""
        fields = {
            "conn_type": CONNECTION_TYPES[self.url.get_backend_name()],
            "host": self.url.host or self.url.database,
            "login": self.url.username,
            "password": self.url.password,
            "port": self.url.port,
            "schema": self.url.database if self.url.host else None,
        }
        return json.dumps({name: value for name, value in fields.items() if value})

    def execute(self, *statements: str) -> None:
        """Run the statements and commit."""
        engine = create_engine(self.url, future=True)
        with engine.begin() as db:
            for statement in statements:
                db.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def fresh_database(server: str) -> Iterator[SourceDatabase]:
    """A new database on the server that the URL leads to, dropped at the end."""
    with own_database(server) as url:
        yield SourceDatabase(url)
