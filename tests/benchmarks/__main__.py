"""How fast, and how flat: ``make bench``, or ``python -m tests.benchmarks``.

Compares the provider with other ways to send the same rows to the same local server, in one run: a bare aiohttp loop,
httpx's own pool, dlt's custom destination and one mapped HttpOperator task a row (where dlt and Airflow's HTTP provider
are installed). Prints a table as Markdown, and writes docs/benchmarks.md and, with matplotlib, its chart.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.sql import SqlSource
from tests.benchmarks import chart, mapped_tasks, profile, weather
from tests.benchmarks.contenders import (
    APPLICATION,
    Applications,
    Measured,
    bare_loop,
    dlt_destination,
    dlt_is_installed,
    halo,
    halo_update,
    httpx_pool,
)
from tests.benchmarks.server import Server, serving
from tests.core.databases import emptied, mariadb_place, postgres_place
from tests.figures import machine, renew, say, today, wrapped

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "benchmarks.md"
CHART = CHECKOUT / "docs" / "images" / "benchmark.png"
WEATHER_CHART = CHECKOUT / "docs" / "images" / "weather.png"
IN_FLIGHT = (16, 64, 200, 400)
DEFAULT_IN_FLIGHT = 64  # the operator's
ROWS_AT_ONCE = 12_000  # rows of a round, where answers come at once
WAVES = {0.1: 30, 0.5: 16, 2.0: 4}  # answers in a row that a round waits for, by answer time in seconds
ROUNDS = {0.0: 5, 0.1: 3, 0.5: 3, 2.0: 2}  # by answer time
HTTPX_SECONDS = 2.0  # a round of httpx's pool, which is slow, ends after them
HTTPX_KEPT_ALIVE = 20  # idle connections that httpx's pool keeps by default
DLT_ROWS = 5_000
RESUMED_ROWS = 20_000
UPDATED_ROWS = 50_000
MAPPED_ROWS = 60
WIDE = (1_000, 2_000)  # requests in flight
WIDE_LATENCY = 2.0  # seconds
WIDE_WAVES = 10
LEDGER_ROWS = 6_000
LEDGER_ROUNDS = 3
PROFILE_ROUNDS = 3
PROFILE_SHOWN = 0.02  # share of the loop's time from which code has a line of its own
MEMORY_ROWS = (10_000, 100_000)
FULL_MEMORY_ROWS = 1_000_000  # takes minutes

HALO, BARE, HTTPX, HTTPX_20, DLT = chart.COLOURS


@dataclass
class Cell:
    """Every round of every contender at one answer time with so many requests in flight."""

    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    server_share: float = 0.0  # of a processor, while the bare loop ran

    def pace(self, name: str) -> float | None:
        """The median of the contender's rounds, in rows a second."""
        return median(one.rows_per_second for one in self.rounds[name]) if name in self.rounds else None

    def cpu(self, name: str) -> float:
        """The median processor time, in microseconds a row."""
        return median(one.cpu_per_row for one in self.rounds[name])

    def loop_cpu(self, name: str) -> float:
        """The median of it on the loop's thread."""
        return median(one.loop_cpu_per_row for one in self.rounds[name])

    def ratio(self, name: str) -> float | None:
        """The provider's pace by the contender's."""
        ours, theirs = self.pace(HALO), self.pace(name)
        return ours / theirs if ours and theirs else None


Grid = dict[float, dict[int, Cell]]
DATABASES = (
    ("PostgreSQL", postgres_place, ("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test")),
    (
        "MariaDB",
        mariadb_place,
        ("HALO_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4"),
    ),
)


