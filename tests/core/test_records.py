"""Rows looked up and settled by hand, on every database the ledger runs on."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from halo_provider.ledger.admin import CHUNK, Place, Records, RowFilter
from halo_provider.ledger.ledger import Attempt, Candidate, Change, Claimant, Ledger, Settlement
from halo_provider.ledger.statuses import Status
from tests.core.deliveries import NAMESPACE, rows_in

PAYLOAD = "a" * 64
EXPIRED = -1.0  # seconds: a lease that is over as soon as it begins
ALL = RowFilter(namespace=NAMESPACE)
EVERY_STATUS = tuple(Status)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A ledger's place on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


@pytest.fixture
def records(ledger: Ledger) -> Records:
    """The ledger in somebody's hands."""
    return Records(ledger, actor="somebody@example.com")


Bring = Callable[..., None]


@pytest.fixture
def bring(ledger: Ledger) -> Bring:
    """Bring new rows to a status, as a delivery does; what is still under way is so for `lease` seconds."""

    def bring(
        status: Status, *row_keys: str, namespace: str = NAMESPACE, lease: float = EXPIRED, run_id: str = "run 1"
    ) -> None:
        attempt = Attempt(dag_id="applications", run_id=run_id, task_id="tickets", map_index=-1, try_number=2)
        claimant: Claimant = ledger.claimant(namespace, attempt=attempt, lease=lease)
        claimant.claim(
            [Candidate(row_key=key, user_id=f"user-{key}", payload_hash=PAYLOAD) for key in row_keys],
            on_in_doubt="resend",
        )
        if status is not Status.PENDING:
            claimant.commit(intents=row_keys)
        if status not in {Status.PENDING, Status.IN_FLIGHT}:
            claimant.commit(
                settlements=[
                    Settlement(row_key=key, status=status, session_id=f"sess-{key}", error="why") for key in row_keys
                ]
            )

    return bring


def one(row_key: str) -> RowFilter:
    """The row with this key."""
    return RowFilter(namespace=NAMESPACE, row_keys=(row_key,))


def told(records: Records, row_key: str = "k") -> list[tuple[str, str, str | None]]:
    """The row's history: what happened, by whom, and why."""
    return [(event.event, event.actor, event.detail) for event in records.history(NAMESPACE, row_key)]


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_requeue_lets_the_next_run_send_what_is_not_with_halo_for_certain(
    status: Status, ledger: Ledger, records: Records, bring: Bring
) -> None:
    """Rows in doubt, failed or rejected, and those whose process died in flight; never one that is delivered."""
    bring(status, "k")

    changed = records.requeue(one("k"), reason="not in Halo")

    requeued = status in {Status.IN_FLIGHT, Status.IN_DOUBT, Status.FAILED, Status.REJECTED}
    assert changed == requeued
    assert rows_in(ledger)["k"]["status"] == (Status.PENDING if requeued else status)
    assert (("requeued", "somebody@example.com", "not in Halo") in told(records)) == requeued


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_resolve_takes_a_row_as_delivered_with_the_session_found(
    status: Status, ledger: Ledger, records: Records, bring: Bring
) -> None:
    """From every status but delivered, whose own session stays."""
    bring(status, "k")

    changed = records.resolve(one("k"), session_id="sess_found", reason="seen in the inbox")

    resolved = status is not Status.DELIVERED
    assert changed == resolved
    row = rows_in(ledger)["k"]
    assert (row["status"], row["session_id"]) == (Status.DELIVERED, "sess_found" if resolved else "sess-k")
    event = ("resolved", "somebody@example.com", "session sess_found: seen in the inbox")
    assert (event in told(records)) == resolved


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_reject_keeps_a_row_from_being_sent_as_it_is(
    status: Status, ledger: Ledger, records: Records, bring: Bring
) -> None:
    """From every status that is not an end already."""
    bring(status, "k")

    changed = records.reject(one("k"), reason="a test row")

    rejected = status not in {Status.DELIVERED, Status.REJECTED}
    assert changed == rejected
    row = rows_in(ledger)["k"]
    assert (row["status"], row["error"]) == (
        (Status.REJECTED, "a test row") if rejected else (status, rows_in(ledger)["k"]["error"])
    )
    assert (("rejected", "somebody@example.com", "a test row") in told(records)) == rejected


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_prune_forgets_old_rows_that_have_come_to_their_end(
    status: Status, ledger: Ledger, records: Records, bring: Bring
) -> None:
    """Delivered and rejected rows with their history; all others are still to be decided."""
    bring(status, "k")

    changed = records.prune(ALL, before=ledger.now() + timedelta(seconds=1))

    pruned = status in {Status.DELIVERED, Status.REJECTED}
    assert changed == pruned
    assert ("k" not in rows_in(ledger)) == pruned
    assert not (pruned and told(records))


