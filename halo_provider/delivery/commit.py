"""Group commit: the intents and settlements of all workers go to the ledger in few transactions."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from halo_provider.delivery.queues import Work
from halo_provider.delivery.report import Outcome
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import LedgerError, RowError
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.rules import Commit, Settlement
from halo_provider.ledger.statuses import RowStatus

COMMIT_INTERVAL = 0.1  # seconds an outcome waits at most for others to be committed with
COMMIT_SIZE = 200  # outcomes that are committed without waiting for more
LEDGER_TIMEOUT = 30.0  # seconds in which outcomes are offered again to a ledger that cannot be reached
LEDGER_POLL = 0.5  # seconds between these offers


class Committer:
    """Collects intents and settlements on the loop, and commits them together on the ledger's thread.

    `on_committed` is called for every work whose outcome the ledger holds, or has lost.
    """

    def __init__(
        self,
        lease_holder: LeaseHolder,
        *,
        thread: ThreadPoolExecutor,
        stop: Stop,
        on_committed: Callable[[Work, Outcome], None],
    ) -> None:
        self._lease_holder = lease_holder
        self._thread = thread
        self._stop = stop
        self._on_committed = on_committed
        self._intents: dict[str, asyncio.Future[bool]] = {}
        self._settlements: list[tuple[Settlement, Work, Outcome | None]] = []
        self.outcomes = 0  # settled, and not yet committed
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()

    async def intend(self, work: Work) -> bool:
        """Wait until the attempt's intent is committed; False where another run has the row, or the ledger failed."""
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._intents[work.ledger_key] = committed
        self._wanted.set()
        self._urgent.set()
        return await committed

    def settle(self, settlement: Settlement, work: Work, outcome: Outcome | None) -> None:
        """Put a settlement into the next transaction; an outcome counts once it is committed."""
        self._settlements.append((settlement, work, outcome))
        self.outcomes += outcome is not None
        self._wanted.set()
        if len(self._settlements) >= COMMIT_SIZE:
            self._urgent.set()

    def hurry(self) -> None:
        """Commit what there is at once: no other outcome is to be expected."""
        self._urgent.set()

    async def run(self) -> None:
        """Commit whatever comes, until cancelled."""
        while True:
            await self._wanted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_INTERVAL):
                    await self._urgent.wait()
            await self.flush()

    async def flush(self) -> None:
        """Commit what there is."""
        # A worker that was cancelled sends nothing more: its intent would leave in flight what was never sent.
        intents = {row_key: committed for row_key, committed in self._intents.items() if not committed.done()}
        self._intents = {}
        settlements = self._settlements.copy()
        self._wanted.clear()
        self._urgent.clear()
        if not intents and not settlements:
            return
        commit = await self._commit([settlement for settlement, _, _ in settlements], list(intents))
        del self._settlements[: len(settlements)]
        for row_key, committed in intents.items():
            if not committed.done():
                committed.set_result(commit is not None and row_key in commit.intents)
        for settlement, work, outcome in settlements:
            if outcome is not None:
                self.outcomes -= 1
                kept = commit is not None and settlement.row_key not in commit.lost_settlements
                self._on_committed(work, outcome if kept else _unrecorded(outcome))

    async def _commit(self, settlements: Sequence[Settlement], intents: Sequence[str]) -> Commit | None:
        """Commit. Where the ledger fails, send nothing more, but offer what was sent to it for a while."""
        give_up_at = time.monotonic() + LEDGER_TIMEOUT
        while True:
            commit = partial(self._lease_holder.commit, settlements=settlements, intents=intents)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, commit)
            except LedgerError as error:
                self._stop.request(str(error), error=error)
            intents = ()
            if not settlements or self._stop.ends_at is not None or time.monotonic() >= give_up_at:
                return None
            await asyncio.sleep(LEDGER_POLL)


def _unrecorded(outcome: Outcome) -> Outcome:
    """How a row ended whose outcome the ledger does not hold: what Halo may have is in doubt."""
    if outcome.status not in {RowStatus.DELIVERED, RowStatus.REJECTED, RowStatus.IN_DOUBT}:
        return outcome
    reason = "it was sent, but the ledger could not record the answer, or another run had taken the row over"
    return outcome._replace(status=RowStatus.IN_DOUBT, error=RowError(reason))
