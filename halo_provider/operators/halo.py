"""HaloIdentifyOperator and HaloTicketOperator: adapters between an Airflow task and the core."""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AbstractContextManager, AsyncExitStack, closing
from dataclasses import asdict
from functools import partial
from inspect import signature
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from halo_provider.compat import AirflowSkipException, BaseOperator, facts_log
from halo_provider.delivery.delivery import deliver
from halo_provider.delivery.dry_run import dry_run
from halo_provider.delivery.identify import IdentifyMode, IdentifyReport, identify
from halo_provider.delivery.observer import Observers
from halo_provider.delivery.options import AskElse, DeliveryOptions, OnChange, SendOptions
from halo_provider.delivery.report import DeliveryReport, SessionIds
from halo_provider.exceptions import (
    HaloConfigurationError,
    HaloError,
    NoFileError,
    RowsRejectedError,
    SourceError,
    TooFewRowsError,
    TooManySubmissionsError,
)
from halo_provider.hooks.database import database_engine
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import (
    DEFAULT_LEDGER,
    OWN_LEDGER_KEY,
    ledger_connection_id,
    open_ledger,
    own_ledger,
    task_instance_of,
)
from halo_provider.ledger.delivery_records import DeliveryRecords
from halo_provider.ledger.rules import OnInDoubt
from halo_provider.ledger.statuses import RowStatus
from halo_provider.operators.files import files_of, open_binary
from halo_provider.operators.lineage import announce, lineage
from halo_provider.operators.links import HaloDeliveriesLink, page_url
from halo_provider.operators.output import RowOutput
from halo_provider.operators.parameters import (
    allowed_rows,
    check_allowance,
    check_choice,
    check_context,
    check_flag,
    check_limit,
    check_outputs,
    check_positive,
    check_results_path,
    check_shard,
    check_source,
    check_submission,
    check_whole_number,
    refuse_unknown,
    upstream_tasks,
)
from halo_provider.operators.progress import DeliveryRecordWatcher, Progress, StateStoreWatcher, Watcher
from halo_provider.operators.retries import ends_retries, use_retry_policy
from halo_provider.operators.stopping import TaskStop
from halo_provider.operators.telemetry import Metrics, delivery_span
from halo_provider.operators.tickets import HaloTicketStatusOperator
from halo_provider.sources.formats import parse_csv_options
from halo_provider.sources.open import SOURCES, open_source
from halo_provider.sources.shards import Shard, ShardedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from halo_provider.client.client import HaloClient
    from halo_provider.client.reader import HaloReader
    from halo_provider.compat import Context, OperatorLineage
    from halo_provider.delivery.stop import Stop
    from halo_provider.ledger.claims import LeaseHolder
    from halo_provider.ledger.rules import TaskInstanceRef
    from halo_provider.sources.formats import Paths
    from halo_provider.sources.rows import Source
    from halo_provider.submission import Submission

__all__ = ["HaloIdentifyOperator", "HaloTicketOperator", "HaloTicketStatusOperator"]

OnEmpty = Literal["succeed", "skip", "fail"]

BACKFILL = "backfill"  # a run's type; Airflow's enum is a string, and another class on workers than elsewhere
MAX_BATCH = 10_000  # rows: a query about all of them has to fit into the variables that SQLite takes, 32,766


