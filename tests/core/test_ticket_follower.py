"""Delivered rows are followed to their tickets, whatever Halo's tools are called and however they answer."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

import halo_provider.client.reader
import halo_provider.delivery.tickets
from halo_provider.client.access import StoredAccess
from halo_provider.client.reader import HaloReader
from halo_provider.delivery.tickets import Round, TicketFollower
from halo_provider.exceptions import HaloReadError, HaloSignInError
from halo_provider.ledger import Ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.sign_ins import SignIns
from halo_provider.ledger.tables import submissions
from halo_provider.ledger.tickets import TicketFact, TicketRows, Until
from halo_provider.simulator import Fault, Reading, Simulator
from tests.acceptance.sign_in_worker import sign_in_at
from tests.core.deliveries import NAMESPACE, Deliveries, note, rows_in

READABLE = ["structured", "text", "paged"]
WANTED = RowFilter(namespace=NAMESPACE)


def escalated(row_key: str, *, user: str | None = None) -> dict[str, Any]:
    """A row that makes a ticket."""
    return note(row_key, user=user, text=f"Please escalate this: {row_key}")


class Followed:
    """A Halo with a sign-in, whose tickets are looked at."""

    def __init__(self, halo: Simulator, url: str, ledger: Ledger, sign_in: SignIns) -> None:
        self.halo = halo
        self.url = url
        self.ledger = ledger
        self.sign_in = sign_in
        self.others: dict[str, TicketFact | None] = {}

    def read(self, **options: Any) -> None:
        """Let the tools be others."""
        self.halo.reading = Reading(consent="approved", **options)

    def look(
        self, wanted: RowFilter = WANTED, *, until: Until | None = "created", within: float = 0.0, rounds: int = 1
    ) -> Round:
        """Look so many times; what the last one saw."""

        async def look() -> Round:
            async with HaloReader(access=StoredAccess(self.sign_in), url=f"{self.url}/api/mcp") as reader:
                follower = TicketFollower(reader, TicketRows(self.ledger), wanted, until=until, ticket_within=within)
                for _ in range(rounds):
                    seen = await follower.look()
                self.others = follower.others
                return seen

        return asyncio.run(look())

    def tickets(self) -> dict[str, tuple[str | None, str | None]]:
        """Ticket and status of every row in the ledger."""
        return {key: (row["ticket_id"], row["ticket_status"]) for key, row in rows_in(self.ledger).items()}


@pytest.fixture
def followed(halo: Simulator, halo_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    """The simulator, signed in; between calls there is no pause."""
    monkeypatch.setattr(halo_provider.client.reader, "PAUSE", 0.0001)
    halo.reading = Reading(consent="approved")
    yield Followed(halo, halo_url, ledger, sign_in_at(f"{halo_url}/api/mcp", ledger))
    halo.reset()


@pytest.mark.parametrize("variant", READABLE)
def test_every_row_finds_its_ticket(deliveries: Deliveries, followed: Followed, variant: str) -> None:
    """Whatever the arguments are called and the results look like; pages may be small."""
    followed.read(variant=variant, page_size=4)
    deliveries.run([escalated(str(number)) for number in range(9)])

    seen = followed.look()

    sessions = {row_key: row["session_id"] for row_key, row in rows_in(followed.ledger).items()}
    made = {ticket.chats[0].session_id: ticket.ticket_id for ticket in followed.halo.tickets}
    assert followed.tickets() == {row_key: (made[session], "open") for row_key, session in sessions.items()}
    assert (seen.problem, seen.counts.tickets, seen.counts.is_settled("created")) == (None, 9, True)


@pytest.mark.parametrize("variant", READABLE)
def test_rows_without_a_ticket_and_rows_not_to_be_found_are_told_apart(
    deliveries: Deliveries, followed: Followed, variant: str
) -> None:
    """One was answered, of the other Halo knows nothing."""
    followed.read(variant=variant)
    deliveries.run([escalated("a"), note("b"), note("c"), escalated("d")])
    lost = update(submissions).where(submissions.c.row_key == "c").values(session_id="sess_gone")
    followed.ledger.transaction(lambda db: db.execute(lost))

    seen = followed.look()

    statuses = {row_key: status for row_key, (_, status) in followed.tickets().items()}
    assert statuses == {"a": "open", "b": "none", "c": "not_found", "d": "open"}
    assert seen.counts.sentence() == "2 tickets, 1 answered without a ticket, 1 not to be found"


@pytest.mark.parametrize("variant", READABLE)
def test_merged_tickets_are_one(deliveries: Deliveries, followed: Followed, variant: str) -> None:
    """Halo merges what a user escalates while a ticket is open: both rows have it."""
    followed.read(variant=variant)
    deliveries.run([escalated("a", user="one"), escalated("b", user="one"), escalated("c", user="another")])

    seen = followed.look()

    tickets = followed.tickets()
    assert tickets["a"] == tickets["b"] != tickets["c"]
    assert seen.counts.sentence() == ("2 tickets for 3 rows, 0 answered without a ticket, 0 not to be found")


def test_row_after_a_resolved_ticket_has_the_next_one(deliveries: Deliveries, followed: Followed) -> None:
    """Of one user's two tickets each row gets the one that names its session."""
    deliveries.run([escalated("a", user="one")])
    followed.halo.set_ticket_status("resolved")
    deliveries.run([escalated("b", user="one")])

    followed.look(until="resolved")

    assert followed.tickets() == {"a": ("ticket_1", "resolved"), "b": ("ticket_2", "open")}


