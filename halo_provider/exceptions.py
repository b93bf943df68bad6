"""The errors of this package. Each carries the facts it is about, and says whether another try can help.

HaloError
├── HaloConfigurationError      a connection or a parameter that cannot work as given
├── SourceError                 a source that cannot be read as a whole
│   ├── NoFileError             no file has a name that the pattern takes in
│   └── TooFewRowsError         fewer rows than min_rows or on_empty ask for: nothing was sent
├── RowError                    one row that cannot become a request
├── HaloCallError               one HTTP attempt that did not end in success; `verdict` says what that means
│   ├── HaloConnectionError     no answer; `sent` says whether the request may have reached Halo
│   ├── HaloResponseError       an answer of 200 without what Halo documents
│   └── HaloStatusError         an answer with an error status
│       ├── HaloAuthenticationError   401
│       ├── HaloPermissionError       403
│       ├── HaloProxyAuthenticationError  407
│       ├── HaloRejectedError         400, 404, 413, 422 and the other 4xx
│       ├── HaloRateLimitError        429
│       ├── HaloServerError           5xx, 408 and 425
│       ├── HaloRedirectError         3xx
│       └── HaloWrongUrlError         404, 405, 410, 415, 501 or 3xx from an address that is not Halo's API
├── HaloReadError               Halo's reading tools gave no answer that can be used
│   └── HaloSignInError         nobody is signed in for reading, or not any more
├── WithoutTicketError          more delivered rows without a ticket than max_without_ticket allows
├── OutputError                 a results or rejects file that cannot be written
├── LedgerError                 the ledger cannot be reached, or is not what it should be
├── DecisionOutdatedError       other rows than a person confirmed match by now: none was changed
└── DeliveryError               a run that ended without every row delivered
    ├── AccountingError         the sum of the statuses is not the number of rows read
    ├── IdentifyIncompleteError users or companies were not identified: another try may do it
    ├── DeliveryIncompleteError rows failed, in doubt or not attempted: another try may settle them
    ├── RowsChangedError        delivered rows have another content now, and on_change is fail
    ├── TooManySubmissionsError more rows to send than max_submissions allows: nothing was sent
    ├── EveryRowRefusedError    the first rows that Halo answered were all refused with one status
    └── RowsRejectedError       more rows rejected than the policy allows: another try will not help
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

MAX_ERROR_TEXT = 500  # characters of Halo's own words kept in an error
WRONG_URL_STATUSES = frozenset({404, 405, 410, 415, 501})  # with every 3xx: what an address that is not the API answers

# The last part of a token is optional, and nothing is given back, so that each character is looked at a few times only,
# however often "eyJ" stands in the text.
_KEY_OR_RUN = re.compile(r"(?:ab_live_|ha_secret_|halo_at_|halo_rt_)[\w-]++|eyJ[\w-]++(?P<token>\.[\w-]++\.[\w-]*+)?")
_KEY = re.compile(r"(?:ab_live_|ha_secret_|halo_at_|halo_rt_)[\w-]++")


def redact(text: str) -> str:
    """Replace whatever looks like a widget key, an identity secret or a token by ``***``."""
    return _KEY_OR_RUN.sub(_redacted, text)


def _redacted(found: re.Match[str]) -> str:
    is_no_token = found[0].startswith("eyJ") and not found["token"]
    return _KEY.sub("***", found[0]) if is_no_token else "***"


class Verdict(StrEnum):
    """What one unsuccessful attempt says about the request it carried."""

    NOT_ACCEPTED = "not_accepted"  # Halo certainly did not take it: sending it again is safe
    IN_DOUBT = "in_doubt"  # Halo may have taken it
    REJECTED = "rejected"  # Halo refused this request: it can never work as it is
    FORBIDDEN = "forbidden"  # Halo refuses every request of this connection: stop sending


class HaloError(Exception):
    """Anything this package raises on purpose.

    Where a task ends with it, it carries what an alert needs: the `summary` that is in XCom, the files that were
    written (`rejects_path`, `results_path`), and the address of the page with the rows (`page_url`).
    """

    summary: Mapping[str, Any] | None = None
    rejects_path: str | None = None
    results_path: str | None = None
    page_url: str | None = None

    @property
    def retry_can_help(self) -> bool:
        """False where the same task fails again until a person changes something: its connection, parameters or rows.

        True also where nobody can know. Airflow should not retry a task that ended in an error without it.
        """
        return True


class HaloConfigurationError(HaloError, ValueError):
    """A connection or a parameter that cannot work as given."""

    retry_can_help = False


class SourceError(HaloError):
    """A source that cannot be read, or not to its end."""


class NoFileError(SourceError):
    """No file has a name that the pattern takes in."""

    rows = 0

    def __init__(self, pattern: str) -> None:
        self.source = pattern
        super().__init__(f"no file matches {pattern!r}; correct it, or set on_empty='skip' where there may be none")


class TooFewRowsError(SourceError):
    """The source has fewer rows than it has to have. Nothing was sent."""

    def __init__(self, source: str, *, rows: int, min_rows: int) -> None:
        self.source = source
        self.rows = rows
        self.min_rows = min_rows
        found = f"{rows:,} rows, fewer than min_rows={min_rows:,}" if min_rows else "no rows, and on_empty='fail'"
        super().__init__(f"{source}: it has {found}; nothing was sent. Check what makes the source.")


class RowError(HaloError):
    """One row cannot become a request.

    `reason` says what is wrong and how to correct it, and never quotes a value of the row. `detail` may quote values,
    and goes to the rejects file only.
    """

    def __init__(self, reason: str, *, column: str | None = None, detail: str | None = None) -> None:
        self.reason = reason
        self.column = column
        self.detail = detail
        super().__init__(f"column {column!r}: {reason}" if column else reason)


class HaloReadError(HaloError):
    """Halo's MCP server gave no answer that can be used: nothing is known about what was asked.

    `lasting`: every other question would end so too, until a person changes something. `sent` is False only where it is
    certain that nothing was sent.
    """

    def __init__(self, reason: str, *, lasting: bool = False, sent: bool = True) -> None:
        self.reason = redact(reason)[:MAX_ERROR_TEXT]
        self.lasting = lasting
        self.sent = sent
        super().__init__(f"Halo cannot be asked: {self.reason}")


class HaloSignInError(HaloReadError):
    """Nobody is signed in for reading, or Halo does not take the sign-in any more."""

    retry_can_help = False

    def __init__(self, reason: str, *, conn_id: str | None = None) -> None:
        remedy = f"run `halo-login --conn-id {conn_id or '<connection id>'}`"
        super().__init__(f"{reason}; {remedy}", lasting=True)


class WithoutTicketError(HaloError):
    """More delivered rows are without a ticket than max_without_ticket allows. They are delivered all the same."""

    retry_can_help = False

    def __init__(self, *, without_ticket: int, not_found: int, rows: int, found: str) -> None:
        self.without_ticket = without_ticket
        self.not_found = not_found
        self.rows = rows
        super().__init__(
            f"{without_ticket + not_found:,} of {rows:,} delivered rows have no ticket, more than max_without_ticket "
            f"allows: {found}. Look at their conversations, and at when the agent escalates; the rows are those with "
            f"ticket_status 'none' and 'not_found' in the ledger."
        )


class OutputError(HaloError):
    """A results or rejects file cannot be written. It says nothing about the rows, which are in the ledger."""

    def __init__(self, file: str, error: Exception, *, words: str | None = None) -> None:
        self.file = file
        # Other words than the system's may quote a row; `words` are known not to.
        reason = words or getattr(error, "strerror", None) or f"writing it raised {type(error).__name__}"
        super().__init__(f"{file} cannot be written: {reason}")


class HaloCallError(HaloError):
    """One HTTP attempt that did not end in success."""

    verdict: Verdict
    retry_after: float | None = None  # seconds

    @property
    def retry_can_help(self) -> bool:
        """False where Halo refuses this request, or every request of this connection."""
        return self.verdict not in {Verdict.REJECTED, Verdict.FORBIDDEN}


class HaloConnectionError(HaloCallError):
    """No answer came. `sent` is False only where it is certain that nothing of the request was sent."""

    def __init__(self, path: str, *, sent: bool, reason: str) -> None:
        self.path = path
        self.sent = sent
        self.reason = redact(reason)[:MAX_ERROR_TEXT]
        self.verdict = Verdict.IN_DOUBT if sent else Verdict.NOT_ACCEPTED
        outcome = "whether Halo took the request is unknown" if sent else "the request was not sent"
        super().__init__(f"POST {path}: {self.reason}; {outcome}")


class HaloResponseError(HaloCallError):
    """Halo answered 200 without what it documents: whether it accepted the request is unknown."""

    verdict = Verdict.IN_DOUBT

    def __init__(self, path: str, *, reason: str, reply: str) -> None:
        self.path = path
        self.reason = reason
        self.reply = redact(reply)[:MAX_ERROR_TEXT]
        super().__init__(f"POST {path}: {reason}")


class HaloStatusError(HaloCallError):
    """Halo answered with an error status. `message` is Halo's own text, shortened and without secrets.

    `url` is the address that answered.
    """

    def __init__(
        self, path: str, *, status: int, message: str, retry_after: float | None = None, url: str | None = None
    ) -> None:
        self.path = path
        self.status = status
        self.message = redact(message)[:MAX_ERROR_TEXT]
        self.retry_after = retry_after
        self.url = url
        super().__init__(f"{self.brief}: {self.message}{self.remedy}")

    @property
    def brief(self) -> str:
        """The error without Halo's words."""
        return f"POST {self.path}: Halo answered {self.status}"

    @property
    def suggests_wrong_url(self) -> bool:
        """Whether other servers than Halo answer so: 404, 405, 410, 415, 501 and 3xx.

        While no call of a run has succeeded, such an answer means that the connection's host is not Halo's API:
        `as_wrong_url` gives the error to stop with. After a success it is about the one request.
        """
        return self.status in WRONG_URL_STATUSES or 300 <= self.status < 400  # noqa: PLR2004 -- the class of redirects

    def as_wrong_url(self) -> "HaloWrongUrlError":
        """The same answer, as one about the connection."""
        return HaloWrongUrlError(
            self.path, status=self.status, message=self.message, retry_after=self.retry_after, url=self.url
        )

    @property
    def remedy(self) -> str:
        """What a person can do, as the end of the error's text."""
        if not self.suggests_wrong_url:
            return ""
        return (
            f". If every call ends so, {self.url or self.path} is not an address of Halo's SDK API: "
            "correct the base URL in the connection's host."
        )


