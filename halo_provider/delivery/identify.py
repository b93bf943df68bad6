"""identify(): the source's users and companies made known to Halo, each once, users before companies.

Two ways to say who a user is, because one of them lies about history: users/identify sets last_seen to now and may
enrol the user in automations; users/update takes up to 1,000 users a call and does neither (Halo's documentation,
users and users-update).
Both are upserts, so an attempt in doubt is simply repeated.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json, to_json

from halo_provider.client.client import HaloClient
from halo_provider.delivery.options import SendOptions
from halo_provider.delivery.send import Sender
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloCallError,
    HaloConfigurationError,
    HaloError,
    HaloRejectedError,
    IdentifyIncompleteError,
    RowError,
    Verdict,
)
from halo_provider.models import MAX_USERS_PER_UPDATE, IdentifyCompany, IdentifyUser, UpdateUsers, UserTraits
from halo_provider.sources.rows import Row, Source
from halo_provider.submission import Submission

READ_SIZE = 500  # rows read and stored together

IdentifyMode = Literal["identify", "update"]
OnRejected = Callable[[Row, RowError], None]
_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True)
class IdentifyReport:
    """What a run did, in rows read and rejected, and in users and companies that Halo took.

    `skipped` counts users that Halo said it skipped. `error` is what ended the run early.
    """

    mode: IdentifyMode
    read: int = 0
    users: int = 0
    companies: int = 0
    skipped: int = 0
    rejected: int = 0
    seconds: float = 0.0
    error: Exception | None = None


async def identify(
    source: Source,
    *,
    submission: Submission,
    client: HaloClient,
    mode: IdentifyMode,
    options: SendOptions | None = None,
    stop: Stop | None = None,
    dry_run: bool = False,
    on_rejected: OnRejected = lambda _row, _error: None,
) -> IdentifyReport:
    """Make the source's users and companies known to Halo; of several rows about one, the last row wins.

    Raises HaloConfigurationError where `mode` is update and the client cannot sign the token it needs. Whatever else
    goes wrong is in `IdentifyReport.error`. `on_rejected` is called for every row that cannot be used. `dry_run` reads
    and validates everything, and counts users and companies instead of sending them.
    """
    if mode == "update" and not client.signs_tokens:
        raise HaloConfigurationError(
            "bulk updates (mode update, and auto in a backfill run) need a signed token: put identity_secret "
            "(ha_secret_…) into the connection's extra, or choose mode='identify', which marks every user as "
            "active today"
        )
    identification = _Identification(
        source,
        submission=submission,
        client=client,
        mode=mode,
        options=options or SendOptions(),
        stop=stop or Stop(),
        dry_run=dry_run,
        on_rejected=on_rejected,
    )
    return await identification.run()


@dataclass(frozen=True, slots=True)
class _Identity:
    """The last row's request about one user or company, and that row."""

    request: str
    row: str

    def origin(self) -> Row:
        number, values, file = from_json(self.row)
        return Row(number, values, file=file)