def test_prune_leaves_rows_that_are_young_enough(ledger: Ledger, records: Records, bring: Bring) -> None:
    """Age counts from a row's last change."""
    bring(Status.DELIVERED, "k")

    assert records.prune(ALL, before=ledger.now() - timedelta(days=1)) == 0
    assert "k" in rows_in(ledger)


def test_pruned_row_takes_its_follow_ups_with_it(ledger: Ledger, records: Records, bring: Bring) -> None:
    """Or its next change, again the first, would seem to be delivered already."""
    change = Change("k", 1, PAYLOAD)
    bring(Status.DELIVERED, "k", "other")
    claimant = ledger.claimant(NAMESPACE, attempt=Attempt())
    claimant.claim([Candidate(row_key=change.ledger_key, payload_hash=PAYLOAD)], on_in_doubt="resend")
    claimant.commit(intents=[change.ledger_key])
    claimant.commit(settlements=[Settlement(row_key=change.ledger_key, status=Status.DELIVERED, change=change)])

    assert records.prune(one("k"), before=ledger.now() + timedelta(seconds=1)) == 1
    assert rows_in(ledger).keys() == {"other"}


@pytest.mark.parametrize("status", [Status.PENDING, Status.IN_FLIGHT])
def test_row_in_a_runs_hands_is_not_touched(status: Status, ledger: Ledger, records: Records, bring: Bring) -> None:
    """While the lease lives nobody settles it by hand."""
    bring(status, "k", lease=60.0)
    before = rows_in(ledger)

    changed = [
        records.requeue(ALL),
        records.resolve(ALL, session_id="sess_found"),
        records.reject(ALL, reason="a test row"),
        records.prune(ALL, before=ledger.now() + timedelta(seconds=1)),
    ]

    assert (changed, rows_in(ledger)) == ([0, 0, 0, 0], before)
    assert told(records) == []


def test_late_answer_does_not_undo_what_was_settled_by_hand(ledger: Ledger, records: Records) -> None:
    """A process that comes back to life after its lease finds that the row is no longer its own to settle."""
    slow = ledger.claimant(NAMESPACE, attempt=Attempt(), lease=EXPIRED)
    slow.claim([Candidate(row_key="k", payload_hash=PAYLOAD)], on_in_doubt="resend")
    slow.commit(intents=["k"])
    records.reject(one("k"), reason="settled in the inbox")

    commit = slow.commit(settlements=[Settlement(row_key="k", status=Status.DELIVERED, session_id="sess_late")])

    assert commit.lost_settlements == {"k"}
    assert rows_in(ledger)["k"]["status"] == Status.REJECTED


def test_rejected_by_hand_stays_rejected_until_its_content_changes(
    ledger: Ledger, records: Records, bring: Bring
) -> None:
    """The next run treats it as one that Halo rejected."""
    bring(Status.FAILED, "k")
    records.reject(one("k"), reason="a test row")
    claimant = ledger.claimant(NAMESPACE, attempt=Attempt())

    same = claimant.claim([Candidate(row_key="k", payload_hash=PAYLOAD)], on_in_doubt="resend")
    other = claimant.claim([Candidate(row_key="k", payload_hash="b" * 64)], on_in_doubt="resend")

    assert (same["k"].standing, other["k"].standing) == ("rejected", "claimed")
    assert same["k"].error == "a test row"


