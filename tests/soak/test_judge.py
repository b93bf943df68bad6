"""The judge of the soak finds what it is there to find, in a ledger and a Halo of which everything else is right."""

import ast
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert, text

from halo_provider.ledger import Ledger
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import events, submissions
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from tests.soak import judge as judges
from tests.soak.judge import Case, Verdict, judge
from tests.soak.worker import SUBMISSION

NAMESPACE = "soak/test"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = (("a1", "ann"), ("b1", "bob"), ("a2", "ann"))
RUN = "run 1"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A Halo and a ledger, into which a test writes what it wants the judge to see."""

    case: Case
    ledger: Ledger

    def send(self, row_key: str, user_id: str, *, run: str = RUN) -> str:
        """Let Halo take a row; returns its session."""
        answer = httpx.post(
            f"{self.case.halo_url}/api/sdk/chat",
            headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"},
            json={
                "message": SUBMISSION.message.format(id=row_key),
                "user_id": user_id,
                "custom_fields": {"run": run},
            },
        )
        answer.raise_for_status()
        return str(answer.json()["session_id"])

    def record(
        self,
        row_key: str,
        user_id: str,
        status: LedgerStatus,
        *,
        session_id: str | None = None,
        error: str | None = None,
    ) -> None:
        """Write a row into the ledger."""
        row = {
            "namespace": NAMESPACE,
            "row_key": row_key,
            "user_id": user_id,
            "status": status,
            "session_id": session_id,
            "error": error,
            "attempts": 1,
            "created_at": NOW,
            "updated_at": NOW,
        }
        self.ledger.transaction(lambda db: db.execute(insert(submissions), row))

    def doubt(self, row_key: str) -> None:
        """Let the row's history tell of doubt."""
        event = {"namespace": NAMESPACE, "row_key": row_key, "at": NOW, "actor": "test", "event": "in_doubt"}
        self.ledger.transaction(lambda db: db.execute(insert(events), event))

    def deliver(self, row_key: str, user_id: str) -> None:
        """Send a row and record it, as it should be."""
        self.record(row_key, user_id, LedgerStatus.DELIVERED, session_id=self.send(row_key, user_id))

    def change(self, statement: str) -> None:
        """Change the ledger behind everybody's back."""
        self.ledger.transaction(lambda db: db.execute(text(statement)))

    def verdict(self) -> Verdict:
        """What the judge says."""
        return judge(self.case)[0]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A Halo and a ledger in which nothing has happened yet."""
    ledger_url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with serving(Simulator()) as url, closing(Ledger.at(ledger_url)) as ledger:
        case = Case(
            halo_url=url, ledger_url=ledger_url, namespace=NAMESPACE, sources={RUN: SOURCE}, on_in_doubt="resend"
        )
        yield Place(case=case, ledger=ledger)


@pytest.fixture
def delivered(place: Place) -> Place:
    """A Halo and a ledger in which every row is delivered, in order."""
    for row_key, user_id in SOURCE:
        place.deliver(row_key, user_id)
    return place


def test_judge_shares_no_code_with_the_package() -> None:
    """It imports nothing of the package, so that it does not repeat the package's mistakes."""
    tree = ast.parse(Path(judges.__file__).read_text(encoding="utf-8"))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}

    assert imported
    assert not [name for name in imported if name.startswith(("halo_provider", "tests", "airflow"))]


def test_rows_delivered_in_order_are_no_finding(delivered: Place) -> None:
    """Where every promise was kept the judge is silent."""
    verdict = delivered.verdict()

    assert (verdict.rows, verdict.chats, verdict.findings) == (3, 3, [])


def test_row_that_the_ledger_lacks_is_lost(delivered: Place) -> None:
    """A row of the source without a row in the ledger is found; that Halo has it does not help."""
    delivered.change("DELETE FROM halo_submissions WHERE row_key = 'b1'")

    assert delivered.verdict().lost == ["row b1: the ledger does not have it"]


@pytest.mark.parametrize("status", ["pending", "in_flight", "failed", "in_doubt"])
def test_row_that_came_to_no_end_is_lost(place: Place, status: str) -> None:
    """Where rows in doubt are sent again every row ends as delivered or rejected."""
    place.deliver("a1", "ann")
    place.deliver("a2", "ann")
    place.record("b1", "bob", LedgerStatus(status), error="the run was cut off")

    assert place.verdict().lost == [f"row b1: it ended as {status}, for this reason: the run was cut off"]


def test_row_rejected_without_a_reason_is_lost(place: Place) -> None:
    """A rejected row says why."""
    place.deliver("a1", "ann")
    place.deliver("a2", "ann")
    place.record("b1", "bob", LedgerStatus.REJECTED)

    assert place.verdict().lost == ["row b1: it ended as rejected, for this reason: None"]