class HaloAuthenticationError(HaloStatusError):
    """401: the widget key is missing or wrong."""

    verdict = Verdict.FORBIDDEN
    remedy = ". Put the widget key (ab_live_…) into the connection's password."


class HaloPermissionError(HaloStatusError):
    """403: the workspace enforces identity verification, and the request had no valid token."""

    verdict = Verdict.FORBIDDEN
    remedy = (
        ". Where the workspace enforces identity verification, the connection's extra needs the workspace's "
        "current identity_secret (ha_secret_…); the clock of this machine must be right, too."
    )


class HaloProxyAuthenticationError(HaloStatusError):
    """407: a proxy between this machine and Halo requires credentials."""

    verdict = Verdict.FORBIDDEN
    remedy = ". Put a user and a password into the proxy's address (https_proxy or http_proxy)."


class HaloRedirectError(HaloStatusError):
    """3xx: the API has another address than the connection says."""

    verdict = Verdict.FORBIDDEN
    remedy = ". Redirects are not followed: put the API's final address into the connection's host."


class HaloWrongUrlError(HaloStatusError):
    """Another server than Halo's API answered: see `HaloStatusError.suggests_wrong_url`."""

    verdict = Verdict.FORBIDDEN
    remedy = (
        ". This is not Halo's SDK API: correct the base URL in the connection's host. "
        "Rows that such answers rejected in earlier runs come back with `halo-ledger requeue`, or on the run's page."
    )

    @property
    def brief(self) -> str:
        """Which address answered what."""
        return f"{self.url or self.path} answered {self.status}"


