"""The table of docs/guides/sizing.md: ``python -m tests.benchmarks.sizing`` writes it.

What it is computed from was measured (docs/benchmarks.md, docs/guides/many-workers.md); what it says of more rows and
more workers than were measured is computed.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "sizing.md"
EFFICIENCY = 0.95  # of the bare loop's rate, at answers of 0.5 s and more
PER_TASK = 400  # requests in flight that one task was measured with
ROWS_PER_CORE = 2_000  # rows a second that one task makes where Halo answers at once: processor time is the limit
LEDGER_ROWS = 3_700  # rows a second that one database commits, two commits a row: measured with SQLite on a local disk
BYTES = 720  # of the ledger a row, with indexes: 1,010,000 rows on PostgreSQL, filled by bench_ledger
MEASURED_ROWS, MEASURED_WORKERS = 1_000_000, 2
BEGIN, END = "<!-- begin: sizing -->", "<!-- end: sizing -->"
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
        return self.rows <= MEASURED_ROWS and self.shards <= MEASURED_WORKERS


def table() -> str:
    """The table, as Markdown."""
    lines = [
        "| Rows | In | Answer | Rows/s | In flight | Shards, slots | `concurrency` | Ledger | Nearest to its limit |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for rows, hours, latency in CASES:
        size = Size(rows, hours * 3_600, latency)
        time = f"{hours // 24}&nbsp;d" if hours > 24 and hours % 24 == 0 else f"{hours}&nbsp;h"
        mark = "" if size.is_measured else "\\*"
        ledger = f"{size.gigabytes:,.1f}&nbsp;GB" if size.gigabytes >= 0.1 else f"{size.gigabytes * 1_000:,.0f}&nbsp;MB"
        lines.append(
            f"| {rows:,}{mark} | {time} | {latency} s | {size.rate:,.1f} | {size.in_flight:,} | {size.shards} "
            f"| {size.concurrency} | {ledger} | {size.gives_way} |"
        )
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table as it is computed now."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table()}\n\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
