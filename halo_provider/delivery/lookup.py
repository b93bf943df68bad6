"""Whether conversations that Halo has are a row's own: pure, by what a reader found.

What is compared: a conversation is the row's where it holds the row's reference; else where a message of its user is
the row's whole message, after `normalized` (Unicode's composed form, white space as one space), in a conversation of
the row's own user, begun or written since the row's attempt began, that is no other row's. What is similar, cut off,
another user's or older is not the row's. What cannot be told makes the look unclear: it then proves nothing.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from halo_provider.client.records import Conversation, Message, normalized
from halo_provider.ledger.claims import LeaseHolder
from halo_provider.ledger.rules import Doubt, Rivals
from halo_provider.submission import REFERENCE_MARK, RenderedSubmission

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)  # before Halo had conversations
CLOCK_MARGIN = timedelta(minutes=5)  # by which the clocks of this host, of the ledger and of Halo may differ
MIN_PREFIX = 20  # characters: the beginning of a message that is as long may be the message, cut off
FIRST_LOOK = 2.0  # seconds after the attempt's end
LOOKS_APART = 2.0  # seconds at least between the last two looks
EXTRA_LOOK = 0.5  # of ask_after, after the last look, where that one was unclear


class Question(NamedTuple):
    """The row that is looked for. `session_id` is the session its message was sent into, if that existed before.

    `message` is normalized; without it, its hash is compared.
    """

    row_key: str
    user_id: str | None
    since: datetime
    message_hash: str | None
    message: str | None = None
    reference: str | None = None
    session_id: str | None = None

    @classmethod
    def about(cls, doubt: Doubt, submission: RenderedSubmission, *, row_key: str) -> "Question":
        """The question about what an earlier run may have sent, which may have had another content than now."""
        message = normalized(submission.request.message)
        return cls(
            row_key=row_key,
            user_id=doubt.user_id,
            since=doubt.since or LONG_AGO,
            message_hash=doubt.message_hash,
            message=message if hash_of(message) == doubt.message_hash else None,
            reference=doubt.reference,
            session_id=doubt.into_session,
        )

    @classmethod
    def of(cls, submission: RenderedSubmission, *, since: datetime) -> "Question":
        """The question about a submission whose first doubtful attempt began at that time."""
        message = normalized(submission.request.message)
        return cls(
            row_key=submission.row_key,
            user_id=submission.user_id,
            since=since,
            message_hash=hash_of(message),
            message=message,
            reference=submission.reference,
            session_id=submission.continued_session,
        )

    @property
    def earliest(self) -> datetime:
        """The time, by Halo's clock, before which nothing can be the row's."""
        return self.since - CLOCK_MARGIN

    @property
    def can_be_asked(self) -> bool:
        """Whether anything could be told: an anonymous message without a reference looks like anybody's."""
        return self.reference is not None or (self.user_id is not None and self.message_hash is not None)


class Sight(StrEnum):
    """What one look showed."""

    FOUND = "found"
    ABSENT = "absent"
    UNCLEAR = "unclear"


class Look(NamedTuple):
    """One look: `session_id` and by what it was found, or why it is unclear.

    `lasting`: every further look would be as unclear, until a person changes something.
    """

    sight: Sight
    session_id: str | None = None
    reason: str = ""
    lasting: bool = False


class _Match(NamedTuple):
    """Whether one conversation is the row's; `is_own` is None where it cannot be told."""

    is_own: bool | None
    reason: str = ""


def rivals_in(lease_holder: LeaseHolder, question: Question, session_ids: Sequence[str]) -> Rivals:
    """Whose else these sessions may be, by the ledger; blocks. Raises LedgerError."""
    return lease_holder.rivals(
        question.row_key,
        user_id=question.user_id,
        message_hash=question.message_hash,
        into_session=question.session_id,
        session_ids=session_ids,
    )


def message_hash_of(message: str) -> str:
    """The hash of a message as it is compared."""
    return hash_of(normalized(message))


def hash_of(message: str) -> str:
    """The hash of a message that is normalized already."""
    return sha256(message.encode(errors="replace")).hexdigest()


def needs_transcript(question: Question, conversation: Conversation) -> bool:
    """Whether the whole conversation must be fetched before it can be judged: a search may tell a part of it only."""
    if conversation.session_id is None:
        return False
    match = _match(question, conversation)
    return match.is_own is None or (match.is_own is False and not _certainly_not(question, conversation))


def judge(
    question: Question, conversations: Iterable[Conversation], *, complete: bool, rivals: Rivals | None = None
) -> Look:
    """What the conversations show. `complete`: there are no more.

    By its message alone a row is not found where another row of the user, with the same words, is on its way: whose the
    message is cannot be told.
    """
    rivals = rivals or Rivals()
    unclear = "" if complete else "the tools did not give all conversations"
    own: list[tuple[Conversation, str]] = []
    for conversation in conversations:
        match = _match(question, conversation)
        if match.is_own is None:
            unclear = unclear or match.reason
        elif match.is_own and match.reason == BY_REFERENCE:
            own.append((conversation, match.reason))
        elif match.is_own and question.session_id is None and conversation.session_id in rivals.sessions:
            continue
        elif match.is_own and rivals.same_words:
            unclear = unclear or SAME_WORDS
        elif match.is_own:
            own.append((conversation, match.reason))
    if own:
        first, reason = min(own, key=lambda each: each[0].started_at or question.since)
        return Look(Sight.FOUND, first.session_id, reason)
    return Look(Sight.UNCLEAR, reason=unclear) if unclear else Look(Sight.ABSENT)


