"""Figures on the documentation's pages: between markers, and written by the command that measures them.

``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` stand around them on the page.
"""

import os
import platform
import re
import sys
import textwrap
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 120  # characters of a line


def renewed(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with these lines between the markers of this name. Raises ValueError where it has no such markers."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    text = "\n".join([begin, "", *lines, "", end])
    found, times = re.subn(f"{begin}.*?{end}", lambda _: text, page, flags=re.DOTALL)
    if times != 1:
        raise ValueError(f"the page has {times} places for the figures {name!r}: put {begin} and {end} there, once")
    return found


def renew(page: Path, name: str, lines: Iterable[str]) -> None:
    """Write them there."""
    page.write_text(renewed(page.read_text(encoding="utf-8"), name, lines), encoding="utf-8")


def wrapped(*sentences: str) -> list[str]:
    """Them as lines of a page."""
    return textwrap.wrap(" ".join(sentences), WIDTH)


def today() -> str:
    """The day, in UTC, as the pages write it."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def machine() -> str:
    """What it runs on."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def say(stage: str) -> None:
    """Tell a person what is being measured."""
    sys.stderr.write(f"{stage} …\n")
