"""How a run is ended early, by a signal, a time limit or an error."""

import asyncio
from types import TracebackType


class Stop:
    """The wish to end a run early. Requests may come from a signal handler through the loop.

    A grace is how long, in seconds, attempts in flight may still take; without one they have their own timeout.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason: str | None = None
        self.error: Exception | None = None
        self.ends_at: float | None = None  # the end of the grace, on the loop's clock
        self._limits: set[asyncio.Timeout] = set()

    @property
    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._event.is_set()

    def request(self, reason: str, *, error: Exception | None = None, grace: float | None = None) -> None:
        """Ask for the end. The first reason counts; a shorter grace always does."""
        if self.reason is None:
            self.reason = reason
            self.error = error
        if grace is not None:
            end = asyncio.get_running_loop().time() + grace
            self.ends_at = end if self.ends_at is None else min(self.ends_at, end)
            for limit in self._limits:
                if not limit.expired():
                    limit.reschedule(self.ends_at)
        self._event.set()

    def limit(self) -> "_Limit":
        """Break the block off when a grace is over; it then raises TimeoutError."""
        return _Limit(self._limits, asyncio.timeout_at(self.ends_at))

    async def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until somebody asks."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return


class _Limit:
    """A timeout that can be found, and put earlier, while its block runs; every request has one."""

    __slots__ = ("_limits", "_timeout")

    def __init__(self, limits: set[asyncio.Timeout], timeout: asyncio.Timeout) -> None:
        self._limits = limits
        self._timeout = timeout

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._limits.add(self._timeout)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._limits.discard(self._timeout)
        await self._timeout.__aexit__(exc_type, exc, traceback)
