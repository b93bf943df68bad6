"""The ledger's rules, asked without a database: claims, what they write, settlements, history and text."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from halo_provider.ledger import rules
from halo_provider.ledger.rules import (
    Candidate,
    Change,
    Claim,
    ClaimResult,
    Doubt,
    KnownRow,
    OnInDoubt,
    Settlement,
    TaskInstanceRef,
    Writer,
)
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.ledger.tables import DELIVERY_COUNTS

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LEASE_END = NOW + timedelta(seconds=60)
ME, OTHER = "host:1:me", "host:2:other"
SAME, CHANGED = "a" * 64, "b" * 64
VALID = Candidate("k", user_id="user-1", payload_hash=SAME)
REPAIRED = Candidate("k", user_id="user-1", payload_hash=CHANGED)
INVALID = Candidate("k", error="the message is empty")
WRITER = Writer("halo_default/note", ME, "dag run task try 1", {"dag_id": "dag", "run_ref": 7}, NOW, NOW, LEASE_END)

DOUBT = Doubt(None, "user-1", SAME, None, None, None)
LIVE, OVER, NONE = LEASE_END, NOW, None  # ends of leases

PENDING, IN_FLIGHT, DELIVERED, REJECTED, IN_DOUBT, FAILED = LedgerStatus


def row(status: LedgerStatus, *, owner: str = OTHER, lease: datetime | None = NONE, **columns: Any) -> KnownRow:
    """A stored row, delivered with the payload SAME if it is delivered."""
    known = {"user_id": "user-1", "session_id": "sess_1", "payload_hash": SAME, "error": "why"} | columns
    return KnownRow("k", status, owner=owner, lease_expires_at=lease, **known)


@pytest.mark.parametrize(
    ("stored", "candidate", "on_in_doubt", "result"),
    [
        # A row that is new.
        (None, VALID, "resend", ClaimResult.CLAIMED),
        (None, INVALID, "resend", ClaimResult.REJECTED),
        # A delivered row is never claimed, whatever the candidate and the lease.
        (row(DELIVERED), VALID, "resend", ClaimResult.DELIVERED),
        (row(DELIVERED), REPAIRED, "resend", ClaimResult.DELIVERED),
        (row(DELIVERED), INVALID, "resend", ClaimResult.DELIVERED),
        (row(DELIVERED, lease=LIVE), VALID, "hold", ClaimResult.DELIVERED),
        # Another owner's live lease comes before everything else.
        (row(PENDING, lease=LIVE), VALID, "resend", ClaimResult.BUSY),
        (row(PENDING, lease=LIVE), INVALID, "resend", ClaimResult.BUSY),
        (row(IN_FLIGHT, lease=LIVE), VALID, "hold", ClaimResult.BUSY),
        (row(IN_DOUBT, lease=LIVE), VALID, "resend", ClaimResult.BUSY),
        # A lease ends at its end, not after it; one's own excludes nothing.
        (row(PENDING, lease=OVER), VALID, "resend", ClaimResult.CLAIMED),
        (row(PENDING, owner=ME, lease=LIVE), VALID, "resend", ClaimResult.CLAIMED),
        (row(PENDING, owner=ME, lease=LIVE), INVALID, "resend", ClaimResult.REJECTED),
        # Rows that were given back, failed, or rejected with another payload.
        (row(PENDING), VALID, "hold", ClaimResult.CLAIMED),
        (row(FAILED), VALID, "hold", ClaimResult.CLAIMED),
        (row(REJECTED), VALID, "resend", ClaimResult.REJECTED),
        (row(REJECTED), REPAIRED, "resend", ClaimResult.CLAIMED),
        (row(REJECTED, payload_hash=None), VALID, "resend", ClaimResult.CLAIMED),
        (row(FAILED), INVALID, "resend", ClaimResult.REJECTED),
        # Rows that Halo may have.
        (row(IN_FLIGHT, lease=OVER), VALID, "resend", ClaimResult.CLAIMED),
        (row(IN_FLIGHT, lease=OVER), VALID, "hold", ClaimResult.IN_DOUBT),
        (row(IN_FLIGHT, lease=OVER), INVALID, "hold", ClaimResult.REJECTED),
        (row(IN_DOUBT), VALID, "resend", ClaimResult.CLAIMED),
        (row(IN_DOUBT), REPAIRED, "hold", ClaimResult.IN_DOUBT),
    ],
)
def test_claim_result_follows_from_row_candidate_and_policy(
    stored: KnownRow | None, candidate: Candidate, on_in_doubt: OnInDoubt, result: ClaimResult
) -> None:
    """The whole table of who may claim what."""
    assert rules.claim_result(stored, candidate, owner=ME, now=NOW, on_in_doubt=on_in_doubt) is result


@pytest.mark.parametrize(
    ("stored", "candidate", "result", "answer"),
    [
        (None, INVALID, ClaimResult.REJECTED, Claim(ClaimResult.REJECTED, error=INVALID.error)),
        (
            row(DELIVERED, error=None),
            VALID,
            ClaimResult.DELIVERED,
            Claim(ClaimResult.DELIVERED, session_id="sess_1"),
        ),
        (
            row(DELIVERED, changes=2, error=None),
            REPAIRED,
            ClaimResult.DELIVERED,
            Claim(ClaimResult.DELIVERED, session_id="sess_1", changed=True, changes=2),
        ),
        (
            row(IN_FLIGHT, session_id=None),
            VALID,
            ClaimResult.CLAIMED,
            Claim(ClaimResult.CLAIMED, error="why", doubt=DOUBT),
        ),
        (
            row(REJECTED, session_id=None),
            INVALID,
            ClaimResult.REJECTED,
            Claim(ClaimResult.REJECTED, error=INVALID.error),
        ),
    ],
)
def test_claim_answer_tells_what_the_ledger_knows(
    stored: KnownRow | None, candidate: Candidate, result: ClaimResult, answer: Claim
) -> None:
    """The session, the error, whether Halo may have the row, and whether its content is another one now."""
    assert rules.claim_answer(result, stored, candidate) == answer


def test_only_a_delivered_row_with_another_payload_has_changed() -> None:
    """A row that is sent for the first time has not changed."""
    assert rules.claim_answer(ClaimResult.DELIVERED, row(DELIVERED), REPAIRED).has_changed
    assert not rules.claim_answer(ClaimResult.DELIVERED, row(DELIVERED), VALID).has_changed
    assert not rules.claim_answer(ClaimResult.DELIVERED, row(DELIVERED), INVALID).has_changed
    assert not rules.claim_answer(ClaimResult.CLAIMED, row(FAILED), REPAIRED).has_changed


@pytest.mark.parametrize(
    ("result", "stored", "candidate", "writes"),
    [
        (ClaimResult.CLAIMED, row(FAILED), VALID, True),
        (ClaimResult.BUSY, row(IN_FLIGHT, lease=LIVE), VALID, False),
        (ClaimResult.DELIVERED, row(DELIVERED), VALID, False),
        (ClaimResult.IN_DOUBT, row(IN_FLIGHT, lease=OVER), VALID, True),  # its doubt is new
        (ClaimResult.IN_DOUBT, row(IN_DOUBT), VALID, False),
        (ClaimResult.REJECTED, row(REJECTED), VALID, False),
        (ClaimResult.REJECTED, row(REJECTED), INVALID, True),  # for another reason
        (ClaimResult.REJECTED, row(REJECTED, error=INVALID.error), INVALID, False),
        (ClaimResult.REJECTED, row(FAILED), INVALID, True),
        (ClaimResult.REJECTED, row(IN_FLIGHT, lease=OVER), INVALID, True),
    ],
)
def test_claim_writes_only_what_is_new(
    result: ClaimResult, stored: KnownRow, candidate: Candidate, *, writes: bool
) -> None:
    """Reading the same source every day writes nothing for the rows that stay as they are."""
    assert rules.claim_changes_row(result, stored, candidate) is writes


@pytest.mark.parametrize("result", [result for result in ClaimResult if result is not ClaimResult.DELIVERED])
@pytest.mark.parametrize("status", LedgerStatus)
def test_claim_finds_doubt_only_in_rows_in_flight_without_a_live_lease(
    result: ClaimResult, status: LedgerStatus
) -> None:
    """Their owner died, or lost its lease, between the intent and the answer."""
    finds = rules.claim_finds_doubt(result, row(status))

    assert finds == (status is IN_FLIGHT and result is not ClaimResult.BUSY)


@pytest.mark.parametrize(
    ("result", "candidate", "columns"),
    [
        (ClaimResult.CLAIMED, VALID, {"status": PENDING, "lease_expires_at": LEASE_END, "error": None}),
        (ClaimResult.REJECTED, INVALID, {"status": REJECTED, "lease_expires_at": None, "error": INVALID.error}),
    ],
)
def test_new_row_is_pending_with_a_lease_or_rejected_without(
    result: ClaimResult, candidate: Candidate, columns: dict[str, Any]
) -> None:
    """No attempt has been made, and the task instance stands beside it."""
    common = {"row_key": "k", "owner": ME, "attempts": 0, "dag_id": "dag", "created_at": NOW, "updated_at": NOW}

    assert rules.new_row(result, candidate, WRITER).items() >= (common | columns).items()


@pytest.mark.parametrize(
    ("result", "stored", "candidate", "columns"),
    [
        (
            ClaimResult.CLAIMED,
            row(FAILED),
            REPAIRED,
            {"status": PENDING, "owner": ME, "payload_hash": CHANGED, "lease_expires_at": LEASE_END, "error": "why"},
        ),
        (
            ClaimResult.CLAIMED,
            row(IN_FLIGHT, lease=OVER),
            VALID,
            {"status": IN_DOUBT, "owner": ME, "payload_hash": SAME, "lease_expires_at": LEASE_END},
        ),
        (
            ClaimResult.IN_DOUBT,
            row(IN_FLIGHT, lease=OVER),
            REPAIRED,
            {"status": IN_DOUBT, "owner": OTHER, "payload_hash": SAME, "lease_expires_at": None},
        ),
        (
            ClaimResult.REJECTED,
            row(FAILED),
            INVALID,
            {"status": REJECTED, "owner": OTHER, "payload_hash": None, "user_id": "user-1", "error": INVALID.error},
        ),
        (
            ClaimResult.REJECTED,
            row(IN_DOUBT),
            INVALID,
            {"status": IN_DOUBT, "owner": OTHER, "lease_expires_at": None, "error": INVALID.error},
        ),
    ],
)
def test_claimed_row_stays_in_doubt_if_halo_may_have_it(
    result: ClaimResult, stored: KnownRow, candidate: Candidate, columns: dict[str, Any]
) -> None:
    """Only a claim that succeeds changes the owner; the payload of a row that is held stays the one that was sent."""
    written = rules.claimed_row(result, stored, candidate, WRITER, on_in_doubt="resend")

    assert written.items() >= columns.items()
    assert written["updated_at"] == NOW
    assert "attempts" not in written
    assert "session_id" not in written


@pytest.mark.parametrize(("final", "lease_end"), [(True, None), (False, LEASE_END)])
def test_settlement_ends_the_lease_only_when_it_is_final(*, final: bool, lease_end: datetime | None) -> None:
    """Between two attempts the row stays claimed."""
    columns = rules.settled_row(Settlement("k", PENDING, final=final), WRITER)

    assert columns["lease_expires_at"] == lease_end


def test_every_status_but_in_flight_is_an_outcome_and_final_statuses_are_never_left() -> None:
    """In flight is what an intent makes; a settlement neither ends nor repeats a delivered or rejected row."""
    assert set(rules.SETTLED_FROM) == set(LedgerStatus) - {IN_FLIGHT}
    for before in rules.SETTLED_FROM.values():
        assert not {DELIVERED, REJECTED, FAILED} & set(before)
    for certain in (PENDING, FAILED):
        assert IN_DOUBT not in rules.SETTLED_FROM[certain], "an answer never says that a row in doubt is not with Halo"


@pytest.mark.parametrize(
    ("status", "final", "told"),
    [
        (DELIVERED, True, False),
        (REJECTED, True, True),
        (FAILED, True, True),
        (IN_DOUBT, True, True),
        (IN_DOUBT, False, True),
        (PENDING, False, True),  # an attempt that Halo did not take
        (PENDING, True, False),  # a claim that was given back
    ],
)
def test_history_tells_attempts_that_went_wrong(status: LedgerStatus, *, final: bool, told: bool) -> None:
    """Millions of delivered rows have no event."""
    assert rules.settlement_is_told(Settlement("k", status, final=final)) is told


def test_event_names_the_actor_and_what_happened() -> None:
    """The columns of the two events that a run writes: its DAG's people may read them, and nobody decided anything."""
    common = {"namespace": "halo_default/note", "row_key": "k", "at": NOW, "actor": "dag run task try 1"}
    common |= {"dag_id": "dag", "run_ref": 7, "decision": None, "before": None}

    doubt = rules.doubt_event("halo_default/note", "k", actor=WRITER.actor, now=NOW, belongs_to=WRITER.task_instance)
    assert doubt == common | {"event": "in_doubt", "detail": rules.LEASE_RAN_OUT}
    failed = rules.settlement_event(Settlement("k", FAILED, error="ab_live_key refused"), WRITER)
    assert failed == common | {"event": "failed", "detail": "*** refused"}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (None, None),
        ("", None),
        ("a\0b", "a\N{REPLACEMENT CHARACTER}b"),
        ("a\ud800b", "a?b"),
        ("🦄" * 600, "🦄" * rules.MAX_TEXT),
        ("key ab_live_example", "key ***"),
        ("x" * 490 + "ha_secret_example_of_a_secret", "x" * 490 + "***"),
    ],
)
def test_text_is_stored_without_secrets_and_within_bounds(text: str | None, stored: str | None) -> None:
    """A secret is replaced before the text is cut, or a part of it would be stored."""
    assert rules.shortened(text) == stored


