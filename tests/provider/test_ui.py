"""The pages in Airflow's UI, on Airflow's real API server: who sees what, who decides, and what a page shows."""

import csv
import html
import io
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from sqlalchemy import insert, select, update

from halo_provider.compat import AuditLog, create_session
from halo_provider.ledger import Candidate, Ledger, TaskInstanceRef, row_reader
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.delivery_records import DeliveryCounts, DeliveryRecords
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import boots, deliveries, submissions
from halo_provider.simulator import serving
from halo_provider.ui import rows
from halo_provider.ui.ledgers import MAX_LEDGER_REQUESTS

DAG = "orders"
RUN = "manual__2026-11-22T00:00:00+00:00"
NAMESPACE = "halo_default/order"
ROLES = ("viewer", "op", "admin")
ROUTES = (
    "",
    "assets/halo.css",
    "assets/halo.js",
    f"dags/{DAG}/rows",
    f"dags/{DAG}/rows.csv",
    f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1",
    f"dags/{DAG}/decision?action=requeue",
)
FROM_OUR_PAGE = {"Sec-Fetch-Site": "same-origin"}
UNPACKED = {"Accept-Encoding": "identity"}  # Airflow packs what a reader takes, and repeated letters to nothing


@pytest.fixture(scope="module")
def airflow_url(airflow_home: Path) -> Iterator[str]:
    """Airflow's API server with the plugin, where everybody needs a password."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS", ",".join(f"{role}:{role}" for role in ROLES))
        passwords = airflow_home / "passwords.json"
        passwords.write_text(json.dumps({role: f"password of {role}" for role in ROLES}))
        patched.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(passwords))
        from airflow.api_fastapi.app import create_app  # noqa: PLC0415 -- reads the configuration

        with serving(create_app(apps="core")) as url:
            yield url


@pytest.fixture(scope="module")
def tokens(airflow_url: str) -> dict[str, str]:
    """A token of each role's user, as the login gives it."""
    return {
        role: httpx.post(f"{airflow_url}/auth/token", json={"username": role, "password": f"password of {role}"})
        .raise_for_status()
        .json()["access_token"]
        for role in ROLES
    }


class Browser(httpx.Client):
    """A browser in which somebody is logged in: the session is in a cookie."""

    def __init__(self, airflow_url: str, token: str | None) -> None:
        cookies = {"_token": token} if token else {}
        super().__init__(base_url=f"{airflow_url}/halo/", cookies=cookies, headers={"Accept": "text/html"}, timeout=20)


@pytest.fixture
def viewer(airflow_url: str, tokens: dict[str, str]) -> Iterator[Browser]:
    """Somebody who may look."""
    with Browser(airflow_url, tokens["viewer"]) as browser:
        yield browser


@pytest.fixture
def op(airflow_url: str, tokens: dict[str, str]) -> Iterator[Browser]:
    """Somebody who may trigger DAGs."""
    with Browser(airflow_url, tokens["op"]) as browser:
        yield browser


@pytest.fixture
def nobody(airflow_url: str) -> Iterator[Browser]:
    """Somebody who is not logged in."""
    with Browser(airflow_url, None) as browser:
        yield browser


@pytest.fixture
def no_ledger(airflow_home: Path) -> Path:
    """The place of the default ledger, empty."""
    for file in airflow_home.glob("halo_ledger.db*"):
        file.unlink()
    return airflow_home / "halo_ledger.db"


@pytest.fixture
def ledger(no_ledger: Path) -> Iterator[Ledger]:
    """A fresh default ledger."""
    with closing(Ledger.at_path(no_ledger)) as ledger:
        yield ledger


def add_row(ledger: Ledger, row_key: str, status: LedgerStatus, **values: Any) -> None:
    """Write a row as some run may have left it."""
    add_rows(ledger, [row_key], status, **values)


def add_rows(ledger: Ledger, row_keys: Iterable[str], status: LedgerStatus, **values: Any) -> None:
    """Write rows that are alike but for their key, their user and their session."""
    now = ledger.now()
    common = {
        "namespace": NAMESPACE,
        "status": status,
        "attempts": 1,
        "dag_id": DAG,
        "run_id": RUN,
        "task_id": "tickets",
        "map_index": -1,
        "try_number": 1,
        "created_at": now,
        "updated_at": now,
    }
    rows = [
        {
            **common,
            "row_key": row_key,
            "user_id": f"user_{row_key}",
            "session_id": f"session_{row_key}" if status is LedgerStatus.DELIVERED else None,
            **values,
        }
        for row_key in row_keys
    ]
    ledger.transaction(lambda db: db.execute(insert(submissions), rows))


def add_large_rows(ledger: Ledger) -> None:
    """Thirty megabytes of rows: more than a connection holds whose reader has stopped."""
    add_rows(ledger, (f"{each:04}" for each in range(300)), LedgerStatus.DELIVERED, error="e" * 100_000)


def row_keys(page: httpx.Response) -> list[str]:
    """The keys in a page's table, in its order."""
    assert page.status_code == httpx.codes.OK, page.text
    return re.findall(r"row_key=([^\"&]*)\">[^<]*</a><div", page.text)


def rows_page(**query: Any) -> str:
    """The address of the DAG's rows."""
    return f"dags/{DAG}/rows?{urlencode(query)}"


def decision(action: str, **query: str) -> str:
    """The address where a decision about rows of the DAG is confirmed."""
    return f"dags/{DAG}/decision?{urlencode({'action': action, **query})}"


def form_of(page: httpx.Response) -> tuple[str, dict[str, str]]:
    """Where a confirmation is sent, and what it carries."""
    assert page.status_code == httpx.codes.OK, page.text
    (form,) = re.findall(r'<form class="decision".*?</form>', page.text, re.DOTALL)
    action = html.unescape(re.findall(r'action="([^"]*)"', form)[0]).removeprefix("/halo/")
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form))
    hidden |= dict(re.findall(r'<textarea name="([^"]*)" hidden>(.*?)</textarea>', form, re.DOTALL))
    return action, {name: html.unescape(value) for name, value in hidden.items()}


def confirm(browser: Browser, page: httpx.Response, **fields: str) -> httpx.Response:
    """Agree to what the page shows."""
    action, hidden = form_of(page)
    return browser.post(action, data={**hidden, **fields}, headers=FROM_OUR_PAGE)


def bound(ledger: Ledger, count: int = 1) -> dict[str, str]:
    """What a confirmation of so many rows carries."""
    return {"count": str(count), "as_of": ledger.now().isoformat()}


