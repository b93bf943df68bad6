"""The ledger's decisions, without a database: who may claim a row, what is written, which outcome may follow which."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json, to_json

from halo_provider.exceptions import redact
from halo_provider.ledger.refs import run_ref, task_ref
from halo_provider.ledger.statuses import LedgerStatus

MAX_TEXT = 500  # characters kept of an error, a reply and an agent's id
MAX_READ = 10_000  # characters of a text that are searched for secrets: more than a token has beyond MAX_TEXT
MAX_RESPONSE = 10_000  # characters of JSON kept of an answer's undocumented fields
MAX_SESSION_ID = 1_000  # characters: what a ledger on any database holds
TEXTS_REFUSED = "the database refused the texts of this answer"
SESSION_UNUSABLE = f"the answer's session_id is longer than the {MAX_SESSION_ID:,} characters that the ledger holds"
FOUND = "found"  # the event of a row in doubt that was found in Halo
NOT_FOUND = "not_found"  # the event of one that was looked up, and is not there
LEASE_RAN_OUT = "the lease of the run that was sending it ran out"

_CHANGE_MARK = "\tchange "
_SECOND_CONTENT_MARK = "\talso "
_SECOND_CONTENT_DIGITS = 14  # of the hash: with the mark as wide as the widest change

OnInDoubt = Literal["resend", "hold", "ask"]  # ask: claimed as with resend, and looked up before it is sent


class ClaimResult(StrEnum):
    """What a claim found out about a row."""

    CLAIMED = "claimed"  # this owner may send it
    DELIVERED = "delivered"  # nothing to do
    REJECTED = "rejected"  # the same payload was rejected before, or the row cannot be rendered
    IN_DOUBT = "in_doubt"  # held back by on_in_doubt="hold"
    BUSY = "busy"  # another owner has a live lease


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInstanceRef:
    """An Airflow task instance: written beside every row that it claims."""

    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    logical_date: datetime | None = None

    @property
    def name(self) -> str | None:
        """What a row's history calls it."""
        if self.task_id is None:
            return None
        mapped = f"[{self.map_index}]" if self.map_index is not None and self.map_index >= 0 else ""
        return f"{self.dag_id} {self.run_id} {self.task_id}{mapped} try {self.try_number}"

    @property
    def columns(self) -> dict[str, Any]:
        """Its parts by their column names."""
        columns = {name: getattr(self, name) for name in TaskInstanceRef.__dataclass_fields__}
        refs = {"run_ref": run_ref(self.dag_id, self.run_id), "task_ref": task_ref(self.task_id, self.map_index)}
        return columns | refs


class Candidate(NamedTuple):
    """A row that asks to be claimed; one that could not be rendered comes with the error instead of a hash."""

    row_key: str
    user_id: str | None = None
    payload_hash: str | None = None
    error: str | None = None
    message_hash: str | None = None
    into_session: str | None = None
    reference: str | None = None


class Doubt(NamedTuple):
    """What Halo may have of a row: the content of an attempt, and the session it was sent into, if that existed.

    `since` is when the first attempt began whose outcome is not known.
    """

    since: datetime | None
    user_id: str | None
    payload_hash: str | None
    message_hash: str | None
    into_session: str | None
    reference: str | None


class Claim(NamedTuple):
    """The answer to a Candidate.

    `doubt` is what Halo may have of it from an earlier attempt. `changed`: it was delivered with another payload;
    `changes` counts the follow-ups delivered since.
    """

    result: ClaimResult
    session_id: str | None = None
    error: str | None = None
    changed: bool = False
    changes: int = 0
    doubt: Doubt | None = None

    @property
    def doubtful(self) -> bool:
        """Whether Halo may have it from an earlier attempt."""
        return self.doubt is not None

    @property
    def has_changed(self) -> bool:
        """Whether it is a delivered row that has another content now."""
        return self.result is ClaimResult.DELIVERED and self.changed


class KnownRow(NamedTuple):
    """The columns of a stored row that a claim depends on."""

    row_key: str
    status: LedgerStatus
    user_id: str | None = None
    session_id: str | None = None
    payload_hash: str | None = None
    message_hash: str | None = None
    into_session: str | None = None
    reference: str | None = None
    changes: int | None = None
    error: str | None = None
    owner: str | None = None
    lease_expires_at: datetime | None = None
    doubt_since: datetime | None = None


