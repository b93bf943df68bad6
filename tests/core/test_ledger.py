"""The ledger on every database it runs on: who may claim a row, and how its status changes."""

import gc
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.engine import Connection

import halo_provider.ledger.database
from halo_provider.exceptions import HaloConfigurationError, LedgerError
from halo_provider.ledger import (
    Candidate,
    Change,
    ClaimResult,
    Commit,
    LeaseHolder,
    Ledger,
    LedgerStatus,
    Settlement,
    TaskInstanceRef,
    clock,
)
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.database import TRANSACTION_ATTEMPTS
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.refs import run_ref, task_ref
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.rules import LEASE_RAN_OUT, MAX_SESSION_ID, MAX_TEXT, SESSION_UNUSABLE, TEXTS_REFUSED
from halo_provider.ledger.tables import MAX_NAMESPACE, boots, events, submissions
from tests.core.databases import mariadb_place, postgres_place
from tests.core.deliveries import NAMESPACE, rows_in

EXPIRED = -1.0  # seconds: a lease that is over as soon as it begins
PAYLOAD = "a" * 64
OTHER_PAYLOAD = "b" * 64


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of a ledger on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def new_ledger_url(request: pytest.FixtureRequest, sqlite_ledger_url: str) -> Iterator[str]:
    """An empty place on every database, which this test may leave broken."""
    match request.param:
        case "postgres":
            with postgres_place(request.getfixturevalue("postgres_url")) as url:
                yield url
        case "mariadb":
            with mariadb_place(request.getfixturevalue("mariadb_url")) as url:
                yield url
        case _:
            yield sqlite_ledger_url