def status_of(ledger: Ledger, row_key: str) -> str:
    """What the ledger has of a row."""
    return str(RowReader(ledger).row(NAMESPACE, row_key).status)


@pytest.fixture
def only_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody see or do anything with another DAG than DAG."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager  # noqa: PLC0415

    by_role = SimpleAuthManager.is_authorized_dag

    def by_role_and_dag(self: Any, *, details: Any = None, **request: Any) -> bool:
        return details is not None and details.id == DAG and by_role(self, details=details, **request)

    monkeypatch.setattr(SimpleAuthManager, "is_authorized_dag", by_role_and_dag)


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_answers_without_a_session(ledger: Ledger, nobody: Browser, route: str) -> None:
    """Whoever is not logged in gets 401, whatever the route."""
    assert nobody.get(route).status_code == httpx.codes.UNAUTHORIZED


def test_no_decision_without_a_session(ledger: Ledger, nobody: Browser) -> None:
    """Whoever is not logged in decides nothing."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    assert nobody.post(decision("requeue"), headers=FROM_OUR_PAGE).status_code == httpx.codes.UNAUTHORIZED
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


@pytest.mark.parametrize("route", ROUTES[:-1])
def test_viewer_sees_every_page(ledger: Ledger, viewer: Browser, route: str) -> None:
    """Whoever may read the DAG's task instances may look."""
    add_row(ledger, "1", LedgerStatus.DELIVERED)
    assert viewer.get(route).status_code == httpx.codes.OK


def test_viewer_cannot_act(ledger: Ledger, viewer: Browser) -> None:
    """Whoever may not trigger the DAG is shown no button, no confirmation, and changes nothing."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    assert "decision?" not in viewer.get(rows_page()).text
    assert viewer.get(decision("requeue")).status_code == httpx.codes.FORBIDDEN
    assert viewer.post(decision("requeue"), headers=FROM_OUR_PAGE).status_code == httpx.codes.FORBIDDEN
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_rows_of_other_dags_stay_hidden(ledger: Ledger, op: Browser, only_orders: None) -> None:
    """Rows, their counts and their deliveries are seen by those who may see their DAG, on every page."""
    add_row(ledger, "ours", LedgerStatus.FAILED)
    add_row(ledger, "theirs", LedgerStatus.FAILED, dag_id="secret")
    DeliveryRecords(ledger).begin("o", namespace=NAMESPACE, task_instance=TaskInstanceRef(dag_id="secret"), total=1)
    overview = op.get("")
    assert row_keys(overview) == ["ours"]
    assert "secret" not in overview.text
    for route in ("rows", "rows.csv", f"row?namespace={NAMESPACE}&row_key=theirs", "decision?action=requeue"):
        assert op.get(f"dags/secret/{route}").status_code == httpx.codes.FORBIDDEN
    assert op.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=theirs").status_code == httpx.codes.NOT_FOUND
    assert op.post("dags/secret/decision?action=requeue", headers=FROM_OUR_PAGE).status_code == httpx.codes.FORBIDDEN


def test_decision_reaches_no_row_of_another_dag(ledger: Ledger, op: Browser, only_orders: None) -> None:
    """Naming another DAG's row in an address of one's own DAG changes nothing."""
    add_row(ledger, "theirs", LedgerStatus.FAILED, dag_id="secret")
    named = decision("requeue", namespace=NAMESPACE, row_key="theirs")
    assert op.post(named, data=bound(ledger), headers=FROM_OUR_PAGE).status_code == httpx.codes.CONFLICT
    assert status_of(ledger, "theirs") == LedgerStatus.FAILED


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "null"},
        {},
    ],
)
def test_post_from_elsewhere_is_refused(ledger: Ledger, op: Browser, headers: dict[str, str]) -> None:
    """The session's cookie alone is no proof that the user meant it."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    answer = op.post(decision("requeue", status="in_doubt"), data=bound(ledger), headers=headers)
    assert answer.status_code == httpx.codes.FORBIDDEN
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_post_is_taken_from_our_own_origin(ledger: Ledger, op: Browser, airflow_url: str) -> None:
    """On plain HTTP browsers send Origin instead of Sec-Fetch-Site."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    answer = op.post(decision("requeue", status="in_doubt"), data=bound(ledger), headers={"Origin": airflow_url})
    assert answer.status_code == httpx.codes.SEE_OTHER
    assert status_of(ledger, "1") == LedgerStatus.PENDING


def test_post_is_taken_with_a_bearer_token(ledger: Ledger, nobody: Browser, tokens: dict[str, str]) -> None:
    """A program that holds the token is not a browser that was led astray."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    headers = {"Authorization": f"Bearer {tokens['op']}"}
    answer = nobody.post(decision("requeue", status="in_doubt"), data=bound(ledger), headers=headers)
    assert answer.status_code == httpx.codes.SEE_OTHER


def test_pages_forbid_scripts_of_other_origins(ledger: Ledger, viewer: Browser) -> None:
    """Every page carries a policy that runs only the plugin's own script, in frames of Airflow's own only."""
    policy = viewer.get("").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "{{7*7}}", '"><img src=x onerror=alert(1)>'])
def test_hostile_text_shows_as_text(ledger: Ledger, op: Browser, hostile: str) -> None:
    """What a row holds is never markup and never a template, on any page, in any place."""
    add_row(ledger, hostile, LedgerStatus.IN_DOUBT, user_id=hostile, session_id=hostile, error=hostile, task_id=hostile)
    LedgerAdmin(ledger, actor=hostile).reject(RowFilter(row_keys=(hostile,)), reason=hostile)
    url = f"dags/{DAG}/row?{urlencode({'namespace': NAMESPACE, 'row_key': hostile})}"
    for page in (
        "",
        rows_page(search=hostile, run_id=RUN, task_id=hostile),
        url,
        decision("requeue", search=hostile, status="rejected"),
    ):
        text = op.get(page).text
        assert "<script>alert" not in text
        assert "<img" not in text
        assert ">49<" not in text
        assert hostile in html.unescape(text)


def test_page_without_a_ledger_says_so_and_makes_none(no_ledger: Path, viewer: Browser) -> None:
    """Before the first delivery there is nothing to show, and looking leaves no trace."""
    answer = viewer.get("")
    assert answer.status_code == httpx.codes.OK
    assert "Nothing has been delivered yet" in answer.text
    assert not no_ledger.exists()


