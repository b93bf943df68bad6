"""A row's place in a run: it is sent, it waits for another run, or it has ended with a status.

`place_of` decides, from what was read and what the ledger answered. `Placer` asks the ledger: the delivery has it claim
rows, the dry run has it only look.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from uuid import UUID, uuid5

from halo_provider.delivery.lookup import message_hash_of
from halo_provider.delivery.options import OnChange
from halo_provider.delivery.prepare import PreparedRow
from halo_provider.exceptions import RowError
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.rules import Candidate, Change, Claim, ClaimResult, Doubt, KnownRow, OnInDoubt
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.submission import RenderedSubmission, Submission

_SESSIONS = UUID("7e1de8b2-9d0f-4c5f-8a55-0d5c9f6a1d3e")  # in which session ids are made of names


class Send(NamedTuple):
    """This run may send it. `doubt` is what Halo may have of it from an earlier attempt."""

    submission: RenderedSubmission
    change: Change | None = None
    doubt: Doubt | None = None


class Wait(NamedTuple):
    """It cannot be sent at this moment: another run holds the row, or an earlier row of this run has its key."""

    submission: RenderedSubmission
    change: Change | None = None


class End(NamedTuple):
    """The row has ended in this run."""

    status: RowStatus
    error: RowError | None = None
    session_id: str | None = None


Place = Send | Wait | End


class PlacedRow(NamedTuple):
    """A row and its place. `has_changed`: it was delivered before, with another content."""

    prepared: PreparedRow
    place: Place
    has_changed: bool = False


def candidate(submission: RenderedSubmission, change: Change | None = None) -> Candidate:
    """What the ledger needs to know of a submission, or of the follow-up that carries this change of it."""
    row_key = change.ledger_key if change else submission.row_key
    return Candidate(
        row_key=row_key,
        user_id=submission.user_id,
        payload_hash=submission.payload_hash,
        message_hash=message_hash_of(submission.request.message),
        into_session=submission.continued_session,
        reference=submission.reference,
    )


def candidate_of(prepared: PreparedRow) -> Candidate:
    """What the ledger needs to know of a row with a key: its request, or why there is none."""
    if prepared.submission is None:
        return Candidate(row_key=prepared.row_key or "", error=str(prepared.error))
    return candidate(prepared.submission)


def place_of(prepared: PreparedRow, claim: Claim | None, *, change: Change | None = None) -> Place:
    """The place of a row by what the ledger answered about it; None is no answer, since the ledger could not be used.

    A `change` is the follow-up of a delivered row: the claim is then about the follow-up.
    """
    if prepared.duplicate:
        return End(RowStatus.DUPLICATE)
    if claim is not None and claim.result is ClaimResult.DELIVERED:
        return End(RowStatus.ALREADY_DELIVERED, session_id=claim.session_id)
    if prepared.submission is None:
        return End(RowStatus.REJECTED, prepared.error)
    if not prepared.is_first:
        return Wait(prepared.submission)
    if prepared.waits_for is not None:
        return End(RowStatus.NOT_ATTEMPTED, RowError(prepared.waits_for))
    if claim is None:
        return End(RowStatus.NOT_ATTEMPTED, RowError("the ledger could not be used"))
    match claim.result:
        case ClaimResult.REJECTED:
            reason = "rejected by an earlier run, and its content is the same"
            return End(RowStatus.REJECTED, _as_known(reason, claim))
        case ClaimResult.IN_DOUBT:
            reason = "sent by an earlier run, answer unknown; held back (on_in_doubt='hold')"
            return End(RowStatus.IN_DOUBT, _as_known(reason, claim))
        case ClaimResult.BUSY:
            return Wait(prepared.submission, change)
    return Send(prepared.submission, change, claim.doubt)


def _as_known(reason: str, claim: Claim) -> RowError:
    """The reason, with what the ledger knows: Halo's own words, in which the row's values are masked."""
    return RowError(f"{reason}: {claim.error}" if claim.error else reason)


def follow(prepared: PreparedRow, followed: KnownRow | None, *, submission: Submission) -> PreparedRow:
    """The row with the session of the row it follows; or with what it waits for, or why it is rejected.

    `followed` is what the ledger knows of the row that is followed, None where it knows nothing.
    """
    if prepared.submission is None or submission.follows is None:
        return prepared
    name, columns = submission.follows
    if followed is not None and followed.status == LedgerStatus.DELIVERED and followed.session_id:
        return prepared._replace(submission=prepared.submission.into_session(followed.session_id))
    key = prepared.submission.follows_key
    if followed is not None and followed.status != LedgerStatus.REJECTED:
        why = f": {followed.error}" if followed.error else ""
        waits_for = f"it waits for {name} {key!r}, which is not delivered yet ({followed.status.value}{why})"
        return prepared._replace(waits_for=waits_for)
    missing = f"there is no delivered {name} {key!r} that it could follow" if key else f"it names no {name} to follow"
    match submission.follows_missing:
        case "follow_up":
            return prepared._replace(waits_for=missing)
        case "reject":
            return prepared._replace(submission=None, error=RowError(missing, column=columns[0]))
    return prepared


def next_change(submission: RenderedSubmission, claim: Claim) -> Change:
    """The change that a follow-up of a delivered row carries, which has this content now."""
    return Change(submission.row_key, claim.changes + 1, submission.payload_hash)


def own_session_id(namespace: str, row_key: str) -> str:
    """The id of the row's session, the same whoever asks: a UUID, as nothing is documented about Halo's own ids."""
    return str(uuid5(_SESSIONS, f"{namespace}\n{row_key}"))


class Placer:
    """Asks the ledger about rows, some at a time, and gives each its place.

    With `claims` the rows that are to be sent are claimed for the lease holder; without, nothing is written. Blocks:
    belongs on the ledger's thread. Raises LedgerError.
    """

    def __init__(
        self,
        lease_holder: LeaseHolder,
        *,
        submission: Submission,
        on_in_doubt: OnInDoubt,
        on_change: OnChange,
        own_session_ids: bool,
        claims: bool,
    ) -> None:
        self._lease_holder = lease_holder
        self._submission = submission
        self._on_in_doubt: OnInDoubt = on_in_doubt
        self._on_change = on_change
        self._own_session_ids = own_session_ids
        self._ask = lease_holder.claim if claims else lease_holder.preview

    def place(self, prepared_rows: Sequence[PreparedRow]) -> list[PlacedRow]:
        """Give every row its place. One that repeats an earlier row's key waits until that row has ended."""
        rows = self._in_sessions(prepared_rows)
        return self._placed(rows, [row for row in rows if row.is_candidate and row.waits_for is None])

    def place_again(self, prepared_rows: Sequence[PreparedRow]) -> list[PlacedRow]:
        """Give rows that waited a place; their keys must differ. A repeated key's first row has ended by now."""
        rows = [row._replace(is_first=True) for row in self._in_sessions(prepared_rows)]
        return self._placed(rows, [row for row in rows if row.waits_for is None])

    def _placed(self, rows: Sequence[PreparedRow], asking: Sequence[PreparedRow]) -> list[PlacedRow]:
        claims = self._ask_about([candidate_of(row) for row in asking])
        changes = self._changes(rows, claims)
        claims_of_changes = self._ask_about([candidate(submission, change) for submission, change in changes.values()])
        placed = []
        for row in rows:
            claim = claims.get(row.row_key or "") if row.is_candidate else None
            has_changed = claim is not None and claim.has_changed and row.submission is not None
            if has_changed and row.row_key in changes:
                submission, change = changes[row.row_key]
                follow_up = row._replace(submission=submission)
                place = place_of(follow_up, claims_of_changes.get(change.ledger_key), change=change)
            else:
                place = place_of(row, claim)
            placed.append(PlacedRow(row, place, has_changed))
        return placed

    def _ask_about(self, candidates: Sequence[Candidate]) -> dict[str, Claim]:
        """What the ledger answers about each, by its key."""
        return self._ask(candidates, on_in_doubt=self._on_in_doubt) if candidates else {}

    def _in_sessions(self, prepared_rows: Sequence[PreparedRow]) -> list[PreparedRow]:
        """Point each row into the session it belongs to, where that is known before it is sent."""
        rows = self._followed(prepared_rows)
        return [self._in_own_session(row) for row in rows] if self._own_session_ids else rows

    def _in_own_session(self, row: PreparedRow) -> PreparedRow:
        submission = row.submission
        if submission is None or submission.request.session_id is not None:
            return row
        session_id = own_session_id(self._lease_holder.namespace, submission.row_key)
        return row._replace(submission=submission.into_session(session_id, begins=True))

    def _followed(self, prepared_rows: Sequence[PreparedRow]) -> list[PreparedRow]:
        """Point follow-ups into the sessions they belong to."""
        if self._submission.follows is None:
            return list(prepared_rows)
        name, _ = self._submission.follows
        asking = [candidate_of(row) for row in prepared_rows if row.is_candidate]
        own = self._lease_holder.preview(asking, on_in_doubt=self._on_in_doubt)
        keys = sorted({row.submission.follows_key or "" for row in prepared_rows if row.submission})
        known = self._lease_holder.followed(name, keys)
        rows = []
        for row in prepared_rows:
            if row.submission is None or own[row.submission.row_key].result is ClaimResult.DELIVERED:
                rows.append(row)
            else:
                rows.append(follow(row, known.get(row.submission.follows_key or ""), submission=self._submission))
        return rows

    def _changes(
        self, rows: Sequence[PreparedRow], claims: Mapping[str, Claim]
    ) -> dict[str | None, tuple[RenderedSubmission, Change]]:
        """The follow-ups of delivered rows that have changed since, by the rows' keys."""
        if self._on_change != "follow_up":
            return {}
        changed: list[tuple[PreparedRow, RenderedSubmission, Claim]] = []
        for row in rows:
            claim = claims.get(row.row_key or "") if row.is_candidate else None
            if claim is not None and claim.has_changed and claim.session_id and row.submission is not None:
                changed.append((row, row.submission.into_session(claim.session_id), claim))
        seconds = {row.row_key: Change(row.row_key or "", None, one.payload_hash) for row, one, _ in changed}
        asking = [candidate(one, seconds[row.row_key]) for row, one, _ in changed]
        known = self._lease_holder.preview(asking, on_in_doubt=self._on_in_doubt) if asking else {}
        changes: dict[str | None, tuple[RenderedSubmission, Change]] = {}
        for row, submission, claim in changed:
            second = seconds[row.row_key]
            was_second = known[second.ledger_key].result is ClaimResult.DELIVERED
            change = second if row.repeats is not None or was_second else next_change(submission, claim)
            changes[row.row_key] = submission, change
        return changes
