"""The ledger keeps what was seen of tickets, on every database."""

from datetime import UTC, datetime

import pytest

from halo_provider.ledger import Ledger
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.tickets import NO_TICKET, FollowedRow, TicketFact, TicketRows, with_others
from tests.core.deliveries import NAMESPACE, Deliveries, notes, rows_in

WANTED = RowFilter(namespace=NAMESPACE)
AT = datetime(2026, 11, 1, 12, 30, 15, 250_000, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """The URL of a ledger on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


def every(rows: TicketRows, *, until: object = None, limit: int = 2) -> list[FollowedRow]:
    """All rows, page by page."""
    found, after = rows.page(WANTED, until=until, after=None, limit=limit)  # type: ignore[arg-type]
    while after is not None:
        more, after = rows.page(WANTED, until=until, after=after, limit=limit)  # type: ignore[arg-type]
        found += more
    return found


def test_what_was_seen_is_kept_and_counted(deliveries: Deliveries, ledger: Ledger) -> None:
    """Rows leave those that are waited for, and the counts add up."""
    deliveries.run(notes(5))
    rows = TicketRows(ledger)
    before = {key: row["updated_at"] for key, row in rows_in(ledger).items()}
    first, second, third, fourth, _ = every(rows)

    rows.record(
        [
            (first, TicketFact("t1", "open", AT)),
            (second, TicketFact("t1", "resolved", AT)),
            (third, TicketFact(None, NO_TICKET, None)),
            (fourth, TicketFact("t2", "x" * 500, None)),
        ]
    )

    counts = rows.counts(WANTED)
    assert (counts.rows, counts.with_ticket, counts.tickets, counts.without_ticket, counts.waiting) == (5, 3, 2, 1, 1)
    assert (rows.waiting(WANTED, until="created").rows, rows.waiting(WANTED, until="resolved").rows) == (1, 3)
    assert [row.row_key for row in every(rows, until="created")] == ["4"]
    assert [row.known.at for row in every(rows) if row.known][:2] == [AT, AT]
    assert {key: row["updated_at"] for key, row in rows_in(ledger).items()} == before


def test_time_of_the_first_sight_stays_where_halo_tells_none(deliveries: Deliveries, ledger: Ledger) -> None:
    """It is since when the status was known."""
    deliveries.run(notes(1))
    rows = TicketRows(ledger)
    (row,) = every(rows)
    rows.record([(row, TicketFact("t1", "open", None))])
    (seen,) = every(rows)

    rows.record([(seen, TicketFact("t1", "open", None))])

    assert every(rows)[0].known == seen.known
    assert seen.known is not None
    assert seen.known.at is not None


def test_rows_without_a_ticket_are_a_filter(deliveries: Deliveries, ledger: Ledger) -> None:
    """For pages and commands."""
    deliveries.run(notes(3))
    rows = TicketRows(ledger)
    rows.record([(row, TicketFact(None, NO_TICKET, None)) for row in every(rows)[:2]])

    found = RowReader(ledger).page(RowFilter(namespace=NAMESPACE, ticket_statuses=(NO_TICKET,)))

    assert [row.row_key for row in found] == ["0", "1"]


def test_sessions_of_others_are_counted_with_the_ledgers(deliveries: Deliveries, ledger: Ledger) -> None:
    """Sessions that the ledger does not have are rows of the answer, too."""
    deliveries.run(notes(1))

    counts = with_others(TicketRows(ledger).counts(WANTED), [TicketFact("t9", "open", None), None])

    assert (counts.rows, counts.tickets, counts.waiting, dict(counts.statuses)) == (3, 1, 2, {"open": 1})
