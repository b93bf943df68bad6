"""Rows and sources that raise: a bad row is rejected, and a source that breaks off ends the run in order."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest

from halo_provider.exceptions import SourceError
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Row
from tests.core.deliveries import Deliveries, note, notes


class BreaksOff(ListSource):
    """Yields its rows and then raises what no source should."""

    def rows(self, *, required: Sequence[str]) -> Iterator[Row]:
        """Yield, and raise."""
        yield from super().rows(required=required)
        raise KeyError("the cursor is gone")


def test_source_that_raises_anything_ends_the_run_in_order(deliveries: Deliveries) -> None:
    """What was in flight is delivered, the rest waits; the error names the row, the kind and the cause."""
    run = deliveries.run(BreaksOff(notes(5)), batch_size=2)

    assert run.report.summary()["read"] == 5
    assert run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.NOT_ATTEMPTED}
    assert LedgerStatus.IN_FLIGHT not in deliveries.statuses().values()
    assert isinstance(run.report.error, SourceError)
    assert "after row 5: KeyError" in str(run.report.error)
    assert isinstance(run.report.error.__cause__, KeyError)


def cyclic() -> dict[str, Any]:
    """A value that holds itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def deep() -> list[Any]:
    """A value nested deeper than Python's stack."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


class Hostile:
    """A value that raises when anybody looks."""

    def __str__(self) -> str:
        raise RuntimeError("do not look")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value", [cyclic(), deep(), Decimal("sNaN"), Hostile()], ids=["cyclic", "deep", "sNaN", "raises"]
)
@pytest.mark.parametrize("column", ["id", "text"])
def test_value_that_cannot_be_read_rejects_its_row_alone(deliveries: Deliveries, column: str, value: Any) -> None:
    """The others are delivered, and nothing is in doubt."""
    bad = note("bad") | {column: value}

    run = deliveries.run([note("1"), bad, note("2")])

    assert run.counts[RowStatus.DELIVERED] == 2
    assert run.counts.keys() <= {RowStatus.DELIVERED, RowStatus.REJECTED}
    assert run.report.error is None
    assert LedgerStatus.IN_FLIGHT not in deliveries.statuses().values()
