"""Figures get onto the pages by the commands that measure them, into the place that is meant for them."""

import pytest

from tests.acceptance import proof
from tests.docs.blocks import ROOT
from tests.figures import renewed

PAGE = "before\n<!-- begin: speed -->\nold\n<!-- end: speed -->\nafter <!-- begin: size -->1<!-- end: size -->"


def test_only_what_is_between_the_markers_of_the_name_changes() -> None:
    """The text around them is a person's."""
    page = renewed(PAGE, "speed", ["| 1 |", r"| \1 |"])

    assert page == PAGE.replace("\nold\n", "\n\n| 1 |\n| \\1 |\n\n")


@pytest.mark.parametrize("page", ["no place", PAGE * 2])
def test_page_without_one_place_is_an_error(page: str) -> None:
    """Figures that land nowhere would look as if they were old ones that hold."""
    with pytest.raises(ValueError, match="<!-- begin: speed --> and <!-- end: speed -->"):
        renewed(page, "speed", ["new"])


def test_proof_page_has_each_scenario_with_each_policy() -> None:
    """``make proof`` writes them; a scenario that was added is to be played."""
    page = (ROOT / "docs" / "explanation" / "proof.md").read_text(encoding="utf-8")
    cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    shown = {(line[0].removeprefix("| "), line[1]) for line in cells}

    assert {(night, policy) for night in proof.NIGHTS for policy in proof.POLICIES} <= shown
