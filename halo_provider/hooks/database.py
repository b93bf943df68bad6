"""The database behind an Airflow connection, as a SQLAlchemy engine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from sqlalchemy import URL, create_engine

from halo_provider.compat import BaseHook
from halo_provider.exceptions import HaloConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from halo_provider.compat import Connection

# SQLAlchemy's dialect by connection type and driver; the first driver that is installed is taken.
DIALECTS = {
    "postgres": {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"},
    "mysql": {"pymysql": "mysql+pymysql", "MySQLdb": "mysql+mysqldb"},
    "sqlite": {"sqlite3": "sqlite"},
}


def database_engine(conn_id: str) -> Engine:
    """
    Return an engine for the connection.

    PostgreSQL, MySQL, MariaDB and SQLite need no provider package, only a driver, as long as the connection's extra is
    empty; with an extra, and for every other database, the provider's own hook knows what to do.

    :param conn_id: a SQL connection
    :raises HaloConfigurationError: if it is no SQL connection, or neither provider nor driver is installed
    """
    connection = BaseHook.get_connection(conn_id)
    drivers = DIALECTS.get(connection.conn_type or "", {})
    dialect = next((dialect for driver, dialect in drivers.items() if find_spec(driver)), None)
    if dialect is not None and not connection.extra_dejson:
        return create_engine(_url(connection, dialect), pool_pre_ping=True)
    try:
        hook = connection.get_hook()  # type: ignore[no-untyped-call]  # untyped in Airflow
    except Exception as error:
        raise HaloConfigurationError(
            f"connection {conn_id!r} of type {connection.conn_type!r} needs its provider package "
            f"(apache-airflow-providers-{connection.conn_type}) installed"
        ) from error
    if not hasattr(hook, "get_sqlalchemy_engine"):
        raise HaloConfigurationError(f"connection {conn_id!r} of type {connection.conn_type!r} is no SQL database")
    engine: Engine = hook.get_sqlalchemy_engine()
    return engine


def _url(connection: Connection, dialect: str) -> URL:
    if dialect == "sqlite":
        return URL.create(dialect, database=connection.host or connection.schema)
    return URL.create(
        dialect,
        username=connection.login or None,
        password=connection.password or None,
        host=connection.host or None,
        port=connection.port or None,
        database=connection.schema or None,
        query={"charset": "utf8mb4"} if dialect.startswith("mysql") else {},
    )
