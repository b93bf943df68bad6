"""Rows in doubt are looked up: what Halo has is not sent again, and what it does not have is."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from halo_provider.client.records import Conversation, Message
from halo_provider.exceptions import HaloReadError
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from tests.core.deliveries import NAMESPACE, NOTE, Deliveries, note, notes, rows_in
from tests.core.readers import SimulatorReader

ASK_AFTER = 0.4  # seconds
LOST = Fault.drop_after_acceptance()  # Halo has it, and the answer is lost
NEVER = Fault.drop_before_acceptance()  # the same, and Halo does not have it
Distortion = Callable[[Conversation], Conversation | None]


def ask(deliveries: Deliveries, rows: Any, *, reader: Any, **options: Any) -> Any:
    """Deliver the rows, and look up those in doubt."""
    return deliveries.run(rows, reader=reader, **{"on_in_doubt": "ask", "ask_after": ASK_AFTER, **options})


def times_sent(halo: Simulator) -> Counter[str]:
    """How often Halo took each message."""
    return Counter(chat.message for chat in halo.chats)


@pytest.fixture
def reader(halo: Simulator) -> SimulatorReader:
    """One that sees everything at once."""
    return SimulatorReader(halo)


def test_row_whose_answer_was_lost_is_found(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """It is delivered with the session that Halo has, and sent once."""
    halo.script_for(user_id="user-1", faults=[LOST])

    run = ask(deliveries, notes(3), reader=reader)

    assert run.counts == {RowStatus.DELIVERED: 3}
    assert set(times_sent(halo).values()) == {1}
    (chat,) = (chat for chat in halo.chats if chat.user_id == "user-1")
    assert run.of("1").session_id == rows_in(deliveries.ledger)["1"]["session_id"] == chat.session_id


def test_row_that_halo_does_not_have_is_sent_again(
    deliveries: Deliveries, halo: Simulator, reader: SimulatorReader
) -> None:
    """After two looks it is certain."""
    halo.script_for(user_id="user-1", faults=[NEVER, NEVER])

    assert ask(deliveries, notes(3), reader=reader).counts == {RowStatus.DELIVERED: 3}
    assert set(times_sent(halo).values()) == {1}


def test_history_tells_what_was_found(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """People see why a row is what it is."""
    halo.script_for(user_id="user-0", faults=[NEVER, LOST])

    ask(deliveries, notes(3), reader=reader)

    events = RowReader(deliveries.ledger).history(NAMESPACE, "0")
    assert [event.event for event in events] == ["in_doubt", "not_found", "in_doubt", "found"]
    assert events[-1].detail.startswith("by its message: session sess_")


def test_slow_index_is_waited_for(deliveries: Deliveries, halo: Simulator) -> None:
    """A conversation that cannot be found yet is not sent again."""
    halo.script_for(user_id="user-1", faults=[LOST])

    run = ask(deliveries, notes(3), reader=SimulatorReader(halo, lag=ASK_AFTER * 0.8))

    assert run.counts == {RowStatus.DELIVERED: 3}
    assert set(times_sent(halo).values()) == {1}


def test_index_slower_than_ask_after_is_noticed(deliveries: Deliveries, halo: Simulator) -> None:
    """A row delivered in this run is not found either: nothing is proven, and nothing is sent twice."""
    halo.script_for(user_id="user-1", faults=[LOST])

    run = ask(deliveries, notes(3), reader=SimulatorReader(halo, lag=60.0))

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.IN_DOUBT: 1}
    assert "do not find a row that was delivered" in str(run.of("1").error)
    assert set(times_sent(halo).values()) == {1}


def test_rows_of_an_earlier_run_are_looked_up(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """What a run left in doubt is found, or sent, by the next one."""
    halo.script_for(user_id="user-1", faults=[LOST])
    halo.script_for(user_id="user-2", faults=[NEVER])
    assert deliveries.run(notes(4), on_in_doubt="hold").counts[RowStatus.IN_DOUBT] == 2

    run = ask(deliveries, notes(4), reader=reader)

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.ALREADY_DELIVERED: 2}
    assert set(times_sent(halo).values()) == {1}


def test_users_later_row_waits_for_the_look(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """The order of a user's rows holds, also where one of them is looked up."""
    halo.script_for(user_id="u", faults=[NEVER])

    assert ask(deliveries, notes(3, user="u"), reader=reader).counts == {RowStatus.DELIVERED: 3}
    assert [chat.message for chat in halo.chats] == ["Note 0.", "Note 1.", "Note 2."]


