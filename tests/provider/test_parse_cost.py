"""What a DAG file pays for importing the operators: every DAG processor does it, over and over."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"aiohttp", "alembic", "fastapi", "jwt", "pandas", "pyarrow", "starlette", "uvicorn"}
PROGRAM = """
import json, sys, time
began = time.perf_counter()
import airflow.sdk
from airflow.sdk import DAG, BaseHook, BaseOperator
loaded, sdk_seconds = set(sys.modules), time.perf_counter() - began
began = time.perf_counter()
import halo_provider.hooks.halo, halo_provider.operators.halo, halo_provider.submission
added = sorted(set(sys.modules) - loaded)
print(json.dumps({"added": added, "sdk_seconds": sdk_seconds, "seconds": time.perf_counter() - began}))
"""


@pytest.fixture(scope="module")
def added() -> set[str]:
    """The modules that importing the operators, the hook and submissions adds to `airflow.sdk`; tells the times too."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(
        f"importing airflow.sdk takes {measured['sdk_seconds']:.2f} s, the operators {measured['seconds']:.3f} s more\n"
    )
    return set(measured["added"])


def test_nothing_heavy_is_loaded_at_parse_time(added: set[str]) -> None:
    """What a task needs is imported when the task runs."""
    assert {name.partition(".")[0] for name in added} & HEAVY == set()


def test_operators_import_no_package_that_airflow_has_not_loaded(added: set[str]) -> None:
    """Every new package a DAG file would pull in is decided on here."""
    packages = {name.partition(".")[0] for name in added}
    assert packages - set(sys.stdlib_module_names) <= {"halo_provider", "airflow", "pydantic", "sqlalchemy"}


def test_simulator_demo_and_pages_are_not_loaded(added: set[str]) -> None:
    """The edges stay out of a DAG file."""
    edges = ("halo_provider.simulator", "halo_provider.demo", "halo_provider.ui", "halo_provider.plugin")
    assert not [name for name in added if name.startswith(edges)]
