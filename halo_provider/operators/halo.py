"""HaloIdentifyOperator and HaloTicketOperator: adapters between an Airflow task and the core."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sized
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from halo_provider.delivery.delivery import OnChange, deliver
from halo_provider.delivery.dry_run import DryRun, dry_run
from halo_provider.delivery.identify import IdentifyMode, IdentifyReport, identify
from halo_provider.delivery.report import DeliveryReport, Outcome, SessionIds
from halo_provider.delivery.results import ResultsFile, results_writer
from halo_provider.delivery.stop import Stop
from halo_provider.exceptions import (
    HaloCallError,
    HaloConfigurationError,
    RowError,
    RowsRejectedError,
    SourceError,
    TooManySubmissionsError,
    Verdict,
)
from halo_provider.hooks.database import database_engine
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import DEFAULT_LEDGER, ledger_connection_id, open_ledger, task_instance_of
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.statuses import RowStatus
from halo_provider.operators.files import atomic_write, open_binary
from halo_provider.operators.lineage import announce, lineage
from halo_provider.operators.links import HaloDeliveriesLink, deliveries_url
from halo_provider.operators.progress import DeliveryRecordWatcher, Progress, StateStoreWatcher, Watcher
from halo_provider.operators.telemetry import Metrics, delivery_span
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.lists import ListSource
from halo_provider.sources.rejects import RejectsFile
from halo_provider.sources.shards import Shard, ShardedSource
from halo_provider.sources.sql import SqlSource

try:
    from halo_provider.operators.retry_policy import HaloRetryPolicy
except ImportError:  # Airflow 3.2 has no retry policies; there, only AirflowFailException stops a retry
    HaloRetryPolicy = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

    from halo_provider.client.client import HaloClient
    from halo_provider.ledger import LeaseHolder, OnInDoubt, TaskInstanceRef
    from halo_provider.sources.rows import Row, Source
    from halo_provider.submission import Submission

KILL_GRACE = 2.0  # seconds for what is in flight when the task is killed: Airflow's SIGKILL follows after about 5
KILLED = "the task was killed"
TIMEOUT_MARGIN = 5.0  # seconds before execution_timeout in which the run is wound up
BACKFILL = "backfill"  # a run's type; Airflow's enum is a string, and another class on workers than elsewhere
MAX_BATCH = 10_000  # rows: a query about all of them has to fit into the variables that SQLite takes, 32,766


class _RowsOperator(BaseOperator):
    """What both operators share: exactly one source of rows, how fast to send, and what to do with rejected rows."""

    template_fields: Sequence[str] = (
        "csv_path",
        "csv_options",
        "sql",
        "sql_conn_id",
        "sql_parameters",
        "rows",
        "halo_conn_id",
        "rejects_path",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"sql": "sql"}
    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        submission: Submission,
        csv_path: str | None = None,
        csv_options: dict[str, str] | None = None,
        sql: str | None = None,
        sql_conn_id: str | None = None,
        sql_parameters: dict[str, Any] | None = None,
        rows: Any = None,
        halo_conn_id: str = HaloHook.default_conn_name,
        concurrency: int = 64,
        requests_per_second: float | None = None,
        timeout: float = 120.0,
        max_attempts: int = 5,
        max_rejected: float = 0,
        rejects_path: str | None = None,
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.submission = submission
        self.csv_path = csv_path
        self.csv_options = csv_options
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.sql_parameters = sql_parameters
        self.rows = rows
        self.halo_conn_id = halo_conn_id
        self.concurrency = concurrency
        self.requests_per_second = requests_per_second
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.max_rejected = max_rejected
        self.rejects_path = rejects_path
        self.is_dry_run = dry_run  # BaseOperator.dry_run is a method, which `airflow tasks test --dry-run` calls
        if HaloRetryPolicy is not None and self.retry_policy is None:
            self.retry_policy = HaloRetryPolicy()
        self._killed = False
        self._stop_soon: Any = None

    def on_kill(self) -> None:
        """Stop sending, give what is in flight a short while, commit: inside Airflow's five seconds."""
        self._killed = True
        if self._stop_soon is not None:
            self._stop_soon(KILLED, KILL_GRACE)

    def _check(self) -> None:
        """Refuse parameters that cannot work, before anything is read."""
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise HaloConfigurationError(f"{name} must be at least 1")
        for name in ("timeout", "requests_per_second"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise HaloConfigurationError(f"{name} must be more than 0")
        if self.max_rejected < 0 or (isinstance(self.max_rejected, float) and self.max_rejected > 1):
            raise HaloConfigurationError("max_rejected is a number of rows (int), or a share of them from 0.0 to 1.0")

    def _csv_options(self) -> CsvOptions:
        try:
            return CsvOptions(**(self.csv_options or {}))
        except ValueError as error:
            raise HaloConfigurationError(f"csv_options: {error}") from None

    @contextmanager
    def _source(self) -> Iterator[Source]:
        """The one source of rows that the parameters name, closed at the end."""
        given = [name for name in ("csv_path", "sql", "rows") if getattr(self, name) is not None]
        if len(given) != 1:
            raise HaloConfigurationError(
                f"give exactly one of csv_path, sql and rows, not {' and '.join(given) or 'none'}"
            )
        if self.csv_path is not None:
            path = os.fspath(self.csv_path)
            yield CsvSource(path=path, open_binary=partial(open_binary, path), options=self._csv_options())
        elif self.sql is not None:
            if self.sql_conn_id is None:
                raise HaloConfigurationError("sql needs sql_conn_id, the connection of the database to ask")
            source = SqlSource(
                engine=database_engine(self.sql_conn_id),
                statement=self.sql,
                parameters=self.sql_parameters,
                description=f"the query on {self.sql_conn_id!r}",
            )
            with closing(source):
                yield source
        else:
            yield ListSource(self.rows)

    def _run(self, work: Any) -> Any:
        """Run the core's coroutine on a loop of its own, which `on_kill` and execution_timeout can reach."""

        async def run() -> Any:
            loop = asyncio.get_running_loop()
            stop = Stop()

            def stop_soon(reason: str, grace: float) -> None:
                loop.call_soon_threadsafe(partial(stop.request, reason, grace=grace))

            self._stop_soon = stop_soon
            if self._killed:  # before the loop was there to be told
                stop.request(KILLED, grace=KILL_GRACE)
            if self.execution_timeout is not None:
                seconds = self.execution_timeout.total_seconds()
                margin = min(TIMEOUT_MARGIN, seconds / 2)
                reason = f"execution_timeout of {seconds:g} s is nearly over"
                loop.call_later(seconds - margin, partial(stop.request, reason, grace=margin / 2))
            try:
                return await work(stop)
            finally:
                self._stop_soon = None

        return asyncio.run(run())

    @contextmanager
    def _rejects(self, source: Source) -> Iterator[_Rejects]:
        """Collect rejected rows, in the rejects file where one is wanted; a dry run writes nothing."""
        with ExitStack() as stack:
            file = None
            if self.rejects_path and not self.is_dry_run:
                stream = stack.enter_context(atomic_write(self.rejects_path))
                file = RejectsFile(stream, columns=source.columns(), options=self._csv_options())
                stack.callback(file.close)
            yield _Rejects(file)

    @staticmethod
    def _unreadable(source: Source) -> SourceError | None:
        """Why the source cannot be read at all, if so: then the files of the last run are left alone."""
        try:
            source.columns()
        except SourceError as error:
            return error
        return None

    def _too_many_rejected(self, rejects: _Rejects, *, read: int, rejected: int) -> RowsRejectedError | None:
        allowed = self.max_rejected * read if isinstance(self.max_rejected, float) else self.max_rejected
        if rejected <= allowed:
            return None
        return RowsRejectedError(
            rejected=rejected, read=read, first=rejects.first or "", rejects_path=self.rejects_path
        )

    def _complete(self, files: ExitStack) -> Exception | None:
        """Put the files in their places; what keeps them from there is one more reason for a red end."""
        try:
            files.close()
        except Exception as error:  # noqa: BLE001 -- every storage has errors of its own
            return error
        return None

    def _finish(self, context: Context, summary: dict[str, Any], error: Exception | None) -> dict[str, Any]:
        """Return the summary, or push it and raise: a red task tells its counts too."""
        if error is None:
            return summary
        context["ti"].xcom_push("return_value", summary)
        if _is_final(error):
            raise AirflowFailException(str(error)) from error
        raise error


class _Rejects:
    """The rejected rows of one run: all of them to the file, the first one's reason for people."""

    def __init__(self, file: RejectsFile | None) -> None:
        self._file = file
        self.first: str | None = None

    def add(self, row: Row, error: RowError) -> None:
        if self.first is None:
            self.first = f"row {row.number}: {error}"
        if self._file is not None:
            self._file.write(row, error)


class HaloIdentifyOperator(_RowsOperator):
    """
    Makes the users and companies of rows known to Halo, each once, users before companies.

    Returns ``read``, ``users``, ``companies``, ``skipped``, ``rejected`` and ``mode``.

    :param submission: which columns name the user and the company
    :param csv_path: a CSV file, local or an ObjectStoragePath URL. Give exactly one source.
    :param csv_options: ``delimiter``, ``encoding`` and ``quotechar`` of that file
    :param sql: a query, or the name of a ``.sql`` file; streamed, never held in memory
    :param sql_conn_id: the SQL connection it runs on
    :param sql_parameters: values for its ``:name`` parameters, bound on every database
    :param rows: a list of dicts, a DataFrame, or an upstream task's output
    :param halo_conn_id: the Halo connection
    :param mode: ``update`` sends up to 1,000 users a call and never touches last_seen; ``identify`` makes one live call
        a user, which marks the user as active now; ``auto`` is update in a backfill run, else identify
    :param concurrency: most requests in flight
    :param requests_per_second: most requests started in a second
    :param timeout: seconds for one attempt
    :param max_attempts: attempts for one request
    :param max_rejected: rows (int), or share of the rows read (float), that may be rejected in a green run
    :param rejects_path: where rejected rows go, as a CSV that can be repaired and fed again
    :param dry_run: read and validate everything; send nothing, write nothing
    """

    def __init__(self, *, mode: Literal["auto", "identify", "update"] = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode = mode

    def execute(self, context: Context) -> dict[str, Any]:
        """Identify, and return the counts."""
        self._check()
        mode = self._mode(context)
        client = HaloHook(self.halo_conn_id).client(timeout=self.timeout)
        with self._source() as source, ExitStack() as files:
            if self.rejects_path and (unreadable := self._unreadable(source)):
                return self._finish(context, self._counts(IdentifyReport(mode=mode)), unreadable)
            rejects = files.enter_context(self._rejects(source))
            report: IdentifyReport = self._run(
                partial(self._identify, source=source, client=client, mode=mode, rejects=rejects)
            )
            unstored = self._complete(files)
        summary = self._counts(report)
        self.log.info(
            "would identify" if self.is_dry_run else "identified", **summary, seconds=round(report.seconds, 2)
        )
        error = report.error or self._too_many_rejected(rejects, read=report.read, rejected=report.rejected)
        return self._finish(context, summary, error or unstored)

    @staticmethod
    def _counts(report: IdentifyReport) -> dict[str, Any]:
        return {
            "read": report.read,
            "users": report.users,
            "companies": report.companies,
            "skipped": report.skipped,
            "rejected": report.rejected,
            "mode": report.mode,
        }

    def _mode(self, context: Context) -> IdentifyMode:
        match self.mode:
            case "identify" | "update":
                return self.mode
            case "auto":
                return "update" if context["dag_run"].run_type == BACKFILL else "identify"
        raise HaloConfigurationError(f"mode must be auto, identify or update, not {self.mode!r}")

    async def _identify(
        self, stop: Stop, *, source: Source, client: HaloClient, mode: IdentifyMode, rejects: _Rejects
    ) -> IdentifyReport:
        async with client:
            return await identify(
                source,
                submission=self.submission,
                client=client,
                mode=mode,
                concurrency=self.concurrency,
                requests_per_second=self.requests_per_second,
                max_attempts=self.max_attempts,
                stop=stop,
                dry_run=self.is_dry_run,
                on_rejected=rejects.add,
            )


class HaloTicketOperator(_RowsOperator):
    """
    Turns every row into a message to Halo's agent, which makes tickets of them, and accounts for every row.

    A row that was delivered is never sent again. The task is red, with the summary in XCom all the same, when rows
    failed, are in doubt or were not attempted, or when more were rejected than ``max_rejected`` allows.

    Returns the counts (``read`` = ``delivered`` + ``already_delivered`` + ``duplicate`` + ``rejected`` + ``in_doubt`` +
    ``failed`` + ``not_attempted``), ``changed`` (delivered rows that have another content now), ``session_ids``
    {row_key: session_id}, ``session_ids_truncated``, ``results_path``, ``ledger``, ``seconds``, ``rows_per_second``.

    :param submission: how a row becomes a message with context
    :param csv_path: a CSV file, local or an ObjectStoragePath URL. Give exactly one source.
    :param csv_options: ``delimiter``, ``encoding`` and ``quotechar`` of that file
    :param sql: a query, or the name of a ``.sql`` file; streamed, never held in memory
    :param sql_conn_id: the SQL connection it runs on
    :param sql_parameters: values for its ``:name`` parameters, bound on every database
    :param rows: a list of dicts, a DataFrame, or an upstream task's output
    :param halo_conn_id: the Halo connection; part of the namespace of the rows' keys
    :param batch_size: rows claimed in the ledger together, at most 10,000
    :param concurrency: most requests in flight
    :param requests_per_second: most requests started in a second
    :param timeout: seconds for one attempt
    :param max_attempts: attempts for one row in one run; answers of 429 do not count
    :param max_rejected: rows (int), or share of the rows read (float), that may be rejected in a green run
    :param rejects_path: where rejected rows go, as a CSV that can be repaired and fed again
    :param ledger_conn_id: the database that holds the ledger; by default ``[halo] ledger_conn_id``, else SQLite
    :param on_in_doubt: ``resend`` (at least once) or ``hold`` (at most once: such rows wait for a decision)
    :param on_change: what to do about a delivered row whose content is another one now: ``skip`` (leave it), ``fail``
        (leave it, and end red) or ``follow_up`` (send the new content into the row's session, once per change)
    :param results_path: where every row's row_key, user_id, session_id, status and attempts go, as ``.csv``,
        ``.jsonl`` or ``.parquet``, whole or not at all
    :param max_submissions: refuse, before the first send, to send more rows than this
    :param dry_run: read, map, validate and look the ledger up; send nothing, write nothing
    :param xcom_limit: rows whose session_id goes to XCom
    :param shard: ``"i/n"``: this task's share of the rows, by their users; with ``.partial(…).expand(shard=[…])`` many
        workers share one source. ``requests_per_second`` is then for all shares together.
    """

    template_fields: Sequence[str] = (*_RowsOperator.template_fields, "ledger_conn_id", "results_path", "shard")
    operator_extra_links = (HaloDeliveriesLink(),)

    def __init__(
        self,
        *,
        batch_size: int = 500,
        ledger_conn_id: str | None = None,
        on_in_doubt: OnInDoubt = "resend",
        on_change: OnChange = "skip",
        results_path: str | None = None,
        max_submissions: int | None = None,
        xcom_limit: int = 1000,
        shard: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_size = batch_size
        self.ledger_conn_id = ledger_conn_id
        self.on_in_doubt = on_in_doubt
        self.on_change = on_change
        self.results_path = results_path
        self.max_submissions = max_submissions
        self.xcom_limit = xcom_limit
        self.shard = shard
        self._counts: dict[str, int] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Deliver, and return the summary; push it, too, before a red end."""
        self._check()
        client = HaloHook(self.halo_conn_id).client(timeout=self.timeout)
        with (
            self._source() as source,
            closing(open_ledger(self.ledger_conn_id, create=not self.is_dry_run)) as ledger,
        ):
            task_instance = task_instance_of(context)
            lease_holder = ledger.lease_holder(
                f"{self.halo_conn_id}/{self.submission.name}", task_instance=task_instance
            )
            if self.is_dry_run:
                return self._dry_run(context, source, lease_holder)
            if self.max_submissions is not None:
                self._refuse_too_many(context, source, lease_holder)
            self._push_link(context, task_instance)
            total = self._total(source)
            watchers: dict[str, Watcher] = {
                "the ledger": DeliveryRecordWatcher(
                    DeliveryRecords(ledger), lease_holder=lease_holder, task_instance=task_instance
                ),
                "metrics": Metrics(task_instance),
            }
            if (store := context.get("task_state_store")) is not None:  # which Airflow 3.2 does not have
                watchers["the task state store"] = StateStoreWatcher(store)
            progress = Progress(log=self.log, batch_size=self.batch_size, total=total, watchers=watchers)
            with delivery_span(lease_holder.namespace, task_instance) as span:
                return self._deliver(context, source, lease_holder, client, progress=progress, span=span)

    def _push_link(self, context: Context, task_instance: TaskInstanceRef) -> None:
        """Let the button to the rows work from the start."""
        address = deliveries_url(
            dag_id=task_instance.dag_id or "",
            run_id=task_instance.run_id or "",
            task_id=task_instance.task_id or "",
            map_index=task_instance.map_index,
        )
        context["ti"].xcom_push(self.operator_extra_links[0].xcom_key, address)

    def _total(self, source: Source) -> int | None:
        """How many rows there are, where finding out costs little: in a list, or a file on this host."""
        if self.rows is not None:
            return len(self.rows) if isinstance(self.rows, Sized) and self.shard is None else None
        if self.csv_path is None or "://" in os.fspath(self.csv_path):
            return None
        try:
            return sum(1 for _ in source.rows(required=()))
        except SourceError:
            return None  # the delivery meets it too, and accounts for it

    @contextmanager
    def _source(self) -> Iterator[Source]:
        """This task's share of the rows."""
        with super()._source() as source:
            yield (
                source
                if self.shard is None
                else ShardedSource(source, shard=Shard.parse(self.shard), submission=self.submission)
            )

    def _rate(self) -> float | None:
        """This task's share of requests_per_second."""
        if self.requests_per_second is None or self.shard is None:
            return self.requests_per_second
        return self.requests_per_second / Shard.parse(self.shard).count

    def _dry_run(self, context: Context, source: Source, lease_holder: LeaseHolder) -> dict[str, Any]:
        """Say what would happen, and leave no trace."""
        rejects = _Rejects(None)
        started = time.monotonic()
        dry = self._dry_run_of(source, lease_holder, rejects)
        counts = dry.summary()
        self.log.info(
            "read %s, already delivered %s, would send %s",
            f"{counts['read']:,}",
            f"{counts['already_delivered']:,}",
            f"{dry.would_send:,}",
        )
        for example in dry.examples:
            self.log.info("would send (values masked): %s", json.dumps(example, ensure_ascii=False))
        summary = {
            **self._summary(counts, SessionIds(0), seconds=time.monotonic() - started, results_path=None),
            "dry_run": True,
            "would_send": dry.would_send,
            "examples": dry.examples,
        }
        error = self._too_many_rejected(rejects, read=dry.read, rejected=dry.counts[RowStatus.REJECTED])
        return self._finish(context, summary, error)

    def _dry_run_of(self, source: Source, lease_holder: LeaseHolder, rejects: _Rejects) -> DryRun:
        return dry_run(
            source,
            submission=self.submission,
            lease_holder=lease_holder,
            on_in_doubt=self.on_in_doubt,
            on_change=self.on_change,
            batch_size=self.batch_size,
            on_rejected=rejects.add,
        )

    def _refuse_too_many(self, context: Context, source: Source, lease_holder: LeaseHolder) -> None:
        """Count before the first send. Raises TooManySubmissionsError."""
        started = time.monotonic()
        dry = self._dry_run_of(source, lease_holder, _Rejects(None))
        if self.max_submissions is not None and dry.would_send > self.max_submissions:
            error = TooManySubmissionsError(would_send=dry.would_send, max_submissions=self.max_submissions)
            seconds = time.monotonic() - started
            summary = self._summary(dry.summary(), SessionIds(0), seconds=seconds, results_path=None)
            self._finish(context, summary, error)

    def _deliver(
        self,
        context: Context,
        source: Source,
        lease_holder: LeaseHolder,
        client: HaloClient,
        *,
        progress: Progress,
        span: dict[str, Any],
    ) -> dict[str, Any]:
        session_ids = SessionIds(self.xcom_limit)
        if self.rejects_path and (unreadable := self._unreadable(source)):
            nothing = self._summary(DeliveryReport().summary(), session_ids, seconds=0.0, results_path=None)
            return self._finish(context, {**nothing, "changed": 0}, unreadable)
        with ExitStack() as files:
            rejects = files.enter_context(self._rejects(source))
            results = files.enter_context(self._results())

            def on_outcome(outcome: Outcome) -> None:
                session_ids.add(outcome)
                progress.add(outcome)
                if results is not None:
                    results.write(outcome)
                if outcome.status is RowStatus.REJECTED and outcome.error is not None:
                    rejects.add(outcome.row, outcome.error)

            report: DeliveryReport = self._run(
                partial(
                    self._send,
                    source=source,
                    lease_holder=lease_holder,
                    client=client,
                    progress=progress,
                    on_outcome=on_outcome,
                )
            )
            unstored = self._complete(files)
        counts = self._counts = report.summary()
        span.update(counts, requests=report.requests)
        announce(self.outlets, context, counts)
        self.log.info("delivery ended", **counts, requests=report.requests, seconds=round(report.seconds, 2))
        summary = self._summary(counts, session_ids, seconds=report.seconds, results_path=self.results_path)
        summary["changed"] = report.changed
        error = report.failure() or self._too_many_rejected(
            rejects, read=report.read, rejected=report.counts[RowStatus.REJECTED]
        )
        return self._finish(context, summary, error or unstored)

    def _summary(
        self, counts: dict[str, int], session_ids: SessionIds, *, seconds: float, results_path: str | None
    ) -> dict[str, Any]:
        return {
            **counts,
            "session_ids": session_ids.found,
            "session_ids_truncated": session_ids.truncated,
            "results_path": results_path,
            "ledger": ledger_connection_id(self.ledger_conn_id) or DEFAULT_LEDGER,
            "seconds": round(seconds, 3),
            "rows_per_second": round(counts["read"] / seconds, 1) if seconds else 0.0,
        }

    @contextmanager
    def _results(self) -> Iterator[ResultsFile | None]:
        """The results file, where one is wanted: whole at the end, or not there."""
        if self.results_path is None:
            yield None
            return
        writer = results_writer(self.results_path)
        with atomic_write(self.results_path) as stream:
            results = writer(stream)
            yield results
            results.close()

    def _check(self) -> None:
        super()._check()
        if not 1 <= self.batch_size <= MAX_BATCH:
            raise HaloConfigurationError(f"batch_size must be between 1 and {MAX_BATCH:,}, not {self.batch_size:,}")
        if self.on_in_doubt not in {"resend", "hold"}:
            raise HaloConfigurationError(f"on_in_doubt must be resend or hold, not {self.on_in_doubt!r}")
        if self.on_change not in {"skip", "fail", "follow_up"}:
            raise HaloConfigurationError(f"on_change must be skip, fail or follow_up, not {self.on_change!r}")

    async def _send(
        self,
        stop: Stop,
        *,
        source: Source,
        lease_holder: LeaseHolder,
        client: HaloClient,
        progress: Progress,
        on_outcome: Callable[[Outcome], None],
    ) -> DeliveryReport:
        supervisor = os.getppid()
        async with client, progress.reported():
            report = await deliver(
                source,
                submission=self.submission,
                client=client,
                lease_holder=lease_holder,
                batch_size=self.batch_size,
                concurrency=self.concurrency,
                requests_per_second=self._rate(),
                max_attempts=self.max_attempts,
                on_in_doubt=self.on_in_doubt,
                on_change=self.on_change,
                stop=stop,
                alive=lambda: os.getppid() == supervisor,
                on_outcome=on_outcome,
                on_attempt=progress.attempted,
            )
            progress.stopped(report.stopped)
            return report

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """What OpenLineage is told before the rows are read."""
        return self._lineage()

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002 -- its signature
        """What OpenLineage is told at the end: how many rows were delivered, too."""
        return self._lineage()

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002 -- its signature
        """What OpenLineage is told after a red end: the same."""
        return self._lineage()

    def _lineage(self) -> OperatorLineage[Any, Any]:
        return lineage(
            halo_conn_id=self.halo_conn_id,
            submission_name=self.submission.name,
            csv_path=self.csv_path,
            sql=self.sql,
            sql_conn_id=self.sql_conn_id,
            counts=self._counts,
        )


def _is_final(error: Exception) -> bool:
    """Whether Airflow must not try again: somebody has to change the connection first."""
    forbidden = isinstance(error, HaloCallError) and error.verdict is Verdict.FORBIDDEN
    return forbidden or isinstance(error, HaloConfigurationError)
