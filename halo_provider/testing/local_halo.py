"""The simulator as a fixture: served, behind an Airflow connection, and told to fail in one line."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Simulator, serving

EXAMPLE_IDENTITY_SECRET = "ha_secret_example_of_halo_provider_testing"  # noqa: S105 -- an example, for a simulator on this host


class LocalHalo(Simulator):
    """A running simulator. Ask it for `chats`, `tickets`, `users`, `companies`, `requests`; tell it to `fail`.

    `url` is its origin, for a browser too. All of the simulator's ways to script faults and limits are there.
    """

    def __init__(self) -> None:
        super().__init__(identity_secret=EXAMPLE_IDENTITY_SECRET)
        self.url = ""
        self._set_environment: Callable[[str, str], Any] | None = None

    @classmethod
    @contextmanager
    def serving(cls) -> Iterator[Self]:
        """Serve one on a free loopback port while the block runs."""
        halo = cls()
        with serving(halo) as url:
            halo.url = url
            yield halo

    def begin(self, *, set_environment: Callable[[str, str], Any]) -> None:
        """Forget what was, and be the connection ``halo_default``, set by `set_environment` (name, value)."""
        self.reset()
        self._set_environment = set_environment
        self.connect()

    def connect(self, halo_conn_id: str = "halo_default", **extra: Any) -> None:
        """Be this Airflow connection too, for the rest of the test; `extra` goes into its extra."""
        if self._set_environment is None:
            raise RuntimeError("LocalHalo.begin comes first: the fixture `halo` does it")
        connection = {
            "conn_type": "halo",
            "host": self.url,
            "password": EXAMPLE_WIDGET_KEY,
            "extra": {"identity_secret": EXAMPLE_IDENTITY_SECRET, **extra},
        }
        self._set_environment(f"AIRFLOW_CONN_{halo_conn_id.upper()}", json.dumps(connection))

    def fail(self, *faults: int | Fault | None, user_id: str | None = None, path: str = "/chat") -> None:
        """Let the next requests meet these faults, one each.

        A number is an answer with this status: 400 rejects the row, 429 and 503 are tried again, 401 stops the run.
        None lets one request pass. With `user_id` only this user's requests count. For a fault without end: `always`.
        """
        scripted = [Fault.status(fault) if isinstance(fault, int) else fault for fault in faults]
        if user_id is None:
            self.script(path=path, faults=scripted)
        else:
            self.script_for(user_id=user_id, path=path, faults=scripted)
