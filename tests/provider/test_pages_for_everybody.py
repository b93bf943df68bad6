"""The pages in a real browser, for people with little space, little light, or a screen reader: axe-core judges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import sample_pages
from tests.acceptance.browsers import CHROMIUM_FLAGS, chromium

playwright = pytest.importorskip("playwright.sync_api")
axe_core = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.acceptance

GRAVE = {"serious", "critical"}
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest.fixture(scope="module")
def served(airflow_home: Path) -> Iterator[str]:
    """The examples' address."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in sample_pages.settings(airflow_home).items():
            patched.setenv(name, value)
        for file in airflow_home.glob("halo_ledger.db*"):
            file.unlink()
        with sample_pages.served(airflow_home) as served:
            yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a screen."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", sample_pages.WIDTHS)
@pytest.mark.parametrize("look", sample_pages.LOOKS)
def test_page_is_for_everybody(served: str, browser: Any, look: str, width: int) -> None:
    """WCAG AA, in light and dark; and nothing is cut off, not even in a narrow window."""
    with sample_pages.opened(browser, served, look=look, width=width) as page:
        for name, path in sample_pages.PAGES.items():
            page.goto(f"{served}/halo/{path}")
            found = axe_core.Axe().run(page, options={"runOnly": {"type": "tag", "values": STANDARDS}}).response
            assert found["passes"], "axe-core has judged nothing"
            grave = {
                violation["id"]: [node["html"][:200] for node in violation["nodes"][:3]]
                for violation in found["violations"]
                if violation["impact"] in GRAVE
            }
            assert not grave, (name, grave)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            for table in page.locator(".wide").all():
                assert table.evaluate("each => each.scrollWidth <= each.clientWidth"), name


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "UTC"])
def test_times_are_in_the_zone_that_is_chosen_in_airflow(served: str, browser: Any, zone: str) -> None:
    """With how long ago it was, and the exact time on hover."""
    with sample_pages.opened(browser, served, look="light", width=1400) as page:
        page.goto(f"{served}/halo/")
        page.evaluate("zone => localStorage.setItem('timezone', JSON.stringify(zone))", zone)
        page.reload()
        time = page.locator("table.board time").first
        exact = time.get_attribute("title")
        expected = page.evaluate("([at, timeZone]) => new Date(at).toLocaleString('sv', { timeZone })", [exact, zone])
        assert time.inner_text().startswith(expected)
        assert "ago" in time.inner_text()
        playwright.expect(page.locator("#age")).to_contain_text(f"times in {zone}")


def test_person_who_may_see_one_dag_meets_no_other(served: str, browser: Any) -> None:
    """Not on the overview, not in a chart, not by an address: and the own DAG's rows can be decided about."""
    expect = playwright.expect
    user = sample_pages.ONE_DAG_USER
    with sample_pages.opened(browser, served, look="light", width=1400, user=user) as page:
        page.goto(f"{served}/halo/")
        expect(page.locator("table.board tbody tr")).to_have_count(1)
        assert sample_pages.DAG in page.content()
        for hidden in ("cancellation", "renewal"):
            assert hidden not in page.content()
        refused = page.goto(f"{served}/halo/dags/cancellations/rows")
        assert refused.status == 403
        expect(page.get_by_text("your role in Airflow does not allow it", exact=False)).to_be_visible()
        page.get_by_role("link", name="Halo deliveries").last.click()
        page.locator("table.board a.bad").first.click()
        page.get_by_role("link", name="Requeue all in doubt…").click()
        expect(page.get_by_role("heading", name="Requeue 6 rows?")).to_be_visible()
