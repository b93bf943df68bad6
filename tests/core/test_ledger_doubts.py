"""What looking up needs of the ledger, on every database: since when a row is in doubt, and whose a session is."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import update

from halo_provider.exceptions import HaloSignInError, LedgerError
from halo_provider.ledger import (
    Candidate,
    Doubt,
    Ledger,
    LedgerStatus,
    OnInDoubt,
    Rivals,
    Settlement,
    TaskInstanceRef,
)
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.ledger.tables import submissions
from halo_provider.models import SignIn
from tests.core.deliveries import NAMESPACE, rows_in

SIGN_IN = SignIn(
    client_id="client-1",
    token_endpoint="https://auth.example.com/token",
    resource="https://mcp.example.com",
    access_token="halo_at_example_0",
    refresh_token="halo_rt_example_0",
)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of a ledger on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


def holder(ledger: Ledger, namespace: str = NAMESPACE, **options: Any) -> Any:
    """An owner of claims."""
    return ledger.lease_holder(namespace, task_instance=TaskInstanceRef(), **options)


def claim(lease_holder: Any, row_key: str = "k", *, on_in_doubt: Any = "ask") -> Any:
    """Claim a row."""
    candidate = Candidate(row_key, user_id="user-1", payload_hash="a" * 64, message_hash="c" * 64)
    return lease_holder.claim([candidate], on_in_doubt=on_in_doubt)[row_key]


def settle(lease_holder: Any, status: LedgerStatus, row_key: str = "k", **fields: Any) -> None:
    """Attempt the row, and settle it."""
    lease_holder.commit(intents=[row_key])
    lease_holder.commit(settlements=[Settlement(row_key, status, **fields)])


def rivals(ledger: Ledger, session_ids: Sequence[str] = (), **changed: Any) -> Rivals:
    """Whose else the row's conversations may be."""
    asked = {"user_id": "user-1", "message_hash": "c" * 64, "into_session": None, **changed}
    found: Rivals = holder(ledger).rivals("k", session_ids=session_ids, **asked)
    return found


def doubt_since(ledger: Ledger) -> datetime:
    """The row's."""
    found: datetime = rows_in(ledger)["k"]["doubt_since"]
    return found


def test_doubt_counts_from_the_first_attempt_that_may_have_arrived(ledger: Ledger) -> None:
    """A second attempt changes nothing about the first; after certainty the next attempt begins anew."""
    lease_holder = holder(ledger)
    claim(lease_holder)
    lease_holder.commit(intents=["k"])
    first = doubt_since(ledger)
    lease_holder.commit(settlements=[Settlement("k", LedgerStatus.IN_DOUBT, final=False)])
    lease_holder.commit(intents=["k"])
    assert doubt_since(ledger) == first

    lease_holder.commit(settlements=[Settlement("k", LedgerStatus.PENDING, final=False)])
    lease_holder.commit(intents=["k"])
    assert doubt_since(ledger) > first


def test_claim_tells_since_when_a_row_is_in_doubt(ledger: Ledger) -> None:
    """Of a row whose run died, and of one that it left so."""
    dead = holder(ledger, lease=-1.0)
    claim(dead)
    dead.commit(intents=["k"])

    claimed = claim(holder(ledger))

    assert claimed.doubt == Doubt(doubt_since(ledger), "user-1", "a" * 64, "c" * 64, None, None)
    assert rows_in(ledger)["k"]["message_hash"] == "c" * 64


def test_row_that_is_not_there_is_pending_again(ledger: Ledger) -> None:
    """For its owner alone, and its history tells."""
    lease_holder, other = holder(ledger), holder(ledger)
    claim(lease_holder)
    lease_holder.commit(intents=["k"])
    again = Candidate("k", user_id="user-1", payload_hash="b" * 64, message_hash="d" * 64)
    assert not lease_holder.clear_doubt(again, detail="not there")
    lease_holder.commit(settlements=[Settlement("k", LedgerStatus.IN_DOUBT, final=False)])

    assert not other.clear_doubt(again, detail="not there")
    assert lease_holder.clear_doubt(again, detail="not there")

    row = rows_in(ledger)["k"]
    assert (row["status"], row["payload_hash"], row["message_hash"]) == (LedgerStatus.PENDING, "b" * 64, "d" * 64)
    events = RowReader(ledger).history(NAMESPACE, "k")
    assert [(event.event, event.detail) for event in events][-1] == ("not_found", "not there")


