"""One request under its fault: recorded, answered or left without an answer."""

from collections.abc import Callable

from starlette.types import Receive, Send

from halo_provider.simulator import wire
from halo_provider.simulator.faults import Fault, FaultKind
from halo_provider.simulator.journal import Journal, RequestRecord
from halo_provider.simulator.wire import Answer


async def exchange(
    record: RequestRecord,
    *,
    fault: Fault,
    journal: Journal,
    respond: Callable[[], tuple[Answer, float]],
    receive: Receive,
    send: Send,
) -> None:
    """Let a request meet its fault, record it and answer.

    `respond` accepts or refuses the request, and returns Halo's answer and the seconds until it leaves.
    """
    journal.begin(record)
    try:
        if fault.precedes_acceptance:
            answer = _answer_of(fault)
        else:
            answer, seconds = respond()
            answer = _altered(answer, fault=fault)
            seconds += fault.seconds
            if seconds and await wire.client_leaves(receive, within=seconds):
                return
        match fault.kind:
            case FaultKind.DROP_BEFORE_ACCEPTANCE | FaultKind.DROP_AFTER_ACCEPTANCE:
                journal.end(record, status=None)
                wire.cut(send)
            case FaultKind.GARBAGE:
                journal.end(record, status=None)
                wire.send_garbage(send)
            case FaultKind.HALF_ANSWER:
                journal.end(record, status=answer.status)
                await wire.send_half(answer, send)
            case FaultKind.SILENCE:
                pass
            case _:
                journal.end(record, status=answer.status)
                await wire.send_answer(answer, send)
                return
        # An application that returns without an answer would make uvicorn send one.
        await wire.client_leaves(receive, within=None)
    finally:
        journal.end(record, status=None)


def _answer_of(fault: Fault) -> Answer:
    """Return the answer that a fault gives instead of Halo's."""
    if fault.body is None:
        return wire.error(fault.response_status(), headers=fault.response_headers())
    return Answer(fault.response_status(), fault.body, fault.response_headers())


def _altered(answer: Answer, *, fault: Fault) -> Answer:
    """Return Halo's answer as the fault leaves it."""
    match fault.kind:
        case FaultKind.STATUS:
            return _answer_of(fault)
        case FaultKind.INVALID_JSON:
            return Answer(200, '{"text": "Thank you", ', {"Content-Type": "application/json"})
        case FaultKind.MISSING_SESSION_ID:
            return Answer(answer.status, {key: answer.body[key] for key in answer.body if key != "session_id"})
        case _:
            return answer
