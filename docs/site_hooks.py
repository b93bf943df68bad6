"""What the site makes of the package's own code: the commands' help, the ledger's columns, the options, diagrams."""

import argparse
import re
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from halo_provider import check, cli, login
from halo_provider.get_provider_info import get_provider_info
from halo_provider.ledger.tables import metadata
from halo_provider.simulator import __main__ as simulator

MERMAID = "assets/mermaid.js"
PARSERS = {
    "halo-check": check._parser,
    "halo-ledger": cli._parser,
    "halo-login": login._parser,
    "simulator": simulator.parser,
}
MADE = re.compile(r"^<!-- made: (?P<what>[a-z]+) ?(?P<of>[\w-]*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what is made of the code, where a page asks for it."""
    made = {"help": _help, "columns": _columns, "options": _options, "fields": _fields}
    return MADE.sub(lambda found: "\n".join(made[found["what"]](found["of"])), markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Load the library for diagrams where there are some; the theme would take it from another host."""
    if 'class="mermaid"' not in output:
        return output
    script = f'<script src="{get_relative_url(MERMAID, page.url)}"></script>'
    return output.replace('<script id="__config"', f'{script}<script id="__config"', 1)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let tables of text be stacked where the screen is narrow."""
    config.markdown_extensions.append(StackedTables())  # type: ignore[arg-type]  # Markdown takes instances, too
    return config


class StackedTables(Extension):
    """Name each cell of a table of text by its column, for site.css; tables of numbers stay tables."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 -- Markdown's name
        """Do it when the page is a tree, with the tables in it."""
        md.treeprocessors.register(_CellNames(md), "stacked-tables", 0)


class _CellNames(Treeprocessor):
    def run(self, root: Element) -> None:
        for table in root.iter("table"):
            headings = list(table.iter("th"))
            if any("right" in heading.get("style", "") for heading in headings):
                continue
            table.set("data-stacked", "")
            for row in table.iter("tr"):
                for heading, cell in zip(headings, row.findall("td"), strict=False):
                    cell.set("data-column", "".join(heading.itertext()))


def on_post_build(*, config: MkDocsConfig) -> None:
    """Bring that library along."""
    with as_file(files("mermaidx") / "assets" / "mermaid.js") as library:
        shutil.copy(library, Path(config.site_dir) / MERMAID)


def _help(command: str) -> Iterator[str]:
    parser = PARSERS[command]()
    yield from _help_of(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield f"### {parser.prog} {name}"
                yield from _help_of(sub)


def _help_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    for action in parser._actions:
        if action.dest == "actor":
            action.default = None  # who builds the site is no default
    yield from ("", "```text", parser.format_help().rstrip(), "```", "")


def _columns(table: str) -> Iterator[str]:
    yield from ("| Column | Type | Key or index |", "|---|---|---|")
    for column in metadata.tables[table].columns:
        indexed = any(column.name in index.columns for index in metadata.tables[table].indexes)
        kind = "primary key" if column.primary_key else "index" if indexed else ""
        yield f"| `{column.name}` | {_type(column.type)} | {kind} |"


def _type(kind: Any) -> str:
    length = getattr(kind, "length", None)
    name = {"UtcDateTime": "time, UTC", "BigInteger": "integer", "Float": "number"}.get(type(kind).__name__)
    return (name or type(kind).__name__.lower()) + (f"({length})" if length else "")


def _options(section: str) -> Iterator[str]:
    for name, option in get_provider_info()["config"][section]["options"].items():
        variable = f"AIRFLOW__{section.upper()}__{name.upper()}"
        yield from (f"### `[{section}] {name}`", "", option["description"], "", f"Environment: `{variable}`.", "")


def _fields(_: str) -> Iterator[str]:
    yield from ("| Extra | Label | Meaning |", "|---|---|---|")
    (kind,) = get_provider_info()["connection-types"]
    for name, field in kind["conn-fields"].items():
        yield f"| `{name}` | {field['label']} | {field['description']} |"
