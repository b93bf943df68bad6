"""The ledger under every order of events that Hypothesis can think of: claims, crashes, late answers, time, people."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select

import halo_provider.ledger.claims
from halo_provider.ledger import Candidate, ClaimResult, LeaseHolder, Ledger, Settlement, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.clock import Times
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions
from tests.core.deliveries import NAMESPACE, rows_in

LEASE = 60.0  # seconds
KEYS = ("a", "b", "c")
PAYLOADS = ("1" * 64, "2" * 64)
WORKERS = (0, 1, 2)

MOVES = {  # what one step may make of a row, however it comes about
    None: {LedgerStatus.PENDING, LedgerStatus.REJECTED},
    LedgerStatus.PENDING: {
        LedgerStatus.PENDING,
        LedgerStatus.IN_FLIGHT,
        LedgerStatus.REJECTED,
        LedgerStatus.FAILED,
        LedgerStatus.DELIVERED,
    },
    LedgerStatus.IN_FLIGHT: {*LedgerStatus},
    LedgerStatus.IN_DOUBT: {
        LedgerStatus.IN_DOUBT,
        LedgerStatus.IN_FLIGHT,
        LedgerStatus.DELIVERED,
        LedgerStatus.REJECTED,
        LedgerStatus.PENDING,
    },
    LedgerStatus.FAILED: {LedgerStatus.FAILED, LedgerStatus.PENDING, LedgerStatus.REJECTED, LedgerStatus.DELIVERED},
    LedgerStatus.REJECTED: {LedgerStatus.REJECTED, LedgerStatus.PENDING, LedgerStatus.DELIVERED},
    LedgerStatus.DELIVERED: {LedgerStatus.DELIVERED},
}
BY_HAND_ONLY = {
    (LedgerStatus.PENDING, LedgerStatus.DELIVERED),
    (LedgerStatus.FAILED, LedgerStatus.DELIVERED),
    (LedgerStatus.REJECTED, LedgerStatus.DELIVERED),
    (LedgerStatus.IN_DOUBT, LedgerStatus.PENDING),
}

keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, min_size=1, max_size=3, unique=True)
workers = st.sampled_from(WORKERS)


@dataclass
class Worker:
    """One process start: what it may send, and what it has sent and not settled, with whether Halo took it."""

    lease_holder: LeaseHolder
    claimed: set[str] = field(default_factory=set)
    sent: dict[str, bool] = field(default_factory=dict)


class LedgerMachine(RuleBasedStateMachine):
    """Several workers and a person share one ledger; a Halo counts the rows it took."""

    ledger: Ledger  # set by the test, empty for every run

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.halo = Counter[str]()
        self.doubted: set[str] = set()
        self.known: dict[str, dict[str, Any]] = {}
        self.ever_claimed: set[str] = set()
        start = datetime(2026, 11, 1, tzinfo=UTC)
        self.patches = [
            patch.object(self.ledger, "times", lambda _db: Times(*[start + timedelta(seconds=self.seconds)] * 2)),
            patch.object(halo_provider.ledger.claims, "seconds_since_boot", lambda: self.seconds),
        ]
        for each in self.patches:
            each.start()
        self.ledger.transaction(lambda db: [db.execute(delete(table)) for table in (events, submissions)])
        self.workers = {number: self.new_worker() for number in WORKERS}

    def teardown(self) -> None:
        """Restore the clock."""
        for each in self.patches:
            each.stop()

    def new_worker(self) -> Worker:
        """A process start."""
        return Worker(self.ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(), lease=LEASE))

    @contextmanager
    def step(self, owner: str | None = None, *, by_hand: bool = False) -> Iterator[None]:
        """Compare the ledger before and after: who did what to which row."""
        before = rows_in(self.ledger)
        now = self.ledger.now()
        yield
        after = rows_in(self.ledger)
        assert before.keys() <= after.keys()
        for key, row in after.items():
            old = before.get(key)
            if old == row:
                continue
            status = old and LedgerStatus(old["status"])
            assert row["status"] in MOVES[status], (key, status, row["status"])
            assert by_hand or (status, row["status"]) not in BY_HAND_ONLY, (key, status, row["status"])
            if old is not None and old["lease_expires_at"] is not None and old["lease_expires_at"] > now:
                assert old["owner"] == owner, f"{key} was taken from its owner, whose lease lives"
            if row["status"] == LedgerStatus.IN_DOUBT:
                self.doubted.add(key)
                assert key in self.told_doubts(), f"{key} is in doubt, and its history does not tell"
        self.doubted |= self.told_doubts()
        self.known = after

    def told_doubts(self) -> set[str]:
        """The rows whose history tells that they were in doubt."""
        statement = select(events.c.row_key).where(events.c.event == LedgerStatus.IN_DOUBT.value)
        return self.ledger.transaction(lambda db: set(db.scalars(statement)))

    @rule(number=workers, wanted=some_keys, payload=st.sampled_from(PAYLOADS), hold=st.booleans(), bad=st.booleans())
    def claim(self, number: int, wanted: list[str], payload: str, hold: bool, bad: bool) -> None:  # noqa: FBT001 -- drawn
        """A worker claims, as a run's batch does; one in two batches is of rows that cannot be rendered."""
        worker = self.workers[number]
        wanted = [key for key in wanted if key not in worker.claimed and key not in worker.sent]
        candidates = [
            Candidate(row_key=key, error="no text") if bad else Candidate(row_key=key, payload_hash=payload)
            for key in wanted
        ]
        before = rows_in(self.ledger)
        now = self.ledger.now()
        with self.step(worker.lease_holder.owner):
            claims = worker.lease_holder.claim(candidates, on_in_doubt="hold" if hold else "resend")
        self.ever_claimed.update(wanted)
        assert claims.keys() == set(wanted)
        for key, claim in claims.items():
            expected = expected_result(
                before.get(key), payload=payload, bad=bad, hold=hold, owner=worker.lease_holder.owner, now=now
            )
            assert claim.result is expected, (key, before.get(key))
            if claim.result is ClaimResult.CLAIMED:
                assert self.known[key]["owner"] == worker.lease_holder.owner
                assert claim.doubtful == (self.known[key]["status"] == LedgerStatus.IN_DOUBT)
                worker.claimed.add(key)

    @rule(number=workers, taken=st.booleans())
    def send(self, number: int, taken: bool) -> None:  # noqa: FBT001 -- drawn
        """A worker commits its intents and sends, unless its claims ran out; Halo takes all of it, or none."""
        worker = self.workers[number]
        intents = sorted(worker.claimed)
        with self.step(worker.lease_holder.owner):
            commit = worker.lease_holder.commit(intents=intents)
        assert commit.intents | commit.lost_intents == set(intents)
        worker.claimed.clear()
        for key in commit.intents:
            if worker.lease_holder.lease_left <= 0:
                with self.step(worker.lease_holder.owner):
                    worker.lease_holder.commit(settlements=[self.given_back(key)])
                continue
            assert self.halo[key] == 0 or key in self.doubted, f"{key} reaches Halo again without ever being in doubt"
            self.halo[key] += taken
            worker.sent[key] = taken

    def given_back(self, key: str) -> Settlement:
        """A claim returned, as a delivery returns it."""
        return Settlement(row_key=key, status=LedgerStatus.IN_DOUBT if key in self.doubted else LedgerStatus.PENDING)

    @rule(number=workers, key=keys, ending=st.sampled_from(LedgerStatus), final=st.booleans())
    def settle(self, number: int, key: str, ending: LedgerStatus, final: bool) -> None:  # noqa: FBT001 -- drawn
        """The answer comes, perhaps late, perhaps to one that has lost the row; it says what Halo did, or nothing."""
        worker = self.workers[number]
        if key not in worker.sent:
            return
        taken = worker.sent[key]
        ending = {True: LedgerStatus.DELIVERED, False: ending}[taken and ending is not LedgerStatus.IN_DOUBT]
        if ending in {LedgerStatus.DELIVERED, LedgerStatus.IN_FLIGHT} and not taken:
            ending = LedgerStatus.IN_DOUBT
        if key in self.doubted and ending in {LedgerStatus.PENDING, LedgerStatus.FAILED}:
            ending = LedgerStatus.IN_DOUBT
        again = not final and ending in {LedgerStatus.PENDING, LedgerStatus.IN_DOUBT}
        with self.step(worker.lease_holder.owner):
            commit = worker.lease_holder.commit(
                settlements=[Settlement(row_key=key, status=ending, final=not again, session_id=f"of {number}")]
            )
        del worker.sent[key]
        assert (key in commit.lost_settlements) == (
            self.known[key]["owner"] != worker.lease_holder.owner or self.known[key]["status"] != ending
        )
        if again and not commit.lost_settlements:
            worker.claimed.add(key)

    @rule(number=workers)
    def release(self, number: int) -> None:
        """A worker gives back what it has claimed and not sent."""
        worker = self.workers[number]
        with self.step(worker.lease_holder.owner):
            worker.lease_holder.release(sorted(worker.claimed))
        for key in worker.claimed:
            row = self.known[key]
            assert row["owner"] != worker.lease_holder.owner or row["lease_expires_at"] is None
        worker.claimed.clear()

    @rule(number=workers)
    def renew(self, number: int) -> None:
        """A worker extends its leases."""
        owner = self.workers[number].lease_holder.owner
        with self.step(owner):
            self.workers[number].lease_holder.renew()

    @rule(number=workers)
    def crash(self, number: int) -> None:
        """A worker dies with all it knew; another process starts in its place."""
        self.workers[number] = self.new_worker()

    @rule(seconds=st.sampled_from([1.0, LEASE / 3, LEASE, 2 * LEASE]))
    def time_passes(self, seconds: float) -> None:
        """Leases run out."""
        self.seconds += seconds

    @rule(what=st.sampled_from(["requeue", "resolve", "reject"]), key=keys)
    def by_hand(self, what: str, key: str) -> None:
        """A person settles a row, unless its lease lives."""
        admin = LedgerAdmin(self.ledger, actor="somebody")
        wanted = RowFilter(namespace=NAMESPACE, row_keys=(key,))
        with self.step(by_hand=True):
            match what:
                case "requeue":
                    admin.requeue(wanted)
                case "resolve":
                    admin.resolve(wanted, session_ids={key: "found"})
                case "reject":
                    admin.reject(wanted, reason="not wanted")

    @invariant()
    def every_key_ever_claimed_has_one_status(self) -> None:
        """The sum of the statuses is the number of keys: none is forgotten."""
        counts = RowReader(self.ledger).counts(RowFilter(namespace=NAMESPACE))
        assert sum(counts.values()) == len(self.ever_claimed)

    @invariant()
    def row_that_halo_took_is_delivered_or_in_flight_or_was_in_doubt(self) -> None:
        """The ledger never says that Halo does not have such a row, unless it was in doubt and a person decided."""
        for key, times in self.halo.items():
            status = self.known[key]["status"]
            if times and key not in self.doubted:
                assert status in {LedgerStatus.DELIVERED, LedgerStatus.IN_FLIGHT}, (key, status)

    @invariant()
    def row_in_flight_has_an_owner_and_a_lease(self) -> None:
        """Otherwise no claim would find out that it is in doubt."""
        for row in self.known.values():
            assert row["status"] != LedgerStatus.IN_FLIGHT or (row["owner"] and row["lease_expires_at"])


