"""`make matrix`: the package on each Airflow and each Python it supports, in environments of their own. Prints a table.

`make matrix ARGS=2.11` runs one. The environments are in `.matrix/`, and are made anew when their constraints change. A
Python that is not on the machine is left out with a word, and is an error where `CI` is set.
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
TESTS_FAILED = 1  # pytest's exit code
PAGES = ["tests/provider/test_ui.py"]
CORE_AND_SKIN = ["tests/core", "tests/provider", "--deselect", "tests/provider/test_ui.py", "-m", "not acceptance"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is installed beside the package, for which Python, and what is run there."""

    constraints: Path
    tests: list[str]
    python: str = sys.executable
    group: str = "matrix"  # of pyproject.toml's dependencies


def _airflow(version: str, *tests: str) -> Part:
    return Part(constraints=CONSTRAINTS / f"airflow-{version}.txt", tests=[*EVERYWHERE, *tests])


def _python(version: str) -> Part:
    return Part(constraints=ROOT / "constraints.txt", tests=CORE_AND_SKIN, python=version, group="dev")


PARTS = {  # SQLAlchemy is 1.4 in the first two; pages came with 3.0, their tabs with 3.1
    "2.11": _airflow("2.11", *LEDGER),
    "3.0": _airflow("3.0", "tests/core/test_tables.py"),
    "3.1": _airflow("3.1", *PAGES),
    "3.2": _airflow("3.2", *PAGES),
    "python3.12": _python("3.12"),
    "python3.13": _python("3.13"),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a part."""

    name: str
    is_green: bool
    environment_seconds: float
    tests_seconds: float
    last_line: str


def has_python(part: Part) -> bool:
    """Whether its Python is on this machine."""
    command = [UV, "python", "find", "--no-python-downloads", "--quiet", part.python]
    return subprocess.run(command, check=False, env=_with_pyenv(part), stdout=subprocess.DEVNULL).returncode == 0


def _with_pyenv(part: Part) -> dict[str, str]:
    """The environment in which pyenv, where it is used, shows a Python that is not its global one."""
    return {**os.environ, "PYENV_VERSION": part.python}


def environment(name: str) -> Path:
    """The part's Python; its environment is made where there is none for these constraints."""
    part = PARTS[name]
    home, stamp = ENVIRONMENTS / name, ENVIRONMENTS / name / "made-of"
    python = home / "bin" / "python"
    wanted = hashlib.sha256(part.constraints.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    make = [UV, "venv", "--quiet", "--clear", "--no-python-downloads", "--python", part.python, home]
    subprocess.run(make, check=True, env=_with_pyenv(part))
    subprocess.run(
        [
            UV, "pip", "install", "--quiet", "--python", python, "--constraint", part.constraints,
            "--editable", ROOT, "--group", f"{ROOT / 'pyproject.toml'}:{part.group}",
        ],
        check=True,
        cwd=ROOT,
    )  # fmt: skip
    stamp.write_text(wanted)
    return python


def run(name: str) -> Result:
    """Run the part's tests in its environment; their output goes to the terminal."""
    began = time.monotonic()
    python = environment(name)
    made = time.monotonic()
    arguments = [python, "-m", "pytest", "-q", "-o", f"cache_dir={ENVIRONMENTS / name / 'pytest_cache'}"]
    tests, last_line = _pytest([*arguments, "--numprocesses", "2", "--dist", "loadfile", *PARTS[name].tests])
    if tests == TESTS_FAILED:
        print(f"What failed in {name} is run once more, by itself.", flush=True)
        first_line = last_line
        tests, last_line = _pytest([*arguments, "--last-failed", "--last-failed-no-failures=none", *PARTS[name].tests])
        last_line = f"{first_line}; once more: {last_line}"
    return Result(
        name=name,
        is_green=tests == 0,
        environment_seconds=made - began,
        tests_seconds=time.monotonic() - made,
        last_line=last_line,
    )


def _pytest(arguments: list[str | Path]) -> tuple[int, str]:
    """Run pytest; returns its exit code and its last line."""
    output: list[str] = []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    with subprocess.Popen(arguments, cwd=ROOT, env=clean, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            print(line, end="", flush=True)
            output.append(line.strip())
    return tests.returncode, next((line.strip("= ") for line in reversed(output) if line), "")


def main() -> int:
    """Run the versions asked for, or all, and print the table."""
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; by default all of them")
    names = parser.parse_args().parts or list(PARTS)
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"there is no {unknown[0]} in the matrix, only {', '.join(PARTS)}")
    missing = [name for name in names if not has_python(PARTS[name])]
    if missing and os.environ.get("CI"):
        parser.error(f"CI needs {missing[0]}, which is not on this machine")
    results = []
    for name in names:
        print(f"\n{name}: {'not on this machine' if name in missing else 'running'}", flush=True)
        if name not in missing:
            results.append(run(name))
    print("\n| | result | environment | tests | |\n|---|---|---|---|---|")
    for each in results:
        result = "green" if each.is_green else "RED"
        seconds = f"{each.environment_seconds:.0f} s | {each.tests_seconds:.0f} s"
        print(f"| {each.name} | {result} | {seconds} | {each.last_line} |")
    return 0 if all(each.is_green for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
