"""A delivery from rows to tickets: what is sent, what is told, and what a second run does."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine, select

import halo_provider.delivery.commit
import halo_provider.delivery.delivery
from halo_provider.delivery.report import DeliveryReport
from halo_provider.exceptions import AccountingError, RowError, SourceError
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.ledger.tables import submissions
from halo_provider.models import Chat, ChatAnswer
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.rows import Row
from halo_provider.submission import Entry, Submission, User
from tests.core.deliveries import Deliveries, note, notes, rows_in, until
from tests.core.sources import BrokenSource, UnreadableSource
from tests.waiting import TIMEOUT


def test_every_row_becomes_one_chat(halo: Simulator, deliveries: Deliveries) -> None:
    """Each row is one message of its user with its context, and its session_id comes back."""
    submission = Submission(
        name="application",
        key="id",
        user=User(id="user"),
        message="{text}",
        context={"application": Entry(label="Application", type="custom", fields=["id", "text"])},
    )

    run = deliveries.run(notes(30), submission=submission)

    assert run.counts == {RowStatus.DELIVERED: 30}
    assert sorted((chat.user_id, chat.message) for chat in halo.chats) == sorted(
        (f"user-{number}", f"Note {number}.") for number in range(30)
    )
    assert halo.chats[0].context["application"]["value"].keys() == {"id", "text"}
    sessions = {chat.user_id: chat.session_id for chat in halo.chats}
    assert {outcome.user_id: outcome.session_id for outcome in run.outcomes} == sessions
    assert (run.report.read, run.report.requests, run.report.error, run.report.stopped) == (30, 30, None, None)


def test_ledger_knows_what_was_delivered(halo: Simulator, deliveries: Deliveries) -> None:
    """Status, session, agent and reply are kept; the answer's unknown fields too; the message is not."""
    deliveries.run([note("a", text="A private word.")])

    row = rows_in(deliveries.ledger)["a"]
    (chat,) = halo.chats
    assert (row["status"], row["session_id"], row["agent_id"]) == (
        LedgerStatus.DELIVERED,
        chat.session_id,
        chat.agent_id,
    )
    assert (row["reply"], row["response"]) == (chat.reply, {"message_id": chat.message_id})
    assert (row["attempts"], row["user_id"], row["error"], row["lease_expires_at"]) == (1, "user-a", None, None)
    assert "private" not in str(row)


def test_second_run_sends_nothing(halo: Simulator, deliveries: Deliveries) -> None:
    """What was delivered is told again, with its session, without one request."""
    first = deliveries.run(notes(10))

    second = deliveries.run(notes(10))

    assert second.counts == {RowStatus.ALREADY_DELIVERED: 10}
    assert (second.report.requests, len(halo.requests)) == (0, 10)
    assert {one.row_key: one.session_id for one in second.outcomes} == {
        one.row_key: one.session_id for one in first.outcomes
    }


def test_new_rows_of_a_grown_source_are_sent(halo: Simulator, deliveries: Deliveries) -> None:
    """The next run of a growing file sends what is new."""
    deliveries.run(notes(3))

    run = deliveries.run(notes(5))

    assert run.counts == {RowStatus.ALREADY_DELIVERED: 3, RowStatus.DELIVERED: 2}
    assert len(halo.chats) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 500])
def test_first_of_several_rows_with_a_key_counts(halo: Simulator, deliveries: Deliveries, batch_size: int) -> None:
    """The others are duplicates, in the same batch or in a later one, now and when all was delivered before."""
    rows = [note("a", text="first"), note("b"), note("a", text="first"), note("c"), note("a", text="first")]

    first = deliveries.run(rows, batch_size=batch_size)
    second = deliveries.run(rows, batch_size=batch_size)

    assert first.counts == {RowStatus.DELIVERED: 3, RowStatus.DUPLICATE: 2}
    assert second.counts == {RowStatus.ALREADY_DELIVERED: 3, RowStatus.DUPLICATE: 2}
    assert sorted(chat.message for chat in halo.chats) == ["Thank you.", "Thank you.", "first"]


