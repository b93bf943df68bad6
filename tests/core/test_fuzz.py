"""Any bytes from a CSV file and any answer from Halo: deliver() ends, its sum balances, and no row is lost."""

import asyncio
import csv
import io
import json
import re
import socketserver
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from halo_provider.delivery import pace
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.report import DeliveryReport, Outcome
from halo_provider.exceptions import SourceError
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rows import Source
from tests.core.deliveries import AT_ONCE, NAMESPACE, NOTE, Deliveries, Teller, notes, rows_in
from tests.core.sources import csv_source

GOOD_BODY = b'{"session_id": "sess_1", "text": "Thank you."}'
FUZZING = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def http(body: bytes, *, status: int = 200, headers: str = "") -> bytes:
    """An HTTP answer."""
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode("latin-1", errors="replace") + body


class AnyHalo(socketserver.ThreadingTCPServer):
    """Answers each request with the next bytes of `answers`, and as Halo should when they are used up."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.answers: deque[bytes] = deque()

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Exchange(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        """Read the request whole, and answer."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        self.rfile.read(int(length[1]) if length else 0)
        assert isinstance(self.server, AnyHalo)
        with suppress(OSError):
            try:
                answer = self.server.answers.popleft()
            except IndexError:
                answer = http(GOOD_BODY)
            self.wfile.write(answer)