@pytest.mark.parametrize("variant", READABLE)
def test_status_is_followed_until_it_is_resolved(deliveries: Deliveries, followed: Followed, variant: str) -> None:
    """Halo's own word and time are in the ledger; a resolved ticket is not asked about again."""
    followed.read(variant=variant)
    deliveries.run([escalated("a"), escalated("b")])
    assert not followed.look(until="resolved").counts.is_settled("resolved")
    followed.halo.set_ticket_status("in_progress", ticket_id="ticket_1")
    followed.halo.set_ticket_status("spam", ticket_id="ticket_2")
    seen = followed.look(until="resolved")
    assert seen.counts.statuses == {"in_progress": 1, "spam": 1}
    followed.halo.set_ticket_status("resolved", ticket_id="ticket_1")

    seen = followed.look(until="resolved")

    assert seen.counts.is_settled("resolved")
    assert followed.look(until="resolved").calls == 0
    since = min(row["ticket_at"] for row in rows_in(followed.ledger).values())
    assert abs(datetime.now(UTC) - since) < timedelta(minutes=5)


def test_young_row_without_a_ticket_is_waited_for(deliveries: Deliveries, followed: Followed) -> None:
    """A row counts as without a ticket only after the time in which one can appear."""
    followed.read(lag=3_600.0)
    deliveries.run([escalated("a"), note("b"), escalated("c")])

    assert followed.look(within=600.0).counts.waiting == 3
    assert set(followed.tickets().values()) == {(None, None)}
    followed.halo.advance(3_600.0)
    followed.look(within=600.0)

    assert followed.tickets()["a"] == ("ticket_1", "open")
    assert followed.tickets()["b"] == (None, None)
    assert followed.look(within=0.0).counts.without_ticket == 1


def test_ten_times_the_rows_need_ten_times_the_pages_and_no_call_a_row(
    deliveries: Deliveries, followed: Followed
) -> None:
    """Tickets are listed."""
    followed.read(page_size=50)
    deliveries.run([escalated(str(number)) for number in range(200)])

    seen = followed.look()

    assert (seen.counts.tickets, seen.counts.waiting) == (200, 0)
    assert seen.calls <= 10


@pytest.mark.parametrize("wrong", ["another_user", "similar_message", "old_conversation", "empty"])
@pytest.mark.parametrize("variant", READABLE)
def test_wrong_results_give_no_row_a_ticket_of_another(
    deliveries: Deliveries, followed: Followed, variant: str, wrong: str
) -> None:
    """A wrong reader does no harm: no ticket is better than another row's."""
    followed.read(variant=variant)
    for tool in ("data_search_tickets", "data_search_transcripts", "data_get_transcript"):
        followed.halo.always(f"/api/mcp/{tool}", Fault.wrong_result(wrong))
    deliveries.run([escalated(str(number)) for number in range(4)])

    followed.look(rounds=2)

    own = {
        row_key: {
            ticket.ticket_id for ticket in followed.halo.tickets if ticket.chats[0].session_id == row["session_id"]
        }
        for row_key, row in rows_in(followed.ledger).items()
    }
    for row_key, (ticket_id, _) in followed.tickets().items():
        assert ticket_id is None or ticket_id in own[row_key]


