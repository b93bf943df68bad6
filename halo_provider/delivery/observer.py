"""Who is told what happens in a delivery, while it happens."""

from collections.abc import Callable

from halo_provider.delivery.pace import Pace
from halo_provider.delivery.report import Outcome
from halo_provider.exceptions import HaloCallError


class DeliveryObserver:
    """Told of rows and requests; override what is of interest. Called on the loop: it must not block."""

    def rows_read(self, rows: int, *, share: float | None) -> None:
        """So many more rows were read; `share` of the source (0.0 to 1.0) is read now, None where that is unknown."""

    def row_ended(self, outcome: Outcome) -> None:
        """A row has its status in this run, and the ledger has it too."""

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """A request took so many seconds; `error` is None where Halo accepted it."""

    def paced(self, pace: Pace) -> None:
        """Something else limits the sending now, or limits it otherwise; at the end, what limited most requests."""


class Observers(DeliveryObserver):
    """Several observers as one, told in this order. One that raises is told nothing more, and nobody else notices."""

    def __init__(self, *observers: DeliveryObserver) -> None:
        self._observers = list(observers)
        self.error: Exception | None = None  # the first one that an observer raised

    def rows_read(self, rows: int, *, share: float | None) -> None:
        """Tell everybody."""
        self._tell(lambda observer: observer.rows_read(rows, share=share))

    def row_ended(self, outcome: Outcome) -> None:
        """Tell everybody."""
        self._tell(lambda observer: observer.row_ended(outcome))

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """Tell everybody."""
        self._tell(lambda observer: observer.request_ended(seconds, error))

    def paced(self, pace: Pace) -> None:
        """Tell everybody."""
        self._tell(lambda observer: observer.paced(pace))

    def _tell(self, tell: Callable[[DeliveryObserver], None]) -> None:
        for observer in tuple(self._observers):
            try:
                tell(observer)
            except Exception as raised:  # noqa: BLE001 -- an observer may be anybody's
                self._observers.remove(observer)
                self.error = self.error or raised
