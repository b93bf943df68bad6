"""own_session_ids: a row's session has an id made of its key, so that a row sent twice lands in one conversation."""

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest

from halo_provider.delivery.dry_run import dry_run
from halo_provider.delivery.lookup import Question
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.place import own_session_id
from halo_provider.exceptions import EveryRowRefusedError
from halo_provider.ledger import TaskInstanceRef
from halo_provider.ledger.statuses import RowStatus
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.lists import ListSource
from halo_provider.submission import Submission, User
from tests.core.deliveries import NAMESPACE, NOTE, Deliveries, note, notes, rows_in


@pytest.fixture
def accepting(halo: Simulator) -> Iterator[Simulator]:
    """A Halo that begins a session of an id that it did not make."""
    halo.accept_unknown_sessions = True
    yield halo
    halo.accept_unknown_sessions = False


def test_row_sent_twice_lands_in_one_session(deliveries: Deliveries, accepting: Simulator) -> None:
    """The answer was lost, though Halo took the row: the second message is in the same conversation."""
    accepting.script(path="/chat", faults=[Fault.drop_after_acceptance()])

    run = deliveries.run([note("a")], own_session_ids=True)

    assert run.counts == {RowStatus.DELIVERED: 1}
    assert [chat.session_id for chat in accepting.chats] == [own_session_id(NAMESPACE, "a")] * 2
    assert len(accepting.sessions) == 1


def test_next_run_sends_a_row_in_doubt_into_the_same_session(deliveries: Deliveries, accepting: Simulator) -> None:
    """The id depends on nothing but namespace and key: not on the run, nor on what was changed since."""
    accepting.script(path="/chat", faults=[Fault.drop_after_acceptance()])
    deliveries.run([note("a", text="A")], own_session_ids=True, on_in_doubt="hold")

    deliveries.run([note("a", text="B")], own_session_ids=True)

    assert len(accepting.chats) == 2
    assert len({chat.session_id for chat in accepting.chats}) == 1


def test_every_row_has_a_session_of_its_own(deliveries: Deliveries, accepting: Simulator) -> None:
    """Rows of one user, too; and the ledger has what Halo answered."""
    run = deliveries.run(notes(3, user="u"), own_session_ids=True)

    assert run.counts == {RowStatus.DELIVERED: 3}
    expected = {key: own_session_id(NAMESPACE, key) for key in "012"}
    assert {key: row["session_id"] for key, row in rows_in(deliveries.ledger).items()} == expected
    assert accepting.sessions.keys() == set(expected.values())


def test_id_is_a_uuid_that_differs_by_namespace_and_key() -> None:
    """Nothing of the key can be read in it; a release that makes another one would split conversations."""
    ids = {own_session_id(*names) for names in [("a/b", "c"), ("a/bc", ""), ("a", "/bc"), ("a/b", "d"), ("x/b", "c")]}

    assert len(ids) == 5
    assert all(str(UUID(each)) == each for each in ids)
    assert own_session_id("halo_default/application", "SUB-1") == "430453a9-7d98-5f93-ab9c-f47813075d26"


def test_session_that_the_row_has_already_is_kept(deliveries: Deliveries, accepting: Simulator) -> None:
    """A follow-up, and a row that follows another one, go where that one is."""
    cancellation = Submission(
        name="cancellation", key="id", user=User(id="user"), message="{text}", follows=("note", "of")
    )
    deliveries.run([note("a", text="A")])
    (session_id,) = accepting.sessions

    deliveries.run([note("a", text="B")], own_session_ids=True, on_change="follow_up")
    namespace = "halo_default/cancellation"
    lease_holder = deliveries.ledger.lease_holder(namespace, task_instance=TaskInstanceRef())
    rows = [
        {"id": "x", "user": "user-a", "text": "Cancelled.", "of": "a"},
        {"id": "y", "user": "user-b", "text": "Cancelled.", "of": "nobody"},
    ]
    deliveries.run(rows, submission=cancellation, lease_holder=lease_holder, own_session_ids=True)

    sessions = [chat.session_id for chat in accepting.chats]
    assert sessions == [session_id, session_id, session_id, own_session_id(namespace, "y")]


def test_without_it_halo_makes_the_session(deliveries: Deliveries, accepting: Simulator) -> None:
    """Off by default."""
    deliveries.run([note("a")])

    (request,) = accepting.requests
    assert request.body is not None
    assert "session_id" not in request.body


def test_row_that_was_delivered_without_it_is_not_sent_again(deliveries: Deliveries, accepting: Simulator) -> None:
    """The content is the same: where the conversation is does not belong to it."""
    deliveries.run([note("a")])

    run = deliveries.run([note("a")], own_session_ids=True)

    assert (run.counts, run.report.changed) == ({RowStatus.ALREADY_DELIVERED: 1}, 0)


def test_halo_that_refuses_such_ids_says_so_in_the_rows(deliveries: Deliveries, halo: Simulator) -> None:
    """Its words stand beside the row, and nothing was made."""
    run = deliveries.run([note("a")], own_session_ids=True)

    assert run.counts == {RowStatus.REJECTED: 1}
    assert "session_id is unknown" in str(run.of("a").error)
    assert halo.sessions == {}


def test_run_whose_first_rows_are_all_refused_names_the_parameter(deliveries: Deliveries, halo: Simulator) -> None:
    """The most likely reason comes first."""
    run = deliveries.run(notes(120), own_session_ids=True)

    assert isinstance(run.report.error, EveryRowRefusedError)
    assert "Correct own_session_ids, which Halo may not take, the submission or the connection" in str(run.report.error)


def test_dry_run_shows_the_session(deliveries: Deliveries) -> None:
    """As it would be sent."""
    planned = dry_run(
        ListSource([note("a")]),
        submission=NOTE,
        lease_holder=deliveries.lease_holder(),
        options=DeliveryOptions(own_session_ids=True),
    )

    assert planned.examples[0]["session_id"] == own_session_id(NAMESPACE, "a")


def test_row_in_doubt_is_looked_up_as_one_without_a_session() -> None:
    """Nobody knows whether Halo took the id: the user's conversations are searched, and not this one alone."""
    rendered = NOTE.render(note("a"), row_key="a")
    since = datetime(2026, 11, 25, tzinfo=UTC)

    assert Question.of(rendered.into_session("s-1", begins=True), since=since).session_id is None
    assert Question.of(rendered.into_session("s-1"), since=since).session_id == "s-1"
