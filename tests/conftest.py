"""What every test shares: one migrated AIRFLOW_HOME, one simulator, one place that knows the services."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

AIRFLOW_HOME = Path(tempfile.mkdtemp(prefix="halo-airflow-"))
os.environ.update(
    {
        "AIRFLOW_HOME": str(AIRFLOW_HOME),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(AIRFLOW_HOME / "dags"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
)

from halo_provider.client.client import HaloClient
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from tests.example_keys import IDENTITY_SECRET


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """One Airflow home with a migrated database, made when a test first asks for it."""
    (AIRFLOW_HOME / "dags").mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return AIRFLOW_HOME


@pytest.fixture(scope="session")
def _served_simulator() -> Iterator[tuple[Simulator, str]]:
    simulator = Simulator(identity_secret=IDENTITY_SECRET)
    with serving(simulator) as url:
        yield simulator, url


@pytest.fixture
def halo(_served_simulator: tuple[Simulator, str]) -> Simulator:
    """A fresh local Halo behind `halo_url`."""
    simulator, _ = _served_simulator
    simulator.reset()
    return simulator


@pytest.fixture
def halo_url(_served_simulator: tuple[Simulator, str], halo: Simulator) -> str:
    """The origin of `halo`."""
    return _served_simulator[1]


@pytest.fixture
def client(halo_url: str) -> HaloClient:
    """A client of `halo` with an identity secret; enter it to use it."""
    return HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=halo_url, identity_secret=IDENTITY_SECRET, timeout=10.0)


def service_url(variable: str, default: str, *, port: int) -> str:
    """A service's URL: from the environment, else on its standard port; skips elsewhere, and fails in CI."""
    if variable in os.environ:
        return os.environ[variable]
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return default
    if os.environ.get("CI"):
        pytest.fail(f"CI needs the service at 127.0.0.1:{port}, or {variable}")
    pytest.skip(f"nothing listens at 127.0.0.1:{port}, and {variable} is not set")


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """SQLAlchemy URL of a PostgreSQL database for tests."""
    return service_url("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test", port=5432)


@pytest.fixture(scope="session")
def mariadb_url() -> str:
    """SQLAlchemy URL of a MariaDB database for tests."""
    return service_url("HALO_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4", port=3306)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """URL of a Redis for tests."""
    return service_url("HALO_TEST_REDIS_URL", "redis://127.0.0.1:6379/0", port=6379)
