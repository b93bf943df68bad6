"""Blocking calls that keep their caller waiting no longer than it allows.

A database may go silent without closing the connection, and drivers differ in what they can interrupt. So the call is
made on a thread of its own; a thread that does not return in time is abandoned. It is a daemon, which does not keep the
process from ending.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

POLL = 0.1  # seconds between looks at whether the caller still wants to wait

_T = TypeVar("_T")
_Job = tuple[Callable[[threading.Event], Any], "_Call[Any]"]


class _Call(Generic[_T]):
    """One call: its result, and whether its caller has given up."""

    def __init__(self) -> None:
        self.result: Future[_T] = Future()
        self.abandoned = threading.Event()


class _Worker:
    """A thread that makes one call after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="halo-ledger-call", daemon=True)
        self._thread.start()

    def start(self, work: Callable[[threading.Event], _T]) -> _Call[_T]:
        call: _Call[_T] = _Call()
        self._jobs.put((work, call))
        return call

    def stop(self) -> None:
        self._jobs.put(None)

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, call = job
            try:
                result = work(call.abandoned)
            except BaseException as error:  # noqa: BLE001 -- the caller raises it
                call.result.set_exception(error)
            else:
                call.result.set_result(result)
                del result
            del job, work, call  # or the last call's values would live as long as this thread


class BoundedCalls:
    """Makes blocking calls; any thread may ask for them."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        weakref.finalize(self, _stop_all, self._idle)

    def call(self, work: Callable[[threading.Event], _T], *, time_left: Callable[[], float]) -> _T:
        """Return what `work` returns, or raise what it raises; TimeoutError once `time_left` (seconds) is over.

        `time_left` is asked again and again, as it may become less. The event given to `work` is set when its caller
        has given up: what it does from then on must have no effect.
        """
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker()
        call = worker.start(work)
        try:
            while True:
                with suppress(TimeoutError):
                    return call.result.result(timeout=min(POLL, max(0.0, time_left())))
                if call.result.done():
                    return call.result.result()
                if time_left() <= 0:
                    raise TimeoutError
        finally:
            if call.result.done():
                self._idle.append(worker)
            else:
                call.abandoned.set()
                worker.stop()

    def close(self) -> None:
        """End the threads that are not in a call."""
        for worker in _stop_all(self._idle):
            worker.join()


def _stop_all(idle: list[_Worker]) -> list[_Worker]:
    stopped = []
    while idle:
        stopped.append(idle.pop())
        stopped[-1].stop()
    return stopped