def test_same_words_twice_are_two_rows(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """A user's earlier row with the same message is not taken for the one in doubt."""
    halo.script_for(user_id="u", faults=[None, NEVER])

    run = ask(deliveries, [note("a", user="u"), note("b", user="u")], reader=reader)

    assert run.counts == {RowStatus.DELIVERED: 2}
    assert len(halo.chats) == 2
    assert run.of("a").session_id != run.of("b").session_id


def test_follow_up_is_looked_for_in_its_session(
    deliveries: Deliveries, halo: Simulator, reader: SimulatorReader
) -> None:
    """A message into a known session is found there, by its own time."""
    first = [note("1", text="Note 1."), note("2", text="Note 2.")]
    deliveries.run(first)
    halo.script_for(user_id="user-1", faults=[LOST])
    halo.script_for(user_id="user-2", faults=[NEVER])
    second = [note("1", text="Note 1, changed."), note("2", text="Note 2, changed.")]

    run = ask(deliveries, second, reader=reader, on_change="follow_up")

    assert run.counts == {RowStatus.DELIVERED: 2}
    assert set(times_sent(halo).values()) == {1}
    assert len({chat.session_id for chat in halo.chats}) == 2


class OldTranscripts(SimulatorReader):
    """Searches see everything, and a transcript only how a conversation began."""

    async def transcript(self, session_id: str) -> Conversation | None:
        """The first message and its answer."""
        whole = await SimulatorReader.transcript(self, session_id)
        return replace(whole, messages=(whole.messages or ())[:2]) if whole else None


def test_search_proves_nothing_about_a_follow_up(deliveries: Deliveries, halo: Simulator) -> None:
    """It is looked for in its session's transcript: so must be what Halo is known to have."""
    deliveries.run([note("1", text="Note 1."), note("2", text="Note 2.")])
    halo.script_for(user_id="user-1", faults=[LOST])
    rows = [note("1", text="Note 1, changed."), note("3", text="Note 3."), note("2", text="Note 2, changed.")]

    run = ask(deliveries, rows, reader=OldTranscripts(halo), on_change="follow_up", concurrency=1)

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.IN_DOUBT: 1}
    assert set(times_sent(halo).values()) == {1}


REFERENCED = NOTE.model_copy(update={"reference": True})
ANONYMOUS = REFERENCED.model_copy(update={"user": None})


@pytest.mark.parametrize("submission", [REFERENCED, ANONYMOUS], ids=["of a user", "anonymous"])
def test_row_is_found_by_its_reference(
    deliveries: Deliveries, halo: Simulator, reader: SimulatorReader, submission: Any
) -> None:
    """However often the same words were sent, and by whomever."""
    halo.script(path="/chat", faults=[None, LOST, NEVER, None])
    rows = [note(str(number), text="The same words.") for number in range(4)]

    run = ask(deliveries, rows, reader=reader, submission=submission, concurrency=1)

    assert run.counts == {RowStatus.DELIVERED: 4}
    assert len(halo.chats) == 4
    references = [chat.context["reference"]["value"].rpartition("/")[0] for chat in halo.chats]
    assert sorted(references) == [f"airflow:note/{number}" for number in range(4)]


def test_anonymous_row_without_a_reference_is_held(
    deliveries: Deliveries, halo: Simulator, reader: SimulatorReader
) -> None:
    """Nobody can tell whose message it is: the error says what would help."""
    halo.script(path="/chat", faults=[LOST])

    run = ask(deliveries, notes(1), reader=reader, submission=NOTE.model_copy(update={"user": None}))

    assert run.counts == {RowStatus.IN_DOUBT: 1}
    assert "reference" in str(run.of("0").error)


def of_another_user(conversation: Conversation) -> Conversation:
    """Whoever asks gets what somebody else wrote."""
    return replace(conversation, user_ids=frozenset({"somebody"}), raw={"anybody": True})


def without_user(conversation: Conversation) -> Conversation:
    """Nobody knows whose it is."""
    return replace(conversation, user_ids=frozenset())


def similar(conversation: Conversation) -> Conversation:
    """The words are nearly the same."""
    return replace(
        conversation, messages=tuple(each._replace(text=f"{each.text}!") for each in conversation.messages or ())
    )


def cut_off(conversation: Conversation) -> Conversation:
    """Only the beginning of each message."""
    messages = conversation.messages or ()
    return replace(conversation, messages=tuple(each._replace(text=f"{each.text[:4]}…", cut=True) for each in messages))


def old(conversation: Conversation) -> Conversation:
    """The same words, a year ago."""
    year = timedelta(days=365)
    messages = tuple(
        each._replace(sent_at=each.sent_at - year if each.sent_at else None) for each in conversation.messages or ()
    )
    return replace(
        conversation, started_at=conversation.started_at - year if conversation.started_at else None, messages=messages
    )


def without_times(conversation: Conversation) -> Conversation:
    """Nobody knows when it was."""
    messages = tuple(each._replace(sent_at=None) for each in conversation.messages or ())
    return replace(conversation, started_at=None, messages=messages)


def without_messages(conversation: Conversation) -> Conversation:
    """Only that there is one."""
    return replace(conversation, messages=None)


def spoken_by_the_agent(conversation: Conversation) -> Conversation:
    """The agent repeated the words."""
    messages = tuple(Message(each.text, False, each.sent_at) for each in conversation.messages or ())
    return replace(conversation, messages=messages)


def nothing(_conversation: Conversation) -> None:
    """Every result is empty."""


@pytest.mark.parametrize(
    "distort",
    [
        of_another_user,
        without_user,
        similar,
        cut_off,
        old,
        without_times,
        without_messages,
        spoken_by_the_agent,
        nothing,
    ],
)
def test_wrong_reader_does_no_harm(deliveries: Deliveries, halo: Simulator, distort: Distortion) -> None:
    """Nothing wrong is taken for the row, and what was not found by such a reader is not sent again."""
    halo.script_for(user_id="user-1", faults=[LOST])
    halo.script_for(user_id="user-2", faults=[NEVER])

    run = ask(deliveries, notes(6), reader=SimulatorReader(halo, distort=distort))

    assert run.counts == {RowStatus.DELIVERED: 4, RowStatus.IN_DOUBT: 2}
    assert set(times_sent(halo).values()) == {1}


def test_incomplete_results_prove_nothing(deliveries: Deliveries, halo: Simulator) -> None:
    """What is not on the pages that came may be on others."""
    halo.script_for(user_id="user-2", faults=[NEVER])

    run = ask(deliveries, notes(4), reader=SimulatorReader(halo, complete=False))

    assert run.counts == {RowStatus.DELIVERED: 3, RowStatus.IN_DOUBT: 1}


@pytest.mark.parametrize("ask_else", ["hold", "resend"])
@pytest.mark.parametrize("reader_is", ["down", "switched off", "broken", "none"])
def test_without_an_answer_it_is_as_without_asking(
    deliveries: Deliveries, halo: Simulator, ask_else: str, reader_is: str
) -> None:
    """Counts and requests are exactly those of hold and of resend."""
    reader: SimulatorReader | None = SimulatorReader(halo, failing=HaloReadError("503", lasting=reader_is != "down"))
    if reader_is == "broken":
        reader = SimulatorReader(halo, distort=lambda conversation: conversation.nonsense)  # type: ignore[attr-defined]
    if reader_is == "none":
        reader = None
    faults = {"user-1": [LOST], "user-2": [NEVER], "user-3": [LOST] * 3, "user-4": [Fault.status(500)] * 2}

    def deliver(**options: Any) -> tuple[Any, Any]:
        halo.reset()
        for user_id, wrong in faults.items():
            halo.script_for(user_id=user_id, faults=wrong)
        run = deliveries.run([{**row, "id": f"{options['on_in_doubt']}-{row['id']}"} for row in notes(8)], **options)
        return run.counts, times_sent(halo)

    asked = deliver(on_in_doubt="ask", ask_else=ask_else, ask_after=0.02, reader=reader, max_attempts=3)

    assert asked == deliver(on_in_doubt=ask_else, max_attempts=3)


def test_row_that_never_arrives_has_failed(deliveries: Deliveries, halo: Simulator, reader: SimulatorReader) -> None:
    """Halo does not have it, for certain: it is not in doubt, and the next run sends it."""
    halo.script_for(user_id="user-1", faults=[NEVER] * 2)

    run = ask(deliveries, notes(3), reader=reader, max_attempts=2)

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.FAILED: 1}
    assert deliveries.statuses()["1"] == LedgerStatus.FAILED
    assert ask(deliveries, notes(3), reader=reader).counts[RowStatus.DELIVERED] == 1


def test_looking_up_many_rows_holds_up_no_others(deliveries: Deliveries, halo: Simulator) -> None:
    """Rows that wait for a look take no place of rows that can be sent."""
    for number in range(40):
        halo.script_for(user_id=f"user-{number}", faults=[LOST])

    def once_all_are_sent(conversation: Conversation) -> Conversation | None:
        return conversation if len(halo.chats) >= 60 else None

    reader = SimulatorReader(halo, distort=once_all_are_sent)
    run = ask(deliveries, notes(60), reader=reader, ask_after=20.0, batch_size=4, concurrency=4)

    assert run.counts == {RowStatus.DELIVERED: 60}
    assert set(times_sent(halo).values()) == {1}
