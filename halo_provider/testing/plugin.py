"""The fixtures, as pytest finds them by the entry point ``pytest11``; imports next to nothing until one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from halo_provider.testing.fresh_ledger import FreshLedger
    from halo_provider.testing.local_halo import LocalHalo


@pytest.fixture(scope="session")
def _served_local_halo() -> Iterator[LocalHalo]:
    """One simulator for all tests of the session; each test that uses it begins with an empty workspace."""
    from halo_provider.testing.local_halo import LocalHalo  # noqa: PLC0415 -- only where a test uses it

    with LocalHalo.serving() as halo:
        yield halo


@pytest.fixture
def halo_ledger(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FreshLedger]:
    """A new, empty ledger, which operators and hooks use that do not name another one by ``ledger_conn_id``."""
    from halo_provider.testing.fresh_ledger import FreshLedger  # noqa: PLC0415 -- only where a test uses it

    path = tmp_path_factory.mktemp("halo_ledger") / "halo_ledger.db"
    ledger = FreshLedger(path, set_environment=monkeypatch.setenv)
    yield ledger
    ledger.close()


@pytest.fixture
def halo(
    _served_local_halo: LocalHalo,
    halo_ledger: FreshLedger,  # noqa: ARG001 -- what an earlier test delivered would not be sent again
    monkeypatch: pytest.MonkeyPatch,
) -> LocalHalo:
    """A local Halo with an empty workspace, behind the Airflow connection ``halo_default``, and a fresh ledger."""
    _served_local_halo.begin(set_environment=monkeypatch.setenv)
    return _served_local_halo
