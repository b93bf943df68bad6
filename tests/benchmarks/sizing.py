"""The figures of docs/guides/sizing.md: ``python -m tests.benchmarks.sizing`` computes and writes its tables.

With ``--measure`` (``make sizing``) it first fills a ledger on PostgreSQL with a million rows and with ten million,
measures both, and writes that table too. The other speeds are those of ``make bench`` and ``make workers``. What the
page says of more rows and more workers than were measured is computed.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from sqlalchemy import text

from halo_provider.ledger import Ledger
from tests import figures
from tests.benchmarks import bench_ledger
from tests.benchmarks.bench_ledger import Timing
from tests.core.databases import own_database

PAGE = figures.DOCS / "guides" / "sizing.md"
EFFICIENCY = 0.95  # of the bare loop's rate, at answers of 0.5 s and more
PER_TASK = 400  # requests in flight that one task was measured with
ROWS_PER_CORE = 2_000  # rows a second that one task makes where Halo answers at once: processor time is the limit
LEDGER_ROWS = 1_500  # rows a second that one PostgreSQL commits, two commits a row
BYTES = 1_200  # of the ledger a row, with indexes, as deliveries leave it on the disk
SIZES = (1_000_000, 10_000_000)  # rows
MEASURED_WORKERS = 2
DELIVERED_ROWS = 50_000  # into an empty ledger, to see what deliveries leave on the disk
VACUUMS = (
    10  # while they are delivered: autovacuum's default is a vacuum for each tenth of new rows, as they change twice
)
POSTGRES = ("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test")
CASES = (
    # rows, hours for them, seconds for an answer
    (10_000, 1, 2),
    (100_000, 1, 2),
    (1_000_000, 8, 2),
    (1_000_000, 1, 2),
    (10_000_000, 24, 2),
    (10_000_000, 24, 5),
    (100_000_000, 7 * 24, 2),
    (1_000_000_000, 30 * 24, 2),
    (1_000_000_000, 30 * 24, 5),
    (100_000_000, 24, 5),
    (1_000_000_000, 36, 5),
)
_BYTES = text("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname LIKE 'halo%' AND relkind = 'r'")


@dataclass(frozen=True)
class Size:
    """What so many rows in so many seconds need, at answers of `latency` seconds."""

    rows: int
    seconds: float
    latency: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds

    @property
    def in_flight(self) -> int:
        """Requests at once, of all tasks together (Little's law)."""
        return math.ceil(self.rate * self.latency / EFFICIENCY)

    @property
    def shards(self) -> int:
        """Tasks at once, which is how many slots the pool needs."""
        return max(1, math.ceil(self.in_flight / PER_TASK), math.ceil(self.rate / ROWS_PER_CORE))

    @property
    def concurrency(self) -> int:
        """Requests at once, of each task."""
        return math.ceil(self.in_flight / self.shards)

    @property
    def gigabytes(self) -> float:
        """Of the ledger, at the end."""
        return self.rows * BYTES / 1e9

    @property
    def gives_way(self) -> str:
        """What is nearest to its limit."""
        shares = {
            "commits": self.rate / LEDGER_ROWS,
            "processors": self.rate / ROWS_PER_CORE / self.shards,
            "in flight": self.in_flight / PER_TASK / self.shards,
        }
        name, share = max(shares.items(), key=lambda each: each[1])
        return f"{name} {share:.0%}"

    @property
    def is_measured(self) -> bool:
        """Whether rows and tasks are within what was measured."""
        return self.rows <= max(SIZES) and self.shards <= MEASURED_WORKERS


def formula() -> Iterator[str]:
    """What the table is computed by, as Markdown."""
    yield "| What | How |"
    yield "|---|---|"
    yield "| rows a second | `rate = N / T` |"
    yield (
        f"| requests in flight, of all tasks | `in_flight = rate * L / {EFFICIENCY:g}` "
        f"(Little's law; a task reaches {EFFICIENCY:.0%} of a bare loop) |"
    )
    shards = f"`shards = max(in_flight / {PER_TASK}, rate / {ROWS_PER_CORE:,})`, rounded up"
    yield f"| shards, and slots in their pool | {shards} |"
    yield "| `concurrency` of each | `in_flight / shards` |"
    yield f"| ledger | {BYTES:,} bytes a row, with its indexes, on PostgreSQL |"
    yield f"| commits | one PostgreSQL records about {LEDGER_ROWS:,} rows a second |"
    yield "| database connections | 2 for each shard that runs, and 1 for each open page |"
    yield f"| processors | one core for each {ROWS_PER_CORE:,} rows a second |"


def table() -> Iterator[str]:
    """What each case needs, as Markdown."""
    yield "| Rows | In | Answer | Rows/s | In flight | Shards, slots | `concurrency` | Ledger | Nearest to its limit |"
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    for rows, hours, latency in CASES:
        size = Size(rows, hours * 3_600, latency)
        time = f"{hours // 24}&nbsp;d" if hours > 24 and hours % 24 == 0 else f"{hours}&nbsp;h"
        mark = "" if size.is_measured else "\\*"
        ledger = f"{size.gigabytes:,.1f}&nbsp;GB" if size.gigabytes >= 0.1 else f"{size.gigabytes * 1_000:,.0f}&nbsp;MB"
        yield (
            f"| {rows:,}{mark} | {time} | {latency} s | {size.rate:,.1f} | {size.in_flight:,} | {size.shards} "
            f"| {size.concurrency} | {ledger} | {size.gives_way} |"
        )


def with_computed(page: str) -> str:
    """The page with formula and table as they are computed now."""
    return figures.renewed(figures.renewed(page, "formula", formula()), "sizing", table())


def measured() -> Iterator[str]:
    """A ledger of each size on PostgreSQL, as Markdown."""
    load = os.getloadavg()[0]
    with own_database(os.environ.get(*POSTGRES), force=True) as place, closing(Ledger.at(place)) as ledger:
        figures.say(f"delivering {DELIVERED_ROWS:,} rows")
        lease_holder = bench_ledger.new_lease_holder(ledger)
        for _ in range(VACUUMS):
            bench_ledger.deliver_new(lease_holder, DELIVERED_ROWS // VACUUMS // bench_ledger.BATCH)
            bench_ledger.vacuum(ledger)
        delivered = bytes_of(ledger) / DELIVERED_ROWS
    filled, timings = [], []
    with own_database(os.environ.get(*POSTGRES), force=True) as place, closing(Ledger.at(place)) as ledger:
        for first, rows in zip((0, *SIZES), SIZES, strict=False):
            figures.say(f"filling up to {rows:,} rows")
            bench_ledger.fill(ledger, rows, first=first)
            filled.append(bytes_of(ledger) / rows)
            figures.say(f"measuring {rows:,} rows")
            timings.append(dict(bench_ledger.measure(ledger, rows)))
    yield from figures.wrapped(
        f"{figures.today()}: {figures.machine()}; load before: {load:.1f}. PostgreSQL with its default settings, on",
        f"the same machine. {DELIVERED_ROWS:,} rows that one task delivered took {delivered:,.0f} bytes each, with",
        f"indexes and what updates leave behind, vacuumed {VACUUMS} times meanwhile.",
    )
    yield ""
    yield f"| Rows in the ledger | {' | '.join(f'{rows:,}' for rows in SIZES)} | ratio |"
    yield f"|---|{'--:|' * (len(SIZES) + 1)}"
    yield _line("bytes a row, filled in at once", [f"{each:,.0f}" for each in filled], filled)
    for name in timings[0]:
        both = [each[name] for each in timings]
        yield _line(name, list(map(shown, both)), [one.rows_per_second if one.rows else one.median for one in both])


def bytes_of(ledger: Ledger) -> int:
    """Of all its tables and indexes."""
    return int(ledger.transaction(lambda db: db.scalar(_BYTES)))


def shown(timing: Timing) -> str:
    """Its median, as people read it."""
    if timing.rows:
        return f"{timing.rows_per_second:,.0f} rows/s"
    return f"{timing.median:,.1f} s" if timing.median >= 1.0 else f"{timing.median * 1_000:,.1f} ms"


def _line(name: str, cells: list[str], values: list[float]) -> str:
    return f"| {name} | {' | '.join(cells)} | {values[-1] / values[0]:.2f} |"


def delivered_bytes(page: str) -> int:
    """What the page says that a delivered row took. Raises ValueError where it does not say it."""
    found = re.search(r"took\s+([\d,]+)\s+bytes\s+each", page)
    if found is None:
        raise ValueError("the page lacks the measured size of a row: run `make sizing`")
    return int(found[1].replace(",", ""))


def main() -> None:
    """Measure if asked to, compute, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sizing", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="fill and measure ledgers, which takes minutes")
    if parser.parse_args().measure:
        lines = list(measured())
        sys.stdout.write("\n".join([*lines, ""]))
        figures.renew(PAGE, "ledgers", lines)
    PAGE.write_text(with_computed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
