"""Docstrings are in Airflow's reStructuredText; the site is Markdown."""

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:meth|class|func|mod|attr|exc):`~?\.?([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n\n((?:(?:\1 +.*)?\n)+)", re.MULTILINE)
LITERAL = re.compile(r"::\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Turns roles and code blocks into Markdown, and gives classes the parameters that they hand to their base."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Let operators show the defaults of parameters that their base class takes."""
        for module in pkg["operators"].modules.values():
            for name, found in module.classes.items():
                if not name.startswith("_") and not found.is_alias and "__init__" in found.members:
                    self._inherit(found)

    def _inherit(self, found: griffe.Class) -> None:
        own = found.members["__init__"].parameters
        for base in found.resolved_bases:
            if base.path.startswith("halo_provider.") and "__init__" in base.members:
                for parameter in base.members["__init__"].parameters:
                    if parameter.name not in {each.name for each in own}:
                        own.add(parameter)

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
