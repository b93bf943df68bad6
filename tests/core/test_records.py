"""Results of tools are read whatever their shape, and what cannot be read stays unknown."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from halo_provider.client.records import (
    Listing,
    Message,
    UnreadableResultError,
    conversation_of,
    listing_of,
    normalized,
    payload_of,
    record_of,
    ticket_of,
    time_of,
)

AT = datetime(2026, 11, 25, 7, 30, 15, tzinfo=UTC)
RECORD = {"session_id": "sess_1"}


@pytest.mark.parametrize(
    "result",
    [
        {"structuredContent": {"items": [RECORD]}, "content": []},
        {"content": [{"type": "text", "text": json.dumps({"items": [RECORD]})}]},
        {"content": [{"type": "text", "text": f"Found 1:\n```json\n{json.dumps({'items': [RECORD]})}\n```"}]},
    ],
)
def test_payload_is_structured_content_or_text(result: Any) -> None:
    """MCP has both, and some servers fence their JSON."""
    assert payload_of(result) == {"items": [RECORD]}


@pytest.mark.parametrize("result", [None, [], {}, {"content": []}, {"content": [{"type": "text", "text": "Nothing"}]}])
def test_payload_without_json_is_unreadable(result: Any) -> None:
    """A sentence for people is no result: it does not say that there is nothing."""
    with pytest.raises(UnreadableResultError):
        payload_of(result)


@pytest.mark.parametrize(
    "payload",
    [
        [RECORD],
        {"transcripts": [RECORD]},
        {"data": {"items": [RECORD]}, "meta": {"request": "r-1"}},
        {"data": {"conversations": {"edges": [{"node": RECORD}]}}},
        {"results": [{"conversation": RECORD, "score": 0.7}]},
        [{"matches": [RECORD]}],
    ],
)
def test_records_are_found_in_any_wrapping(payload: Any) -> None:
    """The list that is nearest to the top."""
    (record,) = listing_of(payload).records
    assert record["session_id"] == "sess_1"


@pytest.mark.parametrize("payload", ["x", {"answer": 1}, {"items": [1, 2]}, {"error": "busy"}])
def test_result_without_records_is_unreadable(payload: Any) -> None:
    """It must not be taken for an empty one."""
    with pytest.raises(UnreadableResultError):
        listing_of(payload)


@pytest.mark.parametrize("payload", [[], {"items": []}, {"total": 0}, {"count": 0, "results": None}])
def test_empty_result_has_no_records(payload: Any) -> None:
    """Nothing was found, and the result says so."""
    assert listing_of(payload).records == ()


@pytest.mark.parametrize(
    ("payload", "more", "cursor"),
    [
        ({"items": [RECORD], "next_cursor": "abc"}, True, "abc"),
        ({"items": [RECORD], "nextCursor": None, "hasMore": False}, False, None),
        ({"items": [RECORD], "page_info": {"has_next_page": True, "end_cursor": "abc"}}, True, "abc"),
        ({"items": [RECORD], "total": 7}, True, None),
        ({"items": [RECORD]}, None, None),
    ],
)
def test_further_pages_are_noticed(payload: Any, more: object, cursor: str | None) -> None:
    """What is not there may be on another page."""
    assert listing_of(payload)[1:] == (more, cursor)


@pytest.mark.parametrize(
    "record",
    [
        {
            "session_id": "sess_1",
            "user_id": "u-1",
            "started_at": "2026-11-25T07:30:15Z",
            "messages": [
                {"role": "user", "text": "Note 1.", "created_at": "2026-11-25T07:30:15+00:00"},
                {"role": "assistant", "text": "Thanks."},
            ],
        },
        {
            "id": "sess_1",
            "user": {"id": "usr_internal", "external_id": "u-1"},
            "createdAt": 1795591815000,
            "turns": [
                {"sender": {"type": "customer"}, "content": [{"type": "text", "text": "Note 1."}], "ts": 1795591815},
                {"sender": {"type": "agent"}, "content": "Thanks."},
            ],
        },
        {
            "conversation": {"id": "sess_1"},
            "customer_id": "u-1",
            "start_time": "2026-11-25T08:30:15+01:00",
            "transcript": "User: Note 1.\nAgent: Thanks.",
        },
    ],
)
def test_conversation_is_read_from_any_shape(record: dict[str, Any]) -> None:
    """Ids, user, time and messages, as lists or as one text."""
    found = conversation_of(record)

    assert (found.session_id, "u-1" in found.user_ids, found.started_at) == ("sess_1", True, AT)
    assert [(message.text, message.of_user) for message in found.messages or ()] == [
        ("Note 1.", True),
        ("Thanks.", False),
    ]


def test_conversation_without_messages_has_none() -> None:
    """A preview is not a message."""
    assert conversation_of({"session_id": "sess_1", "preview": "Note 1.", "summary": "Note"}).messages is None


def test_text_that_was_cut_off_is_known_as_such() -> None:
    """By a flag, or by how it ends."""
    messages = [{"text": "A long text…"}, {"text": "Another", "truncated": True}, {"text": "Whole."}]

    assert [message.cut for message in conversation_of({"messages": messages}).messages or ()] == [True, True, False]


def test_texts_of_parts_come_together() -> None:
    """A message may be sent in parts."""
    parts = [{"type": "text", "text": "Note "}, {"type": "image", "url": "x"}, {"type": "text", "text": "1."}]
    assert conversation_of({"messages": [{"content": parts}]}).messages == (Message("Note 1."),)


@pytest.mark.parametrize(
    "time", [None, "", "yesterday", "2026-11-25", "2026-11-25T07:30:15", True, "1e400", [], -(10**30)]
)
def test_time_that_cannot_be_compared_is_unknown(time: Any) -> None:
    """Without a zone, a time may be half a day off."""
    assert time_of(time) is None


@pytest.mark.parametrize("time", ["2026-11-25T07:30:15Z", "2026-11-25T08:30:15.000+01:00", 1795591815, "1795591815000"])
def test_time_is_read_in_any_usual_form(time: Any) -> None:
    """ISO 8601 with a zone, seconds, milliseconds."""
    assert time_of(time) == AT


@pytest.mark.parametrize(
    ("status", "known"),
    [
        ("Open", "open"),
        ("In Progress", "in_progress"),
        ("IN_PROGRESS", "in_progress"),
        ({"name": "Resolved"}, "resolved"),
        ("inProgress", "in_progress"),
        (None, None),
        (3, None),
    ],
)
def test_ticket_has_a_status_in_one_spelling(status: Any, known: str | None) -> None:
    """Halo's word, however the tool writes it."""
    found = ticket_of({"ticket_id": "t-1", "status": status})
    assert found is not None
    assert found.status == known