class _RowsOperator(BaseOperator):
    """What both operators share: exactly one source of rows, how fast to send, and what to do with rejected rows."""

    template_fields: Sequence[str] = (
        "csv_path",
        "csv_options",
        "file_path",
        "file_options",
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
    results_path: str | None = None  # only tickets have results and shares
    shard: str | None = None

    def __init__(
        self,
        *,
        submission: Submission = None,  # type: ignore[assignment]  # that it is missing is said by _check
        csv_path: Paths | None = None,
        csv_options: dict[str, str] | None = None,
        file_path: Paths | None = None,
        file_options: dict[str, str] | None = None,
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
        min_rows: int = 0,
        on_empty: OnEmpty = "succeed",
        dry_run: bool = False,
        **kwargs: Any,
    ) -> None:
        try:
            super().__init__(**kwargs)
        except TypeError:
            refuse_unknown(type(self).__name__, kwargs, _parameters(type(self)))
            raise
        self.submission = submission
        self.csv_path = csv_path
        self.csv_options = csv_options
        self.file_path = file_path
        self.file_options = file_options
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
        self.min_rows = min_rows
        self.on_empty = on_empty
        self.is_dry_run = dry_run  # BaseOperator.dry_run is a method, which `airflow tasks test --dry-run` calls
        use_retry_policy(self)
        self._task_stop = TaskStop()
        given = {name: getattr(self, name) for name in SOURCES if getattr(self, name) is not None}
        self._sources_from = {name: upstream_tasks(value) for name, value in given.items()}

    def on_kill(self) -> None:
        """Stop sending, give what is in flight a short while, commit: inside Airflow's five seconds."""
        self._task_stop.kill()

    def _check(self) -> None:
        """Refuse parameters that cannot work: when the DAG is parsed what is no template, the rest before the run."""
        check_submission(self.submission)
        for name in ("concurrency", "max_attempts"):
            check_whole_number(name, getattr(self, name), least=1)
        check_whole_number("min_rows", self.min_rows, least=0)
        check_positive("timeout", self.timeout)
        if self.requests_per_second is not None:
            check_positive("requests_per_second", self.requests_per_second)
        check_allowance("max_rejected", self.max_rejected)
        check_choice("on_empty", self.on_empty, get_args(OnEmpty))
        check_flag("dry_run", self.is_dry_run)
        check_source(
            csv_path=self.csv_path,
            csv_options=self.csv_options,
            file_path=self.file_path,
            file_options=self.file_options,
            sql=self.sql,
            sql_conn_id=self.sql_conn_id,
            rows=self.rows,
            given=self._sources_from,
        )
        check_outputs(
            sources={"csv_path": self.csv_path, "file_path": self.file_path},
            rejects_path=self.rejects_path,
            results_path=self.results_path,
        )

    def _source(self) -> AbstractContextManager[Source]:
        """The one source of rows that the parameters name, closed at the end."""
        return open_source(
            csv_path=self.csv_path,
            csv_options=self.csv_options,
            file_path=self.file_path,
            file_options=self.file_options,
            sql=self.sql,
            sql_conn_id=self.sql_conn_id,
            sql_parameters=self.sql_parameters,
            rows=self.rows,
            submission=self.submission,
            shard=self.shard,
            open_binary=open_binary,
            files_of=self._files_of,
            engine_of=database_engine,
        )

    def _files_of(self, path: str) -> list[str]:
        """The files of a pattern; none of them is one that the task writes."""
        files = files_of(path)
        check_outputs(sources={}, rejects_path=self.rejects_path, results_path=self.results_path, files=files)
        return files

    def _arrived(self) -> None:
        """Raise HaloConfigurationError where the upstream task whose output the source is returned nothing."""
        for name, tasks in self._sources_from.items():
            if getattr(self, name) is None:
                task = f"the task {', '.join(map(repr, tasks))}" if tasks else "the upstream task"
                wanted = (
                    "a list of dicts, an empty one where there is nothing" if name == "rows" else "what it is to be"
                )
                raise HaloConfigurationError(f"{name}: {task} returned nothing (None); return {wanted}")

    def _is_there(self, source: Source) -> None:
        """Raise TooFewRowsError where the source has fewer rows than it has to have."""
        wanted = max(self.min_rows, self.on_empty != "succeed")
        if not wanted:
            return
        whole = source.whole if isinstance(source, ShardedSource) else source
        found = sum(1 for _ in islice(whole.rows(required=[]), wanted))
        if found < wanted:
            raise TooFewRowsError(whole.description, rows=found, min_rows=self.min_rows)

    def _too_many_rejected(self, first: str | None, *, read: int, rejected: int) -> RowsRejectedError | None:
        if rejected <= allowed_rows(self.max_rejected, read):
            return None
        return RowsRejectedError(rejected=rejected, read=read, first=first or "", rejects_path=self.rejects_path)

    def _finish(
        self, context: Context, summary: dict[str, Any], error: Exception | None, *, output: RowOutput | None = None
    ) -> dict[str, Any]:
        """Return the summary, or push it and raise: a red task tells its counts too, and which files it wrote."""
        if error is None:
            return summary
        context["ti"].xcom_push("return_value", summary)
        if isinstance(error, HaloError):
            error.summary = summary
            if output is not None:
                error.rejects_path, error.results_path = output.written
        raise error

    def _nothing_read(self, context: Context, summary: dict[str, Any], error: SourceError) -> dict[str, Any]:
        """The end of a run whose source cannot be read, or is not there: red, or skipped where that is wanted."""
        if error.summary is not None:  # of a run that came further
            raise error
        if self.on_empty == "skip" and isinstance(error, NoFileError | TooFewRowsError) and not error.rows:
            context["ti"].xcom_push("return_value", summary)
            raise AirflowSkipException(f"{error.source}: there are no rows, and on_empty='skip'") from error
        return self._finish(context, summary, error)


def _parameters(operator: type[BaseOperator]) -> list[str]:
    """The names of everything that the operator can be given."""
    classes = [kind for kind in operator.__mro__ if issubclass(kind, BaseOperator)]
    return list(dict.fromkeys(name for kind in classes for name in signature(kind.__init__).parameters))


class HaloIdentifyOperator(_RowsOperator):
    """
    Makes the users and companies of rows known to Halo, each once, users before companies.

    Returns ``read``, ``users``, ``companies``, ``skipped``, ``rejected`` and ``mode``.

    :param submission: which columns name the user and the company
    :param csv_path: a CSV file, local or an ObjectStoragePath URL, also compressed; a pattern (``part-*.csv``) or a
        list is read in the order of the names. Give exactly one source.
    :param csv_options: ``delimiter``, ``encoding`` and ``quotechar`` of that file
    :param file_path: a Parquet, JSON Lines or Excel file, a pattern or a list, as ``csv_path``
    :param file_options: ``format`` (``parquet``, ``jsonl`` or ``excel``) where the name does not tell it, ``sheet``
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
    :param min_rows: fewer rows in the source, and the task is red before anything is sent
    :param on_empty: a source without rows: ``succeed``, ``skip`` (the task) or ``fail``
    :param dry_run: read and validate everything; send nothing, write nothing
    """

    def __init__(self, *, mode: Literal["auto", "identify", "update"] = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self._check()

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Identify, and return the counts."""
        check_context(context)
        self._check()
        self._arrived()
        mode = self._mode(context)
        client = HaloHook(self.halo_conn_id).client(timeout=self.timeout)
        try:
            with self._source() as source:
                self._is_there(source)
                return self._run(context, source, client, mode=mode)
        except SourceError as unreadable:
            return self._nothing_read(context, self._counts(IdentifyReport(mode=mode)), unreadable)

    def _run(self, context: Context, source: Source, client: HaloClient, *, mode: IdentifyMode) -> dict[str, Any]:
        rejects_path = None if self.is_dry_run else self.rejects_path
        output = RowOutput(source, csv_options=parse_csv_options(self.csv_options), rejects_path=rejects_path)
        with output:
            report = self._task_stop.run(
                partial(self._identify, source=source, client=client, mode=mode, output=output),
                execution_timeout=self.execution_timeout,
            )
        summary = self._counts(report)
        facts_log(self.log).info(
            "would identify" if self.is_dry_run else "identified", **summary, seconds=round(report.seconds, 2)
        )
        error = report.error or self._too_many_rejected(
            output.first_rejected, read=report.read, rejected=report.rejected
        )
        return self._finish(context, summary, error or output.error, output=output)

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
        if self.mode == "auto":
            return "update" if context["dag_run"].run_type == BACKFILL else "identify"
        return self.mode

    def _check(self) -> None:
        super()._check()
        check_choice("mode", self.mode, ("auto", "identify", "update"))

    async def _identify(
        self, stop: Stop, *, source: Source, client: HaloClient, mode: IdentifyMode, output: RowOutput
    ) -> IdentifyReport:
        async with client:
            return await identify(
                source,
                submission=self.submission,
                client=client,
                mode=mode,
                options=SendOptions(
                    concurrency=self.concurrency,
                    requests_per_second=self.requests_per_second,
                    max_attempts=self.max_attempts,
                ),
                stop=stop,
                dry_run=self.is_dry_run,
                on_rejected=output.reject,
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
    :param csv_path: a CSV file, local or an ObjectStoragePath URL, also compressed; a pattern (``part-*.csv``) or a
        list is read in the order of the names. Give exactly one source.
    :param csv_options: ``delimiter``, ``encoding`` and ``quotechar`` of that file
    :param file_path: a Parquet, JSON Lines or Excel file, a pattern or a list, as ``csv_path``
    :param file_options: ``format`` (``parquet``, ``jsonl`` or ``excel``) where the name does not tell it, ``sheet``
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
    :param min_rows: fewer rows in the source, and the task is red before anything is sent
    :param on_empty: a source without rows: ``succeed``, ``skip`` (the task) or ``fail``
    :param ledger_conn_id: the database that holds the ledger; by default ``[halo] ledger_conn_id``, else SQLite
    :param on_in_doubt: ``resend`` (at least once), ``hold`` (at most once: such rows wait for a decision) or ``ask``
        (look it up in Halo first, by the sign-in of ``halo-login``: what is there is delivered, what is not is sent)
    :param ask_after: seconds after an attempt's end after which "not there" counts; how soon Halo can find a new
        conversation is not documented
    :param ask_else: what to do with a row about which Halo gives no answer: ``hold`` or ``resend``
    :param on_change: what to do about a delivered row whose content is another one now: ``skip`` (leave it), ``fail``
        (leave it, and end red) or ``follow_up`` (send the new content into the row's session, once per change)
    :param own_session_ids: derive the session's id from the namespace and the row's key, so that a row that is sent
        twice lands in one conversation. Off by default: whether Halo takes ids that it did not make is not documented
    :param results_path: where every row's row_key, user_id, session_id, status and attempts go, as ``.csv``,
        ``.jsonl`` or ``.parquet``, whole or not at all
    :param max_submissions: refuse, before the first send, to send more rows than this; a template may render to it
    :param dry_run: read, map, validate and look the ledger up; send nothing, write nothing
    :param xcom_limit: rows whose session_id goes to XCom
    :param shard: ``"i/n"``: this task's share of the rows, by their users; with ``.partial(…).expand(shard=[…])`` many
        workers share one source. ``requests_per_second`` is then for all shares together.
    """

    template_fields: Sequence[str] = (
        *_RowsOperator.template_fields,
        "ledger_conn_id",
        "results_path",
        "max_submissions",
        "shard",
    )
    operator_extra_links = (HaloDeliveriesLink(),)

    def __init__(
        self,
        *,
        batch_size: int = 500,
        ledger_conn_id: str | None = None,
        on_in_doubt: OnInDoubt = "resend",
        ask_after: float = 60.0,
        ask_else: AskElse = "hold",
        on_change: OnChange = "skip",
        own_session_ids: bool = False,
        results_path: str | None = None,
        max_submissions: int | str | None = None,
        xcom_limit: int = 1000,
        shard: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batch_size = batch_size
        self.ledger_conn_id = ledger_conn_id
        self.on_in_doubt = on_in_doubt
        self.ask_after = ask_after
        self.ask_else = ask_else
        self.on_change = on_change
        self.own_session_ids = own_session_ids
        self.results_path = results_path
        self.max_submissions = max_submissions
        self._is_limited = max_submissions is not None
        self.xcom_limit = xcom_limit
        self.shard = shard
        self._counts: dict[str, int] | None = None
        self._check()

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Deliver, and return the summary; push it, too, before a red end."""
        check_context(context)
        task_instance = task_instance_of(context)
        try:
            self._check()
            self._arrived()
            client = HaloHook(self.halo_conn_id).client(timeout=self.timeout)
            try:
                with self._source() as source:
                    self._is_there(source)
                    return self._run(context, source, client, task_instance)
            except SourceError as unreadable:
                return self._nothing_read(context, self._no_rows(), unreadable)
        except HaloError as error:
            error.page_url = page_url(task_instance)
            raise

    def _run(
        self, context: Context, source: Source, client: HaloClient, task_instance: TaskInstanceRef
    ) -> dict[str, Any]:
        with closing(open_ledger(self.ledger_conn_id, create=not self.is_dry_run)) as ledger:
            lease_holder = ledger.lease_holder(
                f"{self.halo_conn_id}/{self.submission.name}", task_instance=task_instance
            )
            if self.is_dry_run:
                return self._dry_run(context, source, lease_holder)
            self._refuse_too_many(context, source, lease_holder)
            self._push_link(context, task_instance)
            if (conn_id := own_ledger(self.ledger_conn_id)) is not None:
                context["ti"].xcom_push(OWN_LEDGER_KEY, conn_id)
            watchers: dict[str, Watcher] = {
                "the ledger": DeliveryRecordWatcher(
                    DeliveryRecords(ledger), lease_holder=lease_holder, task_instance=task_instance
                ),
                "metrics": Metrics(task_instance),
            }
            if (store := context.get("task_state_store")) is not None:  # which came with Airflow 3.3
                watchers["the task state store"] = StateStoreWatcher(store)
            progress = Progress(log=facts_log(self.log), batch_size=self.batch_size, watchers=watchers)
            with delivery_span(lease_holder.namespace, task_instance) as span:
                reader = HaloHook(self.halo_conn_id).reader(ledger) if self.on_in_doubt == "ask" else None
                return self._deliver(context, source, lease_holder, client, reader, progress=progress, span=span)

    def _push_link(self, context: Context, task_instance: TaskInstanceRef) -> None:
        """Let the button to the rows work from the start."""
        address = page_url(task_instance) or HaloHook(self.halo_conn_id).dashboard_url
        if address is not None:
            context["ti"].xcom_push(self.operator_extra_links[0].xcom_key, address)

    def _options(self) -> DeliveryOptions:
        """How to deliver; of requests_per_second this task's share."""
        rate = self.requests_per_second
        if rate is not None and self.shard is not None:
            rate /= Shard.parse(self.shard).count
        return DeliveryOptions(
            batch_size=self.batch_size,
            concurrency=self.concurrency,
            requests_per_second=rate,
            max_attempts=self.max_attempts,
            on_in_doubt=self.on_in_doubt,
            ask_after=self.ask_after,
            ask_else=self.ask_else,
            on_change=self.on_change,
            own_session_ids=self.own_session_ids,
        )

    def _dry_run(self, context: Context, source: Source, lease_holder: LeaseHolder) -> dict[str, Any]:
        """Say what would happen, and write nothing."""
        output = RowOutput(source, csv_options=parse_csv_options(self.csv_options))
        started = time.monotonic()
        planned = dry_run(
            source,
            submission=self.submission,
            lease_holder=lease_holder,
            options=self._options(),
            on_rejected=output.reject,
        )
        counts = planned.summary()
        self.log.info(
            "read %s, already delivered %s, would send %s",
            f"{counts['read']:,}",
            f"{counts['already_delivered']:,}",
            f"{planned.would_send:,}",
        )
        for example in planned.examples:
            self.log.info("would send (values masked): %s", json.dumps(example, ensure_ascii=False))
        summary = {
            **self._summary(counts, output.session_ids, seconds=time.monotonic() - started, results_path=None),
            "dry_run": True,
            "would_send": planned.would_send,
            "examples": planned.examples,
        }
        error = self._too_many_rejected(
            output.first_rejected, read=planned.read, rejected=planned.counts[RowStatus.REJECTED]
        )
        return self._finish(context, summary, error)

    def _refuse_too_many(self, context: Context, source: Source, lease_holder: LeaseHolder) -> None:
        """Count before the first send. Raises TooManySubmissionsError."""
        if self.max_submissions is None:
            return
        most = int(self.max_submissions)
        started = time.monotonic()
        planned = dry_run(source, submission=self.submission, lease_holder=lease_holder, options=self._options())
        if planned.would_send > most:
            error = TooManySubmissionsError(would_send=planned.would_send, max_submissions=most)
            seconds = time.monotonic() - started
            summary = self._summary(planned.summary(), SessionIds(0), seconds=seconds, results_path=None)
            self._finish(context, summary, error)

    def _deliver(
        self,
        context: Context,
        source: Source,
        lease_holder: LeaseHolder,
        client: HaloClient,
        reader: HaloReader | None,
        *,
        progress: Progress,
        span: dict[str, Any],
    ) -> dict[str, Any]:
        output = RowOutput(
            source,
            csv_options=parse_csv_options(self.csv_options),
            rejects_path=self.rejects_path,
            results_path=self.results_path,
            xcom_limit=self.xcom_limit,
        )
        with output:
            report = self._task_stop.run(
                partial(
                    self._send,
                    source=source,
                    lease_holder=lease_holder,
                    client=client,
                    reader=reader,
                    progress=progress,
                    output=output,
                ),
                execution_timeout=self.execution_timeout,
            )
        counts = self._counts = report.summary()
        span.update(counts, requests=report.requests)
        announce(self.outlets, context, counts)
        facts_log(self.log).info("delivery ended", **counts, requests=report.requests, seconds=round(report.seconds, 2))
        summary = self._summary(counts, output.session_ids, seconds=report.seconds, results_path=self.results_path)
        summary["changed"] = report.changed
        summary["pace"] = {**asdict(report.pace), "requests": report.requests} if report.pace else None
        error = report.failure() or self._too_many_rejected(
            output.first_rejected, read=report.read, rejected=report.counts[RowStatus.REJECTED]
        )
        return self._finish(context, summary, error or output.error, output=output)

    def _no_rows(self) -> dict[str, Any]:
        """The summary of a run that read nothing."""
        counts = DeliveryReport().summary()
        return {**self._summary(counts, SessionIds(0), seconds=0.0, results_path=None), "changed": 0, "pace": None}

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
            "rows_per_second": round((counts["read"] - counts["not_attempted"]) / seconds, 1) if seconds else 0.0,
        }

    def _check(self) -> None:
        super()._check()
        check_whole_number("batch_size", self.batch_size, least=1, most=MAX_BATCH)
        check_whole_number("xcom_limit", self.xcom_limit, least=0)
        check_limit("max_submissions", self.max_submissions, is_given=self._is_limited)
        check_choice("on_in_doubt", self.on_in_doubt, get_args(OnInDoubt))
        check_choice("ask_else", self.ask_else, get_args(AskElse))
        check_positive("ask_after", self.ask_after)
        check_choice("on_change", self.on_change, get_args(OnChange))
        check_flag("own_session_ids", self.own_session_ids)
        check_results_path(self.results_path)
        check_shard(self.shard)

    async def _send(
        self,
        stop: Stop,
        *,
        source: Source,
        lease_holder: LeaseHolder,
        client: HaloClient,
        reader: HaloReader | None,
        progress: Progress,
        output: RowOutput,
    ) -> DeliveryReport:
        supervisor = os.getppid()
        async with client, progress.reported(), AsyncExitStack() as stack:
            if reader is not None:
                await stack.enter_async_context(reader)
                telling = asyncio.create_task(self._tell_of_reading(reader))
                stack.callback(telling.cancel)
            report = await deliver(
                source,
                submission=self.submission,
                client=client,
                lease_holder=lease_holder,
                options=self._options(),
                observer=Observers(output, progress),
                stop=stop,
                alive=lambda: os.getppid() == supervisor,
                reader=reader,
            )
            progress.stopped(report.stopped)
            return report

    async def _tell_of_reading(self, reader: HaloReader) -> None:
        """Say what Halo's tools cannot be asked, while rows are sent."""
        try:
            for sentence in await reader.limits():
                self.log.warning("looking rows up in Halo: %s", sentence)
        except HaloError as error:
            self.log.warning("rows in doubt cannot be looked up, ask_else=%r holds: %s", self.ask_else, error)

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
            paths=self.csv_path if self.csv_path is not None else self.file_path,
            sql=self.sql,
            sql_conn_id=self.sql_conn_id,
            counts=self._counts,
        )
