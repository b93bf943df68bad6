"""Deliveries to a simulated Halo that limits its clients, in real time: how much of the possible they reach."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from halo_provider.client.client import HaloClient
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import HaloCallError, HaloRateLimitError
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import TaskInstanceRef
from halo_provider.simulator import (
    EXAMPLE_WIDGET_KEY,
    ChangingLimit,
    ConcurrencyLimit,
    FixedWindow,
    Limit,
    RefusedUsers,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
)
from tests.benchmarks.contenders import APPLICATION, Applications

IN_FLIGHT = 64  # the operator's default
LATENCIES = (0.1, 0.5)  # seconds
SECONDS = 30.0  # of a run
LIFTED_AT = 20.0  # seconds after which a limit is lifted
LIFTED_SECONDS = 50.0  # of a run in which it is
ENOUGH = 0.9  # of the possible


@dataclass(frozen=True)
class Regime:
    """A limit, how many rows a second are possible under it at a latency in seconds, and when it is lifted."""

    name: str
    limit: Limit | None
    possible: Callable[[float], float]
    lifted: bool = False

    @property
    def seconds(self) -> float:
        """How long it is measured."""
        return LIFTED_SECONDS if self.lifted else SECONDS


def _full(latency: float) -> float:
    return IN_FLIGHT / latency


def _lifted(limit: Limit) -> Limit:
    return ChangingLimit(steps=(Step(after=0, limit=limit), Step(after=LIFTED_AT, limit=None)))


REGIMES = (
    Regime("no limit", None, _full),
    Regime("20 a second, Retry-After", TokenBucket(rate=20), lambda _: 20.0),
    Regime("20 a second", TokenBucket(rate=20, retry_after=None), lambda _: 20.0),
    Regime(
        "100 in every 10 s, Retry-After", FixedWindow(requests=100, seconds=10, retry_after="exact"), lambda _: 10.0
    ),
    Regime("8 at a time, Retry-After 1", ConcurrencyLimit(requests=8, retry_after=1), lambda latency: 8 / latency),
    Regime("8 at a time", ConcurrencyLimit(requests=8), lambda latency: 8 / latency),
    Regime("1 % refused, Retry-After 1", SporadicRefusals(share=0.01, retry_after=1), _full),
    Regime("20 % refused, 60 times", SporadicRefusals(share=0.2, at_most=60), _full),
    Regime("one row in ten always refused", RefusedUsers(share=0.1), _full),
    Regime("slower beyond 10 at a time", Slowdown(capacity=10), lambda latency: 10 / latency),
    Regime("20 a second, then no limit", _lifted(TokenBucket(rate=20)), _full, lifted=True),
    Regime("8 at a time, then no limit", _lifted(ConcurrencyLimit(requests=8)), _full, lifted=True),
)


@dataclass
class Course(DeliveryObserver):
    """When rows were delivered, and requests refused, in seconds since the first request."""

    delivered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def request_ended(self, seconds: float, error: HaloCallError | None) -> None:
        """Count a refusal, and a success: the ledger's commit comes a little later."""
        now = time.monotonic() - self.began
        if isinstance(error, HaloRateLimitError):
            self.refused.append(now)
        elif error is None:
            self.delivered.append(now)

    def rate(self, begin: float, end: float) -> float:
        """Rows a second between two moments."""
        return sum(begin <= moment < end for moment in self.delivered) / (end - begin)

    def refused_per_row(self, begin: float) -> float:
        """Refusals for every delivered row from then on."""
        return sum(moment >= begin for moment in self.refused) / max(
            1, sum(moment >= begin for moment in self.delivered)
        )

    def recovery(self, rate: float, *, since: float, until: float) -> float | None:
        """Seconds from then on until so many rows a second are delivered for two seconds."""
        moments = (since + step / 2 for step in range(int(2 * (until - 2.0 - since))))
        return next((moment - since for moment in moments if self.rate(moment, moment + 2.0) >= rate), None)


@contextmanager
def limited(limit: Limit | None, *, latency: float) -> Iterator[str]:
    """The address of a simulated Halo in a process of its own."""
    command = [sys.executable, "-m", "halo_provider.simulator", "--port", "0", "--discard-bodies"]
    command += ["--latency", f"{latency:g}"]
    if limit is not None:
        command += ["--limit", json.dumps(limit.model_dump(mode="json"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        try:
            yield address.rstrip("/")
        finally:
            process.terminate()


def observed(limit: Limit | None, *, latency: float, rows: int, seconds: float, folder: Path, name: str) -> Course:
    """Deliver for so long, from more rows than can be delivered in it."""
    applications = Applications(folder, rows)
    path = applications.path

    async def run(url: str) -> Course:
        stop = Stop()
        course = Course()
        with closing(Ledger.at_path(folder / f"{name}.db")) as ledger:
            async with HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=url) as client:
                asyncio.get_running_loop().call_later(seconds, lambda: stop.request("measured", grace=0.0))
                report = await deliver(
                    applications.source(),
                    submission=APPLICATION,
                    client=client,
                    lease_holder=ledger.lease_holder("halo_default/application", task_instance=TaskInstanceRef()),
                    options=DeliveryOptions(concurrency=IN_FLIGHT),
                    observer=course,
                    stop=stop,
                )
        assert report.stopped == "measured", report
        return course

    assert path.exists()
    with limited(limit, latency=latency) as url:
        return asyncio.run(run(url))


def table(folder: Path, *, say: Callable[[str], None]) -> Iterator[str]:
    """Every regime at every latency, as Markdown."""
    yield (
        "| Halo's regime | Answer after | Possible | **Reached** | of it | Settled | Refused per row, settled "
        "| 90 % after the lift |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for number, regime in enumerate(REGIMES):
        for latency in LATENCIES:
            say(f"{regime.name}, answers after {latency:g} s")
            possible = regime.possible(latency)
            course = observed(
                regime.limit,
                latency=latency,
                rows=int(1.5 * possible * regime.seconds) + 1_000,
                seconds=regime.seconds,
                folder=folder,
                name=f"weather-{number}-{latency:g}",
            )
            since = LIFTED_AT if regime.lifted else 0.0
            settled = (since + regime.seconds) / 2
            reached = course.rate(since, regime.seconds)
            recovery = (
                course.recovery(ENOUGH * possible, since=LIFTED_AT, until=regime.seconds) if regime.lifted else None
            )
            after = "" if not regime.lifted else "never" if recovery is None else f"{recovery:.1f} s"
            yield (
                f"| {regime.name} | {latency:g} s | {possible:,.0f} | **{reached:,.1f}** | {reached / possible:.2f} "
                f"| {course.rate(settled, regime.seconds) / possible:.2f} | {course.refused_per_row(settled):.3f} "
                f"| {after} |"
            )


CHANGES = ((0.0, None, 128.0), (15.0, TokenBucket(rate=40), 40.0), (45.0, ConcurrencyLimit(requests=8), 16.0))
CHANGES_END = (80.0, 100.0)  # seconds: when there is no limit any more, and when the run ends


def changing(folder: Path) -> tuple[Course, list[tuple[float, float]]]:
    """One run through several regimes, answers after 0.5 s, and what was possible from when on."""
    end, seconds = CHANGES_END
    steps = [(after, limit, possible) for after, limit, possible in CHANGES] + [(end, None, 128.0)]
    limit = ChangingLimit(steps=tuple(Step(after=after, limit=limit) for after, limit, _ in steps))
    course = observed(limit, latency=0.5, rows=12_000, seconds=seconds, folder=folder, name="weather-changing")
    return course, [(after, possible) for after, _, possible in steps] + [(seconds, 128.0)]