def test_results_that_nobody_can_read_leave_the_rows_waiting(deliveries: Deliveries, followed: Followed) -> None:
    """Prose: the reason is told, and nothing is guessed."""
    followed.read(variant="prose")
    deliveries.run([escalated(str(number)) for number in range(5)])

    seen = followed.look()

    assert (seen.counts.waiting, seen.counts.rows) == (5, 5)
    assert seen.problem is not None
    assert "JSON" in seen.problem


def test_calls_that_fail_now_are_made_in_the_next_round(deliveries: Deliveries, followed: Followed) -> None:
    """What was seen before they failed is kept."""
    deliveries.run([escalated("a"), note("b")])
    followed.halo.always("/api/mcp/data_get_transcript", Fault.status(500))
    first = followed.look()
    assert followed.tickets()["a"] == ("ticket_1", "open")
    followed.halo.always("/api/mcp/data_get_transcript", None)

    second = followed.look()

    assert (first.counts.waiting, second.counts.waiting, second.counts.without_ticket) == (1, 0, 1)


def test_switched_off_reading_is_an_error_of_its_own(deliveries: Deliveries, followed: Followed) -> None:
    """No later round would see more."""
    deliveries.run([escalated("a")])
    followed.read(enabled=False)

    with pytest.raises(HaloReadError, match="403") as raised:
        followed.look()
    assert raised.value.lasting


def test_revoked_sign_in_asks_for_another_one(deliveries: Deliveries, followed: Followed) -> None:
    """And names the command."""
    deliveries.run([escalated("a")])
    followed.halo.revoke_sign_ins()

    with pytest.raises(HaloSignInError, match="halo-login"):
        followed.look()


def test_expired_access_token_is_renewed_on_the_way(deliveries: Deliveries, followed: Followed) -> None:
    """401 in mid-run."""
    deliveries.run([escalated("a")])
    followed.halo.expire_access_tokens()

    assert followed.look().counts.tickets == 1
    assert len(followed.halo.sign_ins[0].refreshes) == 1


def test_sessions_that_the_ledger_does_not_have_are_followed_too(deliveries: Deliveries, followed: Followed) -> None:
    """Whatever sent them: what is seen is told, and nothing is written."""
    deliveries.run([escalated("a"), escalated("b")])
    mine, foreign = (chat.session_id for chat in followed.halo.chats)
    row_key = next(key for key, row in rows_in(followed.ledger).items() if row["session_id"] == mine)
    gone = submissions.c.row_key != row_key
    followed.ledger.transaction(lambda db: db.execute(submissions.delete().where(gone)))

    seen = followed.look(RowFilter(session_ids=(mine, foreign, "sess_unknown")))

    assert (seen.counts.rows, seen.counts.tickets, seen.counts.not_found) == (3, 2, 1)
    assert {session: fact and fact.status for session, fact in followed.others.items()} == {
        foreign: "open",
        "sess_unknown": "not_found",
    }


def test_only_delivered_rows_of_the_run_are_looked_at(deliveries: Deliveries, followed: Followed) -> None:
    """Another run's rows, and rows that were never delivered, are none of its business."""
    followed.halo.script_for(user_id="user-b", faults=[Fault.status(400)])
    deliveries.run([escalated("a"), escalated("b")])

    assert followed.look(RowFilter(run_id="another")).counts.rows == 0
    assert followed.look().counts.rows == 1


def test_list_that_misses_many_tickets_is_asked_again(
    deliveries: Deliveries, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many change while it is read, not all of them are asked for one by one: the next look sees them."""
    monkeypatch.setattr(halo_provider.delivery.tickets, "MAX_MISSED", 2)
    deliveries.run([escalated(str(number)) for number in range(9)])
    followed.look()
    listed = halo_provider.delivery.tickets.TicketFollower._list
    missing = [True]

    async def first_one_alone(self: TicketFollower, *arguments: Any, **options: Any) -> Any:
        found = await listed(self, *arguments, **options)
        if missing.pop() if missing else False:
            first = next(iter(found.by_id))
            found.by_id = {first: found.by_id[first]}
            found.by_session = {}
        return found

    monkeypatch.setattr(TicketFollower, "_list", first_one_alone)
    followed.halo.set_ticket_status("resolved")
    before = len(followed.halo.reads)

    seen = followed.look(until="resolved")
    alone = [each.path for each in followed.halo.reads[before:]].count("/api/mcp/data_get_ticket")
    assert (alone, seen.counts.is_settled("resolved")) == (2, False)

    assert followed.look(until="resolved").counts.is_settled("resolved")
