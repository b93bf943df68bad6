"""The endpoints of Halo's SDK: what each accepts, and what it does to the workspace."""

from collections.abc import Callable

from halo_provider.simulator import rules
from halo_provider.simulator.rules import Json
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


def known(path: str) -> str:
    """Return `path`, or raise ValueError when the SDK has no such endpoint."""
    if path not in CHECKS:
        raise ValueError(f"no SDK endpoint {path!r}; there are {', '.join(CHECKS)}")
    return path
