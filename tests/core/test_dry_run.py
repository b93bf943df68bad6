"""dry_run(): it foretells what a delivery does, shows what it would send, and leaves no trace."""

import json
import re
from collections import Counter
from typing import Any

import pytest

from halo_provider.delivery.dry_run import EXAMPLES, DryRun, dry_run
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.exceptions import RowError, SourceError
from halo_provider.ledger import OnInDoubt
from halo_provider.ledger.statuses import RowStatus
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row
from halo_provider.submission import Company, Entry, Submission, User
from tests.core.deliveries import NOTE, OPTIONS, Deliveries, note, notes, rows_in
from tests.core.sources import UnreadableSource

APPLICATION = Submission(
    name="application",
    key="submission_id",
    user=User(id="applicant_id"),
    company=Company(id="company_id"),
    message="Application of {contact_name} <{contact_email}>. Please review.",
    context={
        "application": Entry(label="Application of {company_name}", fields={"use": "use_case", "revenue": "revenue"}),
        "row": Entry(label="Everything", fields="*"),
        "orders": Entry(label="Orders", type="list", column="orders"),
    },
    custom_fields={"phone": "phone"},
)
IDS = {"submission_id": "APP-0001", "applicant_id": "usr_1001", "company_id": "cmp_201"}
PERSONAL = {
    "contact_name": "Jürgen Müller",
    "contact_email": "juergen.mueller@example.com",
    "company_name": "Müller & Söhne GmbH",
    "use_case": "Störungen\nals Ticket melden",
    "revenue": 12_500_000,
    "orders": '[{"name": "Wartung Plus", "quantity": 37}]',
    "phone": "+49 89 555 0199",
}


def dry_run_of(deliveries: Deliveries, rows: list[dict[str, Any]], **options: Any) -> DryRun:
    """What a delivery of these rows would do."""
    chosen = DeliveryOptions(**{name: options.pop(name) for name in OPTIONS & options.keys()})
    parts = {"submission": NOTE, "lease_holder": deliveries.lease_holder(), "options": chosen}
    return dry_run(ListSource(rows), **{**parts, **options})


@pytest.fixture
def eventful_past(halo: Simulator, deliveries: Deliveries) -> list[dict[str, Any]]:
    """Rows of which some have been delivered, refused, lost on the way or put off, and others have never been met."""
    halo.script_for(user_id="user-refused", faults=[Fault.status(400)])
    halo.script_for(user_id="user-repaired", faults=[Fault.status(400)])
    halo.script_for(user_id="user-lost", faults=[Fault.drop_after_acceptance()])
    halo.script_for(user_id="user-unclear", faults=[Fault.missing_session_id()])
    halo.script_for(user_id="user-put-off", faults=[Fault.status(503, headers={"Retry-After": "0"})])
    past = [note(key) for key in ("delivered", "refused", "repaired", "lost", "unclear", "put-off")]
    deliveries.run([*past, note("endless", text="x" * 10_001)], on_in_doubt="hold", max_attempts=1)
    return [
        *past[:2],
        note("repaired", text="Shorter."),
        *past[3:],
        note("endless", text="Much shorter."),
        note("new"),
        note("new"),
        note("too long", text="x" * 10_001),
        note(""),
    ]


@pytest.mark.parametrize("on_in_doubt", ["resend", "hold"])
def test_counts_are_those_of_the_delivery_that_follows(
    deliveries: Deliveries, eventful_past: list[dict[str, Any]], on_in_doubt: OnInDoubt
) -> None:
    """Row for row, except that what would be sent has not been attempted yet."""
    planned = dry_run_of(deliveries, eventful_past, on_in_doubt=on_in_doubt, batch_size=3)
    delivery = deliveries.run(eventful_past, on_in_doubt=on_in_doubt)
    foretold = Counter(planned.counts)
    foretold[RowStatus.DELIVERED] = foretold.pop(RowStatus.NOT_ATTEMPTED)
    assert dict(foretold) == delivery.counts
    assert planned.would_send == delivery.counts[RowStatus.DELIVERED] == (6 if on_in_doubt == "resend" else 4)


