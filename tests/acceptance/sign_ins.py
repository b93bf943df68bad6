"""Many processes share one sign-in for many hours, which are short here: how often it is renewed, and what that costs.

``python -m tests.acceptance.sign_ins --seconds 600`` plays it on every ledger that answers. Of every ledger it is
required that the tokens are renewed once an hour, and that no chain of tokens is revoked.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

from halo_provider.ledger import Ledger
from halo_provider.ledger.sign_ins import RENEWAL_LEASE, SignIns
from halo_provider.simulator import Reading, Simulator, serving
from tests.acceptance.proof import LEDGERS, ledger_place, reachable
from tests.acceptance.sign_in_worker import KEY, Use, User, sign_in_at

HOUR = 3.0  # seconds here
PROCESSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """What came of the hours."""

    hours: float
    refreshes: int
    shortest: float  # share of an hour between two of them
    worked: int
    refused: int
    without: int
    revoked: bool
    signed_out: int

    def faults(self) -> list[str]:
        """What was not kept."""
        found = []
        if self.revoked or self.signed_out:
            found.append(f"a chain was revoked, {self.signed_out} processes were signed out")
        if self.shortest < 0.85:
            found.append(f"renewed twice within {self.shortest:.2f} of an hour")
        if self.refreshes > self.hours / 0.85 + 1:
            found.append(f"{self.refreshes} refreshes in {self.hours:.1f} hours")
        if self.without or not self.worked:
            found.append(f"{self.without} times there was no token, {self.worked} times it worked")
        return found


@contextmanager
def signed_in(halo: Simulator, ledger_name: str, *, lease: float = RENEWAL_LEASE) -> Iterator[tuple[str, str, SignIns]]:
    """A Halo and a ledger, in which somebody has signed in; their addresses, and the sign-in."""
    with (
        serving(halo) as origin,
        ledger_place(ledger_name) as (ledger_url, _),
        closing(Ledger.at(ledger_url)) as ledger,
    ):
        yield f"{origin}/api/mcp", ledger_url, sign_in_at(f"{origin}/api/mcp", ledger, lease=lease)


def play(ledger_name: str, *, seconds: float, processes: int = PROCESSES) -> Hours:
    """Let the processes use one sign-in for so many seconds."""
    halo = Simulator(record_bodies=False, reading=Reading(access_lifetime=HOUR, consent="approved"))
    with signed_in(halo, ledger_name) as (mcp_url, ledger_url, _):
        began = time.monotonic()
        users = [User(Use(mcp_url=mcp_url, ledger_url=ledger_url, key=KEY, seconds=seconds)) for _ in range(processes)]
        told = [user.report(within=seconds + 60.0) or {} for user in users]
        lasted = time.monotonic() - began
    (chain,) = halo.sign_ins
    apart = [later - earlier for earlier, later in zip(chain.refreshes, chain.refreshes[1:], strict=False)]
    return Hours(
        hours=(lasted + 1.0) / HOUR,
        refreshes=len(chain.refreshes),
        shortest=min(apart, default=HOUR) / HOUR,
        worked=sum(each["worked"] for each in told),
        refused=sum(each["refused"] for each in told),
        without=sum(each["without"] for each in told),
        revoked=chain.revoked,
        signed_out=sum(each["sign_in"] is not None for each in told),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if the promise was kept everywhere."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.sign_ins", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="on each ledger (default: %(default)g)")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    broken = []
    ledgers = [ledger for ledger in LEDGERS if reachable(ledger)]
    print("| Ledger | Processes | Hours | Refreshes | Uses | Refused | Chains revoked |\n|---|--:|--:|--:|--:|--:|--:|")
    with ThreadPoolExecutor(len(ledgers)) as threads:
        played = threads.map(partial(play, seconds=options.seconds, processes=options.processes), ledgers)
    for ledger, hours in zip(ledgers, played, strict=True):
        uses = hours.worked + hours.refused
        print(
            f"| {ledger} | {options.processes} | {hours.hours:.0f} | {hours.refreshes} | {uses:,} | {hours.refused} | "
            f"{int(hours.revoked)} |",
            flush=True,
        )
        broken += [f"{ledger}: {fault}" for fault in hours.faults()]
    for fault in broken:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