@pytest.mark.parametrize("page", ["", f"dags/{DAG}/rows", f"dags/{DAG}/rows.csv"])
def test_broken_ledger_is_named_and_nothing_else_breaks(
    no_ledger: Path, viewer: Browser, airflow_url: str, page: str
) -> None:
    """A ledger that cannot be read costs a page of explanation, and Airflow goes on."""
    no_ledger.write_bytes(b"this is no database" * 100)
    answer = viewer.get(page)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "The ledger cannot be read at this moment" in answer.text
    assert httpx.get(f"{airflow_url}/api/v2/version").status_code == httpx.codes.OK


def test_missing_connection_of_the_ledger_is_named(viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that names no connection is explained, too."""
    monkeypatch.setenv("AIRFLOW__HALO__LEDGER_CONN_ID", "nowhere")
    answer = viewer.get("")
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "nowhere" in answer.text


def test_rows_that_wait_for_a_decision_come_first(ledger: Ledger, viewer: Browser) -> None:
    """In doubt, failed and rejected rows stand before the others."""
    for row_key, status in (
        ("1", LedgerStatus.DELIVERED),
        ("2", LedgerStatus.REJECTED),
        ("3", LedgerStatus.FAILED),
        ("4", LedgerStatus.IN_DOUBT),
    ):
        add_row(ledger, row_key, status)
    assert row_keys(viewer.get(rows_page(run_id=RUN))) == ["4", "3", "2", "1"]
    assert row_keys(viewer.get("")) == ["4", "3", "2"]


def test_filter_shows_the_rows_of_one_status(ledger: Ledger, viewer: Browser) -> None:
    """The statuses are links, each with its number of rows."""
    add_row(ledger, "1", LedgerStatus.DELIVERED)
    add_row(ledger, "2", LedgerStatus.FAILED)
    assert row_keys(viewer.get(rows_page(run_id=RUN, status="failed"))) == ["2"]


@pytest.mark.parametrize("search", ["ORD-17", "user_ORD-17", "session_ORD-17", " ORD-17 "])
def test_search_finds_a_row_by_key_user_and_session(ledger: Ledger, viewer: Browser, search: str) -> None:
    """A part of any of the three is enough."""
    for each in range(10, 20):
        add_row(ledger, f"ORD-{each}", LedgerStatus.DELIVERED)
    assert row_keys(viewer.get(rows_page(search=search))) == ["ORD-17"]


def test_long_search_goes_on_where_it_ended(ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among very many rows a page searches a part of them, says so, and leads on; a whole key is found at once."""
    monkeypatch.setattr(row_reader, "SEARCH_STEP", 10)
    monkeypatch.setattr(row_reader, "SEARCH_TIME", 0.0)
    for each in range(25):
        add_row(ledger, f"{each:02}", LedgerStatus.DELIVERED)
    assert row_keys(viewer.get(rows_page(search="24"))) == ["24"]
    following = rows_page(search="r_24")
    for _ in range(2):
        page = viewer.get(following)
        assert row_keys(page) == []
        assert "not all of them have been searched yet" in page.text
        following = html.unescape(re.findall(r'rel="next" href="([^"]*)"', page.text)[0]).removeprefix("/halo/")
    assert row_keys(viewer.get(following)) == ["24"]


def test_tab_of_an_unmapped_task_shows_its_rows(ledger: Ledger, viewer: Browser) -> None:
    """Airflow leaves {MAP_INDEX} in the address as it is where a task is not mapped."""
    add_row(ledger, "1", LedgerStatus.DELIVERED)
    add_row(ledger, "2", LedgerStatus.DELIVERED, task_id="other")
    assert row_keys(viewer.get(rows_page(run_id=RUN, task_id="tickets", map_index="{MAP_INDEX}"))) == ["1"]


def test_tab_of_a_mapped_task_shows_its_rows(ledger: Ledger, viewer: Browser) -> None:
    """Each mapped task instance has its own."""
    for map_index in (0, 1):
        add_row(ledger, str(map_index), LedgerStatus.DELIVERED, map_index=map_index)
    assert row_keys(viewer.get(rows_page(run_id=RUN, task_id="tickets", map_index="1"))) == ["1"]


def test_pages_show_every_row_once(ledger: Ledger, viewer: Browser) -> None:
    """Following "Next page" to its end leads past every row, across statuses."""
    for each in range(150):
        add_row(ledger, f"{each:03}", LedgerStatus.DELIVERED)
        add_row(ledger, f"f{each:03}", LedgerStatus.FAILED)
    seen: list[str] = []
    following = rows_page(run_id=RUN)
    while following:
        page = viewer.get(following)
        seen += row_keys(page)
        found = re.search(r'rel="next" href="([^"]*)"', page.text)
        following = html.unescape(found[1]).removeprefix("/halo/") if found else ""
    assert seen == [f"f{each:03}" for each in range(150)] + [f"{each:03}" for each in range(150)]


def test_download_holds_every_row(ledger: Ledger, viewer: Browser) -> None:
    """The file has all rows of the filter, as a spreadsheet reads it, and no reply of Halo."""
    for each in range(1100):
        add_row(ledger, f"{each:04}", LedgerStatus.DELIVERED, reply="private")
    add_row(ledger, "other", LedgerStatus.FAILED)
    answer = viewer.get(f"dags/{DAG}/rows.csv?status=delivered")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["row_key"] for row in rows] == [f"{each:04}" for each in range(1100)]
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert "private" not in answer.text


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
def test_download_holds_no_formula(begins: str, ledger: Ledger, viewer: Browser) -> None:
    """Text that a spreadsheet would calculate is quoted, in any column; what stands beside it is left as it is."""
    formula = f"{begins}1+1"
    add_row(ledger, formula, LedgerStatus.DELIVERED, error=None)
    add_row(ledger, "a=1", LedgerStatus.FAILED, error=formula)
    add_row(ledger, "b", LedgerStatus.FAILED, error=None)

    text = io.StringIO(viewer.get(f"dags/{DAG}/rows.csv").text, newline="")
    rows = [(row["row_key"], row["error"]) for row in csv.DictReader(text)]

    assert rows == [("a=1", f"'{formula}"), ("b", ""), (f"'{formula}", "")]


def test_row_page_shows_its_history(ledger: Ledger, viewer: Browser) -> None:
    """Attempts, error, and what went wrong before are there; what Halo answered is not."""
    add_row(
        ledger,
        "1",
        LedgerStatus.FAILED,
        error="Halo answered 503",
        attempts=5,
        reply="private",
        response='{"x": "private"}',
    )
    LedgerAdmin(ledger, actor="somebody").requeue(RowFilter(row_keys=("1",)), reason="Halo is back")
    text = viewer.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text
    for part in ("Halo answered 503", "<dd>5</dd>", "requeued", "Halo is back", "somebody"):
        assert part in text
    assert "private" not in text