def test_summary_balances(deliveries: Deliveries, eventful_past: list[dict[str, Any]]) -> None:
    """Every row read has one status, as in a delivery's summary."""
    summary = dry_run_of(deliveries, eventful_past).summary()
    assert summary == {
        "read": 11,
        "delivered": 0,
        "already_delivered": 1,
        "duplicate": 1,
        "rejected": 3,
        "in_doubt": 0,
        "failed": 0,
        "not_attempted": 6,
    }


def test_nothing_is_sent_and_nothing_is_written(
    halo: Simulator, deliveries: Deliveries, eventful_past: list[dict[str, Any]]
) -> None:
    """The ledger is the same afterwards, to the last column, and Halo has heard nothing."""
    before, requests = rows_in(deliveries.ledger), len(halo.requests)
    dry_run_of(deliveries, eventful_past)
    assert rows_in(deliveries.ledger) == before
    assert len(halo.requests) == requests


def test_same_key_in_another_batch_is_a_duplicate(deliveries: Deliveries) -> None:
    """Keys are remembered for the whole run."""
    planned = dry_run_of(deliveries, [note("1"), note("2"), note("1")], batch_size=1)
    assert planned.counts == {RowStatus.NOT_ATTEMPTED: 2, RowStatus.DUPLICATE: 1}


def test_every_rejected_row_has_its_reason(deliveries: Deliveries, eventful_past: list[dict[str, Any]]) -> None:
    """Halo's own words of an earlier run, and what is wrong with the row itself."""
    reasons: dict[int, str] = {}

    def on_rejected(row: Row, error: RowError) -> None:
        reasons[row.number] = str(error)

    dry_run_of(deliveries, eventful_past, on_rejected=on_rejected)
    assert set(reasons) == {2, 10, 11}
    assert "Halo answered 400" in reasons[2]
    assert "10,001 characters" in reasons[10]
    assert reasons[11].startswith("column 'id': the row's key is empty")


def test_first_rows_that_would_be_sent_are_shown(deliveries: Deliveries) -> None:
    """Some are enough to see what a row becomes, and what is delivered is not among them."""
    deliveries.run([note("0")])
    planned = dry_run_of(deliveries, notes(10))
    assert [example["row_key"] for example in planned.examples] == ["1", "2", "3"]
    assert len(planned.examples) == EXAMPLES


def test_examples_hold_no_value_of_the_row_but_ids(deliveries: Deliveries) -> None:
    """Neither whole nor word by word; the names inside JSON are the shape of a value."""
    planned = dry_run_of(deliveries, [IDS | PERSONAL], submission=APPLICATION)
    shown = json.dumps(planned.examples, ensure_ascii=False)
    words = {word for value in PERSONAL.values() for word in re.findall(r"\w{4,}", str(value))} - {"name", "quantity"}
    assert [word for word in words if word in shown] == []
    assert all(identity in shown for identity in IDS.values())


def test_examples_keep_the_submissions_own_words_and_the_values_shape(deliveries: Deliveries) -> None:
    """What a person checks is how the parts fit together."""
    (example,) = dry_run_of(deliveries, [IDS | PERSONAL], submission=APPLICATION).examples
    assert example["message"] == "Application of xxxxxx xxxxxx <xxxxxxx.xxxxxxx@xxxxxxx.xxx>. Please review."
    assert example["context"]["application"] == {
        "label": "Application of xxxxxx & xxxxx xxxx",
        "value": {"use": "xxxxxxxxx\nxxx xxxxxx xxxxxx", "revenue": 0},
    }
    assert example["context"]["orders"]["value"] == [{"name": "xxxxxxx xxxx", "quantity": 0}]
    assert example["custom_fields"] == {"phone": "+00 00 000 0000"}


def test_rows_without_a_column_are_rejected(deliveries: Deliveries) -> None:
    """As a delivery would."""
    planned = dry_run_of(deliveries, [{"id": "1", "user": "user-1"}])
    assert planned.counts == {RowStatus.REJECTED: 1}


def test_source_that_cannot_be_read_raises(deliveries: Deliveries) -> None:
    """As a delivery reports it."""
    with pytest.raises(SourceError, match="the query failed"):
        dry_run(
            UnreadableSource("the query failed"),
            submission=NOTE,
            lease_holder=deliveries.lease_holder(),
            options=DeliveryOptions(),
        )
