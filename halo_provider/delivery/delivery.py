"""deliver(): claims, sends, retries, paces, commits, and accounts for every row it read.

One source thread reads and renders, one ledger thread claims and commits, and the loop's workers send. A submission is
sent only after its intent is committed; its outcome is committed with those of its neighbours, at most
`COMMIT_INTERVAL` or `COMMIT_SIZE` later. A user's submissions go one after the other, in the order of the source, and
none of them goes where an earlier one is still to come.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic_core import to_json

from halo_provider.client.client import HaloClient
from halo_provider.delivery.pace import Backoff, Pacer
from halo_provider.delivery.prepare import PreparedRow, Reader, candidate, candidate_of, next_change
from halo_provider.delivery.report import HOLDS_BACK, DeliveryReport, Outcome
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloCallError,
    HaloConnectionError,
    HaloError,
    HaloRateLimitError,
    HaloResponseError,
    LedgerError,
    RowError,
    RowsChangedError,
    Verdict,
)
from halo_provider.ledger import (
    MAX_RESPONSE,
    Candidate,
    Change,
    Claim,
    ClaimResult,
    Commit,
    LeaseHolder,
    OnInDoubt,
    Settlement,
)
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.models import ChatAnswer
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import RenderedSubmission, Submission

COMMIT_INTERVAL = 0.1  # seconds an outcome may wait for company before it is committed
COMMIT_SIZE = 200  # outcomes that no longer wait for company
CLAIM_WAIT = 600.0  # seconds to wait for rows that another run holds
CLAIM_POLL = 1.0  # seconds between looks at them
MAX_DEFERRED = 5_000  # rows that may wait for another run, so that memory stays flat
LIVENESS_POLL = 0.5  # seconds between looks at whether this process may still send
LEASE_MARGIN = 2.0  # seconds before the end of the claims in which nothing more is sent
LEDGER_TIMEOUT = 30.0  # seconds in which outcomes are offered again to a ledger that went away
LEDGER_POLL = 0.5  # seconds between the offers
GARBAGE_THRESHOLD = 50_000  # objects more than before that set off the search for cycles; Python's own is 700
MAX_GIVEN_UP = 50  # rows given up one after the other before the run itself gives up

OnChange = Literal["skip", "fail", "follow_up"]


async def deliver(
    source: Source,
    *,
    submission: Submission,
    client: HaloClient,
    lease_holder: LeaseHolder,
    batch_size: int = 500,
    concurrency: int = 64,
    requests_per_second: float | None = None,
    max_attempts: int = 5,
    on_in_doubt: OnInDoubt = "resend",
    on_change: OnChange = "skip",
    backoff: Backoff | None = None,
    stop: Stop | None = None,
    alive: Callable[[], bool] = lambda: True,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    on_attempt: Callable[[float, HaloCallError | None], None] = lambda _seconds, _error: None,
) -> DeliveryReport:
    """Deliver the source's rows and account for every one of them.

    Never raises for what rows, Halo, the source or the ledger do: `DeliveryReport.error` then holds the typed error,
    and the counts balance. `alive` tells whether this process may still send; `on_outcome` is called on the loop for
    every row, once its status is committed, `on_attempt` after every request, with its seconds and its error.
    `requests_per_second` and `concurrency` are upper bounds. `on_change` decides about delivered rows whose content is
    another one now: leave them (skip), leave them and report an error (fail), or send the new content into the session
    they have (follow_up), once per change.
    """
    delivery = _Delivery(
        reader=Reader(source, submission, batch_size=batch_size),
        client=client,
        lease_holder=lease_holder,
        concurrency=concurrency,
        requests_per_second=requests_per_second,
        max_attempts=max_attempts,
        on_in_doubt=on_in_doubt,
        on_change=on_change,
        submission=submission,
        backoff=backoff or Backoff(),
        stop=stop or Stop(),
        alive=alive,
        on_outcome=on_outcome,
        on_attempt=on_attempt,
    )
    return await delivery.run()


@dataclass(slots=True, eq=False)
class _Work:
    """One submission on its way. `claimed` is False while another run holds it; `doubtful` once Halo may have it."""

    row: Row
    submission: RenderedSubmission
    claimed: bool = False
    doubtful: bool = False
    settled: bool = False
    attempts: int = 0
    change: Change | None = None

    @property
    def row_key(self) -> str:
        return self.submission.row_key

    @property
    def ledger_key(self) -> str:
        """Its key in the ledger, where a follow-up has one of its own."""
        return self.change.ledger_key if self.change else self.row_key

    def candidate(self) -> Candidate:
        return candidate(self.submission, self.change)

    @property
    def user_id(self) -> str | None:
        return self.submission.user_id

    @property
    def resting_status(self) -> LedgerStatus:
        """What it is between attempts, and when it is given back."""
        return LedgerStatus.IN_DOUBT if self.doubtful else LedgerStatus.PENDING

    @property
    def resting_row_status(self) -> RowStatus:
        """How it ends when it is given back: what Halo may have is in doubt, whenever it was sent."""
        return RowStatus.IN_DOUBT if self.doubtful else RowStatus.NOT_ATTEMPTED

    def outcome(
        self, status: RowStatus, reason: str | None = None, *, detail: str | None = None, session_id: str | None = None
    ) -> Outcome:
        return Outcome(
            row=self.row,
            row_key=self.row_key,
            user_id=self.user_id,
            status=status,
            session_id=session_id,
            attempts=self.attempts,
            error=RowError(reason, detail=detail) if reason else None,
        )


class UserQueues:
    """Who may go: at most one submission of a user at a time, in the order they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Work]] = {}
        self._blocked: set[str] = set()

    def is_blocked(self, work: _Work) -> bool:
        """Whether an earlier submission of the user is still to come, so that this one has to wait for another run."""
        return work.user_id in self._blocked

    def block(self, user_id: str | None) -> None:
        """Hold back everything of this user that has not gone yet."""
        if user_id is not None:
            self._blocked.add(user_id)

    def enter(self, work: _Work) -> bool:
        """Whether it may go now; if not, `leave` gives it back in its turn."""
        if work.user_id is None:
            return True
        lane = self._waiting.get(work.user_id)
        if lane is None:
            self._waiting[work.user_id] = deque()
            return True
        lane.append(work)
        return False

    def leave(self, work: _Work) -> list[_Work]:
        """What may go now that this one has gone: the user's next, or all that are to be given back if blocked."""
        if work.user_id is None:
            return []
        lane = self._waiting[work.user_id]
        if lane and work.user_id not in self._blocked:
            return [lane.popleft()]
        del self._waiting[work.user_id]
        return list(lane)