class Change(NamedTuple):
    """What a follow-up carries: another content of a row, under a key of its own.

    A change of a delivered row from one run to another is counted, from 1. A second content that stands under the same
    key in one source has no number: its key is made of the content, so that it is sent once, in whatever order the
    source has the two.
    """

    row_key: str
    number: int | None
    payload_hash: str

    @property
    def ledger_key(self) -> str:
        """The follow-up's own key in the ledger: a row's key never holds a tab."""
        if self.number is None:
            return f"{self.row_key}{_SECOND_CONTENT_MARK}{self.payload_hash[:_SECOND_CONTENT_DIGITS]}"
        return f"{self.row_key}{_CHANGE_MARK}{self.number}"

    @classmethod
    def at(cls, ledger_key: str, payload_hash: str) -> "Change | None":
        """The change whose key this is; None for a row's own key."""
        row_key, mark, number = ledger_key.partition(_CHANGE_MARK)
        if mark:
            return cls(row_key, int(number), payload_hash)
        row_key, mark, _ = ledger_key.partition(_SECOND_CONTENT_MARK)
        return cls(row_key, None, payload_hash) if mark else None


class Settlement(NamedTuple):
    """The outcome of an attempt, or of a claim given back. `final` also ends the lease.

    `found` says by what a row in doubt was found in Halo.
    """

    row_key: str
    status: LedgerStatus
    final: bool = True
    session_id: str | None = None
    agent_id: str | None = None
    error: str | None = None
    reply: str | None = None
    response: Mapping[str, Any] | None = None
    change: Change | None = None
    found: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit did: `intents` are recorded; the lost ones belong to another owner, or came to an end before."""

    intents: frozenset[str] = field(default_factory=frozenset)
    lost_intents: frozenset[str] = field(default_factory=frozenset)
    lost_settlements: frozenset[str] = field(default_factory=frozenset)


class Rivals(NamedTuple):
    """Whose else a conversation may be.

    `sessions` are other rows'. `same_words`: another row of the user, with the same message, is in flight or in doubt,
    and nobody knows its session yet.
    """

    sessions: frozenset[str] = frozenset()
    same_words: bool = False


class Writer(NamedTuple):
    """Who writes, and when: the same for every row of one transaction. `actor` is its name in a row's history."""

    namespace: str
    owner: str
    actor: str
    task_instance: Mapping[str, Any]  # by column name
    now: datetime
    lease_now: datetime
    lease_expires_at: datetime


# The statuses from which an intent may put a row in flight.
INTENDED_FROM = (LedgerStatus.PENDING, LedgerStatus.IN_DOUBT)

# The statuses from which each outcome may come. IN_DOUBT stands beside IN_FLIGHT because another owner's claim marks a
# row in doubt when its lease has run out, and a late answer still settles it.
SETTLED_FROM = {
    LedgerStatus.PENDING: (LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT),
    LedgerStatus.DELIVERED: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.REJECTED: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.IN_DOUBT: (LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT),
    LedgerStatus.FAILED: (LedgerStatus.PENDING, LedgerStatus.IN_FLIGHT),
}

_DOUBTFUL = frozenset({LedgerStatus.IN_FLIGHT, LedgerStatus.IN_DOUBT})  # Halo may have it
_TROUBLE = frozenset({LedgerStatus.REJECTED, LedgerStatus.IN_DOUBT, LedgerStatus.FAILED})


def claim_result(
    row: KnownRow | None, candidate: Candidate, *, owner: str, now: datetime, on_in_doubt: OnInDoubt
) -> ClaimResult:
    """Decide whether `owner` may send the candidate, given the row the ledger has; None for a new one."""
    if row is not None:
        if row.status is LedgerStatus.DELIVERED:
            return ClaimResult.DELIVERED
        if row.owner != owner and row.lease_expires_at is not None and row.lease_expires_at > now:
            return ClaimResult.BUSY
    if candidate.error is not None:
        return ClaimResult.REJECTED
    if row is not None:
        if row.status is LedgerStatus.REJECTED and row.payload_hash == candidate.payload_hash:
            return ClaimResult.REJECTED
        if row.status in _DOUBTFUL and on_in_doubt == "hold":
            return ClaimResult.IN_DOUBT
    return ClaimResult.CLAIMED


