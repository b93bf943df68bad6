"""Changed rows become follow-ups in the session they have, and a submission may follow another one's row."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from halo_provider.delivery.dry_run import dry_run
from halo_provider.delivery.options import DeliveryOptions, OnChange
from halo_provider.exceptions import RowsChangedError
from halo_provider.ledger import Candidate, Ledger, Settlement, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.lists import ListSource
from halo_provider.submission import Submission, User
from tests.core.deliveries import NAMESPACE, NOTE, Deliveries, Run, note, notes, rows_in

CANCELLATION = Submission(
    name="cancellation",
    key="id",
    user=User(id="user"),
    message="Cancelled: {text}",
    follows=("note", "of"),
)


def said(halo: Simulator) -> list[tuple[str, str]]:
    """Every message Halo took, with its session, in order."""
    return [(chat.session_id, chat.message) for chat in halo.chats]


def changed_to(text: str) -> list[dict[str, Any]]:
    """The one row with another content."""
    return [note("a", text=text)]


def test_changed_row_is_left_alone_and_counted(deliveries: Deliveries, halo: Simulator) -> None:
    """on_change="skip", the default: delivered is delivered, and the report tells how many differ."""
    deliveries.run(changed_to("A"))

    run = deliveries.run(changed_to("B"))

    assert (run.counts, run.report.changed, len(halo.chats)) == ({RowStatus.ALREADY_DELIVERED: 1}, 1, 1)
    assert run.report.failure() is None


def test_row_that_did_not_change_is_no_change(deliveries: Deliveries, halo: Simulator) -> None:
    """Whatever on_change says, the same content is neither counted nor sent."""
    deliveries.run(notes(3))

    run = deliveries.run(notes(3), on_change="follow_up")

    assert (run.counts, run.report.changed, len(halo.chats)) == ({RowStatus.ALREADY_DELIVERED: 3}, 0, 3)


def test_changed_rows_are_an_error_where_that_is_wanted(deliveries: Deliveries, halo: Simulator) -> None:
    """on_change="fail": nothing of them is sent, all others are, and the error names the first."""
    deliveries.run([note("a", text="A"), note("b", text="B")])

    run = deliveries.run([note("a", text="A2"), note("b", text="B2"), note("c")], on_change="fail")

    failure = run.report.failure()
    assert isinstance(failure, RowsChangedError)
    assert (failure.changed, failure.first) == (2, "a")
    assert run.counts == {RowStatus.ALREADY_DELIVERED: 2, RowStatus.DELIVERED: 1}
    assert [chat.message for chat in halo.chats] == ["A", "B", "Thank you."]


def test_changed_row_follows_up_in_its_session(deliveries: Deliveries, halo: Simulator, ledger: Ledger) -> None:
    """on_change="follow_up": the new content goes where the first went, and the row has the session still."""
    deliveries.run(changed_to("A"))

    run = deliveries.run(changed_to("B"), on_change="follow_up")

    ((session, first), (second_session, second)) = said(halo)
    assert (first, second, second_session) == ("A", "B", session)
    assert (run.counts, run.report.changed) == ({RowStatus.DELIVERED: 1}, 1)
    assert run.of("a").session_id == session
    assert rows_in(ledger)["a"]["session_id"] == session


def test_each_change_is_sent_once(deliveries: Deliveries, halo: Simulator) -> None:
    """A second run over the changed row sends nothing."""
    deliveries.run(changed_to("A"))
    deliveries.run(changed_to("B"), on_change="follow_up")

    again = deliveries.run(changed_to("B"), on_change="follow_up")

    assert (again.counts, again.report.changed) == ({RowStatus.ALREADY_DELIVERED: 1}, 0)
    assert len(halo.chats) == 2


def test_row_that_changes_back_follows_up_again(deliveries: Deliveries, halo: Simulator) -> None:
    """From A to B to A to B are three changes, though two of the contents were sent before."""
    for text in "ABABB":
        deliveries.run(changed_to(text), on_change="follow_up")

    assert [message for _, message in said(halo)] == ["A", "B", "A", "B"]
    assert len({session for session, _ in said(halo)}) == 1


def test_skipped_change_is_still_a_change_for_a_later_run(deliveries: Deliveries, halo: Simulator) -> None:
    """Whoever looked away at first may follow up afterwards."""
    deliveries.run(changed_to("A"))
    deliveries.run(changed_to("B"), on_change="skip")

    deliveries.run(changed_to("B"), on_change="follow_up")

    assert [message for _, message in said(halo)] == ["A", "B"]


def test_follow_up_that_halo_rejects_is_sent_again_when_the_row_changes_again(
    deliveries: Deliveries, halo: Simulator
) -> None:
    """The delivered row keeps its session; only the change is rejected, and not sent twice as it is."""
    deliveries.run(changed_to("A"))
    halo.script(path="/chat", faults=[Fault.status(400)])
    rejected = deliveries.run(changed_to("B"), on_change="follow_up")
    again = deliveries.run(changed_to("B"), on_change="follow_up")

    run = deliveries.run(changed_to("C"), on_change="follow_up")

    assert (rejected.counts, again.counts) == ({RowStatus.REJECTED: 1}, {RowStatus.REJECTED: 1})
    assert run.counts == {RowStatus.DELIVERED: 1}
    assert [message for _, message in said(halo)] == ["A", "C"]


@pytest.mark.parametrize("on_change", ["skip", "follow_up"])
def test_dry_run_counts_follow_ups(deliveries: Deliveries, halo: Simulator, on_change: OnChange) -> None:
    """They are messages to be sent like others, as long as they are not delivered or rejected themselves."""
    deliveries.run([note("changed", text="A"), note("same"), note("refused", text="A")])
    halo.script_for(user_id="user-refused", faults=[Fault.status(400)])
    deliveries.run([note("refused", text="B")], on_change="follow_up")
    rows = [note("changed", text="B"), note("same"), note("refused", text="B"), note("new")]
    planned = dry_run(
        ListSource(rows),
        submission=NOTE,
        lease_holder=deliveries.lease_holder(),
        options=DeliveryOptions(on_change=on_change),
    )

    run = deliveries.run(rows, on_change=on_change)

    sent = planned.counts.pop(RowStatus.NOT_ATTEMPTED)
    assert (sent, sent) == (planned.would_send, run.counts[RowStatus.DELIVERED])
    assert planned.counts + Counter({RowStatus.DELIVERED: sent}) == run.counts


def test_two_runs_at_once_follow_up_once(deliveries: Deliveries, halo: Simulator) -> None:
    """The change has a key of its own, which only one run can claim."""
    deliveries.run(changed_to("A"))

    async def both() -> tuple[Run, ...]:
        runs = [deliveries.deliver(changed_to("B"), on_change="follow_up") for _ in range(2)]
        return tuple(await asyncio.gather(*runs))

    runs = asyncio.run(both())

    assert [message for _, message in said(halo)] == ["A", "B"]
    assert sorted(status for run in runs for status in run.counts) == [RowStatus.ALREADY_DELIVERED, RowStatus.DELIVERED]


def crash_in_mid_follow_up(deliveries: Deliveries) -> None:
    """Leave the follow-up as a killed process does: its intent on the record, its lease run out."""
    lease_holder = deliveries.lease_holder(lease=-1.0)
    lease_holder.claim([Candidate(row_key="a\tchange 1", payload_hash="b" * 64)], on_in_doubt="resend")
    lease_holder.commit(intents=["a\tchange 1"])


def test_crash_in_mid_follow_up_resends_it_and_counts_one_change(deliveries: Deliveries, halo: Simulator) -> None:
    """A follow-up in doubt is like a row in doubt; afterwards the change is done."""
    deliveries.run(changed_to("A"))
    crash_in_mid_follow_up(deliveries)

    run = deliveries.run(changed_to("B"), on_change="follow_up")
    again = deliveries.run(changed_to("B"), on_change="follow_up")

    assert (run.counts, again.counts) == ({RowStatus.DELIVERED: 1}, {RowStatus.ALREADY_DELIVERED: 1})
    assert [message for _, message in said(halo)] == ["A", "B"]


def test_crash_in_mid_follow_up_is_held_where_doubt_is_held(deliveries: Deliveries, halo: Simulator) -> None:
    """on_in_doubt="hold": the change waits for a decision, the row stays delivered."""
    deliveries.run(changed_to("A"))
    crash_in_mid_follow_up(deliveries)

    run = deliveries.run(changed_to("B"), on_change="follow_up", on_in_doubt="hold")

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert deliveries.statuses() == {"a": LedgerStatus.DELIVERED, "a\tchange 1": LedgerStatus.IN_DOUBT}
    assert len(halo.chats) == 1


def test_follow_up_resolved_by_hand_is_not_sent_again(deliveries: Deliveries, ledger: Ledger, halo: Simulator) -> None:
    """Somebody found it in Halo: that content is not sent again, and the next change is."""
    deliveries.run(changed_to("A"))
    halo.script(path="/chat", faults=[Fault.drop_after_acceptance()])
    deliveries.run(changed_to("B"), on_change="follow_up", on_in_doubt="hold")
    found = RowFilter(namespace=NAMESPACE, row_keys=("a\tchange 1",))
    session_ids = {"a\tchange 1": halo.chats[0].session_id}
    assert LedgerAdmin(ledger, actor="somebody").resolve(found, session_ids=session_ids) == 1

    same = deliveries.run(changed_to("B"), on_change="follow_up")
    other = deliveries.run(changed_to("C"), on_change="follow_up")

    assert (same.counts, same.report.changed) == ({RowStatus.ALREADY_DELIVERED: 1}, 0)
    assert other.counts == {RowStatus.DELIVERED: 1}
    assert [message for _, message in said(halo)] == ["A", "B", "C"]


def test_users_rows_and_follow_ups_keep_their_order(deliveries: Deliveries, halo: Simulator) -> None:
    """A follow-up is one of its user's submissions: never beside another one, and in the source's order."""
    deliveries.run([note("a", user="u", text="A")])
    halo.script(path="/chat", faults=[Fault.slow(0.2)])

    rows = [note("a", user="u", text="A2"), note("b", user="u", text="B"), note("c", user="u", text="C")]
    deliveries.run(rows, on_change="follow_up")

    assert [message for _, message in said(halo)] == ["A", "A2", "B", "C"]
    assert halo.max_concurrency == 1


def cancellation(row_key: str, *, of: str, user: str | None = None, text: str = "too dear") -> dict[str, Any]:
    """A row that follows a note; by default of the same user."""
    return {"id": row_key, "of": of, "user": user or f"user-{of}", "text": text}


@pytest.fixture
def cancel(deliveries: Deliveries, ledger: Ledger) -> Callable[..., Run]:
    """Deliver cancellations on the same connection; `missing` is the policy."""

    def cancel(rows: list[dict[str, Any]], *, missing: str = "new", **options: Any) -> Run:
        lease_holder = ledger.lease_holder("halo_default/cancellation", task_instance=TaskInstanceRef())
        submission = CANCELLATION.model_copy(update={"follows_missing": missing})
        return deliveries.run(rows, lease_holder=lease_holder, submission=submission, **options)

    return cancel


def test_message_goes_into_the_followed_rows_session(
    deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """The cancellation continues the conversation that the note began."""
    deliveries.run(notes(3))

    run = cancel([cancellation("c1", of="1")])

    session = deliveries.outcomes[1].session_id
    assert run.of("c1").session_id == halo.chats[-1].session_id
    assert halo.chats[-1].session_id in {chat.session_id for chat in halo.chats[:3] if chat.message == "Note 1."}
    assert session is not None


@pytest.mark.parametrize("missing", ["new", "reject", "follow_up"])
@pytest.mark.parametrize(
    "status", [LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT, LedgerStatus.FAILED]
)
def test_follower_waits_while_its_row_is_not_delivered_yet(
    status: LedgerStatus, missing: str, deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """Whatever the policy: a row that may still be delivered has a session to come."""
    lease_holder = deliveries.lease_holder()
    lease_holder.claim([Candidate(row_key="1", payload_hash="a" * 64)], on_in_doubt="resend")
    if status is not LedgerStatus.PENDING:
        lease_holder.commit(intents=["1"])
    if status in {LedgerStatus.IN_DOUBT, LedgerStatus.FAILED}:
        lease_holder.commit(settlements=[Settlement(row_key="1", status=status)])

    run = cancel([cancellation("c1", of="1")], missing=missing)

    assert run.counts == {RowStatus.NOT_ATTEMPTED: 1}
    assert "not delivered yet" in str(run.of("c1").error)
    assert halo.chats == []


@pytest.mark.parametrize("of", ["1", "nobody", ""])
@pytest.mark.parametrize(
    "policy",
    [("new", RowStatus.DELIVERED, 1), ("reject", RowStatus.REJECTED, 0), ("follow_up", RowStatus.NOT_ATTEMPTED, 0)],
)
def test_policy_decides_about_a_row_whose_followed_row_gets_no_session(
    of: str, policy: tuple[str, RowStatus, int], deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """The row it follows was rejected, is unknown, or is not named: begin anew, reject, or wait."""
    missing, status, chats = policy
    halo.script(path="/chat", faults=[Fault.status(400)])
    deliveries.run([note("1")])

    run = cancel([cancellation("c1", of=of, user="somebody")], missing=missing)

    assert run.counts == {status: 1}
    assert len(halo.chats) == chats


def test_row_rejected_for_lack_of_a_session_is_sent_once_there_is_one(
    deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """Nothing about it changed, but what it follows did."""
    assert cancel([cancellation("c1", of="1")], missing="reject").counts == {RowStatus.REJECTED: 1}
    deliveries.run([note("1")])

    run = cancel([cancellation("c1", of="1")], missing="reject")

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert halo.chats[1].session_id == halo.chats[0].session_id


@pytest.mark.parametrize("missing", ["new", "reject", "follow_up"])
def test_delivered_follower_stays_delivered_whatever_becomes_of_its_row(
    missing: str, deliveries: Deliveries, ledger: Ledger, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """Not even a ledger that forgot the followed row makes it go twice."""
    deliveries.run([note("1")])
    cancel([cancellation("c1", of="1")])
    LedgerAdmin(ledger, actor="somebody").prune(RowFilter(namespace=NAMESPACE), before=ledger.now())

    run = cancel([cancellation("c1", of="1")], missing=missing)

    assert (run.counts, len(halo.chats)) == ({RowStatus.ALREADY_DELIVERED: 1}, 2)


def test_waiting_follower_holds_back_its_users_later_rows(
    deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """A user's rows go in the source's order, or not yet; other users' go."""
    deliveries.run([note("2", user="u"), note("3", user="v")])
    lease_holder = deliveries.lease_holder()
    lease_holder.claim([Candidate(row_key="1", payload_hash="a" * 64)], on_in_doubt="resend")

    run = cancel(
        [
            cancellation("c1", of="1", user="u"),
            cancellation("c2", of="2", user="u"),
            cancellation("c3", of="3", user="v"),
        ]
    )

    assert [run.of(row_key).status for row_key in ("c1", "c2", "c3")] == [
        RowStatus.NOT_ATTEMPTED,
        RowStatus.NOT_ATTEMPTED,
        RowStatus.DELIVERED,
    ]
    assert [chat.user_id for chat in halo.chats[2:]] == ["v"]