def test_found_row_is_told_in_its_history(ledger: Ledger) -> None:
    """By what, and with which session."""
    lease_holder = holder(ledger)
    claim(lease_holder)
    settle(lease_holder, LedgerStatus.IN_DOUBT, final=False)
    found = Settlement("k", LedgerStatus.DELIVERED, session_id="sess_1", found="by its message: session sess_1")
    lease_holder.commit(settlements=[found])

    events = RowReader(ledger).history(NAMESPACE, "k")
    assert [event.event for event in events] == ["in_doubt", "found"]
    assert rows_in(ledger)["k"]["session_id"] == "sess_1"


def test_sessions_of_other_rows_are_known_on_every_connection(ledger: Ledger) -> None:
    """A row's own session is not another's."""
    for namespace, row_key, session_id in ((NAMESPACE, "k", "s-1"), (NAMESPACE, "l", "s-2"), ("other/x", "k", "s-3")):
        lease_holder = holder(ledger, namespace)
        claim(lease_holder, row_key)
        settle(lease_holder, LedgerStatus.DELIVERED, row_key, session_id=session_id)

    assert rivals(ledger, ["s-1", "s-2", "s-3", "s-4"]) == Rivals(frozenset({"s-2", "s-3"}), same_words=False)
    assert rivals(ledger, []) == Rivals()


@pytest.mark.parametrize("status", [LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT])
def test_row_with_the_same_words_that_is_on_its_way_is_a_rival(ledger: Ledger, status: LedgerStatus) -> None:
    """Of the same user, into the same session, of any connection; once it is settled it is none."""
    other = holder(ledger, "other/x")
    claim(other, "l")
    assert not rivals(ledger).same_words
    other.commit(intents=["l"])
    if status is LedgerStatus.IN_DOUBT:
        other.commit(settlements=[Settlement("l", LedgerStatus.IN_DOUBT)])

    assert rivals(ledger).same_words
    assert not rivals(ledger, user_id="user-2").same_words
    assert not rivals(ledger, message_hash="d" * 64).same_words
    assert not rivals(ledger, into_session="s-1").same_words

    other.commit(settlements=[Settlement("l", LedgerStatus.DELIVERED, session_id="s-2")])
    assert rivals(ledger, ["s-2"]) == Rivals(frozenset({"s-2"}), same_words=False)


@pytest.mark.parametrize("on_in_doubt", ["ask", "resend"])
def test_row_that_is_looked_up_keeps_what_halo_may_have(ledger: Ledger, on_in_doubt: OnInDoubt) -> None:
    """The source may have another content by now; what is sent at once takes its place."""
    dead = holder(ledger, lease=-1.0)
    claim(dead)
    dead.commit(intents=["k"])
    successor = holder(ledger)
    changed = Candidate("k", "user-2", "b" * 64, None, "d" * 64, "s-1", "airflow:note/k/b")

    successor.claim([changed], on_in_doubt=on_in_doubt)

    kept = (*("user-1", "a" * 64, "c" * 64), None, None)
    new = ("user-2", "b" * 64, "d" * 64, "s-1", "airflow:note/k/b")
    columns = ("user_id", "payload_hash", "message_hash", "into_session", "reference")
    assert tuple(rows_in(ledger)["k"][name] for name in columns) == (kept if on_in_doubt == "ask" else new)
    assert successor.renew_content(changed)
    assert tuple(rows_in(ledger)["k"][name] for name in columns) == new
    assert rows_in(ledger)["k"]["status"] is LedgerStatus.IN_DOUBT


def test_witness_is_the_latest_row_that_is_old_enough(ledger: Ledger) -> None:
    """Of this connection; a row that was just delivered may not be found yet."""
    for row_key in ("k", "l"):
        lease_holder = holder(ledger)
        claim(lease_holder, row_key)
        settle(lease_holder, LedgerStatus.DELIVERED, row_key, session_id=f"s-{row_key}")
    assert holder(ledger).witness(older_than=0.0) == ("user-1", "s-l")
    assert holder(ledger).witness(older_than=3600.0) is None
    assert holder(ledger, "other/note").witness(older_than=0.0) is None


def test_row_that_changed_since_it_was_read_is_left_alone(ledger: Ledger) -> None:
    """A run may have sent it again while it was looked up."""
    lease_holder = holder(ledger)
    claim(lease_holder)
    settle(lease_holder, LedgerStatus.IN_DOUBT)
    admin = LedgerAdmin(ledger, actor="test")
    row = admin.rows.row(NAMESPACE, "k")
    assert row is not None
    as_read = RowFilter(namespace=NAMESPACE, row_keys=("k",), updated_at=row.updated_at)
    claim(lease_holder)
    settle(lease_holder, LedgerStatus.IN_DOUBT)

    assert admin.requeue(as_read) == 0
    assert admin.requeue(RowFilter(namespace=NAMESPACE, row_keys=("k",))) == 1


