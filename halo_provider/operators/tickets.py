"""HaloTicketStatusOperator, and what it shares with HaloTicketSensor: which rows, and what is told of their tickets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from halo_provider.compat import BaseOperator, facts_log
from halo_provider.delivery.results import TableFile, frame_writer
from halo_provider.delivery.tickets import DEFAULT_TICKET_WITHIN
from halo_provider.exceptions import HaloConfigurationError, HaloError, HaloReadError, WithoutTicketError
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import DEFAULT_LEDGER, ledger_connection_id
from halo_provider.hooks.tickets import TicketQuestion
from halo_provider.ledger.tickets import TicketRows, with_others
from halo_provider.operators.files import atomic_write
from halo_provider.operators.parameters import (
    allowed_rows,
    check_allowance,
    check_positive,
    check_results_path,
    check_whole_number,
    is_template,
)
from halo_provider.operators.retries import ends_retries
from halo_provider.operators.stopping import TaskStop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from halo_provider.client.reader import HaloReader
    from halo_provider.compat import Context
    from halo_provider.delivery.stop import Stop
    from halo_provider.delivery.tickets import Round, TicketFollower
    from halo_provider.ledger import Ledger
    from halo_provider.ledger.row_filter import RowCursor
    from halo_provider.ledger.tickets import TicketCounts, TicketFact, Until

PAGE = 1_000  # rows read from the ledger together
MAX_SESSIONS_SIZE = 40_000  # characters: MySQL keeps at most 65,535 bytes of a trigger, encrypted
COLUMNS = dict.fromkeys(
    ("row_key", "user_id", "session_id", "ticket_id", "ticket_status", "ticket_at"), "string"
)  # of the results file, and their types
TEMPLATE_FIELDS = (
    "halo_conn_id",
    "ledger_conn_id",
    "namespace",
    "session_ids",
    "delivery_dag_id",
    "delivery_run_id",
    "delivery_task_id",
    "results_path",
)


class TicketTask:
    """
    What the sensor and the operator share, beside Airflow's own base class.

    The rows are those of this run, unless ``namespace``, ``session_ids`` or a ``delivery_…`` parameter says otherwise.
    """

    halo_conn_id: str
    ledger_conn_id: str | None
    namespace: str | None
    session_ids: Any
    delivery_dag_id: str | None
    delivery_run_id: str | None
    delivery_task_id: str | None
    ticket_within: float
    max_without_ticket: float | None
    results_path: str | None
    xcom_limit: int
    _task_stop: TaskStop

    def on_kill(self) -> None:
        """Stop looking; what was seen is in the ledger."""
        self._task_stop.kill()

    def _check(self) -> None:
        check_positive("ticket_within", self.ticket_within)
        if self.max_without_ticket is not None:
            check_allowance("max_without_ticket", self.max_without_ticket)
        check_whole_number("xcom_limit", self.xcom_limit, least=0)
        check_results_path(self.results_path)
        if not is_template(self.session_ids):
            _sessions(self.session_ids)
        if self.session_ids is not None and self.namespace is not None:
            raise HaloConfigurationError("give one of session_ids and namespace, not both")

    def _question(self, context: Context, *, until: Until | None, asked_at: datetime | None = None) -> TicketQuestion:
        """Which rows. Raises HaloConfigurationError where the parameters name none."""
        session_ids = _sessions(self.session_ids)
        if self.session_ids is not None and not session_ids:
            raise HaloConfigurationError("session_ids is empty: there is nothing whose tickets could be looked up")
        ti = context["ti"]
        is_of_run = self.namespace is None and not session_ids
        return TicketQuestion(
            halo_conn_id=self.halo_conn_id,
            ledger_conn_id=self.ledger_conn_id,
            until=until,
            ticket_within=self.ticket_within,
            asked_at=(asked_at or datetime.now(UTC)).isoformat(),
            namespace=self.namespace,
            dag_id=self.delivery_dag_id or (ti.dag_id if is_of_run else None),
            run_id=self.delivery_run_id or (ti.run_id if is_of_run else None),
            task_id=self.delivery_task_id,
            session_ids=session_ids,
        )

    def _summary(
        self, ledger: Ledger, question: TicketQuestion, others: Mapping[str, TicketFact | None], *, calls: int
    ) -> tuple[dict[str, Any], TicketCounts]:
        """What is known of the tickets now, for XCom; the results file is written."""
        rows = TicketRows(ledger)
        counts = with_others(rows.counts(question.wanted), others.values())
        ticket_ids: dict[str, str] = {}
        is_truncated = False
        with ExitStack() as stack:
            results = None
            if self.results_path:
                stream = stack.enter_context(atomic_write(self.results_path))
                results = TableFile(stream, columns=COLUMNS, frame_writer=frame_writer(self.results_path, COLUMNS))
            for row in _every(rows, question, others):
                if results is not None:
                    results.add(*row)
                if row.ticket_id is None:
                    continue
                if len(ticket_ids) >= self.xcom_limit:
                    is_truncated = True
                else:
                    ticket_ids[row.row_key if row.row_key not in ticket_ids else row.session_id] = row.ticket_id
            if results is not None:
                results.close()
        return {
            "rows": counts.rows,
            "with_ticket": counts.with_ticket,
            "tickets": counts.tickets,
            "without_ticket": counts.without_ticket,
            "not_found": counts.not_found,
            "waiting": counts.waiting,
            "resolved": counts.resolved,
            "statuses": dict(counts.statuses),
            "ticket_ids": ticket_ids,
            "ticket_ids_truncated": is_truncated,
            "results_path": self.results_path,
            "ledger": ledger_connection_id(self.ledger_conn_id) or DEFAULT_LEDGER,
            "calls": calls,
        }, counts

    def _too_many_without(self, counts: TicketCounts) -> WithoutTicketError | None:
        """The error of the policy, where it is not kept."""
        if self.max_without_ticket is None:
            return None
        if counts.without_ticket + counts.not_found <= allowed_rows(self.max_without_ticket, counts.rows):
            return None
        return WithoutTicketError(
            without_ticket=counts.without_ticket,
            not_found=counts.not_found,
            rows=counts.rows,
            found=counts.sentence(),
        )


class _Line(NamedTuple):
    """One row of the results file."""

    row_key: str
    user_id: str | None
    session_id: str
    ticket_id: str | None
    ticket_status: str | None
    ticket_at: str | None


def _every(rows: TicketRows, question: TicketQuestion, others: Mapping[str, TicketFact | None]) -> Iterator[_Line]:
    """Every row that was asked about, page by page."""
    after: RowCursor | None = None
    while True:
        page, after = rows.page(question.wanted, until=None, after=after, limit=PAGE)
        for row in page:
            yield _line(row.row_key, row.user_id, row.session_id, row.known)
        if after is None:
            break
    for session_id, fact in others.items():
        yield _line(session_id, None, session_id, fact)


def _line(row_key: str, user_id: str | None, session_id: str, fact: TicketFact | None) -> _Line:
    at = fact.at.isoformat() if fact and fact.at else None
    return _Line(row_key, user_id, session_id, fact.ticket_id if fact else None, fact.status if fact else None, at)


def _sessions(given: Any) -> tuple[str, ...]:
    """The sessions of a list, of ``{row_key: session_id}``, or of what HaloTicketOperator returned."""
    if given is None:
        return ()
    if isinstance(given, Mapping) and isinstance(given.get("session_ids"), Mapping):
        if given.get("session_ids_truncated"):
            raise HaloConfigurationError(
                "session_ids: XCom has only the first ones; leave session_ids out, which means all rows of this run, "
                "or give namespace"
            )
        given = given["session_ids"]
    found = list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(found, list | tuple | set) or not all(isinstance(each, str) and each for each in found):
        raise HaloConfigurationError(
            "session_ids must be a list of session ids, {row_key: session_id}, or what HaloTicketOperator returned"
        )
    if sum(map(len, found)) + 4 * len(found) > MAX_SESSIONS_SIZE:
        raise HaloConfigurationError(
            f"{len(found):,} session_ids are more than a trigger can hold; leave session_ids out, which means all rows "
            "of this run, or give namespace"
        )
    return tuple(dict.fromkeys(found))


class HaloTicketStatusOperator(TicketTask, BaseOperator):
    """
    Looks once at the tickets of delivered rows, and brings their ids, statuses and times into the ledger and XCom.

    Needs a sign-in by ``halo-login``. The rows are those that this DAG run delivered; other parameters name others.
    Returns ``rows``, ``with_ticket``, ``tickets``, ``without_ticket``, ``not_found``, ``waiting``, ``resolved``,
    ``statuses``, ``ticket_ids`` {row_key: ticket_id} and ``calls``, also when the task then fails.

    :param halo_conn_id: the Halo connection
    :param ledger_conn_id: the database of the ledger; by default ``[halo] ledger_conn_id``, else SQLite
    :param namespace: all rows of this namespace, ``<halo_conn_id>/<submission name>``, whatever run delivered them
    :param session_ids: the rows of these sessions: a list, ``{row_key: session_id}``, or HaloTicketOperator's output
    :param delivery_dag_id: rows that this DAG delivered
    :param delivery_run_id: rows that were delivered in this run
    :param delivery_task_id: rows that this task delivered
    :param ticket_within: seconds after a row's delivery in which its ticket can appear; afterwards it counts as
        answered without a ticket
    :param max_without_ticket: rows (int), or share of the rows (float), that may be without a ticket in a green run,
        those included that Halo's tools do not find; None: any number
    :param results_path: a file (``.csv``, ``.jsonl`` or ``.parquet``) with one line for each row
    :param xcom_limit: rows whose ticket id is in XCom
    """

    template_fields: Sequence[str] = TEMPLATE_FIELDS
    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        halo_conn_id: str = HaloHook.default_conn_name,
        ledger_conn_id: str | None = None,
        namespace: str | None = None,
        session_ids: Any = None,
        delivery_dag_id: str | None = None,
        delivery_run_id: str | None = None,
        delivery_task_id: str | None = None,
        ticket_within: float = DEFAULT_TICKET_WITHIN,
        max_without_ticket: float | None = None,
        results_path: str | None = None,
        xcom_limit: int = 1_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.halo_conn_id = halo_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.namespace = namespace
        self.session_ids = session_ids
        self.delivery_dag_id = delivery_dag_id
        self.delivery_run_id = delivery_run_id
        self.delivery_task_id = delivery_task_id
        self.ticket_within = ticket_within
        self.max_without_ticket = max_without_ticket
        self.results_path = results_path
        self.xcom_limit = xcom_limit
        self._task_stop = TaskStop()
        self._check()

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Look, and return what was seen."""
        self._check()
        question = self._question(context, until=None)
        started = time.monotonic()
        ledger, reader, follower = question.open()
        with closing(ledger):
            seen = look_once(reader, follower, self._task_stop, execution_timeout=self.execution_timeout)
            facts_log(self.log).info(seen.counts.sentence(), calls=seen.calls)
            for sentence in follower.limits():
                self.log.warning("looking tickets up: %s", sentence)
            summary, counts = self._summary(ledger, question, follower.others, calls=seen.calls)
        summary["seconds"] = round(time.monotonic() - started, 3)
        error: HaloError | None = self._too_many_without(counts)
        if seen.problem is not None:
            error = HaloReadError(f"not every row could be looked at: {seen.problem}")
        if error is not None:
            context["ti"].xcom_push("return_value", summary)
            error.summary = summary
            raise error
        return summary


def look_once(
    reader: HaloReader, follower: TicketFollower, task_stop: TaskStop, *, execution_timeout: timedelta | None
) -> Round:
    """
    Look at every wanted row, in a task's own process.

    :param reader: is entered here
    :param follower: what looks
    :param task_stop: ends it early
    :param execution_timeout: the task's
    :raises HaloReadError: if Halo cannot be asked, or the task was stopped
    """

    async def look(stop: Stop) -> Round:
        async with reader:
            try:
                async with stop.limit():
                    return await follower.look()
            except TimeoutError:
                raise HaloReadError(f"{stop.reason}; what was seen until then is in the ledger") from None

    return task_stop.run(look, execution_timeout=execution_timeout)