@pytest.fixture
def new_ledger(new_ledger_url: str) -> Iterator[Ledger]:
    """A ledger that this test may leave broken."""
    ledger = Ledger.at(new_ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def lease_holder_of(ledger: Ledger) -> Callable[..., LeaseHolder]:
    """Make owners of claims; the lease is in seconds."""

    def make(*, lease: float = 60.0, task_instance: TaskInstanceRef | None = None) -> LeaseHolder:
        return ledger.lease_holder(NAMESPACE, task_instance=task_instance or TaskInstanceRef(), lease=lease)

    return make


@pytest.fixture
def lease_holder(lease_holder_of: Callable[..., LeaseHolder]) -> LeaseHolder:
    """An owner of claims."""
    return lease_holder_of()


def candidate(row_key: str = "k", *, payload: str | None = PAYLOAD, error: str | None = None) -> Candidate:
    """A candidate for a claim."""
    return Candidate(row_key=row_key, user_id="user-1", payload_hash=payload, error=error)


def bring(lease_holder: LeaseHolder, status: LedgerStatus, row_key: str = "k") -> None:
    """Bring a new row to a status by the calls that a delivery makes."""
    lease_holder.claim([candidate(row_key)], on_in_doubt="resend")
    if status is not LedgerStatus.PENDING:
        lease_holder.commit(intents=[row_key])
    if status not in {LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT}:
        lease_holder.commit(settlements=[Settlement(row_key=row_key, status=status, session_id="sess_1", error="why")])


def history_of(ledger: Ledger, row_key: str = "k") -> list[tuple[str, str | None]]:
    """The events of a row, with their details, oldest first."""
    statement = select(events.c.event, events.c.detail).where(events.c.row_key == row_key).order_by(events.c.id)
    return ledger.transaction(lambda db: [tuple(found) for found in db.execute(statement)])


LEGAL_SETTLEMENTS = {
    (LedgerStatus.PENDING, LedgerStatus.PENDING),
    (LedgerStatus.PENDING, LedgerStatus.FAILED),
    (LedgerStatus.IN_FLIGHT, LedgerStatus.PENDING),
    (LedgerStatus.IN_FLIGHT, LedgerStatus.DELIVERED),
    (LedgerStatus.IN_FLIGHT, LedgerStatus.REJECTED),
    (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    (LedgerStatus.IN_FLIGHT, LedgerStatus.FAILED),
    (LedgerStatus.IN_DOUBT, LedgerStatus.DELIVERED),
    (LedgerStatus.IN_DOUBT, LedgerStatus.REJECTED),
    (LedgerStatus.IN_DOUBT, LedgerStatus.IN_DOUBT),
}
SETTLEMENTS = [
    (before, after) for before in LedgerStatus for after in LedgerStatus if after is not LedgerStatus.IN_FLIGHT
]


@pytest.mark.parametrize(("before", "after"), sorted(LEGAL_SETTLEMENTS))
def test_legal_settlement_is_recorded_and_ends_the_lease(
    ledger: Ledger, lease_holder: LeaseHolder, before: LedgerStatus, after: LedgerStatus
) -> None:
    """The outcome of an attempt becomes the row's status."""
    bring(lease_holder, before)

    commit = lease_holder.commit(settlements=[Settlement(row_key="k", status=after)])

    row = rows_in(ledger)["k"]
    assert (commit, row["status"], row["lease_expires_at"]) == (Commit(), after, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [pair for pair in SETTLEMENTS if pair not in LEGAL_SETTLEMENTS and pair[0] is not pair[1]],
)
def test_illegal_settlement_is_named_and_changes_nothing(
    ledger: Ledger, lease_holder: LeaseHolder, before: LedgerStatus, after: LedgerStatus
) -> None:
    """A final status does not change, and nothing is delivered that was never in flight."""
    bring(lease_holder, before)
    row = rows_in(ledger)

    commit = lease_holder.commit(settlements=[Settlement(row_key="k", status=after, error="another")])

    assert commit == Commit(lost_settlements=frozenset({"k"}))
    assert rows_in(ledger) == row


@pytest.mark.parametrize("status", [LedgerStatus.DELIVERED, LedgerStatus.REJECTED, LedgerStatus.FAILED])
def test_repeated_settlement_is_not_lost_and_changes_nothing(
    ledger: Ledger, lease_holder: LeaseHolder, status: LedgerStatus
) -> None:
    """A commit whose answer did not arrive may be made again: it finds its rows settled already."""
    bring(lease_holder, status)
    row = rows_in(ledger)

    commit = lease_holder.commit(settlements=[Settlement(row_key="k", status=status, error="another")])

    assert (commit, rows_in(ledger)) == (Commit(), row)


@pytest.mark.parametrize("before", [LedgerStatus.PENDING, LedgerStatus.IN_DOUBT])
def test_intent_puts_the_owner_s_row_in_flight(ledger: Ledger, lease_holder: LeaseHolder, before: LedgerStatus) -> None:
    """Rows that are pending, or in doubt and to be sent again, go in flight and count the attempt."""
    bring(lease_holder, before)
    attempts = rows_in(ledger)["k"]["attempts"]

    commit = lease_holder.commit(intents=["k"])

    row = rows_in(ledger)["k"]
    assert commit == Commit(intents=frozenset({"k"}))
    assert (row["status"], row["attempts"]) == (LedgerStatus.IN_FLIGHT, attempts + 1)


@pytest.mark.parametrize("before", [LedgerStatus.DELIVERED, LedgerStatus.REJECTED, LedgerStatus.FAILED])
def test_intent_for_a_settled_row_is_named_and_changes_nothing(
    ledger: Ledger, lease_holder: LeaseHolder, before: LedgerStatus
) -> None:
    """A settled row is not sent again without a new claim."""
    bring(lease_holder, before)
    row = rows_in(ledger)

    assert lease_holder.commit(intents=["k"]) == Commit(lost_intents=frozenset({"k"}))
    assert rows_in(ledger) == row


def test_row_in_flight_has_a_live_lease_whatever_it_was_before(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """An intent writes a new lease, also on a row whose lease had ended with its settlement."""
    bring(lease_holder, LedgerStatus.IN_DOUBT)
    assert rows_in(ledger)["k"]["lease_expires_at"] is None

    lease_holder.commit(intents=["k"])

    assert rows_in(ledger)["k"]["lease_expires_at"] > ledger.now()


def test_commit_names_only_the_lost_rows(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """One commit over good and lost rows does the good ones and names the others."""
    for row_key in ("one", "two"):
        bring(lease_holder, LedgerStatus.IN_FLIGHT, row_key)
    bring(lease_holder, LedgerStatus.PENDING, "three")
    settlements = [Settlement(row_key=key, status=LedgerStatus.DELIVERED) for key in ("one", "three", "two", "unknown")]

    commit = lease_holder.commit(settlements=settlements, intents=["three", "elsewhere"])

    assert commit == Commit(
        intents=frozenset({"three"}),
        lost_intents=frozenset({"elsewhere"}),
        lost_settlements=frozenset({"three", "unknown"}),
    )
    assert {key: row["status"] for key, row in rows_in(ledger).items()} == {
        "one": LedgerStatus.DELIVERED,
        "two": LedgerStatus.DELIVERED,
        "three": LedgerStatus.IN_FLIGHT,
    }


def test_attempt_is_settled_before_the_next_one_begins_in_the_same_commit(
    ledger: Ledger, lease_holder: LeaseHolder
) -> None:
    """A retry brings the last attempt's outcome and the next one's intent together."""
    bring(lease_holder, LedgerStatus.IN_FLIGHT)

    resting = Settlement(row_key="k", status=LedgerStatus.PENDING, final=False, error="Halo answered 429")
    commit = lease_holder.commit(settlements=[resting], intents=["k"])

    row = rows_in(ledger)["k"]
    assert commit == Commit(intents=frozenset({"k"}))
    assert (row["status"], row["attempts"], row["error"]) == (LedgerStatus.IN_FLIGHT, 2, "Halo answered 429")
    assert row["lease_expires_at"] > ledger.now()


def test_claim_writes_a_new_row_with_every_known_column(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """The row is there, pending, with its owner, lease, payload and the task instance that claimed it."""
    began = ledger.now()
    logical_date = datetime(2026, 11, 1, 12, tzinfo=UTC)
    task_instance = TaskInstanceRef(
        dag_id="dag", run_id="run", task_id="task", map_index=-1, try_number=2, logical_date=logical_date
    )
    lease_holder = lease_holder_of(task_instance=task_instance)

    claims = lease_holder.claim([candidate()], on_in_doubt="resend")

    assert claims["k"].result is ClaimResult.CLAIMED
    row = rows_in(ledger)["k"]
    assert timedelta(seconds=59) < row["lease_expires_at"] - began < timedelta(seconds=70)
    assert timedelta(seconds=-1) < row["created_at"] - began < timedelta(seconds=10)
    known = {
        "namespace": NAMESPACE,
        "row_key": "k",
        "status": LedgerStatus.PENDING,
        "user_id": "user-1",
        "payload_hash": PAYLOAD,
        "attempts": 0,
        "owner": lease_holder.owner,
        "lease_expires_at": row["lease_expires_at"],
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "task",
        "map_index": -1,
        "run_ref": run_ref("dag", "run"),
        "task_ref": task_ref("task", -1),
        "try_number": 2,
        "logical_date": logical_date,
        "created_at": row["created_at"],
        "updated_at": row["created_at"],
    }
    assert row == dict.fromkeys(row) | known


def test_claim_without_candidates_does_not_ask_the_database(lease_holder: LeaseHolder) -> None:
    """No candidates, no claims."""
    assert lease_holder.claim([], on_in_doubt="resend") == {}


@pytest.mark.parametrize("payload", [PAYLOAD, OTHER_PAYLOAD, None])
def test_delivered_row_is_never_claimed_again(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], payload: str | None
) -> None:
    """Not with the same payload, nor with another, nor with none: its session_id is the answer."""
    bring(lease_holder_of(), LedgerStatus.DELIVERED)
    before = rows_in(ledger)

    error = None if payload else "the message is empty"
    claims = lease_holder_of().claim([candidate(payload=payload, error=error)], on_in_doubt="resend")

    assert (claims["k"].result, claims["k"].session_id) == (ClaimResult.DELIVERED, "sess_1")
    assert rows_in(ledger) == before


def test_rejected_row_stays_rejected_while_its_payload_is_the_same(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """The reason is told again, and nothing is written."""
    bring(lease_holder_of(), LedgerStatus.REJECTED)
    before = rows_in(ledger)

    claims = lease_holder_of().claim([candidate()], on_in_doubt="resend")

    assert (claims["k"].result, claims["k"].error) == (ClaimResult.REJECTED, "why")
    assert rows_in(ledger) == before


@pytest.mark.parametrize("status", [LedgerStatus.PENDING, LedgerStatus.FAILED, LedgerStatus.REJECTED])
def test_settled_row_is_claimed_with_its_new_payload(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus
) -> None:
    """Given back, failed, or rejected and since changed: a new owner may send it."""
    first, second = lease_holder_of(), lease_holder_of()
    bring(first, status)
    first.commit(settlements=[Settlement(row_key="k", status=status)])

    claims = second.claim([candidate(payload=OTHER_PAYLOAD)], on_in_doubt="hold")

    row = rows_in(ledger)["k"]
    assert (claims["k"].result, claims["k"].doubtful) == (ClaimResult.CLAIMED, False)
    assert (row["status"], row["owner"], row["payload_hash"]) == (LedgerStatus.PENDING, second.owner, OTHER_PAYLOAD)
    assert row["lease_expires_at"] > ledger.now()


@pytest.mark.parametrize("on_in_doubt", ["resend", "hold"])
@pytest.mark.parametrize("status", [LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT])
def test_live_lease_excludes_every_other_owner(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus, on_in_doubt: Any
) -> None:
    """Neither a valid candidate nor an invalid one changes a row whose lease lives."""
    bring(lease_holder_of(), status)
    before = rows_in(ledger)

    valid = lease_holder_of().claim([candidate()], on_in_doubt=on_in_doubt)
    invalid = lease_holder_of().claim([candidate(payload=None, error="the message is empty")], on_in_doubt=on_in_doubt)

    assert valid["k"].result is invalid["k"].result is ClaimResult.BUSY
    assert rows_in(ledger) == before


def test_pending_row_with_an_expired_lease_is_taken_over(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """Its process died before sending: the next owner sends it, and it is not in doubt."""
    bring(lease_holder_of(lease=EXPIRED), LedgerStatus.PENDING)
    second = lease_holder_of()

    claims = second.claim([candidate()], on_in_doubt="hold")

    row = rows_in(ledger)["k"]
    assert (claims["k"].result, claims["k"].doubtful) == (ClaimResult.CLAIMED, False)
    assert (row["status"], row["owner"]) == (LedgerStatus.PENDING, second.owner)


@pytest.mark.parametrize("status", [LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT])
def test_row_that_halo_may_have_is_in_doubt_when_claimed_to_be_sent_again(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus
) -> None:
    """With resend the new owner gets it and is told of the doubt, which the ledger keeps until an answer comes."""
    bring(lease_holder_of(lease=EXPIRED), status)
    second = lease_holder_of()

    claims = second.claim([candidate()], on_in_doubt="resend")

    row = rows_in(ledger)["k"]
    assert (claims["k"].result, claims["k"].doubtful) == (ClaimResult.CLAIMED, True)
    assert (row["status"], row["owner"]) == (LedgerStatus.IN_DOUBT, second.owner)
    assert row["lease_expires_at"] > ledger.now()


@pytest.mark.parametrize("status", [LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT])
def test_row_that_halo_may_have_is_held_with_hold(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus
) -> None:
    """No owner gets it; an in_flight row whose lease ran out becomes in_doubt, with its old payload."""
    bring(lease_holder_of(lease=EXPIRED), status)

    claims = lease_holder_of().claim([candidate(payload=OTHER_PAYLOAD)], on_in_doubt="hold")

    row = rows_in(ledger)["k"]
    assert claims["k"].result is ClaimResult.IN_DOUBT
    assert (row["status"], row["payload_hash"], row["lease_expires_at"]) == (LedgerStatus.IN_DOUBT, PAYLOAD, None)


def test_held_row_can_be_claimed_later_to_be_sent_again(lease_holder_of: Callable[..., LeaseHolder]) -> None:
    """A claim with resend decides to send it again."""
    bring(lease_holder_of(), LedgerStatus.IN_DOUBT)
    lease_holder_of().claim([candidate()], on_in_doubt="hold")

    claims = lease_holder_of().claim([candidate()], on_in_doubt="resend")

    assert (claims["k"].result, claims["k"].error) == (ClaimResult.CLAIMED, "why")


def test_invalid_row_is_rejected_until_it_is_repaired(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """A row that could not be rendered is rejected with the reason, and claimed once it can be."""
    invalid = candidate(payload=None, error="column 'text': the message is empty for this row")

    claims = lease_holder_of().claim([invalid], on_in_doubt="resend")

    row = rows_in(ledger)["k"]
    assert (claims["k"].result, claims["k"].error) == (ClaimResult.REJECTED, invalid.error)
    assert (row["status"], row["error"], row["lease_expires_at"]) == (LedgerStatus.REJECTED, invalid.error, None)
    assert lease_holder_of().claim([candidate()], on_in_doubt="resend")["k"].result is ClaimResult.CLAIMED
    assert rows_in(ledger)["k"]["status"] == LedgerStatus.PENDING


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (LedgerStatus.PENDING, LedgerStatus.REJECTED),
        (LedgerStatus.FAILED, LedgerStatus.REJECTED),
        (LedgerStatus.REJECTED, LedgerStatus.REJECTED),
        (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
        (LedgerStatus.IN_DOUBT, LedgerStatus.IN_DOUBT),
    ],
)
def test_stored_row_that_becomes_invalid_is_rejected_but_stays_in_doubt(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], before: LedgerStatus, after: LedgerStatus
) -> None:
    """The new reason is recorded; a row that Halo may have stays in doubt."""
    bring(lease_holder_of(lease=EXPIRED), before)

    claims = lease_holder_of().claim([candidate(payload=None, error="the message is empty")], on_in_doubt="resend")

    row = rows_in(ledger)["k"]
    assert (claims["k"].result, claims["k"].error) == (ClaimResult.REJECTED, "the message is empty")
    assert (row["status"], row["error"]) == (after, "the message is empty")


def test_preview_answers_as_a_claim_would_and_writes_nothing(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """Every answer is the same, and the table does not change."""
    for status in LedgerStatus:
        bring(lease_holder_of(lease=EXPIRED), status, status.value)
    bring(lease_holder_of(), LedgerStatus.PENDING, "busy")
    candidates = [candidate(key) for key in (*LedgerStatus, "busy", "new")]
    candidates += [candidate("invalid", payload=None, error="the message is empty")]
    before = rows_in(ledger)

    lease_holder = lease_holder_of()
    preview = lease_holder.preview(candidates, on_in_doubt="hold")

    assert rows_in(ledger) == before
    assert preview == lease_holder.claim(candidates, on_in_doubt="hold")


def test_own_claim_can_be_repeated(lease_holder: LeaseHolder) -> None:
    """An owner is not excluded by its own lease."""
    for _ in range(2):
        assert lease_holder.claim([candidate()], on_in_doubt="resend")["k"].result is ClaimResult.CLAIMED


def test_same_key_in_two_namespaces_is_two_rows(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """A row that is delivered in one namespace can be claimed in another."""
    bring(lease_holder, LedgerStatus.DELIVERED)
    other = ledger.lease_holder("halo_default/order", task_instance=TaskInstanceRef())

    assert other.claim([candidate()], on_in_doubt="resend")["k"].result is ClaimResult.CLAIMED


def test_keys_that_differ_in_one_character_are_different_rows(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """Also where they differ only in case, in an accent, in how it is composed, or in width."""
    accents = ["e", "E", "é", "e\u0301", "É", "straße", "strasse", "STRASSE"]
    keys = [*accents, "a", "A", "\uff41", "🦄", "🦊", "1", "01", "xy", "x y", "x\u200by"]

    first = lease_holder.claim([candidate(key) for key in keys], on_in_doubt="resend")
    lease_holder.commit(intents=keys[:1])
    lease_holder.commit(settlements=[Settlement(row_key=keys[0], status=LedgerStatus.DELIVERED)])

    assert set(first) == set(rows_in(ledger)) == set(keys)
    assert {key for key, row in rows_in(ledger).items() if row["status"] == LedgerStatus.DELIVERED} == {keys[0]}


def letters(count: int, first: str, last: str) -> str:
    """So many random characters: an index would compress repeated ones."""
    return "".join(chr(random.randint(ord(first), ord(last))) for _ in range(count))


@pytest.mark.parametrize("key_length", [250, 480])
def test_longest_keys_fit_every_index(ledger: Ledger, key_length: int) -> None:
    """PostgreSQL's index rows hold 2,704 bytes: the longest names of Airflow, and a key of 1,000 bytes with its mark.

    A key has at most 480 characters, so 250 of four bytes, or 480 of two.
    """
    namespace = letters(MAX_NAMESPACE // 4, "\U00020000", "\U0002a6d0")
    first, last = ("\U00020000", "\U0002a6d0") if key_length == 250 else ("Ā", "ʯ")
    task_instance = TaskInstanceRef(
        dag_id=letters(250, "\U00020000", "\U0002a6d0"), run_id=letters(250, "!", "~"), task_id=letters(250, "!", "~")
    )
    key = Change(letters(key_length, first, last), 1_000_000, PAYLOAD).ledger_key
    lease_holder = ledger.lease_holder(namespace, task_instance=task_instance)

    bring(lease_holder, LedgerStatus.FAILED, key)
    bring(lease_holder, LedgerStatus.DELIVERED, key)
    DeliveryRecords(ledger).begin(lease_holder.owner, namespace=namespace, task_instance=task_instance, total=None)

    assert rows_in(ledger)[key]["status"] == LedgerStatus.DELIVERED


@pytest.mark.parametrize("letter", ["x", "ü", "🦄"])
def test_namespace_that_does_not_fit_is_refused(ledger: Ledger, letter: str) -> None:
    """If it were cut, two submissions could share a namespace."""
    longest = letter * (MAX_NAMESPACE // len(letter.encode()))
    ledger.lease_holder(longest, task_instance=TaskInstanceRef())

    with pytest.raises(HaloConfigurationError, match=r"25\d bytes"):
        ledger.lease_holder(longest + letter, task_instance=TaskInstanceRef())


def test_every_key_is_claimed_by_exactly_one_of_many_owners(ledger_url: str) -> None:
    """They claim the same 500 keys at once, each in another order, on separate connections, new rows and old ones."""
    keys = [f"key-{number}" for number in range(500)]
    racers = 4
    ledgers = [Ledger.at(ledger_url) for _ in range(racers)]
    bring_back = ledgers[0].lease_holder(NAMESPACE, task_instance=TaskInstanceRef(), lease=EXPIRED)
    bring_back.claim([candidate(key) for key in keys[::2]], on_in_doubt="resend")
    start = threading.Barrier(racers)

    def race(number: int) -> set[str]:
        lease_holder = ledgers[number].lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
        shuffled = random.Random(number).sample(keys, len(keys))
        start.wait()
        won: set[str] = set()
        for position in range(0, len(keys), 100):
            some = [candidate(key) for key in shuffled[position : position + 100]]
            claims = lease_holder.claim(some, on_in_doubt="resend")
            won.update(key for key, claim in claims.items() if claim.result is ClaimResult.CLAIMED)
        assert {
            row_key for row_key, row in rows_in(ledgers[number]).items() if row["owner"] == lease_holder.owner
        } == won
        return won

    with ThreadPoolExecutor(racers) as threads:
        won = list(threads.map(race, range(racers)))

    assert sorted(key for each in won for key in each) == sorted(keys)
    for ledger in ledgers:
        ledger.close()


def test_ledger_can_be_created_by_many_at_once(new_ledger_url: str) -> None:
    """Tasks that start together find the same table, or create it."""
    start = threading.Barrier(6)

    def create(_: int) -> bool:
        start.wait()
        ledger = Ledger.at(new_ledger_url)
        exists = ledger.exists()
        ledger.close()
        return exists

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(create, range(6)))


def test_opening_waits_for_the_writer_of_a_new_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself does not wait where the journal's mode changes, and tasks start together on a new ledger."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("halo_provider.ledger.database.time.sleep", lambda _seconds: writer.execute("ROLLBACK"))

        with closing(Ledger.at_path(path)) as ledger:
            assert ledger.exists()


def test_batches_leave_no_reference_cycles(ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]) -> None:
    """A delivery collects garbage seldom, and the cycles of a newly made statement hold all keys of its batch."""
    lease_holder = lease_holder_of()

    def batch(number: int) -> None:
        keys = [f"{number}-{place}" for place in range(5)]
        lease_holder.claim([candidate(key) for key in keys], on_in_doubt="resend")
        lease_holder.commit(intents=keys)
        lease_holder.commit(settlements=[Settlement(row_key=key, status=LedgerStatus.DELIVERED) for key in keys])
        lease_holder.claim([candidate(key) for key in keys], on_in_doubt="resend")
        lease_holder.renew()

    batch(0)
    gc.collect()
    gc.disable()
    try:
        for number in range(1, 21):
            batch(number)
        assert gc.collect() < 20
    finally:
        gc.enable()


def test_every_lease_holder_has_an_owner_of_its_own(lease_holder_of: Callable[..., LeaseHolder]) -> None:
    """Also within one process."""
    assert lease_holder_of().owner != lease_holder_of().owner


def test_renewal_extends_the_leases_that_are_held(ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]) -> None:
    """Other owners cannot claim the held rows; rows that were settled, or that another owner has, do not change."""
    lease_holder = lease_holder_of(lease=EXPIRED)
    for key, status in {
        "held": LedgerStatus.IN_FLIGHT,
        "settled": LedgerStatus.FAILED,
        "lost": LedgerStatus.PENDING,
    }.items():
        bring(lease_holder, status, key)
    lease_holder_of().claim([candidate("lost")], on_in_doubt="resend")
    before = rows_in(ledger)
    lease_holder.lease = 60.0

    lease_holder.renew()

    after = rows_in(ledger)
    assert after["held"]["lease_expires_at"] > ledger.now()
    assert {key: after[key] for key in ("settled", "lost")} == {key: before[key] for key in ("settled", "lost")}
    assert lease_holder_of().claim([candidate("held")], on_in_doubt="resend")["held"].result is ClaimResult.BUSY


def test_released_rows_can_be_claimed_at_once_and_are_not_renewed(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """A claim is given back unsent: the status, the error and the doubt stay, only the lease ends."""
    lease_holder, other = lease_holder_of(), lease_holder_of()
    bring(lease_holder, LedgerStatus.IN_DOUBT, "doubt")
    lease_holder.claim([candidate(key) for key in ("new", "doubt", "held")], on_in_doubt="resend")
    before = rows_in(ledger)

    lease_holder.release(["new", "doubt"])
    lease_holder.renew()

    unchanged = {name for name in before["doubt"] if name not in {"lease_expires_at", "updated_at"}}
    for key in ("new", "doubt"):
        row = rows_in(ledger)[key]
        assert row["lease_expires_at"] is None
        assert {name: row[name] for name in unchanged} == {name: before[key][name] for name in unchanged}
    claims = other.claim([candidate(key) for key in ("new", "doubt", "held")], on_in_doubt="resend")
    assert {key: (claim.result, claim.doubtful) for key, claim in claims.items()} == {
        "new": (ClaimResult.CLAIMED, False),
        "doubt": (ClaimResult.CLAIMED, True),
        "held": (ClaimResult.BUSY, False),
    }
    assert history_of(ledger, "new") == []


def test_release_leaves_rows_in_flight_settled_rows_and_rows_of_others(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """Only what has certainly not been sent under this claim can be given back."""
    lease_holder, other = lease_holder_of(), lease_holder_of()
    bring(lease_holder, LedgerStatus.IN_FLIGHT, "flying")
    bring(lease_holder, LedgerStatus.FAILED, "failed")
    bring(other, LedgerStatus.PENDING, "theirs")
    before = rows_in(ledger)

    lease_holder.release(["flying", "failed", "theirs", "unknown"])
    lease_holder.release([])

    assert rows_in(ledger) == before


def test_lease_left_counts_from_the_oldest_claim_or_the_last_renewal(
    lease_holder_of: Callable[..., LeaseHolder],
) -> None:
    """A later claim does not make an earlier one last longer; a renewal does."""
    lease_holder = lease_holder_of(lease=100.0)
    lease_holder.claim([candidate("one")], on_in_doubt="resend")
    lease_holder._renewed -= 50.0

    lease_holder.claim([candidate("two")], on_in_doubt="resend")
    assert lease_holder.lease_left == pytest.approx(50.0, abs=5.0)

    lease_holder.renew()
    assert lease_holder.lease_left == pytest.approx(100.0, abs=5.0)


@pytest.mark.parametrize(
    "status", [LedgerStatus.DELIVERED, LedgerStatus.REJECTED, LedgerStatus.IN_DOUBT, LedgerStatus.FAILED]
)
def test_late_settlement_is_recorded_unless_another_owner_took_the_row(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus
) -> None:
    """The lease is over, but the row is still this owner's."""
    lease_holder = lease_holder_of(lease=EXPIRED)
    bring(lease_holder, LedgerStatus.IN_FLIGHT)

    assert lease_holder.commit(settlements=[Settlement(row_key="k", status=status)]) == Commit()
    assert rows_in(ledger)["k"]["status"] == status


def test_late_answer_settles_a_row_that_another_run_held_in_doubt(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]
) -> None:
    """Another run's claim, with hold, made it in_doubt; the answer that then comes ends the doubt."""
    lease_holder = lease_holder_of(lease=EXPIRED)
    bring(lease_holder, LedgerStatus.IN_FLIGHT)
    lease_holder_of().claim([candidate()], on_in_doubt="hold")

    late = Settlement(row_key="k", status=LedgerStatus.DELIVERED, session_id="sess_late")

    assert lease_holder.commit(settlements=[late]) == Commit()
    assert rows_in(ledger)["k"]["session_id"] == "sess_late"


@pytest.mark.parametrize("status", [status for status in LedgerStatus if status is not LedgerStatus.IN_FLIGHT])
def test_old_owner_changes_nothing_after_another_took_over(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], status: LedgerStatus
) -> None:
    """Its settlements and intents are named as lost, and only the new owner can change the row."""
    old, new = lease_holder_of(lease=EXPIRED), lease_holder_of()
    bring(old, LedgerStatus.IN_FLIGHT)
    new.claim([candidate()], on_in_doubt="resend")
    before = rows_in(ledger)

    commit = old.commit(settlements=[Settlement(row_key="k", status=status, error="late")], intents=["k"])
    old.renew()

    assert commit == Commit(lost_intents=frozenset({"k"}), lost_settlements=frozenset({"k"}))
    assert rows_in(ledger) == before


def test_lost_settlement_writes_no_event(ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder]) -> None:
    """A row's history tells only what became of the row: another owner has it, and its own outcome counts."""
    old, new = lease_holder_of(lease=EXPIRED), lease_holder_of()
    bring(old, LedgerStatus.IN_FLIGHT, "lost")
    new.claim([candidate("lost")], on_in_doubt="resend")
    bring(old, LedgerStatus.IN_FLIGHT, "kept")
    before = history_of(ledger, "lost")

    old.commit(
        settlements=[Settlement(row_key=key, status=LedgerStatus.FAILED, error="gave up") for key in ("lost", "kept")]
    )

    assert history_of(ledger, "lost") == before == [("in_doubt", LEASE_RAN_OUT)]
    assert history_of(ledger, "kept") == [("failed", "gave up")]


def test_answer_is_kept_without_secrets_and_within_bounds(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """Whatever Halo echoes, no key and no token reaches the table, and texts are cut."""
    bring(lease_holder, LedgerStatus.IN_FLIGHT)
    secrets = "ab_live_example_key ha_secret_example_secret eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"

    lease_holder.commit(
        settlements=[
            Settlement(
                row_key="k",
                status=LedgerStatus.DELIVERED,
                session_id="sess_1",
                agent_id="agent_1",
                error=secrets,
                reply=f"{secrets} {'🦄' * 1000}",
                response={"echo": secrets, "score": 0.5, "list": [1, None, "ü"]},
            )
        ]
    )

    row = rows_in(ledger)["k"]
    assert (row["session_id"], row["agent_id"], row["error"]) == ("sess_1", "agent_1", "*** *** ***")
    assert row["reply"] == f"*** *** *** {'🦄' * 1000}"[:MAX_TEXT]
    assert row["response"] == {"echo": "*** *** ***", "score": 0.5, "list": [1, None, "ü"]}


def test_invalid_row_s_reason_is_kept_without_secrets(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """A claim writes errors too."""
    lease_holder.claim([candidate(payload=None, error="ha_secret_example_secret is no message")], on_in_doubt="resend")

    assert rows_in(ledger)["k"]["error"] == "*** is no message"


def test_answer_with_what_a_database_cannot_hold_is_recorded_all_the_same(
    ledger: Ledger, lease_holder: LeaseHolder
) -> None:
    """Neither a NUL, which PostgreSQL's text cannot hold, nor NaN, which is not JSON, fails a whole commit."""
    bring(lease_holder, LedgerStatus.IN_FLIGHT)
    settlement = Settlement(
        row_key="k",
        status=LedgerStatus.DELIVERED,
        session_id="sess\x001",
        agent_id="agent\x001",
        error="a\x00b",
        reply="Thank\x00you",
        response={"score": float("nan"), "text": "a\x00b"},
    )

    assert lease_holder.commit(settlements=[settlement]) == Commit()

    row = rows_in(ledger)["k"]
    assert row["status"] == LedgerStatus.DELIVERED
    assert row["response"]["score"] is None


def nested(depth: int) -> Any:
    """A list in a list and so on."""
    value: Any = "the innermost"
    for _ in range(depth):
        value = [value]
    return value


HUGE = "x" * 20_000_000  # characters: more than MariaDB takes in one packet


@pytest.mark.parametrize(
    "settlement",
    [
        Settlement("k", LedgerStatus.DELIVERED, session_id="s", response={"deep": nested(33)}),
        Settlement("k", LedgerStatus.DELIVERED, session_id="s", response={"deep": nested(10_000)}),
        Settlement("k", LedgerStatus.DELIVERED, session_id="s", response={"wide": HUGE}),
        Settlement("k", LedgerStatus.DELIVERED, session_id="s", agent_id=HUGE, reply=HUGE, error=HUGE),
        Settlement("k", LedgerStatus.DELIVERED, session_id="s", agent_id="\ud800", reply="\udfff", error="\ud800"),
        Settlement("k", LedgerStatus.DELIVERED, session_id="s" * MAX_SESSION_ID),
    ],
    ids=["33 deep", "10,000 deep", "wide", "long", "lone surrogates", "longest session"],
)
def test_answer_that_a_database_might_refuse_is_recorded_with_its_neighbours(
    ledger: Ledger, lease_holder: LeaseHolder, settlement: Settlement
) -> None:
    """Whatever Halo answers, its texts are bounded before they come to the database."""
    for key in ("first", "k", "last"):
        bring(lease_holder, LedgerStatus.IN_FLIGHT, key)
    neighbours = [Settlement(key, LedgerStatus.DELIVERED, session_id="s") for key in ("first", "last")]

    commit = lease_holder.commit(settlements=[neighbours[0], settlement, neighbours[1]])

    assert commit == Commit()
    assert {row["status"] for row in rows_in(ledger).values()} == {LedgerStatus.DELIVERED}
    assert rows_in(ledger)["k"]["session_id"] == settlement.session_id


def test_answer_nested_deeper_than_json_checks_allow_is_kept(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """MariaDB's JSON columns hold 32 levels; the ledger's are text."""
    bring(lease_holder, LedgerStatus.IN_FLIGHT)

    lease_holder.commit(settlements=[Settlement("k", LedgerStatus.DELIVERED, response={"deep": nested(33)})])

    assert rows_in(ledger)["k"]["response"] == {"deep": nested(33)}


def test_session_that_no_ledger_can_hold_leaves_its_row_alone_in_doubt(
    ledger: Ledger, lease_holder: LeaseHolder
) -> None:
    """Such an answer has no usable session_id: the commit names it, and its neighbours are delivered."""
    for key in ("good", "bad"):
        bring(lease_holder, LedgerStatus.IN_FLIGHT, key)
    settlements = [
        Settlement("bad", LedgerStatus.DELIVERED, session_id=HUGE),
        Settlement("good", LedgerStatus.DELIVERED, session_id="s"),
    ]

    commit = lease_holder.commit(settlements=settlements)

    assert commit == Commit(lost_settlements=frozenset({"bad"}))
    assert {key: (row["status"], row["session_id"], row["error"]) for key, row in rows_in(ledger).items()} == {
        "good": (LedgerStatus.DELIVERED, "s", None),
        "bad": (LedgerStatus.IN_DOUBT, None, SESSION_UNUSABLE),
    }
    assert history_of(ledger, "bad") == [("in_doubt", SESSION_UNUSABLE)]


REFUSING = {  # a rule of the database that the ledger does not know
    "sqlite": "CREATE TRIGGER refuse BEFORE UPDATE ON halo_submissions WHEN NEW.reply = 'poison'"
    " BEGIN SELECT RAISE(ABORT, 'refused'); END",
    "postgresql": "ALTER TABLE halo_submissions ADD CHECK (reply <> 'poison')",
    "mysql": "ALTER TABLE halo_submissions ADD CHECK (reply <> 'poison')",
}


def test_settlement_that_the_database_refuses_does_not_block_its_group(new_ledger: Ledger) -> None:
    """The others are recorded as they are, with the intents; the culprit without the texts that may be refused."""
    new_ledger.transaction(lambda db: db.execute(text(REFUSING[db.dialect.name])))
    lease_holder = new_ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    for key in ("first", "poison", "last"):
        bring(lease_holder, LedgerStatus.IN_FLIGHT, key)
    bring(lease_holder, LedgerStatus.PENDING, "next")
    settlements = [
        Settlement("first", LedgerStatus.DELIVERED, session_id="1", reply="Thank you"),
        Settlement("poison", LedgerStatus.DELIVERED, session_id="2", agent_id="agent", reply="poison"),
        Settlement("last", LedgerStatus.FAILED, error="503"),
    ]

    commit = lease_holder.commit(settlements=settlements, intents=["next"])

    assert commit == Commit(intents=frozenset({"next"}))
    found = rows_in(new_ledger)
    assert {key: (row["status"], row["session_id"], row["reply"]) for key, row in found.items()} == {
        "first": (LedgerStatus.DELIVERED, "1", "Thank you"),
        "poison": (LedgerStatus.DELIVERED, "2", None),
        "last": (LedgerStatus.FAILED, None, None),
        "next": (LedgerStatus.IN_FLIGHT, None, None),
    }
    assert found["poison"]["error"] == TEXTS_REFUSED
    assert history_of(new_ledger, "last") == [("failed", "503")]


@pytest.fixture
def step_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Make the host's clock wrong; the time since its boot goes on as it is."""

    def step(by: timedelta) -> None:
        class SteppedClock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003 -- datetime's signature
                return datetime.now(UTC) + by

        monkeypatch.setattr(clock, "datetime", SteppedClock)

    return step


STEPS = [timedelta(hours=1), timedelta(hours=-1), timedelta(seconds=120)]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_step_of_a_host_s_clock_takes_no_live_lease_away(
    ledger_url: str, step: timedelta, step_clock: Callable[[timedelta], None]
) -> None:
    """Two runs, one open before the step and one from after it, and a person, leave each other's live rows alone."""
    with closing(Ledger.at(ledger_url)) as before:
        early = before.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
        bring(early, LedgerStatus.IN_FLIGHT, "early")
        step_clock(step)
        with closing(Ledger.at(ledger_url)) as after:
            late = after.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
            bring(late, LedgerStatus.IN_FLIGHT, "late")
            for by in (step, timedelta(), -step):
                step_clock(by)
                for each, other in ((late, "early"), (early, "late")):
                    claims = each.claim([candidate(other)], on_in_doubt="resend")
                    assert claims[other].result is ClaimResult.BUSY
                    each.renew()
            assert LedgerAdmin(after, actor="somebody").requeue(RowFilter(namespace=NAMESPACE)) == 0
            assert {row["status"] for row in rows_in(after).values()} == {LedgerStatus.IN_FLIGHT}


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_lease_ends_in_its_time_though_a_host_s_clock_steps(
    ledger: Ledger, lease_holder_of: Callable[..., LeaseHolder], step: timedelta, step_clock: Callable[..., None]
) -> None:
    """A dead owner's rows are not held any longer either."""
    bring(lease_holder_of(lease=0.01), LedgerStatus.PENDING)
    step_clock(step)
    other = lease_holder_of()

    give_up_at = time.monotonic() + 5.0
    while other.claim([candidate()], on_in_doubt="resend")["k"].result is ClaimResult.BUSY:
        assert time.monotonic() < give_up_at, "a lease of 10 ms still lives"


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_server_s_clock_tells_the_time_of_rows(
    ledger: Ledger, lease_holder: LeaseHolder, step: timedelta, step_clock: Callable[..., None]
) -> None:
    """Hosts with wrong clocks write right times; SQLite's time is the host's, as a person reads it there."""
    step_clock(step)
    expected = datetime.now(UTC) + (step if ledger.engine.dialect.name == "sqlite" else timedelta())

    bring(lease_holder, LedgerStatus.PENDING)

    assert abs(rows_in(ledger)["k"]["created_at"] - expected) < timedelta(minutes=1)
    assert abs(ledger.now() - expected) < timedelta(minutes=1)


def test_boot_is_recorded_once_for_all_processes_of_the_host(
    sqlite_ledger_url: str, step_clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And anew after the next boot, whose clock may be another."""

    def recorded() -> list[datetime]:
        with closing(Ledger.at(sqlite_ledger_url)) as ledger:
            return ledger.transaction(lambda db: list(db.scalars(select(boots.c.booted_at))))

    first = recorded()
    step_clock(timedelta(hours=1))
    assert recorded() == first
    monkeypatch.setattr(clock, "boot_id", lambda: "the next boot")
    second = recorded()

    assert len(first) == 1
    assert len(second) == 2
    assert abs(second[1] - second[0] - timedelta(hours=1)) < timedelta(minutes=1)


def test_leases_go_by_the_host_s_clock_where_the_system_names_no_boot(
    sqlite_ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS, for example, whose clock must then not step."""
    monkeypatch.setattr(clock, "_BOOT_ID", Path("/nowhere/boot_id"))
    with closing(Ledger.at(sqlite_ledger_url)) as ledger:
        bring(ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef()), LedgerStatus.PENDING)

        lease_end = rows_in(ledger)["k"]["lease_expires_at"]
        assert abs(lease_end - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=30)


def test_transaction_rolled_back_in_favour_of_another_is_run_again(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """After a deadlock the transaction is run again, and its changes are made once."""
    deadlock = {
        "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$",
        "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
    }
    if ledger.engine.dialect.name not in deadlock:
        pytest.skip("SQLite has one writer at a time, which waits for its turn")
    bring(lease_holder, LedgerStatus.PENDING)
    runs = 0

    def work(db: Connection) -> None:
        nonlocal runs
        runs += 1
        db.execute(update(submissions).values(attempts=submissions.c.attempts + 1))
        if runs < TRANSACTION_ATTEMPTS:
            db.exec_driver_sql(deadlock[db.dialect.name])

    ledger.transaction(work)

    assert (runs, rows_in(ledger)["k"]["attempts"]) == (TRANSACTION_ATTEMPTS, 1)


def test_lock_that_is_never_obtained_is_a_ledger_error(sqlite_ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that never gets SQLite's lock raises instead of waiting for ever."""
    monkeypatch.setattr(halo_provider.ledger.database, "BUSY_TIMEOUT", 0.01)
    ledger, other = Ledger.at(sqlite_ledger_url), Ledger.at(sqlite_ledger_url)
    with other.engine.begin(), pytest.raises(LedgerError, match="database is locked"):
        ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef()).claim([candidate()], on_in_doubt="resend")
    ledger.close()
    other.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg2://someone:hunter2-example@127.0.0.1:1/nowhere",
        "mysql+pymysql://someone:hunter2-example@127.0.0.1:1/nowhere",
        "nosuchdatabase://someone:hunter2-example@127.0.0.1/nowhere",
        "hunter2-example, which is no URL",
    ],
)
def test_database_that_cannot_be_reached_is_a_ledger_error_without_the_password(url: str) -> None:
    """The task's log shows the error, so it holds no secret."""
    with pytest.raises(LedgerError) as raised:
        Ledger.at(url)

    assert "hunter2-example" not in f"{raised.value} {raised.value.__cause__}"


def test_sqlite_file_that_cannot_be_opened_is_a_ledger_error(tmp_path: Path) -> None:
    """A missing directory is not created."""
    with pytest.raises(LedgerError, match="unable to open database file"):
        Ledger.at_path(tmp_path / "missing" / "ledger.db")


def test_sqlite_path_may_hold_any_character(tmp_path: Path) -> None:
    """It is a path, not a part of a URL."""
    path = tmp_path / "50% done? #1.db"

    Ledger.at_path(path).close()

    assert path.exists()


def delete_file(path: Path) -> None:
    """Delete the ledger's file, and what SQLite keeps beside it."""
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()


def replace_file(path: Path) -> None:
    """Put an empty ledger in the place of this one."""
    delete_file(path)
    Ledger.at_path(path).close()


def replace_directory(path: Path) -> None:
    """Put another directory with an empty ledger in the place of this one's."""
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.mkdir()
    Ledger.at_path(path).close()


@pytest.mark.parametrize("spoil", [delete_file, replace_file, replace_directory])
def test_sqlite_ledger_that_was_deleted_or_replaced_is_noticed(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """What a run writes into a file without a name is lost: no intent is confirmed, so that nothing more is sent."""
    path = tmp_path / "home" / "ledger.db"
    path.parent.mkdir()
    with closing(Ledger.at_path(path)) as ledger:
        lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
        bring(lease_holder, LedgerStatus.PENDING)
        spoil(path)

        for call in (
            lambda: lease_holder.commit(intents=["k"]),
            lambda: lease_holder.claim([candidate("new")], on_in_doubt="resend"),
            lease_holder.renew,
        ):
            with pytest.raises(LedgerError, match=r"ledger\.db was deleted or replaced while .* sent again"):
                call()


def test_sqlite_ledger_may_be_reached_through_a_link(tmp_path: Path) -> None:
    """The file is the same, whatever the path to it."""
    Ledger.at_path(tmp_path / "real.db").close()
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")

    with closing(Ledger.at_path(tmp_path / "link.db")) as ledger:
        bring(ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef()), LedgerStatus.DELIVERED)
        assert rows_in(ledger)["k"]["status"] == LedgerStatus.DELIVERED


def test_missing_table_is_a_ledger_error_in_every_call(new_ledger: Ledger) -> None:
    """Callers need to handle one error for everything the database may raise."""
    lease_holder = new_ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    bring(lease_holder, LedgerStatus.IN_FLIGHT)
    new_ledger.transaction(submissions.drop)

    calls: list[Callable[[], object]] = [
        lambda: lease_holder.claim([candidate("new")], on_in_doubt="resend"),
        lambda: lease_holder.preview([candidate("new")], on_in_doubt="resend"),
        lambda: lease_holder.commit(settlements=[Settlement(row_key="k", status=LedgerStatus.DELIVERED)]),
        lambda: lease_holder.commit(intents=["k"]),
        lambda: new_ledger.find(NAMESPACE, ["k"]),
        lease_holder.renew,
    ]
    for call in calls:
        with pytest.raises(LedgerError, match="halo_submissions"):
            call()
    assert not new_ledger.exists()


def test_connection_lost_while_renewing_is_a_ledger_error(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """Also where only the database's clock is read."""
    bring(lease_holder, LedgerStatus.IN_FLIGHT)

    @event.listens_for(ledger.engine, "do_connect")
    def _refuse(dialect: Any, *_: Any) -> None:
        raise dialect.dbapi.OperationalError("server closed the connection unexpectedly")

    ledger.close()
    with pytest.raises(LedgerError, match="closed the connection"):
        lease_holder.renew()


def test_errors_quote_no_value(new_ledger: Ledger) -> None:
    """Neither the error nor its cause repeats a parameter, whichever call failed."""
    lease_holder = new_ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    bring(lease_holder, LedgerStatus.IN_FLIGHT)
    new_ledger.transaction(lambda db: db.execute(text("ALTER TABLE halo_submissions DROP COLUMN reply")))

    with pytest.raises(LedgerError) as raised:
        lease_holder.commit(
            settlements=[
                Settlement(row_key="k", status=LedgerStatus.DELIVERED, session_id="s", reply="a private word"),
            ]
        )

    assert "private" not in f"{raised.value} {raised.value.__cause__} {raised.value.__cause__.__cause__}"
    assert "\n" not in str(raised.value)


def test_statement_that_fails_quotes_no_value(ledger: Ledger) -> None:
    """SQLAlchemy would quote the parameters of a statement that fails."""
    row = {"namespace": NAMESPACE, "row_key": "private-key", "status": None}

    with pytest.raises(LedgerError) as raised:
        ledger.transaction(lambda db: db.execute(insert(submissions), row))

    assert "private-key" not in str(raised.value)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Every thread ends with its test."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
