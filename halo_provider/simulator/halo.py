"""The simulated Halo without HTTP: its workspace, what is scripted for it, and the record of what it met."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from halo_provider.simulator.endpoints import CHAT, check_order
from halo_provider.simulator.faults import Fault, FaultScript
from halo_provider.simulator.journal import Journal, RequestRecord
from halo_provider.simulator.limits import Limit, limiter_of
from halo_provider.simulator.oauth import AuthorizationServer, SignIn
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.rules import Json
from halo_provider.simulator.search import Library
from halo_provider.simulator.variants import VARIANTS
from halo_provider.simulator.workspace import ENDED, Chat, Company, Session, Ticket, TicketStatus, User, Workspace


class SimulatedHalo:
    """What tests, pages and other processes read and script, whatever serves it.

    Without `record_bodies` messages, contexts and request bodies are not kept. `limit` and `reading` are what a reset
    returns to. `clock` gives seconds; limits, lags and lifetimes go by it.
    """

    def __init__(
        self, *, record_bodies: bool, limit: Limit | None, reading: Reading, clock: Callable[[], float]
    ) -> None:
        self.record_bodies = record_bodies
        self._first_limit = limit
        self._first_reading = reading
        self._clock = clock
        self._ahead = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget everything: workspace, records, counts, sign-ins and scripted faults; the first limits begin anew."""
        self._workspace = Workspace(keep_content=self.record_bodies, clock=self.now)
        self._journal = Journal()
        self.read_journal = Journal()
        self.authorization = AuthorizationServer(now=self.now, reading=lambda: self.reading)
        self._script = FaultScript()
        self.limit = self._first_limit
        self.reading = self._first_reading

    def now(self) -> float:
        """Return the seconds of the simulator's clock."""
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Set the clock forward: access tokens expire and lags end sooner. Dates in answers stay those of today."""
        if not 0 <= seconds < float("inf"):
            raise ValueError("the clock goes forward only, by a number of seconds")
        self._ahead += seconds

    @property
    def limit(self) -> Limit | None:
        """The limit on requests, None for none. A new one begins with the next request; any thread may set it."""
        return self._limit

    @limit.setter
    def limit(self, limit: Limit | None) -> None:
        self._limit = limit
        self._limiter = limiter_of(limit)

    @property
    def reading(self) -> Reading:
        """How the MCP server and the sign-in behave. A new one begins with the next request; any thread may set it."""
        return self._reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        self._reading = reading
        self.read_limiter = limiter_of(reading.limit)

    @property
    def library(self) -> Library:
        """What can be found in the workspace now."""
        by_start = VARIANTS[self.reading.variant].by_start
        return Library(self._workspace, reading=self.reading, now=self.now(), by_start=by_start)

    @property
    def reads(self) -> list[RequestRecord]:
        """Every request to the MCP server and for signing in, in the order of arrival.

        `path` has the method or the tool, such as "/api/mcp/tools/list" and "/api/mcp/data_get_ticket". Bodies of
        requests for signing in are never kept.
        """
        return self.read_journal.requests

    @property
    def sign_ins(self) -> list[SignIn]:
        """What people have approved, in the order of their first tokens."""
        return self.authorization.sign_ins

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
        """Let the next requests to `path` (such as "/chat") meet these faults, one each; None: no fault.

        Paths for reading are "/api/mcp", "/api/mcp/" with a method or a tool, "/oauth/token" and its like.
        """
        self._order(path=path, user_id=None, faults=faults)

    def script_for(self, *, user_id: str, faults: Iterable[Fault | None], path: str = CHAT) -> None:
        """Let the next requests of this user, or about this one, to `path` meet these faults, one each."""
        self._order(path=path, user_id=user_id, faults=faults)

    def always(self, path: str, fault: Fault | None) -> None:
        """Let every request to `path` that no scripted fault is left for meet `fault`; None ends that."""
        check_order(path, [fault])
        self._script.always(path=path, fault=fault)

    def take_fault(self, *, path: str, user_id: str | None) -> Fault | None:
        """Return the fault that this request meets, and strike it off the list."""
        return self._script.take(path=path, user_id=user_id)

    def expire_access_tokens(self) -> None:
        """End every access token before its time: the next call is 401, and a refresh helps."""
        self.authorization.expire_access_tokens()

    def revoke_sign_ins(self) -> None:
        """End every sign-in: the next call is 401, and the next refresh invalid_grant."""
        self.authorization.revoke_all()

    def set_ticket_status(self, status: TicketStatus, *, ticket_id: str | None = None) -> int:
        """Give this ticket a status, or every ticket that is neither resolved nor spam. Return how many changed.

        Raises ValueError when there is no such ticket.
        """
        if ticket_id is None:
            tickets = [ticket for ticket in self.tickets if ticket.status not in ENDED]
        elif (ticket := self._workspace.ticket(ticket_id)) is not None:
            tickets = [ticket]
        else:
            raise ValueError(f"there is no ticket {ticket_id!r}")
        for ticket in tickets:
            self._workspace.set_status(ticket, status)
        return len(tickets)

    def _order(self, *, path: str, user_id: str | None, faults: Iterable[Fault | None]) -> None:
        ordered = list(faults)
        check_order(path, ordered)
        self._script.add(path=path, user_id=user_id, faults=ordered)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many requests are over, by path and by status ("none": no answer was sent)."""
        by_path: dict[str, dict[str, int]] = {}
        for (path, status), number in (self._journal.counts + self.read_journal.counts).items():
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
            "reading": self.reading.model_dump(mode="json"),
            "sign_ins": [
                {
                    "client_id": each.client_id,
                    "refreshes": len(each.refreshes),
                    "reuses": each.reuses,
                    "revoked": each.revoked,
                }
                for each in self.sign_ins
            ],
            **(
                {name: [dataclasses.asdict(item) for item in items] for name, items in collections.items()}
                if details
                else {}
            ),
        }
