"""The judge of a soak: compares a ledger with Halo by SQL and HTTP, and shares no code with the package.

What it asks of every round:

- Nothing is lost: each row of the sources is delivered, rejected for a reason, or, where rows in doubt are held back,
  in doubt or waiting behind its user's row in doubt.
- No row is with Halo twice without a record of doubt: for each copy after the first one the row's history tells of
  doubt once. Where rows in doubt are held back, there is no second copy at all.
- Order: when Halo takes a user's row from a run, it has each row that stands before it in that run's source and has the
  same user, whoever sent it, or Halo rejected that row. And of one run, Halo never works on two rows of a user at once.
  Between runs whose sources have different orders nothing more can be promised.
- The ledger equals Halo: a delivered row's session is one in which Halo has this row, and of this row's user. What Halo
  has is delivered in the ledger, or its history tells of doubt.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from sqlalchemy import create_engine, text

HTTP_TIMEOUT = 30.0  # seconds
MESSAGE = re.compile(r"Row (?P<row_key>\S+):")  # how every message of a soak begins
_ROWS = text("SELECT row_key, status, user_id, session_id, error FROM halo_submissions WHERE namespace = :namespace")
_DOUBTS = text(
    "SELECT row_key, COUNT(*) AS doubts FROM halo_submission_events"
    " WHERE namespace = :namespace AND event = 'in_doubt' GROUP BY row_key"
)
_ENDS = frozenset({"delivered", "rejected"})
_WAITING = frozenset({"pending", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a round was about: its places, and what every run was to read, as (row key, user) in the source's order."""

    halo_url: str
    ledger_url: str
    namespace: str
    sources: Mapping[str, Sequence[tuple[str, str]]]  # by the run's name, which every message carries
    on_in_doubt: Literal["resend", "hold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """A row, as the ledger has it; `doubts` counts how often its history tells of doubt."""

    status: str
    user_id: str | None
    session_id: str | None
    error: str | None
    doubts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HaloChat:
    """A message, as Halo has it. `started` and `ended` are seconds on Halo's clock; `ended` is None while it works."""

    row_key: str
    user_id: str | None
    session_id: str
    run: str | None
    started: float
    ended: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that the judge goes by."""

    ledger: Mapping[str, LedgerRow]
    chats: Sequence[HaloChat]  # in the order in which Halo took them


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What the judge counted, and what it found. A kept promise has empty lists."""

    rows: int
    chats: int
    doubles_with_doubt: int = 0  # copies of rows beyond the first one
    doubles_without_doubt: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """Everything that was found, in words."""
        kinds = {
            "double without doubt": self.doubles_without_doubt,
            "lost": self.lost,
            "out of order": self.out_of_order,
            "ledger differs from Halo": self.mismatches,
        }
        return [f"{kind}: {finding}" for kind, findings in kinds.items() for finding in findings]


def judge(case: Case) -> tuple[Verdict, Evidence]:
    """Look into the ledger and at Halo, and compare them."""
    evidence = Evidence(ledger=ledger_of(case.ledger_url, case.namespace), chats=chats_of(case.halo_url))
    return compare(case, evidence), evidence


def compare(case: Case, evidence: Evidence) -> Verdict:
    """Judge by the evidence."""
    users = {row_key: user_id for source in case.sources.values() for row_key, user_id in source}
    copies = Counter(chat.row_key for chat in evidence.chats)
    verdict = Verdict(rows=len(users), chats=len(evidence.chats))
    verdict.lost += _lost(case, evidence, users)
    for row_key, number in copies.items():
        row = evidence.ledger.get(row_key)
        doubts = row.doubts if row is not None and case.on_in_doubt == "resend" else 0
        verdict.doubles_with_doubt += min(number - 1, doubts)
        if number - 1 > doubts:
            told = row.doubts if row is not None else 0
            verdict.doubles_without_doubt.append(f"row {row_key}: {number} copies, {told} records of doubt")
    verdict.out_of_order += [*_overtaken(case, evidence), *_at_once(evidence)]
    verdict.mismatches += [*_ledger_beyond_halo(evidence), *_halo_beyond_ledger(evidence, users)]
    return verdict


def ledger_of(url: str, namespace: str) -> dict[str, LedgerRow]:
    """The ledger's rows of one namespace, by their keys."""
    engine = create_engine(url)
    try:
        with engine.connect() as db:
            doubts = {row.row_key: row.doubts for row in db.execute(_DOUBTS, {"namespace": namespace})}
            rows = db.execute(_ROWS, {"namespace": namespace}).mappings().all()
    finally:
        engine.dispose()
    return {
        row["row_key"]: LedgerRow(
            status=row["status"],
            user_id=row["user_id"],
            session_id=row["session_id"],
            error=row["error"],
            doubts=doubts.get(row["row_key"], 0),
        )
        for row in rows
    }


def chats_of(url: str) -> list[HaloChat]:
    """What Halo took, in its order."""
    answer = httpx.get(f"{url}/_simulator/state", timeout=HTTP_TIMEOUT)
    answer.raise_for_status()
    return [_chat(chat) for chat in answer.json()["chats"]]


def _chat(chat: Mapping[str, Any]) -> HaloChat:
    match = MESSAGE.match(chat["message"])
    return HaloChat(
        row_key=match["row_key"] if match else chat["message"],
        user_id=chat["user_id"],
        session_id=chat["session_id"],
        run=chat["custom_fields"].get("run"),
        started=chat["started"],
        ended=chat["ended"],
    )


def _lost(case: Case, evidence: Evidence, users: Mapping[str, str]) -> Iterator[str]:
    held_back = {users.get(row_key) for row_key, row in evidence.ledger.items() if row.status == "in_doubt"}
    for row_key, user_id in users.items():
        match evidence.ledger.get(row_key):
            case None:
                yield f"row {row_key}: the ledger does not have it"
            case LedgerRow(status="delivered"):
                pass
            case LedgerRow(status="rejected", error=error) if error:
                pass
            case LedgerRow(status="in_doubt") if case.on_in_doubt == "hold":
                pass
            case LedgerRow(status=status, error=error) if (
                status in _WAITING and error and case.on_in_doubt == "hold" and user_id in held_back
            ):
                pass
            case LedgerRow(status=status, error=error):
                yield f"row {row_key}: it ended as {status}, for this reason: {error}"


def _overtaken(case: Case, evidence: Evidence) -> Iterator[str]:
    """Rows that Halo took from a run before it had an earlier one of the same user in that run's source."""
    taken: set[str] = set()
    before = {run: _earlier_rows(source) for run, source in case.sources.items()}
    rejected = {row_key for row_key, row in evidence.ledger.items() if row.status == "rejected"}
    for chat in evidence.chats:
        earlier = before.get(chat.run or "", {}).get(chat.row_key)
        if earlier is None:
            yield f"row {chat.row_key}: run {chat.run} was not to send it"
        elif overtaken := [row_key for row_key in earlier if row_key not in taken | rejected]:
            yield f"row {chat.row_key}: run {chat.run} sent it before row {', '.join(overtaken)} of the same user"
        taken.add(chat.row_key)


def _earlier_rows(source: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The rows of the same user before each row."""
    earlier: dict[str, list[str]] = {}
    by_user: defaultdict[str, list[str]] = defaultdict(list)
    for row_key, user_id in source:
        earlier[row_key] = by_user[user_id].copy()
        by_user[user_id].append(row_key)
    return earlier


def _at_once(evidence: Evidence) -> Iterator[str]:
    """Rows that Halo took from a run while it worked on another one of the same user from the same run."""
    latest: dict[tuple[str | None, str | None], list[HaloChat]] = defaultdict(list)
    for chat in evidence.chats:
        of_this_user = latest[chat.run, chat.user_id]
        for other in of_this_user:
            if other.row_key != chat.row_key and (other.ended is None or other.ended > chat.started):
                yield f"row {chat.row_key}: run {chat.run} sent it while row {other.row_key} was in flight"
        of_this_user.append(chat)


def _ledger_beyond_halo(evidence: Evidence) -> Iterator[str]:
    """What the ledger says and Halo does not know of."""
    by_session: defaultdict[str | None, set[tuple[str, str | None]]] = defaultdict(set)
    for chat in evidence.chats:
        by_session[chat.session_id].add((chat.row_key, chat.user_id))
    for row_key, row in evidence.ledger.items():
        if row.status == "delivered" and (row_key, row.user_id) not in by_session[row.session_id]:
            yield f"row {row_key}: delivered in session {row.session_id}, where Halo does not have it"


def _halo_beyond_ledger(evidence: Evidence, users: Mapping[str, str]) -> Iterator[str]:
    """What Halo has and the ledger does not know of."""
    for row_key, user_id in sorted({(chat.row_key, chat.user_id or "") for chat in evidence.chats}):
        row = evidence.ledger.get(row_key)
        if users.get(row_key) != user_id:
            yield f"row {row_key}: Halo has it of {user_id}, the source of {users.get(row_key)}"
        elif row is None or (row.status != "delivered" and not row.doubts):
            status = row.status if row else "nothing"
            yield f"row {row_key}: with Halo, but the ledger says {status} and tells of no doubt"
