"""What the pages say of the package is complete, and computed tables are those of the code."""

from halo_provider import exceptions
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.ledger.tables import DELIVERY_COUNTS
from tests.benchmarks import sizing
from tests.docs.blocks import ROOT

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def errors(kind: type[exceptions.HaloError]) -> set[str]:
    """Every error without a more special one: what people meet."""
    special = kind.__subclasses__()
    if not special:
        return {kind.__name__}
    return set().union(*(errors(each) for each in special))


def test_runbook_has_every_error() -> None:
    """An error that nobody finds there leaves people alone at night."""
    assert {name for name in errors(exceptions.HaloError) if f"`{name}`" not in RUNBOOK} == set()


def test_runbook_names_no_error_that_is_not_there() -> None:
    """A class that was renamed has to leave the runbook."""
    named = {
        word.strip("`:") for word in RUNBOOK.split() if word.startswith("`") and word.strip("`:").endswith("Error")
    }

    assert {name for name in named if not hasattr(exceptions, name)} == set()


def test_runbook_has_every_status() -> None:
    """The ledger's and the run's."""
    statuses = {status.value for status in (*LedgerStatus, *RowStatus)}

    assert {status for status in statuses if f"| `{status}` |" not in RUNBOOK} == set()


def test_metrics_page_has_every_counter() -> None:
    """Whoever builds a dashboard copies the names from there."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")

    assert {name for name in DELIVERY_COUNTS if f"`halo.{name}`" not in page} == set()


def test_sizing_tables_are_those_of_the_formula() -> None:
    """``python -m tests.benchmarks.sizing`` writes them."""
    page = sizing.PAGE.read_text(encoding="utf-8")

    assert sizing.with_computed(page) == page


def test_ledger_is_computed_by_the_size_that_was_measured() -> None:
    """Rounded up, so that nobody's disk fills before the plan says so, and not by more than a fifth."""
    measured = sizing.delivered_bytes(sizing.PAGE.read_text(encoding="utf-8"))

    assert measured <= sizing.BYTES <= measured * 1.2


def test_size_grows_with_rate_and_latency() -> None:
    """By Little's law, and over as many tasks as it takes."""
    size = sizing.Size(rows=3_600_000, seconds=3_600, latency=1.9)

    assert (size.rate, size.in_flight, size.shards, size.concurrency) == (1_000.0, 2_000, 5, 400)


def test_readme_is_short() -> None:
    """What a newcomer does not need is on the site's pages."""
    assert len(README.splitlines()) <= 150
