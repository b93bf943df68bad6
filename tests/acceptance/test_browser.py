"""A person at the browser: watches a run, finds the row that got stuck, requeues it, and sees it delivered."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from halo_provider.demo.airflow import AirflowApi
from halo_provider.demo.processes import Home, Processes
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from halo_provider.simulator.faults import Fault
from tests.acceptance.airflows import running_airflow
from tests.acceptance.browsers import CHROMIUM_FLAGS, chromium

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.acceptance

DAG = "orders"
AGAIN = "orders_again"
ROWS = 40
STUCK = "order-7"
PASSWORD = "password of admin"
PATIENCE = 180.0  # seconds for whatever Airflow has to do
PAGE_TIMEOUT = 60_000  # milliseconds for whatever a page has to show
DAG_FILE = f"""
from datetime import datetime
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User

with DAG("{DAG}", schedule=None, start_date=datetime(2026, 1, 1)):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="order", key="id", user=User(id="user"), message="Order {{id}}"),
        rows=[{{"id": f"order-{{each}}", "user": f"user_{{each}}"}} for each in range({ROWS})],
        requests_per_second=2,
        on_in_doubt="hold",
        retries=0,
    )

with DAG("{AGAIN}", schedule=None, start_date=datetime(2026, 1, 1)):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="again", key="id", user=User(id="user"), message="Order {{id}}"),
        rows=[{{"id": f"order-{{each}}", "user": f"again_{{each}}"}} for each in range({ROWS})],
        on_in_doubt="hold",
        retries=0,
    )
"""


class PasswordApi(AirflowApi):
    """The REST API of an Airflow whose administrator has a password."""

    def token(self) -> str:
        """A new token for the password."""
        answer = self.request("POST", "/auth/token", json={"username": "admin", "password": PASSWORD})
        token: str = answer.json()["access_token"]
        return token


@dataclass(frozen=True, kw_only=True)
class Airflow:
    """A real Airflow with one DAG, and the REST API as its administrator."""

    api: AirflowApi
    processes: Processes
    simulator: Simulator

    @property
    def url(self) -> str:
        """Where its pages are."""
        return self.api.url

    def trigger(self, dag_id: str = DAG) -> str:
        """Start a run, and return its id."""
        return self.api.trigger(dag_id).run_id

    def task(self, run_id: str, *, dag_id: str = DAG) -> Any:
        """The one task instance of a run."""
        return self.get(f"/dagRuns/{run_id}/taskInstances/tickets", dag_id=dag_id)

    def reaches(self, run_id: str, state: str, *, dag_id: str = DAG) -> None:
        """Wait for the task's state."""
        self.processes.wait(
            lambda: self.task(run_id, dag_id=dag_id)["state"] == state or None,
            stage=f"the task of {run_id} is to be {state}",
            timeout=PATIENCE,
        )

    def get(self, path: str, *, dag_id: str = DAG) -> Any:
        """What the API answers."""
        return self.api.request("GET", f"/api/v2/dags/{dag_id}{path}").json()


