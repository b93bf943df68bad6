"""An empty ledger for every test, on whichever database it asks for."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import halo_provider.delivery.commit
import halo_provider.delivery.delivery
from halo_provider.ledger import Ledger
from halo_provider.simulator import Simulator
from tests.core.databases import emptied, mariadb_place, postgres_place
from tests.core.deliveries import Deliveries


@pytest.fixture(scope="session")
def _postgres_place(postgres_url: str) -> Iterator[str]:
    with postgres_place(postgres_url) as url:
        Ledger.at(url).close()
        yield url


@pytest.fixture(scope="session")
def _mariadb_place(mariadb_url: str) -> Iterator[str]:
    with mariadb_place(mariadb_url) as url:
        Ledger.at(url).close()
        yield url


@pytest.fixture
def sqlite_ledger_url(tmp_path: Path) -> str:
    """Where a SQLite ledger of this test's own belongs."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def postgres_ledger_url(_postgres_place: str) -> Iterator[str]:
    """An empty ledger on PostgreSQL."""
    with emptied(_postgres_place) as url:
        yield url


@pytest.fixture
def mariadb_ledger_url(_mariadb_place: str) -> Iterator[str]:
    """An empty ledger on MariaDB."""
    with emptied(_mariadb_place) as url:
        yield url


@pytest.fixture
def ledger_url(sqlite_ledger_url: str) -> str:
    """Where `ledger` is: modules whose tests are about every database override this."""
    return sqlite_ledger_url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """A ledger with nothing in it."""
    ledger = Ledger.at(ledger_url)
    yield ledger
    ledger.close()


@pytest.fixture
def _no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody speaks TLS, loading the system's certificates for each client takes longer than most tests."""
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    monkeypatch.setattr(httpx, "create_ssl_context", lambda: nobody)


@pytest.fixture
def deliveries(
    halo: Simulator, halo_url: str, ledger: Ledger, _no_certificates: None, monkeypatch: pytest.MonkeyPatch
) -> Deliveries:
    """Deliveries to the simulator over an empty ledger, which do not wait long for outcomes to commit together."""
    monkeypatch.setattr(halo_provider.delivery.commit, "COMMIT_INTERVAL", 0.01)
    return Deliveries(url=halo_url, ledger=ledger)
