"""`make matrix`: the package on each Airflow it supports, each in an environment of its own. Prints a table.

`make matrix ARGS=2.11` runs one. The environments are in `.matrix/`, and are made anew when their constraints change.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints"
ENVIRONMENTS = ROOT / ".matrix"
UV = Path(sys.executable).with_name("uv")
EVERYWHERE = ["tests/matrix", "tests/core/test_compat.py"]
LEDGER = ["tests/core/test_ledger.py", "tests/core/test_sql.py", "tests/core/test_tables.py"]
PAGES = ["tests/provider/test_ui.py"]
TESTS = {  # by version: SQLAlchemy is 1.4 in the first two; pages came with 3.0, their tabs with 3.1
    "2.11": [*EVERYWHERE, *LEDGER],
    "3.0": [*EVERYWHERE, "tests/core/test_tables.py"],
    "3.1": [*EVERYWHERE, *PAGES],
    "3.2": [*EVERYWHERE, *PAGES],
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a version."""

    version: str
    is_green: bool
    environment_seconds: float
    tests_seconds: float
    last_line: str


def environment(version: str) -> Path:
    """The version's Python; its environment is made where there is none for these constraints."""
    constraints = CONSTRAINTS / f"airflow-{version}.txt"
    home, stamp = ENVIRONMENTS / version, ENVIRONMENTS / version / "made-of"
    python = home / "bin" / "python"
    wanted = hashlib.sha256(constraints.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, home], check=True)
    subprocess.run(
        [
            UV, "pip", "install", "--quiet", "--python", python, "--constraint", constraints,
            "--editable", ROOT, "--group", f"{ROOT / 'pyproject.toml'}:matrix",
        ],
        check=True,
        cwd=ROOT,
    )  # fmt: skip
    stamp.write_text(wanted)
    return python


def run(version: str) -> Result:
    """Run the version's tests in its environment; their output goes to the terminal."""
    began = time.monotonic()
    python = environment(version)
    made = time.monotonic()
    arguments = [python, "-m", "pytest", "-q", "--numprocesses", "2", "--dist", "loadfile", *TESTS[version]]
    output: list[str] = []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with subprocess.Popen(arguments, cwd=ROOT, env=clean, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            print(line, end="", flush=True)
            output.append(line.strip())
    return Result(
        version=version,
        is_green=tests.returncode == 0,
        environment_seconds=made - began,
        tests_seconds=time.monotonic() - made,
        last_line=next((line.strip("= ") for line in reversed(output) if line), ""),
    )


def main() -> int:
    """Run the versions asked for, or all, and print the table."""
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"{', '.join(TESTS)}; by default all of them")
    versions = parser.parse_args().versions or list(TESTS)
    if unknown := sorted(set(versions) - set(TESTS)):
        parser.error(f"there is no Airflow {unknown[0]} in the matrix, only {', '.join(TESTS)}")
    results = []
    for version in versions:
        print(f"\nAirflow {version}", flush=True)
        results.append(run(version))
    print("\n| Airflow | result | environment | tests | |\n|---|---|---|---|---|")
    for each in results:
        result = "green" if each.is_green else "RED"
        seconds = f"{each.environment_seconds:.0f} s | {each.tests_seconds:.0f} s"
        print(f"| {each.version} | {result} | {seconds} | {each.last_line} |")
    return 0 if all(each.is_green for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