def test_ticket_names_every_session_that_went_into_it() -> None:
    """Halo merges a user's tickets."""
    record = {
        "id": 7,
        "session_id": "s-1",
        "metadata": {"conversation": {"id": "s-2"}},
        "thread": [{"sessionId": "s-3"}, {"sessionId": "s-1"}],
        "sessions": ["s-4"],
    }
    found = ticket_of(record)
    assert found is not None
    assert (found.ticket_id, found.session_ids) == ("7", frozenset({"s-1", "s-2", "s-3", "s-4"}))


@pytest.mark.parametrize("payload", [{"error": "internal"}, {"data": None, "errors": [{"m": "x"}]}, {"success": False}])
def test_error_in_a_result_is_no_answer(payload: Any) -> None:
    """An empty list beside it would say that there is nothing."""
    with pytest.raises(UnreadableResultError):
        listing_of(payload)
    if "success" not in payload:
        with pytest.raises(UnreadableResultError):
            record_of(payload)


def test_null_in_the_place_of_a_list_is_an_empty_one() -> None:
    """As some languages write it; whether the reader sees anything is found out in another way."""
    assert listing_of({"data": None}) == Listing((), False, None)


@pytest.mark.parametrize(
    "payload",
    [None, [], {"data": None}, {"error": "not found"}, {"error": {"code": "NOT_FOUND"}}, {"found": False}],
)
def test_thing_that_is_not_there_is_none(payload: Any) -> None:
    """Halo's own word for it is not documented."""
    assert record_of(payload) is None


def test_text_is_compared_without_its_white_space() -> None:
    """What Halo may do to white space and to composed letters does not matter; everything else does."""
    assert normalized(" New\r\n\tapplication  from Zoe\u0308. ") == normalized("New application from Zo\xeb.")
    assert normalized("Note 1.") != normalized("note 1.")