def claim_answer(result: ClaimResult, row: KnownRow | None, candidate: Candidate) -> Claim:
    """Tell the candidate the result, and what the ledger knows of its row."""
    if row is None:
        return Claim(result, error=candidate.error)
    return Claim(
        result,
        session_id=row.session_id,
        error=candidate.error or row.error,
        changed=None not in (row.payload_hash, candidate.payload_hash) and row.payload_hash != candidate.payload_hash,
        changes=row.changes or 0,
        doubt=_doubt(row),
    )


def _doubt(row: KnownRow) -> Doubt | None:
    if row.status not in _DOUBTFUL:
        return None
    return Doubt(row.doubt_since, row.user_id, row.payload_hash, row.message_hash, row.into_session, row.reference)


def claim_changes_row(result: ClaimResult, row: KnownRow, candidate: Candidate) -> bool:
    """Whether the claim writes to a stored row: to take it over, to mark its doubt, or for a new reason to reject."""
    match result:
        case ClaimResult.CLAIMED:
            return True
        case ClaimResult.IN_DOUBT | ClaimResult.REJECTED if row.status is LedgerStatus.IN_FLIGHT:
            return True
        case ClaimResult.REJECTED if candidate.error is not None:
            return row.status is not LedgerStatus.REJECTED or row.error != shortened(candidate.error)
    return False


def claim_finds_doubt(result: ClaimResult, row: KnownRow) -> bool:
    """Whether the claim is the first to know that the row is in doubt: it was in flight when its lease ran out."""
    return row.status is LedgerStatus.IN_FLIGHT and result is not ClaimResult.BUSY


def new_row(result: ClaimResult, candidate: Candidate, writer: Writer) -> dict[str, Any]:
    """The columns of a row that the ledger does not have yet."""
    claimed = result is ClaimResult.CLAIMED
    return {
        "namespace": writer.namespace,
        "row_key": candidate.row_key,
        "status": LedgerStatus.PENDING if claimed else LedgerStatus.REJECTED,
        "user_id": candidate.user_id,
        "payload_hash": candidate.payload_hash,
        "message_hash": candidate.message_hash,
        "into_session": storable(candidate.into_session),
        "reference": storable(candidate.reference),
        "attempts": 0,
        "error": shortened(candidate.error),
        "owner": writer.owner,
        "lease_expires_at": writer.lease_expires_at if claimed else None,
        "created_at": writer.now,
        "updated_at": writer.now,
        **writer.task_instance,
    }


def claimed_row(
    result: ClaimResult, row: KnownRow, candidate: Candidate, writer: Writer, *, on_in_doubt: OnInDoubt
) -> dict[str, Any]:
    """The columns that a claim changes in a stored row: what Halo may have stays in doubt, whoever claims it.

    What is to be looked up keeps the content that Halo may have: the candidate's own may be another one.
    """
    claimed = result is ClaimResult.CLAIMED
    certain = LedgerStatus.PENDING if claimed else LedgerStatus.REJECTED
    is_asked = claimed and on_in_doubt == "ask" and row.status in _DOUBTFUL
    keeps = is_asked or result is ClaimResult.IN_DOUBT
    return {
        "status": LedgerStatus.IN_DOUBT if row.status in _DOUBTFUL else certain,
        "user_id": row.user_id if is_asked else candidate.user_id or row.user_id,
        "payload_hash": row.payload_hash if keeps else candidate.payload_hash,
        "message_hash": candidate.message_hash if claimed and not is_asked else row.message_hash,
        "into_session": storable(candidate.into_session) if claimed and not is_asked else row.into_session,
        "reference": storable(candidate.reference) if claimed and not is_asked else row.reference,
        # What a row was rejected for says nothing about its new content, and may be a person's word in another DAG.
        "error": shortened(candidate.error) or (None if claimed and row.status is LedgerStatus.REJECTED else row.error),
        "owner": writer.owner if claimed else row.owner,
        "lease_expires_at": writer.lease_expires_at if claimed else None,
        "updated_at": writer.now,
        **writer.task_instance,
    }