def test_rows_held_back_behind_a_row_in_doubt_are_not_lost(place: Place) -> None:
    """With hold a row in doubt waits for a person, and its user's later ones behind it, with a reason."""
    held = replace(place, case=replace(place.case, on_in_doubt="hold"))
    held.record("a1", "ann", LedgerStatus.IN_DOUBT, error="no answer")
    held.record("a2", "ann", LedgerStatus.PENDING, error="an earlier row is not delivered yet")
    held.record("b1", "bob", LedgerStatus.PENDING, error="an earlier row is not delivered yet")
    held.doubt("a1")

    assert [finding[:6] for finding in held.verdict().lost] == ["row b1"]


def test_row_sent_twice_without_a_record_of_doubt_is_found(delivered: Place) -> None:
    """Halo has a row twice, and nothing in its history tells why."""
    delivered.send("a2", "ann")

    assert delivered.verdict().doubles_without_doubt == ["row a2: 2 copies, 0 records of doubt"]


def test_row_sent_twice_after_doubt_is_counted(delivered: Place) -> None:
    """One doubt explains one copy more, and is no finding."""
    delivered.send("a2", "ann")
    delivered.doubt("a2")

    verdict = delivered.verdict()

    assert (verdict.doubles_with_doubt, verdict.findings) == (1, [])


def test_one_doubt_does_not_explain_two_copies(delivered: Place) -> None:
    """Each copy needs a doubt of its own."""
    delivered.send("a2", "ann")
    delivered.send("a2", "ann")
    delivered.doubt("a2")

    assert delivered.verdict().doubles_without_doubt == ["row a2: 3 copies, 1 records of doubt"]


def test_doubt_explains_no_double_where_rows_in_doubt_are_held(delivered: Place) -> None:
    """With hold nothing is sent twice at all."""
    held = replace(delivered, case=replace(delivered.case, on_in_doubt="hold"))
    held.send("a2", "ann")
    held.doubt("a2")

    assert held.verdict().doubles_without_doubt == ["row a2: 2 copies, 1 records of doubt"]


def test_session_of_another_row_is_found(delivered: Place) -> None:
    """The ledger names a session in which Halo has another row."""
    delivered.change(
        "UPDATE halo_submissions SET session_id = (SELECT session_id FROM halo_submissions WHERE row_key = 'b1')"
        " WHERE row_key = 'a1'"
    )

    (mismatch,) = delivered.verdict().mismatches

    assert mismatch.startswith("row a1: delivered in session ")


def test_delivery_that_halo_knows_nothing_of_is_found(place: Place) -> None:
    """The ledger says delivered, and Halo never had the row."""
    place.deliver("a1", "ann")
    place.deliver("b1", "bob")
    place.record("a2", "ann", LedgerStatus.DELIVERED, session_id="sess_invented")

    assert place.verdict().mismatches == [
        "row a2: delivered in session sess_invented, where Halo does not have it",
    ]


def test_row_with_halo_that_the_ledger_says_was_not_sent_is_found(delivered: Place) -> None:
    """Pending means certainly not with Halo."""
    delivered.change("UPDATE halo_submissions SET status = 'pending' WHERE row_key = 'b1'")

    assert "row b1: with Halo, but the ledger says pending and tells of no doubt" in delivered.verdict().mismatches


def test_overtaken_row_is_found(place: Place) -> None:
    """Halo took a user's second row before the first one, from a run whose source has them the other way round."""
    place.deliver("a2", "ann")
    place.deliver("b1", "bob")
    place.deliver("a1", "ann")

    assert place.verdict().out_of_order == ["row a2: run run 1 sent it before row a1 of the same user"]


def test_order_is_that_of_the_source_of_the_run_that_sent_the_row(place: Place) -> None:
    """Another run whose source begins with the second row may send it first."""
    backwards = replace(place, case=replace(place.case, sources={RUN: SOURCE, "run 2": SOURCE[::-1]}))
    session_id = backwards.send("a2", "ann", run="run 2")
    backwards.record("a2", "ann", LedgerStatus.DELIVERED, session_id=session_id)
    backwards.deliver("a1", "ann")
    backwards.deliver("b1", "bob")

    assert backwards.verdict().findings == []


def test_row_behind_a_rejected_one_is_in_order(place: Place) -> None:
    """A row that Halo refused for good holds nobody up."""
    place.record("a1", "ann", LedgerStatus.REJECTED, error="Halo answered 400")
    place.deliver("b1", "bob")
    place.deliver("a2", "ann")

    assert place.verdict().findings == []


def test_two_rows_of_a_user_in_flight_at_once_are_found(delivered: Place) -> None:
    """A run sends a user's next row only when Halo has answered the one before."""
    case, evidence = delivered.case, judge(delivered.case)[1]
    first, other, second = evidence.chats
    overlapping = replace(evidence, chats=[replace(first, ended=second.started + 1.0), other, second])

    assert judges.compare(case, overlapping).out_of_order == [
        "row a2: run run 1 sent it while row a1 was in flight",
    ]