@pytest.fixture(scope="module")
def any_halo() -> Iterator[AnyHalo]:
    """A server on a real socket that says anything."""
    with AnyHalo() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish to come back later ends the run instead of pausing it."""
    monkeypatch.setattr(pace, "MAX_PAUSE", 0.02)


def fresh_ledger(folder: str) -> Ledger:
    """A ledger for one example."""
    return Ledger.at_path(Path(folder) / "ledger.db")


def delivered(source: Source, *, ledger: Ledger, url: str) -> tuple[DeliveryReport, list[Outcome]]:
    """Deliver, with few attempts, and check what holds of every run: the sum, and that the ledger tells the same."""
    outcomes: list[Outcome] = []

    async def run() -> DeliveryReport:
        async with Deliveries(url=url, ledger=ledger).client(timeout=1.0) as client:
            return await deliver(
                source,
                submission=NOTE,
                client=client,
                lease_holder=ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef()),
                options=DeliveryOptions(batch_size=10, concurrency=4, max_attempts=2, backoff=AT_ONCE),
                observer=Teller(outcomes.append),
            )

    report = asyncio.run(run())
    assert report.summary()["read"] == len(outcomes)
    known = rows_in(ledger)
    for outcome in outcomes:
        assert (
            outcome.status in EXPECTED_STATUSES[known[outcome.row_key]["status"] if outcome.row_key in known else None]
        )
    return report, outcomes


EXPECTED_STATUSES: dict[str | None, set[RowStatus]] = {
    None: {RowStatus.REJECTED, RowStatus.NOT_ATTEMPTED},
    LedgerStatus.PENDING: {RowStatus.NOT_ATTEMPTED},
    LedgerStatus.DELIVERED: {RowStatus.DELIVERED, RowStatus.ALREADY_DELIVERED, RowStatus.DUPLICATE},
    LedgerStatus.REJECTED: {RowStatus.REJECTED, RowStatus.DUPLICATE},
    LedgerStatus.IN_DOUBT: {RowStatus.IN_DOUBT},
    LedgerStatus.FAILED: {RowStatus.FAILED},
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
answer_objects = st.fixed_dictionaries(
    {},
    optional={
        "session_id": json_values | st.text(min_size=1),
        "text": json_values,
        "agent_id": json_values,
        "error": json_values,
        "message": json_values,
        "extra": json_values,
    },
)
bodies = st.binary(max_size=60) | (json_values | answer_objects).map(lambda value: json.dumps(value).encode())
header_lines = st.lists(
    st.tuples(
        st.sampled_from(["Retry-After", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Location", "X"]),
        st.sampled_from(["", "0", "0.01", "-1", "1e9", "99999999999", "gzip", "chunked", "br, deflate", "text/html"])
        | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=10),
    ),
    max_size=2,
).map(lambda pairs: "".join(f"{name}: {value}\r\n" for name, value in pairs))
answers = st.binary(max_size=80) | st.builds(
    http,
    bodies,
    status=st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 418, 422, 429, 500, 502, 503, 504, 599]),
    headers=header_lines,
)


@settings(FUZZING, max_examples=30)
@given(said=st.lists(answers, min_size=1, max_size=6))
def test_any_answers_leave_balanced_counts_and_lose_no_row(said: list[bytes], any_halo: AnyHalo) -> None:
    """Whatever Halo says, the run ends without an exception; once Halo is itself again, the next brings all home."""
    with tempfile.TemporaryDirectory() as folder, closing(fresh_ledger(folder)) as ledger:
        any_halo.answers = deque(said)
        _, outcomes = delivered(ListSource(notes(3)), ledger=ledger, url=any_halo.url)
        rejected = {outcome.row_key for outcome in outcomes if outcome.status is RowStatus.REJECTED}

        any_halo.answers.clear()
        delivered(ListSource(notes(3)), ledger=ledger, url=any_halo.url)

        statuses = {row_key: row["status"] for row_key, row in rows_in(ledger).items()}
        assert statuses == {
            row_key: LedgerStatus.REJECTED if row_key in rejected else LedgerStatus.DELIVERED
            for row_key in ("0", "1", "2")
        }


AWKWARD_BODIES = {
    "a NUL everywhere": rb'{"session_id": "s\u0000", "agent_id": "a\u0000", "text": "\u0000", "more\u0000": "\u0000"}',
    "half a surrogate pair": rb'{"session_id": "s", "text": "\ud83d", "more": "\ude00"}',
    "a whole surrogate pair": rb'{"session_id": "s", "text": "\ud83d\ude00", "more": "\ud83d\ude00"}',
    "numbers that JSON does not have": b'{"session_id": "s", "more": [NaN, Infinity, -Infinity]}',
    "a number as long as a book": b'{"session_id": "s", "more": ' + b"9" * 6000 + b"}",
    "lists in lists in lists": b'{"session_id": "s", "more": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a very long session id": b'{"session_id": "' + b"s" * 70_000 + b'"}',
    "a reply beyond the basic plane": '{"session_id": "s", "text": "🙂🙂"}'.encode(),
    "a key twice": b'{"session_id": "s", "session_id": "t"}',
}


@pytest.mark.parametrize("place", ["sqlite", "postgres", "mariadb"])
@pytest.mark.parametrize("body", AWKWARD_BODIES.values(), ids=AWKWARD_BODIES.keys())
def test_unusual_answer_can_be_stored_on_every_database(
    place: str, body: bytes, any_halo: AnyHalo, request: pytest.FixtureRequest
) -> None:
    """What one answer holds never keeps the ledger from recording it, or the other rows from being delivered."""
    any_halo.answers = deque([http(body)] * 2)
    with closing(Ledger.at(request.getfixturevalue(f"{place}_ledger_url"))) as ledger:
        report, _ = delivered(ListSource(notes(6)), ledger=ledger, url=any_halo.url)

    assert report.error is None
    assert report.counts[RowStatus.DELIVERED] >= 4
    assert report.counts[RowStatus.DELIVERED] + report.counts[RowStatus.IN_DOUBT] == 6


pieces = [*b'id user text , " \n \r \r\n \0 \xff \xef\xbb\xbf x'.split(b" "), b" "]
csv_bytes = st.binary(max_size=200) | st.lists(st.sampled_from(pieces), max_size=40).map(
    lambda parts: b"id,user,text\n" + b"".join(parts)
)


@settings(FUZZING, max_examples=30)
@given(content=csv_bytes, encoding=st.sampled_from(["utf-8", "cp1252", "utf-16", "utf-8-sig"]))
@example(content=b'id,user,text\n1,u,"never closed\n2,u,x\n3,u,y\n', encoding="utf-8")
def test_any_csv_bytes_leave_balanced_counts(content: bytes, encoding: str, any_halo: AnyHalo) -> None:
    """A file that is no CSV file ends the run with a typed error, after the rows before the damage, or row by row."""
    with tempfile.TemporaryDirectory() as folder, closing(fresh_ledger(folder)) as ledger:
        report, _ = delivered(csv_source(content, encoding=encoding), ledger=ledger, url=any_halo.url)

    assert report.error is None or isinstance(report.error, SourceError)


cells = st.text(max_size=12)


@settings(FUZZING, max_examples=30)
@given(table=st.lists(st.tuples(cells, cells, cells), max_size=8))
def test_every_row_of_a_well_formed_file_gets_a_status(table: list[tuple[str, str, str]], any_halo: AnyHalo) -> None:
    """Quoted line breaks, quotes, control characters: as many rows are read as were written, each with its own end."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "user", "text"), *table])
    content = text.getvalue().encode()

    with tempfile.TemporaryDirectory() as folder, closing(fresh_ledger(folder)) as ledger:
        report, outcomes = delivered(csv_source(content), ledger=ledger, url=any_halo.url)

    assert report.error is None
    assert len(outcomes) == len(table)
    for (row_key, user, words), outcome in zip(table, in_file_order(outcomes), strict=True):
        values: dict[str, Any] = {"id": row_key, "user": user, "text": words}
        assert dict(outcome.row.values) == values
        if outcome.status is RowStatus.REJECTED and "have the same key" not in str(outcome.error):
            assert not (row_key.strip() and user.strip() and words.strip()) or not (
                row_key.strip().isprintable() and user.strip().isprintable()
            )


def in_file_order(outcomes: list[Outcome]) -> list[Outcome]:
    """They end in any order."""
    return sorted(outcomes, key=lambda outcome: outcome.row.number)
