"""How long the ledger takes with many rows in it: ``python -m tests.benchmarks.bench_ledger --url URL --rows 1000000``.

The URL's tables are filled and left: give a database of its own.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import closing

from sqlalchemy import text

from halo_provider.ledger import Candidate, LeaseHolder, Ledger, Settlement, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import submissions

NAMESPACE = "halo_default/application"
RUN_ROWS = 10_000  # of each earlier run
CHUNK = 10_000  # rows filled in together
BATCH = 500  # rows of a claim, as the operator's default
COMMIT = 64  # outcomes and intents of a commit, as the operator's default concurrency
ROUNDS = 20


def fill(ledger: Ledger, rows: int) -> None:
    """Rows of earlier runs: delivered, but for one in a thousand, which is in doubt."""
    now = ledger.now()
    for first in range(0, rows, CHUNK):
        some = [
            {
                "namespace": NAMESPACE,
                "row_key": key_of(number),
                "status": LedgerStatus.IN_DOUBT if number % 1000 == 0 else LedgerStatus.DELIVERED,
                "user_id": f"user-{number}",
                "session_id": f"sess_{number:012}",
                "payload_hash": "a" * 64,
                "attempts": 1,
                "reply": "Thank you, somebody will look after it. " * 3,
                "owner": "host:1:aaaaaaaaaaaa",
                "dag_id": f"applications_{number // RUN_ROWS % 5}",
                "run_id": f"scheduled__{number // RUN_ROWS}",
                "task_id": "tickets",
                "created_at": now,
                "updated_at": now,
            }
            for number in range(first, min(first + CHUNK, rows))
        ]
        ledger.transaction(lambda db, some=some: db.execute(submissions.insert(), some))
    ledger.transaction(lambda db: db.execute(text("ANALYZE")))


def key_of(number: int) -> str:
    """Spread over the whole index, as business keys are."""
    return f"{number * 2654435761 % 2**32:010}"


def timed(name: str, work: Callable[[], object], *, per: int = 1, rounds: int = ROUNDS) -> None:
    """Print the median and the worst of some rounds."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    rate = f", {per / statistics.median(seconds):,.0f} rows/s" if per > 1 else ""
    print(
        f"{name:44} {statistics.median(seconds) * 1000:9.1f} ms  worst {max(seconds) * 1000:9.1f} ms{rate}", flush=True
    )


def measure(ledger: Ledger, rows: int) -> None:
    """Measure what a delivery and the pages ask of the ledger."""
    chance = random.Random(1)
    admin = LedgerAdmin(ledger, actor="bench")
    lease_holder = ledger.lease_holder(
        NAMESPACE, task_instance=TaskInstanceRef(dag_id="applications_0", run_id="bench")
    )
    new = iter(range(10**9))

    def claim_delivered() -> None:
        claim(lease_holder, [key_of(number) for number in chance.sample(range(1, rows, 2), BATCH)])

    def deliver_new() -> None:
        keys = [f"new {next(new):010}" for _ in range(BATCH)]
        claim(lease_holder, keys)
        for first in range(0, BATCH, COMMIT):
            some = keys[first : first + COMMIT]
            lease_holder.commit(intents=some)
            lease_holder.commit(
                settlements=[
                    Settlement(row_key=key, status=LedgerStatus.DELIVERED, session_id="sess_1") for key in some
                ]
            )

    everything = RowFilter(namespace=NAMESPACE)
    run = RowFilter(dag_ids=("applications_1",), run_id="scheduled__1", statuses=(LedgerStatus.DELIVERED,))
    timed(f"claim {BATCH} rows that are delivered", claim_delivered, per=BATCH)
    timed(f"claim, intend and settle {BATCH} new rows", deliver_new, per=BATCH)
    timed("page of rows in doubt", lambda: admin.page(RowFilter(statuses=(LedgerStatus.IN_DOUBT,))))
    timed("page of a run's rows", lambda: admin.page(run))
    timed("first page of all rows", lambda: admin.page(everything))
    timed("page in the middle", lambda: admin.page(everything, after=RowCursor(NAMESPACE, f"{2**31:010}")))
    timed("counts of everything", lambda: admin.counts(everything), rounds=3)
    timed("requeue one row", lambda: admin.requeue(RowFilter(namespace=NAMESPACE, row_keys=(key_of(0),))))


def claim(lease_holder: LeaseHolder, keys: list[str]) -> None:
    """Claim a batch."""
    lease_holder.claim([Candidate(row_key=key, payload_hash="a" * 64) for key in keys], on_in_doubt="resend")


def main() -> None:
    """Fill and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="SQLAlchemy URL of an empty database")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with closing(Ledger.at(options.url)) as ledger:
        began = time.perf_counter()
        fill(ledger, options.rows)
        print(f"{ledger.engine.dialect.name}, {options.rows:,} rows, filled in {time.perf_counter() - began:.0f} s")
        measure(ledger, options.rows)


if __name__ == "__main__":
    main()
