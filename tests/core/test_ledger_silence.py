"""The ledger before a database that goes silent without closing a connection, or a SQLite file that stays locked."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url

from halo_provider.exceptions import LedgerError
from halo_provider.ledger import Candidate, LeaseHolder, Ledger, LedgerStatus, Settlement, TaskInstanceRef, database
from halo_provider.ledger.threads import BoundedCalls
from tests.core.deliveries import NAMESPACE, rows_in
from tests.core.silent_proxy import SilentProxy, silent_proxy

PATIENCE = 3.0  # seconds: far less than a hang, far more than a call that ends by itself
PORTS = {"postgresql": 5432, "mysql": 3306}


@pytest.fixture(params=["postgres", "mariadb"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty ledger on every server."""
    url: str = request.getfixturevalue(f"{request.param}_ledger_url")
    return url


@pytest.fixture
def proxy(server_url: str) -> Iterator[SilentProxy]:
    """A proxy before the server."""
    url = make_url(server_url)
    with silent_proxy(url.host or "127.0.0.1", url.port or PORTS[url.get_backend_name()]) as proxy:
        yield proxy


@pytest.fixture
def proxied_url(server_url: str, proxy: SilentProxy) -> str:
    """The ledger's URL through the proxy."""
    return make_url(server_url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


@pytest.fixture
def ledger(proxied_url: str) -> Iterator[Ledger]:
    """A ledger that is open before the silence."""
    with closing(Ledger.at(proxied_url)) as ledger:
        yield ledger


@pytest.fixture
def lease_holder(ledger: Ledger) -> LeaseHolder:
    """An owner with one row in flight."""
    lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    lease_holder.claim([Candidate("k", payload_hash="a")], on_in_doubt="resend")
    lease_holder.commit(intents=["k"])
    return lease_holder


DELIVERED = Settlement("k", LedgerStatus.DELIVERED, session_id="s")


def seconds_of(call: Callable[[], Any]) -> float:
    """How long the call takes to fail for the silence."""
    began = time.monotonic()
    with pytest.raises(LedgerError, match=r"does not answer|database is locked"):
        call()
    return time.monotonic() - began


def test_call_to_a_silent_database_ends_in_its_time(
    lease_holder: LeaseHolder, proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an open connection, on the new one that the next call makes, and in every call."""
    monkeypatch.setattr(database, "TRANSACTION_TIMEOUT", 0.2)
    proxy.silence()

    calls: list[Callable[[], Any]] = [
        lambda: lease_holder.commit(settlements=[DELIVERED]),
        lambda: lease_holder.claim([Candidate("new", payload_hash="a")], on_in_doubt="resend"),
        lease_holder.renew,
    ]
    for call in calls:
        assert seconds_of(call) < PATIENCE


def test_opening_a_silent_database_ends_in_its_time(
    proxied_url: str, proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and never greets."""
    monkeypatch.setattr(database, "TRANSACTION_TIMEOUT", 0.2)
    proxy.silence()

    assert seconds_of(lambda: Ledger.at(proxied_url)) < PATIENCE


def test_ledger_works_again_after_the_silence(
    ledger: Ledger, lease_holder: LeaseHolder, proxy: SilentProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settlement is offered again, on a new connection."""
    with monkeypatch.context() as patched:
        patched.setattr(database, "TRANSACTION_TIMEOUT", 0.2)
        proxy.silence()
        seconds_of(lambda: lease_holder.commit(settlements=[DELIVERED]))
    proxy.resume()

    assert not lease_holder.commit(settlements=[DELIVERED]).lost_settlements
    assert rows_in(ledger)["k"]["status"] == LedgerStatus.DELIVERED


def test_run_that_has_to_end_waits_for_no_silent_database(lease_holder: LeaseHolder, proxy: SilentProxy) -> None:
    """A call under way ends with the run's patience, and so does every later one."""
    proxy.silence()
    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(seconds_of, lambda: lease_holder.commit(settlements=[DELIVERED]))
        assert proxy.swallowed.wait(PATIENCE)
        lease_holder.finish_within(0.2)

        assert under_way.result() < PATIENCE
        assert seconds_of(lease_holder.renew) < PATIENCE


def test_run_that_has_to_end_can_still_record_what_it_sent(ledger: Ledger, lease_holder: LeaseHolder) -> None:
    """Within the time that is left, a database that answers serves as before."""
    lease_holder.finish_within(PATIENCE)

    assert not lease_holder.commit(settlements=[DELIVERED]).lost_settlements
    assert rows_in(ledger)["k"]["status"] == LedgerStatus.DELIVERED


def test_abandoned_transaction_is_rolled_back(
    ledger: Ledger, lease_holder: LeaseHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes back after its caller gave up must not commit behind the caller's later calls."""
    monkeypatch.setattr(database, "TRANSACTION_TIMEOUT", 0.2)
    may_go_on, ended = threading.Event(), threading.Event()

    def work(db: Connection) -> None:
        db.exec_driver_sql("UPDATE halo_submissions SET status = 'failed'")
        event.listen(db, "rollback", lambda _db: ended.set())
        may_go_on.wait()

    seconds_of(lambda: ledger.transaction(work))
    may_go_on.set()

    assert ended.wait(PATIENCE)
    monkeypatch.undo()
    assert rows_in(ledger)["k"]["status"] == LedgerStatus.IN_FLIGHT


SCRIPT = """
import sys, time
from halo_provider.exceptions import LedgerError
from halo_provider.ledger import Ledger, TaskInstanceRef, Candidate
ledger = Ledger.at(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
lease_holder = ledger.lease_holder("halo_default/note", task_instance=TaskInstanceRef())
lease_holder.finish_within(0.2)
try:
    lease_holder.claim([Candidate("k", payload_hash="a")], on_in_doubt="resend")
except LedgerError as error:
    print(error, flush=True)
"""


def test_process_ends_though_its_database_is_silent(proxied_url: str, proxy: SilentProxy) -> None:
    """The thread that still waits does not keep it."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, proxied_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        proxy.silence()
        process.stdin.write("\n")
        process.stdin.flush()
        began = time.monotonic()

        assert "does not answer" in process.stdout.readline()
        assert process.wait(PATIENCE) == 0
        assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("first", ["busy timeout", "end of the run"])
def test_locked_sqlite_file_keeps_nobody_longer_than_allowed(
    sqlite_ledger_url: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that does not end is waited for by SQLite's own timeout, or for as long as the run has."""
    with closing(Ledger.at(sqlite_ledger_url)) as ledger, closing(Ledger.at(sqlite_ledger_url)) as other:
        lease_holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
        if first == "busy timeout":
            monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.2)
        else:
            lease_holder.finish_within(0.2)
        with other.engine.begin():
            claim = [Candidate("k", payload_hash="a")]
            assert seconds_of(lambda: lease_holder.claim(claim, on_in_doubt="resend")) < PATIENCE


def test_drivers_give_up_by_themselves_in_the_end(server_url: str) -> None:
    """So that no thread is left for ever; a URL's own parameters are left alone."""
    seen: list[dict[str, Any]] = []
    url = make_url(server_url).update_query_dict({"connect_timeout": "7"})
    with closing(Ledger.at(url)) as ledger:
        event.listen(ledger.engine, "do_connect", lambda _d, _r, _a, parameters: seen.append(dict(parameters)) or None)
        ledger.engine.dispose()
        ledger.now()

    assert int(seen[0]["connect_timeout"]) == 7
    assert {"keepalives_idle", "read_timeout"} & set(seen[0])


def test_bounded_calls_return_raise_and_use_their_threads_again() -> None:
    """A call is like a call on the caller's own thread, also when it raises a TimeoutError itself."""

    def fail(_abandoned: threading.Event) -> None:
        raise TimeoutError("its own")

    calls = BoundedCalls()
    names = {calls.call(lambda _abandoned: threading.get_ident(), time_left=lambda: PATIENCE) for _ in range(3)}
    with pytest.raises(TimeoutError, match="its own"):
        calls.call(fail, time_left=lambda: PATIENCE)

    assert len(names) == 1
    assert threading.get_ident() not in names
    calls.close()
