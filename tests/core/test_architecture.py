"""docs/architecture.md is the map of the package: it names every module, and no module that is not there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "halo_provider"
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def modules() -> set[str]:
    """Every module's path inside the package; a package's `__init__` is its room's, and has no line of its own."""
    return {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}


def mapped_modules() -> set[str]:
    """The modules that have a line in one of the tables of rooms."""
    return set(re.findall(r"^\| `([\w/]+\.py)` \|", MAP, re.MULTILINE))


def test_map_names_every_module() -> None:
    """A module without a line would be found by its author alone."""
    assert sorted(modules() - mapped_modules()) == []


def test_map_names_no_module_that_is_not_there() -> None:
    """A module that was renamed or removed has to leave the map."""
    assert sorted(mapped_modules() - modules()) == []


def test_map_names_every_package() -> None:
    """Each room has a heading of its own, which says what it is for."""
    packages = {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {PACKAGE.name}
    headings = " ".join(re.findall(r"^### .*$", MAP, re.MULTILINE))
    assert {package for package in packages if f"`{package}/`" not in headings} == set()
