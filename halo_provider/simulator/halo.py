"""The simulated Halo without HTTP: its workspace, what is scripted for it, and the record of what it met."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from halo_provider.simulator.endpoints import CHAT, known
from halo_provider.simulator.faults import Fault, FaultScript
from halo_provider.simulator.journal import Journal, RequestRecord
from halo_provider.simulator.limits import Limit, limiter_of
from halo_provider.simulator.rules import Json
from halo_provider.simulator.workspace import Chat, Company, Session, Ticket, User, Workspace


class SimulatedHalo:
    """What tests, pages and other processes read and script, whatever serves it.

    Without `record_bodies` messages, contexts and request bodies are not kept. `limit` is the one that a reset
    returns to.
    """

    def __init__(self, *, record_bodies: bool, limit: Limit | None) -> None:
        self.record_bodies = record_bodies
        self._first_limit = limit
        self.reset()

    def reset(self) -> None:
        """Forget everything: workspace, records, counts and scripted faults; the first limit begins anew."""
        self._workspace = Workspace(keep_content=self.record_bodies)
        self._journal = Journal()
        self._script = FaultScript()
        self.limit = self._first_limit

    @property
    def limit(self) -> Limit | None:
        """The limit on requests, None for none. A new one begins with the next request; any thread may set it."""
        return self._limit

    @limit.setter
    def limit(self, limit: Limit | None) -> None:
        self._limit = limit
        self._limiter = limiter_of(limit)

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request to the SDK, in the order of arrival."""
        return self._journal.requests

    @property
    def chats(self) -> list[Chat]:
        """Every accepted chat, in the order of acceptance."""
        return self._workspace.chats

    @property
    def users(self) -> dict[str, User]:
        """The contacts by user_id."""
        return self._workspace.users

    @property
    def companies(self) -> dict[str, Company]:
        """The companies by company_id."""
        return self._workspace.companies

    @property
    def sessions(self) -> dict[str, Session]:
        """The sessions by session_id."""
        return self._workspace.sessions

    @property
    def tickets(self) -> list[Ticket]:
        """The tickets, oldest first."""
        return self._workspace.tickets

    @property
    def merged_escalations(self) -> int:
        """How many escalations went into a ticket that was open already."""
        return self._workspace.merged_escalations

    @property
    def events(self) -> list[Json]:
        """The events of POST /events."""
        return self._workspace.events

    @property
    def max_concurrency(self) -> int:
        """The most chats that were ever in flight at once."""
        return self._journal.max_concurrency

    @property
    def chats_in_flight(self) -> int:
        """How many chats wait for their answer now."""
        return self._journal.chats_in_flight

    def script(self, *, path: str, faults: Iterable[Fault | None]) -> None:
        """Let the next requests to `path` (such as "/chat") meet these faults, one each; None: no fault."""
        self._script.add(path=known(path), user_id=None, faults=faults)

    def script_for(self, *, user_id: str, faults: Iterable[Fault | None], path: str = CHAT) -> None:
        """Let the next requests of this user to `path` meet these faults, one each; None: no fault."""
        self._script.add(path=known(path), user_id=user_id, faults=faults)

    def always(self, path: str, fault: Fault | None) -> None:
        """Let every request to `path` that no scripted fault is left for meet `fault`; None ends that."""
        self._script.always(path=known(path), fault=fault)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many requests are over, by path and by status ("none": no answer was sent)."""
        by_path: dict[str, dict[str, int]] = {}
        for (path, status), number in self._journal.counts.items():
            by_path.setdefault(path, {})["none" if status is None else str(status)] = number
        return by_path

    def state(self, *, details: bool) -> Json:
        """Return what the workspace holds and what was counted, as JSON; totals only without `details`."""
        collections: dict[str, Iterable[Any]] = {
            "chats": self.chats,
            "users": self.users.values(),
            "companies": self.companies.values(),
            "tickets": self.tickets,
        }
        return {
            "counts": self.counts(),
            "totals": {name: len(list(items)) for name, items in collections.items()},
            "chats_in_flight": self.chats_in_flight,
            "max_concurrency": self.max_concurrency,
            "faults_left": self._script.left(),
            "limit": None if self.limit is None else self.limit.model_dump(mode="json"),
            **(
                {name: [dataclasses.asdict(item) for item in items] for name, items in collections.items()}
                if details
                else {}
            ),
        }
