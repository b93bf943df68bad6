"""Compare what was built with what the repository says: ``python .ci/release.py dist [--bill] [--dry-run]``."""

import argparse
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((https?://[^)\s]+)|href=\"(https?://[^\"]+)")
COPYLEFT = re.compile(r"\b(A?GPL|SSPL|EUPL)", re.IGNORECASE)  # LGPL and MPL may be used as they are


def example_addresses(built: Message, pages: Iterable[Path]) -> dict[str, list[str]]:
    """Links that lead to example.com, by where they are: the package's own, and those of its README and pages."""
    places = {
        "the package's links": [value.partition(", ")[2] for value in built.get_all("Project-URL", [])],
        "README.md": _links(str(built.get_payload())),
        **{page.relative_to(ROOT).as_posix(): _links(page.read_text(encoding="utf-8")) for page in pages},
    }
    examples = {place: [link for link in links if _is_example(link)] for place, links in places.items()}
    return {place: links for place, links in examples.items() if links}


def _links(text: str) -> list[str]:
    return [first or second for first, second in LINK.findall(text)]


def _is_example(link: str) -> bool:
    host = urlsplit(link).hostname or ""
    return host == "example.com" or host.endswith(".example.com")


def check_built(dist: Path, *, dry_run: bool) -> str:
    """Version, public addresses, changelog, README and files of what was built."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        built = Parser().parsestr(files.read(metadata).decode())
    if not built.get_all("Project-URL"):
        raise SystemExit("the package has no links: hatch_build.py makes them of the address in pyproject.toml")
    examples = example_addresses(built, ROOT.glob("docs/**/*.md"))
    if examples and not dry_run:
        raise SystemExit(
            "public addresses are still examples:\n"
            + "".join(f"  {place}: {len(links)}, such as {links[0]}\n" for place, links in examples.items())
            + "Set `address` under [tool.hatch.metadata.hooks.custom] in pyproject.toml to that of the public "
            "repository, and correct\nother links at their places. To try out everything else before: "
            "make release-check ARGS=--dry-run"
        )
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
    dry = "; a dry run, as links lead to example.com" if examples else ""
    return f"version {version}{unreleased}: wheel, sdist, README and changelog agree{dry}"


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
    parser.add_argument(
        "--dry-run", action="store_true", help="allow addresses at example.com, which nothing is to be released with"
    )
    chosen = parser.parse_args()
    print(check_bill(chosen.dist) if chosen.bill else check_built(chosen.dist, dry_run=chosen.dry_run))