def test_text_is_bounded_before_it_is_searched_for_secrets() -> None:
    """An answer of many megabytes that looks like the beginnings of tokens costs no more than another."""
    assert rules.shortened("eyJ" * 10_000_000) == ("eyJ" * 10_000_000)[: rules.MAX_TEXT]


def test_session_id_fits_up_to_its_bound() -> None:
    """The delivery takes an answer with a longer one as an answer without a session."""
    assert rules.session_id_fits("🦄" * rules.MAX_SESSION_ID)
    assert not rules.session_id_fits("x" * (rules.MAX_SESSION_ID + 1))


def test_settlement_whose_session_does_not_fit_is_recorded_as_doubt() -> None:
    """Its other texts stay; every other settlement is recorded as it is."""
    good = Settlement("k", DELIVERED, session_id="s", reply="Thank you")
    huge = good._replace(session_id="x" * (rules.MAX_SESSION_ID + 1), change=Change("k", 1, SAME))

    assert rules.recordable(good) is good
    assert rules.recordable(huge) == Settlement("k", IN_DOUBT, error=rules.SESSION_UNUSABLE, reply="Thank you")


def test_settlement_without_texts_keeps_its_outcome() -> None:
    """The status, the session and the change are what counts."""
    change = Change("k", 1, SAME)
    settlement = Settlement("k", DELIVERED, False, "s", "agent", "error", "reply", {"a": 1}, change)

    bare = Settlement("k", DELIVERED, final=False, session_id="s", error=rules.TEXTS_REFUSED, change=change)
    assert rules.without_texts(settlement) == bare


