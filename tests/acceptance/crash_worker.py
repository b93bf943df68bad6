"""A delivering process that kills itself, by SIGKILL, at a named point of a delivery.

`Worker` starts it from a fork server, which has everything imported already, and waits for its report or its death.
Nothing in the product knows about this: the lease holder and the client are wrapped.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil
from cryptography.fernet import Fernet

import halo_provider.delivery.commit
import halo_provider.delivery.delivery
from halo_provider.client.access import StoredAccess
from halo_provider.client.client import HaloClient
from halo_provider.client.reader import HaloReader
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import Commit, OnInDoubt, Settlement, TaskInstanceRef
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.models import Chat, ChatAnswer
from halo_provider.simulator import EXAMPLE_WIDGET_KEY
from halo_provider.sources.lists import ListSource
from tests.acceptance.sign_in_worker import CONN_ID, KEY
from tests.core.deliveries import AT_ONCE, NAMESPACE, NOTE, notes

LEASE_MARGIN = 0.5  # seconds: leases are short here
POLL = 0.2  # seconds between looks at another run's rows, and between offers to a ledger that went away
CONCURRENCY = 16  # most requests in flight of one worker
MID_FLIGHT = 0.02  # seconds from the beginning of a call until Halo has it and has not answered yet

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])
_starting = threading.Lock()  # multiprocessing's bookkeeping of children is not made for several threads


class Point(StrEnum):
    """Where a worker dies."""

    BEFORE_INTENT = "before intent"
    AFTER_INTENT = "after intent"
    AFTER_SEND = "after send"
    AFTER_ANSWER = "after the answer"
    BEFORE_COMMIT = "before commit"
    AFTER_COMMIT = "after commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker delivers, and at which row of which point it dies. Times are in seconds."""

    halo_url: str
    ledger_url: str
    rows: int
    on_in_doubt: OnInDoubt = "resend"
    lease: float = 2.0
    concurrency: int = CONCURRENCY
    batch_size: int = 50
    timeout: float = 10.0
    ledger_patience: float = 30.0
    mcp_url: str | None = None  # where rows in doubt are looked up
    ask_after: float = 60.0
    ask_else: Literal["hold", "resend"] = "hold"
    point: Point | None = None
    row: int = 0


@dataclass(frozen=True, slots=True)
class _Death:
    """Comes at one row of one point."""

    task: Task

    def comes(self, point: Point, row: int) -> None:
        """Come, if this is the point and the row is reached."""
        if point is self.task.point and row >= self.task.row:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalClaimant(LeaseHolder):
    """A lease holder that dies around its commits."""

    def __init__(self, ledger: Ledger, task: Task) -> None:
        super().__init__(ledger, NAMESPACE, task_instance=TaskInstanceRef(), lease=task.lease)
        self._death = _Death(task)
        self._rows_intended = 0
        self._rows_settled = 0

    def commit(self, *, settlements: Sequence[Settlement] = (), intents: Sequence[str] = ()) -> Commit:
        """Commit, if it lives to."""
        self._rows_intended += len(intents)
        self._rows_settled += sum(settlement.status is LedgerStatus.DELIVERED for settlement in settlements)
        if intents:
            self._death.comes(Point.BEFORE_INTENT, self._rows_intended)
        if settlements:
            self._death.comes(Point.BEFORE_COMMIT, self._rows_settled)
        commit = super().commit(settlements=settlements, intents=intents)
        if intents:
            self._death.comes(Point.AFTER_INTENT, self._rows_intended)
        if settlements:
            self._death.comes(Point.AFTER_COMMIT, self._rows_settled)
        return commit


class MortalClient(HaloClient):
    """A client that dies around its calls."""

    def __init__(self, task: Task) -> None:
        super().__init__(widget_key=EXAMPLE_WIDGET_KEY, base_url=task.halo_url, timeout=task.timeout)
        self._death = _Death(task)
        self._sent = 0
        self._answered = 0

    async def chat(self, request: Chat) -> ChatAnswer:
        """Chat, if it lives to."""
        self._sent += 1
        asyncio.get_running_loop().call_later(MID_FLIGHT, self._death.comes, Point.AFTER_SEND, self._sent)
        answer = await super().chat(request)
        self._answered += 1
        self._death.comes(Point.AFTER_ANSWER, self._answered)
        return answer


class Worker:
    """One worker process; a supervised one has a process of its own above it, as a task has in Airflow."""

    def __init__(self, task: Task, *, supervised: bool = False) -> None:
        self._reports, report = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_supervise if supervised else _work, args=(task, report), daemon=True)
        with _starting:
            self._process.start()
        report.close()
        self.pid: int = self._process.pid or 0

    def report(self, *, within: float = 60.0) -> dict[str, Any] | None:
        """Wait for its end, for so many seconds: its counts, its requests and why it stopped; None where it died."""
        if not self._reports.poll(within):
            self.kill()
            raise TimeoutError(f"a worker did not end within {within:g} s")
        with closing(self._reports):
            report: dict[str, Any] | None = None
            with suppress(EOFError):  # the end of a process without a word
                report = self._reports.recv()
        with _starting:
            self._process.join()
        return report

    def finish(self, *, within: float = 60.0) -> dict[str, Any]:
        """Wait for the report of a worker that nobody kills. Raises RuntimeError where it died all the same."""
        report = self.report(within=within)
        if report is None:
            raise RuntimeError("a worker died that nobody killed")
        return report

    def kill(self) -> None:
        """SIGKILL the process started here: of a supervised worker, the supervisor alone."""
        os.kill(self.pid, signal.SIGKILL)

    def delivering_process(self) -> psutil.Process:
        """The supervised process itself."""
        (child,) = psutil.Process(self.pid).children()
        return child


def _supervise(task: Task, report: Connection) -> None:
    child = os.fork()
    if child == 0:
        _work(task, report)
        os._exit(0)
    report.close()
    os.waitpid(child, 0)


def _work(task: Task, report: Connection) -> None:
    halo_provider.delivery.delivery.LEASE_MARGIN = LEASE_MARGIN
    halo_provider.delivery.delivery.CLAIM_POLL = POLL
    halo_provider.delivery.commit.LEDGER_POLL = POLL
    halo_provider.delivery.commit.LEDGER_TIMEOUT = task.ledger_patience
    report.send(asyncio.run(_deliver(task)))


async def _deliver(task: Task) -> dict[str, Any]:
    supervisor = os.getppid()
    with closing(Ledger.at(task.ledger_url)) as ledger:
        async with MortalClient(task) as client, AsyncExitStack() as stack:
            reader = None
            if task.mcp_url is not None:
                kept = SignIns(ledger, conn_id=CONN_ID, cipher=Fernet(KEY))
                reader = await stack.enter_async_context(HaloReader(access=StoredAccess(kept), url=task.mcp_url))
            delivered = await deliver(
                ListSource(notes(task.rows)),
                submission=NOTE,
                client=client,
                lease_holder=MortalClaimant(ledger, task),
                options=DeliveryOptions(
                    batch_size=task.batch_size,
                    concurrency=task.concurrency,
                    on_in_doubt=task.on_in_doubt,
                    ask_after=task.ask_after,
                    ask_else=task.ask_else,
                    backoff=AT_ONCE,
                ),
                reader=reader,
                alive=lambda: os.getppid() == supervisor,
            )
    return {
        **delivered.summary(),
        "requests": delivered.requests,
        "stopped": delivered.stopped,
    }