def test_changed_follower_follows_up_in_the_same_session(
    deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]
) -> None:
    """A follower that changes goes where it went before."""
    deliveries.run([note("1")])
    cancel([cancellation("c1", of="1", text="too dear")])

    run = cancel([cancellation("c1", of="1", text="too slow")], on_change="follow_up")

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert len({chat.session_id for chat in halo.chats}) == 1
    assert [chat.message for chat in halo.chats] == ["Thank you.", "Cancelled: too dear", "Cancelled: too slow"]


def test_duplicate_follower_is_a_duplicate(deliveries: Deliveries, halo: Simulator, cancel: Callable[..., Run]) -> None:
    """Its key was met earlier in the run; the first one counts."""
    deliveries.run([note("1")])

    run = cancel([cancellation("c1", of="1"), cancellation("c1", of="1")])

    assert run.counts == {RowStatus.DELIVERED: 1, RowStatus.DUPLICATE: 1}
    assert len(halo.chats) == 2


def test_dry_run_knows_the_rows_that_would_wait(deliveries: Deliveries, ledger: Ledger) -> None:
    """It counts as to be sent what the delivery would send: neither a waiting row nor its user's later ones."""
    deliveries.run([note("2", user="u"), note("3", user="v")])
    lease_holder = deliveries.lease_holder()
    lease_holder.claim([Candidate(row_key="1", payload_hash="a" * 64)], on_in_doubt="resend")
    rows = [
        cancellation("c1", of="1", user="u"),
        cancellation("c2", of="2", user="u"),
        cancellation("c3", of="3", user="v"),
    ]

    planned = dry_run(
        ListSource(rows),
        submission=CANCELLATION,
        lease_holder=ledger.lease_holder("halo_default/cancellation", task_instance=TaskInstanceRef()),
        options=DeliveryOptions(),
    )

    assert (planned.counts, planned.would_send) == ({RowStatus.NOT_ATTEMPTED: 3}, 1)


