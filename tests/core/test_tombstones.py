"""People who are forgotten: nothing of them stays in the ledger, and none of their rows is sent again."""

import pytest
from sqlalchemy import select

from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.admin import REQUEUE_FROM, LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.rules import Candidate
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.ledger.tables import events
from halo_provider.ledger.tombstones import FORGOTTEN, forget
from halo_provider.simulator import Fault, Simulator
from tests.core.deliveries import NAMESPACE, Deliveries, note, rows_in

JANE = "jane@example.com"


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A ledger's place on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


def janes() -> list[dict[str, object]]:
    """Three rows of Jane's, whose keys name her, and one of somebody whose id differs in its case."""
    return [note(f"{JANE}/{number}", user=JANE) for number in range(3)] + [note("x", user=JANE.upper())]


def text_of(ledger: Ledger) -> str:
    """Everything that the ledger's tables of rows hold."""
    told = ledger.transaction(lambda db: [dict(row) for row in db.execute(select(events)).mappings()])
    return f"{rows_in(ledger)} {told}"


@pytest.fixture
def delivered(deliveries: Deliveries, halo: Simulator) -> Deliveries:
    """Two rows delivered, one of Jane's in doubt and held, with a history."""
    halo.script_for(user_id=JANE, faults=[None, None, Fault.drop_after_acceptance()])
    run = deliveries.run(janes(), on_in_doubt="hold")
    assert run.counts == {RowStatus.DELIVERED: 3, RowStatus.IN_DOUBT: 1}
    return deliveries


def test_nothing_of_a_person_stays(delivered: Deliveries, ledger: Ledger) -> None:
    """Neither the id nor what contains it; the others' rows are as they were."""
    others = rows_in(ledger)["x"]

    assert forget(ledger, JANE, actor="somebody") == (3, 0)

    assert JANE not in text_of(ledger)
    left = rows_in(ledger)
    assert left.pop("x") == others
    assert sorted((row["status"], row["error"]) for row in left.values() if row["error"]) == [("rejected", FORGOTTEN)]
    assert sorted(row["status"] for row in left.values()) == ["delivered", "delivered", "rejected"]
    assert {(row["user_id"], row["session_id"], row["payload_hash"], row["reply"]) for row in left.values()} == {
        (None, None, None, None)
    }


@pytest.mark.parametrize("on_change", ["skip", "fail", "follow_up"])
def test_row_of_a_forgotten_person_is_not_sent_again(
    delivered: Deliveries, halo: Simulator, ledger: Ledger, on_change: str
) -> None:
    """Whatever its content is now; what was not delivered is rejected, and says why."""
    forget(ledger, JANE, actor="somebody")
    chats = len(halo.chats)

    run = delivered.run([row | {"text": "New."} for row in janes()[:3]], on_change=on_change)

    assert run.counts == {RowStatus.ALREADY_DELIVERED: 2, RowStatus.REJECTED: 1}
    assert FORGOTTEN in str(run.of(f"{JANE}/2").error)
    assert len(halo.chats) == chats
    assert JANE not in text_of(ledger)


def test_other_rows_are_sent_as_ever(delivered: Deliveries, ledger: Ledger) -> None:
    """New rows beside tombstones, of the same person too."""
    forget(ledger, JANE, actor="somebody")

    run = delivered.run([note("y"), note(f"{JANE}/9", user=JANE), *janes()])

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.ALREADY_DELIVERED: 3, RowStatus.REJECTED: 1}


def test_dry_run_knows_tombstones(delivered: Deliveries, ledger: Ledger) -> None:
    """A preview answers as a claim would."""
    forget(ledger, JANE, actor="somebody")
    holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    candidates = [Candidate(f"{JANE}/{number}", user_id=JANE, payload_hash="1") for number in range(3)]

    claims = holder.preview(candidates, on_in_doubt="resend")

    assert [claims[each.row_key].result for each in candidates] == ["delivered", "delivered", "rejected"]


def test_same_key_of_another_namespace_is_another_row(delivered: Deliveries, ledger: Ledger) -> None:
    """A tombstone counts where its row was."""
    forget(ledger, JANE, actor="somebody")
    holder = ledger.lease_holder("halo_eu/note", task_instance=TaskInstanceRef())

    claims = holder.claim([Candidate(f"{JANE}/0", user_id=JANE, payload_hash="1")], on_in_doubt="resend")

    assert claims[f"{JANE}/0"].result == "claimed"


def test_row_of_a_running_task_is_left(ledger: Ledger) -> None:
    """Its claim is the run's until it ends; then it is forgotten too."""
    holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    holder.claim([Candidate("1", user_id=JANE, payload_hash="1")], on_in_doubt="resend")

    assert forget(ledger, JANE, actor="somebody") == (0, 1)
    holder.release(["1"])
    assert forget(ledger, JANE, actor="somebody") == (1, 0)


def test_tombstone_is_not_settled_and_not_pruned(delivered: Deliveries, ledger: Ledger) -> None:
    """Requeued or deleted, its row would be sent again."""
    forget(ledger, JANE, actor="somebody")
    admin = LedgerAdmin(ledger, actor="somebody")
    wanted = RowFilter(namespace=NAMESPACE)

    assert admin.choice(wanted, REQUEUE_FROM).counts == {}
    assert admin.requeue(wanted) == admin.reject(wanted, reason="test") == 0
    assert admin.prune(wanted, before=ledger.now()) == 1
    assert admin.rows.counts(wanted) == {LedgerStatus.DELIVERED: 2, LedgerStatus.REJECTED: 1}


def test_forgetting_is_told_without_the_person(delivered: Deliveries, ledger: Ledger) -> None:
    """Who did it, when and to how many rows."""
    forget(ledger, JANE, actor="somebody")

    (told,) = ledger.transaction(lambda db: list(db.execute(select(events))))
    assert (told.namespace, told.event, told.actor, told.detail) == (
        NAMESPACE, "forgotten", "somebody", "3 rows of one user",
    )  # fmt: skip


def test_nobody_is_forgotten_twice(delivered: Deliveries, ledger: Ledger) -> None:
    """The second time there is nothing."""
    forget(ledger, JANE, actor="somebody")
    assert forget(ledger, JANE, actor="somebody") == (0, 0)
