"""What a soak does to Halo: every fault and every limit that the simulator has."""

import random
from typing import Any

from halo_provider.simulator.faults import Fault, FaultKind
from halo_provider.simulator.limits import (
    AllOf,
    ChangingLimit,
    ConcurrencyLimit,
    FixedWindow,
    Limit,
    RefusedUsers,
    Slowdown,
    SporadicRefusals,
    Step,
    TokenBucket,
    WaitingQueue,
)

# No status here says that Halo did not take what it took: nobody could keep a promise to such a server.
FAULTS: dict[FaultKind, tuple[Fault, ...]] = {
    FaultKind.RATE_LIMITED: (
        Fault.rate_limited(),
        Fault.rate_limited(retry_after=0.05),
        Fault.rate_limited(retry_after=1, as_http_date=True),
    ),
    FaultKind.STATUS: (
        Fault.status(500),
        Fault.status(500, accepted=True),
        Fault.status(502, accepted=True),
        Fault.status(504, accepted=True),
        Fault.status(503, headers={"Retry-After": "0.05"}),
        Fault.status(503, accepted=True),
        Fault.status(200, body={"text": "Thank you.", "session_id": None}, accepted=True),
        Fault.status(200, body="x" * 1_000_000, accepted=True),
    ),
    FaultKind.SLOW: (Fault.slow(0.5), Fault.slow(3.0)),
    FaultKind.DROP_BEFORE_ACCEPTANCE: (Fault.drop_before_acceptance(),),
    FaultKind.DROP_AFTER_ACCEPTANCE: (Fault.drop_after_acceptance(),),
    FaultKind.HALF_ANSWER: (Fault.half_answer(),),
    FaultKind.GARBAGE: (Fault.garbage(),),
    FaultKind.INVALID_JSON: (Fault.invalid_json(),),
    FaultKind.MISSING_SESSION_ID: (Fault.missing_session_id(),),
    FaultKind.SILENCE: (Fault.silence(accepted=True), Fault.silence(accepted=False)),
}
# These end a run, or a row for good: they come more seldom.
RARE_FAULTS = (
    Fault.status(401),
    Fault.status(403),
    Fault.status(400, body={"error": "message is not allowed"}),
    Fault.status(404),
    Fault.status(413),
    Fault.status(422),
    Fault.status(302, headers={"Location": "/elsewhere"}),
)
RARE = 0.03  # share of the faults

LIMITS: tuple[Limit | None, ...] = (
    None,
    TokenBucket(rate=80, burst=10, retry_after="exact"),
    ConcurrencyLimit(requests=10),
    FixedWindow(requests=40, seconds=0.5, retry_after="exact"),
    SporadicRefusals(share=0.1, status=503, retry_after=0.05),
    RefusedUsers(share=0.1, retry_after=0.1),
    Slowdown(capacity=12),
    WaitingQueue(capacity=12, length=6),
    AllOf(limits=(ConcurrencyLimit(requests=16), TokenBucket(rate=100))),
    ChangingLimit(steps=(Step(after=1.0, limit=TokenBucket(rate=40)), Step(after=4.0, limit=None))),
)


def any_fault(chance: random.Random) -> dict[str, Any]:
    """One fault, as the simulator takes it over HTTP: every kind is as likely as the others."""
    faults = RARE_FAULTS if chance.random() < RARE else FAULTS[chance.choice(list(FAULTS))]
    return chance.choice(faults).model_dump(mode="json", exclude_unset=True)
