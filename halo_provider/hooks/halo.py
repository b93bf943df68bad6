"""HaloHook: an Airflow connection becomes a HaloClient."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from halo_provider.client.address import DEFAULT_BASE_URL
from halo_provider.client.client import HaloClient
from halo_provider.client.tls import tls_context
from halo_provider.compat import BaseHook, mask_secret
from halo_provider.delivery.options import DeliveryOptions
from halo_provider.exceptions import HaloCallError, HaloConfigurationError, HaloError, HaloStatusError, Verdict
from halo_provider.hooks.connection_form import field_behaviour, form_widgets
from halo_provider.hooks.few_rows import FewRows
from halo_provider.hooks.ledger import current_task_instance, open_ledger
from halo_provider.hooks.reading import reader_of, reading_url
from halo_provider.hooks.submissions import submissions_frame
from halo_provider.models import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from ssl import SSLContext

    import pandas as pd
    from pydantic import BaseModel

    from halo_provider.client.check import CheckReport
    from halo_provider.client.reader import HaloReader
    from halo_provider.compat import Connection
    from halo_provider.delivery.options import AskElse
    from halo_provider.ledger import Ledger, OnInDoubt, TaskInstanceRef
    from halo_provider.submission import Submission

DEFAULT_TIMEOUT = 120.0  # seconds
EXTRAS = (  # of the connection
    "identity_secret",
    "agent_id",
    "timeout",
    "dashboard_url",
    "mcp_url",
    "user_url",
    "session_url",
    "ca_file",
    "client_cert",
)
MAX_CERT_FILES = 2  # the certificate's and its key's


class HaloHook(BaseHook):
    """
    Talks to Halo through an Airflow connection of type ``halo``.

    The connection's ``host`` is the base URL, ``password`` the widget key; its extra may hold ``identity_secret``,
    ``agent_id``, ``timeout`` (seconds), ``dashboard_url``, ``user_url`` and ``session_url`` (templates of addresses in
    the dashboard), ``mcp_url``, ``ca_file`` (PEM, the authorities that are trusted) and ``client_cert`` (PEM, this
    side's certificate with its key, or a list of the two files). As a URI:
    ``halo://:ab_live_…@host:port/http?identity_secret=…``, where ``http`` is the schema, else https.

    The methods below are for people's own tasks: each makes one call, one attempt, from synchronous code, and returns
    Halo's answer as a dict. Asynchronous code uses ``async with hook.client() as client``, whose methods take the same,
    and :meth:`adeliver`.

    :param halo_conn_id: the connection's id
    """

    conn_name_attr = "halo_conn_id"
    default_conn_name = "halo_default"
    conn_type = "halo"
    hook_name = "Halo"

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's own fields; Airflow from 3.2 on takes them from the provider's metadata."""
        return form_widgets()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """What the form shows of Airflow's own fields; Airflow from 3.2 on takes it from the provider's metadata."""
        return field_behaviour()

    def __init__(self, halo_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.halo_conn_id = halo_conn_id
        self._connection: Connection | None = None
        self._warned = False

    @property
    def connection(self) -> Connection:
        """The connection, looked up once."""
        if self._connection is None:
            self._connection = self.get_connection(self.halo_conn_id)
        return self._connection

    @property
    def dashboard_url(self) -> str | None:
        """Where links to Halo's dashboard point, if the connection says so. Raises HaloConfigurationError."""
        url = self._extra("dashboard_url")
        if url is not None and not url.lower().startswith(("https://", "http://")):
            raise self._refused("dashboard_url must be an address with http:// or https://")
        return url

    @property
    def mcp_url(self) -> str:
        """Where Halo is asked: the connection's ``mcp_url``, else Halo's own, or the same of the connection's host."""
        return reading_url(self._base_url(), self._extra("mcp_url"))

    def reader(self, ledger: Ledger) -> HaloReader:
        """
        Return a reader of Halo's tickets and transcripts; enter it to use it (``async with``).

        It needs a sign-in by ``halo-login``, and says so (HaloSignInError) when it is first asked without one.

        :param ledger: an open ledger, in whose database the sign-in is
        """
        return reader_of(ledger, self.halo_conn_id, url=self.mcp_url, ssl_context=self.ssl_context())

    def page_url(self, page: Literal["user", "session"], identifier: str | None) -> str | None:
        """
        Where Halo's dashboard shows a user or a session, by the connection's ``user_url`` or ``session_url``.

        :param page: which of both
        :param identifier: the user's or the session's id, which takes the place of ``{user_id}`` or ``{session_id}``
        :returns: None where the connection has no such template, or one that is neither http nor https
        """
        template = self._extra(f"{page}_url")
        if not template or not identifier or not template.startswith(("https://", "http://")):
            return None
        return template.replace(f"{{{page}_id}}", quote(identifier, safe=""))

    def get_conn(self) -> HaloClient:
        """Return the client; it opens its connections when it is entered (``async with``)."""
        return self.client()

    def client(self, *, timeout: float | None = None) -> HaloClient:
        """
        Return a client for this connection.

        :param timeout: seconds for one attempt; by default the connection's ``timeout``, else 120
        :raises HaloConfigurationError: if the connection lacks the widget key, or holds a value that cannot work
        """
        self._warn_of_unknown_extras()
        widget_key = (self.connection.password or "").strip()
        if not widget_key:
            where = ", not into the login" if self.connection.login else ""
            raise self._refused(f"has no widget key: put it (ab_live_…) into the password{where}")
        identity_secret = self._extra("identity_secret")
        for secret in (widget_key, identity_secret):
            if secret:
                mask_secret(secret)
                if not (secret.isascii() and secret.isprintable()):
                    raise self._refused("a key holds characters no key has; paste it again")
        return HaloClient(
            widget_key=widget_key,
            base_url=self._base_url(),
            identity_secret=identity_secret,
            agent_id=self._extra("agent_id"),
            timeout=timeout if timeout is not None else self._timeout(),
            ssl_context=self.ssl_context(),
        )

    def _base_url(self) -> str:
        host = (self.connection.host or DEFAULT_BASE_URL).strip()
        scheme = (self.connection.schema or "").strip().lower()
        if scheme not in {"", "http", "https"}:
            raise self._refused(
                f"schema must be http or https, not {self.connection.schema!r}; a path belongs into the host"
            )
        if "://" not in host:
            host = f"{scheme or 'https'}://{host}"
        elif scheme and not host.lower().startswith(f"{scheme}://"):
            raise self._refused(f"its host and its schema ({scheme}) name two schemes; leave the schema empty")
        if self.connection.port:
            scheme, _, rest = host.partition("://")
            authority, slash, path = rest.partition("/")
            host = f"{scheme}://{authority}:{self.connection.port}{slash}{path}"
        return host

    def _timeout(self) -> float:
        configured = self._extra("timeout")
        if configured is None:
            return DEFAULT_TIMEOUT
        with suppress(ValueError):
            seconds = float(configured)
            if 0 < seconds < math.inf:
                return seconds
        raise self._refused("timeout must be a number of seconds, and more than 0")

    def ssl_context(self) -> SSLContext | None:
        """Whose certificates ``ca_file`` and ``client_cert`` ask for; None where the connection has neither."""
        ca_file = self._extra("ca_file")
        given = self.connection.extra_dejson.get("client_cert")
        if isinstance(given, str) or given is None:
            given = (given or "").split(",")  # in a URI it can be no list
        if (
            not isinstance(given, list)
            or not all(isinstance(part, str) for part in given)
            or len(given) > MAX_CERT_FILES
        ):
            raise self._refused("client_cert must be the path of a PEM file, or two: of the certificate and of its key")
        client_cert = [part.strip() for part in given if part.strip()]
        if ca_file is None and not client_cert:
            return None
        try:
            return tls_context(ca_file=ca_file, client_cert=client_cert)
        except HaloConfigurationError as error:
            raise self._refused(str(error)) from None

    def _extra(self, name: str) -> str | None:
        value = self.connection.extra_dejson.get(name)
        if isinstance(value, dict | list):
            raise self._refused(f"{name} must be text, not a {type(value).__name__}")
        return str(value).strip() or None if value is not None else None

    def _refused(self, reason: str) -> HaloConfigurationError:
        """What is wrong with the connection. The reason holds no value that may be a secret."""
        link = " " if reason.startswith("has ") else ": "
        return HaloConfigurationError(f"connection {self.halo_conn_id!r}{link}{reason}")

    def _warn_of_unknown_extras(self) -> None:
        """Name the extras that nothing reads: one of them may be a known one, misspelt."""
        if self._warned:
            return
        self._warned = True
        for name in self.connection.extra_dejson:
            if name not in EXTRAS:
                hint = did_you_mean(name, EXTRAS) or f"; known are {', '.join(EXTRAS)}"
                self.log.warning("connection %r: there is no extra %r%s", self.halo_conn_id, name, hint)

    def identify_user(
        self, user_id: str, *, traits: dict[str, Any] | None = None, session_id: str | None = None
    ) -> dict[str, Any]:
        """
        Upsert one user, live: Halo **sets last_seen to now**. For history use :meth:`update_users`.

        :param user_id: your id of the user
        :param traits: name, email, plan, … ; others become custom fields
        :param session_id: a session whose orphaned transcripts and tickets are the user's
        """
        return self._call(
            "identify_user", lambda client: client.identify_user(user_id, traits=traits, session_id=session_id)
        )

    def identify_company(
        self, company_id: str, *, traits: dict[str, Any] | None = None, user_id: str | None = None
    ) -> dict[str, Any]:
        """
        Upsert one company.

        :param company_id: your id of the company
        :param traits: name, domain, plan, … ; others become custom fields
        :param user_id: a user to link to it
        """
        return self._call(
            "identify_company", lambda client: client.identify_company(company_id, traits=traits, user_id=user_id)
        )

    def update_users(self, users: Sequence[dict[str, Any]], *, update_only: bool = False) -> dict[str, Any]:
        """
        Upsert up to 1,000 users without touching last_seen. Needs an identity secret.

        :param users: ``{"user_id": …, "traits": {…}}`` each
        :param update_only: leave unknown users out instead of creating them
        """
        return self._call("update_users", lambda client: client.update_users(users, update_only=update_only))

    def chat(self, message: str, *, user_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """
        Send one message to Halo's agent. Halo has no idempotency key: a repeated call is a second message.

        :param message: at most 10,000 characters
        :param user_id: whose message it is; None for an anonymous one
        :param fields: any other field of :class:`halo_provider.models.Chat`, such as ``context`` or ``session_id``
        :return: ``session_id``, ``text``, ``agent_id`` and whatever else Halo answers
        """
        return self._call("chat", lambda client: client.chat(message, user_id=user_id, **fields))

    def create_ticket(
        self, subject: str, *, user_id: str | None = None, email: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """
        Create a ticket without the AI. One of ``user_id`` and ``email`` is required.

        :param subject: at most 1,000 characters
        :param user_id: your id of the user
        :param email: the user's address
        :param fields: any other field of :class:`halo_provider.models.CreateTicket`
        """
        return self._call(
            "create_ticket", lambda client: client.create_ticket(subject, user_id=user_id, email=email, **fields)
        )

    def deliver(
        self,
        rows: Any,
        *,
        submission: Submission,
        ledger_conn_id: str | None = None,
        on_in_doubt: OnInDoubt = "resend",
        ask_after: float = 60.0,
        ask_else: AskElse = "hold",
        max_attempts: int = 5,
        own_session_ids: bool = False,
        task_instance: TaskInstanceRef | None = None,
    ) -> dict[str, Any]:
        """
        Deliver a few rows through the ledger, from a task of your own: a row that was delivered is not sent again.

        For many rows use HaloTicketOperator, which can be stopped, shows progress and writes files.

        :param rows: a list of dicts
        :param submission: how a row becomes a message with context
        :param ledger_conn_id: the database that holds the ledger; by default ``[halo] ledger_conn_id``, else SQLite
        :param on_in_doubt: ``resend`` (at least once), ``hold`` (at most once) or ``ask`` (look it up in Halo first)
        :param ask_after: seconds after an attempt's end after which "not there" counts
        :param ask_else: what to do where Halo gives no answer: ``hold`` or ``resend``
        :param max_attempts: attempts for one row
        :param own_session_ids: let a row sent twice land in one session, as with HaloTicketOperator
        :param task_instance: whose rows they are; by default the task's that runs
        :return: the counts of HaloTicketOperator, and ``session_ids`` {row_key: session_id} of every row
        :raises RowsRejectedError: if a row was rejected; the others are delivered all the same
        :raises DeliveryIncompleteError: if rows failed, are in doubt or were not attempted
        """
        _refuse_running_loop("deliver", instead="await hook.adeliver(…)")
        options = DeliveryOptions(
            on_in_doubt=on_in_doubt,
            ask_after=ask_after,
            ask_else=ask_else,
            max_attempts=max_attempts,
            own_session_ids=own_session_ids,
        )
        with closing(self._few_rows(rows, submission, ledger_conn_id, options, task_instance)) as few_rows:
            few_rows.open()
            return asyncio.run(few_rows.run())

    async def adeliver(
        self,
        rows: Any,
        *,
        submission: Submission,
        ledger_conn_id: str | None = None,
        on_in_doubt: OnInDoubt = "resend",
        ask_after: float = 60.0,
        ask_else: AskElse = "hold",
        max_attempts: int = 5,
        own_session_ids: bool = False,
        task_instance: TaskInstanceRef | None = None,
    ) -> dict[str, Any]:
        """
        Deliver a few rows from asynchronous code, on the loop that runs; everything else is as in :meth:`deliver`.

        What blocks (Airflow's connections, the ledger) is done in threads of its own: Airflow's supervisor needs those
        of the loop for its answers.
        """
        # Airflow's triggerer looks connections up on its own loop, which asgiref lets the thread find.
        from asgiref.sync import sync_to_async  # noqa: PLC0415 -- not needed where a DAG is parsed

        options = DeliveryOptions(
            on_in_doubt=on_in_doubt,
            ask_after=ask_after,
            ask_else=ask_else,
            max_attempts=max_attempts,
            own_session_ids=own_session_ids,
        )
        with closing(self._few_rows(rows, submission, ledger_conn_id, options, task_instance)) as few_rows:
            with ThreadPoolExecutor(1, thread_name_prefix="halo-airflow") as thread:
                await sync_to_async(few_rows.open, thread_sensitive=False, executor=thread)()
            return await few_rows.run()

    def _few_rows(
        self,
        rows: Any,
        submission: Submission,
        ledger_conn_id: str | None,
        options: DeliveryOptions,
        task_instance: TaskInstanceRef | None,
    ) -> FewRows:
        return FewRows(
            rows,
            submission=submission,
            halo_conn_id=self.halo_conn_id,
            client=self.client,
            reader=self.reader,
            ledger_conn_id=ledger_conn_id,
            options=options,
            task_instance=task_instance or current_task_instance(),
        )

    def submissions_df(
        self,
        submission_name: str | None = None,
        dag_id: str | None = None,
        status: str | None = None,
        ledger_conn_id: str | None = None,
    ) -> pd.DataFrame:
        """
        Return what the ledger knows of this connection's rows as a DataFrame, to join session ids to your own tables.

        .. code-block:: python

            sessions = HaloHook().submissions_df("application", status="delivered")
            applications = applications.merge(
                sessions[["row_key", "session_id"]], left_on="submission_id", right_on="row_key", how="left"
            )

        The columns are ``submission_name``, ``row_key``, ``follow_up`` (missing for the row itself; a row that was
        changed after its delivery and sent again with ``on_change="follow_up"`` has one more line for each change,
        counted from 1), ``status``, ``user_id``, ``session_id``, ``agent_id``, ``attempts``, ``error``, ``reply``,
        ``dag_id``, ``run_id``, ``task_id``, ``map_index``, ``try_number``, ``logical_date``, ``created_at`` and
        ``updated_at``. Texts are ``string``, numbers ``Int32``, times ``datetime64[us, UTC]``, whatever the rows hold.
        All rows are in memory at once.

        :param submission_name: only rows of this submission
        :param dag_id: only rows that a task of this DAG had last
        :param status: only rows of this status, such as ``delivered`` or ``in_doubt``
        :param ledger_conn_id: the database that holds the ledger; by default ``[halo] ledger_conn_id``, else SQLite
        :raises HaloConfigurationError: if there is no such status
        :raises LedgerError: if the ledger cannot be used
        """
        with closing(open_ledger(ledger_conn_id, create=False)) as ledger:
            return submissions_frame(
                ledger,
                halo_conn_id=self.halo_conn_id,
                submission_name=submission_name,
                dag_id=dag_id,
                status=status,
            )

    def test_connection(self) -> tuple[bool, str]:
        """Prove address and widget key with an empty list of events, which has no effect; say what is wrong."""
        _refuse_running_loop("test_connection", instead="await asyncio.to_thread(hook.test_connection)")
        try:
            self._call("send_events", lambda client: client.send_events([]))
        except HaloStatusError as error:
            if error.verdict is Verdict.REJECTED and error.status in {400, 422}:
                return True, "Halo answers, and takes the widget key."
            return False, str(error)
        except HaloCallError as error:
            cause = error.__cause__.__cause__ if error.__cause__ else None
            return False, f"{error}" + (f" ({type(cause).__name__})" if cause else "")
        except HaloError as error:
            return False, str(error)
        return True, "Halo answers, and takes the widget key."

    def check(self, user_id: str, *, ticket: bool = True) -> dict[str, Any]:
        """
        Find out what this workspace does where Halo's documentation is silent; `halo-check` prints the same as a table.

        It sends what :meth:`what_check_does` says, at most 30 requests, without asking anybody, and writes nothing to
        the ledger. The report holds no key, no token and no value of an answer.

        :param user_id: a user made for tests: Halo sets last_seen of this user to now
        :param ticket: let one chat ask for a ticket
        :return: ``findings``, a list with ``name``, ``question``, ``documented``, ``result`` (a word, or None where it
            was not checked), ``found`` and ``means``; ``whole``, ``ended_early``, ``requests``, ``chat_seconds``, and
            the ``session_ids`` of the conversations that it made
        :raises HaloConfigurationError: if the connection cannot work, or the user_id is none
        """
        from halo_provider.client.check import check_workspace  # noqa: PLC0415 -- not needed where a DAG is parsed

        _refuse_running_loop("check", instead=f"await asyncio.to_thread(hook.check, {user_id!r})")

        async def run() -> CheckReport:
            async with self.client() as client:
                return await check_workspace(
                    client, user_id=user_id, identity_secret=self._extra("identity_secret"), ticket=ticket
                )

        return {"connection": self.halo_conn_id, **asyncio.run(run()).summary()}

    def what_check_does(self, user_id: str, *, ticket: bool = True) -> list[str]:
        """
        Say what :meth:`check` is going to do, as lines for a person.

        :param user_id: the user made for tests
        :param ticket: whether one chat is to ask for a ticket
        :raises HaloConfigurationError: if the connection cannot work
        """
        from halo_provider.client.check import announcement  # noqa: PLC0415 -- not needed where a DAG is parsed

        client = self.client()
        return announcement(base_url=client.base_url, user_id=user_id, signs_tokens=client.signs_tokens, ticket=ticket)

    def _call(self, method: str, call: Callable[[HaloClient], Awaitable[BaseModel]]) -> dict[str, Any]:
        _refuse_running_loop(method, instead=f"async with hook.client() as client: await client.{method}(…)")
        client = self.client()

        async def attempt() -> BaseModel:
            async with client:
                return await call(client)

        return asyncio.run(attempt()).model_dump(mode="json")


def _refuse_running_loop(method: str, *, instead: str) -> None:
    """Raise RuntimeError where a loop runs in this thread: the call would block it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"HaloHook.{method} is for synchronous code, and would block the loop that runs: use `{instead}`"
    )
