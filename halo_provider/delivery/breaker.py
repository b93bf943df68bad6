"""When the answers of many rows say something about the run: a wrong address, and rows refused or given up alike."""

from collections import Counter

from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import EveryRowRefusedError, HaloCallError, HaloStatusError, Verdict

MAX_FIRST_REFUSED = 50  # rows that Halo answers first, all refused with one status, before the run stops
MAX_GIVEN_UP = 50  # rows given up one after the other before the run itself gives up


class Breaker:
    """Stops a run whose rows fail for a reason that is not theirs, before all of them have."""

    def __init__(self, stop: Stop, *, own_session_ids: bool = False) -> None:
        self._stop = stop
        self._own_session_ids = own_session_ids
        self.accepted_rows = 0  # of this run, by Halo
        self._first_refused: Counter[int] = Counter()  # by status, until a row is accepted
        self._given_up_in_a_row = 0
        self._doubted_in_a_row = 0

    @property
    def doubts_sending(self) -> bool:
        """Whether so many rows fell into doubt one after the other that no more should be read until one ends."""
        return self._doubted_in_a_row >= MAX_GIVEN_UP

    def accepted(self) -> None:
        """Halo accepted a row: whatever it refuses from now on, it refuses for the row's sake."""
        self.accepted_rows += 1
        self._given_up_in_a_row = self._doubted_in_a_row = 0

    def doubted(self) -> None:
        """A row fell into doubt, and is looked up."""
        self._doubted_in_a_row += 1

    def understood(self, error: HaloCallError, *, continues_session: bool) -> HaloCallError:
        """The error by what this run knows: a 404 concerns its row only once Halo has accepted another one.

        A row that continues a session may be told that this session is gone.
        """
        if (
            self.accepted_rows
            or not isinstance(error, HaloStatusError)
            or not error.suggests_wrong_url
            or error.verdict is Verdict.FORBIDDEN  # a redirect, which stops the run by itself
            or continues_session
        ):
            return error
        return error.as_wrong_url()

    def refused(self, error: HaloCallError) -> None:
        """Halo refused a row. Where it refuses the first ones all alike, the run stops."""
        self._given_up_in_a_row = 0
        if self.accepted_rows or not isinstance(error, HaloStatusError):
            return
        self._first_refused[error.status] += 1
        if len(self._first_refused) == 1 and self._first_refused[error.status] >= MAX_FIRST_REFUSED:
            every_row = EveryRowRefusedError(
                refused=MAX_FIRST_REFUSED, error=str(error), own_session_ids=self._own_session_ids
            )
            self._stop.request(str(every_row), error=every_row)

    def gave_up(self, error: HaloCallError, *, accepted_before: int | None = None) -> None:
        """A row has used up its attempts. Where many do so one after the other, the run stops.

        `accepted_before` is how many rows Halo had accepted at the end of the last attempt, where that was looked up
        since: what came of it says nothing about Halo if others have been accepted meanwhile.
        """
        if accepted_before is not None and self.accepted_rows > accepted_before:
            return
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= MAX_GIVEN_UP:
            self._stop.request(f"{MAX_GIVEN_UP} rows in a row were given up: {error}", error=error)
