"""HaloNotifier: a failed or late task becomes a Halo ticket."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from halo_provider.compat import BaseNotifier
from halo_provider.exceptions import HaloConfigurationError
from halo_provider.hooks.halo import HaloHook
from halo_provider.models import MAX_MESSAGE
from halo_provider.notifications.alerts import alert_of
from halo_provider.submission import ASKS_FOR_A_HUMAN, Entry, Submission, User

if TYPE_CHECKING:
    from collections.abc import Sequence

    from halo_provider.compat import Context

__all__ = ["HaloNotifier"]

ANONYMOUS = "anonymous"  # Halo's word
SUBMISSION_NAME = "airflow_alert"
_ROOM = MAX_MESSAGE - max(map(len, ASKS_FOR_A_HUMAN)) - 10  # characters, beside the words that ask for a human


class HaloNotifier(BaseNotifier):
    """
    Makes a Halo ticket of a failed or late task: once per task instance and try, by the ledger.

    .. code-block:: python

        with DAG("applications", default_args={"on_failure_callback": HaloNotifier()}): ...
        DAG("daily", deadline=DeadlineAlert(..., callback=AsyncCallback(HaloNotifier)))

    On a task (``on_failure_callback``, ``on_retry_callback``) the alert's key is the task instance with its try; on a
    DAG it is the run, with the number of times it was cleared; for a deadline, the deadline. A callback that Airflow
    runs twice makes one ticket. The rows are in the namespace ``<halo_conn_id>/airflow_alert``.

    While a user has an open ticket, Halo merges what that user sends into it. So the user is by default
    ``airflow/<dag_id>/<task_id>`` (``airflow/<dag_id>`` for runs and deadlines): alerts of one task join its open
    ticket, and each task has one of its own. The message says what happened; the context has the ids, the address of
    the log and the error's class. The error's text is there only for errors of this package: others may quote anything.

    :param message: what to say, a template; by default what happened
    :param user_id: whose message it is, a template; ``anonymous``: nobody's, so that nothing merges
    :param escalate: ask for a human in Halo's own words, which makes a ticket at once; else Halo's agent decides
    :param agent_id: the agent that answers; by default the connection's
    :param halo_conn_id: the Halo connection
    :param ledger_conn_id: the database that holds the ledger; by default ``[halo] ledger_conn_id``, else SQLite
    :param max_attempts: attempts for one alert: the task's process waits for it
    :param context: what Airflow gives a deadline's callback
    """

    template_fields: Sequence[str] = ("message", "user_id")

    def __init__(
        self,
        *,
        message: str | None = None,
        user_id: str | None = None,
        escalate: bool = True,
        agent_id: str | None = None,
        halo_conn_id: str = HaloHook.default_conn_name,
        ledger_conn_id: str | None = None,
        max_attempts: int = 3,
        context: Context | None = None,
    ) -> None:
        super().__init__()
        self.message = message
        self.user_id = user_id
        self.escalate = escalate
        self.agent_id = agent_id
        self.halo_conn_id = halo_conn_id
        self.ledger_conn_id = ledger_conn_id
        self.max_attempts = max_attempts
        self.context: Any = context or {}

    def __call__(self, *args: Any) -> None:
        """Notify. Templates are rendered in a copy: one notifier may serve many tasks, and calls in one process."""
        super(HaloNotifier, copy(self)).__call__(*args)

    def notify(self, context: Context) -> None:
        """Send the alert, unless it was sent before. Raises what HaloHook.deliver raises."""
        HaloHook(self.halo_conn_id).deliver(**self._delivery(context))

    async def async_notify(self, context: Context) -> None:
        """Send the alert from asynchronous code, as a deadline's callback does in the triggerer."""
        await HaloHook(self.halo_conn_id).adeliver(**self._delivery(context))

    def _delivery(self, context: Any) -> dict[str, Any]:
        alert = alert_of(context)
        message = self.message or alert.message
        if len(message) > _ROOM:
            message = f"{message[: _ROOM - 1]}…"
        user_id = alert.user_id if self.user_id is None else self.user_id.strip()
        if not user_id:
            raise HaloConfigurationError("HaloNotifier: user_id is empty once it is rendered")
        submission = Submission(
            name=SUBMISSION_NAME,
            key="key",
            user=None if user_id == ANONYMOUS else User(id="user_id"),
            message="{message}",
            context={"airflow": Entry(label="Airflow", type="custom", column="facts")},
            escalate=self.escalate,
            agent_id=self.agent_id,
        )
        row = {"key": alert.key, "user_id": user_id, "message": message, "facts": alert.facts}
        return {
            "rows": [row],
            "submission": submission,
            "ledger_conn_id": self.ledger_conn_id,
            "max_attempts": self.max_attempts,
            "task_instance": alert.task_instance,
        }
