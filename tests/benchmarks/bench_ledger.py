"""How long the ledger takes with many rows in it: ``python -m tests.benchmarks.bench_ledger --url URL --rows 1000000``.

The URL's tables are filled and left: give a database of its own. `make sizing` measures the same, at two sizes.
"""
# ruff: noqa: T201 -- prints for a person

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import Connection, literal, literal_column, select, text

from halo_provider.ledger import Candidate, LeaseHolder, Ledger, Settlement, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.overview import summary
from halo_provider.ledger.row_filter import RowCursor, RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import submissions
from halo_provider.ledger.tombstones import forget

NAMESPACE = "halo_default/application"
RUN_ROWS = 10_000  # of each earlier run, filled in together
BATCH = 500  # rows of a claim, as the operator's default
COMMIT = 64  # outcomes and intents of a commit, as the operator's default concurrency
ROUNDS = 20
TASKS = 4  # that deliver at once
TASK_BATCHES = 10  # of each of them
NEW_KEYS = count()
# What a delivered row holds, in the lengths that Halo's documentation shows.
PAYLOAD_HASH, MESSAGE_HASH = "a" * 64, "b" * 64
DELIVERED = {
    "agent_id": "agent_default",
    "reply": "Thank you. I have created a ticket, and a colleague will get back to you.",
}
RESPONSE = {"message_id": "msg_844b8614abba424e90695f25a8bda279"}
GENERATED = {  # what `earlier_rows` makes of a row's number, in PostgreSQL's words
    "row_key": "lpad((number::bigint * 2654435761 % 4294967296)::text, 10, '0')",
    "status": "CASE WHEN number % 1000 = 0 THEN 'in_doubt' ELSE 'delivered' END",
    "user_id": "'user-' || number",
    "session_id": "'sess_' || lpad(to_hex(number), 32, '0')",
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Some rounds of one kind of work on so many rows each (0: on one page or row, whose number says nothing)."""

    seconds: list[float]
    rows: int = 0

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    @property
    def rows_per_second(self) -> float:
        """In the median round."""
        return self.rows / self.median


def key_of(number: int) -> str:
    """Spread over the whole index, as business keys are."""
    return f"{number * 2654435761 % 2**32:010}"


def user_of(number: int) -> str:
    """Each row has a user of its own."""
    return f"user-{number}"


def earlier_rows(first: int, last: int, *, now: Any) -> Iterator[dict[str, Any]]:
    """Rows of earlier runs: delivered, but for one in a thousand, which is in doubt."""
    for number in range(first, last):
        run = number // RUN_ROWS
        yield {
            "namespace": NAMESPACE,
            "row_key": key_of(number),
            "status": LedgerStatus.IN_DOUBT if number % 1000 == 0 else LedgerStatus.DELIVERED,
            "user_id": user_of(number),
            "session_id": f"sess_{number:032x}",
            "payload_hash": PAYLOAD_HASH,
            "message_hash": MESSAGE_HASH,
            "attempts": 1,
            "owner": "host:1:aaaaaaaaaaaa",
            "doubt_since": now,
            **_task_instance(f"applications_{run % 5}", f"scheduled__{run}").columns,
            "created_at": now,
            "updated_at": now,
            "response": json.dumps(RESPONSE),
            **DELIVERED,
        }


def fill(ledger: Ledger, rows: int, *, first: int = 0) -> None:
    """Insert those rows, from the `first` up to the number `rows`."""
    now = ledger.now()
    insert = _generate if ledger.engine.dialect.name == "postgresql" else _insert
    for begin in range(first, rows, RUN_ROWS):
        end = min(begin + RUN_ROWS, rows)
        ledger.transaction(lambda db, begin=begin, end=end: insert(db, begin, end, now=now))
    vacuum(ledger)


def vacuum(ledger: Ledger) -> None:
    """Renew the statistics, and free what updates left behind where the database does that by a command."""
    commands = {"postgresql": "VACUUM ANALYZE", "sqlite": "ANALYZE"}
    command = commands.get(ledger.engine.dialect.name, f"ANALYZE TABLE {submissions.name}")
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        db.execute(text(command))


def _insert(db: Connection, first: int, last: int, *, now: Any) -> None:
    db.execute(submissions.insert(), list(earlier_rows(first, last, now=now)))


def _generate(db: Connection, first: int, last: int, *, now: Any) -> None:
    """The same rows, of one run, made by PostgreSQL itself: ten million in minutes."""
    (example,) = earlier_rows(first, first + 1, now=now)
    columns = [
        literal_column(GENERATED[name]) if name in GENERATED else literal(value, submissions.c[name].type)
        for name, value in example.items()
    ]
    series = text(f"generate_series({first}, {last - 1}) AS number")
    db.execute(submissions.insert().from_select([*example], select(*columns).select_from(series)))


def _task_instance(dag_id: str, run_id: str) -> TaskInstanceRef:
    return TaskInstanceRef(dag_id=dag_id, run_id=run_id, task_id="tickets", map_index=-1, try_number=1)


def deliver_new(lease_holder: LeaseHolder, batches: int = 1) -> None:
    """Claim, intend and settle new rows, as a delivery does."""
    for _ in range(batches):
        numbers = [2**31 + next(NEW_KEYS) for _ in range(BATCH)]
        keys = [f"new {key_of(number)}" for number in numbers]
        claim(lease_holder, keys)
        for first in range(0, BATCH, COMMIT):
            some = keys[first : first + COMMIT]
            lease_holder.commit(intents=some)
            lease_holder.commit(settlements=[_settlement(key) for key in some])


def _settlement(key: str) -> Settlement:
    session_id = f"sess_{key.removeprefix('new '):0>32}"
    return Settlement(row_key=key, status=LedgerStatus.DELIVERED, session_id=session_id, response=RESPONSE, **DELIVERED)


def deliver_at_once(ledgers: list[Ledger]) -> None:
    """As many tasks deliver new rows at the same time, each over connections of its own."""
    with ThreadPoolExecutor(len(ledgers)) as threads:
        for done in [
            threads.submit(deliver_new, new_lease_holder(ledger, f"bench {number}"), TASK_BATCHES)
            for number, ledger in enumerate(ledgers)
        ]:
            done.result()


def new_lease_holder(ledger: Ledger, run_id: str = "bench") -> LeaseHolder:
    """What a task of a run claims with."""
    return ledger.lease_holder(NAMESPACE, task_instance=_task_instance("applications_0", run_id))


def claim(lease_holder: LeaseHolder, keys: list[str]) -> None:
    """Claim a batch."""
    candidates = [
        Candidate(row_key=key, user_id=f"user-{key}", payload_hash=PAYLOAD_HASH, message_hash=MESSAGE_HASH)
        for key in keys
    ]
    lease_holder.claim(candidates, on_in_doubt="resend")


def timed(work: Callable[[], object], *, rows: int = 0, rounds: int = ROUNDS) -> Timing:
    """Do it some times."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return Timing(seconds=seconds, rows=rows)


def measure(ledger: Ledger, rows: int) -> Iterator[tuple[str, Timing]]:
    """What a delivery, the pages and the commands ask of a ledger filled with so many rows."""
    chance = random.Random(1)
    admin = LedgerAdmin(ledger, actor="bench")
    lease_holder = new_lease_holder(ledger)

    def claim_delivered() -> None:
        claim(lease_holder, [key_of(number) for number in chance.sample(range(1, rows, 2), BATCH)])

    def forget_one() -> None:
        forget(ledger, user_of(chance.randrange(1, rows, 2)), actor="bench")

    everything = RowFilter(namespace=NAMESPACE)
    run = RowFilter(dag_ids=("applications_1",), run_id="scheduled__1", statuses=(LedgerStatus.DELIVERED,))
    middle = RowCursor(NAMESPACE, f"{2**31:010}")
    yield "rows already delivered, one task", timed(claim_delivered, rows=BATCH)
    yield "new rows, one task", timed(lambda: deliver_new(lease_holder), rows=BATCH)
    with ExitStack() as stack:
        ledgers = [stack.enter_context(closing(Ledger.at(ledger.engine.url))) for _ in range(TASKS)]
        at_once = timed(lambda: deliver_at_once(ledgers), rows=TASKS * TASK_BATCHES * BATCH, rounds=3)
    yield f"new rows, {TASKS} tasks at once", at_once
    yield "page of rows in doubt", timed(lambda: admin.rows.page(RowFilter(statuses=(LedgerStatus.IN_DOUBT,))))
    yield "page of a run's rows", timed(lambda: admin.rows.page(run))
    yield "first page of all rows", timed(lambda: admin.rows.page(everything))
    yield "page in the middle of all rows", timed(lambda: admin.rows.page(everything, after=middle))
    yield "counts of all rows", timed(lambda: admin.rows.counts(everything), rounds=3)
    yield "requeue of one row", timed(lambda: admin.requeue(RowFilter(namespace=NAMESPACE, row_keys=(key_of(0),))))
    yield "`halo-ledger summary`", timed(lambda: summary(ledger, everything), rounds=3)
    yield "`halo-ledger forget` of one user", timed(forget_one, rounds=3)


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
        for name, timing in measure(ledger, options.rows):
            rate = f", {timing.rows_per_second:,.0f} rows/s" if timing.rows else ""
            worst = max(timing.seconds) * 1000
            print(f"{name:44} {timing.median * 1000:9.1f} ms  worst {worst:9.1f} ms{rate}", flush=True)


if __name__ == "__main__":
    main()
