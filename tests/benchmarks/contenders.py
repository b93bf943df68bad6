"""The ways to send rows that are compared: each is given the same rows, and returns what it took.

The bare loop and httpx only post bodies that were rendered beforehand. The provider and dlt do the whole job: they read
the CSV file, make requests of it, send them, and keep what became of them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from halo_provider.client.client import HaloClient
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.identify import identify
from halo_provider.delivery.observer import DeliveryObserver
from halo_provider.delivery.options import DeliveryOptions, SendOptions
from halo_provider.delivery.report import Outcome, SessionIds
from halo_provider.delivery.results import ResultsFile, results_writer
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import TaskInstanceRef
from halo_provider.ledger.statuses import RowStatus
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.rows import Source
from halo_provider.submission import Company, Entry, Submission, User

WIDGET_KEY = "ab_live_example_benchmark"
IDENTITY_SECRET = "ha_secret_example_benchmark_secret_of_32_bytes"
CHAT = "/api/sdk/chat"
HEADERS = {"authorization": f"Bearer {WIDGET_KEY}", "content-type": "application/json", "accept": "application/json"}
TIMEOUT = 120.0  # seconds for one attempt
XCOM_LIMIT = 1_000  # session ids the operator keeps
COLUMNS = "submission_id,applicant_id,contact_name,contact_email,company_id,company_name,application_type,use_case"
APPLICATION = Submission(
    name="application",
    key="submission_id",
    user=User(id="applicant_id", traits={"name": "contact_name", "email": "contact_email"}),
    company=Company(id="company_id", traits={"name": "company_name"}),
    message="New {application_type} application from {contact_name} at {company_name}. Please review and follow up.",
    context={
        "application": Entry(
            label="Partnership Application",
            type="custom",
            fields=["company_name", "application_type", "contact_email", "use_case"],
        )
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What it took to send so many rows; processor time is that of this process alone, and of its loop's thread."""

    rows: int
    seconds: float
    cpu_seconds: float
    loop_cpu_seconds: float

    @property
    def rows_per_second(self) -> float:
        """The pace."""
        return self.rows / self.seconds

    @property
    def cpu_per_row(self) -> float:
        """Microseconds of processor time."""
        return self.cpu_seconds / self.rows * 1e6

    @property
    def loop_cpu_per_row(self) -> float:
        """Microseconds of them on the loop's thread."""
        return self.loop_cpu_seconds / self.rows * 1e6


class Stopwatch:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_before = time.process_time()
        self._loop_cpu_before = time.thread_time()

    @property
    def seconds(self) -> float:
        """Wall time."""
        return time.perf_counter() - self._began

    def measured(self, rows: int) -> Measured:
        """What so many rows have taken."""
        return Measured(
            rows=rows,
            seconds=self.seconds,
            cpu_seconds=time.process_time() - self._cpu_before,
            loop_cpu_seconds=time.thread_time() - self._loop_cpu_before,
        )


@dataclass(frozen=True)
class Applications:
    """So many applications in a CSV file, each of a user of its own."""

    folder: Path
    rows: int

    @cached_property
    def path(self) -> Path:
        """The file."""
        path = self.folder / f"applications-{self.rows}.csv"
        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                file.write(f"{COLUMNS}\n")
                file.writelines(f"{','.join(row)}\n" for row in self._lines())
        return path

    def _lines(self) -> Iterator[tuple[str, ...]]:
        for number in range(self.rows):
            yield (
                f"APP-2026-{number:07}",
                f"usr_{number:07}",
                f"Contact Person {number}",
                f"contact-{number}@example.com",
                f"com_{number % 500:04}",
                f"Example Company {number % 500}",
                "reseller",
                "We would like to resell the product to our customers in the north from the next quarter on",
            )

    def source(self) -> CsvSource:
        """The file as the operators read it."""
        return CsvSource(path=str(self.path), open_binary=partial(self.path.open, "rb"), options=CsvOptions())

    @cached_property
    def bodies(self) -> list[bytes]:
        """What is posted for the rows, rendered beforehand."""
        return [
            APPLICATION.render(row.values, row_key=APPLICATION.row_key(row.values))
            .request.model_dump_json(exclude_none=True)
            .encode()
            for row in self.source().rows(required=APPLICATION.columns)
        ]


class Kept(DeliveryObserver):
    """What the operator keeps of every row."""

    def __init__(self, session_ids: SessionIds, results: ResultsFile) -> None:
        self._session_ids = session_ids
        self._results = results

    def row_ended(self, outcome: Outcome) -> None:
        """Keep its session id and its line."""
        self._session_ids.add(outcome)
        self._results.write(outcome)


