"""Rows looked up and settled by hand, on every database the ledger runs on."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from halo_provider.exceptions import DecisionOutdatedError
from halo_provider.ledger import Candidate, Change, LeaseHolder, Ledger, Settlement, TaskInstanceRef, row_reader
from halo_provider.ledger.admin import CHUNK, REJECT_FROM, REQUEUE_FROM, Confirmation, LedgerAdmin
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.refs import run_ref
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.rules import LEASE_RAN_OUT
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import submissions
from tests.core.deliveries import NAMESPACE, rows_in

PAYLOAD = "a" * 64
EXPIRED = -1.0  # seconds: a lease that is over as soon as it begins
ALL = RowFilter(namespace=NAMESPACE)
EVERY_STATUS = tuple(LedgerStatus)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A ledger's place on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


@pytest.fixture
def admin(ledger: Ledger) -> LedgerAdmin:
    """A person's access to the ledger."""
    return LedgerAdmin(ledger, actor="somebody@example.com")


Bring = Callable[..., None]


@pytest.fixture
def bring(ledger: Ledger) -> Bring:
    """Bring new rows to a status, as a delivery does; what is still under way is so for `lease` seconds."""

    def bring(
        status: LedgerStatus,
        *row_keys: str,
        namespace: str = NAMESPACE,
        lease: float = EXPIRED,
        run_id: str = "run 1",
        map_index: int = -1,
        dag_id: str = "applications",
    ) -> None:
        task_instance = TaskInstanceRef(
            dag_id=dag_id, run_id=run_id, task_id="tickets", map_index=map_index, try_number=2
        )
        lease_holder: LeaseHolder = ledger.lease_holder(namespace, task_instance=task_instance, lease=lease)
        lease_holder.claim(
            [Candidate(row_key=key, user_id=f"user-{key}", payload_hash=PAYLOAD) for key in row_keys],
            on_in_doubt="resend",
        )
        if status is not LedgerStatus.PENDING:
            lease_holder.commit(intents=row_keys)
        if status not in {LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT}:
            lease_holder.commit(
                settlements=[
                    Settlement(row_key=key, status=status, session_id=f"sess-{key}", error="why") for key in row_keys
                ]
            )

    return bring


def one(row_key: str) -> RowFilter:
    """The row with this key."""
    return RowFilter(namespace=NAMESPACE, row_keys=(row_key,))


