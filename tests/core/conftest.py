"""An empty ledger for every test, on whichever database it asks for, and a certificate."""

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "halo.example.com")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="session")
def tls(certificate: Path) -> ssl.SSLContext:
    """The server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def deliveries(
    halo: Simulator, halo_url: str, ledger: Ledger, _no_certificates: None, monkeypatch: pytest.MonkeyPatch
) -> Deliveries:
    """Deliveries to the simulator over an empty ledger, which do not wait long for outcomes to commit together."""
    monkeypatch.setattr(halo_provider.delivery.commit, "COMMIT_INTERVAL", 0.01)
    return Deliveries(url=halo_url, ledger=ledger)
