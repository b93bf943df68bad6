"""The endpoints of Halo's SDK: what each accepts, and what it does to the workspace; and those for reading."""

from collections.abc import Callable, Iterable

from halo_provider.simulator import rules
from halo_provider.simulator.faults import MCP_PATH, Fault, FaultKind
from halo_provider.simulator.rules import Json
from halo_provider.simulator.variants import TOOLS
from halo_provider.simulator.workspace import Workspace

UPDATE_USERS = "/users/update"
CHAT = "/chat"

CHECKS: dict[str, Callable[[Json], None]] = {
    "/users/identify": rules.IDENTIFY_USER,
    UPDATE_USERS: rules.check_update,
    "/companies/identify": rules.IDENTIFY_COMPANY,
    CHAT: rules.CHAT,
    "/tickets/create": rules.CREATE_TICKET,
    "/events": rules.EVENTS,
}
EFFECTS: dict[str, Callable[[Workspace, Json], Json]] = {
    "/users/identify": Workspace.identify_user,
    UPDATE_USERS: Workspace.update_users,
    "/companies/identify": Workspace.identify_company,
    CHAT: Workspace.chat,
    "/tickets/create": Workspace.create_ticket,
    "/events": Workspace.record_events,
}


REGISTER, AUTHORIZE, TOKEN, REVOKE = "/oauth/register", "/oauth/authorize", "/oauth/token", "/oauth/revoke"
METHODS = ("initialize", "ping", "tools/list")
READING = frozenset(
    {REGISTER, AUTHORIZE, TOKEN, REVOKE, MCP_PATH, *(f"{MCP_PATH}/{name}" for name in (*METHODS, *TOOLS))}
)


def check_order(path: str, faults: Iterable[Fault | None]) -> None:
    """Raise ValueError when there is no such endpoint, or when a fault cannot happen at it."""
    if path not in CHECKS and path not in READING:
        raise ValueError(f"no endpoint {path!r}; there are {', '.join([*CHECKS, *sorted(READING)])}")
    for fault in faults:
        if fault is None:
            continue
        if fault.kind is FaultKind.WRONG_RESULT and not path.startswith(MCP_PATH):
            raise ValueError(f"{path} has no results that could be wrong")
        if fault.kind is FaultKind.MISSING_SESSION_ID and path in READING:
            raise ValueError(f"{path} answers without session_id anyway")