class _Identities:
    """Users and companies by id, in a temporary database that leaves memory for the disk by itself."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=OFF")
        for table in ("users", "companies"):
            self._db.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, request TEXT, row TEXT)")

    def put(self, table: Literal["users", "companies"], identity: str, request: BaseModel, row: Row) -> None:
        """Remember what the row says; it replaces what an earlier row said, in the earlier row's place.

        Raises RowError for a row that holds what is no Unicode.
        """
        try:
            origin = to_json([row.number, row.values, row.file], fallback=str, bytes_mode="base64").decode()
        except PydanticSerializationError:
            raise RowError("a text of this row is not valid Unicode; clean it at the source") from None
        self._db.execute(
            f"INSERT INTO {table} VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE "  # noqa: S608 -- one of two names
            "SET request = excluded.request, row = excluded.row",
            (identity, request.model_dump_json(exclude_none=True), origin),
        )

    def each(self, table: Literal["users", "companies"]) -> Iterator[_Identity]:
        """Everything remembered, in the order of first appearance."""
        query = f"SELECT request, row FROM {table} ORDER BY rowid"  # noqa: S608 -- one of two names
        return (_Identity(*found) for found in self._db.execute(query))

    def count(self, table: Literal["users", "companies"]) -> int:
        """How many there are."""
        (count,) = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 -- one of two names
        return int(count)

    def close(self) -> None:
        self._db.close()


class _Identification:
    """One run of identify()."""

    def __init__(
        self,
        source: Source,
        *,
        submission: Submission,
        client: HaloClient,
        mode: IdentifyMode,
        options: SendOptions,
        stop: Stop,
        dry_run: bool,
        on_rejected: OnRejected,
    ) -> None:
        self._source = source
        self._submission = submission
        self._client = client
        self._concurrency = options.concurrency
        self._stop = stop
        self._dry_run = dry_run
        self._on_rejected = on_rejected
        self._sender = Sender(options, stop=stop)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="halo-source")
        self._report = IdentifyReport(mode=mode)

    async def run(self) -> IdentifyReport:
        started = time.monotonic()
        with self._thread:
            identities = _Identities()
            try:
                await self._read(identities)
                if self._dry_run:
                    self._report.users = await self._in_thread(lambda: identities.count("users"))
                    self._report.companies = await self._in_thread(lambda: identities.count("companies"))
                else:
                    await self._send(identities)
            except HaloError as error:
                self._report.error = error
            finally:
                await self._in_thread(identities.close)
        if self._stop.reason is not None and self._report.error is None:
            self._report.error = self._stop.error or IdentifyIncompleteError(self._stop.reason)
        self._report.seconds = time.monotonic() - started
        return self._report

    async def _send(self, identities: _Identities) -> None:
        if self._report.mode == "update":
            await self._each(identities.each("users"), self._update_users, size=MAX_USERS_PER_UPDATE)
        else:
            await self._each(identities.each("users"), self._identify_user, size=1)
        await self._each(identities.each("companies"), self._identify_company, size=1)

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _read(self, identities: _Identities) -> None:
        rows = self._source.rows(required=self._submission.identity_columns)

        def store_some() -> list[tuple[Row, RowError]] | None:
            rejected = []
            some = list(islice(rows, READ_SIZE))
            for row in some:
                try:
                    self._store(identities, row)
                except RowError as error:
                    rejected.append((row, error))
            self._report.read += len(some)
            return rejected if some else None

        while not self._stop.requested and (rejected := await self._in_thread(store_some)) is not None:
            for row, error in rejected:
                self._reject(row, error)

    def _store(self, identities: _Identities, row: Row) -> None:
        if row.error is not None:
            raise row.error
        user = self._submission.render_user(row.values)
        company = self._submission.render_company(row.values)
        if user is not None:
            identities.put("users", user.user_id, user, row)
        if company is not None:
            if self._report.mode == "update":
                # Whether linking a user counts as the user's activity is not documented: history must not risk it.
                company = company.model_copy(update={"user_id": None})
            identities.put("companies", company.company_id, company, row)

    def _reject(self, row: Row, error: RowError) -> None:
        self._report.rejected += 1
        self._on_rejected(row, error)

    async def _each(
        self, identities: Iterator[_Identity], send: Callable[[list[_Identity]], Awaitable[None]], *, size: int
    ) -> None:
        """Send everything in calls of `size`, with as many in flight as the pacer lets through."""
        queue: asyncio.Queue[list[_Identity]] = asyncio.Queue(maxsize=2 * self._concurrency)

        async def send_always() -> None:
            while some := await queue.get():
                if not self._stop.requested:
                    await send(some)

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(send_always()) for _ in range(self._concurrency)]
            while not self._stop.requested:
                some = await self._in_thread(lambda: list(islice(identities, READ_SIZE if size == 1 else size)))
                if not some:
                    break
                for start in range(0, len(some), size):
                    await queue.put(some[start : start + size])
            for _ in workers:
                await queue.put([])

    async def _identify_user(self, identities: Sequence[_Identity]) -> None:
        (identity,) = identities
        request = IdentifyUser.model_validate_json(identity.request)
        if await self._accepted("/users/identify", lambda: self._client.identify_user(request), identity):
            self._report.users += 1

    async def _identify_company(self, identities: Sequence[_Identity]) -> None:
        (identity,) = identities
        request = IdentifyCompany.model_validate_json(identity.request)
        if await self._accepted("/companies/identify", lambda: self._client.identify_company(request), identity):
            self._report.companies += 1

    async def _update_users(self, identities: Sequence[_Identity]) -> None:
        """Update up to 1,000 users; where Halo rejects the call, halve it until the rejected user stands alone."""
        users = [UserTraits.model_validate_json(identity.request) for identity in identities]
        call = _Call("/users/update", lambda: self._client.update_users(UpdateUsers(users=users)), stop=self._stop)
        await self._sender.send(call)
        if call.rejection is not None and len(identities) == 1:
            self._reject(identities[0].origin(), RowError(str(call.rejection)))
        elif call.rejection is not None:
            middle = len(identities) // 2
            await self._update_users(identities[:middle])
            await self._update_users(identities[middle:])
        elif call.answer is not None:
            self._report.skipped += call.answer.skipped
            self._report.users += len(users) - call.answer.skipped

    async def _accepted(self, path: str, send: Callable[[], Awaitable[object]], identity: _Identity) -> bool:
        call = _Call(path, send, stop=self._stop)
        await self._sender.send(call)
        if call.rejection is not None:
            self._reject(identity.origin(), RowError(str(call.rejection)))
        return call.answer is not None


class _Call(Generic[_T]):
    """One call's exchange with Halo: ends with an answer, a rejection, or neither where the run ends first."""

    def __init__(self, path: str, send: Callable[[], Awaitable[_T]], *, stop: Stop) -> None:
        self.path = path
        self.answer: _T | None = None
        self.rejection: HaloRejectedError | None = None
        self._send = send
        self._stop = stop

    async def may_attempt(self) -> bool:
        return not self._stop.requested

    async def attempt(self) -> None:
        self.answer = await self._send()

    def conclude(self, error: HaloCallError, *, is_last: bool) -> bool:
        """Keep a rejection; every other error that no attempt can mend ends the run."""
        if isinstance(error, HaloRejectedError):
            self.rejection = error
            return True
        if error.verdict is Verdict.FORBIDDEN or is_last:
            self._stop.request(str(error), error=error)
        return self._stop.requested