def expected_result(  # the rules of claims, written a second time
    row: dict[str, Any] | None, *, payload: str, bad: bool, hold: bool, owner: str, now: datetime
) -> ClaimResult:
    """What a claim must answer."""
    if row is None:
        return ClaimResult.REJECTED if bad else ClaimResult.CLAIMED
    if row["status"] == LedgerStatus.DELIVERED:
        return ClaimResult.DELIVERED
    lives = row["lease_expires_at"] is not None and row["lease_expires_at"] > now
    if lives and row["owner"] != owner:
        return ClaimResult.BUSY
    if bad or (row["status"] == LedgerStatus.REJECTED and row["payload_hash"] == payload):
        return ClaimResult.REJECTED
    if hold and row["status"] in {LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT}:
        return ClaimResult.IN_DOUBT
    return ClaimResult.CLAIMED


@pytest.mark.parametrize("server", ["sqlite", "postgres", "mariadb"])
def test_row_requeued_by_hand_after_a_crash_may_reach_halo_twice(server: str, request: pytest.FixtureRequest) -> None:
    """The machine's steps that Hypothesis seldom finds: claim, send, 60 s, requeue by hand, claim, send."""
    with closing(Ledger.at(request.getfixturevalue(f"{server}_ledger_url"))) as ledger:
        machine = type("Machine", (LedgerMachine,), {"ledger": ledger})()
        try:
            for number in WORKERS[:2]:
                machine.claim(number, ["a"], PAYLOADS[0], hold=False, bad=False)
                machine.send(number, taken=True)
                machine.time_passes(LEASE)
                machine.by_hand("requeue", "a")
                machine.row_that_halo_took_is_delivered_or_in_flight_or_was_in_doubt()
        finally:
            machine.teardown()
        assert machine.halo["a"] == 2


def explore(ledger: Ledger, *, examples: int, steps: int) -> None:
    """Run the machine."""
    machine = type("Machine", (LedgerMachine,), {"ledger": ledger})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_sqlite_ledger_keeps_its_rules_in_any_order_of_events() -> None:
    """No illegal move, no live lease taken over, no second acceptance without doubt, and no key forgotten."""
    ledger = Ledger.at("sqlite://")
    explore(ledger, examples=150, steps=40)
    ledger.close()


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_database_ledger_keeps_its_rules_in_any_order_of_events(server: str, request: pytest.FixtureRequest) -> None:
    """The same where several hosts share it; few examples, as each step is some round trips."""
    ledger = Ledger.at(request.getfixturevalue(f"{server}_ledger_url"))
    explore(ledger, examples=8, steps=30)
    ledger.close()