class _Committer:
    """Group commit: the intents and settlements of all workers in few transactions, on the ledger's thread."""

    def __init__(
        self,
        lease_holder: LeaseHolder,
        *,
        thread: ThreadPoolExecutor,
        stop: Stop,
        on_committed: Callable[[_Work, Outcome], None],
    ) -> None:
        self._lease_holder = lease_holder
        self._thread = thread
        self._stop = stop
        self._on_committed = on_committed
        self._intents: dict[str, asyncio.Future[bool]] = {}
        self._settlements: list[tuple[Settlement, _Work, Outcome | None]] = []
        self._wanted = asyncio.Event()
        self._urgent = asyncio.Event()

    async def intend(self, work: _Work) -> bool:
        """Wait until the attempt's intent is committed; False where the row is lost, or the ledger."""
        committed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._intents[work.ledger_key] = committed
        self._wanted.set()
        self._urgent.set()
        return await committed

    def settle(self, settlement: Settlement, work: _Work, outcome: Outcome | None) -> None:
        """Take a settlement into the next transaction; the outcome counts when it is committed."""
        self._settlements.append((settlement, work, outcome))
        self._wanted.set()
        if len(self._settlements) >= COMMIT_SIZE:
            self._urgent.set()

    async def run(self) -> None:
        """Commit what comes, until cancelled."""
        while True:
            await self._wanted.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(COMMIT_INTERVAL):
                    await self._urgent.wait()
            await self.flush()

    async def flush(self) -> None:
        """Commit what there is."""
        intents, self._intents = self._intents, {}
        settlements = self._settlements.copy()
        self._wanted.clear()
        self._urgent.clear()
        if not intents and not settlements:
            return
        commit = await self._commit([settlement for settlement, _, _ in settlements], list(intents))
        del self._settlements[: len(settlements)]
        for row_key, committed in intents.items():
            if not committed.done():
                committed.set_result(commit is not None and row_key in commit.intents)
        for settlement, work, outcome in settlements:
            if outcome is not None:
                kept = commit is not None and settlement.row_key not in commit.lost_settlements
                self._on_committed(work, outcome if kept else _unrecorded(outcome))

    async def _commit(self, settlements: Sequence[Settlement], intents: Sequence[str]) -> Commit | None:
        """Commit; where the ledger is away, send nothing more, but try to record what was sent for a while."""
        give_up_at = time.monotonic() + LEDGER_TIMEOUT
        while True:
            commit = partial(self._lease_holder.commit, settlements=settlements, intents=intents)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, commit)
            except LedgerError as error:
                self._stop.request(str(error), error=error)
            intents = ()
            if not settlements or self._stop.ends_at is not None or time.monotonic() >= give_up_at:
                return None
            await asyncio.sleep(LEDGER_POLL)


