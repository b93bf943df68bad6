"""The time that leases go by: a step of a host's clock changes nothing about who may claim a row.

PostgreSQL, MySQL and MariaDB tell the time themselves, in the transaction that needs it. SQLite has only the clock of
its one host, which may step; the time since the host's boot does not. So the first process after a boot records beside
the rows when the boot was, by the clock of that moment, and every process on the host counts leases from there.
"""

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from halo_provider.ledger.tables import boots

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux's


class Times(NamedTuple):
    """The same moment for people and for leases; the two differ only on SQLite, after the host's clock has stepped."""

    now: datetime
    lease_now: datetime


def seconds_since_boot() -> float:
    """Seconds on a clock that all processes of the host share, that never steps, and that counts suspended time."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def boot_id() -> str | None:
    """What tells this boot of the host from others; None where the system does not say."""
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return None


def recorded_boot(db: Connection, boot: str) -> datetime | None:
    """The time of the boot as the ledger has it; None before it is recorded."""
    found: datetime | None = db.scalar(select(boots.c.booted_at).where(boots.c.boot_id == boot))
    return found


def record_boot(db: Connection, boot: str) -> datetime | None:
    """Record the time of the boot by the host's clock, unless another process has; return what is recorded."""
    booted_at = datetime.now(UTC) - timedelta(seconds=seconds_since_boot())
    db.execute(sqlite.insert(boots).values(boot_id=boot, booted_at=booted_at).on_conflict_do_nothing())
    return recorded_boot(db, boot)


def read_times(db: Connection, *, booted_at: datetime | None) -> Times:
    """The database's time; SQLite's is the host's, with leases counted from the boot where its time is known."""
    match db.dialect.name:
        case "postgresql":
            now: datetime = db.execute(_POSTGRES_NOW).scalar_one()
        case "mysql" | "mariadb":
            now = db.execute(_MYSQL_NOW).scalar_one().replace(tzinfo=UTC)
        case _:
            now = datetime.now(UTC)
            if booted_at is not None:
                return Times(now, booted_at + timedelta(seconds=seconds_since_boot()))
    return Times(now, now)


_POSTGRES_NOW = select(func.clock_timestamp())
_MYSQL_NOW = select(func.utc_timestamp(6))
