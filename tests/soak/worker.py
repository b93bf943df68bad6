"""A delivering process of the soak: it may be killed, stopped and given another time at any moment.

`Worker` starts it from a fork server, which has everything imported already. With `fake_clocks` that server runs under
libfaketime, and every worker reads how far its clock is off from a file.
"""

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import signal
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import halo_provider.delivery.commit
import halo_provider.delivery.delivery
from halo_provider.client.client import HaloClient
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.refusals import Backoff
from halo_provider.exceptions import LedgerError
from halo_provider.ledger import Ledger, OnInDoubt, TaskInstanceRef
from halo_provider.models import Chat, ChatAnswer
from halo_provider.simulator import EXAMPLE_WIDGET_KEY
from halo_provider.sources.lists import ListSource
from halo_provider.submission import Submission, User

SUBMISSION = Submission(name="soak", key="id", user=User(id="user"), message="Row {id}: thank you.")
LEASE = 2.0  # seconds
LEASE_MARGIN = 0.5  # seconds: leases are short here
POLL = 0.2  # seconds between looks at another run's rows, and between offers to a ledger that went away
LEDGER_TIMEOUT = 5.0  # seconds in which outcomes are offered again to a ledger that went away
AT_ONCE = Backoff(base=0.01)
LIBFAKETIME = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib64/faketime/libfaketimeMT.so.1"),
)
BEGUN = "begun"  # said by a worker that sends its first row

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "halo_provider.client.transport", "psycopg2", "pymysql"])
_starting = threading.Lock()  # multiprocessing's bookkeeping of children is not made for several threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker delivers, and how. Lease and timeout are in seconds; `run` is told to Halo with every row."""

    run: str
    rows: tuple[dict[str, Any], ...]
    halo_url: str
    ledger_url: str
    namespace: str
    on_in_doubt: OnInDoubt
    folder: Path  # for the stacks of a worker that hangs, and for the offset of its clock
    clock: str
    lease: float = LEASE
    submission: Submission = SUBMISSION
    timeout: float = 1.0
    concurrency: int = 8
    batch_size: int = 10


def fake_clocks() -> bool:
    """Start the fork server under libfaketime; False where that is not installed. Monotonic time stays what it is."""
    library = next(filter(Path.exists, LIBFAKETIME), None)
    if library is None:
        return False
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # it made every wait of one thread for another take 70 ms
        "FAKETIME_DISABLE_SHM": "1",
        "FAKETIME_NO_CACHE": "1",  # a step is noticed at once
        "NO_FAKE_STAT": "1",
    }
    os.environ.update(settings)
    forkserver.ensure_running()
    for name in settings:
        del os.environ[name]
    return True


def set_clock(file: Path, *, offset: int) -> None:
    """Let the workers that read this file be so many seconds off, from now on."""
    new = file.with_suffix(".new")
    new.write_text(f"{offset:+}")
    new.replace(file)  # a worker may read it at any moment


class Worker:
    """One worker process, and what it reports."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._reports, report = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_work, args=(task, report), daemon=True)
        with _starting:
            self._process.start()
        report.close()
        self.pid: int = self._process.pid or 0
        self.begun = False
        self.ended = False
        self.summary: dict[str, Any] | None = None  # None where it died

    def look(self, *, within: float = 0.0) -> bool:
        """Take note of what it has said; whether it has ended. Waits for its end for so many seconds."""
        while not self.ended and self._reports.poll(within):
            try:
                said = self._reports.recv()
            except EOFError:  # the end of a process without a word
                self.ended = True
            else:
                self.begun = True
                if said != BEGUN:
                    self.summary = said
                    self.ended = True
        if self.ended and not self._reports.closed:
            self._reports.close()
            with _starting:
                self._process.join()
        return self.ended

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stacks(self) -> str:
        """What its threads were doing when it was last asked with SIGUSR1."""
        file = _stacks_file(self.task)
        return file.read_text() if file.exists() else ""


def _stacks_file(task: Task) -> Path:
    return task.folder / f"{task.run}.stacks"


def _work(task: Task, report: Connection) -> None:
    os.environ["FAKETIME_TIMESTAMP_FILE"] = str(task.folder / task.clock)
    halo_provider.delivery.delivery.LEASE_MARGIN = LEASE_MARGIN
    halo_provider.delivery.delivery.CLAIM_POLL = POLL
    halo_provider.delivery.commit.LEDGER_POLL = POLL
    halo_provider.delivery.commit.LEDGER_TIMEOUT = LEDGER_TIMEOUT
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it logs every connection that was cut
    with _stacks_file(task).open("w") as stacks:
        report.send(asyncio.run(_deliver(task, report, stacks=stacks)))


def _write_stacks(file: TextIO) -> None:
    """Write what every task of the loop waits for."""
    for each in asyncio.all_tasks():
        each.print_stack(file=file)
    file.flush()


async def _deliver(task: Task, report: Connection, *, stacks: TextIO) -> dict[str, Any]:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _write_stacks, stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks, chain=True)  # also where the loop itself is blocked
    supervisor = os.getppid()
    try:
        ledger = Ledger.at(task.ledger_url)
    except LedgerError as error:
        return {"stopped": str(error)}
    with closing(ledger):
        async with _SignedClient(task, report) as client:
            delivered = await deliver(
                ListSource(list(task.rows)),
                submission=task.submission,
                client=client,
                lease_holder=ledger.lease_holder(task.namespace, task_instance=TaskInstanceRef(), lease=task.lease),
                options=DeliveryOptions(
                    batch_size=task.batch_size,
                    concurrency=task.concurrency,
                    on_in_doubt=task.on_in_doubt,
                    backoff=AT_ONCE,
                ),
                alive=lambda: os.getppid() == supervisor,
            )
    return {**delivered.summary(), "requests": delivered.requests, "stopped": delivered.stopped}


class _SignedClient(HaloClient):
    """A client that tells Halo with every row which run sends it: the row's own content is the same in every run.

    It reports the first row that it sends.
    """

    def __init__(self, task: Task, report: Connection) -> None:
        super().__init__(widget_key=EXAMPLE_WIDGET_KEY, base_url=task.halo_url, timeout=task.timeout)
        self._signature = {"run": task.run}
        self._report = report
        self._has_begun = False

    async def chat(self, request: Chat) -> ChatAnswer:
        """Chat under the run's name."""
        if not self._has_begun:
            self._has_begun = True
            self._report.send(BEGUN)
        return await super().chat(request.model_copy(update={"custom_fields": self._signature}))
