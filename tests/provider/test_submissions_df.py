"""HaloHook.submissions_df: the ledger's rows as a DataFrame, on every database that holds a ledger."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from halo_provider.exceptions import HaloConfigurationError
from halo_provider.hooks import submissions
from halo_provider.hooks.halo import HaloHook
from halo_provider.hooks.ledger import open_ledger
from halo_provider.ledger.ledger import Ledger
from halo_provider.ledger.rules import Candidate, Change, Settlement, TaskInstanceRef
from halo_provider.ledger.statuses import LedgerStatus
from tests.core.databases import mariadb_place, postgres_place
from tests.provider.runs import Connect, Statuses

PLACES = {"postgres": postgres_place, "mariadb": mariadb_place}
LOGICAL_DATE = datetime(2026, 11, 2, 6, tzinfo=UTC)


@pytest.fixture
def _no_ledger(connect: Connect, statuses: Statuses) -> None:
    """A Halo connection, and no ledger yet."""


@pytest.fixture(params=["sqlite", *PLACES])
def ledger(request: pytest.FixtureRequest, _no_ledger: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """An empty ledger where the hook looks for it, on each of the databases."""
    if request.param == "sqlite":
        with closing(open_ledger()) as ledger:
            yield ledger
        return
    with (
        PLACES[request.param](request.getfixturevalue(f"{request.param}_url")) as url,
        closing(Ledger.at(url)) as ledger,
    ):
        monkeypatch.setattr("halo_provider.hooks.ledger.database_engine", lambda _conn_id: Ledger.at(url).engine)
        monkeypatch.setenv("AIRFLOW__HALO__LEDGER_CONN_ID", "ledger_db")
        yield ledger


def bring(
    ledger: Ledger,
    *row_keys: str,
    status: str = "delivered",
    namespace: str = "halo_default/note",
    dag_id: str = "notes",
) -> None:
    """Bring new rows to a status, as a delivery does."""
    task_instance = TaskInstanceRef(
        dag_id=dag_id, run_id="run 1", task_id="tickets", map_index=-1, try_number=2, logical_date=LOGICAL_DATE
    )
    lease_holder = ledger.lease_holder(namespace, task_instance=task_instance)
    lease_holder.claim(
        [Candidate(row_key=key, user_id=f"user-{key}", payload_hash="a" * 64) for key in row_keys], on_in_doubt="resend"
    )
    lease_holder.commit(intents=row_keys)
    session = "sess-{}" if status == "delivered" else None
    lease_holder.commit(
        settlements=[
            Settlement(
                row_key=key,
                status=LedgerStatus(status),
                session_id=session and session.format(key),
                error=None if session else "why",
            )
            for key in row_keys
        ]
    )


def keys(frame: pd.DataFrame) -> list[str]:
    """The rows that are in it."""
    return list(frame["row_key"])


def test_rows_of_the_ledger_are_a_frame(ledger: Ledger) -> None:
    """With what people join by, and where each row came from."""
    started = datetime.now(UTC)
    bring(ledger, "1", "2")
    bring(ledger, "3", status="rejected")

    frame = HaloHook().submissions_df()

    first, _, third = frame.to_dict("records")
    assert keys(frame) == ["1", "2", "3"]
    assert (first["session_id"], first["user_id"], first["status"]) == ("sess-1", "user-1", "delivered")
    assert (first["submission_name"], first["dag_id"], first["run_id"], first["task_id"]) == (
        "note",
        "notes",
        "run 1",
        "tickets",
    )
    assert (first["attempts"], first["map_index"], first["try_number"]) == (1, -1, 2)
    assert first["logical_date"] == LOGICAL_DATE
    assert started - timedelta(seconds=1) < first["created_at"] <= first["updated_at"] < datetime.now(UTC)
    assert (third["status"], third["session_id"], third["error"]) == ("rejected", None, "why")


def test_columns_have_their_types_whatever_the_rows_hold(ledger: Ledger) -> None:
    """Of an empty ledger too: what is joined or added up does not depend on the day."""
    empty = HaloHook().submissions_df()
    bring(ledger, "1", status="failed")
    one = HaloHook().submissions_df()

    assert (len(empty), len(one)) == (0, 1)
    assert {name: str(kind) for name, kind in empty.dtypes.items()} == submissions.COLUMNS
    assert list(empty.dtypes) == list(one.dtypes)


def test_frame_joins_to_the_table_that_the_rows_came_from(ledger: Ledger) -> None:
    """As the docstring shows it."""
    bring(ledger, "1", "2")
    applications = pd.DataFrame({"submission_id": ["2", "1", "0"], "plan": ["pro", "free", "pro"]})

    sessions = HaloHook().submissions_df("note", status="delivered")
    joined = applications.merge(
        sessions[["row_key", "session_id"]], left_on="submission_id", right_on="row_key", how="left"
    )

    assert joined["session_id"].fillna("").tolist() == ["sess-2", "sess-1", ""]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, ["1", "2", "3", "1"]),
        ({"submission_name": "note"}, ["1", "2", "3"]),
        ({"submission_name": "order"}, ["1"]),
        ({"submission_name": "other"}, []),
        ({"dag_id": "orders"}, ["1"]),
        ({"status": "failed"}, ["2"]),
        ({"submission_name": "note", "dag_id": "notes", "status": "delivered"}, ["1", "3"]),
    ],
    ids=str,
)
def test_rows_may_be_chosen(ledger: Ledger, chosen: dict[str, str], found: list[str]) -> None:
    """By submission, DAG and status; never those of another connection, whatever its name begins with."""
    bring(ledger, "1", "3")
    bring(ledger, "2", status="failed")
    bring(ledger, "1", namespace="halo_default/order", dag_id="orders")
    bring(ledger, "4", namespace="halo_default_2/note")
    bring(ledger, "5", namespace="halo_default/eu/note")

    assert keys(HaloHook().submissions_df(**chosen)) == found


def test_follow_ups_stand_under_the_key_of_their_row(ledger: Ledger) -> None:
    """Numbered, so that the row itself can be told from them."""
    bring(ledger, "1")
    bring(ledger, Change("1", 1, "b" * 64).ledger_key)

    frame = HaloHook().submissions_df()

    assert keys(frame) == ["1", "1"]
    assert sorted(frame["follow_up"].fillna(0)) == [0, 1]


def test_pages_are_one_frame(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or doubled where two of them meet."""
    monkeypatch.setattr(submissions, "PAGE", 2)
    row_keys = [str(number) for number in range(5)]
    bring(ledger, *row_keys)
    bring(ledger, *row_keys, namespace="halo_default/order")

    frame = HaloHook().submissions_df()

    assert keys(frame) == row_keys * 2
    assert list(frame.index) == list(range(10))


def test_unknown_status_is_refused() -> None:
    """Rather than an empty frame; the error names those that there are."""
    with pytest.raises(HaloConfigurationError, match=r"status must be one of pending, .*, failed, not 'sent'"):
        HaloHook().submissions_df(status="sent")


@pytest.mark.usefixtures("_no_ledger")
def test_ledger_that_is_not_there_is_not_made(airflow_home: Path) -> None:
    """Looking leaves no trace: there are the columns, and no rows."""
    frame = HaloHook().submissions_df()

    assert (len(frame), list(frame.columns)) == (0, list(submissions.COLUMNS))
    assert not (airflow_home / "halo_ledger.db").exists()
