"""Which conversation is a row's own, and when "not there" counts: decided without a reader."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from halo_provider.client.records import Conversation, Message, conversation_of
from halo_provider.delivery.lookup import (
    Look,
    Question,
    Sight,
    hash_of,
    judge,
    needs_transcript,
    next_look,
    verdict,
)
from halo_provider.ledger import Rivals

SINCE = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
TEXT = "New application from Example GmbH. Please review and follow up."
QUESTION = Question("r-1", "u-1", SINCE, hash_of(TEXT), TEXT)
BLIND_TO_TEXT = QUESTION._replace(message=None)
REFERENCED = QUESTION._replace(reference="airflow:application/r-1/3f9a2c1d7e5b")
INTO_SESSION = QUESTION._replace(session_id="s-1")
FOUND, ABSENT, UNCLEAR = Sight.FOUND, Sight.ABSENT, Sight.UNCLEAR


def conversation(*messages: Message, **fields: Any) -> Conversation:
    """A conversation of the row's user, begun just after the attempt."""
    shown = {"session_id": "s-1", "user_ids": frozenset({"u-1"}), "started_at": SINCE + timedelta(seconds=3)}
    return Conversation(**{**shown, "messages": messages or None, **fields})


OWN = Message(TEXT, True)
OTHER = Message("Something else entirely, which nobody takes for it.", True)
REPLY = Message("Thank you.", False)


@pytest.mark.parametrize(
    ("question", "found", "sight"),
    [
        (QUESTION, conversation(OWN, REPLY), FOUND),
        (QUESTION, conversation(Message(f"  {TEXT.replace(' ', chr(10))}\n", None)), FOUND),
        (BLIND_TO_TEXT, conversation(OWN), FOUND),
        (QUESTION, conversation(OTHER, REPLY), ABSENT),
        (QUESTION, conversation(Message(TEXT.upper(), True)), ABSENT),
        (QUESTION, conversation(Message(f"{TEXT} Thanks!", True)), ABSENT),
        (QUESTION, conversation(Message(f"> {TEXT}", True)), ABSENT),
        (QUESTION, conversation(Message(TEXT, False)), ABSENT),
        (QUESTION, conversation(Message(TEXT[:30], True)), UNCLEAR),
        (QUESTION, conversation(Message(f"{TEXT[:5]}…", True, cut=True)), UNCLEAR),
        (BLIND_TO_TEXT, conversation(Message("New appl…", True, cut=True)), UNCLEAR),
        (QUESTION, conversation(Message("Other …", True, cut=True)), ABSENT),
        (QUESTION, conversation(OWN, user_ids=frozenset({"u-2"})), ABSENT),
        (QUESTION, conversation(OWN, user_ids=frozenset({"u-2", "u-1"})), FOUND),
        (QUESTION, conversation(OWN, user_ids=frozenset()), UNCLEAR),
        (QUESTION, conversation(OTHER, user_ids=frozenset()), ABSENT),
        (QUESTION, conversation(OWN, started_at=SINCE - timedelta(days=365)), ABSENT),
        (QUESTION, conversation(OWN, started_at=SINCE - timedelta(seconds=20)), FOUND),
        (QUESTION, conversation(OWN._replace(sent_at=SINCE - timedelta(days=1))), ABSENT),
        (QUESTION, conversation(OWN, started_at=None), UNCLEAR),
        (QUESTION, conversation(OWN._replace(sent_at=SINCE), started_at=None), FOUND),
        (QUESTION, conversation(), UNCLEAR),
        (QUESTION, conversation(started_at=SINCE - timedelta(days=1)), ABSENT),
        (QUESTION, conversation(OTHER, cut=True), UNCLEAR),
        (QUESTION, conversation(OWN, session_id=None), UNCLEAR),
        (QUESTION, conversation(OTHER, loose_text=f"User: x\nAgent: y {TEXT}"), UNCLEAR),
        (QUESTION, conversation(OTHER, loose_text="User: x"), ABSENT),
        (BLIND_TO_TEXT, conversation(OTHER, loose_text="User: x"), UNCLEAR),
        (INTO_SESSION, conversation(OWN, started_at=SINCE - timedelta(days=9)), UNCLEAR),
        (INTO_SESSION, conversation(OWN._replace(sent_at=SINCE), started_at=SINCE - timedelta(days=9)), FOUND),
        (INTO_SESSION, conversation(OWN, session_id="s-2"), ABSENT),
        (REFERENCED, conversation(OTHER, raw={"context": {"reference": {"value": REFERENCED.reference}}}), FOUND),
        (REFERENCED, conversation(OTHER, raw={"prompt": f"Reference: {REFERENCED.reference}."}), FOUND),
        (REFERENCED, conversation(OWN, raw={"x": f"{REFERENCED.reference}f"}), ABSENT),
        (REFERENCED, conversation(OWN, raw={"x": "airflow:application/r-2/3f9a2c1d7e5b"}), ABSENT),
        (REFERENCED, conversation(OWN), FOUND),
        (REFERENCED, conversation(OTHER, raw={"x": REFERENCED.reference}, user_ids=frozenset({"u-2"})), UNCLEAR),
        (REFERENCED._replace(user_id=None), conversation(OTHER, raw={"x": REFERENCED.reference}), FOUND),
        (REFERENCED._replace(user_id=None), conversation(OWN), ABSENT),
    ],
)
def test_conversation_is_the_rows_or_not_or_cannot_be_told(
    question: Question, found: Conversation, sight: Sight
) -> None:
    """Nothing but the row's own message counts, and what cannot be told proves nothing."""
    assert judge(question, [found], complete=True).sight is sight


def test_nothing_found_is_absent_only_where_all_was_seen() -> None:
    """A page that did not come may have it."""
    assert judge(QUESTION, [], complete=True).sight is ABSENT
    assert judge(QUESTION, [], complete=False).sight is UNCLEAR


def test_conversation_of_another_row_is_not_taken() -> None:
    """The same words of the same user, but the session is known as another row's."""
    assert judge(QUESTION, [conversation(OWN)], complete=True, rivals=Rivals(frozenset({"s-1"}))).sight is ABSENT


def test_reference_counts_whatever_else_is_known() -> None:
    """It names this row and no other."""
    found = conversation(OTHER, raw={"x": REFERENCED.reference})
    assert judge(REFERENCED, [found], complete=True, rivals=Rivals(frozenset({"s-1"}))).sight is FOUND


def test_message_may_be_that_of_a_row_with_the_same_words() -> None:
    """Nobody knows which of the two it is, unless one has a reference."""
    rivals = Rivals(same_words=True)
    assert judge(QUESTION, [conversation(OWN)], complete=True, rivals=rivals).sight is UNCLEAR
    assert judge(QUESTION, [], complete=True, rivals=rivals).sight is ABSENT
    found = conversation(OWN, raw={"x": REFERENCED.reference})
    assert judge(REFERENCED, [found], complete=True, rivals=rivals).sight is FOUND


def test_first_of_two_own_conversations_is_taken() -> None:
    """A row that was sent twice before is the first one's."""
    later = conversation(OWN, session_id="s-2", started_at=SINCE + timedelta(minutes=1))

    assert judge(QUESTION, [later, conversation(OWN)], complete=True).session_id == "s-1"


def test_transcript_is_fetched_where_a_search_tells_a_part_only() -> None:
    """Not for what cannot be the row's in any case, nor for what is its own already."""
    assert needs_transcript(QUESTION, conversation())
    assert needs_transcript(QUESTION, conversation(OTHER))
    assert not needs_transcript(QUESTION, conversation(OWN))
    assert not needs_transcript(QUESTION, conversation(user_ids=frozenset({"u-2"})))
    assert not needs_transcript(QUESTION, conversation(started_at=SINCE - timedelta(days=1)))


def test_text_in_one_piece_is_read_by_its_speakers() -> None:
    """A transcript as one text is enough, where its lines say who speaks."""
    record = {
        "session_id": "s-1",
        "user_id": "u-1",
        "started_at": SINCE.isoformat(),
        "transcript": f"User: {TEXT}\nAgent: Thank you.",
    }
    assert judge(QUESTION, [conversation_of(record)], complete=True).sight is FOUND


def looked(*answers: Sight, lasting: bool = False) -> tuple[list[tuple[Look, float]], Look]:
    """Look on schedule until the answers settle it: the looks, and what they show together."""
    looks: list[tuple[Look, float]] = []
    left = list(answers)
    while (at := next_look(looks, ask_after=60.0)) is not None:
        looks.append((Look(left.pop(0), lasting=lasting), at))
    assert not left
    return looks, verdict(looks, ask_after=60.0)


@pytest.mark.parametrize(
    ("answers", "sight"),
    [
        ([FOUND], FOUND),
        ([ABSENT, FOUND], FOUND),
        ([ABSENT, ABSENT, ABSENT], ABSENT),
        ([UNCLEAR, ABSENT, ABSENT], ABSENT),
        ([UNCLEAR, UNCLEAR, ABSENT, ABSENT], ABSENT),
        ([ABSENT, ABSENT, UNCLEAR, ABSENT], ABSENT),
        ([ABSENT, ABSENT, UNCLEAR, UNCLEAR], UNCLEAR),
        ([UNCLEAR, UNCLEAR, UNCLEAR, FOUND], FOUND),
        ([UNCLEAR, UNCLEAR, UNCLEAR, ABSENT], UNCLEAR),
        ([UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR], UNCLEAR),
    ],
)
def test_looks_settle_the_question_together(answers: list[Sight], sight: Sight) -> None:
    """Two looks that see nothing, the last of them after ask_after; found at once."""
    looks, shown = looked(*answers)

    assert shown.sight is sight
    if sight is ABSENT:
        assert looks[-1][1] >= 60.0


def test_lasting_trouble_is_not_waited_for() -> None:
    """Nobody is signed in: the next look would be the same."""
    assert len(looked(UNCLEAR, lasting=True)[0]) == 1


def test_old_doubt_is_still_looked_up_twice() -> None:
    """A first look long after the end proves nothing alone."""
    first = (Look(ABSENT), 5000.0)
    again = next_look([first], ask_after=60.0)

    assert again is not None
    assert again > 5000.0
    assert verdict([first, (Look(ABSENT), again)], ask_after=60.0).sight is ABSENT