@pytest.mark.parametrize("on_change", ["skip", "fail"])
def test_second_content_under_one_key_is_rejected(deliveries: Deliveries, halo: Simulator, on_change: OnChange) -> None:
    """Nobody's ticket is lost in silence: the reason names both rows."""
    run = deliveries.run([note("a", text="A"), note("a", text="B")], on_change=on_change)

    assert run.counts == {RowStatus.DELIVERED: 1, RowStatus.REJECTED: 1}
    assert "rows 1 and 2" in str(run.outcomes[0].error or run.outcomes[1].error)
    assert [message for _, message in said(halo)] == ["A"]


@pytest.mark.parametrize("batch_size", [1, 500])
@pytest.mark.parametrize("user", ["u", ""])
def test_second_content_under_one_key_follows_up_in_order(
    deliveries: Deliveries, halo: Simulator, batch_size: int, user: str
) -> None:
    """Each content is sent once, into one session, in the source's order; no later run sends any of them again."""
    submission = NOTE if user else NOTE.model_copy(update={"user": None})
    rows = [note("a", user=user, text=text) for text in ("A", "B", "C", "A")]
    options = {"on_change": "follow_up", "batch_size": batch_size, "submission": submission}

    first = deliveries.run(rows, **options)
    again = deliveries.run(rows, **options)
    reversed_order = deliveries.run(rows[::-1], **options)

    assert first.counts == {RowStatus.DELIVERED: 3, RowStatus.DUPLICATE: 1}
    assert again.counts == {RowStatus.ALREADY_DELIVERED: 3, RowStatus.DUPLICATE: 1}
    assert reversed_order.counts == {RowStatus.ALREADY_DELIVERED: 3, RowStatus.DUPLICATE: 1}
    assert [message for _, message in said(halo)] == ["A", "B", "C"]
    assert len({session for session, _ in said(halo)}) == 1


