"""The longest key fits every index, on every database, beside the longest names that Airflow and a submission allow."""

import random
from collections.abc import Iterator
from itertools import count

import pytest

from halo_provider.ledger import Candidate, Change, Ledger, Settlement, TaskInstanceRef
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.submission import MAX_ROW_KEY, MAX_ROW_KEY_BYTES, Submission
from tests.core.deliveries import rows_in

SUBMISSION = Submission(name="note", key="id", message="Note")
ASCII = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
IDEOGRAPHS = [chr(code) for code in range(0x20000, 0x2A000)]  # letters to Airflow, of four bytes in UTF-8
RANDOM = random.Random(20261125)  # PostgreSQL compresses what repeats


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A ledger's place on every database."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


def any_of(characters: str | list[str], length: int) -> str:
    """So many characters, in no order that could be compressed."""
    return "".join(RANDOM.choices(characters, k=length))


def longest_keys() -> Iterator[str]:
    """Keys that are as long as they may be, in characters and in bytes."""
    for characters, length in ((ASCII, MAX_ROW_KEY), (IDEOGRAPHS, MAX_ROW_KEY_BYTES // 4)):
        key = any_of(characters, length)
        assert SUBMISSION.row_key({"id": key}) == key
        yield key


def test_longest_key_goes_through_every_state(ledger: Ledger) -> None:
    """Claimed, sent, delivered, and followed up, in the widest of rows."""
    task_instance = TaskInstanceRef(
        dag_id=any_of(IDEOGRAPHS, 250),
        run_id=any_of(ASCII, 250),
        task_id=any_of(IDEOGRAPHS, 250),
        map_index=-1,
        try_number=1,
    )
    lease_holder = ledger.lease_holder(any_of(ASCII, 149) + "/" + any_of(ASCII, 100), task_instance=task_instance)
    keys = list(longest_keys())
    follow_ups = [
        Change(key, number, "b" * 64).ledger_key for key, number in zip(keys, count(1_000_000_000), strict=False)
    ]

    for some in (keys, follow_ups):
        lease_holder.claim([Candidate(row_key=key, payload_hash="a" * 64) for key in some], on_in_doubt="resend")
        lease_holder.commit(intents=some)
        in_doubt = [Settlement(row_key=key, status=LedgerStatus.IN_DOUBT, final=False, error="why") for key in some]
        lease_holder.commit(settlements=in_doubt)
        delivered = [Settlement(row_key=key, status=LedgerStatus.DELIVERED, session_id="sess") for key in some]
        lease_holder.commit(settlements=delivered)

    assert {key: row["status"] for key, row in rows_in(ledger).items()} == dict.fromkeys(
        [*keys, *follow_ups], "delivered"
    )