class Bench:
    """One run of everything, in one temporary folder."""

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        self._folder = folder
        self._numbers = count()
        self.memory_rows = (*MEMORY_ROWS, FULL_MEMORY_ROWS) if full else MEMORY_ROWS

    def fresh(self, name: str) -> Path:
        """A path nobody has used."""
        return self._folder / f"{next(self._numbers)}-{name}"

    def applications(self, rows: int) -> Applications:
        """Rows, and the file that holds them."""
        return Applications(self._folder, rows)

    def grid(self) -> Grid:
        """Every contender at every answer time and concurrency."""
        grid: Grid = {}
        for seconds, rounds in ROUNDS.items():
            with serving(seconds=seconds) as server:
                grid[seconds] = {
                    in_flight: self._cell(server, seconds=seconds, in_flight=in_flight, rounds=rounds)
                    for in_flight in IN_FLIGHT
                }
        return grid

    def _cell(self, server: Server, *, seconds: float, in_flight: int, rounds: int) -> Cell:
        say(f"answers after {seconds:g} s, {in_flight} in flight")
        applications = self.applications(WAVES[seconds] * in_flight if seconds else ROWS_AT_ONCE)
        contenders: dict[str, Callable[[], Measured]] = {
            BARE: partial(bare_loop, applications, server.url, in_flight=in_flight),
            HALO: lambda: halo(applications, server.url, in_flight=in_flight, ledger_path=self.fresh("ledger.db")),
        }
        cell = Cell()
        for number in range(rounds):
            order = [*contenders] if number % 2 else [*reversed(contenders)]
            for name in order:
                cpu_before = server.cpu_seconds()
                measured = contenders[name]()
                cell.rounds.setdefault(name, []).append(measured)
                if name == BARE:
                    cell.server_share = (server.cpu_seconds() - cpu_before) / measured.seconds
        for name, kept_alive in ((HTTPX, in_flight), (HTTPX_20, HTTPX_KEPT_ALIVE)):
            cell.rounds[name] = [
                httpx_pool(applications, server.url, in_flight=in_flight, kept_alive=kept_alive, seconds=HTTPX_SECONDS)
            ]
        if in_flight == DEFAULT_IN_FLIGHT and dlt_is_installed():
            rows = self.applications(min(DLT_ROWS, applications.rows))
            cell.rounds[DLT] = [dlt_destination(rows, server.url, in_flight=in_flight, folder=self.fresh("dlt"))]
        return cell

    def resumed(self, url: str) -> float:
        """Rows a second over rows already delivered, the median of three runs."""
        say("rows already delivered")
        applications, ledger = self.applications(RESUMED_ROWS), self.fresh("ledger.db")
        halo(applications, url, in_flight=DEFAULT_IN_FLIGHT, ledger_path=ledger)
        again = partial(
            halo,
            applications,
            url,
            in_flight=DEFAULT_IN_FLIGHT,
            ledger_path=ledger,
            status=RowStatus.ALREADY_DELIVERED,
        )
        return median(again().rows_per_second for _ in range(3))

    def updated(self, url: str) -> float:
        """Users a second by users/update, the median of three runs."""
        say("users/update")
        applications = self.applications(UPDATED_ROWS)
        return median(halo_update(applications, url, in_flight=DEFAULT_IN_FLIGHT).rows_per_second for _ in range(3))

    def from_database(self, url: str) -> float:
        """Rows a second where a query yields them, the median of three runs."""
        say("rows of a query")
        applications = self.applications(ROWS_AT_ONCE)
        engine = create_engine(f"sqlite:///{self.fresh('source.db')}")
        rows = [dict(row.values) for row in applications.source().rows(required=APPLICATION.columns)]
        with engine.begin() as db:
            db.exec_driver_sql(f"CREATE TABLE applications ({', '.join(rows[0])})")
            values = ", ".join(f":{name}" for name in rows[0])
            db.exec_driver_sql(f"INSERT INTO applications VALUES ({values})", rows)  # noqa: S608 -- our own names
        paces = []
        for _ in range(3):
            source = SqlSource(
                engine=engine, statement="SELECT * FROM applications", parameters=None, description="the query"
            )
            ledger = self.fresh("ledger.db")
            measured = halo(applications, url, in_flight=DEFAULT_IN_FLIGHT, ledger_path=ledger, source=source)
            paces.append(measured.rows_per_second)
            source.close()
        return median(paces)

    def wide(self) -> Iterator[tuple[int, Measured, Measured]]:
        """Many requests in flight on one worker: how many, the provider, and the bare loop."""
        with serving(seconds=WIDE_LATENCY) as server:
            for in_flight in WIDE:
                say(f"{in_flight:,} in flight")
                applications = self.applications(WIDE_WAVES * in_flight)
                ledger = self.fresh("ledger.db")
                bare = bare_loop(applications, server.url, in_flight=in_flight)
                yield in_flight, halo(applications, server.url, in_flight=in_flight, ledger_path=ledger), bare

    def ledgers(self, url: str) -> Iterator[tuple[str, Measured]]:
        """The same rows with the ledger on each database, the median of some rounds."""
        applications = self.applications(LEDGER_ROWS)
        with ExitStack() as places:
            places_by_name: dict[str, str | None] = {"SQLite": None}
            for name, place, service in DATABASES:
                with suppress(SQLAlchemyError):
                    url_of_place = places.enter_context(place(os.environ.get(*service)))
                    Ledger.at(url_of_place).close()
                    places_by_name[name] = url_of_place
            for name, ledger_url in places_by_name.items():
                say(f"ledger on {name}")
                rounds = []
                for _ in range(LEDGER_ROUNDS):
                    with emptied(ledger_url) if ledger_url else nullcontext():
                        rounds.append(
                            halo(
                                applications,
                                url,
                                in_flight=DEFAULT_IN_FLIGHT,
                                ledger_path=self.fresh("ledger.db"),
                                ledger_url=ledger_url,
                            )
                        )
                yield name, sorted(rounds, key=lambda measured: measured.rows_per_second)[LEDGER_ROUNDS // 2]

    def weather(self) -> Iterator[str]:
        """Rows a second under every limit, as a Markdown table; and the chart of a run through several."""
        yield from weather.table(self._folder, say=say)
        if chart.can_draw():
            say("a run through several limits")
            course, possible = weather.changing(self._folder)
            caption = f"Rows a second, answers after 0.5 s, {today()}, {machine()}"
            chart.draw_course(WEATHER_CHART, course.delivered, possible, refused=course.refused, caption=caption)

    def profile(self, url: str) -> tuple[Measured, Measured, list[tuple[str, float]]]:
        """The provider and the bare loop where answers come at once, and what the provider's loop does meanwhile."""
        say("profile")
        applications = self.applications(ROWS_AT_ONCE)

        def run() -> Measured:
            return halo(applications, url, in_flight=DEFAULT_IN_FLIGHT, ledger_path=self.fresh("ledger.db"))

        ours = sorted((run() for _ in range(PROFILE_ROUNDS)), key=lambda one: one.loop_cpu_per_row)[PROFILE_ROUNDS // 2]
        bare = bare_loop(applications, url, in_flight=DEFAULT_IN_FLIGHT)
        return ours, bare, profile.shares(run)

    def memory(self, url: str, rows: int) -> float:
        """The peak of a process of its own, in MB."""
        say(f"memory at {rows:,} rows")
        command = [sys.executable, "-m", "tests.benchmarks.memory", str(rows), url, str(self._folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
        return int(done.stdout) / 1024


def contender_lines(bench: Bench) -> Iterator[str]:
    """The section about other ways to send the same rows, and its chart."""
    grid = bench.grid()
    at_once = grid[0.0][DEFAULT_IN_FLIGHT]
    share = max(cell.server_share for cell in grid[0.0].values())
    rounds = f"medians of {min(ROUNDS.values())} to {max(ROUNDS.values())} rounds (httpx and dlt: one)"
    yield from wrapped(
        f"Contenders and server share the machine; rows a second, {rounds}, start and end of a run included."
    )
    yield ""
    yield (
        "| Answer after | In flight | Bare loop | **Provider** | of bare | httpx, all kept | times "
        "| httpx, 20 kept | times | dlt | times |"
    )
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for seconds, cells in grid.items():
        for in_flight, cell in cells.items():
            others = " | ".join(
                f"{pace:,.0f} | {cell.ratio(name):,.1f}" if (pace := cell.pace(name)) else "- | -"
                for name in (HTTPX, HTTPX_20, DLT)
            )
            yield (
                f"| {seconds:g} s | {in_flight} | {cell.pace(BARE):,.0f} | **{cell.pace(HALO):,.0f}** "
                f"| {cell.ratio(BARE):.2f} | {others} |"
            )
    yield ""
    yield f"The server was busy {share:.0%} of a core at most: it is not the limit."
    yield ""
    yield from wrapped(
        f"Where Halo answers at once, the ledger and the interpreter are the limit. At {DEFAULT_IN_FLIGHT} in flight",
        f"a row costs the provider {at_once.cpu(HALO):.0f} µs of processor time: {at_once.loop_cpu(HALO):.0f} on the",
        f"loop's thread, where the bare loop needs {at_once.cpu(BARE):.0f}, and the rest on the threads that read and",
        "that keep the ledger, which share one interpreter lock with it. Before a row is sent, its intent is on the",
        "disk: one fsync for all rows at hand, so that more in flight means fewer of them.",
    )
    if chart.can_draw():
        panels = {
            seconds: {
                name: {number: pace for number, cell in cells.items() if (pace := cell.pace(name))}
                for name in (HALO, BARE, HTTPX, HTTPX_20, DLT)
            }
            for seconds, cells in grid.items()
        }
        chart.draw(CHART, panels, in_flight=IN_FLIGHT, caption=f"Rows a second, {today()}, {machine()}")


def other_lines(bench: Bench) -> Iterator[str]:
    """The section about other work than sending."""
    with serving(seconds=0.0) as server:
        yield "| What | Measured |"
        yield "|---|--:|"
        yield f"| Rows already delivered | {bench.resumed(server.url):,.0f} rows/s |"
        yield f"| users/update | {bench.updated(server.url):,.0f} users/s |"
        yield f"| Rows of a query (SQLite) | {bench.from_database(server.url):,.0f} rows/s |"
        memory = {rows: bench.memory(server.url, rows) for rows in bench.memory_rows}
        smallest_peak = memory[bench.memory_rows[0]]
        for rows, peak in memory.items():
            yield f"| Peak memory at {rows:,} rows | {peak:.1f} MB ({peak / smallest_peak - 1:+.1%}) |"
        if mapped_tasks.can_run():
            mapped = mapped_tasks.rows_per_second(server.url, rows=MAPPED_ROWS)
            yield f"| One mapped HttpOperator task a row, 0 s | {mapped:.1f} rows/s |"


def weather_lines(bench: Bench) -> Iterator[str]:
    """The section about limits."""
    yield from wrapped(
        f"A run of {weather.SECONDS:g} s through `deliver()` for each limit that the simulator knows, with",
        f"{weather.IN_FLIGHT} in flight allowed; where the limit is lifted, after {weather.LIFTED_AT:g} s, what comes",
        f"then counts, until {weather.LIFTED_SECONDS:g} s. Reached is what was delivered from the beginning, by what",
        "the limit, or the latency, allows at most; settled is the second half of it. The time between Halo's answer",
        "and the next request, above all for the commit of its intent, is in it.",
    )
    yield ""
    yield from bench.weather()


def wide_lines(bench: Bench) -> Iterator[str]:
    """The section about many requests in flight."""
    yield from wrapped(
        f"Answers after {WIDE_LATENCY:g} s, on one worker, {WIDE_WAVES} of them one after the other; the start of the",
        "run is in it. The bound is what so many requests in flight can have answered at most.",
    )
    yield ""
    yield "| In flight | Rows/s | of the bound | Bare loop, of the bound | of the bare loop |"
    yield "|--:|--:|--:|--:|--:|"
    for in_flight, ours, bare in bench.wide():
        bound = in_flight / WIDE_LATENCY
        pace, bare_pace = ours.rows_per_second, bare.rows_per_second
        yield (
            f"| {in_flight:,} | {pace:,.0f} | {pace / bound:.2f} | {bare_pace / bound:.2f} | {pace / bare_pace:.2f} |"
        )


def ledger_lines(bench: Bench) -> Iterator[str]:
    """The section about the ledger's databases."""
    yield f"Answers at once, {DEFAULT_IN_FLIGHT} in flight, the database on the same machine."
    yield ""
    yield "| Ledger | Rows/s | µs of processor time a row | on the loop's thread |"
    yield "|---|--:|--:|--:|"
    with serving(seconds=0.0) as server:
        for name, measured in bench.ledgers(server.url):
            yield (
                f"| {name} | {measured.rows_per_second:,.0f} | {measured.cpu_per_row:.0f} "
                f"| {measured.loop_cpu_per_row:.0f} |"
            )


def profile_lines(bench: Bench) -> Iterator[str]:
    """The section about what a row costs the loop."""
    with serving(seconds=0.0) as server:
        ours, bare, shares = bench.profile(server.url)
    others = ours.cpu_per_row - ours.loop_cpu_per_row
    yield from wrapped(
        f"Answers at once, {DEFAULT_IN_FLIGHT} in flight. A row costs {ours.loop_cpu_per_row:.0f} µs of processor",
        f"time on the loop's thread, and {others:.0f} on those that read and that keep the ledger, which share one",
        f"interpreter lock with it; the bare loop {bare.cpu_per_row:.0f}. Of the loop's time, by a profile (C code",
        "counts for the Python code that calls it):",
    )
    yield ""
    yield "| Code | Share | µs a row |"
    yield "|---|--:|--:|"
    shown = [(room, share) for room, share in shares if share >= PROFILE_SHOWN]
    for room, share in [*shown, ("all others", 1.0 - sum(share for _, share in shown))]:
        yield f"| {room} | {share:.0%} | {share * ours.loop_cpu_per_row:.0f} |"


SECTIONS: dict[str, Callable[[Bench], Iterator[str]]] = {
    "contenders": contender_lines,
    "others": other_lines,
    "weather": weather_lines,
    "wide": wide_lines,
    "ledger": ledger_lines,
    "profile": profile_lines,
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="memory at 1,000,000 rows, too, which takes minutes")
    parser.add_argument("--only", choices=SECTIONS, help="renew one section of the page, and leave the others")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()  # what was imported is none of the contenders' business
    with tempfile.TemporaryDirectory(prefix="halo-benchmark-") as folder:
        bench = Bench(Path(folder), full=options.full)
        for name in [options.only] if options.only else SECTIONS:
            section = [f"{today()}: {machine()}.", "", *SECTIONS[name](bench)]
            sys.stdout.write("\n".join([*section, "", ""]))
            renew(PAGE, name, section)


if __name__ == "__main__":
    main()
