"""Rows in doubt are looked up in the simulator, whatever its tools are called and however they answer."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import halo_provider.client.reader
from halo_provider.client.access import StoredAccess
from halo_provider.client.reader import HaloReader
from halo_provider.delivery.ask_later import ask_later
from halo_provider.delivery.breaker import MAX_GIVEN_UP
from halo_provider.delivery.lookup import Sight
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin, RowFilter
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.ledger.statuses import RowStatus
from halo_provider.simulator import Fault, Reading, Simulator, WrongResult
from halo_provider.submission import Submission, User
from tests.acceptance.sign_in_worker import sign_in_at
from tests.core.deliveries import NAMESPACE, NOTE, Deliveries, Run, note, notes

READABLE = ["structured", "text", "paged"]
ASK_AFTER = 0.4  # seconds
LOST = Fault.drop_after_acceptance()  # Halo has it, and the answer is lost
NEVER = Fault.drop_before_acceptance()  # the same, and Halo does not have it
SEARCH, TRANSCRIPT = "/api/mcp/data_search_transcripts", "/api/mcp/data_get_transcript"
WANTED = RowFilter(namespace=NAMESPACE)
FOLLOWING = Submission(
    name="cancellation",
    key="id",
    user=User(id="user"),
    message="{text}",
    follows=("note", "first"),
)


class Asking:
    """A Halo with a sign-in, in which rows in doubt are looked up."""

    def __init__(self, halo: Simulator, url: str, deliveries: Deliveries, sign_in: SignIns) -> None:
        self.halo = halo
        self.url = f"{url}/api/mcp"
        self.deliveries = deliveries
        self.sign_in = sign_in

    def read(self, **options: Any) -> None:
        """Let the tools be others."""
        self.halo.reading = Reading(consent="approved", **options)

    def reader(self) -> HaloReader:
        """One that is signed in."""
        return HaloReader(access=StoredAccess(self.sign_in), url=self.url)

    def run(self, rows: Any, **options: Any) -> Run:
        """Deliver the rows, and look up those in doubt."""

        async def run() -> Run:
            async with self.reader() as reader:
                chosen = {"on_in_doubt": "ask", "ask_after": ASK_AFTER, **options}
                return await self.deliveries.deliver(rows, reader=reader, **chosen)

        return asyncio.run(run())

    def later(self, wanted: RowFilter = WANTED) -> Counter[Sight]:
        """Look up what runs have left in doubt, without their source."""

        async def later() -> Counter[Sight]:
            ledger = self.deliveries.ledger
            admin = LedgerAdmin(ledger, actor="somebody")
            async with self.reader() as reader:
                return await ask_later(ledger, wanted, admin=admin, reader=reader, ask_after=ASK_AFTER)

        return asyncio.run(later())

    def times_sent(self) -> Counter[str]:
        """How often Halo took each message."""
        return Counter(chat.message for chat in self.halo.chats)

    def session_of(self, message: str) -> str:
        """The session of the only chat with this message."""
        (chat,) = (chat for chat in self.halo.chats if chat.message == message)
        return chat.session_id


@pytest.fixture
def asking(
    halo: Simulator, halo_url: str, deliveries: Deliveries, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Asking]:
    """The simulator, signed in; between calls there is no pause."""
    monkeypatch.setattr(halo_provider.client.reader, "PAUSE", 0.0001)
    halo.reading = Reading(consent="approved")
    yield Asking(halo, halo_url, deliveries, sign_in_at(f"{halo_url}/api/mcp", ledger))
    halo.reset()


@pytest.mark.parametrize("white_space", ["kept", "collapsed", "lines"])
@pytest.mark.parametrize("variant", READABLE)
def test_what_halo_has_is_found_and_what_it_does_not_have_is_sent(
    asking: Asking, variant: str, white_space: str
) -> None:
    """With the session that Halo has, and once, whatever it did to white space."""
    asking.read(variant=variant, white_space=white_space, lag=(0.0, 0.2))
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-2", faults=[NEVER])
    rows = [{**row, "text": f"Hello,\n\n  {row['text']}\n"} for row in notes(5)]

    run = asking.run(rows, ask_after=1.0)

    assert run.counts == {RowStatus.DELIVERED: 5}
    assert set(asking.times_sent().values()) == {1}
    assert run.of("1").session_id == asking.session_of(rows[1]["text"])


@pytest.mark.parametrize("variant", READABLE)
def test_what_runs_left_is_looked_up_without_its_source(asking: Asking, variant: str) -> None:
    """Found rows are delivered, the others are pending again."""
    asking.read(variant=variant)
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-2", faults=[NEVER])
    asking.deliveries.run(notes(4), on_in_doubt="hold")

    assert asking.later() == {Sight.FOUND: 1, Sight.ABSENT: 1}
    assert asking.deliveries.statuses() == {"0": "delivered", "1": "delivered", "2": "pending", "3": "delivered"}


@pytest.mark.parametrize("by_command", [False, True], ids=["by the next run", "by the command"])
@pytest.mark.parametrize("variant", READABLE)
def test_message_into_an_old_session_is_looked_for_there(asking: Asking, variant: str, *, by_command: bool) -> None:
    """A tool that finds conversations by their beginning does not find it otherwise, and it would be sent again."""
    asking.read(variant=variant)
    asking.deliveries.run([note("1", text="Note 1."), note("2", text="Note 2.")])
    changed = [note("1", text="Note 1, changed."), note("2", text="Note 2, changed.")]
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-2", faults=[NEVER])
    held = asking.deliveries.run(changed, on_change="follow_up", on_in_doubt="hold")
    assert held.counts == {RowStatus.IN_DOUBT: 2}

    if by_command:
        assert asking.later() == {Sight.FOUND: 1, Sight.ABSENT: 1}
    asking.run(changed, on_change="follow_up")

    assert set(asking.times_sent().values()) == {1}
    assert asking.session_of("Note 1, changed.") == asking.session_of("Note 1.")
    assert asking.session_of("Note 2, changed.") == asking.session_of("Note 2.")


@pytest.mark.parametrize("variant", READABLE)
def test_row_that_follows_another_is_looked_for_in_its_session(asking: Asking, variant: str) -> None:
    """The command has no source that says which session that is; the ledger knows."""
    asking.read(variant=variant)
    asking.deliveries.run([note("1", text="Note 1.")])
    lease_holder = asking.deliveries.ledger.lease_holder("halo_default/cancellation", task_instance=TaskInstanceRef())
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    cancelled = [{**note("c", user="user-1", text="Cancelled."), "first": "1"}]
    options: dict[str, Any] = {"submission": FOLLOWING, "lease_holder": lease_holder}
    assert asking.deliveries.run(cancelled, on_in_doubt="hold", **options).counts == {RowStatus.IN_DOUBT: 1}

    assert asking.later(RowFilter(namespace="halo_default/cancellation")) == {Sight.FOUND: 1}
    assert asking.times_sent()["Cancelled."] == 1
    assert asking.session_of("Cancelled.") == asking.session_of("Note 1.")


@pytest.mark.parametrize("variant", READABLE)
def test_row_that_has_changed_since_is_looked_for_as_it_was_sent(asking: Asking, variant: str) -> None:
    """Halo has the old content: the row is delivered, and its new content is a change of it."""
    asking.read(variant=variant)
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-2", faults=[NEVER])
    asking.deliveries.run([note("1", text="Note 1."), note("2", text="Note 2.")], on_in_doubt="hold")
    changed = [note("1", text="Note 1, changed."), note("2", text="Note 2, changed.")]

    first = asking.run(changed)
    assert first.counts == {RowStatus.DELIVERED: 2}
    assert first.report.changed == 1
    assert asking.times_sent() == {"Note 1.": 1, "Note 2, changed.": 1}

    second = asking.run(changed, on_change="follow_up")
    assert second.counts == {RowStatus.DELIVERED: 1, RowStatus.ALREADY_DELIVERED: 1}
    assert asking.times_sent() == {"Note 1.": 1, "Note 2, changed.": 1, "Note 1, changed.": 1}


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("variant", ["structured", "paged"])
def test_message_that_may_be_another_runs_is_not_taken(asking: Asking, variant: str, *, reference: bool) -> None:
    """Two runs have a row of the same user with the same words: only a reference tells whose message Halo has."""
    asking.read(variant=variant)
    submission = NOTE.model_copy(update={"reference": reference})
    asking.halo.script_for(user_id="u", faults=[NEVER, LOST])
    for row_key in ("mine", "other"):
        asking.deliveries.run([note(row_key, user="u")], submission=submission, on_in_doubt="hold")
    (chat,) = asking.halo.chats

    run = asking.run([note("mine", user="u")], submission=submission)

    if reference:
        assert run.counts == {RowStatus.DELIVERED: 1}
        assert run.of("mine").session_id != chat.session_id
        assert asking.run([note("other", user="u")], submission=submission).of("other").session_id == chat.session_id
        assert len(asking.halo.chats) == 2
    else:
        assert run.counts == {RowStatus.IN_DOUBT: 1}
        assert "only reference=True tells them apart" in str(run.of("mine").error)
        assert len(asking.halo.chats) == 1


SIMILAR = "New application from Example GmbH in Vienna. Please review and follow up: number"


@pytest.mark.parametrize("wrong", WrongResult)
@pytest.mark.parametrize("variant", READABLE)
def test_wrong_results_do_no_harm(asking: Asking, variant: str, wrong: WrongResult) -> None:
    """Nothing wrong is taken for the row, and what such tools do not find is not sent again.

    Each user has an earlier conversation that begins alike.
    """
    asking.read(variant=variant)
    rows = [note(str(number), text=f"{SIMILAR} {number}.") for number in range(6)]
    asking.deliveries.run([note(f"earlier {number}", user=f"user-{number}", text=f"{SIMILAR} x.") for number in (1, 2)])
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-2", faults=[NEVER])
    for path in (SEARCH, TRANSCRIPT):
        asking.halo.always(path, Fault.wrong_result(wrong))

    run = asking.run(rows)

    assert run.counts == {RowStatus.DELIVERED: 4, RowStatus.IN_DOUBT: 2}
    assert [run.of(key).status for key in ("1", "2")] == [RowStatus.IN_DOUBT] * 2
    sent = asking.times_sent()
    assert (sent[f"{SIMILAR} 1."], sent[f"{SIMILAR} 2."], max(sent[row["text"]] for row in rows)) == (1, 0, 1)


@pytest.mark.parametrize("variant", READABLE)
def test_same_words_of_last_year_are_another_row(asking: Asking, variant: str) -> None:
    """The search gives an old conversation with the row's words: it is not the row, and the row is found beside it."""
    asking.read(variant=variant)
    asking.halo.script_for(user_id="user-1", faults=[LOST])
    asking.halo.script_for(user_id="user-1", path=SEARCH, faults=[Fault.wrong_result(WrongResult.OLD_CONVERSATION)])

    run = asking.run(notes(3))

    assert run.counts == {RowStatus.DELIVERED: 3}
    assert run.of("1").session_id == asking.session_of("Note 1.")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_reader_that_is_down_does_not_end_the_run(asking: Asking, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """As with hold: rows that Halo accepted in between say that sending works, and nothing more is asked in vain."""
    rows = notes(4 * MAX_GIVEN_UP)
    in_doubt = MAX_GIVEN_UP + 10
    for number in range(in_doubt):
        asking.halo.script_for(user_id=f"user-{2 * number}", faults=[LOST])
    asking.halo.always("/api/mcp", Fault.status(status))

    run = asking.run(rows, concurrency=4, ask_after=4.0)  # the looks end when all rows are sent

    assert run.counts == {RowStatus.DELIVERED: len(rows) - in_doubt, RowStatus.IN_DOUBT: in_doubt}
    assert run.report.stopped is None
    assert len(asking.halo.reads) < 40


def test_halo_that_takes_nothing_ends_the_run(asking: Asking) -> None:
    """No row is accepted, and all are looked up in vain: the run stops after some of them."""
    asking.halo.always("/chat", Fault.status(500))

    run = asking.run(notes(6 * MAX_GIVEN_UP), max_attempts=1, batch_size=10, concurrency=4, ask_after=4.0)

    assert f"{MAX_GIVEN_UP} rows in a row were given up" in str(run.report.stopped)
    assert run.report.read <= 3 * MAX_GIVEN_UP