def sign_ins(ledger: Ledger, *, lease: float = 60.0, key: bytes = Fernet.generate_key()) -> SignIns:
    """One process's view of the sign-in."""
    return SignIns(ledger, conn_id="halo_default", cipher=Fernet(key), lease=lease)


def test_one_process_renews_and_the_others_wait(ledger: Ledger) -> None:
    """And then all have the new token."""
    first, second = sign_ins(ledger), sign_ins(ledger)
    first.save(SIGN_IN, lifetime=0.0, actor="somebody")

    mine = first.turn(refused=None, renew_before=300.0)
    others = second.turn(refused=None, renew_before=300.0)
    assert (mine.renews, mine.interrupted, others.renews, others.waits > 0) == (True, False, False, True)

    assert not second.renewed(SIGN_IN, lifetime=3600.0)
    assert first.renewed(SIGN_IN.model_copy(update={"access_token": "halo_at_example_1"}), lifetime=3600.0)
    assert second.turn(refused=None, renew_before=300.0).sign_in.access_token == "halo_at_example_1"


def test_refused_token_is_renewed_before_its_end(ledger: Ledger) -> None:
    """Only once: who still has the old one gets the new one."""
    store = sign_ins(ledger)
    store.save(SIGN_IN, lifetime=3600.0, actor="somebody")

    assert not store.turn(refused=None, renew_before=300.0).renews
    assert store.turn(refused="halo_at_example_0", renew_before=300.0).renews
    store.renewed(SIGN_IN.model_copy(update={"access_token": "halo_at_example_1"}), lifetime=3600.0)
    assert not store.turn(refused="halo_at_example_0", renew_before=300.0).renews


def test_renewal_that_was_interrupted_is_known_as_such(ledger: Ledger) -> None:
    """After its time another process tries, and knows what may have happened."""
    dead, other = sign_ins(ledger, lease=-1.0), sign_ins(ledger)
    dead.save(SIGN_IN, lifetime=0.0, actor="somebody")
    dead.turn(refused=None, renew_before=300.0)

    turn = other.turn(refused=None, renew_before=300.0)

    assert (turn.renews, turn.interrupted) == (True, True)
    assert not dead.renewed(SIGN_IN, lifetime=3600.0)


def test_sign_in_that_has_ended_says_why(ledger: Ledger) -> None:
    """To everybody who asks, with the remedy, until somebody signs in again."""
    store = sign_ins(ledger)
    with pytest.raises(HaloSignInError, match=r"nobody is signed in; run `halo-login --conn-id halo_default`"):
        store.turn(refused=None, renew_before=300.0)
    store.save(SIGN_IN, lifetime=0.0, actor="somebody")
    store.turn(refused=None, renew_before=300.0)
    store.not_renewed(problem="Halo revoked it")

    with pytest.raises(HaloSignInError, match="Halo revoked it"):
        sign_ins(ledger).turn(refused=None, renew_before=300.0)
    state = store.state()
    assert state is not None
    assert (state.problem, state.actor) == ("Halo revoked it", "somebody")

    store.save(SIGN_IN, lifetime=3600.0, actor="somebody")
    assert store.turn(refused=None, renew_before=300.0).sign_in == SIGN_IN


def test_sign_in_under_another_key_cannot_be_read(ledger: Ledger) -> None:
    """The error names the remedy and holds no token."""
    sign_ins(ledger).save(SIGN_IN, lifetime=3600.0, actor="somebody")

    with pytest.raises(LedgerError, match="fernet_key") as raised:
        sign_ins(ledger, key=Fernet.generate_key()).turn(refused=None, renew_before=300.0)
    assert "halo_at" not in str(raised.value)
    assert "halo_at" not in repr(SIGN_IN)


def test_row_without_a_known_beginning_counts_from_its_making(ledger: Ledger) -> None:
    """An intent of a row in doubt whose beginning is not known sets one, and no later than now."""
    lease_holder = holder(ledger)
    claim(lease_holder)
    settle(lease_holder, LedgerStatus.IN_DOUBT, final=False)
    ledger.transaction(lambda db: db.execute(update(submissions).values(doubt_since=None)))

    lease_holder.commit(intents=["k"])

    assert doubt_since(ledger) <= ledger.now()
