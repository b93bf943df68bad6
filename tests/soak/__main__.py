"""The soak: ``make soak``, or ``python -m tests.soak``.

Rounds follow each other on every ledger that answers until the time is over. In each, three workers deliver the same
rows of shared users, in orders of their own, while they are killed, stopped for longer than their lease lives and
started anew, while their clocks step, the ledger's database goes away and Halo makes every fault that the simulator
knows. Then a calm run brings everything to its end, and a judge that shares no code with the package looks at what
Halo and the ledger have. Prints a table, and writes docs/soak.md. Ends with 0 only if the judge found nothing.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import itertools
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from halo_provider.ledger import Ledger, OnInDoubt
from tests.acceptance.proof import LEDGERS, ledger_place, reachable
from tests.soak.chaos import LIMITS
from tests.soak.rounds import LATENCY, ROWS, USERS, WORKERS, Result, Round
from tests.soak.worker import LEASE, fake_clocks

PAGE = Path(__file__).parents[2] / "docs" / "soak.md"
CHAOS_SECONDS = (6.0, 12.0)  # of a round
SHOWN = 10  # findings of one round
DEEDS = ("Killed", "Stopped", "Clock steps", "Ledger cut off")
FINDINGS = ("Doubles with doubt", "Doubles without doubt", "Lost", "Out of order", "Mismatches")
POLICIES: tuple[OnInDoubt, ...] = ("resend", "hold")

EXPLANATION = f"""\
In each round {WORKERS} workers deliver the same {ROWS} rows of at most {USERS} users, in orders of their own. Halo
answers after {LATENCY[0]} to {LATENCY[1]} s, makes every fault, and has one of the limits that the simulator knows.
Workers are killed while they send, or stopped for longer than their lease of {LEASE:g} s lives. Their clocks step by
up to an hour, and the ledger's connections are cut off for a while (SQLite: its file is locked). `on_in_doubt` is
"resend" in half of the rounds and "hold" in the others. In the end a calm run does what is left to do.

The judge reads the ledger by SQL and asks Halo over HTTP. It shares no code with the package, and counts:

- **Doubles**: copies of a row beyond its first one. Each of them needs a record of doubt of its own in the row's
  history. With "hold" there must be none at all.
- **Lost**: rows that are neither delivered nor rejected for a reason. With "hold" a row may also be in doubt, or wait,
  with a reason, while a row of the same user is in doubt.
- **Out of order**: rows that Halo took from a run before it had an earlier one of the same user in that run's source,
  unless that one was rejected; and rows that it took while it worked on another row of the same user from the same run.
  Between runs whose sources have different orders nothing more is promised.
- **Mismatches**: rows delivered in a session in which Halo does not have them; and rows with Halo that the ledger does
  not call delivered, without a record of doubt."""


@dataclass(slots=True)
class Soak:
    """What came of all rounds on one ledger."""

    ledger_name: str
    results: list[Result] = field(default_factory=list)

    def line(self) -> str:
        """This ledger's line of the table."""
        deeds = [result.deeds for result in self.results]
        verdicts = [result.verdict for result in self.results]
        numbers = (
            len(self.results),
            sum(each.kills for each in deeds),
            sum(each.stops for each in deeds),
            sum(each.clock_steps for each in deeds),
            sum(each.cuts for each in deeds),
            sum(each.rows for each in verdicts),
            sum(each.chats for each in verdicts),
            sum(each.doubles_with_doubt for each in verdicts),
            sum(len(each.doubles_without_doubt) for each in verdicts),
            sum(len(each.lost) for each in verdicts),
            sum(len(each.out_of_order) for each in verdicts),
            sum(len(each.mismatches) for each in verdicts),
            round(sum(result.seconds for result in self.results)),
        )
        return f"| {self.ledger_name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def soak(ledger_name: str, *, seconds: float, seed: int, clocks: bool) -> Soak:
    """Play rounds on one ledger until the time is over."""
    found = Soak(ledger_name)
    ends_at = time.monotonic() + seconds
    with ledger_place(ledger_name) as (url, cut):
        Ledger.at(url).close()
        limits = random.Random(seed).sample(LIMITS, len(LIMITS))
        for number in itertools.count():
            if time.monotonic() >= ends_at:
                break
            times_round, index = divmod(number, len(limits))
            chance = random.Random(f"{seed} {ledger_name} {number}")
            result = Round(
                name=f"soak/{ledger_name} {number}",
                ledger_url=url,
                cut=cut,
                on_in_doubt=POLICIES[(index + times_round) % len(POLICIES)],
                limit=limits[index],
                chaos_seconds=min(chance.uniform(*CHAOS_SECONDS), seconds),
                chance=chance,
                fake_clocks=clocks,
            ).play()
            found.results.append(result)
            print(f"{found.line()} so far", file=sys.stderr)
            for finding in result.findings[:SHOWN]:
                print(f"FOUND: {finding}", file=sys.stderr)
            if result.evidence:
                print(f"{len(result.findings)} findings: all of them are in {result.evidence}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the page; 0 if the judge found nothing."""
    names = {name.lower(): name for name in LEDGERS}
    names["postgres"] = names.pop("postgresql")
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of all ledgers together (default: %(default)s)")
    parser.add_argument("--ledger", choices=sorted(names), help="(default: all that answer)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the chaos (default: chance)")
    parser.add_argument("--clock-steps", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--no-page", action="store_true", help="do not write docs/soak.md")
    options = parser.parse_args(arguments)
    clocks = options.clock_steps and fake_clocks()
    ledgers = [names[options.ledger]] if options.ledger else [name for name in LEDGERS if reachable(name)]
    seconds = options.minutes * 60 / len(ledgers)
    soaks = [soak(name, seconds=seconds, seed=options.seed, clocks=clocks) for name in ledgers]
    lines = list(report(soaks, minutes=options.minutes, seed=options.seed, clocks=clocks))
    print("\n".join(lines))
    if not options.no_page:
        PAGE.write_text("\n".join(["# Soak", "", *lines, ""]), encoding="utf-8")
    return 1 if any(result.findings for each in soaks for result in each.results) else 0


def report(soaks: Sequence[Soak], *, minutes: float, seed: int, clocks: bool) -> Iterator[str]:
    """What was done, and what came of it, as Markdown."""
    yield (
        f"`make soak` on {datetime.now(UTC):%Y-%m-%d}, {minutes:g} minutes, seed {seed}: {os.cpu_count()} cores, "
        f"{platform.system()}, Python {platform.python_version()}."
    )
    yield ""
    columns = ("Ledger", "Rounds", *DEEDS, "Rows", "Chats", *FINDINGS, "Seconds")
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'--:|' * (len(columns) - 1)}"
    for each in soaks:
        yield each.line()
    yield ""
    yield from EXPLANATION.splitlines()
    if not clocks:
        yield ""
        yield "No clock was stepped: libfaketime is not installed here, or not wanted."


if __name__ == "__main__":
    sys.exit(main())
