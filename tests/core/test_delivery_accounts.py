"""Whatever rows come and whatever goes wrong: the sum holds, and nothing is sent twice that was not in doubt."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.ledger.tables import submissions
from halo_provider.simulator import Fault, RequestRecord, Simulator
from halo_provider.submission import Submission, User
from tests.core.deliveries import Deliveries, note, rows_in

GONE_WRONG = [
    Fault.rate_limited(retry_after=0),
    Fault.rate_limited(),
    Fault.status(503, headers={"Retry-After": "0"}),
    Fault.status(500),
    Fault.status(502, accepted=True),
    Fault.status(422),
    Fault.drop_before_acceptance(),
    Fault.drop_after_acceptance(),
    Fault.half_answer(),
    Fault.garbage(),
    Fault.invalid_json(),
    Fault.missing_session_id(),
    Fault.slow(0.01),
]
FORBIDDEN = Fault.status(401)
KEYED = Submission(name="note", key="id", user=User(id="user"), message="{id} {text}")

rows = st.lists(
    st.builds(
        note,
        st.sampled_from(["", "a", "b", "c", "d", "e", "f", "g"]),
        user=st.sampled_from(["user-1", "user-2", "user-3"]),
        text=st.sampled_from(["", "Hello.", "Hello.", "Hello.", "Hello again."]),
    ),
    max_size=16,
)
faults = st.lists(st.sampled_from([None, None, *GONE_WRONG, FORBIDDEN]), max_size=12)
options = st.fixed_dictionaries(
    {
        "on_in_doubt": st.sampled_from(["resend", "hold"]),
        "max_attempts": st.integers(1, 3),
        "concurrency": st.integers(1, 4),
        "batch_size": st.integers(1, 6),
    }
)


STATUS_OF = {
    RowStatus.DELIVERED: LedgerStatus.DELIVERED,
    RowStatus.REJECTED: LedgerStatus.REJECTED,
    RowStatus.IN_DOUBT: LedgerStatus.IN_DOUBT,
    RowStatus.FAILED: LedgerStatus.FAILED,
    RowStatus.NOT_ATTEMPTED: LedgerStatus.PENDING,
}


def requests_by_key(halo: Simulator) -> dict[str, list[RequestRecord]]:
    """The requests in the order of arrival, by the key that begins their message."""
    by_key: dict[str, list[RequestRecord]] = {}
    for request in halo.requests:
        key = (request.body or {})["message"].partition(" ")[0]
        by_key.setdefault(key, []).append(request)
    return by_key


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=rows, faults=faults, options=options)
def test_accounts_balance_whatever_happens(
    halo: Simulator,
    deliveries: Deliveries,
    rows: list[dict[str, Any]],
    faults: list[Fault | None],
    options: dict[str, Any],
) -> None:
    """A run through faults, then one in peace: each row has one status, the ledger agrees, and sure rows go once."""
    halo.reset()
    deliveries.ledger.transaction(lambda db: db.execute(delete(submissions)))
    halo.script(path="/chat", faults=faults)

    first = deliveries.run(rows, submission=KEYED, **options)

    assert sum(first.counts.values()) == first.report.read <= len(rows)
    assert first.report.read == len(rows) or first.report.stopped
    # The first row of each key: a later one is a duplicate, or rejected for its other content.
    last_first = sorted(first.outcomes, key=lambda one: one.row.number, reverse=True)
    keyed = {one.row_key: one for one in last_first if one.row_key}
    assert deliveries.statuses() == {key: STATUS_OF[one.status] for key, one in keyed.items()}
    assert all(row["lease_expires_at"] is None for row in rows_in(deliveries.ledger).values())
    sent = requests_by_key(halo)
    for key, requests in sent.items():
        assert len(requests) == keyed[key].attempts
        chats = [request.chat for request in requests if request.chat]
        if keyed[key].status is RowStatus.DELIVERED:
            assert requests[-1].chat is not None
            assert requests[-1].chat.session_id == keyed[key].session_id
        if options["on_in_doubt"] == "hold":
            assert len(chats) <= 1
        if keyed[key].status in {RowStatus.FAILED, RowStatus.NOT_ATTEMPTED}:
            assert chats == []

    halo.reset()
    second = deliveries.run(rows, submission=KEYED)

    assert second.report.read == len(rows)
    assert second.counts.keys() <= {
        RowStatus.DELIVERED,
        RowStatus.ALREADY_DELIVERED,
        RowStatus.REJECTED,
        RowStatus.DUPLICATE,
    }
    settled = {key for key, one in keyed.items() if one.status in {RowStatus.DELIVERED, RowStatus.REJECTED}}
    assert settled.isdisjoint(requests_by_key(halo))
    assert all(len(requests) == 1 for requests in requests_by_key(halo).values())
