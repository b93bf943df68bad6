"""The code blocks of the documentation, and how each of them is run."""

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SIMULATOR = "127.0.0.1:8400"  # its address on the pages
TIMEOUT = 300.0  # seconds for one block: an Airflow that migrates its database is slow on a busy machine
SNIPPET = '--8<-- "'


@dataclass
class Page:
    """One page while its blocks run, one after the other: they see what those before them made."""

    path: Path
    folder: Path
    """Where its files are written and its commands run."""
    address: str
    """Of the simulator of the tests."""
    environment: dict[str, str]
    python: dict[str, Any] = field(default_factory=lambda: {"__name__": "docs"})
    save_as: str | None = None
    """Where the next block is to be written to, relative to the folder."""

    def source(self, block: str) -> str:
        """What the reader sees of a block, with the address that holds here."""
        text = block
        if text.startswith(SNIPPET):
            text = (ROOT / text.strip().removeprefix(SNIPPET).removesuffix('"')).read_text(encoding="utf-8")
        return text.replace(SIMULATOR, self.address)

    def run_python(self, source: str) -> None:
        """Run it in the page's namespace, or, where it is a file, as that file."""
        if self.save_as is None:
            exec(compile(source, str(self.path), "exec"), self.python)  # noqa: S102 -- this is what the test is for
        elif not (file := self.save(source)).name.startswith("test_"):  # pytest runs tests
            runpy.run_path(str(file))

    def run_bash(self, source: str) -> None:
        """Run it where those before it have left the environment."""
        kept = self.folder / ".environment"
        script = f"set -euo pipefail\n[ -f {kept} ] && . {kept}\n{source}\nexport -p > {kept}\n"
        ended = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert ended.returncode == 0, f"{source}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"

    def save(self, source: str) -> Path:
        """Write the block to its file."""
        assert self.save_as is not None, "a file needs its name, in a comment before it"
        file = self.folder / self.save_as
        self.save_as = None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        return file


def _page(example: Example) -> Page:
    page: Page = example.namespace["page"]
    return page


def _python(example: Example) -> None:
    page = _page(example)
    page.run_python(page.source(str(example.parsed)))


def _bash(example: Example) -> None:
    page = _page(example)
    page.run_bash(page.source(str(example.parsed)))


def _file(example: Example) -> None:
    page = _page(example)
    if page.save_as is not None:
        page.save(page.source(str(example.parsed)))


class FileParser:
    """``<!-- file: dags/applications.py -->``: the next block is that file."""

    def __init__(self) -> None:
        self._lexer = DirectiveInHTMLCommentLexer("file")

    def __call__(self, document: Document) -> Any:
        """Find the comments."""
        for region in self._lexer(document):
            region.parsed = region.lexemes["arguments"]
            region.evaluator = self._named
            yield region

    @staticmethod
    def _named(example: Example) -> None:
        _page(example).save_as = str(example.parsed).strip()


RUN = {"python": _python, "bash": _bash}
FILES = ("csv", "sql")
SYBIL = Sybil(
    parsers=[
        SkipParser(),
        FileParser(),
        *(CodeBlockParser(language, evaluator) for language, evaluator in RUN.items()),
        *(CodeBlockParser(language, _file) for language in FILES),
    ],
    path=str(ROOT),
    patterns=["README.md", "docs/**/*.md"],
)


@dataclass
class Tally:
    """How many of a page's blocks ran, and why the others did not."""

    ran: int = 0
    exempt: list[str] = field(default_factory=list)


def is_code(region: Region) -> bool:
    """Whether it is a block of Python or of commands."""
    return region.lexemes is not None and region.lexemes.get("arguments") in RUN


def run(page: Page) -> Tally:
    """Run a page from top to bottom. Raises what its first failing block raises."""
    tally = Tally()
    document = SYBIL.parse(page.path)
    document.namespace["page"] = page
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as skipped:
            if is_code(example.region):
                tally.exempt.append(f"{page.path.relative_to(ROOT)}:{example.line}: {skipped}")
                page.save_as = None
        else:
            tally.ran += is_code(example.region)
    return tally


def environment(**more: str) -> dict[str, str]:
    """What commands see: this process's environment, with the commands of its own installation first."""
    scripts = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", **more}