@contextmanager
def serving_orders(home: Home, *, metadata_url: str | None) -> Iterator[Airflow]:
    """Airflow with scheduler, DAG processor and API server, and a local Halo, all with their files in `home`."""
    dags = home.path / "dags"
    dags.mkdir()
    (dags / "orders.py").write_text(DAG_FILE)
    passwords = home.path / "passwords.json"
    passwords.write_text(json.dumps({"admin": PASSWORD}))
    simulator = Simulator()
    with serving(simulator) as halo_url:
        connection = {
            "conn_type": "halo",
            "host": halo_url,
            "password": EXAMPLE_WIDGET_KEY,
            "extra": {"dashboard_url": "https://dashboard.example.com"},
        }
        settings = {
            "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        }
        with running_airflow(
            home, dag_ids=[DAG, AGAIN], settings=settings, metadata_url=metadata_url, api=PasswordApi
        ) as running:
            api, processes = running
            yield Airflow(api=api, processes=processes, simulator=simulator)


@pytest.fixture(scope="module")
def airflow(browser: Any, tmp_path_factory: pytest.TempPathFactory, metadata_url: str | None) -> Iterator[Airflow]:
    """A real Airflow, where there is a browser to look at it with."""
    with serving_orders(Home(tmp_path_factory.mktemp("browser")), metadata_url=metadata_url) as airflow:
        yield airflow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a screen."""
    playwright.expect.set_options(timeout=PAGE_TIMEOUT)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(airflow: Airflow, browser: Any) -> Iterator[Any]:
    """A page in which the administrator has logged in at Airflow's own form."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PAGE_TIMEOUT)
    page = context.new_page()
    page.goto(airflow.url)
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{airflow.url}/")
    yield page
    context.close()


def test_stuck_row_is_found_requeued_and_delivered(airflow: Airflow, page: Any) -> None:
    """Progress moves while the run goes on; the one row in doubt is filtered, opened, requeued, and delivered next."""
    expect = playwright.expect
    airflow.simulator.script_for(user_id="user_7", faults=[Fault.status(500)])
    first_run = airflow.trigger()
    airflow.reaches(first_run, "running")
    tab = open_tab(page, airflow, first_run)
    sentence = tab.locator("p.sentence").first
    seen = {sentence.inner_text()}
    while airflow.task(first_run)["state"] == "running":
        seen.add(sentence.inner_text())
    assert len(seen) >= 3, seen
    expect(sentence).to_contain_text(f"{ROWS} rows; {ROWS - 1} delivered, 1 in doubt")
    assert airflow.task(first_run)["state"] == "failed"

    tab.get_by_role("link", name="in doubt 1", exact=True).click()
    expect(tab.locator("table.rows tbody tr")).to_have_count(1)
    tab.get_by_role("link", name=STUCK, exact=True).click()
    expect(tab.get_by_text("It was sent, and no trustworthy answer came")).to_be_visible()
    tab.get_by_role("link", name="Requeue…").click()
    tab.get_by_label("Reason (optional)").fill("not in Halo")
    tab.get_by_role("button", name="Requeue only").click()
    expect(tab.get_by_role("status").filter(has_text="1 row requeued")).to_be_visible()
    expect(tab.locator(".history")).to_contain_text("not in Halo by admin")

    second_run = airflow.trigger()
    airflow.reaches(second_run, "success")
    tab = open_tab(page, airflow, second_run)
    expect(tab.locator("p.sentence").first).to_contain_text(f"{ROWS} rows; 1 delivered, {ROWS - 1} already delivered")
    tab.get_by_role("link", name=STUCK, exact=True).click()
    expect(tab.get_by_role("heading", name=f"{STUCK} delivered")).to_be_visible()


def test_stuck_rows_are_requeued_and_run_in_one_go(airflow: Airflow, page: Any) -> None:
    """By keyboard: the rows in doubt, the decision, and the same run again, on a page that shows them delivered."""
    expect = playwright.expect
    for number in (3, 4, 5):
        airflow.simulator.script_for(user_id=f"again_{number}", faults=[Fault.status(500)])
    run_id = airflow.trigger(AGAIN)
    airflow.reaches(run_id, "failed", dag_id=AGAIN)
    tab = open_tab(page, airflow, run_id, dag_id=AGAIN)
    actions = (
        tab.get_by_role("link", name="in doubt 3", exact=True),
        tab.get_by_role("link", name="Requeue all in doubt…"),
        tab.get_by_role("button", name="Requeue and run again in this run"),
    )
    for each in actions:
        each.focus()
        page.keyboard.press("Enter")
    expect(tab.get_by_role("status").filter(has_text="3 rows requeued")).to_be_visible()
    expect(tab.locator("p.sentence").first).to_contain_text(f"{ROWS} rows; 3 delivered, {ROWS - 3} already delivered")
    expect(tab.get_by_role("link", name=f"delivered {ROWS}", exact=True)).to_be_visible()
    airflow.reaches(run_id, "success", dag_id=AGAIN)


def test_refresh_keeps_focus_boxes_and_what_is_typed(airflow: Airflow, page: Any) -> None:
    """A page that keeps itself current takes nothing out of a person's hands, and says when it cannot."""
    expect = playwright.expect
    airflow.reaches(airflow.trigger(), "success")
    page.goto(f"{airflow.url}/halo/dags/{DAG}/rows")
    box = page.locator("input[name=row]").nth(2)
    box.check()
    page.get_by_role("searchbox").fill("order-3")
    page.evaluate("update()")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.get_by_role("searchbox")).to_have_value("order-3")
    expect(box).to_be_checked()
    expect(page.locator("#age")).to_contain_text("updated")
    page.context.set_offline(True)
    page.evaluate("update()")
    expect(page.locator("#age")).to_contain_text("connection lost")
    page.context.set_offline(False)
    page.evaluate("update()")
    expect(page.locator("#age")).to_contain_text("updated")


