"""Nothing is released whose links lead to example.com."""

import runpy
from email.message import Message
from typing import Any

import pytest

from tests.docs.blocks import ROOT


@pytest.fixture(scope="module")
def release() -> dict[str, Any]:
    """What `make release-check` runs."""
    return runpy.run_path(str(ROOT / ".ci" / "release.py"))


def built(*, url: str, readme: str) -> Message:
    """The metadata of a wheel."""
    message = Message()
    message["Project-URL"] = f"Repository, {url}"
    message.set_payload(readme)
    return message


def test_links_to_example_com_are_found_where_they_are(release: dict[str, Any]) -> None:
    """In the package's own links and in its README, as links, and not as what people type."""
    readme = (
        '[a](https://example.com/a) ![b](https://www.example.com/b.png) <a href="https://example.com"> ada@example.com'
    )

    found = release["example_addresses"](built(url="https://example.com/x", readme=readme), [])

    assert found == {
        "the package's links": ["https://example.com/x"],
        "README.md": ["https://example.com/a", "https://www.example.com/b.png", "https://example.com"],
    }


def test_public_addresses_are_fine(release: dict[str, Any]) -> None:
    """Another host whose name only looks alike is one of them."""
    readme = "[a](https://notexample.com/a) `https://example.com/a`"

    assert release["example_addresses"](built(url="https://git.example.org/x", readme=readme), []) == {}


def test_pages_have_no_address_of_their_own(release: dict[str, Any]) -> None:
    """The address of the repository is set once, in pyproject.toml."""
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "CHANGELOG.md"]

    assert release["example_addresses"](built(url="https://git.example.org/x", readme=""), pages) == {}