def _nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("response", "stored"),
    [
        (None, None),
        ({}, None),
        ({"score": float("nan"), "list": [1, None], "text": "ü"}, '{"score":null,"list":[1,null],"text":"ü"}'),
        ({"echo": "ab_live_example"}, '{"echo":"***"}'),
        ({"wide": "x" * rules.MAX_RESPONSE}, None),
        ({"deep": _nested(10_000)}, None),
    ],
    ids=["none", "empty", "NaN", "secret", "wide", "deep"],
)
def test_response_is_stored_as_json_without_secrets(response: dict[str, Any] | None, stored: str | None) -> None:
    """NaN and Infinity, which the parser takes, are not JSON; what is too long or too deep is not kept."""
    assert rules.storable_json(response) == stored


@pytest.mark.parametrize("change", [Change("k", 1, SAME), Change("a key", 12, CHANGED)])
def test_change_is_found_again_in_its_ledger_key(change: Change) -> None:
    """A follow-up's key leads back to its row; a row's own key is no change."""
    assert Change.at(change.ledger_key, change.payload_hash) == change
    assert Change.at(change.row_key, change.payload_hash) is None


@pytest.mark.parametrize(
    ("task_instance", "name"),
    [
        (TaskInstanceRef(), None),
        (TaskInstanceRef(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=2), "d r t try 2"),
        (TaskInstanceRef(dag_id="d", run_id="r", task_id="t", map_index=3, try_number=1), "d r t[3] try 1"),
    ],
)
def test_task_instance_has_a_name_for_the_history(task_instance: TaskInstanceRef, name: str | None) -> None:
    """Outside a task there is none."""
    assert task_instance.name == name
    assert task_instance.columns["map_index"] == task_instance.map_index


def test_delivery_counts_every_status_once() -> None:
    """The columns of a delivery are the statuses of rows, and the counts of requests."""
    assert (*(status.value for status in RowStatus), "requests", "refused") == DELIVERY_COUNTS
