"""Places for ledgers on the databases that tests may use."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from halo_provider.ledger.tables import metadata, version


@contextmanager
def postgres_place(url: str) -> Iterator[str]:
    """The URL of a schema with a name of its own."""
    with _place(url, create="CREATE SCHEMA {name}", drop="DROP SCHEMA {name} CASCADE") as schema:
        own = make_url(url).update_query_dict({"options": f"-csearch_path={schema}"})
        yield own.render_as_string(hide_password=False)


@contextmanager
def mariadb_place(url: str) -> Iterator[str]:
    """The URL of a database with a name of its own."""
    with own_database(url) as own:
        yield own.render_as_string(hide_password=False)


@contextmanager
def own_database(url: str, *, force: bool = False) -> Iterator[URL]:
    """A database with a name of its own on that server; with `force`, PostgreSQL cuts off who still uses it."""
    drop = "DROP DATABASE {name} WITH (FORCE)" if force else "DROP DATABASE {name}"
    with _place(url, create="CREATE DATABASE {name}", drop=drop) as name:
        yield make_url(url).set(database=name)


@contextmanager
def _place(url: str, *, create: str, drop: str) -> Iterator[str]:
    name = f"halo_test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT", future=True)
    with engine.connect() as db:
        db.execute(text(create.format(name=name)))
        try:
            yield name
        finally:
            db.execute(text(drop.format(name=name)))
    engine.dispose()


@contextmanager
def emptied(url: str) -> Iterator[str]:
    """The same place for the next test: making the tables anew takes longer than most tests."""
    yield url
    engine = create_engine(url, future=True)
    with engine.begin() as db:
        for table in metadata.sorted_tables:
            if table is not version:
                db.execute(table.delete())
    engine.dispose()
