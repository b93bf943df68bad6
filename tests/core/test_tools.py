"""Arguments of tools are recognised by their schemas, whatever they are called."""

from datetime import UTC, datetime
from typing import Any

import pytest

from halo_provider.client.tools import Argument, Tool

SINCE = datetime(2026, 11, 25, 7, 30, 15, tzinfo=UTC)
VALUES = {Argument.USER: "u-1", Argument.SINCE: SINCE, Argument.TEXT: "Note 1.", Argument.LIMIT: 50}
TEXT = {"type": "string"}
WHOLE = {"type": "integer"}


def tool(properties: dict[str, Any], *, name: str = "data_search_transcripts", **schema: Any) -> Tool:
    """A tool whose arguments are these."""
    return Tool.of(name, {"type": "object", "properties": properties, **schema})


@pytest.mark.parametrize(
    ("properties", "arguments"),
    [
        (
            {"user_id": TEXT, "since": {"type": "string", "format": "date-time"}, "query": TEXT, "limit": WHOLE},
            {"user_id": "u-1", "since": "2026-11-25T07:30:15Z", "query": "Note 1.", "limit": 50},
        ),
        (
            {"externalUserId": TEXT, "startedAfter": WHOLE, "searchText": TEXT, "pageSize": WHOLE},
            {"externalUserId": "u-1", "startedAfter": 1795591815, "pageSize": 50, "searchText": "Note 1."},
        ),
        (
            {"filter": {"type": "object", "properties": {"contact": TEXT, "from_ms": WHOLE}}, "max_results": WHOLE},
            {"filter": {"contact": "u-1", "from_ms": 1795591815000}, "max_results": 50},
        ),
        (
            {"user_ids": {"type": "array", "items": TEXT}, "date_from": {"type": "string", "format": "date"}},
            {"user_ids": ["u-1"], "date_from": "2026-11-25"},
        ),
        (
            {"user": {"type": "object", "properties": {"id": TEXT}}, "time_range": {"properties": {"start": TEXT}}},
            {"user": {"id": "u-1"}, "time_range": {"start": "2026-11-25T07:30:15Z"}},
        ),
        (
            {"who": {**TEXT, "description": "The customer's identifier"}, "after": {**TEXT, "description": "A cursor"}},
            {"who": "u-1"},
        ),
        (
            {"customer": {"anyOf": [{"type": "null"}, TEXT]}, "format": {"enum": ["markdown", "json"]}},
            {"customer": "u-1", "format": "json"},
        ),
    ],
)
def test_argument_is_recognised_under_any_sensible_name(properties: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Names in any spelling, nested ones, lists, and times as text, date, seconds or milliseconds."""
    assert tool(properties).arguments(VALUES) == arguments


def test_argument_behind_a_reference_is_recognised() -> None:
    """Schemas made by pydantic keep their parts under $defs."""
    found = tool({"filters": {"$ref": "#/$defs/Filters"}}, **{"$defs": {"Filters": {"properties": {"user_id": TEXT}}}})

    assert found.arguments(VALUES) == {"filters": {"user_id": "u-1"}}


@pytest.mark.parametrize("name", ["user_name", "user_email", "is_user", "sort", "status", "agent_id", "chat_channel"])
def test_argument_of_another_meaning_is_left_alone(name: str) -> None:
    """A wrong guess would filter by the wrong thing."""
    assert tool({name: {"type": "boolean" if name == "is_user" else "string"}}).arguments(VALUES) == {}


def test_thing_is_got_by_its_plain_id() -> None:
    """A tool that gets one thing may call its id just id."""
    transcript = tool({"id": TEXT}, name="data_get_transcript", required=["id"])
    ticket = tool({"id": WHOLE}, name="data_get_ticket", required=["id"])

    assert transcript.arguments({Argument.SESSION: "sess_1"}) == {"id": "sess_1"}
    assert ticket.arguments({Argument.TICKET: "12"}) == {"id": 12}
    assert transcript.missing({Argument.SESSION: "sess_1"}) == []


def test_required_argument_of_unknown_meaning_is_missing() -> None:
    """Nobody can call such a tool; the error names the argument."""
    found = tool({"workspace_region": TEXT, "user_id": TEXT}, required=["workspace_region", "user_id"])

    assert found.missing({Argument.USER: "u-1"}) == ["workspace_region"]
    assert found.missing({}) == ["workspace_region", "user_id"]


def test_limit_stays_within_the_schema() -> None:
    """A larger one would be refused."""
    assert tool({"limit": {"type": "integer", "maximum": 20}}).limit() == 20
    assert tool({"limit": WHOLE}).limit() == 50
    assert tool({}).limit() is None


@pytest.mark.parametrize("schema", [None, [], "object", {}, {"properties": []}, {"properties": {"a": None}}])
def test_schema_that_is_none_has_no_arguments(schema: Any) -> None:
    """Whatever the server says of a tool, reading it does not fail."""
    assert Tool.of("data_search_tickets", schema).arguments(VALUES) == {}
