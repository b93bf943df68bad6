"""The sign-in for reading, shared by every process: its tokens, encrypted, and whose turn it is to renew them.

A refresh token is good for one use. So whoever renews first records that, under the row's lock, in a transaction of its
own; the call to Halo is made without a lock on the database, which on SQLite would stop every delivery; and the new
tokens are recorded only where it is still the same one's turn.
"""

import os
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection, Row

from halo_provider.exceptions import HaloSignInError, LedgerError
from halo_provider.ledger.database import Database
from halo_provider.ledger.rules import shortened
from halo_provider.ledger.tables import sign_ins
from halo_provider.models import SignIn, Turn

RENEWAL_LEASE = 60.0  # seconds after which another process may try to renew: more than a renewal can take


class Cipher(Protocol):
    """Encrypts the tokens, such as a Fernet of Airflow's key."""

    def encrypt(self, data: bytes, /) -> bytes:
        """Encrypt."""
        ...

    def decrypt(self, token: bytes, /) -> bytes:
        """Decrypt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInState:
    """What people may see of a sign-in: no token."""

    conn_id: str
    actor: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    refreshes: int
    renewing: bool
    problem: str | None


class SignIns:
    """The sign-in of one connection in the ledger's database. Every method blocks, and raises LedgerError."""

    def __init__(self, ledger: Database, *, conn_id: str, cipher: Cipher, lease: float = RENEWAL_LEASE) -> None:
        self._ledger = ledger
        self._conn_id = conn_id
        self._cipher = cipher
        self._lease = lease
        self._owner = f"{os.uname().nodename[:60]}:{os.getpid()}:{uuid.uuid4().hex[:12]}"

    def save(self, sign_in: SignIn, *, lifetime: float | None, actor: str) -> None:
        """Keep a new sign-in, instead of any other of this connection."""

        def write(db: Connection) -> None:
            now, lease_now = self._ledger.times(db)
            db.execute(delete(sign_ins).where(self._row))
            db.execute(
                insert(sign_ins).values(
                    conn_id=self._conn_id,
                    **self._columns(sign_in, lifetime=lifetime, lease_now=lease_now),
                    refreshes=0,
                    actor=actor,
                    created_at=now,
                    updated_at=now,
                )
            )

        self._ledger.transaction(write)

    def turn(self, *, refused: str | None, renew_before: float) -> Turn:
        """The tokens, and whose turn it is to renew them. Raises HaloSignInError where nobody is signed in."""
        return self._ledger.transaction(lambda db: self._turn(db, refused=refused, renew_before=renew_before))

    def _turn(self, db: Connection, *, refused: str | None, renew_before: float) -> Turn:
        row = db.execute(select(sign_ins).where(self._row).with_for_update()).one_or_none()
        if row is None:
            raise HaloSignInError("nobody is signed in", conn_id=self._conn_id)
        if row.problem is not None:
            raise HaloSignInError(row.problem, conn_id=self._conn_id)
        sign_in = self._decrypted(row)
        now = self._ledger.times(db).lease_now
        left = (row.expires_at - now).total_seconds() if row.expires_at else None
        lifetime = (row.expires_at - row.issued_at).total_seconds() if row.expires_at else None
        margin = 0.0 if lifetime is None else min(renew_before, lifetime / 10)
        if sign_in.access_token != refused and (left is None or left > margin):
            return Turn(sign_in, left)
        if row.refresh_owner is not None and row.refresh_expires_at > now:
            return Turn(sign_in, left, waits=(row.refresh_expires_at - now).total_seconds())
        ends = now + timedelta(seconds=self._lease)
        db.execute(update(sign_ins).where(self._row).values(refresh_owner=self._owner, refresh_expires_at=ends))
        return Turn(sign_in, left, renews=True, waits=self._lease, interrupted=row.refresh_owner is not None)

    def renewed(self, sign_in: SignIn, *, lifetime: float | None) -> bool:
        """Record the new tokens; whether it was still this one's turn."""

        def write(db: Connection) -> bool:
            now, lease_now = self._ledger.times(db)
            columns = self._columns(sign_in, lifetime=lifetime, lease_now=lease_now)
            statement = update(sign_ins).where(self._row, sign_ins.c.refresh_owner == self._owner)
            return (
                db.execute(statement.values(**columns, refreshes=sign_ins.c.refreshes + 1, updated_at=now)).rowcount
                == 1
            )

        return self._ledger.transaction(write)

    def not_renewed(self, *, problem: str | None) -> None:
        """End this one's turn: the refresh token is not used up, or, with a `problem`, a person must sign in again."""

        def write(db: Connection) -> None:
            statement = update(sign_ins).where(self._row, sign_ins.c.refresh_owner == self._owner)
            values = {"refresh_owner": None, "refresh_expires_at": None, "problem": shortened(problem)}
            db.execute(statement.values(**values, updated_at=self._ledger.times(db).now))

        self._ledger.transaction(write)

    def forget(self) -> SignIn | None:
        """Delete the sign-in, and return it, so that it can be revoked; None where there is none to be read."""

        def take(db: Connection) -> Any:
            row = db.execute(select(sign_ins).where(self._row).with_for_update()).one_or_none()
            db.execute(delete(sign_ins).where(self._row))
            return row

        row = self._ledger.transaction(take)
        try:
            return None if row is None else self._decrypted(row)
        except LedgerError:
            return None

    def state(self) -> SignInState | None:
        """What people may see of it; None where nobody is signed in."""

        def read(db: Connection) -> SignInState | None:
            row = db.execute(select(sign_ins).where(self._row)).one_or_none()
            if row is None:
                return None
            return SignInState(
                conn_id=row.conn_id,
                actor=row.actor,
                created_at=row.created_at,
                updated_at=row.updated_at,
                expires_at=row.expires_at,
                refreshes=row.refreshes,
                renewing=row.refresh_owner is not None,
                problem=row.problem,
            )

        return self._ledger.transaction(read, read_only=True)

    @property
    def _row(self) -> Any:
        return sign_ins.c.conn_id == self._conn_id

    def _columns(self, sign_in: SignIn, *, lifetime: float | None, lease_now: datetime) -> dict[str, Any]:
        return {
            "secrets": self._cipher.encrypt(sign_in.model_dump_json().encode()).decode(),
            "issued_at": lease_now,
            "expires_at": None if lifetime is None else lease_now + timedelta(seconds=lifetime),
            "refresh_owner": None,
            "refresh_expires_at": None,
            "problem": None,
        }

    def _decrypted(self, row: Row[Any]) -> SignIn:
        try:
            return SignIn.model_validate_json(self._cipher.decrypt(row.secrets.encode()))
        except Exception as error:
            raise LedgerError(
                f"the sign-in of {self._conn_id} cannot be decrypted here: every worker needs the same "
                "[core] fernet_key, the one with which `halo-login` was run"
            ) from error