def test_bad_rows_are_rejected_and_the_others_delivered(halo: Simulator, deliveries: Deliveries) -> None:
    """No key, no user, no message, no row at all: each is rejected with its reason, known to the ledger by its key."""
    bad: list[Any] = [
        note(""),
        {"id": "no-user", "user": " ", "text": "Hello."},
        note("no-text", text=""),
        note("long", text="x" * 11_000),
        "no row",
        {"id": "ragged"},
    ]

    run = deliveries.run([*bad[:3], note("good"), *bad[3:]])

    assert run.counts == {RowStatus.REJECTED: 6, RowStatus.DELIVERED: 1}
    assert [chat.user_id for chat in halo.chats] == ["user-good"]
    assert deliveries.statuses() == {
        "no-user": LedgerStatus.REJECTED,
        "no-text": LedgerStatus.REJECTED,
        "long": LedgerStatus.REJECTED,
        "good": LedgerStatus.DELIVERED,
    }
    assert all(isinstance(one.error, RowError) for one in run.outcomes if one.status is RowStatus.REJECTED)


def test_repaired_row_is_delivered(halo: Simulator, deliveries: Deliveries) -> None:
    """Under the same key, which is what makes a rejects file worth repairing."""
    deliveries.run([note("a", text="")])

    assert deliveries.run([note("a", text="Better.")]).counts == {RowStatus.DELIVERED: 1}
    assert deliveries.run([note("a", text="")]).counts == {RowStatus.ALREADY_DELIVERED: 1}
    assert [chat.message for chat in halo.chats] == ["Better."]


def test_empty_source_is_a_valid_run(deliveries: Deliveries) -> None:
    """No rows, no requests, no error, and the sum holds."""
    run = deliveries.run([])

    assert (run.counts, run.report.read, run.report.error) == ({}, 0, None)
    assert set(run.report.summary().values()) == {0}


def test_anonymous_rows_are_delivered(halo: Simulator, deliveries: Deliveries) -> None:
    """Without a user nothing has to wait for anything."""
    submission = Submission(name="note", key="id", message="{text}")

    assert deliveries.run(notes(5), submission=submission).counts == {RowStatus.DELIVERED: 5}
    assert {chat.user_id for chat in halo.chats} == {None}


def test_requests_reach_the_concurrency_and_never_exceed_it(halo: Simulator, deliveries: Deliveries) -> None:
    """Seven at a time are in flight, and never an eighth."""
    halo.always("/chat", Fault.slow(0.1))

    deliveries.run(notes(21), concurrency=7)

    assert halo.max_concurrency == 7