def settled_row(settlement: Settlement, writer: Writer) -> dict[str, Any]:
    """The columns that a settlement changes, besides the status."""
    return {
        "session_id": storable(settlement.session_id),
        "agent_id": shortened(settlement.agent_id),
        "error": shortened(settlement.error),
        "reply": shortened(settlement.reply),
        "response": storable_json(settlement.response),
        "lease_expires_at": None if settlement.final else writer.lease_expires_at,
        "updated_at": writer.now,
    }


def session_id_fits(session_id: str) -> bool:
    """Whether the ledger can hold it; an answer with another one has no usable session_id."""
    return len(session_id) <= MAX_SESSION_ID


def recordable(settlement: Settlement) -> Settlement:
    """The settlement itself, or doubt where its session_id does not fit."""
    if settlement.session_id is None or session_id_fits(settlement.session_id):
        return settlement
    return settlement._replace(status=LedgerStatus.IN_DOUBT, session_id=None, error=SESSION_UNUSABLE, change=None)


def without_texts(settlement: Settlement) -> Settlement:
    """The same outcome without the texts that a database may refuse."""
    return settlement._replace(agent_id=None, error=TEXTS_REFUSED, reply=None, response=None)


def settlement_is_told(settlement: Settlement) -> bool:
    """Whether a row's history tells the settlement: something went wrong with an attempt, or it was looked up."""
    return (
        settlement.status in _TROUBLE
        or settlement.found is not None
        or (settlement.status is LedgerStatus.PENDING and not settlement.final)
    )


def settlement_event(settlement: Settlement, writer: Writer) -> dict[str, Any]:
    """The columns of the event that tells of a settlement."""
    return event(
        settlement.status.value if settlement.found is None else FOUND,
        writer.namespace,
        settlement.row_key,
        actor=writer.actor,
        now=writer.now,
        detail=settlement.error if settlement.found is None else settlement.found,
        belongs_to=writer.task_instance,
    )


def doubt_event(
    namespace: str, row_key: str, *, actor: str, now: datetime, belongs_to: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns of the event that tells of a row in flight whose lease ran out."""
    doubt = LedgerStatus.IN_DOUBT.value
    return event(doubt, namespace, row_key, actor=actor, now=now, detail=LEASE_RAN_OUT, belongs_to=belongs_to)


def event(
    name: str,
    namespace: str,
    row_key: str,
    *,
    actor: str,
    now: datetime,
    detail: str | None,
    belongs_to: Mapping[str, Any],
    decision: str | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The columns of an event of a row's history.

    `belongs_to` is the task instance that it is about, by column names: its DAG says who may read the event. `before`
    is what a person's `decision` replaced.
    """
    return {
        "namespace": namespace,
        "row_key": row_key,
        "at": now,
        "actor": actor,
        "event": name,
        "detail": shortened(detail),
        "dag_id": belongs_to["dag_id"],
        "run_ref": belongs_to["run_ref"],
        "decision": decision,
        "before": to_json(before).decode() if before else None,
    }


def shortened(text: str | None) -> str | None:
    """Without secrets, at most `MAX_TEXT` characters."""
    return storable(redact(text[:MAX_READ])[:MAX_TEXT]) if text else None


def storable(text: str | None) -> str | None:
    """Without NUL, which PostgreSQL's text cannot hold, and without lone surrogates, which are not UTF-8."""
    if not text:
        return None
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if text.isascii() else text.encode(errors="replace").decode()


def storable_json(response: Mapping[str, Any] | None) -> str | None:
    """JSON without secrets, without NaN and Infinity; None for what is too long, or too deep to be read again."""
    if not response:
        return None
    try:
        text = to_json(response, inf_nan_mode="null").decode()
        if len(text) > MAX_RESPONSE:
            return None
        text = redact(text)
        from_json(text)
    except ValueError:
        return None
    return text
