"""The worst nights, in small: `python -m tests.acceptance.proof` plays all of them, on every ledger, and larger."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import pytest

from halo_provider.simulator.reading import Variant
from tests.acceptance.proof import LEDGERS, Policy, Verdict, bound_of, cells_on, play

pytestmark = pytest.mark.acceptance

POLICY_OF = {
    "SQLite": Policy(on_in_doubt="resend"),
    "PostgreSQL": Policy(on_in_doubt="hold"),
    "MariaDB": Policy(on_in_doubt="resend"),
}
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
    ("night", "ledger_name", "variant"),
    [
        ("SIGKILL before intent", "SQLite", "structured"),
        ("SIGKILL after send", "SQLite", "text"),
        ("SIGKILL after send", "PostgreSQL", "paged"),
        ("SIGKILL after send", "MariaDB", "structured"),
        ("Halo faults of every kind", "SQLite", "paged"),
    ],
)
def test_no_row_is_left_in_doubt_where_halo_is_asked(
    night: str, ledger_name: str, variant: Variant, request: pytest.FixtureRequest
) -> None:
    """Nothing is lost, nothing is sent twice, and no person is needed, though Halo finds conversations late."""
    if service := SERVICES.get(ledger_name):
        request.getfixturevalue(service)

    policy = Policy(on_in_doubt="ask", variant=variant)
    verdict = play(night, ledger_name, policy, rows=40, lag=1.0, ask_after=2.0)

    assert verdict.faults(policy, bound=bound_of(night, verdict)) == []
    assert verdict.doubted


@pytest.mark.parametrize("ask_else", ["hold", "resend"])
def test_promise_is_that_of_ask_else_where_nobody_answers(ask_else: Literal["hold", "resend"]) -> None:
    """Reading is switched off: what was in flight is held, or sent again."""
    policy = Policy(on_in_doubt="ask", ask_else=ask_else)
    verdict = play("SIGKILL after send", "SQLite", policy, rows=40, ask_after=2.0)

    assert verdict.faults(policy, bound=bound_of("SIGKILL after send", verdict)) == []
    assert bool(verdict.twice) is (ask_else == "resend")