@pytest.mark.parametrize(("url", "shown"), [("https://dashboard.example.com", True), ("javascript:alert(1)", False)])
def test_row_links_to_the_dashboard_of_its_connection(
    ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch, url: str, *, shown: bool
) -> None:
    """The connection's address is linked where a browser can follow it safely."""
    connection = {"conn_type": "halo", "password": "ab_live_example", "extra": {"dashboard_url": url}}
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps(connection))
    add_row(ledger, "1", LedgerStatus.DELIVERED)
    text = viewer.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text
    assert (f'href="{url}"' in text) is shown


def test_row_links_to_its_user_and_session_in_halo(
    ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the templates of the connection; what an id holds cannot change where the link leads."""
    extra = {"user_url": "https://halo.example.com/u/{user_id}", "session_url": "javascript:alert('{session_id}')"}
    connection = {"conn_type": "halo", "password": "ab_live_example", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", json.dumps(connection))
    add_row(ledger, "1", LedgerStatus.DELIVERED, user_id="a/../b?c")
    text = viewer.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text
    assert 'href="https://halo.example.com/u/a%2F..%2Fb%3Fc"' in text
    assert "javascript:" not in text


def test_row_leads_back_to_airflow(ledger: Ledger, viewer: Browser) -> None:
    """To its DAG, its run and the log of the try that took it last."""
    add_row(ledger, "1", LedgerStatus.FAILED, map_index=3, try_number=2)
    text = viewer.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text
    run = "manual__2026-11-22T00%3A00%3A00%2B00%3A00"
    for place in ("", f"/runs/{run}", f"/runs/{run}/tasks/tickets/mapped/3?try_number=2"):
        assert f'href="/dags/{DAG}{place}"' in text


@pytest.mark.parametrize(("runs", "clears"), [((RUN,), True), ((RUN, "another run"), False)])
def test_requeue_offers_to_run_the_rows(ledger: Ledger, op: Browser, runs: tuple[str, ...], *, clears: bool) -> None:
    """The task of their run, where it is one, or a new run of the DAG."""
    for run_id in runs:
        add_row(ledger, run_id, LedgerStatus.FAILED, run_id=run_id)
    text = html.unescape(op.get(decision("requeue", status="failed")).text)
    assert f"/api/v2/dags/{DAG}/dagRuns" in text
    assert (f"/api/v2/dags/{DAG}/clearTaskInstances" in text) is clears
    assert (f'"dag_run_id": "{RUN}"' in text) is clears


def test_requeued_row_shows_who_did_it(ledger: Ledger, op: Browser) -> None:
    """After the confirmation the row is pending, and its history has the Airflow user's name and reason."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    query = {"namespace": NAMESPACE, "row_key": "1"}
    page = op.get(decision("requeue", **query))
    assert "they can arrive a second time" in page.text
    answer = confirm(op, page, reason="not in Halo")
    assert "1 row requeued" in op.get(answer.headers["Location"].removeprefix("/halo/")).text
    assert status_of(ledger, "1") == LedgerStatus.PENDING
    (event,) = RowReader(ledger).history(NAMESPACE, "1")
    assert (event.event, event.actor, event.detail) == ("requeued", "op", "not in Halo")


def test_decision_about_a_filter_changes_every_row_in_it(ledger: Ledger, op: Browser) -> None:
    """Only the rows of the filter change, and only those in a state that allows it."""
    for row_key, status in (("a1", LedgerStatus.FAILED), ("a2", LedgerStatus.DELIVERED), ("b1", LedgerStatus.FAILED)):
        add_row(ledger, row_key, status)
    page = op.get(decision("reject", run_id=RUN, search="a", status="failed"))
    assert "Reject 1 row?" in page.text
    confirm(op, page, reason="test")
    assert [status_of(ledger, row_key) for row_key in ("a1", "a2", "b1")] == ["rejected", "delivered", "failed"]


def test_resolved_row_has_the_session_that_was_found(ledger: Ledger, op: Browser) -> None:
    """Whoever found the ticket in Halo ends the doubt."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    confirm(op, op.get(decision("resolve", row_key="1")), session_id="ses_found")
    row = RowReader(ledger).row(NAMESPACE, "1")
    assert (row.status, row.session_id) == ("delivered", "ses_found")


@pytest.mark.parametrize("action", ["resolve", "reject"])
def test_decision_without_what_it_needs_is_refused(ledger: Ledger, op: Browser, action: str) -> None:
    """A session to resolve with, a reason to reject for."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    answer = op.post(decision(action, status="in_doubt"), data=bound(ledger), headers=FROM_OUR_PAGE)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_row_in_a_running_task_is_left_alone(ledger: Ledger, op: Browser) -> None:
    """A live lease keeps people away, too."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT, owner="somebody", lease_expires_at=ledger.now() + timedelta(minutes=1))
    answer = op.post(decision("requeue", status="in_doubt"), data=bound(ledger), headers=FROM_OUR_PAGE)
    assert answer.status_code == httpx.codes.CONFLICT
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


@pytest.mark.parametrize("status", [LedgerStatus.FAILED, LedgerStatus.REJECTED, LedgerStatus.PENDING])
def test_row_that_is_certainly_not_with_halo_cannot_be_resolved(
    ledger: Ledger, op: Browser, status: LedgerStatus
) -> None:
    """Or it would count as delivered, with a session that is not its own, and never be sent."""
    add_row(ledger, "1", status)
    assert "Nothing to resolve" in op.get(decision("resolve", row_key="1")).text
    answer = op.post(
        decision("resolve", row_key="1"), data={**bound(ledger), "session_id": "ses_1"}, headers=FROM_OUR_PAGE
    )
    assert answer.status_code == httpx.codes.CONFLICT
    assert status_of(ledger, "1") == status


def test_one_session_is_never_given_to_every_row_of_a_filter(ledger: Ledger, op: Browser) -> None:
    """A filter cannot be resolved: each row needs a session of its own."""
    for row_key in ("1", "2"):
        add_row(ledger, row_key, LedgerStatus.IN_DOUBT)
    fields = {**bound(ledger, 2), "session_id": "ses_1"}
    answer = op.post(decision("resolve", status="in_doubt"), data=fields, headers=FROM_OUR_PAGE)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


@pytest.mark.parametrize("way", ["pasted", "uploaded"])
def test_list_gives_each_row_in_doubt_its_own_session(ledger: Ledger, op: Browser, way: str) -> None:
    """Pasted or uploaded; rows that are not in doubt are named and left alone."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    add_row(ledger, "2", LedgerStatus.IN_DOUBT)
    add_row(ledger, "3", LedgerStatus.FAILED)
    text = "row_key,session_id\n1,ses_one\n2,ses_two\n3,ses_three\n"
    address = f"dags/{DAG}/sessions?run_id={urlencode({'': RUN})[1:]}"
    if way == "pasted":
        page = op.post(address, data={"pasted": text}, headers=FROM_OUR_PAGE)
    else:
        page = op.post(address, files={"file": ("found.csv", text, "text/csv")}, headers=FROM_OUR_PAGE)
    assert "Resolve 2 rows?" in page.text
    assert "1 of the 3 rows in the list are left alone" in page.text
    confirm(op, page)
    rows = {row.row_key: (row.status, row.session_id) for row in RowReader(ledger).page(RowFilter())}
    assert rows == {"1": ("delivered", "ses_one"), "2": ("delivered", "ses_two"), "3": ("failed", None)}


def test_list_that_cannot_be_read_is_explained(ledger: Ledger, op: Browser) -> None:
    """With the number of the line."""
    page = op.post(f"dags/{DAG}/sessions", data={"pasted": "1,ses_one\nno session\n"}, headers=FROM_OUR_PAGE)
    assert page.status_code == httpx.codes.BAD_REQUEST
    assert "line 2: a row key, a comma and a session id are expected" in page.text


def test_decision_is_undone_from_its_note(ledger: Ledger, op: Browser) -> None:
    """The note says who decided what, and its button gives the rows back."""
    for row_key in ("1", "2"):
        add_row(ledger, row_key, LedgerStatus.FAILED, error="why")
    location = confirm(op, op.get(decision("requeue", status="failed"))).headers["Location"].removeprefix("/halo/")
    note = op.get(location).text
    assert "2 rows requeued" in note
    undo = html.unescape(re.findall(r'action="([^"]*undo[^"]*)"', note)[0]).removeprefix("/halo/")
    op.post(undo, headers=FROM_OUR_PAGE)
    assert [status_of(ledger, row_key) for row_key in ("1", "2")] == ["failed", "failed"]
    after = op.get(location).text
    assert "2 undone" in after
    assert "/undo?" not in after
    assert "undone" in op.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text


def test_undo_needs_our_own_origin_and_the_right_to_decide(ledger: Ledger, op: Browser, viewer: Browser) -> None:
    """It changes rows as any decision does."""
    add_row(ledger, "1", LedgerStatus.FAILED)
    LedgerAdmin(ledger, actor="op").requeue(RowFilter(), decision="d" * 32)
    undo = f"dags/{DAG}/undo?decision={'d' * 32}"
    assert op.post(undo, headers={"Sec-Fetch-Site": "cross-site"}).status_code == httpx.codes.FORBIDDEN
    assert viewer.post(undo, headers=FROM_OUR_PAGE).status_code == httpx.codes.FORBIDDEN
    assert status_of(ledger, "1") == LedgerStatus.PENDING


def test_what_was_confirmed_is_what_happens(ledger: Ledger, op: Browser) -> None:
    """Rows that came after the page was shown are not changed with it: the person looks again."""
    for each in range(15):
        add_row(ledger, f"{each:02}", LedgerStatus.FAILED)
    page = op.get(decision("reject", status="failed"))
    assert "Reject 15 rows?" in page.text
    assert all(f">{each:02}<" in page.text for each in range(5))
    assert "and 10 more" in page.text
    for each in range(15, 30):
        add_row(ledger, f"{each:02}", LedgerStatus.FAILED)
    answer = confirm(op, page, reason="test")
    assert answer.status_code == httpx.codes.CONFLICT
    assert "30 match now, 15 were confirmed: look again" in answer.text
    assert RowReader(ledger).counts(RowFilter()) == {LedgerStatus.FAILED: 30}


def test_decision_about_stuck_rows_is_about_one_status(ledger: Ledger, op: Browser) -> None:
    """Stuck is not a status: the confirmation asks for one, and a form without one changes nothing."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    add_row(ledger, "2", LedgerStatus.FAILED)
    assert "Requeue which rows?" in op.get(decision("requeue", status="stuck")).text
    answer = op.post(decision("requeue", status="stuck"), data=bound(ledger, 2), headers=FROM_OUR_PAGE)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert status_of(ledger, "1") == LedgerStatus.IN_DOUBT


def test_decision_about_several_statuses_asks_for_one(ledger: Ledger, op: Browser) -> None:
    """Failed rows and rows in doubt are not the same decision."""
    add_row(ledger, "1", LedgerStatus.IN_DOUBT)
    add_row(ledger, "2", LedgerStatus.FAILED)
    assert "Requeue which rows?" in op.get(decision("requeue")).text
    answer = op.post(decision("requeue"), data=bound(ledger, 2), headers=FROM_OUR_PAGE)
    assert answer.status_code == httpx.codes.BAD_REQUEST


def test_chosen_rows_are_decided_and_no_others(ledger: Ledger, op: Browser) -> None:
    """By their check boxes."""
    for row_key in ("1", "2", "3"):
        add_row(ledger, row_key, LedgerStatus.FAILED)
    boxes = [html.unescape(value) for value in re.findall(r'name="row" value="([^"]*)"', op.get(rows_page()).text)]
    page = op.post(f"dags/{DAG}/selection?action=requeue", data={"row": boxes[:2]}, headers=FROM_OUR_PAGE)
    assert "Requeue 2 rows?" in page.text
    action, hidden = form_of(page)
    op.post(action, data={**hidden, "row": boxes[:2]}, headers=FROM_OUR_PAGE)
    assert [status_of(ledger, row_key) for row_key in ("1", "2", "3")] == ["pending", "pending", "failed"]


def test_readers_that_stall_stop_nobody(
    ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch, airflow_url: str, tokens: dict[str, str]
) -> None:
    """More downloads than there are seats, of which nobody reads on: the pages answer."""
    monkeypatch.setattr(rows, "CSV_PAGE", 10)
    add_large_rows(ledger)
    with ExitStack() as stack:
        for _ in range(MAX_LEDGER_REQUESTS + 1):
            browser = stack.enter_context(Browser(airflow_url, tokens["viewer"]))
            answer = stack.enter_context(browser.stream("GET", f"dags/{DAG}/rows.csv", headers=UNPACKED))
            next(answer.iter_raw(1))
        assert viewer.get("").status_code == httpx.codes.OK


def test_download_that_cannot_go_on_says_so(
    ledger: Ledger, no_ledger: Path, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line says that it is incomplete, and why."""
    monkeypatch.setattr(rows, "CSV_PAGE", 10)
    add_large_rows(ledger)
    received = bytearray()
    with viewer.stream("GET", f"dags/{DAG}/rows.csv", headers=UNPACKED) as answer:
        parts = answer.iter_raw(1000)
        received += next(parts)
        for file in no_ledger.parent.glob("halo_ledger.db*"):
            file.unlink()
        no_ledger.write_bytes(b"this is no database" * 100)
        for part in parts:
            received += part
    assert b"INCOMPLETE: only" in received.splitlines()[-1]


def test_pages_answer_while_a_writer_holds_the_ledger(ledger: Ledger, no_ledger: Path, viewer: Browser) -> None:
    """Looking takes no lock: also not for the record of a new boot of the host, which the next task writes."""
    add_row(ledger, "1", LedgerStatus.FAILED)
    ledger.transaction(lambda db: db.execute(boots.delete()))
    with closing(sqlite3.connect(no_ledger, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for route in ("", rows_page(), f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1", f"dags/{DAG}/rows.csv"):
            assert viewer.get(route).status_code == httpx.codes.OK
        writer.execute("ROLLBACK")


def test_ledger_is_opened_once(ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its schema is checked by the first page, and not again."""
    opened: list[Ledger] = []
    prepare = Ledger.prepare_to_read

    def counted(self: Ledger) -> bool:
        opened.append(self)
        return prepare(self)

    monkeypatch.setattr(Ledger, "prepare_to_read", counted)
    for _ in range(3):
        viewer.get("")
    assert len(opened) == 1


def test_row_that_moved_tells_nothing_of_a_dag_that_the_user_may_not_see(
    ledger: Ledger, op: Browser, only_orders: None
) -> None:
    """Its history has the run ids and the reasons of those DAGs only that the user may see."""
    add_row(ledger, "1", LedgerStatus.FAILED, dag_id="secret", run_id="secret run", owner="somebody")
    LedgerAdmin(ledger, actor="their admin").reject(RowFilter(), reason="their reason")
    now_ours = {"dag_id": DAG, "run_id": RUN}
    holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef(**now_ours, task_id="tickets", map_index=-1))
    holder.claim([Candidate(row_key="1", payload_hash="b" * 64)], on_in_doubt="resend")
    holder.release(["1"])
    text = op.get(f"dags/{DAG}/row?namespace={NAMESPACE}&row_key=1").text
    assert "1 entry belongs to a DAG that you may not see" in text
    for theirs in ("secret", "their admin", "their reason"):
        assert theirs not in text


def test_decision_is_in_airflows_audit_log(ledger: Ledger, op: Browser) -> None:
    """Who, which DAG and run, what, and how many; the undoing as well."""
    add_row(ledger, "1", LedgerStatus.FAILED)
    answer = confirm(op, op.get(decision("requeue", status="failed", run_id=RUN)), reason="Halo is back")
    made = re.findall(r"decision=([0-9a-f]{32})", answer.headers["Location"])[0]
    op.post(f"dags/{DAG}/undo?decision={made}", headers=FROM_OUR_PAGE)
    with create_session() as db:
        logged = db.scalars(select(AuditLog).where(AuditLog.extra.contains(made)).order_by(AuditLog.id)).all()
        facts = [(each.event, each.owner, each.dag_id, each.run_id) for each in logged]
        assert facts == [("halo_requeue", "op", DAG, RUN), ("halo_undo", "op", DAG, None)]
        assert json.loads(logged[0].extra)["reason"] == "Halo is back"


@pytest.mark.parametrize(
    "query",
    [
        {"map_index": "9" * 30},
        {"map_index": "one"},
        {"map_index": "1"},
        {"after_status": "failed"},
        {"after_status": "failed", "after_key": "1"},
        {"after_status": "nonsense"},
        {"after_status": "delivered", "after_namespace": "n", "after_key": "k", "status": "failed"},
        {"search": "x" * 50_000},
        {"run_id": "x" * 1_000},
        {"error": "x" * 1_000},
        {"status": "nonsense"},
        {"decision": "forged"},
    ],
    ids=",".join,
)
def test_query_beyond_its_limits_is_refused_with_a_page(ledger: Ledger, viewer: Browser, query: dict[str, str]) -> None:
    """It is neither an error of the server nor a ledger that is away; and the page is as safe as any other."""
    answer = viewer.get(rows_page(**query))
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<h1>" in answer.text


def test_reason_beyond_its_limit_is_refused(ledger: Ledger, op: Browser) -> None:
    """The ledger holds no novels."""
    add_row(ledger, "1", LedgerStatus.FAILED)
    answer = confirm(op, op.get(decision("reject", status="failed")), reason="x" * 200_000)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert status_of(ledger, "1") == LedgerStatus.FAILED


def test_address_cannot_forge_the_note_of_a_decision(ledger: Ledger, viewer: Browser) -> None:
    """The note comes from the ledger: who follows a made-up link sees none."""
    add_row(ledger, "1", LedgerStatus.FAILED)
    for query in ({"done": "requeue", "changed": "60"}, {"decision": "0" * 32}):
        assert 'class="note"' not in viewer.get(rows_page(**query)).text


def test_unexpected_error_has_the_security_headers(
    ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that no page made is as safe as the pages, and says nothing of the error."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a detail")

    monkeypatch.setattr(row_reader.RowReader, "counts", broken)
    answer = viewer.get(rows_page())
    assert answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "a detail" not in answer.text


def test_errors_are_grouped_by_cause_and_filter_the_rows(ledger: Ledger, op: Browser) -> None:
    """Each cause with its number of rows; behind it are these rows, and a decision about just them."""
    add_rows(ledger, ("1", "2", "3"), LedgerStatus.REJECTED, error="422 invalid e-mail")
    add_row(ledger, "4", LedgerStatus.REJECTED, error="400 no such agent")
    add_row(ledger, "5", LedgerStatus.DELIVERED)
    page = op.get(rows_page(run_id=RUN))
    causes = page.text.partition('<ul class="causes">')[2].partition("</ul>")[0]
    assert re.findall(r"<b>(\d+) [^<]*</b> <span class=\"error\">([^<]*)</span>", causes) == [
        ("3", "422 invalid e-mail"),
        ("1", "400 no such agent"),
    ]
    behind = html.unescape(re.findall(r'href="/halo/([^"]*)"', causes)[0])
    filtered = op.get(behind)
    assert row_keys(filtered) == ["1", "2", "3"]
    assert "Requeue all rejected with this error" in filtered.text
    assert filtered.text.count("422 invalid e-mail") < 5, "a repeated error stands once"
    confirm(op, op.get(decision("requeue", run_id=RUN, status="rejected", error="422 invalid e-mail")))
    assert [status_of(ledger, row_key) for row_key in "1234"] == ["pending"] * 3 + ["rejected"]


@pytest.mark.parametrize(
    ("sort", "expected"), [("attempts", ["2", "1", "3"]), ("-attempts", ["3", "1", "2"]), ("user_id", ["3", "2", "1"])]
)
def test_rows_are_sorted_by_a_column(ledger: Ledger, viewer: Browser, sort: str, expected: list[str]) -> None:
    """Whatever their status is."""
    add_row(ledger, "1", LedgerStatus.DELIVERED, attempts=2, user_id="c")
    add_row(ledger, "2", LedgerStatus.FAILED, attempts=1, user_id="b")
    add_row(ledger, "3", LedgerStatus.IN_DOUBT, attempts=3, user_id="a")
    page = viewer.get(rows_page(sort=sort))
    assert row_keys(page) == expected
    assert 'aria-sort="descending"' if sort.startswith("-") else 'aria-sort="ascending"' in page.text


def test_sorted_rows_are_shown_once_each(ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Page after page, also where many have the same value."""
    monkeypatch.setattr(rows, "PAGE", 4)
    keys = [f"{each:02}" for each in range(10)]
    add_rows(ledger, keys, LedgerStatus.FAILED)
    seen: list[str] = []
    address: str | None = rows_page(sort="-attempts")
    while address:
        page = viewer.get(address)
        seen += row_keys(page)
        following = re.findall(r'rel="next" href="/halo/([^"]*)"', page.text)
        address = html.unescape(following[0]) if following else None
    assert seen == keys


def test_too_many_rows_are_not_sorted(ledger: Ledger, viewer: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so, and shows them in its own order."""
    monkeypatch.setattr(rows, "MAX_SORTED", 1)
    add_rows(ledger, ("1", "2"), LedgerStatus.FAILED)
    page = viewer.get(rows_page(sort="-row_key"))
    assert row_keys(page) == ["1", "2"]
    assert "So many rows are not sorted" in page.text


@pytest.mark.parametrize(
    ("changed", "expected"), [("hour", ["now"]), ("week", ["now", "old"]), ("before_day", ["old"])]
)
def test_rows_are_filtered_by_time(ledger: Ledger, viewer: Browser, changed: str, expected: list[str]) -> None:
    """By when they changed last."""
    add_row(ledger, "now", LedgerStatus.FAILED)
    add_row(ledger, "old", LedgerStatus.FAILED, updated_at=ledger.now() - timedelta(days=2))
    assert row_keys(viewer.get(rows_page(changed=changed))) == expected


def test_rejected_rows_that_the_ledger_has_not_are_listed_too(ledger: Ledger, viewer: Browser) -> None:
    """Without a usable key there is no line in the ledger: the delivery's record tells of them."""
    task_instance = TaskInstanceRef(dag_id=DAG, run_id=RUN, task_id="tickets", map_index=-1, try_number=1)
    DeliveryRecords(ledger).begin("owner", namespace=NAMESPACE, task_instance=task_instance, total=2)
    counts = DeliveryCounts(rejected=2, total=2, unlisted=[("row 7", "order_id: the key is empty")])
    DeliveryRecords(ledger).update("owner", counts, ended=True)
    text = viewer.get(rows_page(run_id=RUN)).text
    assert "1 rejected row is not in the list below" in text
    assert 'row 7</b>: <span class="error">order_id: the key is empty' in text


def take(ledger: Ledger, row_keys: Iterable[str], *, dag_id: str, run_id: str) -> None:
    """Let another run have the rows."""
    task_instance = TaskInstanceRef(dag_id=dag_id, run_id=run_id, task_id="tickets", map_index=-1)
    holder = ledger.lease_holder(NAMESPACE, task_instance=task_instance)
    holder.claim([Candidate(row_key=each, payload_hash="b" * 64) for each in row_keys], on_in_doubt="resend")
    holder.release(list(row_keys))


def test_row_is_found_in_the_run_it_failed_in(ledger: Ledger, viewer: Browser) -> None:
    """After another run took it: counted with where it is, listed, and found by a search."""
    add_rows(ledger, ("1", "2", "3"), LedgerStatus.FAILED, owner="their run")
    LedgerAdmin(ledger, actor="somebody").requeue(RowFilter(row_keys=("1", "2", "3")))
    take(ledger, ["1", "2"], dag_id=DAG, run_id="later")
    page = viewer.get(rows_page(run_id=RUN))
    assert row_keys(page) == ["3"]
    assert "2 rows that had trouble in this run went on" in page.text
    assert re.search(r'run_id=later">later</a>: <a href="[^"]*status=pending">2 pending</a>', page.text)
    assert row_keys(viewer.get(rows_page(run_id=RUN, went_on="yes"))) == ["1", "2"]
    found = viewer.get(rows_page(run_id=RUN, search="2"))
    assert row_keys(found) == ["2"]
    assert "Found among the rows that went on to another run" in found.text


def test_row_that_went_on_to_a_hidden_dag_is_counted_only(ledger: Ledger, op: Browser, only_orders: None) -> None:
    """Its run and its keys are that DAG's."""
    add_row(ledger, "1", LedgerStatus.FAILED, owner="their run")
    LedgerAdmin(ledger, actor="somebody").requeue(RowFilter(row_keys=("1",)))
    take(ledger, ["1"], dag_id="secret", run_id="secret run")
    for page in (op.get(rows_page(run_id=RUN, went_on="yes")), op.get(rows_page(run_id=RUN, search="1"))):
        assert row_keys(page) == []
        assert "1 to a DAG that you may not see" in page.text
        assert "secret" not in page.text


def test_overview_tells_where_to_begin(ledger: Ledger, viewer: Browser) -> None:
    """One line for each DAG and submission: counts that are links, the oldest, what is new, and the last run."""
    day_before = ledger.now() - timedelta(days=2)
    add_rows(ledger, ("1", "2"), LedgerStatus.IN_DOUBT)
    add_row(ledger, "3", LedgerStatus.FAILED, updated_at=day_before)
    add_row(ledger, "4", LedgerStatus.DELIVERED, dag_id="fine")
    add_row(ledger, "5", LedgerStatus.DELIVERED)  # neither stuck nor new
    for dag_id in (DAG, "fine"):
        task_instance = TaskInstanceRef(dag_id=dag_id, run_id=RUN, task_id="tickets", map_index=-1, try_number=1)
        DeliveryRecords(ledger).begin(dag_id, namespace=NAMESPACE, task_instance=task_instance, total=1)
        DeliveryRecords(ledger).update(dag_id, DeliveryCounts(delivered=1), ended=True)
    page = viewer.get("")
    first, second = re.findall(r'<tr data-key="\w+ halo.*?</tr>', page.text, re.DOTALL)
    numbers = re.findall(r'<a class="bad" href="/halo/([^"]*)">(\d+)</a>', first)
    assert [count for _, count in numbers] == ["2", "1"]
    assert row_keys(viewer.get(html.unescape(numbers[0][0]))) == ["1", "2"]
    assert f"{day_before:%Y-%m-%d %H:%M}" in first
    new = re.search(r'<a href="/halo/([^"]*changed=day)">2</a>', first)
    assert new, "two are new"
    assert row_keys(viewer.get(html.unescape(new[1]))) == ["1", "2"]
    oldest = re.search(r'<a href="/halo/([^"]*sort=updated_at)">', first)
    assert oldest
    assert row_keys(viewer.get(html.unescape(oldest[1])))[0] == "3"
    assert "complete" in second
    assert f"run_id={RUN.replace(':', '%3A').replace('+', '%2B')}" in second


def test_overview_has_a_dag_without_a_record_of_a_delivery(ledger: Ledger, op: Browser, only_orders: None) -> None:
    """Rows that HaloHook delivered, or a task whose record is gone, are found from the overview."""
    add_row(ledger, "1", LedgerStatus.DELIVERED)
    add_row(ledger, "2", LedgerStatus.DELIVERED, dag_id="secret")
    overview = op.get("")
    (line,) = re.findall(r'<th scope="row">.*?</tr>', overview.text, re.DOTALL)
    assert "none recorded" in line
    assert "secret" not in overview.text
    place = re.search(r'href="/halo/([^"]*)"', line)
    assert place
    assert row_keys(op.get(html.unescape(place[1]))) == ["1"]


def test_page_says_which_other_ledger_has_the_rows(
    ledger: Ledger, op: Browser, only_orders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an operator names one of its own, instead of showing that there is nothing; for DAGs that may be seen."""
    monkeypatch.setattr(
        rows, "other_ledgers", lambda _dag_ids, **_: [(DAG, "emea_ledger"), ("secret", "secret_ledger")]
    )
    overview = op.get("").text
    assert "halo-ledger --ledger-conn-id emea_ledger list" in overview
    assert "secret" not in overview
    monkeypatch.setattr(
        rows, "other_ledgers", lambda dag_ids, run_id=None: [(dag_ids[0], "emea_ledger")] if run_id == RUN else []
    )
    assert "emea_ledger" in op.get(rows_page(run_id=RUN)).text
    assert "emea_ledger" not in op.get(rows_page(run_id="another run")).text


def test_run_shows_its_progress(ledger: Ledger, viewer: Browser) -> None:
    """Counts, pace, time left and the last error of a running delivery are on its tab, which keeps itself current."""
    task_instance = TaskInstanceRef(dag_id=DAG, run_id=RUN, task_id="tickets", map_index=-1, try_number=2)
    DeliveryRecords(ledger).begin("owner", namespace=NAMESPACE, task_instance=task_instance, total=1000)
    counts = DeliveryCounts(
        delivered=240, in_doubt=10, seconds=50.0, total=1000, requests=250, error="Halo answered 500"
    )
    DeliveryRecords(ledger).update("owner", counts)
    text = viewer.get(rows_page(run_id=RUN)).text
    assert "data-running" in text
    assert '<rect class="left"' in text, "the bar has the rows that are left"
    assert "250 of 1,000 rows; 240 delivered, 10 in doubt; 5 rows/s, about 2 min left" in text
    assert "Last error: Halo answered 500" in text


def test_delivery_without_an_end_is_shown_as_cut_off(ledger: Ledger, viewer: Browser) -> None:
    """A process that was killed leaves a line without an end."""
    task_instance = TaskInstanceRef(dag_id=DAG, run_id=RUN, task_id="tickets", map_index=-1, try_number=1)
    DeliveryRecords(ledger).begin("owner", namespace=NAMESPACE, task_instance=task_instance, total=None)
    long_ago = ledger.now() - timedelta(hours=1)
    ledger.transaction(lambda db: db.execute(update(deliveries).values(updated_at=long_ago)))
    text = viewer.get(rows_page(run_id=RUN)).text
    assert "cut off" in text
    assert "data-running" not in text


def test_delivery_that_failed_before_its_first_row_is_not_complete(ledger: Ledger, viewer: Browser) -> None:
    """A source that cannot be read leaves an ended record without rows, and an error."""
    task_instance = TaskInstanceRef(dag_id=DAG, run_id=RUN, task_id="tickets", map_index=-1, try_number=1)
    DeliveryRecords(ledger).begin("owner", namespace=NAMESPACE, task_instance=task_instance, total=None)
    DeliveryRecords(ledger).update("owner", DeliveryCounts(error="the file cannot be read"), ended=True)
    text = viewer.get(rows_page(run_id=RUN)).text
    assert "incomplete" in text
    assert ">complete<" not in text


def test_plugin_registers_its_navigation_and_tabs(airflow_url: str, tokens: dict[str, str]) -> None:
    """The navigation and both tabs are there, and the plugin brought no error."""
    with httpx.Client(base_url=f"{airflow_url}/api/v2", headers={"Authorization": f"Bearer {tokens['admin']}"}) as api:
        (plugin,) = [each for each in api.get("/plugins").json()["plugins"] if each["name"] == "halo"]
        assert api.get("/plugins/importErrors").json()["total_entries"] == 0
    assert {view["destination"] for view in plugin["external_views"]} == {"nav", "dag_run", "task_instance"}


def test_plugin_import_loads_neither_pages_nor_ledger() -> None:
    """Every Airflow process imports the plugin; the pages and the ledger come with the first request."""
    check = "import sys, halo_provider.plugin; print(*[name for name in sys.modules if 'halo_provider' in name])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.splitlines()[-1].split())
    assert loaded <= {
        "halo_provider",
        "halo_provider.plugin",
        "halo_provider.compat",
        "halo_provider.get_provider_info",
    }