def told(admin: LedgerAdmin, row_key: str = "k") -> list[tuple[str, str, str | None]]:
    """The row's history: what happened, by whom, and why."""
    return [(event.event, event.actor, event.detail) for event in admin.rows.history(NAMESPACE, row_key)]


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_requeue_lets_the_next_run_send_rows_that_may_not_be_with_halo(
    status: LedgerStatus, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """Rows in doubt, failed or rejected, and those whose process died in flight; never one that is delivered."""
    bring(status, "k")

    changed = admin.requeue(one("k"), reason="not in Halo")

    requeued = status in {LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT, LedgerStatus.FAILED, LedgerStatus.REJECTED}
    assert changed == requeued
    assert rows_in(ledger)["k"]["status"] == (LedgerStatus.PENDING if requeued else status)
    assert (("requeued", "somebody@example.com", "not in Halo") in told(admin)) == requeued


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_resolve_marks_a_row_as_delivered_with_the_session_found(
    status: LedgerStatus, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """From doubt, also of a process that died in flight: a failed or rejected row is certainly not with Halo."""
    bring(status, "k")

    before = rows_in(ledger)["k"]

    changed = admin.resolve(one("k"), session_ids={"k": "sess_found"}, reason="seen in the inbox")

    resolved = status in {LedgerStatus.IN_DOUBT, LedgerStatus.IN_FLIGHT}
    assert changed == resolved
    row = rows_in(ledger)["k"]
    as_found = (before["status"], before["session_id"])
    assert (row["status"], row["session_id"]) == ((LedgerStatus.DELIVERED, "sess_found") if resolved else as_found)
    event = ("resolved", "somebody@example.com", "session sess_found: seen in the inbox")
    assert (event in told(admin)) == resolved


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_rejected_by_hand_is_not_sent_as_it_is(
    status: LedgerStatus, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """From every status that is not an end already."""
    bring(status, "k")

    changed = admin.reject(one("k"), reason="a test row")

    rejected = status not in {LedgerStatus.DELIVERED, LedgerStatus.REJECTED}
    assert changed == rejected
    row = rows_in(ledger)["k"]
    assert (row["status"], row["error"]) == (
        (LedgerStatus.REJECTED, "a test row") if rejected else (status, rows_in(ledger)["k"]["error"])
    )
    assert (("rejected", "somebody@example.com", "a test row") in told(admin)) == rejected


@pytest.mark.parametrize("status", EVERY_STATUS)
def test_prune_deletes_old_rows_with_a_final_status(
    status: LedgerStatus, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """Delivered and rejected rows with their history; all others are still to be decided."""
    bring(status, "k")

    changed = admin.prune(ALL, before=ledger.now() + timedelta(seconds=1))

    pruned = status in {LedgerStatus.DELIVERED, LedgerStatus.REJECTED}
    assert changed == pruned
    assert ("k" not in rows_in(ledger)) == pruned
    assert not (pruned and told(admin))


def test_prune_leaves_rows_that_are_young_enough(ledger: Ledger, admin: LedgerAdmin, bring: Bring) -> None:
    """Age counts from a row's last change."""
    bring(LedgerStatus.DELIVERED, "k")

    assert admin.prune(ALL, before=ledger.now() - timedelta(days=1)) == 0
    assert "k" in rows_in(ledger)


def test_pruned_row_takes_its_follow_ups_with_it(ledger: Ledger, admin: LedgerAdmin, bring: Bring) -> None:
    """Or its next change, again the first, would seem to be delivered already."""
    change = Change("k", 1, PAYLOAD)
    bring(LedgerStatus.DELIVERED, "k", "other")
    lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    lease_holder.claim([Candidate(row_key=change.ledger_key, payload_hash=PAYLOAD)], on_in_doubt="resend")
    lease_holder.commit(intents=[change.ledger_key])
    lease_holder.commit(
        settlements=[Settlement(row_key=change.ledger_key, status=LedgerStatus.DELIVERED, change=change)]
    )

    assert admin.prune(one("k"), before=ledger.now() + timedelta(seconds=1)) == 1
    assert rows_in(ledger).keys() == {"other"}


@pytest.mark.parametrize("status", [LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT])
def test_row_with_a_live_lease_is_not_settled_by_hand(
    status: LedgerStatus, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """Every settling method leaves it as it is."""
    bring(status, "k", lease=60.0)
    before = rows_in(ledger)

    changed = [
        admin.requeue(ALL),
        admin.resolve(ALL, session_ids={"k": "sess_found"}),
        admin.reject(ALL, reason="a test row"),
        admin.prune(ALL, before=ledger.now() + timedelta(seconds=1)),
    ]

    assert (changed, rows_in(ledger)) == ([0, 0, 0, 0], before)
    assert told(admin) == []


def test_late_answer_does_not_undo_what_was_settled_by_hand(ledger: Ledger, admin: LedgerAdmin) -> None:
    """A process that comes back to life after its lease finds that the row is no longer its own to settle."""
    slow = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(), lease=EXPIRED)
    slow.claim([Candidate(row_key="k", payload_hash=PAYLOAD)], on_in_doubt="resend")
    slow.commit(intents=["k"])
    admin.reject(one("k"), reason="settled in the inbox")

    commit = slow.commit(settlements=[Settlement(row_key="k", status=LedgerStatus.DELIVERED, session_id="sess_late")])

    assert commit.lost_settlements == {"k"}
    assert rows_in(ledger)["k"]["status"] == LedgerStatus.REJECTED


def test_rejected_by_hand_stays_rejected_until_its_content_changes(
    ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """The next run treats it as one that Halo rejected."""
    bring(LedgerStatus.FAILED, "k")
    admin.reject(one("k"), reason="a test row")
    lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())

    same = lease_holder.claim([Candidate(row_key="k", payload_hash=PAYLOAD)], on_in_doubt="resend")
    other = lease_holder.claim([Candidate(row_key="k", payload_hash="b" * 64)], on_in_doubt="resend")

    assert (same["k"].result, other["k"].result) == ("rejected", "claimed")
    assert same["k"].error == "a test row"


def test_requeued_row_is_claimed_though_its_content_is_the_same(
    ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """Also by a run that holds back doubt: somebody has decided."""
    bring(LedgerStatus.IN_DOUBT, "doubt")
    bring(LedgerStatus.REJECTED, "no")
    admin.requeue(ALL)
    lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())

    claims = lease_holder.claim(
        [Candidate(row_key=key, payload_hash=PAYLOAD) for key in ("doubt", "no")], on_in_doubt="hold"
    )

    assert {claim.result for claim in claims.values()} == {"claimed"}


@pytest.mark.parametrize("settle", ["requeue", "resolve", "reject"])
def test_row_settled_by_hand_after_its_lease_ran_out_was_in_doubt(
    settle: str, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """Its history tells the doubt before the decision: a second sending is never without a record of doubt."""
    bring(LedgerStatus.IN_FLIGHT, "k")
    bring(LedgerStatus.FAILED, "certain")
    settled = {
        "requeue": lambda: admin.requeue(ALL, reason="seen"),
        "resolve": lambda: admin.resolve(ALL, session_ids={"k": "s", "certain": "s"}, reason="seen"),
        "reject": lambda: admin.reject(ALL, reason="seen"),
    }

    assert settled[settle]() == (1 if settle == "resolve" else 2)

    assert [event for event, _, _ in told(admin)] == ["in_doubt", told(admin)[-1][0]]
    assert told(admin)[0] == ("in_doubt", "somebody@example.com", LEASE_RAN_OUT)
    assert "in_doubt" not in [event for event, _, _ in told(admin, "certain")]


def test_history_tells_errors_and_decisions_in_order(admin: LedgerAdmin, bring: Bring) -> None:
    """The run's trouble first, with its task instance, then the person's decision."""
    bring(LedgerStatus.IN_DOUBT, "k")
    admin.requeue(one("k"), reason="not in Halo")

    run = "applications run 1 tickets try 2"
    assert told(admin) == [("in_doubt", run, "why"), ("requeued", "somebody@example.com", "not in Halo")]
    first, second = admin.rows.history(NAMESPACE, "k")
    assert datetime.now(UTC) - timedelta(minutes=1) < first.at <= second.at


def test_more_rows_than_fit_a_transaction_are_all_settled(admin: LedgerAdmin, bring: Bring) -> None:
    """Some in each, and each row once."""
    row_keys = [f"{number:04}" for number in range(CHUNK + 3)]
    bring(LedgerStatus.FAILED, *row_keys)

    assert admin.requeue(ALL) == len(row_keys)
    assert admin.rows.counts(ALL) == {LedgerStatus.PENDING: len(row_keys)}
    assert len(told(admin, row_keys[-1])) == 2


def test_other_namespaces_are_left_alone(ledger: Ledger, admin: LedgerAdmin, bring: Bring) -> None:
    """The same key may stand in several of them."""
    bring(LedgerStatus.FAILED, "k")
    bring(LedgerStatus.FAILED, "k", namespace="halo_other/note")

    admin.reject(one("k"), reason="a test row")

    assert admin.rows.row(NAMESPACE, "k").status == LedgerStatus.REJECTED
    assert admin.rows.row("halo_other/note", "k").status == LedgerStatus.FAILED
    assert admin.rows.row(NAMESPACE, "nobody") is None


def test_pages_hold_every_row_once_in_the_order_of_namespace_and_key(admin: LedgerAdmin, bring: Bring) -> None:
    """Each page begins behind the last one."""
    for namespace in ("b/note", "a/note"):
        bring(LedgerStatus.DELIVERED, "3", "1", "2", namespace=namespace)
    found: list[tuple[str, str]] = []
    after = None
    while page := admin.rows.page(RowFilter(), after=after, limit=2):
        found += [(row.namespace, row.row_key) for row in page]
        after = RowCursor(*found[-1])

    assert found == [(namespace, key) for namespace in ("a/note", "b/note") for key in "123"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (RowFilter(statuses=(LedgerStatus.FAILED, LedgerStatus.IN_DOUBT)), {"b%", "c"}),
        (RowFilter(run_id="run 2"), {"c"}),
        (RowFilter(dag_ids=("applications",), task_id="tickets", map_index=-1), {"a", "b%", "c"}),
        (RowFilter(dag_ids=()), set()),
        (RowFilter(dag_ids=("others",)), set()),
        (RowFilter(search="%"), {"b%"}),
        (RowFilter(search="sess-a"), {"a"}),
        (RowFilter(search="user-c"), {"c"}),
        (RowFilter(row_keys=("a", "nobody"), statuses=(LedgerStatus.DELIVERED,)), {"a"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_filter_finds_the_rows_for_which_all_of_it_holds(
    wanted: RowFilter, found: set[str], admin: LedgerAdmin, bring: Bring
) -> None:
    """A search is for the letters as they are, never for a pattern."""
    bring(LedgerStatus.DELIVERED, "a")
    bring(LedgerStatus.FAILED, "b%")
    bring(LedgerStatus.IN_DOUBT, "c", run_id="run 2")

    assert {row.row_key for row in admin.rows.page(wanted)} == found
    assert sum(admin.rows.counts(wanted).values()) == len(found)


@pytest.mark.parametrize(
    "scope",
    [
        RowFilter(dag_ids=("applications",)),
        RowFilter(dag_ids=("applications",), run_id="run 1"),
        RowFilter(dag_ids=("applications",), run_id="run 1", task_id="tickets"),
        RowFilter(dag_ids=("applications",), run_id="run 1", task_id="tickets", map_index=2),
        RowFilter(dag_ids=("applications",), run_id="run 1", map_index=2),
    ],
    ids=["dag", "run", "task", "task instance", "map index"],
)
def test_search_whose_pages_end_early_finds_every_row_once(
    scope: RowFilter, admin: LedgerAdmin, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page after page, each of one step at most, also where every task instance has fewer rows than a step."""
    for map_index in range(9):
        bring(LedgerStatus.FAILED, f"{map_index}-a", map_index=map_index)
        bring(LedgerStatus.DELIVERED, *(f"{map_index}-{each}" for each in "bcdef"), map_index=map_index)
    expected = {row.row_key for row in admin.rows.page(replace(scope, search="c"))}
    monkeypatch.setattr(row_reader, "SEARCH_STEP", 2)
    monkeypatch.setattr(row_reader, "SEARCH_TIME", 0.0)
    read: list[RowFilter] = []
    page = row_reader.RowReader.page
    monkeypatch.setattr(
        row_reader.RowReader, "page", lambda self, one, **how: read.append(one) or page(self, one, **how)
    )

    found: list[str] = []
    after = None
    while True:
        read.clear()
        part = admin.rows.urgent_first(replace(scope, search="c"), after=after)
        found += [row.row_key for row in part.rows]
        after = part.following
        if after is None:
            break
        assert len(set(read)) <= len(LedgerStatus)

    assert expected
    assert sorted(found) == sorted(expected)


def test_page_about_several_tasks_counts_only_these(admin: LedgerAdmin, bring: Bring) -> None:
    """All of a task's instances, one of them, and one that does not exist."""
    for map_index in range(3):
        bring(LedgerStatus.DELIVERED, f"{map_index}-a", f"{map_index}-b", map_index=map_index)
    bring(LedgerStatus.FAILED, "2-c", map_index=2)
    bring(LedgerStatus.FAILED, "other", run_id="run 2", map_index=2)
    run = RowFilter(dag_ids=("applications",), run_id="run 1")

    assert admin.rows.counts(replace(run, task_id="tickets")) == {LedgerStatus.DELIVERED: 6, LedgerStatus.FAILED: 1}
    assert admin.rows.counts(replace(run, map_index=2)) == {LedgerStatus.DELIVERED: 2, LedgerStatus.FAILED: 1}
    assert admin.rows.counts(replace(run, map_index=9)) == {}
    assert admin.rows.counts(replace(run, task_id="others")) == {}


@pytest.mark.parametrize("wanted", [{}, {"task_id": "tickets", "map_index": -1}, {"search": "user"}])
def test_page_of_a_run_has_no_row_of_another_run_with_the_same_number(
    wanted: dict[str, Any], ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """The number in the index is made of names, and others may have it: the page is for people of one DAG."""
    bring(LedgerStatus.FAILED, "b")
    bring(LedgerStatus.FAILED, "a", dag_id="secret")
    same = update(submissions).values(run_ref=run_ref("applications", "run 1")).where(submissions.c.row_key == "a")
    ledger.transaction(lambda db: db.execute(same))

    of_run = RowFilter(dag_ids=("applications",), run_id="run 1", **wanted)
    found = admin.rows.urgent_first(of_run).rows
    full_page = admin.rows.page(of_run, limit=1)

    assert [row.row_key for row in found] == ["b"]
    assert [row.row_key for row in full_page] == ["b"]


def test_task_instances_are_named_by_their_deliveries_or_by_their_rows(
    ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """A delivery's record names its task instance; a row names one that has none, as a hook's."""
    for map_index in range(2):
        bring(LedgerStatus.DELIVERED, f"{map_index}-a", map_index=map_index)
    recorded = TaskInstanceRef(dag_id="applications", run_id="run 1", task_id="tickets", map_index=1, try_number=1)
    DeliveryRecords(ledger).begin("somebody", namespace=NAMESPACE, task_instance=recorded, total=None)

    found = admin.rows.urgent_first(RowFilter(dag_ids=("applications",), run_id="run 1", task_id="tickets")).rows

    assert {row.row_key for row in found} == {"0-a", "1-a"}


def test_dags_are_those_with_rows_of_these_statuses(admin: LedgerAdmin, bring: Bring) -> None:
    """Each once, however many rows and statuses it has."""
    for number, dag_id in enumerate(("b", "a", "c")):
        bring(LedgerStatus.FAILED, f"{number}-1", f"{number}-2", dag_id=dag_id)
        bring(LedgerStatus.REJECTED, f"{number}-3", dag_id=dag_id)
    bring(LedgerStatus.DELIVERED, "done", dag_id="d")

    assert admin.rows.dag_ids((LedgerStatus.FAILED, LedgerStatus.REJECTED)) == ["a", "b", "c"]
    assert admin.rows.dag_ids((LedgerStatus.IN_DOUBT,)) == []


def test_namespaces_are_those_with_rows(admin: LedgerAdmin, bring: Bring) -> None:
    """Each once, in order, however many rows it has; of a name that begins another one, too."""
    names = ("halo/applications", "halo", "halo/Applications", "halo/öffnen")
    for name in names:
        bring(LedgerStatus.DELIVERED, "1", "2", "3", namespace=name)

    assert admin.rows.namespaces() == sorted(names)


def test_ledger_without_rows_has_no_namespace(admin: LedgerAdmin) -> None:
    """Nothing is found, and nothing fails."""
    assert admin.rows.namespaces() == []


DECISION = "d" * 32


@pytest.mark.parametrize("decide", ["requeue", "resolve", "reject"])
def test_decision_is_undone_while_no_run_has_acted_on_it(
    decide: str, ledger: Ledger, admin: LedgerAdmin, bring: Bring
) -> None:
    """The row has its status, its session and its error again, and the history says who gave them back."""
    bring(LedgerStatus.IN_DOUBT, "k")
    before = rows_in(ledger)["k"]
    match decide:
        case "requeue":
            admin.requeue(ALL, decision=DECISION)
        case "resolve":
            admin.resolve(ALL, session_ids={"k": "sess_found"}, decision=DECISION)
        case "reject":
            admin.reject(ALL, reason="a test row", decision=DECISION)
    made = admin.decision(DECISION, dag_ids=("applications",))
    assert made is not None
    assert (made.rows, made.undoable, made.undone) == (1, 1, 0)

    assert admin.undo(DECISION, dag_ids=("applications",)) == 1

    after = rows_in(ledger)["k"]
    names = ("status", "session_id", "error", "payload_hash")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert told(admin)[-1] == ("undone", "somebody@example.com", f"{made.event} is undone")
    assert admin.undo(DECISION, dag_ids=("applications",)) == 0


def test_decision_that_a_run_has_acted_on_stays(ledger: Ledger, admin: LedgerAdmin, bring: Bring) -> None:
    """Only the rows that nobody has taken since are given back; another DAG's rows never are."""
    bring(LedgerStatus.FAILED, "taken", "free")
    admin.requeue(ALL, decision=DECISION)
    run = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(dag_id="applications", run_id="run 2"))
    run.claim([Candidate(row_key="taken", payload_hash=PAYLOAD)], on_in_doubt="resend")

    assert admin.undo(DECISION, dag_ids=("another",)) == 0
    assert admin.undo(DECISION, dag_ids=("applications",)) == 1

    statuses = {key: row["status"] for key, row in rows_in(ledger).items()}
    assert statuses == {"taken": LedgerStatus.PENDING, "free": LedgerStatus.FAILED}


def test_confirmed_decision_changes_exactly_what_was_shown(admin: LedgerAdmin, bring: Bring) -> None:
    """The rows of the look, and none that came after it."""
    bring(LedgerStatus.FAILED, *(f"{number:02}" for number in range(7)))
    choice = admin.choice(ALL, REQUEUE_FROM)

    assert (choice.confirmation.count, [row.row_key for row in choice.examples]) == (7, ["00", "01", "02", "03", "04"])
    assert admin.requeue(ALL, confirmation=choice.confirmation) == 7


def test_decision_about_other_rows_than_were_shown_is_refused(admin: LedgerAdmin, bring: Bring) -> None:
    """More rows, fewer rows, or rows that changed since: none is changed, and the error says how many there are."""
    bring(LedgerStatus.FAILED, "1", "2")
    shown = admin.choice(ALL, REJECT_FROM).confirmation
    bring(LedgerStatus.FAILED, "3", "4")

    with pytest.raises(DecisionOutdatedError, match="4 match now, 2 were confirmed: look again"):
        admin.reject(ALL, reason="a test row", confirmation=shown)
    with pytest.raises(DecisionOutdatedError, match="of the 4 that were confirmed, some have changed since"):
        admin.reject(ALL, reason="a test row", confirmation=Confirmation(4, shown.as_of))

    assert admin.rows.counts(ALL) == {LedgerStatus.FAILED: 4}


def test_event_says_which_dag_it_is_about(ledger: Ledger, admin: LedgerAdmin, bring: Bring) -> None:
    """A row that another DAG took over has events of both, and no longer what people of the first said of it."""
    bring(LedgerStatus.FAILED, "k")
    admin.reject(one("k"), reason="our reason")
    other = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(dag_id="other", run_id="run 1"))
    other.claim([Candidate(row_key="k", payload_hash="b" * 64)], on_in_doubt="resend")
    other.commit(intents=["k"])
    other.commit(settlements=[Settlement(row_key="k", status=LedgerStatus.IN_DOUBT, error="no answer")])

    assert [event.dag_id for event in admin.rows.history(NAMESPACE, "k")] == ["applications", "applications", "other"]
    assert rows_in(ledger)["k"]["error"] == "no answer"
