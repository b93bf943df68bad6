"""One round of a soak: chaos over three workers, a calm run, and the judge."""

import json
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from halo_provider.ledger import OnInDoubt
from halo_provider.simulator import Simulator, serving
from halo_provider.simulator.limits import Limit
from tests.soak import chaos
from tests.soak.judge import Case, Evidence, Verdict, judge
from tests.soak.worker import Task, Worker, set_clock

WORKERS = 3
ROWS = 500
USERS = 200  # some have many rows, most have few
REFUSABLE = 0.01  # share of the rows that no run can send
LATENCY = (0.02, 0.25)  # seconds Halo takes to answer
TICK = 0.03  # seconds between looks at the workers, and between faults
KILLS = "kills"
STOPS = "stops"
STEPS = "clock steps"
CUTS = "database cuts"
EVERY = {STOPS: 1.5, STEPS: 1.5, CUTS: 8.0}  # seconds from one to the next, on average
KILLS_EVERY = (
    0.15,
    0.25,
    1.0,
)  # the same, of which each round has one: where workers live longer, more happens to them
RESTART = 0.3  # seconds after which a run that ended by itself is followed by the next one
STOPPED_FOR = (1.1, 2.0)  # leases
OFFSETS = (0, 3600, -3600, 120, -120, 7, -7)  # seconds by which a clock is off
CALM_RUNS = 5  # at most
CALM_LEASE = 10.0  # seconds
HANG = 60.0  # seconds without chaos in which every run ends
STACKS_WRITTEN = 0.5  # seconds until a process has written its stacks


@dataclass(slots=True, kw_only=True)
class Deeds:
    """What was done to the workers, the clocks and the database."""

    kills: int = 0
    stops: int = 0
    clock_steps: int = 0
    cuts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a round. `findings` are the judge's, and the runs that hung or died by themselves."""

    deeds: Deeds
    verdict: Verdict
    findings: list[str]
    evidence: Path | None
    seconds: float


