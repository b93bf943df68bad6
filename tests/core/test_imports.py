"""The core stands on its own feet: it is imported without Airflow, and without what is slow and used in places only."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from pkgutil import walk_packages

import pytest

import halo_provider

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
CORE_ROOMS = next(contract["source_modules"] for contract in CONTRACTS if contract["name"].startswith("the core runs"))
IMPORTED_WHEN_USED = {"halo_provider.client.transport"}  # it cannot do without aiohttp
CORE = [
    module.name
    for module in walk_packages(halo_provider.__path__, "halo_provider.")
    if any(f"{module.name}.".startswith(f"{room}.") for room in CORE_ROOMS) and module.name not in IMPORTED_WHEN_USED
]
EDGES = {
    "halo_provider.hooks",
    "halo_provider.operators",
    "halo_provider.simulator",
    "halo_provider.testing",
    "halo_provider.demo",
}
IMPORT_WITHOUT = """
import importlib, json, sys
names, blocked = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
for name in names:
    importlib.import_module(name)
print(json.dumps([name for name, module in sys.modules.items() if module is not None]))
"""


def imported(names: list[str], *, without: list[str]) -> set[str]:
    """The modules that are loaded once a new process has imported these, with the blocked ones not to be had."""
    argument = json.dumps([names, without])
    ended = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, argument], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout))


def test_core_is_imported_without_airflow_and_what_is_used_lazily() -> None:
    """Where a DAG is parsed, pandas and aiohttp cost more than all else; simulator and skin are no part of it."""
    loaded = imported(CORE, without=["airflow", "pandas", "aiohttp", "fastapi", "starlette", "uvicorn"])

    assert set(CORE) <= loaded
    assert not loaded & (EDGES | IMPORTED_WHEN_USED)


@pytest.mark.parametrize("module", ["exceptions", "models", "submission", "sources", "get_provider_info"])
def test_what_a_dag_file_imports_knows_no_http_and_no_database(module: str) -> None:
    """Writing a submission down takes pydantic and nothing more."""
    imported([f"halo_provider.{module}"], without=["airflow", "pandas", "aiohttp", "fastapi", "httpx", "sqlalchemy"])


def test_pytest_plugin_imports_nothing_until_a_fixture_is_used() -> None:
    """Every pytest run of everybody who has the package installed loads it."""
    loaded = imported(
        ["halo_provider.testing.plugin"],
        without=["airflow", "pandas", "aiohttp", "fastapi", "httpx", "pydantic", "sqlalchemy", "uvicorn"],
    )

    assert {name for name in loaded if name.startswith("halo_provider")} == {
        "halo_provider",
        "halo_provider.testing",
        "halo_provider.testing.plugin",
    }