class HaloRejectedError(HaloStatusError):
    """A 4xx about this one request: it can never work as it is."""

    verdict = Verdict.REJECTED


class HaloRateLimitError(HaloStatusError):
    """429: too many requests. `retry_after` is how many seconds Halo asks to wait, if it says."""

    verdict = Verdict.NOT_ACCEPTED


class HaloServerError(HaloStatusError):
    """5xx, 408 and 425, which a later request need not meet: in doubt, except a 503 with Retry-After."""

    @property
    def verdict(self) -> Verdict:  # type: ignore[override]  # depends on the answer here
        """Not accepted for a 503 with Retry-After, else in doubt."""
        refused = self.status == 503 and self.retry_after is not None  # noqa: PLR2004
        return Verdict.NOT_ACCEPTED if refused else Verdict.IN_DOUBT


class LedgerError(HaloError):
    """The ledger cannot be reached, or is not what it should be."""


class DecisionOutdatedError(HaloError):
    """A decision was about rows as they were shown; by now others match, or some have changed. None was changed."""

    def __init__(self, *, matching: int, confirmed: int) -> None:
        self.matching = matching
        self.confirmed = confirmed
        match = "matches" if matching == 1 else "match"
        was = "was" if confirmed == 1 else "were"
        if matching == confirmed:
            fact = f"of the {confirmed:,} that {was} confirmed, some have changed since"
        else:
            fact = f"{matching:,} {match} now, {confirmed:,} {was} confirmed"
        super().__init__(f"{fact}: look again; no row was changed")