def _unrecorded(outcome: Outcome) -> Outcome:
    """What a status is worth that the ledger does not know: what Halo may have is in doubt."""
    if outcome.status not in {RowStatus.DELIVERED, RowStatus.REJECTED, RowStatus.IN_DOUBT}:
        return outcome
    reason = "it was sent, but the ledger could not record the answer, or another run had taken the row over"
    return outcome._replace(status=RowStatus.IN_DOUBT, error=RowError(reason))


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Look for reference cycles less often: rows bring none, and the search took a quarter of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(GARBAGE_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class _Delivery:
    """One run of deliver()."""

    def __init__(
        self,
        *,
        reader: Reader,
        client: HaloClient,
        lease_holder: LeaseHolder,
        concurrency: int,
        requests_per_second: float | None,
        max_attempts: int,
        on_in_doubt: OnInDoubt,
        on_change: OnChange,
        submission: Submission,
        backoff: Backoff,
        stop: Stop,
        alive: Callable[[], bool],
        on_outcome: Callable[[Outcome], None],
        on_attempt: Callable[[float, HaloCallError | None], None],
    ) -> None:
        self._reader = reader
        self._client = client
        self._lease_holder = lease_holder
        self._concurrency = concurrency
        self._window = max(2 * reader.batch_size, 4 * concurrency)
        self._max_attempts = max_attempts
        self._on_in_doubt: OnInDoubt = on_in_doubt
        self._on_change = on_change
        self._submission = submission
        self._backoff = backoff
        self._stop = stop
        self._alive = alive
        self._on_outcome = on_outcome
        self._on_attempt = on_attempt
        self._report = DeliveryReport()
        self._source_thread = ThreadPoolExecutor(1, thread_name_prefix="halo-source")
        self._ledger_thread = ThreadPoolExecutor(1, thread_name_prefix="halo-ledger")
        self._pacer = Pacer(concurrency=concurrency, requests_per_second=requests_per_second, stop=stop)
        self._committer = _Committer(lease_holder, thread=self._ledger_thread, stop=stop, on_committed=self._close)
        self._user_queues = UserQueues()
        self._ready: asyncio.Queue[_Work | None] = asyncio.Queue()
        self._open: dict[str, _Work] = {}  # claimed, and not yet committed as settled
        self._deferred: list[_Work] = []  # may go, but another run holds them
        self._looked_at_deferred = time.monotonic()
        self._given_up_in_a_row = 0
        self._moved = asyncio.Event()

    async def run(self) -> DeliveryReport:
        started = time.monotonic()
        with self._source_thread, self._ledger_thread, _rare_garbage_collection():
            try:
                await self._run()
            finally:
                await asyncio.shield(self._settle_what_is_left())
        self._report.seconds = time.monotonic() - started
        self._report.refused = self._pacer.refused
        self._report.stopped = self._stop.reason
        self._report.error = self._stop.error
        return self._report

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(task) for task in (self._committer.run(), self._renew(), self._watch())]
            workers = [group.create_task(self._send_always()) for _ in range(self._concurrency)]
            await self._feed()
            for _ in workers:
                self._ready.put_nowait(None)
            await asyncio.wait(workers)
            for task in background:
                task.cancel()

    async def _settle_what_is_left(self) -> None:
        """Where the run was cut off: what was being sent is in doubt, the rest is given back."""
        for work in list(self._open.values()):
            if not work.settled:
                self._settle(work, work.resting_row_status, "the run was cut off", entered=False)
        await self._committer.flush()
        await asyncio.get_running_loop().run_in_executor(self._source_thread, self._reader.close)

    async def _feed(self) -> None:
        """Read and claim as fast as rows are sent; then see the rows through that are under way, or another run's."""
        exhausted = False
        last_progress = time.monotonic()
        while not self._stop.requested and not (exhausted and not self._open and not self._deferred):
            room = len(self._open) + self._reader.batch_size <= self._window and len(self._deferred) < MAX_DEFERRED
            if room and not exhausted:
                prepared_rows = await self._read()
                exhausted = not prepared_rows
                await self._claim(prepared_rows)
            else:
                await self._movement()
                await self._claim([])
            if self._open or self._moved.is_set() or (room and not exhausted):
                last_progress = time.monotonic()
            elif time.monotonic() - last_progress > CLAIM_WAIT:
                break
        while self._open or self._deferred:
            deferred, self._deferred = self._deferred, []
            for work in deferred:
                self._end(work, RowStatus.NOT_ATTEMPTED, "another run holds the row at this moment")
            if self._open:
                await self._movement()

    async def _movement(self) -> None:
        """Wait until something ends, or it is time to look at another run's rows again."""
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLAIM_POLL):
                await self._moved.wait()

    async def _read(self) -> list[PreparedRow]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._source_thread, self._reader.next_batch)
        except HaloError as error:
            self._stop.request(str(error), error=error)
            return []

    async def _claim(self, prepared_rows: Sequence[PreparedRow]) -> None:
        """Claim what was read, and what another run held when last looked at; everything gets its place."""
        again: list[_Work] = []
        if self._deferred and time.monotonic() - self._looked_at_deferred >= CLAIM_POLL:
            self._looked_at_deferred = time.monotonic()
            again, self._deferred = self._deferred, []
        if not again and not prepared_rows:
            return
        self._report.read += len(prepared_rows)
        try:
            held_back = await self._follow(prepared_rows)
            asking = [
                prepared for prepared in prepared_rows if prepared.is_candidate and prepared.row_key not in held_back
            ]
            claims = await self._in_ledger_thread(
                self._lease_holder.claim, [work.candidate() for work in again] + [candidate_of(one) for one in asking]
            )
            changed = self._changes(asking, claims)
            claims_of_changes = await self._in_ledger_thread(
                self._lease_holder.claim, [work.candidate() for work in changed.values()]
            )
        except HaloError as error:
            self._stop.request(str(error), error=error)
            held_back, claims, changed, claims_of_changes = {}, {}, {}, {}
        for work in again:
            if not self._ended_by(claims.get(work.ledger_key), work):
                self._go(work)
        for prepared in prepared_rows:
            if prepared.row_key in changed and prepared.is_candidate:
                work = changed[prepared.row_key]
                self._start(work, claims_of_changes.get(work.ledger_key))
            elif prepared.row_key in held_back and prepared.submission is not None:
                work = _Work(prepared.row, prepared.submission)
                self._end(work, RowStatus.NOT_ATTEMPTED, held_back[prepared.row_key], entered=False)
            else:
                self._place(prepared, claims)

    async def _in_ledger_thread(
        self, claim: Callable[..., dict[str, Claim]], candidates: Sequence[Candidate]
    ) -> dict[str, Claim]:
        if not candidates:
            return {}
        return await asyncio.get_running_loop().run_in_executor(
            self._ledger_thread, lambda: claim(candidates, on_in_doubt=self._on_in_doubt)
        )

    async def _follow(self, prepared_rows: Sequence[PreparedRow]) -> dict[str | None, str]:
        """Point follow-ups into the sessions they belong to; name those that have to wait, with the reason."""
        if self._submission.follows is None:
            return {}
        name, columns = self._submission.follows
        candidates = [candidate_of(prepared) for prepared in prepared_rows if prepared.is_candidate]
        results = await self._in_ledger_thread(self._lease_holder.preview, candidates)
        keys = sorted({one.submission.follows_key or "" for one in prepared_rows if one.submission})
        known = await asyncio.get_running_loop().run_in_executor(
            self._ledger_thread, lambda: self._lease_holder.followed(name, keys)
        )
        waiting: dict[str | None, str] = {}
        for prepared in prepared_rows:
            if prepared.submission is None or results[prepared.submission.row_key].result is ClaimResult.DELIVERED:
                continue
            followed = known.get(prepared.submission.follows_key or "")
            if followed is not None and followed.status is LedgerStatus.DELIVERED and followed.session_id:
                prepared.submission = prepared.submission.into_session(followed.session_id)
            elif followed is not None and followed.status is not LedgerStatus.REJECTED:
                waiting[prepared.row_key] = f"the {name} it follows is not delivered yet"
            elif self._submission.follows_missing == "follow_up":
                waiting[prepared.row_key] = f"there is no delivered {name} that it could follow"
            elif self._submission.follows_missing == "reject":
                prepared.submission = None
                prepared.error = RowError(f"there is no delivered {name} that it could follow", column=columns[0])
        return waiting

    def _changes(self, prepared_rows: Sequence[PreparedRow], claims: Mapping[str, Claim]) -> dict[str | None, _Work]:
        """Count the delivered rows that have changed since, and make follow-ups of them where that is wanted."""
        follow_ups: dict[str | None, _Work] = {}
        for prepared in prepared_rows:
            claim = claims.get(prepared.row_key or "")
            if claim is None or not claim.has_changed or not prepared.submission:
                continue
            self._report.changed += 1
            if self._on_change == "fail":
                first = self._report.changed_error.first if self._report.changed_error else str(prepared.row_key)
                self._report.changed_error = RowsChangedError(changed=self._report.changed, first=first)
            if self._on_change == "follow_up" and claim.session_id:
                submission = prepared.submission.into_session(claim.session_id)
                follow_ups[prepared.row_key] = _Work(prepared.row, submission, change=next_change(submission, claim))
        return follow_ups

    def _start(self, work: _Work, claim: Claim | None) -> None:
        """Give a submission its place: it has ended already, it may go, or it waits behind its user's earlier ones."""
        if self._ended_by(claim, work, entered=False):
            return
        if self._user_queues.is_blocked(work):
            self._hold_back(work, entered=False)
        elif self._user_queues.enter(work):
            self._go(work)

    def _place(self, prepared: PreparedRow, claims: Mapping[str, Claim]) -> None:
        row, row_key, submission = prepared.row, prepared.row_key, prepared.submission
        claim = claims.get(row_key) if row_key and prepared.is_candidate else None
        if claim is not None and claim.result is ClaimResult.DELIVERED:
            user_id = submission.user_id if submission else None
            status = RowStatus.ALREADY_DELIVERED
            self._count(Outcome(row=row, row_key=row_key, user_id=user_id, status=status, session_id=claim.session_id))
        elif submission is not None:
            self._start(_Work(row, submission), claim)
        else:
            status = RowStatus.DUPLICATE if prepared.duplicate else RowStatus.REJECTED
            self._count(Outcome(row=row, row_key=row_key, user_id=None, status=status, error=prepared.error))

    def _ended_by(self, claim: Claim | None, work: _Work, *, entered: bool = True) -> bool:
        """Whether the claim's answer is already the row's end in this run."""
        match claim:
            case None:
                self._end(work, RowStatus.NOT_ATTEMPTED, "the ledger could not be used", entered=entered)
            case Claim(result=ClaimResult.DELIVERED):
                self._end(work, RowStatus.ALREADY_DELIVERED, session_id=claim.session_id, entered=entered)
            case Claim(result=ClaimResult.REJECTED):
                reason = "rejected by an earlier run, and its content is the same"
                self._end(work, RowStatus.REJECTED, reason, detail=claim.error, entered=entered)
            case Claim(result=ClaimResult.IN_DOUBT):
                reason = "sent by an earlier run, answer unknown; held back (on_in_doubt='hold')"
                self._end(work, RowStatus.IN_DOUBT, reason, detail=claim.error, entered=entered)
            case Claim(result=ClaimResult.CLAIMED):
                work.claimed = True
                work.doubtful = claim.doubtful
                self._open[work.ledger_key] = work
                return False
            case _:
                return False
        return True

    def _go(self, work: _Work) -> None:
        if work.claimed:
            self._ready.put_nowait(work)
        else:
            self._deferred.append(work)

    def _leave(self, work: _Work, status: RowStatus) -> None:
        """Let the user's next submission go, or hold all of them back where this one may still be to come."""
        if status in HOLDS_BACK:
            self._user_queues.block(work.user_id)
        for waiting in self._user_queues.leave(work):
            if self._user_queues.is_blocked(waiting):
                self._hold_back(waiting, entered=False)
            else:
                self._go(waiting)

    def _hold_back(self, work: _Work, *, entered: bool) -> None:
        reason = self._stop.reason or "an earlier row of the same user is not delivered yet"
        if work.claimed:
            self._settle(work, work.resting_row_status, reason, entered=entered)
        else:
            self._end(work, RowStatus.NOT_ATTEMPTED, reason, entered=entered)

    async def _send_always(self) -> None:
        while (work := await self._ready.get()) is not None:
            await self._send(work)

    async def _send(self, work: _Work) -> None:
        """Attempt one submission until its status in this run is known."""
        failures = 0
        while True:
            started = await self._pacer.acquire()
            try:
                if not await self._may_send(work):
                    return
                began = time.monotonic()
                error = await self._attempt(work)
                self._on_attempt(time.monotonic() - began, error)
            finally:
                self._pacer.release()
            if error is None:
                self._pacer.succeeded()
                self._given_up_in_a_row = 0
                return
            self._pacer.failed(error, started=started)
            failures += not isinstance(error, HaloRateLimitError)
            if self._conclude(work, error, failures=failures):
                return
            if failures:
                await self._stop.sleep(self._backoff.delay(failures))

    async def _may_send(self, work: _Work) -> bool:
        """Commit the intent, and make sure of being the one who may send; otherwise the submission ends here."""
        if self._stop.requested:
            self._hold_back(work, entered=True)
            return False
        if not await self._committer.intend(work):
            del self._open[work.ledger_key]
            reason = self._stop.reason or "another run has taken the row over"
            self._end(work, work.resting_row_status, reason)
            return False
        if not self._alive():
            self._stop.request("the task's supervisor is gone, and another try may already be running")
        elif self._lease_holder.lease_left < LEASE_MARGIN:
            self._stop.request("the claims could not be renewed in time")
        if self._stop.requested:
            self._hold_back(work, entered=True)
            return False
        return True

    async def _attempt(self, work: _Work) -> HaloCallError | None:
        work.attempts += 1
        self._report.requests += 1
        try:
            async with self._stop.limit():
                answer = await self._client.chat(work.submission.request)
        except HaloCallError as error:
            return error
        except TimeoutError:
            return HaloConnectionError("/chat", sent=True, reason="the run ended before the answer came")
        except BaseException:
            work.doubtful = True
            raise
        self._settle(work, RowStatus.DELIVERED, answer=answer)
        return None

    def _conclude(self, work: _Work, error: HaloCallError, *, failures: int) -> bool:
        """Record what an unsuccessful attempt means; whether it was the last one of this run."""
        if error.verdict is Verdict.REJECTED:
            self._given_up_in_a_row = 0
            self._settle(work, RowStatus.REJECTED, error.brief, detail=str(error))
            return True
        work.doubtful = work.doubtful or error.verdict is Verdict.IN_DOUBT
        if error.verdict is Verdict.FORBIDDEN:
            self._stop.request(str(error), error=error)
        elif failures >= self._max_attempts or (work.doubtful and self._on_in_doubt == "hold"):
            status = RowStatus.IN_DOUBT if work.doubtful else RowStatus.FAILED
            self._settle(work, status, error.brief, detail=str(error), reply=_reply(error))
            self._gave_up(work, error)
            return True
        if self._stop.requested:
            self._settle(work, work.resting_row_status, error.brief, detail=str(error), reply=_reply(error))
            return True
        resting = Settlement(row_key=work.ledger_key, status=work.resting_status, final=False, error=str(error))
        self._committer.settle(resting, work, None)
        return False

    def _gave_up(self, work: _Work, error: HaloCallError) -> None:
        self._report.first_given_up = self._report.first_given_up or f"row {work.row.number}: {error.brief}"
        self._given_up_in_a_row += 1
        if self._given_up_in_a_row >= MAX_GIVEN_UP:
            self._stop.request(f"{MAX_GIVEN_UP} rows in a row were given up: {error.brief}", error=error)

    def _settle(
        self,
        work: _Work,
        status: RowStatus,
        reason: str | None = None,
        *,
        detail: str | None = None,
        answer: ChatAnswer | None = None,
        reply: str | None = None,
        entered: bool = True,
    ) -> None:
        """End a claimed submission: it counts once the ledger has it."""
        work.settled = True
        settlement = Settlement(
            row_key=work.ledger_key,
            status=work.resting_status if status is RowStatus.NOT_ATTEMPTED else LedgerStatus(status.value),
            session_id=answer.session_id if answer else None,
            agent_id=answer.agent_id if answer else None,
            error=detail or reason,
            reply=_text_of(answer) if answer else reply,
            response=_undocumented(answer) if answer else None,
            change=work.change,
        )
        outcome = work.outcome(status, reason, detail=detail, session_id=settlement.session_id)
        self._committer.settle(settlement, work, outcome)
        if entered:
            self._leave(work, status)

    def _end(
        self,
        work: _Work,
        status: RowStatus,
        reason: str | None = None,
        *,
        detail: str | None = None,
        session_id: str | None = None,
        entered: bool = True,
    ) -> None:
        """End a submission that this run holds no claim on."""
        self._count(work.outcome(status, reason, detail=detail, session_id=session_id))
        if entered:
            self._leave(work, status)
        elif status in HOLDS_BACK:
            self._user_queues.block(work.user_id)

    def _close(self, work: _Work, outcome: Outcome) -> None:
        del self._open[work.ledger_key]
        self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self._report.counts[outcome.status] += 1
        self._moved.set()
        self._on_outcome(outcome)

    async def _renew(self) -> None:
        """Keep the claims alive."""
        while True:
            await asyncio.sleep(self._lease_holder.lease / 3)
            try:
                await asyncio.get_running_loop().run_in_executor(self._ledger_thread, self._lease_holder.renew)
            except LedgerError as error:
                self._stop.request(str(error), error=error)

    async def _watch(self) -> None:
        """Notice the supervisor's death between attempts."""
        while True:
            await asyncio.sleep(LIVENESS_POLL)
            if not self._alive():
                self._stop.request("the task's supervisor is gone, and another try may already be running")


def _text_of(answer: ChatAnswer) -> str | None:
    """The agent's words, whatever their shape: only the session is needed to call a row delivered."""
    return answer.text if answer.text is None or isinstance(answer.text, str) else to_json(answer.text).decode()


def _reply(error: HaloCallError) -> str | None:
    return error.reply if isinstance(error, HaloResponseError) else None


def _undocumented(answer: ChatAnswer) -> dict[str, Any] | None:
    """The answer's unknown fields, unless they are too large to keep."""
    extra = answer.model_extra or None
    return extra if extra and len(to_json(extra)) <= MAX_RESPONSE else None
