"""The button that asks Halo about a row in doubt, on Airflow's real API server."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from halo_provider.delivery.lookup import message_hash_of
from halo_provider.ledger import Ledger
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Fault, Reading, Simulator
from halo_provider.ui import asking
from tests.acceptance.sign_in_worker import KEY, sign_in_at
from tests.provider.test_ui import (
    DAG,
    FROM_OUR_PAGE,
    NAMESPACE,
    Browser,
    add_row,
    airflow_url,
    ledger,
    no_ledger,
    nobody,
    op,
    status_of,
    tokens,
    viewer,
)

__all__ = ["airflow_url", "ledger", "no_ledger", "nobody", "op", "tokens", "viewer"]

ASK = f"dags/{DAG}/ask?namespace={NAMESPACE}&row_key=1"
ROW = f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1"
TEXT = "New order."


@pytest.fixture
def readable(halo: Simulator, halo_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """A Halo that halo_default leads to, at which somebody has signed in."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    connection = {"conn_type": "halo", "host": halo_url, "password": EXAMPLE_WIDGET_KEY}
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps(connection))
    monkeypatch.setattr(asking, "APART", 0.2)
    halo.reading = Reading(consent="approved")
    sign_in_at(f"{halo_url}/api/mcp", ledger)
    yield halo
    halo.reset()


def sent(ledger: Ledger, *, ago: float = 120.0, **values: Any) -> None:
    """A row in doubt whose last attempt is so many seconds ago."""
    moment = ledger.now() - timedelta(seconds=ago)
    hashed = {"message_hash": message_hash_of(TEXT), "payload_hash": "a" * 64}
    add_row(ledger, "1", LedgerStatus.IN_DOUBT, updated_at=moment, doubt_since=moment, **(hashed | values))


def chat(halo_url: str) -> str:
    """Let Halo have the row's message; its session."""
    answer = httpx.post(
        f"{halo_url}/api/sdk/chat",
        json={"message": TEXT, "user_id": "user_1"},
        headers={"Authorization": f"Bearer {EXAMPLE_WIDGET_KEY}"},
        timeout=20,
        trust_env=False,
    )
    session: str = answer.raise_for_status().json()["session_id"]
    return session


def test_row_that_halo_has_is_resolved(readable: Simulator, halo_url: str, ledger: Ledger, op: Browser) -> None:
    """With the session that was found, and the user's name in its history."""
    sent(ledger)
    session = chat(halo_url)
    assert "Ask Halo" in op.get(ROW).text

    page = op.post(ASK, headers=FROM_OUR_PAGE)

    assert "Halo has it" in page.text
    row = RowReader(ledger).row(NAMESPACE, "1")
    assert row is not None
    assert (row.status, row.session_id) == (LedgerStatus.DELIVERED, session)
    (event,) = RowReader(ledger).history(NAMESPACE, "1")
    assert (event.actor, event.event, event.detail) == (
        "op",
        "resolved",
        f"session {session}: found in Halo by its message",
    )


def test_row_that_halo_does_not_have_is_requeued(readable: Simulator, ledger: Ledger, op: Browser) -> None:
    """The next run sends it."""
    sent(ledger)

    assert "Halo does not have it" in op.post(ASK, headers=FROM_OUR_PAGE).text
    assert status_of(ledger, "1") == LedgerStatus.PENDING


def test_what_cannot_be_told_changes_nothing(readable: Simulator, ledger: Ledger, op: Browser) -> None:
    """The page says why."""
    sent(ledger)
    readable.always("/api/mcp", Fault.status(403))

    page = op.post(ASK, headers=FROM_OUR_PAGE).text

    assert "nothing was changed" in page
    assert "reading may be switched off" in page
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_nobody_signed_in_is_said(
    halo: Simulator, ledger: Ledger, op: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what helps."""
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", KEY.decode())
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps({"conn_type": "halo", "password": EXAMPLE_WIDGET_KEY}))
    sent(ledger)

    assert "halo-login --conn-id halo_default" in op.post(ASK, headers=FROM_OUR_PAGE).text
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_only_rows_that_halo_may_have_for_a_while_are_looked_up(
    readable: Simulator, ledger: Ledger, op: Browser
) -> None:
    """What was just sent may not be visible yet."""
    sent(ledger, ago=asking.MIN_AGE / 2)

    assert "Ask Halo" not in op.get(ROW).text
    assert op.post(ASK, headers=FROM_OUR_PAGE).status_code == httpx.codes.CONFLICT
    assert not [each for each in readable.reads if each.authorized]


def test_asking_is_a_decision(ledger: Ledger, op: Browser, viewer: Browser, nobody: Browser) -> None:
    """Only those may ask who may trigger the DAG, about its own rows, from Airflow's own pages."""
    sent(ledger)

    assert nobody.post(ASK, headers=FROM_OUR_PAGE).status_code == httpx.codes.UNAUTHORIZED
    assert viewer.post(ASK, headers=FROM_OUR_PAGE).status_code == httpx.codes.FORBIDDEN
    assert "Ask Halo" not in viewer.get(ROW).text
    assert op.post(ASK).status_code == httpx.codes.FORBIDDEN
    other = ASK.replace(f"dags/{DAG}", "dags/other")
    assert op.post(other, headers=FROM_OUR_PAGE).status_code == httpx.codes.NOT_FOUND
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT
