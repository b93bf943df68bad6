"""A local Halo for tests, the demo and DAG development: strict about Halo's documentation, scriptable, in memory.

It shares no code with the client, so that it catches the client's mistakes::

    simulator = Simulator()
    simulator.script(path="/chat", faults=[Fault.rate_limited(retry_after=1), None, Fault.drop_after_acceptance()])
    with serving(simulator) as url:
        ...  # Halo's SDK is at f"{url}/api/sdk", the inbox for people at url
    assert [chat.user_id for chat in simulator.chats] == [...]

What it refuses or slows down when it is asked too much is a limit (``halo_provider.simulator.limits``)::

    simulator = Simulator(chat_latency=(0.5, 0.5), limit=TokenBucket(rate=20, burst=5))
    simulator.limit = ConcurrencyLimit(requests=8, retry_after=1)  # from the next request on
    simulator.limit = None

Halo's MCP server, with its sign-in, reads the same workspace at ``f"{url}/api/mcp"``::

    simulator = Simulator(reading=Reading(variant="paged", lag=(0, 10), consent="approved"))
    simulator.always("/api/mcp/data_search_transcripts", Fault.wrong_result("another_user"))
    simulator.set_ticket_status("resolved", ticket_id="ticket_1")
    simulator.advance(3_600)  # access tokens expire

What Halo's documentation leaves open about its answers (``halo_provider.simulator.answers``)::

    simulator = Simulator(accept_unknown_sessions=True, answers=Answers(name_tickets=True, rate_limit=600))
"""

from halo_provider.simulator.answers import Answers
from halo_provider.simulator.api import EXAMPLE_WIDGET_KEY, Simulator
from halo_provider.simulator.faults import Fault, WrongResult
from halo_provider.simulator.journal import RequestRecord
from halo_provider.simulator.limits import (
    AllOf,
    Arrival,
    ChangingLimit,
    ConcurrencyLimit,
    FixedWindow,
    Limit,
    Limiter,
    Refusal,
    RefusedUsers,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
    WaitingQueue,
)
from halo_provider.simulator.oauth import SignIn
from halo_provider.simulator.reading import Reading
from halo_provider.simulator.server import serving
from halo_provider.simulator.workspace import Chat, Company, Session, Ticket, User

__all__ = [
    "EXAMPLE_WIDGET_KEY",
    "AllOf",
    "Answers",
    "Arrival",
    "ChangingLimit",
    "Chat",
    "Company",
    "ConcurrencyLimit",
    "Fault",
    "FixedWindow",
    "Limit",
    "Limiter",
    "Reading",
    "Refusal",
    "RefusedUsers",
    "RequestRecord",
    "Session",
    "SignIn",
    "Simulator",
    "Slowdown",
    "SporadicRefusals",
    "Step",
    "Ticket",
    "TokenBucket",
    "User",
    "WaitingQueue",
    "WrongResult",
    "serving",
]
