"""The proof: workers killed, orphaned, doubled and cut off from their ledger, and what became of every row.

``python -m tests.acceptance.proof`` plays every night on every ledger that answers, prints the table as Markdown, and
writes it into docs/explanation/proof.md where all of them were played and the promise was kept.
Of every night it is required that no row is lost, that with on_in_doubt="hold" no row reaches Halo twice, and that
with "resend" only rows that were in doubt do, at most as many as were in flight. With "ask" rows in doubt are looked
up, in a Halo that finds its conversations up to LAG seconds late, and whose tools are others on each ledger: none is
lost, none is sent twice, and none is left in doubt, without a person. Where the tools do not answer, what
holds for "hold" or for "resend" holds, as ask_else says.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
from sqlalchemy import Connection, create_engine, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from halo_provider.ledger import Ledger, OnInDoubt
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events
from halo_provider.simulator import Fault, Reading, Simulator, serving
from halo_provider.simulator.reading import Variant
from tests import figures
from tests.acceptance.crash_worker import CONCURRENCY, Point, Task, Worker
from tests.acceptance.sign_in_worker import sign_in_at
from tests.core.deliveries import NAMESPACE, NOTE, note, notes, rows_in
from tests.core.silent_proxy import silent_proxy
from tests.soak.worker import Task as SoakTask
from tests.soak.worker import Worker as SoakWorker
from tests.soak.worker import fake_clocks, set_clock

PAGE = figures.DOCS / "explanation" / "proof.md"
ROWS = 200
LATENCY = (0.03, 0.08)  # seconds Halo takes to answer
OUTAGE = 1.5  # seconds a ledger is away
RETRIES = 3  # runs after a night; on a busy machine a lease of 2 s may end one of them early
ORPHAN_END = 10.0  # seconds in which an orphan must have stopped by itself
ROWS_OF_USER = 5  # where several rows have the same user
LONG_LEASE = 30.0  # seconds: no lease runs out by itself
CLOCK_OFFSETS = (3600, -3600, 120, 0)  # seconds
PORTS = {"postgresql": 5432, "mysql": 3306}
PATIENCE = 60.0  # seconds for anything to come about
SERVERS = {
    "PostgreSQL": ("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test"),
    "MariaDB": ("HALO_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4"),
}
LEDGERS = ("SQLite", *SERVERS)
_CONNECTIONS = text("SELECT id FROM information_schema.processlist WHERE db = :name")
MCP = "/api/mcp"
READABLE: tuple[Variant, ...] = ("structured", "text", "paged")
POLICIES = ("resend", "hold", "ask", "ask or hold, no answer", "ask or resend, no answer")
LAG = 10.0  # seconds at most until Halo finds a conversation
ASK_AFTER = 12.0  # seconds
ASKING_RUN = 240.0  # seconds for a run that looks rows up, some of them again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is done about rows in doubt, and how Halo's tools answer: in a way of theirs, or not at all."""

    on_in_doubt: OnInDoubt
    ask_else: Literal["hold", "resend"] = "hold"
    variant: Variant | None = None

    @classmethod
    def of(cls, name: str, *, variant: Variant) -> "Policy":
        """The policy that the table calls so."""
        if name == "ask":
            return cls(on_in_doubt="ask", variant=variant)
        if name in get_args(OnInDoubt):
            return cls(on_in_doubt=name)  # type: ignore[arg-type]
        return cls(on_in_doubt="ask", ask_else="resend" if "resend" in name else "hold")

    @property
    def judged_as(self) -> OnInDoubt:
        """The policy whose promise holds."""
        return self.on_in_doubt if self.on_in_doubt != "ask" or self.variant else self.ask_else


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the rows of one night."""

    rows: int
    in_flight: int  # by the ledger, when the worker died
    doubted: frozenset[str]  # rows that were ever in doubt, by their history or at the death
    lost: frozenset[str]  # neither with Halo nor accounted for
    twice: frozenset[str]  # accepted by Halo more than once
    left: frozenset[str]  # in doubt at the end, where no person settled them
    seconds: float

    def faults(self, policy: Policy, *, bound: int) -> list[str]:
        """What of the promise was not kept."""
        on_in_doubt = policy.judged_as
        found = []
        if self.lost:
            found.append(f"lost {sorted(self.lost)}")
        if self.twice and on_in_doubt != "resend":
            found.append(f"sent twice under {on_in_doubt} {sorted(self.twice)}")
        if self.left:
            found.append(f"left in doubt {sorted(self.left)}")
        if self.doubted and not bound:
            found.append(f"in doubt without a reason {sorted(self.doubted)}")
        if not self.twice <= self.doubted:
            found.append(f"sent twice without doubt {sorted(self.twice - self.doubted)}")
        if self.in_flight > bound or len(self.twice) > bound:
            found.append(f"{self.in_flight} in flight and {len(self.twice)} twice, more than {bound}")
        return found


@dataclass(kw_only=True)
class Stage:
    """One Halo, one ledger, and the workers over them."""

    task: Task
    policy: Policy
    halo: Simulator
    ledger: Ledger
    cut_off: Callable[[], None]  # makes the ledger unreachable for OUTAGE seconds
    folder: Path  # for what a night writes
    in_flight: set[str] = field(default_factory=set)

    def accepted(self) -> Counter[str]:
        """How often Halo took each row, by row key."""
        return Counter(chat.message.removeprefix("Note ").removesuffix(".") for chat in self.halo.chats)

    def wait_for_chats(self, number: int) -> None:
        """Return as soon as Halo has taken so many."""
        give_up_at = time.monotonic() + PATIENCE
        while len(self.halo.chats) < number:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"Halo got {len(self.halo.chats)} of {number} chats")
            time.sleep(0.005)

    def note_in_flight(self, dead: Worker) -> None:
        """Remember what the ledger has in flight of a dead worker."""
        self.in_flight |= {
            key
            for key, row in rows_in(self.ledger).items()
            if row["status"] == LedgerStatus.IN_FLIGHT and f":{dead.pid}:" in row["owner"]
        }

    def worker(
        self, run: str, rows: Sequence[dict[str, Any]], *, clock: str = "clock", lease: float = 2.0
    ) -> SoakWorker:
        """A worker over rows of its own, whose clock can step."""
        return SoakWorker(
            SoakTask(
                run=run,
                rows=tuple(rows),
                submission=NOTE,
                halo_url=self.task.halo_url,
                ledger_url=self.task.ledger_url,
                namespace=NAMESPACE,
                on_in_doubt=self.policy.judged_as,
                folder=self.folder,
                clock=clock,
                lease=lease,
                timeout=self.task.timeout,
                concurrency=CONCURRENCY,
            )
        )

    @property
    def patience(self) -> float:
        """Seconds for a run to end."""
        return ASKING_RUN if self.policy.on_in_doubt == "ask" else PATIENCE

    def run(self) -> None:
        """A run that nothing happens to."""
        Worker(self.task).finish(within=self.patience)

    def doubted(self) -> set[str]:
        """The rows whose history tells of doubt."""
        told = select(events.c.row_key).where(events.c.event == LedgerStatus.IN_DOUBT)
        return set(self.ledger.transaction(lambda db: db.scalars(told).all()))

    def settle_by_hand(self) -> None:
        """Do what a person would for rows held back: look them up in Halo, resolve or requeue them."""
        accepted = self.accepted()
        admin = LedgerAdmin(self.ledger, actor="proof")
        for key, row in rows_in(self.ledger).items():
            if row["status"] == LedgerStatus.IN_DOUBT:
                wanted = RowFilter(namespace=NAMESPACE, row_keys=(key,))
                if accepted[key]:
                    admin.resolve(wanted, session_ids={key: "sess_found_in_halo"})
                else:
                    admin.requeue(wanted)

    def lost(self, *, at_the_end: bool) -> set[str]:
        """The rows whose status the ledger has wrong; at the end also those that Halo neither has nor rejected."""
        accepted, known = self.accepted(), rows_in(self.ledger)
        lost = set()
        for key in map(str, range(self.task.rows)):
            status = known[key]["status"] if key in known else None
            if accepted[key]:
                right = status == LedgerStatus.DELIVERED or (status == LedgerStatus.IN_DOUBT and not at_the_end)
            else:
                right = status == LedgerStatus.REJECTED if at_the_end else status != LedgerStatus.DELIVERED
            if not right:
                lost.add(key)
        return lost

    def bring_home(self) -> None:
        """Settle what is held back and run again, as retries would, until nothing is left, or it is no use."""
        for _ in range(RETRIES):
            if self.policy.judged_as != "ask":
                self.settle_by_hand()
            self.run()
            if not self.lost(at_the_end=True):
                return


Night = Callable[[Stage, random.Random], None]


def killed_at(point: Point) -> Night:
    """A worker dies at the point; its successor begins at once, while the dead one's lease still lives."""

    def night(stage: Stage, chance: random.Random) -> None:
        row = stage.task.rows // 2 if point is Point.AFTER_COMMIT else chance.randrange(1, stage.task.rows * 3 // 4)
        mortal = Worker(replace(stage.task, point=point, row=row))
        while (report := mortal.report(within=stage.patience)) is not None:
            if report["stopped"] is None:
                raise RuntimeError(f"the worker outlived its death {point} at row {row}")
            # A machine that stood still for longer than the lease ended the run first: the next one dies at once.
            mortal = Worker(replace(stage.task, point=point, row=1))
        stage.note_in_flight(mortal)
        stage.run()

    return night


