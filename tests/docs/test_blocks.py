"""The code of the documentation works: each block is run, or says why not."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator
from tests.docs.blocks import FILES, PAGES, ROOT, RUN, SYBIL, Page, Tally, environment, is_code, run

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
NOT_RUN = {"text", "mermaid", "yaml", "dockerfile"}  # nothing that a reader executes by itself
TUTORIAL = "docs/tutorial/index.md"
WITH_CODE = [name for name in NAMES if any(is_code(example.region) for example in SYBIL.parse(ROOT / name).examples())]


@pytest.fixture
def page_of(
    airflow_home: Path, halo: Simulator, halo_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Page]:
    """Make a page ready to run, with a local Halo in place of the one that it names, and an empty ledger."""
    for file in airflow_home.glob("halo_ledger.db*"):
        file.unlink()
    address = halo_url.removeprefix("http://")
    monkeypatch.setenv("AIRFLOW_CONN_HALO_DEFAULT", f"halo://:{EXAMPLE_WIDGET_KEY}@{address}/http")
    monkeypatch.setenv("AIRFLOW__CORE__DAGS_FOLDER", str(tmp_path / "dags"))
    monkeypatch.chdir(tmp_path)
    return lambda name: Page(ROOT / name, tmp_path, address, environment())


@pytest.mark.parametrize("name", [name for name in WITH_CODE if name != TUTORIAL])
def test_code_of_page_runs(name: str, page_of: Callable[[str], Page]) -> None:
    """From top to bottom, as a reader does it."""
    report(name, run(page_of(name)))


@pytest.mark.acceptance
def test_tutorial_makes_the_tickets_that_it_promises(page_of: Callable[[str], Page], halo: Simulator) -> None:
    """Three runs of the DAG, four rows, four messages with their context."""
    report(TUTORIAL, run(page_of(TUTORIAL)))

    assert [chat.user_id for chat in halo.chats] == ["usr_1", "usr_2", "usr_3", "usr_4"]
    assert {entry["label"] for chat in halo.chats for entry in chat.context.values()} == {"Partnership Application"}
    assert {ticket.user_id for ticket in halo.tickets} == {"usr_1", "usr_2", "usr_3", "usr_4"}


def report(name: str, tally: Tally) -> None:
    """Say what ran, for the note (pytest -rP)."""
    assert tally.ran + len(tally.exempt) > 0
    print(f"{name}: {tally.ran} blocks run, {len(tally.exempt)} exempt", *tally.exempt, sep="\n  ")  # noqa: T201


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_what_it_is(name: str) -> None:
    """A block without a language would be neither run nor exempt."""
    fences = re.compile(r"^ *```(\S*)[^\n]*\n.*?^ *```$", re.MULTILINE | re.DOTALL)
    languages = fences.findall((ROOT / name).read_text(encoding="utf-8"))

    assert set(languages) <= {*RUN, *FILES, *NOT_RUN}
