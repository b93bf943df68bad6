"""
A pytest plugin for people's own DAGs: fixtures `halo` and `halo_ledger`, there wherever this package is installed.

`halo` is a running simulator behind the Airflow connection ``halo_default``; `halo_ledger` a new, empty ledger::

    from my_dags.applications import dag

    def test_every_application_becomes_a_ticket(halo, halo_ledger):
        halo.fail(503, user_id="u-2")          # and the operator tries again
        assert dag.test().state == "success"
        assert sorted(chat.user_id for chat in halo.chats) == ["u-1", "u-2", "u-3"]
        assert set(halo_ledger.statuses().values()) == {"delivered"}

``dag.test()`` needs what it always needs: a migrated Airflow database, and the DAG's file in the DAGs folder.
Connections in the environment come before those of Airflow's database, and after those of a secrets backend.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halo_provider.simulator import Fault
    from halo_provider.testing.fresh_ledger import FreshLedger
    from halo_provider.testing.local_halo import LocalHalo

__all__ = ["Fault", "FreshLedger", "LocalHalo"]

_PLACES = {
    "Fault": "halo_provider.simulator",
    "FreshLedger": "halo_provider.testing.fresh_ledger",
    "LocalHalo": "halo_provider.testing.local_halo",
}


def __getattr__(name: str) -> Any:
    """Look a name up when it is asked for: every pytest run loads the plugin, and few use it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 -- as all else here

    return getattr(import_module(_PLACES[name]), name)