def test_requeued_row_is_claimed_though_its_content_is_the_same(ledger: Ledger, records: Records, bring: Bring) -> None:
    """Also by a run that holds back doubt: somebody has decided."""
    bring(Status.IN_DOUBT, "doubt")
    bring(Status.REJECTED, "no")
    records.requeue(ALL)
    claimant = ledger.claimant(NAMESPACE, attempt=Attempt())

    claims = claimant.claim(
        [Candidate(row_key=key, payload_hash=PAYLOAD) for key in ("doubt", "no")], on_in_doubt="hold"
    )

    assert {claim.standing for claim in claims.values()} == {"claimed"}


def test_history_tells_what_went_wrong_and_who_decided_in_order(records: Records, bring: Bring) -> None:
    """The run's trouble first, with its task instance, then the person's decision."""
    bring(Status.IN_DOUBT, "k")
    records.requeue(one("k"), reason="not in Halo")

    run = "applications run 1 tickets try 2"
    assert told(records) == [("in_doubt", run, "why"), ("requeued", "somebody@example.com", "not in Halo")]
    first, second = records.history(NAMESPACE, "k")
    assert datetime.now(UTC) - timedelta(minutes=1) < first.at <= second.at


def test_more_rows_than_fit_a_transaction_are_all_settled(records: Records, bring: Bring) -> None:
    """Some in each, and each row once."""
    row_keys = [f"{number:04}" for number in range(CHUNK + 3)]
    bring(Status.FAILED, *row_keys)

    assert records.requeue(ALL) == len(row_keys)
    assert records.counts(ALL) == {Status.PENDING: len(row_keys)}
    assert len(told(records, row_keys[-1])) == 2


def test_other_namespaces_are_left_alone(ledger: Ledger, records: Records, bring: Bring) -> None:
    """The same key may stand in several of them."""
    bring(Status.FAILED, "k")
    bring(Status.FAILED, "k", namespace="halo_other/note")

    records.reject(one("k"), reason="a test row")

    assert records.row(NAMESPACE, "k").status == Status.REJECTED
    assert records.row("halo_other/note", "k").status == Status.FAILED
    assert records.row(NAMESPACE, "nobody") is None


def test_pages_hold_every_row_once_in_the_order_of_namespace_and_key(records: Records, bring: Bring) -> None:
    """Each page begins behind the last one."""
    for namespace in ("b/note", "a/note"):
        bring(Status.DELIVERED, "3", "1", "2", namespace=namespace)
    found: list[tuple[str, str]] = []
    after = None
    while page := records.page(RowFilter(), after=after, limit=2):
        found += [(row.namespace, row.row_key) for row in page]
        after = Place(*found[-1])

    assert found == [(namespace, key) for namespace in ("a/note", "b/note") for key in "123"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RowFilter(statuses=(Status.FAILED, Status.IN_DOUBT)), {"b%", "c"}),
        (RowFilter(run_id="run 2"), {"c"}),
        (RowFilter(dag_ids=("applications",), task_id="tickets", map_index=-1), {"a", "b%", "c"}),
        (RowFilter(dag_ids=()), set()),
        (RowFilter(dag_ids=("others",)), set()),
        (RowFilter(search="%"), {"b%"}),
        (RowFilter(search="sess-a"), {"a"}),
        (RowFilter(search="user-c"), {"c"}),
        (RowFilter(row_keys=("a", "nobody"), statuses=(Status.DELIVERED,)), {"a"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_filter_finds_the_rows_for_which_all_of_it_holds(
    wanted: RowFilter, found: set[str], records: Records, bring: Bring
) -> None:
    """A search is for the letters as they are, never for a pattern."""
    bring(Status.DELIVERED, "a")
    bring(Status.FAILED, "b%")
    bring(Status.IN_DOUBT, "c", run_id="run 2")

    assert {row.row_key for row in records.page(wanted)} == found
    assert sum(records.counts(wanted).values()) == len(found)