def orphaned(stage: Stage, _chance: random.Random) -> None:
    """The supervisor is killed, its worker is not; the successor begins beside it."""
    worker = Worker(stage.task, supervised=True)
    stage.wait_for_chats(stage.task.rows // 4)
    orphan = worker.delivering_process()
    worker.kill()
    successor = Worker(stage.task)
    _, alive = psutil.wait_procs([orphan], timeout=ORPHAN_END)
    if alive:
        raise TimeoutError(f"the orphan lived on for {ORPHAN_END:g} s")
    worker.finish(within=stage.patience)
    successor.finish(within=stage.patience)


def side_by_side(stage: Stage, _chance: random.Random) -> None:
    """Two runs over the same rows at once."""
    for worker in [Worker(stage.task), Worker(stage.task)]:
        worker.finish(within=stage.patience)


def side_by_side_one_killed(stage: Stage, chance: random.Random) -> None:
    """The same, and one of them dies on the way."""
    row = chance.randrange(10, stage.task.rows // 4)
    mortal = Worker(replace(stage.task, point=Point.AFTER_ANSWER, row=row))
    other = Worker(stage.task)
    if mortal.report(within=stage.patience) is None:
        stage.note_in_flight(mortal)
    other.finish(within=stage.patience)


def cut_off_from_the_ledger(stage: Stage, _chance: random.Random) -> None:
    """The ledger goes away in mid-run and comes back; what the run left is the next one's."""
    worker = Worker(stage.task)
    stage.wait_for_chats(stage.task.rows // 4)
    stage.cut_off()
    worker.finish(within=stage.patience)
    stage.run()


def without_a_ledger_for_long(stage: Stage, chance: random.Random) -> None:
    """It stays away for longer than a run tries to record what it sent."""
    stage.task = replace(stage.task, ledger_patience=OUTAGE / 3)
    cut_off_from_the_ledger(stage, chance)


def faulty_halo(stage: Stage, chance: random.Random) -> None:
    """Halo does everything wrong that it can, now and then; a run that it refuses is followed by another one."""
    stage.task = replace(stage.task, timeout=1.0)
    kinds = [
        Fault.rate_limited(retry_after=0.05),
        Fault.rate_limited(retry_after=1, as_http_date=True),
        Fault.status(500),
        Fault.status(500, accepted=True),
        Fault.status(502, accepted=True),
        Fault.status(503, headers={"Retry-After": "0.05"}),
        Fault.status(504, accepted=True),
        Fault.slow(0.3),
        Fault.slow(1.5),
        Fault.drop_before_acceptance(),
        Fault.drop_after_acceptance(),
        Fault.half_answer(),
        Fault.garbage(),
        Fault.invalid_json(),
        Fault.missing_session_id(),
        Fault.silence(accepted=True),
        Fault.silence(accepted=False),
    ]
    script: list[Fault | None] = [*kinds, *kinds, *[None] * (3 * len(kinds))]
    chance.shuffle(script)
    stage.halo.script(path="/chat", faults=[*script, Fault.status(401)])
    for row_key in ("3", "5"):
        stage.halo.script_for(user_id=f"user-{row_key}", faults=[Fault.status(400)] * 5)
    stage.run()
    stage.run()


def opposite_orders(stage: Stage, _chance: random.Random) -> None:
    """A dead run holds a row of each user; behind it two runs have the users' rows in opposite orders."""
    users = stage.task.rows // ROWS_OF_USER
    rows = [
        note(str(number), user=f"user-{number % users}", text=f"Note {number}.") for number in range(stage.task.rows)
    ]
    dead = stage.worker("dead", rows[:users])
    stage.wait_for_chats(1)
    dead.send_signal(signal.SIGKILL)
    stage.note_in_flight(dead)
    ended([stage.worker("onwards", rows), stage.worker("backwards", rows[::-1])])


def clocks_step(stage: Stage, _chance: random.Random) -> None:
    """Two runs over the same rows, whose hosts' clocks step to and fro; on SQLite they share a host and its clock."""
    clocks = ["clock-0", "clock-0" if stage.task.ledger_url.startswith("sqlite") else "clock-1"]
    for clock in clocks:
        set_clock(stage.folder / clock, offset=0)
    workers = [
        stage.worker(f"run {number}", notes(stage.task.rows), clock=clock, lease=LONG_LEASE)
        for number, clock in enumerate(clocks)
    ]
    for step, offset in enumerate(CLOCK_OFFSETS):
        stage.wait_for_chats(stage.task.rows * (step + 1) // (len(CLOCK_OFFSETS) + 2))
        set_clock(stage.folder / clocks[step % 2], offset=offset)
    ended(workers)


def silent_ledger(stage: Stage, _chance: random.Random) -> None:
    """The ledger's server says nothing any more, and no connection breaks; the run must end by its own patience."""
    stage.task = replace(stage.task, ledger_patience=OUTAGE)
    url = make_url(stage.task.ledger_url)
    with silent_proxy(url.host or "127.0.0.1", url.port or PORTS[url.get_backend_name()]) as proxy:
        behind = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        worker = Worker(replace(stage.task, ledger_url=behind))
        stage.wait_for_chats(stage.task.rows // 4)
        proxy.silence()
        if worker.finish(within=max(120.0, stage.patience))["stopped"] is None:
            raise RuntimeError("the run did not notice that its ledger is silent")
    stage.run()


def deleted_ledger(stage: Stage, _chance: random.Random) -> None:
    """The ledger's file is gone in mid-run: nothing more may be sent. Its owner finds it again."""
    stage.task = replace(stage.task, ledger_patience=OUTAGE)
    worker = Worker(stage.task)
    stage.wait_for_chats(stage.task.rows // 4)
    path = Path(make_url(stage.task.ledger_url).database or "")
    files = [file for suffix in ("", "-wal", "-shm") if (file := path.with_name(path.name + suffix)).exists()]
    for file in files:
        file.rename(stage.folder / file.name)
    if worker.finish(within=stage.patience)["stopped"] is None:
        raise RuntimeError("the run did not notice that its ledger is gone")
    if path.exists():
        raise RuntimeError("the run made a ledger in the place of the one that is gone")
    for file in files:
        (stage.folder / file.name).rename(file)
    stage.run()


def ended(workers: Sequence[SoakWorker]) -> None:
    """Wait for the ends of runs that nobody kills."""
    for worker in workers:
        if not worker.look(within=PATIENCE):
            worker.send_signal(signal.SIGKILL)
            raise TimeoutError(f"run {worker.task.run} did not end within {PATIENCE:g} s")
        if worker.summary is None:
            raise RuntimeError(f"run {worker.task.run} died, and nobody killed it")


NIGHTS: dict[str, Night] = {
    **{f"SIGKILL {point}{' of half' * (point is Point.AFTER_COMMIT)}": killed_at(point) for point in Point},
    "supervisor killed, orphan beside its successor": orphaned,
    "two runs at once over the same rows": side_by_side,
    "two runs at once, one of them killed": side_by_side_one_killed,
    "ledger restarted in mid-run": cut_off_from_the_ledger,
    "ledger away for longer than a run waits": without_a_ledger_for_long,
    "Halo faults of every kind": faulty_halo,
    "two runs in opposite orders behind a dead run's rows": opposite_orders,
    "two runs at once, their clocks step by hours": clocks_step,
    "ledger falls silent in mid-run": silent_ledger,
    "ledger's file deleted in mid-run, and restored": deleted_ledger,
}
LEDGERS_OF = {silent_ledger: tuple(SERVERS), deleted_ledger: ("SQLite",)}


def policy_of(night: str, policy: str, ledger_name: str) -> Policy:
    """The policy of one cell: Halo's tools are others on each ledger, and every night meets all of them."""
    turn = list(NIGHTS).index(night) + LEDGERS.index(ledger_name)
    return Policy.of(policy, variant=READABLE[turn % len(READABLE)])


def cells_on(ledgers: Sequence[str]) -> list[tuple[str, str]]:
    """Every night with every ledger on which it can happen."""
    return [
        (name, ledger)
        for name, night in NIGHTS.items()
        for ledger in ledgers
        if ledger in LEDGERS_OF.get(night, LEDGERS)
    ]


def play(
    name: str,
    ledger_name: str,
    policy: Policy,
    *,
    rows: int = ROWS,
    seed: int = 0,
    lag: float = LAG,
    ask_after: float = ASK_AFTER,
) -> Verdict:
    """Play one night; afterwards settle by hand what is held back, and let the next run bring everything home."""
    began = time.monotonic()
    reading = Reading(variant=policy.variant or "structured", lag=(0.0, lag), consent="approved")
    halo = Simulator(chat_latency=LATENCY, seed=seed, reading=reading)
    with (
        serving(halo) as url,
        ledger_place(ledger_name) as (ledger_url, cut_off),
        tempfile.TemporaryDirectory(prefix="halo-proof-") as folder,
    ):
        task = Task(
            halo_url=url,
            ledger_url=ledger_url,
            rows=rows,
            on_in_doubt=policy.on_in_doubt,
            ask_else=policy.ask_else,
            ask_after=ask_after,
        )
        with closing(Ledger.at(ledger_url)) as ledger:
            if policy.on_in_doubt == "ask":
                task = replace(task, mcp_url=f"{url}{MCP}")
                sign_in_at(f"{url}{MCP}", ledger)
                halo.always(MCP, None if policy.variant else Fault.status(403))
            stage = Stage(task=task, policy=policy, halo=halo, ledger=ledger, cut_off=cut_off, folder=Path(folder))
            NIGHTS[name](stage, random.Random(f"{seed} {name} {ledger_name} {policy}"))
            lost = stage.lost(at_the_end=False)
            stage.bring_home()
            return Verdict(
                rows=rows,
                in_flight=len(stage.in_flight),
                doubted=frozenset(stage.doubted() | stage.in_flight),
                lost=frozenset(lost | stage.lost(at_the_end=True)),
                twice=frozenset(key for key, times in stage.accepted().items() if times > 1),
                left=frozenset(key for key, row in rows_in(ledger).items() if row["status"] == LedgerStatus.IN_DOUBT),
                seconds=time.monotonic() - began,
            )


def bound_of(name: str, verdict: Verdict) -> int:
    """How many rows may be sent twice: those in flight, or those to which Halo gave no trustworthy answer."""
    if NIGHTS[name] is clocks_step:
        return 0
    return len(verdict.doubted) if NIGHTS[name] is faulty_halo else CONCURRENCY


def two_workers(ledger_name: str, *, rows: int) -> tuple[int, int, float]:
    """Two processes deliver the same rows: the tickets, the rows that arrived twice, and the seconds."""
    halo = Simulator(record_bodies=False)
    with serving(halo) as url, ledger_place(ledger_name) as (ledger_url, _):
        task = Task(halo_url=url, ledger_url=ledger_url, rows=rows, lease=30.0, concurrency=64, batch_size=500)
        began = time.monotonic()
        for worker in [Worker(task), Worker(task)]:
            worker.finish(within=300.0)
        accepted = Counter(chat.user_id for chat in halo.chats)
        return len(halo.chats), sum(times > 1 for times in accepted.values()), time.monotonic() - began


def reachable(ledger_name: str) -> bool:
    """Whether a ledger can be had there."""
    try:
        with ledger_place(ledger_name):
            return True
    except SQLAlchemyError:
        return False


@contextmanager
def ledger_place(ledger_name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A database of its own for one night, and what cuts everybody off from it for a while."""
    if ledger_name == "SQLite":
        with tempfile.TemporaryDirectory(prefix="halo-proof-") as folder:
            url = f"sqlite:///{Path(folder) / 'ledger.db'}"
            yield url, lambda: _lock_sqlite(url)
        return
    variable, default = SERVERS[ledger_name]
    server_url = make_url(os.environ.get(variable, default))
    name = f"halo_proof_{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        server = create_engine(server_url, isolation_level="AUTOCOMMIT")
        stack.callback(server.dispose)
        db = stack.enter_context(server.connect())
        db.execute(text(f"CREATE DATABASE {name}"))
        force = " WITH (FORCE)" if ledger_name == "PostgreSQL" else ""
        stack.callback(lambda: db.execute(text(f"DROP DATABASE {name}{force}")))
        restart = _restart_postgresql if ledger_name == "PostgreSQL" else _restart_mariadb
        yield server_url.set(database=name).render_as_string(hide_password=False), lambda: restart(db, name)


def _lock_sqlite(url: str) -> None:
    """Hold the file's lock, so that nobody else can write."""
    engine = create_engine(url)
    with closing(engine.raw_connection()) as connection:
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(OUTAGE)
        connection.rollback()
    engine.dispose()


def _restart_postgresql(db: Connection, name: str) -> None:
    """End every connection, and let nobody in for a while."""
    db.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
    db.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name})
    time.sleep(OUTAGE)
    db.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))


def _restart_mariadb(db: Connection, name: str) -> None:
    """End every connection again and again: MariaDB cannot close one database."""
    again_until = time.monotonic() + OUTAGE
    while time.monotonic() < again_until:
        for connection_id in db.scalars(_CONNECTIONS, {"name": name}).all():
            with suppress(SQLAlchemyError):  # it may have ended by itself
                db.execute(text(f"KILL {connection_id}"))
        time.sleep(0.02)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the page; 0 if the promise was kept everywhere."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.proof", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="of every night (default: %(default)s)")
    parser.add_argument("--two-workers-rows", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES, help="(default: all)")
    parser.add_argument("--jobs", type=int, default=6, help="nights at once (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows at which workers die (default: %(default)s)")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/explanation/proof.md")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    ledgers = [name for name in LEDGERS if reachable(name)]
    clocks = fake_clocks()
    cells = [(night, policy, ledger) for night, ledger in cells_on(ledgers) for policy in options.policies]
    done = Counter[str]()

    def one(cell: tuple[str, str, str]) -> Verdict:
        night, _, ledger = cell
        verdict = play(night, ledger, policy_of(*cell), rows=options.rows, seed=options.seed)
        done["nights"] += 1
        print(f"\r{done['nights']} of {len(cells)} nights", end="", file=sys.stderr, flush=True)
        return verdict

    with ThreadPoolExecutor(options.jobs) as threads:
        verdicts = dict(zip(cells, threads.map(one, cells), strict=True))
    print(file=sys.stderr)
    broken = [
        f"{night}, {policy}, {ledger}: {fault}"
        for (night, policy, ledger), verdict in verdicts.items()
        for fault in verdict.faults(policy_of(night, policy, ledger), bound=bound_of(night, verdict))
    ]
    lines = [
        *figures.wrapped(
            f"{figures.today()}: {figures.machine()}. {options.rows} rows a scenario, at most {CONCURRENCY} of them",
            f"in flight; {', '.join(ledgers)}, in this order.",
        ),
        "",
        *table(verdicts, ledgers),
    ]
    if not clocks:
        lines += ["", "No clock stepped: libfaketime is not installed here."]
    for ledger in ledgers[1:2] or ledgers:
        rows = options.two_workers_rows
        tickets, doubles, seconds = two_workers(ledger, rows=rows)
        found = f"{tickets:,} tickets, {doubles} doubles, {seconds:.0f} s"
        lines += ["", f"Two workers, one {ledger} ledger, the same {rows:,} rows: {found}."]
        if (tickets, doubles) != (rows, 0):
            broken.append(f"two workers on {ledger}: {tickets} tickets, {doubles} doubles")
    print("\n".join(lines))
    print(f"All of it in {time.monotonic() - began:.0f} s.")
    for fault in broken:
        print(f"BROKEN: {fault}", file=sys.stderr)
    is_whole = clocks and not broken and set(ledgers) == set(LEDGERS) and set(options.policies) == set(POLICIES)
    if is_whole and not options.no_page:
        figures.renew(PAGE, "proof", lines)
    elif not options.no_page:
        print(f"{PAGE.name} is left as it is: it has only whole tables, where the promise was kept.", file=sys.stderr)
    return 1 if broken else 0


def table(verdicts: dict[tuple[str, str, str], Verdict], ledgers: Sequence[str]) -> Iterator[str]:
    """The verdicts as Markdown, a line for every night and policy."""
    yield "| What happens | `on_in_doubt` | Rows lost | In doubt | Sent twice | Bound | Left in doubt |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for night in NIGHTS:
        for policy in dict.fromkeys(policy for _, policy, _ in verdicts):
            found = [verdicts.get((night, policy, ledger)) for ledger in ledgers]
            lost, doubted, twice, left = (
                ", ".join(str(len(getattr(verdict, rows))) if verdict else "-" for verdict in found)
                for rows in ("lost", "doubted", "twice", "left")
            )
            bounds = [bound_of(night, verdict) if "resend" in policy else 0 for verdict in found if verdict]
            bound = ", ".join(map(str, bounds if len(set(bounds)) > 1 else bounds[:1]))
            yield f"| {night} | {policy} | {lost} | {doubted} | {twice} | {bound} | {left} |"


if __name__ == "__main__":
    sys.exit(main())