@dataclass(kw_only=True)
class Round:
    """One Halo, one namespace of a ledger, and the workers over them.

    Every run reads the same rows in an order of its own. `cut` keeps everybody off the ledger for a while. All workers
    of a SQLite ledger share one host, and so one clock.
    """

    name: str
    ledger_url: str
    cut: Callable[[], None]
    on_in_doubt: OnInDoubt
    limit: Limit | None
    chaos_seconds: float
    chance: random.Random
    fake_clocks: bool
    deeds: Deeds = field(default_factory=Deeds)
    findings: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def play(self) -> Result:
        """Play the round from its beginning to its end."""
        self._began = time.monotonic()
        halo = Simulator(chat_latency=LATENCY, seed=self.chance.randrange(1_000_000))
        with tempfile.TemporaryDirectory(prefix="halo-soak-") as folder, serving(halo) as url, httpx.Client() as client:
            self._folder = Path(folder)
            self._halo = client
            self._url = url
            self._rows = self._some_rows()
            self._sources: dict[str, Sequence[tuple[str, str]]] = {}
            self._rage()
            self._calm()
            case = Case(
                halo_url=url,
                ledger_url=self.ledger_url,
                namespace=self.name,
                sources=self._sources,
                on_in_doubt=self.on_in_doubt,
            )
            verdict, evidence = judge(case)
        findings = [*self.findings, *verdict.findings]
        return Result(
            deeds=self.deeds,
            verdict=verdict,
            findings=[f"{self.name}, {self.on_in_doubt}: {finding}" for finding in findings],
            evidence=self._keep(case, evidence, findings) if findings else None,
            seconds=time.monotonic() - self._began,
        )

    def _some_rows(self) -> list[dict[str, Any]]:
        users = [f"user-{int(self.chance.triangular(0, USERS, 0))}" for _ in range(ROWS)]
        return [
            {"id": f"{number:03}", "user": "" if self.chance.random() < REFUSABLE else user}
            for number, user in enumerate(users)
        ]

    def _rage(self) -> None:
        """Let workers deliver and do everything to them, for the round's seconds."""
        self._order("limit", {"limit": self.limit and self.limit.model_dump(mode="json")})
        workers = [self._worker(slot) for slot in range(WORKERS)]
        stopped: dict[Worker, float] = {}  # and when each goes on
        ended: dict[Worker, float] = {}  # and when it was noticed
        cutting: threading.Thread | None = None
        now = time.monotonic()
        self._every = EVERY | {KILLS: self.chance.choice(KILLS_EVERY)}
        self._next = {deed: now + self.chance.expovariate(1 / every) for deed, every in self._every.items()}
        ends_at = now + self.chaos_seconds
        while time.monotonic() < ends_at:
            time.sleep(TICK)
            self._let_halo_fail()
            for slot, worker in enumerate(workers):
                if worker.look():
                    if worker not in ended:
                        self._note_end(worker)
                        ended[worker] = time.monotonic()
                    elif time.monotonic() > ended[worker] + RESTART:
                        workers[slot] = self._worker(slot)
            for worker in [worker for worker, goes_on_at in stopped.items() if goes_on_at <= time.monotonic()]:
                self._note(f"{worker.task.run} goes on")
                worker.send_signal(signal.SIGCONT)
                del stopped[worker]
            at_work = [
                slot for slot, each in enumerate(workers) if each.begun and not each.ended and each not in stopped
            ]
            if at_work and self._comes(KILLS):
                slot = at_work.pop(self.chance.randrange(len(at_work)))
                self._kill(workers[slot])
                workers[slot] = self._worker(slot)
            if at_work and self._comes(STOPS):
                worker = workers[self.chance.choice(at_work)]
                self._note(f"{worker.task.run} is stopped")
                worker.send_signal(signal.SIGSTOP)
                stopped[worker] = time.monotonic() + worker.task.lease * self.chance.uniform(*STOPPED_FOR)
                self.deeds.stops += 1
            if self.fake_clocks and self._comes(STEPS):
                self._step(workers[self.chance.randrange(WORKERS)].task.clock)
            if (cutting is None or not cutting.is_alive()) and self._comes(CUTS):
                self._note("the ledger is cut off")
                cutting = threading.Thread(target=self.cut)
                cutting.start()
                self.deeds.cuts += 1
        self._end(workers, stopped)
        if cutting is not None:
            cutting.join()

    def _end(self, workers: Sequence[Worker], stopped: dict[Worker, float]) -> None:
        """Kill every worker, or let them come to their ends, without further faults."""
        self._order("limit", {"limit": None})
        kill = self.chance.random() < 0.5
        for worker in workers:
            if kill:
                self._kill(worker)
            elif worker in stopped:
                worker.send_signal(signal.SIGCONT)
        if not kill:
            for worker in workers:
                self._await_end(worker)

    def _calm(self) -> None:
        """Run undisturbed, again and again as retries would, until nothing is left that another run could do."""
        undone: tuple[int, int] | None = None
        for _ in range(CALM_RUNS):
            worker = self._worker(0, calm=True)
            self._await_end(worker)
            if worker.summary is None or "read" not in worker.summary:
                return
            before, undone = undone, (worker.summary["in_doubt"], worker.summary["not_attempted"])
            if not worker.summary["stopped"] and not worker.summary["failed"] and undone in (before, (0, 0)):
                return

    def _worker(self, slot: int, *, calm: bool = False) -> Worker:
        """Start a run in this place; its source has an order of its own, and in chaos not always all rows."""
        rows = self._rows.copy()
        if self.chance.random() < 0.7:
            self.chance.shuffle(rows)
        if not calm and self.chance.random() < 0.3:
            rows = rows[: self.chance.randrange(len(rows) // 2, len(rows))]
        run = f"{len(self._sources)}{' calm' if calm else ''}"
        self._sources[run] = [(row["id"], row["user"]) for row in rows]
        clock = "clock" if self.ledger_url.startswith("sqlite") else f"clock-{slot}"
        if not (self._folder / clock).exists():
            set_clock(self._folder / clock, offset=0)
        task = Task(
            run=run,
            rows=tuple(rows),
            halo_url=self._url,
            ledger_url=self.ledger_url,
            namespace=self.name,
            on_in_doubt=self.on_in_doubt,
            folder=self._folder,
            clock=clock,
            **({"lease": CALM_LEASE, "timeout": 10.0, "concurrency": 64, "batch_size": 100} if calm else {}),
        )
        worker = Worker(task)
        self._note(f"{run} starts as process {worker.pid}, with {len(rows)} rows")
        return worker

    def _kill(self, worker: Worker) -> None:
        if worker.look():
            self._note_end(worker)
            return
        self._note(f"{worker.task.run} is killed")
        worker.send_signal(signal.SIGKILL)
        worker.look(within=HANG)
        self.deeds.kills += 1

    def _await_end(self, worker: Worker) -> None:
        if worker.look(within=HANG):
            self._note_end(worker)
            return
        worker.send_signal(signal.SIGUSR1)
        time.sleep(STACKS_WRITTEN)
        self._note(f"{worker.task.run} hangs: {worker.stacks()}")
        self.findings.append(f"run {worker.task.run} did not end within {HANG:g} s")
        worker.send_signal(signal.SIGKILL)
        worker.look(within=HANG)

    def _note_end(self, worker: Worker) -> None:
        self._note(f"{worker.task.run} ends: {worker.summary}")
        if worker.summary is None:
            self.findings.append(f"run {worker.task.run} died, and nobody killed it")

    def _step(self, clock: str) -> None:
        step = self.chance.choice(OFFSETS)
        self._note(f"{clock} is {step:+} s off")
        set_clock(self._folder / clock, offset=step)
        self.deeds.clock_steps += 1

    def _let_halo_fail(self) -> None:
        """Order one fault, once the one before has been met: at the end hardly any is left over."""
        with suppress(httpx.HTTPError):  # it is busy
            state = self._halo.get(f"{self._url}/_simulator/state", params={"details": False}).json()
            if not state["faults_left"]:
                self._order("faults", {"path": "/chat", "faults": [chaos.any_fault(self.chance)]})

    def _order(self, what: str, order: dict[str, Any]) -> None:
        self._halo.post(f"{self._url}/_simulator/{what}", json=order).raise_for_status()

    def _comes(self, deed: str) -> bool:
        """Whether it is time for the next deed of this kind; then the one after it gets its time."""
        now = time.monotonic()
        if now < self._next[deed]:
            return False
        self._next[deed] = now + self.chance.expovariate(1 / self._every[deed])
        return True

    def _note(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:7.3f} {what}")

    def _keep(self, case: Case, evidence: Evidence, findings: Sequence[str]) -> Path:
        """Write down what the judge went by, for a person."""
        with tempfile.NamedTemporaryFile("w", prefix="halo-soak-", suffix=".json", delete=False) as file:
            json.dump({"case": asdict(case), "findings": findings, "log": self.log, **asdict(evidence)}, file, indent=1)
        return Path(file.name)
