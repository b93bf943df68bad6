"""deliver(): claims, sends, retries, paces, commits, and accounts for every row it read.

One source thread reads and prepares rows, one ledger thread claims and commits, and the loop's workers send. A
submission is sent only after its intent is committed; its outcome is committed with those of its neighbours, at most
`COMMIT_INTERVAL` or `COMMIT_SIZE` later. A user's submissions are sent one after the other, in the order of the source;
where one of them was not delivered, the later ones are not sent in this run.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from pydantic_core import to_json

from halo_provider.client.client import HaloClient
from halo_provider.delivery.ask import ConversationReader
from halo_provider.delivery.breaker import Breaker
from halo_provider.delivery.commit import Committer
from halo_provider.delivery.doubts import NOT_THERE, Doubts
from halo_provider.delivery.lookup import Look, Sight
from halo_provider.delivery.observer import DeliveryObserver, Observers
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.delivery.place import End, PlacedRow, Placer, Send, Wait, candidate, place_of
from halo_provider.delivery.prepare import PreparedRow, Reader
from halo_provider.delivery.queues import HOLDS_BACK, SendQueue, UserQueues, Work
from halo_provider.delivery.report import DeliveryReport, Outcome
from halo_provider.delivery.send import Sender, Sending
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloCallError,
    HaloError,
    HaloRateLimitError,
    HaloResponseError,
    LedgerError,
    RowsChangedError,
    Verdict,
)
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.rules import Settlement, session_id_fits
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.models import ChatAnswer
from halo_provider.sources.rows import Source
from halo_provider.submission import Submission

START_INTERVAL = 0.0006  # seconds between the first requests: answers that come all at once wait for each other
CLAIM_WAIT = 600.0  # seconds to wait for rows that another run holds
CLAIM_POLL = 1.0  # seconds between attempts to claim them
MAX_DEFERRED = 5_000  # rows that may wait for another run, or for their next attempt, so that memory stays flat
MAX_LOOKED_UP = 1_000  # rows that are looked up while others are sent: where there are more, Halo itself is ill
LAST_COMMIT_TIME = 1.0  # seconds after the end of a stop's grace in which the ledger may still answer
LIVENESS_POLL = 0.5  # seconds between checks whether this process may still send
LEASE_MARGIN = 2.0  # seconds before the end of the lease in which nothing more is sent
GARBAGE_THRESHOLD = 50_000  # objects more than before that start the search for cycles; Python's own is 700
MAX_SHOWN = 100  # characters of a session id that is not usable


async def deliver(
    source: Source,
    *,
    submission: Submission,
    client: HaloClient,
    lease_holder: LeaseHolder,
    options: DeliveryOptions | None = None,
    observer: DeliveryObserver | None = None,
    stop: Stop | None = None,
    alive: Callable[[], bool] = lambda: True,
    reader: ConversationReader | None = None,
) -> DeliveryReport:
    """Deliver the source's rows and account for every one of them.

    Never raises for what rows, Halo, the source or the ledger do: `DeliveryReport.error` then holds the typed error,
    and the counts balance. `alive` tells whether this process may still send. The observer is told of every row once
    the ledger has its status, and of every request. `reader` is asked about rows in doubt where `on_in_doubt` is ask.
    """
    delivery = _Delivery(
        source,
        submission=submission,
        client=client,
        lease_holder=lease_holder,
        options=options or DeliveryOptions(),
        observers=Observers(observer) if observer else Observers(),
        stop=stop or Stop(),
        alive=alive,
        reader=reader,
    )
    return await delivery.run()


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Search for reference cycles less often: rows make none, and the search took a quarter of the time."""
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
        source: Source,
        *,
        submission: Submission,
        client: HaloClient,
        lease_holder: LeaseHolder,
        options: DeliveryOptions,
        observers: Observers,
        stop: Stop,
        alive: Callable[[], bool],
        reader: ConversationReader | None,
    ) -> None:
        self._source = source
        self._client = client
        self._lease_holder = lease_holder
        self._options = options
        self._observers = observers
        self._stop = stop
        self._alive = alive
        self._reader = Reader(
            source, submission, batch_size=options.batch_size, follows_up=options.on_change == "follow_up"
        )
        self._doubts = Doubts(options, reader=reader, lease_holder=lease_holder, stop=stop)
        self._placer = Placer(
            lease_holder,
            submission=submission,
            on_in_doubt="ask" if self._doubts.asks else self._doubts.otherwise,
            on_change=options.on_change,
            own_session_ids=options.own_session_ids,
            claims=True,
        )
        self._report = DeliveryReport()
        self._source_thread = ThreadPoolExecutor(1, thread_name_prefix="halo-source")
        self._ledger_thread = ThreadPoolExecutor(1, thread_name_prefix="halo-ledger")
        self._sender = Sender(options, stop=stop, on_request=observers.request_ended)
        self._committer = Committer(lease_holder, thread=self._ledger_thread, stop=stop, on_committed=self._close)
        self._user_queues = UserQueues()
        self._ready = SendQueue()
        self._open: dict[str, Work] = {}  # claimed, and not yet committed as settled
        self._max_open = max(2 * options.batch_size, 4 * options.concurrency)
        self._put_off = 0  # open, and waiting for the next attempt: these keep no others from being read
        self._unclaimed: set[Work] = set()  # in a queue, and not claimed by this run
        self._fresh: list[Work] = []  # of these the first of their queues, to be claimed at once
        self._deferred: list[Work] = []  # of these the first of their queues, which another run held when last asked
        self._asked_for_deferred = time.monotonic()
        self._breaker = Breaker(stop, own_session_ids=options.own_session_ids)
        self._moved = asyncio.Event()

    async def run(self) -> DeliveryReport:
        started = time.monotonic()
        with self._source_thread, self._ledger_thread, _rare_garbage_collection():
            try:
                await self._run()
            finally:
                self._doubts.close()
                await _uncancelled(self._settle_what_is_left())
        self._report.seconds = time.monotonic() - started
        self._report.requests = self._sender.requests
        self._report.refused = self._sender.pacer.refused
        self._report.pace = self._sender.pacer.pace(of_all=True)
        self._observers.paced(self._report.pace)
        self._report.stopped = self._stop.reason
        self._report.error = self._stop.error
        self._report.observer_error = self._observers.error
        return self._report

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            background = [group.create_task(task) for task in (self._committer.run(), self._renew(), self._watch())]
            now = asyncio.get_running_loop().time()
            workers = [
                group.create_task(self._send_always(group, not_before=now + number * START_INTERVAL))
                for number in range(self._options.concurrency)
            ]
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
                self._settle(work, work.resting_status, "the run was cut off")
        await self._committer.flush()
        await asyncio.get_running_loop().run_in_executor(self._source_thread, self._reader.close)

    async def _feed(self) -> None:
        """Read and claim as fast as rows are sent; then wait for those under way, and for those of another run."""
        batch_size = self._options.batch_size
        exhausted = False
        last_progress = time.monotonic()
        while not self._stop.requested and not (exhausted and not self._open and not self._unclaimed):
            # These must not hold up others, unless nothing but doubt comes of sending.
            looked_up = 0 if self._breaker.doubts_sending else min(self._doubts.waiting, MAX_LOOKED_UP)
            aside = self._put_off + looked_up
            room = (
                len(self._open) - aside + batch_size <= self._max_open and len(self._unclaimed) + aside < MAX_DEFERRED
            )
            if room and not exhausted:
                prepared_rows = await self._read()
                exhausted = not prepared_rows
                await self._take(prepared_rows)
            elif not self._fresh:
                await self._movement()
            await self._claim_again()
            if self._open or self._moved.is_set() or (room and not exhausted):
                last_progress = time.monotonic()
            elif time.monotonic() - last_progress > CLAIM_WAIT:
                break
        while self._open or self._unclaimed:
            waiting, self._fresh, self._deferred = [*self._fresh, *self._deferred], [], []
            for work in waiting:
                self._end(work, RowStatus.NOT_ATTEMPTED, "another run holds the row at this moment")
            if self._open:
                await self._movement()

    async def _movement(self) -> None:
        """Wait until a row ends, or it is time to ask for another run's rows again."""
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

    async def _take(self, prepared_rows: Sequence[PreparedRow]) -> None:
        """Give the rows that were read their places, and start those that are to be sent."""
        if not prepared_rows:
            return
        self._report.read += len(prepared_rows)
        self._observers.rows_read(len(prepared_rows), share=self._source.share_read)
        try:
            placed_rows = await asyncio.get_running_loop().run_in_executor(
                self._ledger_thread, self._placer.place, prepared_rows
            )
        except HaloError as error:
            self._stop.request(str(error), error=error)
            placed_rows = [PlacedRow(prepared, place_of(prepared, None)) for prepared in prepared_rows]
        given_back = []
        for placed in placed_rows:
            if placed.has_changed:
                self._count_change(str(placed.prepared.row_key))
            given_back += self._start(placed)
        if given_back:
            await self._give_back(given_back)

    def _count_change(self, row_key: str) -> None:
        self._report.changed += 1
        if self._options.on_change == "fail":
            first = self._report.changed_error.first if self._report.changed_error else row_key
            self._report.changed_error = RowsChangedError(changed=self._report.changed, first=first)

    def _start(self, placed: PlacedRow) -> list[Work]:
        """Count a row that has ended already; the others enter their queues. Returns a claim that is to be given back.

        A submission that waits behind another run's row in its queue keeps no claim.
        """
        prepared, place = placed.prepared, placed.place
        if isinstance(place, End):
            user_id = prepared.submission.user_id if prepared.submission else None
            if place.status in HOLDS_BACK:
                self._user_queues.close(user_id)
            self._count(
                Outcome(
                    row=prepared.row,
                    row_key=prepared.row_key,
                    user_id=user_id,
                    status=place.status,
                    session_id=place.session_id,
                    error=place.error,
                    is_listed=prepared.is_candidate,
                )
            )
            return []
        work = Work.of(prepared, place)
        if self._user_queues.is_closed(work.user_id):
            self._opened(work)
            self._hold_back(work)
            return []
        given_back = [work] if work.claimed and self._user_queues.waits_for_another_run(work) else []
        if given_back:
            work.claimed = False
        self._opened(work)
        if self._user_queues.enter(work):
            self._go(work)
        return given_back

    def _opened(self, work: Work) -> None:
        if work.claimed:
            self._open[work.ledger_key] = work
        else:
            self._unclaimed.add(work)

    async def _give_back(self, works: Sequence[Work]) -> None:
        """End the claims of these, which have not been sent by this run."""
        row_keys = [work.ledger_key for work in works]
        try:
            await asyncio.get_running_loop().run_in_executor(self._ledger_thread, self._lease_holder.release, row_keys)
        except LedgerError as error:
            self._stop.request(str(error), error=error)

    async def _claim_again(self) -> None:
        """Claim the submissions whose turn has come, and every `CLAIM_POLL` seconds what another run held."""
        asking, self._fresh = self._fresh, []
        if self._deferred and time.monotonic() - self._asked_for_deferred >= CLAIM_POLL:
            self._asked_for_deferred = time.monotonic()
            asking += self._deferred
            self._deferred = []
        open_keys = {work.row_key for work in self._open.values()} if asking else set()
        self._deferred += [work for work in asking if work.row_key in open_keys]  # until the first row is committed
        asking = [work for work in asking if work.row_key not in open_keys]
        if not asking:
            return
        try:
            placed_rows = await asyncio.get_running_loop().run_in_executor(
                self._ledger_thread, self._placer.place_again, [work.prepared for work in asking]
            )
        except HaloError as error:
            self._stop.request(str(error), error=error)
            placed_rows = [PlacedRow(work.prepared, place_of(work.prepared, None)) for work in asking]
        for work, placed in zip(asking, placed_rows, strict=True):
            if placed.has_changed and work.prepared.repeats is not None:
                self._count_change(work.row_key)
            match placed.place:
                case End() as place:
                    self._unclaimed.discard(work)
                    self._count(work.outcome(place.status, session_id=place.session_id)._replace(error=place.error))
                    self._leave(work, place.status)
                case Send() as place:
                    self._unclaimed.discard(work)
                    work.take(place)
                    self._opened(work)
                    self._go(work)
                case Wait():
                    self._deferred.append(work)

    def _go(self, work: Work) -> None:
        """Its turn has come: send it, or claim it first, or look it up."""
        if work.claimed and work.doubtful and self._doubts.asks:
            self._group.create_task(self._look_up(work))
        elif work.claimed:
            self._ready.put_nowait(Sending(_Chat(work, self)))
        else:
            self._fresh.append(work)
            self._moved.set()

    def _leave(self, work: Work, status: RowStatus) -> None:
        """Let the user's next submission go, or give all of them back where this one was not delivered."""
        delivered = status not in HOLDS_BACK
        for waiting in self._user_queues.leave(work, delivered=delivered):
            if delivered:
                self._go(waiting)
            else:
                self._hold_back(waiting)

    def _hold_back(self, work: Work) -> None:
        reason = self._stop.reason or "an earlier row of the same user is not delivered yet"
        if work.claimed:
            self._settle(work, work.resting_status, reason)
        else:
            self._end(work, RowStatus.NOT_ATTEMPTED, reason)

    async def _send_always(self, group: asyncio.TaskGroup, *, not_before: float) -> None:
        loop = asyncio.get_running_loop()
        while (sending := await self._ready.get()) is not None:
            if loop.time() < not_before:
                await self._stop.sleep(not_before - loop.time())
            wait = await self._sender.attempt(sending)
            if wait is not None:
                group.create_task(self._send_again(sending, wait))

    async def _send_again(self, sending: Sending, wait: float) -> None:
        """Queue it again after the wait, in which it keeps no others from being sent."""
        self._put_off += 1
        self._moved.set()
        await self._stop.sleep(wait)
        self._put_off -= 1
        self._ready.put_nowait(sending)

    async def may_send(self, work: Work) -> bool:
        """Commit the intent, and make sure that this run may still send; otherwise the submission ends here."""
        if self._stop.requested:
            self._hold_back(work)
            return False
        if not await self._committer.intend(work):
            del self._open[work.ledger_key]
            reason = self._stop.reason or "another run has taken the row over"
            self._end(work, work.resting_status, reason)
            return False
        if not self._alive():
            self._stop.request("the task's supervisor is gone, and another try may already be running")
        elif self._lease_holder.lease_left < LEASE_MARGIN:
            self._stop.request("the claims could not be renewed in time")
        if self._stop.requested:
            self._hold_back(work)
            return False
        return True

    async def chat(self, work: Work) -> None:
        """Make one attempt, and settle the submission as delivered. Raises HaloCallError."""
        work.attempts += 1
        self._doubts.begins(work)
        began = time.monotonic()
        try:
            answer = await self._client.chat(work.submission.request)
        except HaloCallError:
            raise
        except BaseException:
            work.doubtful = True
            raise
        if not session_id_fits(answer.session_id):
            reason = f"the answer has no usable session_id: it has {len(answer.session_id):,} characters"
            raise HaloResponseError("/chat", reason=reason, reply=answer.session_id[:MAX_SHOWN])
        self._breaker.accepted()
        self._doubts.delivered(work, answer.session_id, began=began)
        self._settle(work, RowStatus.DELIVERED, answer=answer)

    def conclude(self, work: Work, error: HaloCallError, *, is_last: bool) -> bool:
        """Record what an unsuccessful attempt means; whether it was the last one of this run."""
        error = self._breaker.understood(error, continues_session=work.submission.request.session_id is not None)
        if error.verdict is Verdict.REJECTED:
            self._settle(work, RowStatus.REJECTED, str(error))
            self._breaker.refused(error)
            return True
        work.doubtful = work.doubtful or error.verdict is Verdict.IN_DOUBT
        work.failures += not isinstance(error, HaloRateLimitError)
        if error.verdict is Verdict.FORBIDDEN:
            self._stop.request(str(error), error=error)
        elif error.verdict is Verdict.IN_DOUBT and self._doubts.asks and not self._stop.requested:
            self._breaker.doubted()
            self._group.create_task(self._look_up(work, error))
            return True
        elif is_last or (work.doubtful and self._doubts.otherwise == "hold"):
            status = RowStatus.IN_DOUBT if work.doubtful else RowStatus.FAILED
            self._settle(work, status, str(error), reply=_reply(error))
            self._breaker.gave_up(error)
            return True
        if self._stop.requested:
            self._settle(work, work.resting_status, str(error), reply=_reply(error))
            return True
        resting = Settlement(row_key=work.ledger_key, status=work.resting_ledger_status, final=False, error=str(error))
        self._committer.settle(resting, work, None)
        return False

    async def _look_up(self, work: Work, error: HaloCallError | None = None) -> None:
        """Ask Halo about a row in doubt, and settle it by the answer, or send it. `error` is its last attempt's."""
        if error is not None:
            told = Settlement(row_key=work.ledger_key, status=LedgerStatus.IN_DOUBT, final=False, error=str(error))
            await self._in_ledger(partial(self._lease_holder.commit, settlements=[told]))
        accepted_before = self._breaker.accepted_rows
        look = await self._doubts.look_up(work)
        match look.sight:
            case Sight.FOUND:
                self._found(work, look)
                return
            case _ if self._stop.requested:
                self._hold_back(work)
                return
            case Sight.ABSENT:
                asked = candidate(work.submission, work.change)
                if not await self._in_ledger(partial(self._lease_holder.clear_doubt, asked, detail=NOT_THERE)):
                    self._settle(work, RowStatus.IN_DOUBT, "another run has taken the row over")
                    return
                work.doubtful, work.doubt = False, None
            case Sight.UNCLEAR if self._doubts.otherwise == "hold":
                reason = f"{error}; {look.reason}" if error else look.reason
                self._settle(work, RowStatus.IN_DOUBT, reason, reply=_reply(error))
                if error is not None:
                    self._breaker.gave_up(error, accepted_before=accepted_before)
                return
            case Sight.UNCLEAR if error is not None and work.failures < self._options.max_attempts:
                await self._stop.sleep(self._options.backoff.delay(work.failures))
        if work.is_another_content:
            await self._in_ledger(partial(self._lease_holder.renew_content, candidate(work.submission, work.change)))
        elif work.doubt is not None:
            work.doubt_since = work.doubt.since
        work.doubt = None
        if error is not None and work.failures >= self._options.max_attempts:
            status = RowStatus.IN_DOUBT if work.doubtful else RowStatus.FAILED
            self._settle(work, status, str(error), reply=_reply(error))
            self._breaker.gave_up(error, accepted_before=accepted_before)
        else:
            self._ready.put_nowait(Sending(_Chat(work, self), failures=work.failures))

    def _found(self, work: Work, look: Look) -> None:
        """It is delivered with the content that Halo has: where that is not the row's any more, the row has changed."""
        if work.is_another_content:
            self._count_change(work.row_key)
            if work.change is not None and work.doubt is not None:
                work.change = work.change._replace(payload_hash=work.doubt.payload_hash or "")
        self._settle(work, RowStatus.DELIVERED, found=look)

    async def _in_ledger(self, call: Callable[[], Any]) -> Any:
        """Make the call on the ledger's thread; None where the ledger failed, which ends the run."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._ledger_thread, call)
        except LedgerError as error:
            self._stop.request(str(error), error=error)
            return None

    def _settle(
        self,
        work: Work,
        status: RowStatus,
        reason: str | None = None,
        *,
        answer: ChatAnswer | None = None,
        reply: str | None = None,
        found: Look | None = None,
    ) -> None:
        """End a claimed submission: it counts once the ledger has it."""
        work.settled = True
        settlement = Settlement(
            row_key=work.ledger_key,
            status=work.resting_ledger_status if status is RowStatus.NOT_ATTEMPTED else LedgerStatus(status.value),
            session_id=found.session_id if found else answer.session_id if answer else None,
            agent_id=answer.agent_id if answer else None,
            error=reason,
            reply=_text_of(answer) if answer else reply,
            response=(answer.model_extra or None) if answer else None,
            change=work.change,
            found=f"{found.reason}: session {found.session_id}" if found else None,
        )
        outcome = work.outcome(status, reason, session_id=settlement.session_id)
        self._committer.settle(settlement, work, outcome)
        if self._committer.outcomes == len(self._open):
            self._committer.hurry()
        self._leave(work, status)

    def _end(self, work: Work, status: RowStatus, reason: str) -> None:
        """End a submission that this run holds no claim on."""
        self._unclaimed.discard(work)
        self._count(work.outcome(status, reason))
        self._leave(work, status)

    def _close(self, work: Work, outcome: Outcome) -> None:
        del self._open[work.ledger_key]
        self._count(outcome)

    def _count(self, outcome: Outcome) -> None:
        self._report.add(outcome)
        self._moved.set()
        self._observers.row_ended(outcome)

    async def _renew(self) -> None:
        """Keep the claims alive."""
        while True:
            await asyncio.sleep(self._lease_holder.lease / 3)
            try:
                await asyncio.get_running_loop().run_in_executor(self._ledger_thread, self._lease_holder.renew)
            except LedgerError as error:
                self._stop.request(str(error), error=error)

    async def _watch(self) -> None:
        """Tell the pace, notice the supervisor's death, and let no ledger keep a run that has to end."""
        ends_at: float | None = None
        pace = self._sender.pacer.pace()
        while True:
            await asyncio.sleep(LIVENESS_POLL)
            if not self._alive():
                self._stop.request("the task's supervisor is gone, and another try may already be running")
            if (now := self._sender.pacer.pace()) != pace:
                pace = now
                self._observers.paced(now)
            if self._stop.ends_at is not None and self._stop.ends_at != ends_at:
                ends_at = self._stop.ends_at
                left = max(0.0, ends_at - asyncio.get_running_loop().time())
                self._lease_holder.finish_within(left + LAST_COMMIT_TIME)


async def _uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Wait for the work's end, however often this task is cancelled in the meantime; a cancellation then goes on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as cancellation:
            cancelled = cancellation
    task.result()
    if cancelled is not None:
        raise cancelled


class _Chat:
    """One submission's exchange with Halo."""

    path = "/chat"

    def __init__(self, work: Work, delivery: _Delivery) -> None:
        self._work = work
        self._delivery = delivery

    async def may_attempt(self) -> bool:
        return await self._delivery.may_send(self._work)

    async def attempt(self) -> None:
        await self._delivery.chat(self._work)

    def conclude(self, error: HaloCallError, *, is_last: bool) -> bool:
        return self._delivery.conclude(self._work, error, is_last=is_last)


def _text_of(answer: ChatAnswer) -> str | None:
    """The agent's words, whatever their shape: only the session is needed to call a row delivered."""
    return answer.text if answer.text is None or isinstance(answer.text, str) else to_json(answer.text).decode()


def _reply(error: HaloCallError | None) -> str | None:
    return error.reply if isinstance(error, HaloResponseError) else None
