"""A local Halo for tests, the demo and DAG development: strict about Halo's documentation, scriptable, in memory.

It shares no code with the client, so that it catches the client's mistakes::

    simulator = Simulator()
    simulator.script(path="/chat", faults=[Fault.rate_limited(retry_after=1), None, Fault.drop_after_acceptance()])
    with serving(simulator) as url:
        ...  # Halo's SDK is at f"{url}/api/sdk", the inbox for people at url
    assert [chat.user_id for chat in simulator.chats] == [...]
"""

from halo_provider.simulator.api import EXAMPLE_WIDGET_KEY, Simulator
from halo_provider.simulator.faults import Fault
from halo_provider.simulator.journal import RequestRecord
from halo_provider.simulator.server import serving
from halo_provider.simulator.workspace import Chat, Company, Session, Ticket, User

__all__ = [
    "EXAMPLE_WIDGET_KEY",
    "Chat",
    "Company",
    "Fault",
    "RequestRecord",
    "Session",
    "Simulator",
    "Ticket",
    "User",
    "serving",
]
