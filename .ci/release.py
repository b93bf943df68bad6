"""Compare what was built with what the repository says: ``python .ci/release.py dist [--bill]``."""

import argparse
import json
import re
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPYLEFT = re.compile(r"\b(A?GPL|SSPL|EUPL)", re.IGNORECASE)  # LGPL and MPL may be used as they are


def check_built(dist: Path) -> str:
    """Version, changelog, README and files of what was built."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        built = Parser().parsestr(files.read(metadata).decode())
    version = built["Version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)", changelog, re.MULTILINE)
    if headings[0] not in {"Unreleased", version}:
        raise SystemExit(f"CHANGELOG.md begins with {headings[0]}, the version is {version}")
    if version not in headings:
        raise SystemExit(f"CHANGELOG.md has no heading for {version}")
    readme = str(built.get_payload())
    if relative := re.findall(r"\]\((?!https?://|#)([^)]*)\)", readme):
        raise SystemExit(f"links of the README that lead nowhere on PyPI: {', '.join(relative)}")
    for wanted in ("halo_provider/py.typed", "halo_provider/ui/pages/overview.html", "halo_provider/testing/plugin.py"):
        if wanted not in names:
            raise SystemExit(f"the wheel lacks {wanted}")
    if strays := [name for name in names if name.startswith(("halo_provider/demo", "tests", "docs"))]:
        raise SystemExit(f"the wheel holds {strays[0]}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "SECURITY.md",
        "docs/index.md",
        "mkdocs.yml",
        "tests/conftest.py",
    ):
        if wanted not in inside:
            raise SystemExit(f"the sdist lacks {wanted}")
    unreleased = " (its changes are still under Unreleased)" if headings[0] == "Unreleased" else ""
    return f"version {version}{unreleased}: wheel, sdist, README and changelog agree"


def check_bill(dist: Path) -> str:
    """What an installation brings, and whether a licence of it asks for more than a notice."""
    components = json.loads((dist / "sbom.cdx.json").read_text(encoding="utf-8"))["components"]
    lines = (dist / "licences.md").read_text(encoding="utf-8").splitlines()[2:]
    licences = {
        cells[0]: cells[2] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    }
    # Of several licences, one may be chosen.
    strict = {name for name, found in licences.items() if all(COPYLEFT.search(each) for each in found.split(";"))}
    if strict:
        raise SystemExit(
            "licences to look at by hand: " + "; ".join(f"{each}: {licences[each]}" for each in sorted(strict))
        )
    return f"{len(components)} components in dist/sbom.cdx.json, {len(licences)} licences in dist/licences.md"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--bill", action="store_true", help="the bill of materials and the licences")
    chosen = parser.parse_args()
    print(check_bill(chosen.dist) if chosen.bill else check_built(chosen.dist))