def test_second_content_waits_in_its_users_queue(deliveries: Deliveries, halo: Simulator) -> None:
    """Later rows of the user do not overtake it; where the first row fails, it is not sent either."""
    rows = [note("a", user="u", text="A"), note("a", user="u", text="B"), note("b", user="u", text="C")]

    assert deliveries.run(rows, on_change="follow_up").counts == {RowStatus.DELIVERED: 3}
    assert [message for _, message in said(halo)] == ["A", "B", "C"]

    halo.script_for(user_id="v", faults=[Fault.status(503, headers={"Retry-After": "0"})])
    failing = [note("c", user="v", text="A"), note("c", user="v", text="B")]
    run = deliveries.run(failing, on_change="follow_up", max_attempts=1)
    assert run.counts == {RowStatus.FAILED: 1, RowStatus.NOT_ATTEMPTED: 1}


def test_dry_run_counts_a_second_content_once(deliveries: Deliveries) -> None:
    """As the delivery would send it, now and when it is delivered."""
    rows = [note("a", text="A"), note("a", text="B")]
    options = DeliveryOptions(on_change="follow_up")

    def would_send() -> int:
        planned = dry_run(ListSource(rows), submission=NOTE, lease_holder=deliveries.lease_holder(), options=options)
        return planned.would_send

    assert would_send() == 2
    deliveries.run(rows, on_change="follow_up")
    assert would_send() == 0
