"""The ledger under every order of events that Hypothesis can think of: claims, crashes, late answers, time, people."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete

import halo_provider.ledger.ledger
from halo_provider.ledger.admin import Records, RowFilter
from halo_provider.ledger.ledger import Attempt, Candidate, Claimant, Ledger, Settlement, Standing
from halo_provider.ledger.statuses import Status
from halo_provider.ledger.tables import events, submissions
from tests.core.deliveries import NAMESPACE, rows_in

LEASE = 60.0  # seconds
KEYS = ("a", "b", "c")
PAYLOADS = ("1" * 64, "2" * 64)
WORKERS = (0, 1, 2)

MOVES = {  # what one step may make of a row, however it comes about
    None: {Status.PENDING, Status.REJECTED},
    Status.PENDING: {Status.PENDING, Status.IN_FLIGHT, Status.REJECTED, Status.FAILED, Status.DELIVERED},
    Status.IN_FLIGHT: {*Status},
    Status.IN_DOUBT: {Status.IN_DOUBT, Status.IN_FLIGHT, Status.DELIVERED, Status.REJECTED, Status.PENDING},
    Status.FAILED: {Status.FAILED, Status.PENDING, Status.REJECTED, Status.DELIVERED},
    Status.REJECTED: {Status.REJECTED, Status.PENDING, Status.DELIVERED},
    Status.DELIVERED: {Status.DELIVERED},
}
BY_HAND_ONLY = {
    (Status.PENDING, Status.DELIVERED),
    (Status.FAILED, Status.DELIVERED),
    (Status.REJECTED, Status.DELIVERED),
    (Status.IN_DOUBT, Status.PENDING),
}

keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, min_size=1, max_size=3, unique=True)
workers = st.sampled_from(WORKERS)


@dataclass
class Worker:
    """One process start: what it may send, and what it has sent and not settled, with whether Halo took it."""

    claimant: Claimant
    claimed: set[str] = field(default_factory=set)
    sent: dict[str, bool] = field(default_factory=dict)


class LedgerMachine(RuleBasedStateMachine):
    """Several workers and a person over one ledger, before a Halo that counts what it took."""

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
            patch.object(self.ledger, "now", lambda: start + timedelta(seconds=self.seconds)),
            patch.object(halo_provider.ledger.ledger, "time", SimpleNamespace(monotonic=lambda: self.seconds)),
        ]
        for each in self.patches:
            each.start()
        self.ledger.transaction(lambda db: [db.execute(delete(table)) for table in (events, submissions)])
        self.workers = {number: self.new_worker() for number in WORKERS}

    def teardown(self) -> None:
        """Give the clock back."""
        for each in self.patches:
            each.stop()

    def new_worker(self) -> Worker:
        """A process start."""
        return Worker(self.ledger.claimant(NAMESPACE, attempt=Attempt(), lease=LEASE))

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
            status = old and Status(old["status"])
            assert row["status"] in MOVES[status], (key, status, row["status"])
            assert by_hand or (status, row["status"]) not in BY_HAND_ONLY, (key, status, row["status"])
            if old is not None and old["lease_expires_at"] is not None and old["lease_expires_at"] > now:
                assert old["owner"] == owner, f"{key} was taken from its owner, whose lease lives"
            if row["status"] == Status.IN_DOUBT:
                self.doubted.add(key)
        self.known = after

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
        with self.step(worker.claimant.owner):
            claims = worker.claimant.claim(candidates, on_in_doubt="hold" if hold else "resend")
        self.ever_claimed.update(wanted)
        assert claims.keys() == set(wanted)
        for key, claim in claims.items():
            expected = expected_standing(
                before.get(key), payload=payload, bad=bad, hold=hold, owner=worker.claimant.owner, now=now
            )
            assert claim.standing is expected, (key, before.get(key))
            if claim.standing is Standing.CLAIMED:
                assert self.known[key]["owner"] == worker.claimant.owner
                assert claim.doubtful == (self.known[key]["status"] == Status.IN_DOUBT)
                worker.claimed.add(key)

    @rule(number=workers, taken=st.booleans())
    def send(self, number: int, taken: bool) -> None:  # noqa: FBT001 -- drawn
        """A worker commits its intents and sends, unless its claims ran out; Halo takes all of it, or none."""
        worker = self.workers[number]
        intents = sorted(worker.claimed)
        with self.step(worker.claimant.owner):
            commit = worker.claimant.commit(intents=intents)
        assert commit.intents | commit.lost_intents == set(intents)
        worker.claimed.clear()
        for key in commit.intents:
            if worker.claimant.lease_left <= 0:
                with self.step(worker.claimant.owner):
                    worker.claimant.commit(settlements=[self.given_back(key)])
                continue
            assert self.halo[key] == 0 or key in self.doubted, f"{key} reaches Halo again without ever being in doubt"
            self.halo[key] += taken
            worker.sent[key] = taken

    def given_back(self, key: str) -> Settlement:
        """A claim returned, as a delivery returns it."""
        return Settlement(row_key=key, status=Status.IN_DOUBT if key in self.doubted else Status.PENDING)

    @rule(number=workers, key=keys, ending=st.sampled_from(Status), final=st.booleans())
    def settle(self, number: int, key: str, ending: Status, final: bool) -> None:  # noqa: FBT001 -- drawn
        """The answer comes, perhaps late, perhaps to one that has lost the row; it says what Halo did, or nothing."""
        worker = self.workers[number]
        if key not in worker.sent:
            return
        taken = worker.sent[key]
        ending = {True: Status.DELIVERED, False: ending}[taken and ending is not Status.IN_DOUBT]
        if ending in {Status.DELIVERED, Status.IN_FLIGHT} and not taken:
            ending = Status.IN_DOUBT
        if key in self.doubted and ending in {Status.PENDING, Status.FAILED}:
            ending = Status.IN_DOUBT
        again = not final and ending in {Status.PENDING, Status.IN_DOUBT}
        with self.step(worker.claimant.owner):
            commit = worker.claimant.commit(
                settlements=[Settlement(row_key=key, status=ending, final=not again, session_id=f"of {number}")]
            )
        del worker.sent[key]
        assert (key in commit.lost_settlements) == (
            self.known[key]["owner"] != worker.claimant.owner or self.known[key]["status"] != ending
        )
        if again and not commit.lost_settlements:
            worker.claimed.add(key)

    @rule(number=workers)
    def renew(self, number: int) -> None:
        """A worker puts off the end of its leases."""
        owner = self.workers[number].claimant.owner
        with self.step(owner):
            self.workers[number].claimant.renew()

    @rule(number=workers)
    def crash(self, number: int) -> None:
        """A worker is gone, and all it knew; another process starts in its place."""
        self.workers[number] = self.new_worker()

    @rule(seconds=st.sampled_from([1.0, LEASE / 3, LEASE, 2 * LEASE]))
    def time_passes(self, seconds: float) -> None:
        """Leases run out."""
        self.seconds += seconds

    @rule(what=st.sampled_from(["requeue", "resolve", "reject"]), key=keys)
    def by_hand(self, what: str, key: str) -> None:
        """A person settles a row, if it is in nobody's hands."""
        records = Records(self.ledger, actor="somebody")
        wanted = RowFilter(namespace=NAMESPACE, row_keys=(key,))
        with self.step(by_hand=True):
            match what:
                case "requeue":
                    records.requeue(wanted)
                case "resolve":
                    records.resolve(wanted, session_id="found")
                case "reject":
                    records.reject(wanted, reason="not wanted")

    @invariant()
    def every_key_ever_claimed_has_one_status(self) -> None:
        """The sum of the statuses is the number of keys: none is forgotten."""
        counts = Records(self.ledger, actor="somebody").counts(RowFilter(namespace=NAMESPACE))
        assert sum(counts.values()) == len(self.ever_claimed)

    @invariant()
    def what_halo_took_is_delivered_or_on_its_way_or_in_doubt(self) -> None:
        """A row that Halo has is never taken for one that it does not have, but by people and after doubt."""
        for key, times in self.halo.items():
            status = self.known[key]["status"]
            if times and key not in self.doubted:
                assert status in {Status.DELIVERED, Status.IN_FLIGHT}, (key, status)

    @invariant()
    def row_in_flight_is_somebodys(self) -> None:
        """It has an owner and a lease, or nobody would know when to doubt it."""
        for row in self.known.values():
            assert row["status"] != Status.IN_FLIGHT or (row["owner"] and row["lease_expires_at"])


def expected_standing(  # the rules of DESIGN 5, told once more and differently
    row: dict[str, Any] | None, *, payload: str, bad: bool, hold: bool, owner: str, now: datetime
) -> Standing:
    """What a claim must answer."""
    if row is None:
        return Standing.REJECTED if bad else Standing.CLAIMED
    if row["status"] == Status.DELIVERED:
        return Standing.DELIVERED
    lives = row["lease_expires_at"] is not None and row["lease_expires_at"] > now
    if lives and row["owner"] != owner:
        return Standing.BUSY
    if bad or (row["status"] == Status.REJECTED and row["payload_hash"] == payload):
        return Standing.REJECTED
    if hold and row["status"] in {Status.IN_FLIGHT, Status.IN_DOUBT}:
        return Standing.IN_DOUBT
    return Standing.CLAIMED


def explore(ledger: Ledger, *, examples: int, steps: int) -> None:
    """Let Hypothesis play."""
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
