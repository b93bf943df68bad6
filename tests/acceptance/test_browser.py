"""A person at the browser: watches a run, finds the rows that got stuck, requeues them, and sees them delivered."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest

from halo_provider.demo.airflow import AirflowApi
from halo_provider.demo.processes import CHECKOUT, Home, Processes
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from halo_provider.simulator.faults import Fault
from tests.acceptance.airflows import running_airflow
from tests.acceptance.browsers import CHROMIUM_FLAGS, chromium
from tests.acceptance.sample_pages import AUTH_MANAGER

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.acceptance

DAG = "orders"
NIGHT = "night"  # a DAG whose rows get stuck in each way
BROKEN = "broken"  # one whose task fails before its first row
WELL, INVALID, DOUBTFUL, TWICE, KEYLESS = 10, 30, 60, 10, 2  # rows of NIGHT; TWICE are in doubt in two runs
ROWS = 40
STUCK = "order-7"
ONE_DAG_USER = f"only_{DAG}"
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

with DAG("{NIGHT}", schedule=None, start_date=datetime(2026, 1, 1)):
    kinds = {{"well": {WELL}, "invalid": {INVALID}, "doubt": {DOUBTFUL}}}
    keys = [f"{{kind}}-{{each}}" for each in range({DOUBTFUL}) for kind, number in kinds.items() if each < number]
    keys += [""] * {KEYLESS}
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="night", key="id", user=User(id="user"), message="Order {{id}}"),
        rows=[{{"id": key, "user": key or "nobody"}} for key in keys],
        concurrency=1,  # the kinds take turns: 50 rows in doubt one after the other would end the run
        on_in_doubt="hold",
        max_rejected=1.0,
        retries=0,
    )

with DAG("{BROKEN}", schedule=None, start_date=datetime(2026, 1, 1)):
    HaloTicketOperator(
        task_id="tickets",
        submission=Submission(name="broken", key="id", user=User(id="user"), message="Order {{id}}"),
        csv_path="no_such_file.csv",
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

    def pause(self, dag_id: str, *, is_paused: bool) -> None:
        """Let the DAG's runs wait, or go on."""
        self.api.request("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": is_paused})

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


@dataclass(kw_only=True)
class Hands:
    """A person's hands: what they click, and how long it takes until something is seen."""

    clicks: int = 0
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def click(self, place: Any) -> None:
        """Click with the mouse."""
        self.clicks += 1
        place.click()

    def press(self, place: Any) -> None:
        """The same by keyboard."""
        self.clicks += 1
        place.press("Enter")

    def stop(self) -> None:
        """It is seen."""
        self.seconds = time.monotonic() - self.began

    def __str__(self) -> str:
        return f"{self.clicks} clicks, {self.seconds:.1f} s"