def halo(
    applications: Applications,
    url: str,
    *,
    in_flight: int,
    ledger_path: Path,
    ledger_url: str | None = None,
    source: Source | None = None,
    status: RowStatus = RowStatus.DELIVERED,
) -> Measured:
    """The provider: everything that HaloTicketOperator does about rows, at the end of which all have this status.

    The ledger is a SQLite file, or at the URL; the results file lies beside `ledger_path`.
    """
    results_path = ledger_path.with_suffix(".csv")
    session_ids = SessionIds(XCOM_LIMIT)

    async def run() -> Measured:
        opened = Ledger.at(ledger_url) if ledger_url else Ledger.at_path(ledger_path)
        with closing(opened) as ledger, results_path.open("wb") as stream:
            results = results_writer(results_path.name)(stream)

            stopwatch = Stopwatch()
            async with HaloClient(widget_key=WIDGET_KEY, base_url=url, timeout=TIMEOUT) as client:
                report = await deliver(
                    source or applications.source(),
                    submission=APPLICATION,
                    client=client,
                    lease_holder=ledger.lease_holder(
                        "halo_default/application",
                        task_instance=TaskInstanceRef(dag_id="benchmark", run_id="run", task_id="tickets"),
                    ),
                    options=DeliveryOptions(concurrency=in_flight),
                    observer=Kept(session_ids, results),
                )
            results.close()
            measured = stopwatch.measured(applications.rows)
        assert report.counts[status] == applications.rows, report
        return measured

    return asyncio.run(run())


def halo_update(applications: Applications, url: str, *, in_flight: int) -> Measured:
    """The provider's bulk identification: what HaloIdentifyOperator does about users in mode update."""
    submission = APPLICATION.model_copy(update={"company": None})

    async def run() -> Measured:
        stopwatch = Stopwatch()
        async with HaloClient(
            widget_key=WIDGET_KEY, identity_secret=IDENTITY_SECRET, base_url=url, timeout=TIMEOUT
        ) as client:
            report = await identify(
                applications.source(),
                submission=submission,
                client=client,
                mode="update",
                options=SendOptions(concurrency=in_flight),
            )
        assert (report.users, report.error) == (applications.rows, None), report
        return stopwatch.measured(applications.rows)

    return asyncio.run(run())


def bare_loop(applications: Applications, url: str, *, in_flight: int) -> Measured:
    """Nothing but aiohttp: workers that post the bodies and read the answers."""
    bodies = applications.bodies

    async def run() -> Measured:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=HEADERS) as session:

            async def post(body: bytes) -> None:
                async with session.post(url + CHAT, data=body) as response:
                    assert "session_id" in await response.json()

            return await _post_all(bodies, post, in_flight=in_flight, seconds=None)

    return asyncio.run(run())


def httpx_pool(applications: Applications, url: str, *, in_flight: int, kept_alive: int, seconds: float) -> Measured:
    """httpx.AsyncClient with its own pool, which keeps so many idle connections, for so many seconds at most."""
    bodies = applications.bodies

    async def run() -> Measured:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=kept_alive)
        async with httpx.AsyncClient(headers=HEADERS, limits=limits, timeout=TIMEOUT) as client:

            async def post(body: bytes) -> None:
                response = await client.post(url + CHAT, content=body)
                assert "session_id" in response.json()

            return await _post_all(bodies, post, in_flight=in_flight, seconds=seconds)

    return asyncio.run(run())


async def _post_all(
    bodies: list[bytes], post: Callable[[bytes], Awaitable[None]], *, in_flight: int, seconds: float | None
) -> Measured:
    """Post body after body, so many at a time, beginning none after so many seconds."""
    waiting = iter(bodies)
    posted = 0
    stopwatch = Stopwatch()

    async def work() -> None:
        nonlocal posted
        for body in waiting:
            await post(body)
            posted += 1
            if seconds is not None and stopwatch.seconds > seconds:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, len(bodies))):
            group.create_task(work())
    return stopwatch.measured(posted)


def dlt_is_installed() -> bool:
    """Whether dlt can be compared."""
    return find_spec("dlt") is not None


def dlt_destination(applications: Applications, url: str, *, in_flight: int, folder: Path) -> Measured:
    """A custom destination of dlt: a pipeline from the CSV file to a function that posts each row.

    dlt calls the function in one thread for every file of its package: there are as many of both as rows in flight.
    """
    import csv  # noqa: PLC0415 -- as dlt: only where it is installed

    import dlt  # noqa: PLC0415
    import requests  # noqa: PLC0415
    from requests.adapters import HTTPAdapter  # noqa: PLC0415

    dlt.config["data_writer.file_max_items"] = max(1, applications.rows // in_flight)
    dlt.config["data_writer.buffer_max_items"] = max(1, applications.rows // in_flight)
    dlt.config["load.workers"] = in_flight
    dlt.config["runtime.log_level"] = "CRITICAL"
    dlt.config["runtime.dlthub_telemetry"] = False
    session = requests.Session()
    session.headers.update(HEADERS)
    session.mount("http://", HTTPAdapter(pool_maxsize=in_flight))

    @dlt.resource(name="applications")
    def read() -> Iterator[dict[str, str]]:
        with applications.path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)

    @dlt.destination(batch_size=1, loader_file_format="typed-jsonl", name="halo")
    def post(items: Any, table: Any) -> None:
        for row in items:
            chat = APPLICATION.render(row, row_key=APPLICATION.row_key(row)).request
            response = session.post(url + CHAT, data=chat.model_dump_json(exclude_none=True), timeout=TIMEOUT)
            assert "session_id" in response.json()

    stopwatch = Stopwatch()
    pipeline = dlt.pipeline("halo_benchmark", destination=post, pipelines_dir=str(folder))
    pipeline.run(read()).raise_on_failed_jobs()
    return stopwatch.measured(applications.rows)
