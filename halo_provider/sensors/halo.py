"""HaloTicketSensor: waits until delivered rows have their tickets, or until these are resolved."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from halo_provider.compat import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    facts_log,
)
from halo_provider.delivery.tickets import DEFAULT_TICKET_WITHIN
from halo_provider.exceptions import HaloError
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import open_ledger
from halo_provider.hooks.tickets import TicketQuestion, read_back
from halo_provider.ledger.tickets import Until
from halo_provider.operators.parameters import check_choice, check_flag
from halo_provider.operators.retries import ends_retries
from halo_provider.operators.stopping import TaskStop
from halo_provider.operators.tickets import TEMPLATE_FIELDS, TicketTask, look_once
from halo_provider.triggers.halo import FAILED, TIMED_OUT, HaloTicketTrigger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from halo_provider.compat import Context
    from halo_provider.ledger.tickets import TicketCounts, TicketFact

# After the sensor's own timeout, at which Airflow ends a trigger that does not fire.
DEFER_MARGIN = timedelta(minutes=5)


class HaloTicketSensor(TicketTask, BaseSensorOperator):
    """
    Waits until delivered rows have their tickets (``until="created"``), or until these are resolved.

    Needs a sign-in by ``halo-login``. The rows are those that this DAG run delivered; other parameters name others.
    What is seen of tickets is recorded in the ledger at once. It waits in the triggerer, one trigger for all rows,
    which asks Halo for lists of tickets rather than row by row.

    A row whose ticket does not appear within ``ticket_within`` seconds counts as answered without a ticket, and is not
    waited for any longer; so does one whose session Halo's tools do not find.

    Returns what HaloTicketStatusOperator returns, also when the task then fails or times out.

    :param until: ``created`` or ``resolved`` (Resolved or Spam in Halo)
    :param halo_conn_id: the Halo connection
    :param ledger_conn_id: the database of the ledger; by default ``[halo] ledger_conn_id``, else SQLite
    :param namespace: all rows of this namespace, ``<halo_conn_id>/<submission name>``, whatever run delivered them
    :param session_ids: the rows of these sessions: a list, ``{row_key: session_id}``, or HaloTicketOperator's output
    :param delivery_dag_id: rows that this DAG delivered
    :param delivery_run_id: rows that were delivered in this run
    :param delivery_task_id: rows that this task delivered
    :param ticket_within: seconds after a row's delivery in which its ticket can appear
    :param max_without_ticket: rows (int), or share of the rows (float), that may be without a ticket in a green run,
        those included that Halo's tools do not find; None: any number
    :param results_path: a file (``.csv``, ``.jsonl`` or ``.parquet``) with one line for each row
    :param xcom_limit: rows whose ticket id is in XCom
    :param deferrable: wait in the triggerer; False waits in a worker, by Airflow's ``mode``
    """

    template_fields: Sequence[str] = TEMPLATE_FIELDS
    ui_color = "#e8e4fb"

    def __init__(
        self,
        *,
        until: Until = "created",
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
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.until = until
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
        self.deferrable = deferrable
        self._task_stop = TaskStop()
        self._others: dict[str, TicketFact | None] = {}
        self._calls = 0
        self._check()

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Defer to the trigger, or look from here."""
        self._check()
        question = self._question(context, until=self.until)
        if not self.deferrable:
            return super().execute(context)
        timeout = timedelta(seconds=self.timeout)
        self.defer(
            trigger=HaloTicketTrigger(
                question=question.as_dict(),
                poke_interval=self.poke_interval,
                end_at=(datetime.now(UTC) + timeout).isoformat(),
            ),
            method_name="execute_complete",
            kwargs={"question": question.as_dict()},
            timeout=timeout + DEFER_MARGIN,
        )
        return None

    @ends_retries
    def execute_complete(
        self, context: Context, event: Mapping[str, Any] | None = None, question: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """
        End as the trigger has found it.

        :param context: the task's
        :param event: the trigger's
        :param question: which rows, as they were when the sensor was deferred
        :raises WithoutTicketError: if more rows are without a ticket than ``max_without_ticket`` allows
        :raises HaloError: if Halo could not be asked; AirflowFailException where another try would end so too
        :raises AirflowSensorTimeout: if it took too long
        """
        asked = TicketQuestion.of(question) if question else self._question(context, until=self.until)
        told = event or {"outcome": FAILED, "reason": "the trigger said nothing"}
        with closing(open_ledger(asked.ledger_conn_id)) as ledger:
            summary, counts = self._summary(
                ledger, asked, read_back(told.get("others") or {}), calls=told.get("calls", 0)
            )
        context["ti"].xcom_push("return_value", summary)
        facts_log(self.log).info(counts.sentence(), calls=summary["calls"])
        if told["outcome"] == FAILED:
            error = AirflowFailException if told.get("final") else HaloError
            raise error(str(told["reason"]))
        if told["outcome"] == TIMED_OUT:
            raise AirflowSensorTimeout(self._late(counts, told.get("reason")))
        return self._kept(summary, counts)

    @ends_retries
    def poke(self, context: Context) -> Any:
        """Look once; whether nothing is left to wait for."""
        question = self._question(context, until=self.until, asked_at=_first_poke_at(context))
        ledger, reader, follower = question.open()
        follower.others.update(self._others)
        with closing(ledger):
            seen = look_once(reader, follower, self._task_stop, execution_timeout=self.execution_timeout)
            self._others = follower.others
            self._calls += seen.calls
            summary, counts = self._summary(ledger, question, follower.others, calls=self._calls)
        facts_log(self.log).info(seen.counts.sentence(), calls=seen.calls)
        if seen.problem is not None:
            self.log.warning("not every row could be looked at, which the next look makes good: %s", seen.problem)
        context["ti"].xcom_push("return_value", summary)
        is_settled = counts.is_settled(self.until)
        return PokeReturnValue(is_settled, self._kept(summary, counts) if is_settled else None)

    def _kept(self, summary: dict[str, Any], counts: TicketCounts) -> dict[str, Any]:
        """The summary, where the policy is kept. Raises WithoutTicketError."""
        error = self._too_many_without(counts)
        if error is None:
            return summary
        error.summary = summary
        error.results_path = self.results_path
        raise error

    def _late(self, counts: TicketCounts, problem: str | None) -> str:
        because = f"; the last look could not see everything: {problem}" if problem else ""
        return f"after {self.timeout:g} s not every ticket is {self.until}: {counts.sentence()}{because}"

    def _check(self) -> None:
        super()._check()
        check_choice("until", self.until, get_args(Until))
        check_flag("deferrable", self.deferrable)


def _first_poke_at(context: Context) -> datetime:
    """When a sensor that waits in a worker began, also where Airflow has rescheduled it since."""
    ti: Any = context["ti"]
    first: Any = getattr(ti, "get_first_reschedule_date", lambda _context: None)(context)
    began: datetime = first or ti.start_date or datetime.now(UTC)
    return began