def test_links_leave_airflows_frame(airflow: Airflow, page: Any) -> None:
    """To the task's log in Airflow, in place of the page that frames the rows; Halo's dashboard is linked."""
    run_id = airflow.trigger()
    airflow.reaches(run_id, "success")
    tab = open_tab(page, airflow, run_id)
    tab.locator(".out").get_by_role("link", name="task log").first.click()
    page.wait_for_url(lambda url: "/tasks/tickets" in url and "/plugin/" not in url)
    row = page.goto(f"{airflow.url}/halo/dags/{DAG}/row?namespace=halo_default/order&row_key={STUCK}")
    assert row.ok
    playwright.expect(page.get_by_role("link", name="https://dashboard.example.com")).to_be_visible()


def test_task_shows_progress_and_link_in_airflows_own_pages(airflow: Airflow, page: Any) -> None:
    """The task state store has the counts, and the button leads to the task's tab, whose rows are those of the run."""
    run_id = airflow.trigger()
    airflow.reaches(run_id, "success")
    page.goto(f"{airflow.url}/dags/{DAG}/runs/{run_id}/tasks/tickets")
    page.get_by_text("Storage").click()
    playwright.expect(page.get_by_text("halo_progress")).to_be_visible()
    link = airflow.get(f"/dagRuns/{run_id}/taskInstances/tickets/links")["extra_links"]["Halo deliveries"]
    page.goto(link)
    playwright.expect(page.frame_locator("iframe[title=Halo]").locator("p.sentence")).to_contain_text(
        "already delivered"
    )


def test_overview_is_in_the_navigation_and_follows_airflows_look(airflow: Airflow, page: Any) -> None:
    """One click from anywhere; dark where Airflow is dark, whatever the system prefers."""
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.goto(airflow.url)
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Halo").click()
    overview = page.frame_locator("iframe[title=Halo]")
    playwright.expect(overview.get_by_role("heading", name="Halo deliveries")).to_be_visible()
    assert overview.locator("html").get_attribute("data-look") == "dark"


def test_connection_form_explains_every_field(airflow: Airflow, page: Any) -> None:
    """The form comes from the provider's metadata: named fields, help texts, and a secret that is not shown."""
    page.goto(f"{airflow.url}/connections")
    page.get_by_role("button", name="Add Connection").click()
    page.get_by_role("combobox").last.fill("halo")
    page.keyboard.press("Enter")
    expect = playwright.expect
    for label in ("Base URL", "Widget key"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    page.get_by_text("Extra Fields", exact=True).click()
    expect(page.get_by_text("it is never sent to Halo")).to_be_visible()
    expect(page.locator("input[type=password]")).to_have_count(len(("widget key", "identity secret")))


def open_tab(page: Any, airflow: Airflow, run_id: str, *, dag_id: str = DAG) -> Any:
    """The plugin's tab on the run's page."""
    page.goto(f"{airflow.url}/dags/{dag_id}/runs/{run_id}/plugin/halo-run")
    return page.frame_locator("iframe[title=Halo]")