def test_first_requests_begin_one_after_the_other(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their answers do not come all at once; a row alone does not wait for the turns of the others."""
    monkeypatch.setattr(halo_provider.delivery.delivery, "START_INTERVAL", 0.1)
    halo.always("/chat", Fault.slow(0.5))
    began = time.monotonic()

    deliveries.run(notes(4), concurrency=4)
    last = max(request.started for request in halo.requests)
    alone = deliveries.run([note("alone")], concurrency=200)

    assert last - began >= 0.3
    assert alone.report.seconds < 200 * 0.1


def test_last_outcomes_wait_for_no_others(deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every row that was read has ended, its outcome is committed at once."""
    monkeypatch.setattr(halo_provider.delivery.commit, "COMMIT_INTERVAL", 2 * TIMEOUT)

    run = deliveries.run([note("a"), note("b"), note("a"), note("c", text="")])

    assert run.counts == {RowStatus.DELIVERED: 2, RowStatus.DUPLICATE: 1, RowStatus.REJECTED: 1}
    assert run.report.seconds < TIMEOUT


def test_requests_per_second_are_kept(halo: Simulator, deliveries: Deliveries) -> None:
    """Evenly, whatever the concurrency."""
    run = deliveries.run(notes(10), requests_per_second=50.0)

    assert len(halo.requests) == 10
    assert run.report.seconds >= 9 / 50
    assert run.report.pace is not None
    assert run.report.pace.limited_by == "setting"


def test_intent_is_committed_before_the_request_is_sent(
    halo: Simulator, deliveries: Deliveries, ledger_url: str
) -> None:
    """While Halo thinks, whoever looks at the ledger sees the row in flight under its owner."""
    halo.script(path="/chat", faults=[Fault.slow(0.3)])
    seen: list[Any] = []

    async def look() -> None:
        await until(lambda: halo.requests)
        engine = create_engine(ledger_url, future=True)
        with engine.connect() as db:
            seen.extend(db.execute(select(submissions.c.status, submissions.c.attempts, submissions.c.session_id)))
        engine.dispose()

    async def both() -> None:
        await asyncio.gather(deliveries.deliver([note("a")]), look())

    asyncio.run(both())
    assert seen == [(LedgerStatus.IN_FLIGHT, 1, None)]
    assert deliveries.statuses() == {"a": LedgerStatus.DELIVERED}


class CountingSource:
    """Many rows made one by one; `most_open` is how many of them were ever read and not ended."""

    share_read = None

    description = "a generator"

    def __init__(self, count: int) -> None:
        self.count = count
        self.ended = 0
        self.most_open = 0

    def columns(self) -> list[str]:
        """A note's."""
        return list(note(""))

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield so many."""
        for number in range(1, self.count + 1):
            self.most_open = max(self.most_open, number - self.ended)
            yield Row(number, note(str(number), user=f"user-{number % 1000}"))


class PoliteHalo:
    """Says yes at once."""

    signs_tokens = False

    async def chat(self, request: Chat) -> ChatAnswer:
        """Answer with a session of the message's own."""
        await asyncio.sleep(0)
        return ChatAnswer(session_id=f"sess_{request.user_id}")


def test_rows_that_are_open_at_once_are_bounded(deliveries: Deliveries) -> None:
    """Reading waits for sending: of 10,000 rows no more than a window's worth is open at a time."""
    source = CountingSource(10_000)

    def on_outcome(_: object) -> None:
        source.ended += 1

    async def deliver() -> DeliveryReport:
        run = await deliveries.deliver(source, client=PoliteHalo(), on_outcome=on_outcome)
        return run.report

    report = asyncio.run(deliver())

    assert (report.counts[RowStatus.DELIVERED], report.error) == (10_000, None)
    assert source.most_open <= 3 * 500  # two batches of claims, and the one being read


@pytest.mark.parametrize(("count", "batch_size"), [(0, 500), (7, 500), (7, 3), (6, 3)])
def test_source_that_fails_in_the_middle_leaves_every_row_it_gave_accounted_for(
    halo: Simulator, deliveries: Deliveries, count: int, batch_size: int
) -> None:
    """The run ends with the source's error; what was read is delivered or waits, and the next run does the rest."""
    run = deliveries.run(BrokenSource(notes(count)), batch_size=batch_size)

    assert isinstance(run.report.error, SourceError)
    assert (run.report.read, sum(run.counts.values())) == (count, count)
    assert run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.NOT_ATTEMPTED}

    again = deliveries.run(notes(10))
    assert again.counts.keys() <= {RowStatus.DELIVERED, RowStatus.ALREADY_DELIVERED}
    assert len(halo.chats) == 10


def test_missing_column_ends_the_run_before_anything_is_sent(halo: Simulator, deliveries: Deliveries) -> None:
    """A source that cannot work at all is one error, not one for each row."""
    run = deliveries.run(UnreadableSource("there is no column 'text'"))

    assert (run.report.read, halo.requests) == (0, [])
    assert isinstance(run.report.error, SourceError)


def test_sum_that_does_not_hold_is_an_error() -> None:
    """The proof of the promise is made by every run."""
    report = DeliveryReport(read=2)
    report.counts[RowStatus.DELIVERED] = 1

    with pytest.raises(AccountingError, match="do not balance"):
        report.summary()


def test_outcome_is_reported_only_after_it_is_committed(
    halo: Simulator, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears of a delivery finds it in the ledger, however outcomes are grouped."""
    monkeypatch.setattr(halo_provider.delivery.commit, "COMMIT_SIZE", 3)
    unrecorded: list[object] = []

    def on_outcome(outcome: Any) -> None:
        if deliveries.statuses()[outcome.row_key] != LedgerStatus.DELIVERED:
            unrecorded.append(outcome)

    async def deliver() -> None:
        await deliveries.deliver(notes(20), on_outcome=on_outcome)

    asyncio.run(deliver())
    assert unrecorded == []