@contextmanager
def serving_orders(home: Home, *, metadata_url: str | None) -> Iterator[Airflow]:
    """Airflow with scheduler, DAG processor and API server, and a local Halo, all with their files in `home`."""
    dags = home.path / "dags"
    dags.mkdir()
    (dags / "orders.py").write_text(DAG_FILE)
    passwords = home.path / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(("admin", ONE_DAG_USER), PASSWORD)))
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
            "AIRFLOW__CORE__AUTH_MANAGER": AUTH_MANAGER,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"admin:admin,{ONE_DAG_USER}:op",
            "PYTHONPATH": str(CHECKOUT),  # where the auth manager is
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        }
        with running_airflow(
            home, dag_ids=[DAG, NIGHT, BROKEN], settings=settings, metadata_url=metadata_url, api=PasswordApi
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


@contextmanager
def logged_in(browser: Any, airflow: Airflow, user: str) -> Iterator[Any]:
    """A page in which somebody has logged in at Airflow's own form."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PAGE_TIMEOUT)
    page = context.new_page()
    page.goto(airflow.url)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{airflow.url}/")
    yield page
    context.close()


@pytest.fixture
def page(airflow: Airflow, browser: Any) -> Iterator[Any]:
    """A page in which the administrator has logged in."""
    with logged_in(browser, airflow, "admin") as page:
        yield page


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


def test_operator_walks_from_a_bad_night_to_delivered_rows(
    airflow: Airflow, page: Any, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way at three in the morning, by mouse and keyboard, and what it costs in clicks and seconds."""
    halo = airflow.simulator
    for number in range(DOUBTFUL):
        halo.script_for(user_id=f"doubt-{number}", faults=[Fault.status(500)] * (2 if number < TWICE else 1))
    for number in range(INVALID):
        halo.script_for(user_id=f"invalid-{number}", faults=[Fault.status(422, body={"error": "invalid e-mail"})])
    first = opens_the_tab_before_the_run_starts(airflow, page)
    follows_every_number_of_the_overview(airflow, page)
    second, mouse = requeues_into_a_new_run(airflow, page)
    finds_the_rows_that_went_on(airflow, page, first, second)
    keyboard = requeues_by_keyboard_in_the_same_run(airflow, page, second)
    acts_on_one_cause(airflow, page, first)
    looks_while_the_page_refreshes(airflow, page, first)
    leaves_for_airflow_and_halo(airflow, page, first)
    costs = (
        f"{DOUBTFUL} rows in doubt, {DOUBTFUL - TWICE} of them delivered by mouse: {mouse}",
        f"the other {TWICE} delivered by keyboard: {keyboard}",
    )
    for cost in costs:
        record_property("cost", cost)
    with capsys.disabled():
        sys.stdout.write("".join(f"\n{cost}" for cost in costs))


def opens_the_tab_before_the_run_starts(airflow: Airflow, page: Any) -> str:
    """It notices the run, and lists the rows without a usable key too; returns the run's id."""
    expect = playwright.expect
    airflow.pause(NIGHT, is_paused=True)
    first = airflow.trigger(NIGHT)
    tab = open_tab(page, airflow, first, dag_id=NIGHT)
    expect(tab.get_by_text("No HaloTicketOperator has delivered here (yet).")).to_be_visible()
    airflow.pause(NIGHT, is_paused=False)
    airflow.reaches(first, "failed", dag_id=NIGHT)
    rejected = INVALID + KEYLESS
    sentence = tab.locator("p.sentence").first
    expect(sentence).to_contain_text(f"{WELL} delivered, {rejected} rejected, {DOUBTFUL} in doubt")
    tab.get_by_text(f"{KEYLESS} rejected rows are not in the list below").click()
    expect(tab.locator("details li").first).to_contain_text("the row's key is empty")
    return first


def follows_every_number_of_the_overview(airflow: Airflow, page: Any) -> None:
    """It leads to what it counts; a task that failed before its first row is not complete."""
    expect = playwright.expect
    broken = airflow.trigger(BROKEN)
    airflow.reaches(broken, "failed", dag_id=BROKEN)
    tab = open_overview(page)
    line = line_of(tab, NIGHT)
    expect(line).to_contain_text("incomplete")
    expect(line_of(tab, BROKEN)).to_contain_text("incomplete")
    rows = tab.locator("table.rows tbody tr")
    stuck = INVALID + DOUBTFUL
    for place, count in (
        (line.get_by_role("link", name=str(DOUBTFUL), exact=True), DOUBTFUL),
        (line.get_by_role("link", name=str(INVALID), exact=True), INVALID),
        (line.get_by_role("link", name=str(stuck), exact=True), stuck),  # new in 24 h
        (line.locator("td.timestamp a"), stuck),  # the oldest first
        (line.locator("td:last-child a"), WELL + stuck),  # the last run
    ):
        place.click()
        expect(rows).to_have_count(count)
        tab.get_by_role("link", name="Halo deliveries").click()


def requeues_into_a_new_run(airflow: Airflow, page: Any) -> tuple[str, Hands]:
    """From the overview in one go onto the live page; returns the new run's id, and what it took."""
    expect = playwright.expect
    tab = frame(page)
    sentence = tab.locator("p.sentence").first
    line = line_of(tab, NIGHT)
    hands = Hands()
    hands.click(line.get_by_role("link", name=str(DOUBTFUL), exact=True))
    hands.click(tab.get_by_role("link", name="Requeue all in doubt…"))
    hands.click(tab.get_by_role("button", name="Requeue and trigger a new run"))
    expect(tab.get_by_role("status").filter(has_text=f"{DOUBTFUL} rows requeued")).to_be_visible()
    expect(sentence).to_contain_text(f"{DOUBTFUL - TWICE} delivered, {WELL} already delivered", timeout=PATIENCE * 1000)
    expect(sentence).to_contain_text(f"{TWICE} in doubt")
    hands.stop()
    second = tab.get_by_role("heading", level=1).inner_text().removeprefix("Run ")
    airflow.reaches(second, "failed", dag_id=NIGHT)
    return second, hands


def finds_the_rows_that_went_on(airflow: Airflow, page: Any, first: str, second: str) -> None:
    """In the run they failed in: where they are now, and by search."""
    expect = playwright.expect
    tab = open_tab(page, airflow, first, dag_id=NIGHT)
    went_on = tab.locator(".went-on")
    expect(went_on).to_contain_text(f"{DOUBTFUL} rows that had trouble in this run went on")
    expect(went_on).to_contain_text(f"{DOUBTFUL} to run {second}")
    expect(went_on.get_by_role("link", name=f"{DOUBTFUL - TWICE} delivered")).to_be_visible()
    tab.get_by_role("searchbox").fill("doubt-7")
    tab.get_by_role("searchbox").press("Enter")
    expect(tab.get_by_role("heading", name="Found among the rows that went on to another run")).to_be_visible()
    expect(tab.get_by_role("link", name="doubt-7", exact=True)).to_be_visible()


def requeues_by_keyboard_in_the_same_run(airflow: Airflow, page: Any, run_id: str) -> Hands:
    """From the run that the rows came from; returns what it took."""
    expect = playwright.expect
    tab = frame(page)
    went_on = tab.locator(".went-on")
    hands = Hands()
    hands.press(went_on.get_by_role("link", name=f"{TWICE} in doubt"))
    hands.press(tab.get_by_role("link", name="Requeue all in doubt…"))
    hands.press(tab.get_by_role("button", name="Requeue and run again in this run"))
    expect(tab.get_by_role("link", name=f"delivered {DOUBTFUL}", exact=True)).to_be_visible(timeout=PATIENCE * 1000)
    hands.stop()
    airflow.reaches(run_id, "success", dag_id=NIGHT)
    return hands


def acts_on_one_cause(airflow: Airflow, page: Any, run_id: str) -> None:
    """Filters by it, sorts, chooses rows, filters by time, and requeues the whole group."""
    expect = playwright.expect
    tab = open_tab(page, airflow, run_id, dag_id=NIGHT)
    rows = tab.locator("table.rows tbody tr")
    tab.get_by_role("link", name="POST /chat: Halo answered 422").filter(has_text=str(INVALID)).click()
    expect(rows).to_have_count(INVALID)
    keys = rows.locator("td.key a")
    heading = tab.get_by_role("columnheader", name="Row key")
    for direction, first_key in (("ascending", "invalid-0"), ("descending", "invalid-9")):
        heading.get_by_role("link").click()
        expect(heading).to_have_attribute("aria-sort", direction)
        expect(keys.first).to_have_text(first_key)
    for number in (0, 1):
        tab.locator("input[name=row]").nth(number).check()
    tab.get_by_role("button", name="Requeue…").click()
    expect(tab.get_by_role("heading", name="Requeue 2 rows?")).to_be_visible()
    tab.get_by_role("link", name="Cancel").click()
    for changed, count in (("more than 24 hours ago", 0), ("in the last hour", INVALID)):
        tab.get_by_label("Changed").select_option(changed)
        tab.get_by_role("button", name="Search").click()
        expect(rows).to_have_count(count)
    tab.get_by_role("link", name="Requeue all rejected with this error…").click()
    tab.get_by_role("button", name="Requeue and run again in this run").click()
    delivered = tab.get_by_role("link", name=f"delivered {WELL + INVALID}", exact=True)
    expect(delivered).to_be_visible(timeout=PATIENCE * 1000)
    airflow.reaches(run_id, "success", dag_id=NIGHT)


def looks_while_the_page_refreshes(airflow: Airflow, page: Any, run_id: str) -> None:
    """A refresh takes nothing out of a person's hands, and a page says when it cannot refresh."""
    expect = playwright.expect
    page.goto(f"{airflow.url}/halo/dags/{NIGHT}/rows?run_id={quote(run_id)}")
    page.locator("summary").first.click()
    box = page.locator("input[name=row]").nth(2)
    box.check()
    search = page.get_by_role("searchbox")
    search.fill("invalid-3")
    search.select_text()
    scrolled = page.evaluate("scrollY") + 200
    page.mouse.wheel(0, 200)
    page.wait_for_function("place => scrollY === place", arg=scrolled)
    page.evaluate("update()")
    expect(page.locator("details li").first).to_be_visible()
    expect(search).to_be_focused()
    expect(search).to_have_value("invalid-3")
    expect(box).to_be_checked()
    assert page.evaluate("String(getSelection())") == "invalid-3"
    assert page.evaluate("scrollY") == scrolled
    age = page.locator("#age")
    expect(age).to_contain_text(re.compile(r"updated \d+ s ago"))
    page.context.set_offline(True)
    page.evaluate("update()")
    expect(age).to_contain_text("connection lost")
    page.context.set_offline(False)
    page.evaluate("update()")
    expect(age).not_to_contain_text("connection lost")


def leaves_for_airflow_and_halo(airflow: Airflow, page: Any, run_id: str) -> None:
    """Out of Airflow's frame to its own pages, into the clipboard, and to Halo's dashboard."""
    expect = playwright.expect
    tab = open_tab(page, airflow, run_id, dag_id=NIGHT)
    for name, address in (
        ("task log", re.compile(r"/runs/[^/]+/tasks/tickets\?try_number")),
        ("run", re.compile(r"/runs/[^/]+$")),
        ("DAG", re.compile(rf"/dags/{NIGHT}$")),
    ):
        tab.locator(".out").first.get_by_role("link", name=name, exact=True).click()
        page.wait_for_url(address)
        page.go_back()
    tab.get_by_role("link", name="invalid-7", exact=True).click()
    expect(tab.get_by_role("link", name="https://dashboard.example.com")).to_be_visible()
    tab.get_by_role("button", name="Copy the session").click()
    expect(tab.get_by_role("button", name="Copy the session")).to_have_text("Copied")


def test_person_who_may_see_one_dag_meets_no_other(airflow: Airflow, browser: Any) -> None:
    """Not in a list, not by an address: with Airflow's own login, and the auth manager of its configuration."""
    expect = playwright.expect
    for dag_id, state in ((DAG, "success"), (BROKEN, "failed")):
        airflow.reaches(airflow.trigger(dag_id), state, dag_id=dag_id)
    with logged_in(browser, airflow, ONE_DAG_USER) as page:
        overview = open_overview(page)
        expect(overview.locator("table.board tbody tr")).to_have_count(1)
        expect(overview.locator("table.board tbody tr")).to_contain_text(f"halo_default/{DAG[:-1]}")
        expect(overview.get_by_text(BROKEN)).to_have_count(0)
        refused = page.goto(f"{airflow.url}/halo/dags/{BROKEN}/rows")
        assert refused.status == 403
        expect(page.get_by_text("your role in Airflow does not allow it")).to_be_visible()


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
    overview = open_overview(page)
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
    return frame(page)


def line_of(overview: Any, dag_id: str) -> Any:
    """A DAG's line on the overview."""
    return overview.locator("table.board tbody tr").filter(has_text=f"halo_default/{dag_id}")


def frame(page: Any) -> Any:
    """The pages within Airflow's own."""
    return page.frame_locator("iframe[title=Halo]")


def open_overview(page: Any) -> Any:
    """The overview, by way of Airflow's navigation."""
    page.get_by_role("button", name="Browse").click()
    page.get_by_role("menuitem", name="Halo").click()
    overview = frame(page)
    playwright.expect(overview.get_by_role("heading", name="Halo deliveries")).to_be_visible()
    return overview
