"""The ledger as the pages use it: opened once in the API server, by few requests at a time, never locked to look."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore, Lock

from halo_provider.exceptions import LedgerError
from halo_provider.hooks.ledger import IN_MEMORY, ledger_place, open_ledger_to_read
from halo_provider.ledger import Ledger

# Requests that may use the ledger at a time: one that hangs must not occupy every thread of the API server.
MAX_LEDGER_REQUESTS = 8
DOWNLOAD_WAIT = 60.0  # seconds that a download waits for its turn

_seats = BoundedSemaphore(MAX_LEDGER_REQUESTS)
_opening = Lock()
_open: dict[str, Ledger] = {}  # by place


@contextmanager
def reading(*, wait: float = 0.0) -> Iterator[Ledger]:
    """The ledger for one look, which holds one of the seats; an empty one where none was made yet.

    `wait` is for how many seconds a seat is waited for. Raises LedgerError.
    """
    with _seat(wait):
        ledger = _opened()
        if ledger is None:
            empty = Ledger.at(IN_MEMORY)
            try:
                yield empty
            finally:
                empty.close()
            return
        try:
            yield ledger
        except LedgerError:
            _forget(ledger)
            raise


@contextmanager
def deciding() -> Iterator[Ledger]:
    """The same for one who changes rows: leases are compared by the clock that tasks on this host go by."""
    with reading() as ledger:
        ledger.prepare_clock()
        yield ledger


@contextmanager
def _seat(wait: float) -> Iterator[None]:
    if not (_seats.acquire(timeout=wait) if wait else _seats.acquire(blocking=False)):
        raise LedgerError("too many pages are waiting for the ledger at this moment")
    try:
        yield
    finally:
        _seats.release()


def _opened() -> Ledger | None:
    """The open ledger of the configured place; its schema is checked when it is opened, and not again."""
    try:
        place = ledger_place()
        with _opening:
            known = _open.get(place)
        if known is not None and known.is_at_its_place:
            return known
        if known is not None:
            _forget(known)
        ledger = open_ledger_to_read()
    except LedgerError:
        raise
    except Exception as error:  # e.g. an unknown connection, or a driver that is not installed
        raise LedgerError(f"the ledger cannot be opened: {error}") from error
    if ledger is None:
        return None
    with _opening:
        first = _open.setdefault(place, ledger)
    if first is not ledger:
        ledger.close()
    return first


def _forget(ledger: Ledger) -> None:
    """Open it anew for the next request: its database may be another one, or moved, by now."""
    with _opening:
        for place, known in list(_open.items()):
            if known is ledger:
                del _open[place]
