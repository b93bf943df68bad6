"""What PyPI shows of the package: its links, and the README, whose relative links lead to the repository there."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE_LINK = re.compile(r"\]\((?!https?://|#)([^)]+)\)")


class PublicMetadata(MetadataHookInterface):
    """Hatchling calls it when it builds; `address` is the one setting, in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add what depends on the address."""
        address = self.config["address"]
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": RELATIVE_LINK.sub(lambda link: f"]({address}/{link[1]})", readme),
        }
        metadata["urls"] = {"Repository": address, "Changelog": f"{address}/CHANGELOG.md"}