class DeliveryError(HaloError):
    """A run that ended without every row delivered. The report is in the task's XCom."""


class AccountingError(DeliveryError):
    """The sum of the statuses is not the number of rows read: a defect of this package."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)
        super().__init__(
            f"the accounts do not balance: {self.counts}. Please report this; the ledger holds each row's status."
        )


class IdentifyIncompleteError(DeliveryError):
    """A run was stopped before every user and company was identified."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"not every user and company was identified: {reason}. Run the task again: identifying can be repeated."
        )


class DeliveryIncompleteError(DeliveryError):
    """Rows are failed, in doubt or not attempted. `retry_after` (seconds) is Halo's last Retry-After, if any."""

    def __init__(
        self, *, failed: int, in_doubt: int, not_attempted: int, reason: str | None, retry_after: float | None
    ) -> None:
        self.failed = failed
        self.in_doubt = in_doubt
        self.not_attempted = not_attempted
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(
            f"{failed} rows failed, {in_doubt} are in doubt, {not_attempted} were not attempted"
            + (f": {reason}" if reason else "")
            + ". Run the task again: delivered rows are never sent again."
        )


class RowsChangedError(DeliveryError):
    """Delivered rows have another content now, and on_change is fail. None of them was sent again."""

    retry_can_help = False

    def __init__(self, *, changed: int, first: str) -> None:
        self.changed = changed
        self.first = first
        super().__init__(
            f"{changed:,} delivered rows have another content now, the first is {first!r}. "
            "on_change='skip' leaves them, 'follow_up' sends the new content into their sessions."
        )


class TooManySubmissionsError(DeliveryError):
    """More rows would be sent than max_submissions allows. Nothing was sent."""

    retry_can_help = False

    def __init__(self, *, would_send: int, max_submissions: int) -> None:
        self.would_send = would_send
        self.max_submissions = max_submissions
        super().__init__(
            f"{would_send:,} rows would be sent, more than max_submissions={max_submissions:,}; nothing was sent. "
            "Check the source (dry_run=True shows what would happen), or raise the limit."
        )


class EveryRowRefusedError(DeliveryError):
    """The first rows that Halo answered were all refused with one status: the mistake is hardly theirs."""

    retry_can_help = False

    def __init__(self, *, refused: int, error: str, own_session_ids: bool = False) -> None:
        self.refused = refused
        where = "own_session_ids, which Halo may not take, the submission" if own_session_ids else "the submission"
        super().__init__(
            f"the first {refused} rows that Halo answered were all refused alike, so the run stopped and left the "
            f"others pending. The last: {error}. Correct {where} or the connection, and bring the refused rows "
            "back with `halo-ledger requeue`, or on the page of the run."
        )


class RowsRejectedError(DeliveryError):
    """More rows were rejected than max_rejected allows."""

    retry_can_help = False

    def __init__(self, *, rejected: int, read: int, first: str, rejects_path: str | None) -> None:
        self.rejected = rejected
        self.read = read
        where = f"they are in {rejects_path}" if rejects_path else "set rejects_path to get them as a file"
        super().__init__(
            f"{rejected} of {read} rows were rejected, more than max_rejected allows; {where}. The first: {first}. "
            "Repair them and run the task again: delivered rows are never sent again."
        )
