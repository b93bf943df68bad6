"""The worst nights, in small: `python -m tests.acceptance.proof` plays all of them, on every ledger, and larger."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from halo_provider.ledger import OnInDoubt
from tests.acceptance.proof import LEDGERS, Verdict, bound_of, cells_on, play

pytestmark = pytest.mark.acceptance

POLICY_OF: dict[str, OnInDoubt] = {"SQLite": "resend", "PostgreSQL": "hold", "MariaDB": "resend"}
SERVICES = {"PostgreSQL": "postgres_url", "MariaDB": "mariadb_url"}
AT_ONCE = 6  # nights: they mostly wait for leases to run out

Verdicts = dict[tuple[str, str], Future[Verdict]]


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[Verdicts]:
    """Every night that a test of this session asks about, several of them at a time."""
    asked = {
        (item.callspec.params["night"], item.callspec.params["ledger_name"])
        for item in request.session.items
        if item.originalname == "test_no_row_is_lost_and_none_doubled_beyond_doubt"
    }
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield {
            (night, ledger_name): threads.submit(play, night, ledger_name, POLICY_OF[ledger_name], rows=80)
            for night, ledger_name in sorted(asked)
        }


@pytest.mark.parametrize(("night", "ledger_name"), cells_on(LEDGERS))
def test_no_row_is_lost_and_none_doubled_beyond_doubt(
    night: str, ledger_name: str, request: pytest.FixtureRequest, verdicts: Verdicts
) -> None:
    """Whoever dies, and whenever: every row is with Halo once, or was in doubt, and hold doubles nothing."""
    if service := SERVICES.get(ledger_name):
        request.getfixturevalue(service)

    verdict = verdicts[night, ledger_name].result()

    assert verdict.faults(POLICY_OF[ledger_name], bound=bound_of(night, verdict)) == []


@pytest.mark.parametrize(
    ("night", "ledger_name"),
    [
        ("SIGKILL before intent", "SQLite"),
        ("SIGKILL after send", "SQLite"),
        ("SIGKILL after send", "PostgreSQL"),
        ("SIGKILL after send", "MariaDB"),
        ("Halo faults of every kind", "SQLite"),
    ],
)
def test_no_row_is_left_in_doubt_where_halo_is_asked(
    night: str, ledger_name: str, request: pytest.FixtureRequest
) -> None:
    """Nothing is lost, nothing is sent twice, and no person is needed, though Halo finds conversations late."""
    if service := SERVICES.get(ledger_name):
        request.getfixturevalue(service)

    verdict = play(night, ledger_name, "ask", rows=40, lag=1.0, ask_after=2.0)

    assert verdict.faults("ask", bound=bound_of(night, verdict)) == []
    assert verdict.doubted
