"""Several processes over one ledger at once: each row goes to Halo once, and a user's rows in their order."""

import time
from collections import Counter
from contextlib import closing

import pytest

from halo_provider.ledger import Ledger
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.simulator import Simulator, serving
from tests.acceptance.crash_worker import Task, Worker
from tests.acceptance.proof import ledger_place, two_workers
from tests.core.deliveries import rows_in

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(("ledger_name", "service"), [("PostgreSQL", "postgres_url"), ("MariaDB", "mariadb_url")])
def test_two_workers_make_one_ticket_of_each_row(
    ledger_name: str, service: str, request: pytest.FixtureRequest
) -> None:
    """The same 2,000 rows in two processes on one database ledger: 2,000 tickets, no double."""
    request.getfixturevalue(service)

    tickets, doubles, _ = two_workers(ledger_name, rows=2000)

    assert (tickets, doubles) == (2000, 0)


def test_two_workers_share_a_sqlite_ledger_on_one_host() -> None:
    """SQLite's one writer at a time is slower, and no less exact."""
    tickets, doubles, _ = two_workers("SQLite", rows=500)

    assert (tickets, doubles) == (500, 0)


def test_each_of_two_workers_accounts_for_every_row() -> None:
    """What the other one delivered is already delivered here: both are green, and together sent each row once."""
    halo = Simulator(chat_latency=(0.01, 0.03))
    with serving(halo) as url, ledger_place("SQLite") as (ledger_url, _):
        task = Task(halo_url=url, ledger_url=ledger_url, rows=100)
        reports = [worker.finish() for worker in [Worker(task), Worker(task)]]

    assert [report["read"] for report in reports] == [100, 100]
    assert [report["delivered"] + report["already_delivered"] for report in reports] == [100, 100]
    assert sum(report["delivered"] for report in reports) == 100


def test_successor_waits_for_the_lease_of_a_worker_that_still_sends() -> None:
    """A slow worker is not a dead one: while it renews its lease, its rows are left to it."""
    halo = Simulator(chat_latency=(1.5, 1.5))
    with serving(halo) as url, ledger_place("SQLite") as (ledger_url, _):
        task = Task(halo_url=url, ledger_url=ledger_url, rows=16, lease=1.2)
        slow = Worker(task)
        while not halo.chats:
            time.sleep(0.01)
        successor = Worker(task)
        slow_report, report = slow.finish(), successor.finish()
        with closing(Ledger.at(ledger_url)) as ledger:
            statuses = Counter(row["status"] for row in rows_in(ledger).values())

    assert (slow_report["delivered"], report["already_delivered"], report["requests"]) == (16, 16, 0)
    assert statuses == {LedgerStatus.DELIVERED: 16}