def next_look(looks: Sequence[tuple[Look, float]], *, ask_after: float) -> float | None:
    """At how many seconds after the attempt's end to look again; None where the looks so far settle the question.

    `looks` are those made, each with its seconds after the attempt's end. "Not there" counts after two looks, the last
    of them `ask_after` after the end or later; an unclear last look is made good once.
    """
    if not looks:
        return min(FIRST_LOOK, ask_after / 4)
    look, at = looks[-1]
    if look.sight is Sight.FOUND or look.lasting:
        return None
    if at < ask_after:
        return ask_after if at >= ask_after / 6 else max(ask_after / 6, at + min(LOOKS_APART, ask_after / 6))
    if look.sight is Sight.ABSENT and sum(each.sight is Sight.ABSENT for each, _ in looks) > 1:
        return None
    if sum(at >= ask_after for _, at in looks) > 1:
        return None
    return at + max(ask_after * EXTRA_LOOK, min(LOOKS_APART, ask_after))


def verdict(looks: Sequence[tuple[Look, float]], *, ask_after: float) -> Look:
    """What the looks show together, where no other is to be made."""
    if not looks:
        return Look(Sight.UNCLEAR, reason="nobody looked")
    last, at = looks[-1]
    is_proven = at >= ask_after and sum(look.sight is Sight.ABSENT for look, _ in looks) > 1
    if last.sight is Sight.ABSENT and not is_proven:
        return Look(Sight.UNCLEAR, reason="one look alone does not prove that it is not there")
    return last


SAME_WORDS = (
    "another row of the user with the same words is in flight or in doubt, and only reference=True tells them apart"
)
BY_REFERENCE = "by its reference"
BY_MESSAGE = "by its message"


def _match(question: Question, conversation: Conversation) -> _Match:
    if question.session_id is not None and conversation.session_id != question.session_id:
        return _Match(False)
    is_users = None if not conversation.user_ids else question.user_id in conversation.user_ids
    has_reference = question.reference is not None and _mentions(conversation, question.reference)
    if has_reference:
        if question.user_id is not None and is_users is False:
            return _Match(None, "the row's reference stands in a conversation of another user")
        return _own(conversation, BY_REFERENCE)
    if question.user_id is None or is_users is False or question.message_hash is None:
        return _Match(False)
    if question.reference is not None and any(REFERENCE_MARK in text for text in conversation.texts()):
        return _Match(False)  # another row's
    return _by_message(question, conversation, is_users=is_users)


def _by_message(question: Question, conversation: Conversation, *, is_users: bool | None) -> _Match:
    unsure: _Match | None = None
    for message in conversation.messages or ():
        if message.of_user is False:
            continue
        same = _is_same(question, message)
        if same is False:
            continue
        is_new = _is_new(question, conversation, message)
        if is_new is False:
            continue
        if same and is_new and is_users:
            return _own(conversation, BY_MESSAGE)
        unsure = unsure or _Match(None, _why_unsure(same=same, is_new=is_new))
    if unsure is not None:
        return unsure
    if _certainly_not(question, conversation):
        return _Match(False)
    if not conversation.messages:
        return _Match(None, "a conversation came without its messages") if is_users is not False else _Match(False)
    if conversation.cut:
        return _Match(None, "a conversation came in part")
    if conversation.loose_text is not None and (
        question.message is None or question.message in normalized(conversation.loose_text)
    ):
        return _Match(None, "a transcript came as one text, whose messages cannot be told apart for certain")
    return _Match(False)


def _own(conversation: Conversation, reason: str) -> _Match:
    if conversation.session_id is None:
        return _Match(None, "the conversation was found, but not the id of its session")
    return _Match(True, reason)


def _why_unsure(*, same: bool | None, is_new: bool | None) -> str:
    if same is None:
        return "a message came in part"
    if is_new is None:
        return "a message with the same words has no time that could be compared"
    return "a conversation with the same words does not say whose it is"


def _is_same(question: Question, message: Message) -> bool | None:
    """Whether it is the row's whole message; None where it may be, cut off."""
    found = normalized(message.text)
    if hash_of(found) == question.message_hash:
        return True
    start = found.rstrip(".…").removesuffix("[truncated]").removesuffix("(truncated)").rstrip()
    if question.message is None:
        return None if message.cut else False
    is_beginning = question.message.startswith(start) and len(start) < len(question.message)
    return None if is_beginning and (message.cut or len(start) >= MIN_PREFIX) else False


def _is_new(question: Question, conversation: Conversation, message: Message) -> bool | None:
    """Whether it was written since the attempt began; None where that cannot be told."""
    if message.sent_at is not None:
        return message.sent_at >= question.earliest
    if conversation.started_at is None:
        return None
    if conversation.started_at >= question.earliest:
        return True
    return None if question.session_id is not None else False


def _certainly_not(question: Question, conversation: Conversation) -> bool:
    """Whether the whole conversation could not be the row's either: another user's, or begun before."""
    if conversation.user_ids and question.user_id is not None and question.user_id not in conversation.user_ids:
        return True
    is_old = conversation.started_at is not None and conversation.started_at < question.earliest
    return is_old and question.session_id is None


def _mentions(conversation: Conversation, reference: str) -> bool:
    """Whether the reference stands in any text of it, not as a part of a longer one."""
    for text in conversation.texts():
        start = text.find(reference)
        while start >= 0:
            end = start + len(reference)
            if not text[end : end + 1].isalnum() and not text[max(0, start - 1) : start].isalnum():
                return True
            start = text.find(reference, start + 1)
    return False
