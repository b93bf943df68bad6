"""Who is told what happens in a delivery, while it happens."""

from typing import Protocol

from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import HaloCallError


class DeliveryObserver(Protocol):
    """Told of every row and every request. Called on the loop: it must not block."""

    def row_ended(self, outcome: Outcome) -> None:
        """A row has its status in this run, and the ledger has it too."""

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """A request took so many seconds; `error` is None where Halo accepted it."""


class Observers:
    """Several observers as one, told in this order."""

    def __init__(self, *observers: DeliveryObserver) -> None:
        self._observers = observers

    def row_ended(self, outcome: Outcome) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.row_ended(outcome)

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """Tell everybody."""
        for observer in self._observers:
            observer.request_ended(seconds, error)
