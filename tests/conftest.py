"""What every test shares: one migrated AIRFLOW_HOME, one simulator, one place that knows the services."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis, RedisError
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

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


def service_url(variable: str, default: str, *, connect: Callable[[str], None]) -> str:
    """A service's URL: from the environment, else the default, where it can be used; skips elsewhere, fails in CI."""
    if variable in os.environ:
        return os.environ[variable]
    try:
        connect(default)
    except (RedisError, SQLAlchemyError) as error:
        reason = f"{default} cannot be used ({type(error).__name__}), and {variable} is not set"
        if os.environ.get("CI"):
            pytest.fail(f"CI needs this service: {reason}")
        pytest.skip(reason)
    return default


def log_in(url: str) -> None:
    """Connect to a database and leave again."""
    engine = create_engine(url, future=True)
    engine.connect().close()
    engine.dispose()


def ping(url: str) -> None:
    """Ask a Redis whether it is there."""
    with Redis.from_url(url) as redis:
        redis.ping()


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """SQLAlchemy URL of a PostgreSQL database for tests."""
    return service_url("HALO_TEST_POSTGRES_URL", "postgresql+psycopg2://root@127.0.0.1/test", connect=log_in)


@pytest.fixture(scope="session")
def mariadb_url() -> str:
    """SQLAlchemy URL of a MariaDB database for tests."""
    return service_url("HALO_TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4", connect=log_in)


@pytest.fixture(scope="session")
def redis_url() -> str:
    """URL of a Redis for tests."""
    return service_url("HALO_TEST_REDIS_URL", "redis://127.0.0.1:6379/0", connect=ping)
