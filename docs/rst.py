"""Docstrings are in Airflow's reStructuredText; the site is Markdown."""

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:meth|class|func|mod|attr|exc):`~?\.?([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:(?:\1 +.*)?\n)+)", re.MULTILINE)
LITERAL = re.compile(r"::\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Turns roles and code blocks into Markdown."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.is_alias or obj.docstring is None:
            return
        text = ROLE.sub(
            lambda found: f"`{found[1].rpartition('.')[2] if found[1][0].isupper() else found[1]}`", obj.docstring.value
        )
        text = BLOCK.sub(lambda found: f"```{found[2]}\n{textwrap.dedent(found[3]).rstrip()}\n```\n\n", text + "\n")
        text = LITERAL.sub(lambda found: f":\n\n```text\n{textwrap.dedent(found[1]).rstrip()}\n```\n\n", text)
        obj.docstring.value = text.rstrip()
