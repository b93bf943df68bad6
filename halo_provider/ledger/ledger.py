"""The ledger: the durable table that knows each row's status. Every change of a status stands in this package."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from halo_provider.exceptions import HaloConfigurationError, LedgerError
from halo_provider.ledger.claims import LeaseHolder, find
from halo_provider.ledger.database import Database, new_engine, reason_of
from halo_provider.ledger.rules import KnownRow, TaskInstanceRef
from halo_provider.ledger.tables import MAX_NAMESPACE, create_tables, submissions, tables_exist, tables_to_read

LEASE = 60.0  # seconds a claim lives without being renewed


class Ledger(Database):
    """The table on one database. Open it by URL (`at`) or by path (`at_path`), or `prepare` it over an engine."""

    @classmethod
    def at(cls, url: str | URL, *, create: bool = True) -> "Ledger":
        """Open the ledger at a SQLAlchemy URL and create what is missing, with `create=False` only in a ledger.

        Raises LedgerError.
        """
        try:
            address = make_url(url)
            if not create and _is_missing_file(address):
                raise LedgerError(f"there is no ledger: no file {address.database}")
            ledger = cls(new_engine(address))
        except ArgumentError:  # quotes the URL, and with it the password
            raise LedgerError("the ledger cannot be opened: its address is no SQLAlchemy URL") from None
        except (SQLAlchemyError, ImportError) as error:
            raise LedgerError(f"the ledger cannot be opened: {reason_of(error)}") from error
        if not create and not ledger.exists():
            ledger.close()
            raise LedgerError(
                f"there is no ledger: {address.database or 'the database'} has no table {submissions.name}"
            )
        ledger.prepare()
        return ledger

    @classmethod
    def at_path(cls, path: Path) -> "Ledger":
        """Open the SQLite ledger in a file: for tasks that all run on one host. Raises LedgerError."""
        return cls.at(URL.create("sqlite", database=str(path)))

    def prepare(self) -> None:
        """Create the tables where they are missing. Raises LedgerError."""
        try:
            self.configure_connections()
            if not self.transaction(tables_exist, read_only=True):
                self.transaction(create_tables)
            self.prepare_clock()
        except LedgerError:
            self.close()
            raise

    def prepare_to_read(self) -> bool:
        """Open it without a write, and without a lock that a writer would have to give up first.

        False where the database has no ledger. Raises LedgerError.
        """
        try:
            self.configure_connections()
            if not self.transaction(tables_to_read, read_only=True):
                return False
            self.prepare_clock(read_only=True)
        except LedgerError:
            self.close()
            raise
        return True

    def exists(self) -> bool:
        """Whether the database has the table. Raises LedgerError where it cannot be reached."""
        return self.transaction(lambda db: inspect(db).has_table(submissions.name))

    def find(self, namespace: str, row_keys: Sequence[str]) -> dict[str, KnownRow]:
        """The rows of these keys, by key. Raises LedgerError."""
        return self.transaction(lambda db: find(db, namespace, row_keys))

    def lease_holder(self, namespace: str, *, task_instance: TaskInstanceRef, lease: float = LEASE) -> LeaseHolder:
        """A new owner of claims in one namespace. Raises HaloConfigurationError where the namespace is too long."""
        size = len(namespace.encode())
        if size > MAX_NAMESPACE:
            raise HaloConfigurationError(
                f"connection id and submission name have {size} bytes together, at most {MAX_NAMESPACE} fit; "
                "shorten one"
            )
        return LeaseHolder(self, namespace, task_instance=task_instance, lease=lease)


def _is_missing_file(url: URL) -> bool:
    """Whether SQLite would make the file by opening it."""
    path = url.database or ""
    in_memory_or_uri = not path or path.startswith((":memory:", "file:"))
    return url.get_backend_name() == "sqlite" and not in_memory_or_uri and not Path(path).exists()
