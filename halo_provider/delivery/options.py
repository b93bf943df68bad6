"""How to send and deliver: chosen once, and carried through as one value."""

from dataclasses import dataclass, field
from typing import Literal

from halo_provider.delivery.refusals import Backoff
from halo_provider.ledger.rules import OnInDoubt

AskElse = Literal["hold", "resend"]
OnChange = Literal["skip", "fail", "follow_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """How requests are sent.

    `concurrency` (requests in flight) and `requests_per_second` are upper bounds; `max_attempts` is per request.
    """

    concurrency: int = 64
    requests_per_second: float | None = None
    max_attempts: int = 5
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOptions(SendOptions):
    """How rows are delivered.

    `batch_size` rows are claimed together. `on_in_doubt` says what happens to a row whose answer was lost: send it
    again (resend), never (hold), or look it up in Halo first (ask). Then "not there" counts `ask_after` seconds after
    the attempt's end, and `ask_else` is for rows about which no answer is to be had. `on_change` says what happens to a
    delivered row whose content is another one now: leave it (skip), leave it and report an error (fail), or send the
    new content into the session it has (follow_up), once per change. With `own_session_ids` a row's session has an id
    made of its key instead of one that Halo makes, so that whoever sends the row again sends it into that session.
    """

    batch_size: int = 500
    on_in_doubt: OnInDoubt = "resend"
    ask_after: float = 60.0
    ask_else: AskElse = "hold"
    on_change: OnChange = "skip"
    own_session_ids: bool = False
