"""One module knows where Airflow keeps its names, and what an Airflow has decides, never its version's number."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halo_provider
from halo_provider import compat

PACKAGE = Path(halo_provider.__file__).parent
VERSION_WORDS = {"airflow_version", "AIRFLOW_V_3_0_PLUS", "version_info", "packaging"}


def airflow_imports(tree: ast.AST) -> set[str]:
    """The modules of Airflow that the source names in an import statement, wherever that stands."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name for name in names if name.partition(".")[0] == "airflow"}


def test_no_other_module_imports_airflow() -> None:
    """The modules that do not exist yet are included, unlike in import-linter's contract, which names the packages."""
    imports = {
        path.relative_to(PACKAGE).as_posix(): airflow_imports(ast.parse(path.read_text(encoding="utf-8")))
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: names for path, names in imports.items() if names and path != "compat.py"} == {}
    assert imports["compat.py"]


def test_no_module_asks_for_a_version_of_airflow() -> None:
    """A number says what was true once; that a name is there is true now."""
    asking = {
        path.relative_to(PACKAGE).as_posix(): found
        for path in PACKAGE.rglob("*.py")
        if (
            found := {
                node.id if isinstance(node, ast.Name) else node.attr
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Name | ast.Attribute)
            }
            & VERSION_WORDS
        )
    }
    assert asking == {}


def test_importing_it_loads_nothing_of_airflow() -> None:
    """A name is looked up when it is first asked for."""
    program = "import sys, halo_provider.compat; print('airflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_unknown_name_is_an_attribute_error() -> None:
    """As in any other module, so that hasattr and typing mistakes work as usual."""
    with pytest.raises(AttributeError, match="Dagg"):
        _ = compat.Dagg  # type: ignore[attr-defined]


def test_name_that_airflow_lacks_is_an_import_error_which_says_where_it_was_sought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`from halo_provider.compat import X` then fails as any import of a missing feature does."""
    monkeypatch.delitem(vars(compat), "RetryPolicy", raising=False)
    monkeypatch.setitem(compat._PLACES, "RetryPolicy", ("airflow.sdk:NoSuchPolicy", "airflow.no_such_module:X"))
    with pytest.raises(ImportError, match=r"no RetryPolicy: looked for airflow\.sdk:NoSuchPolicy, airflow\.no_such"):
        _ = compat.RetryPolicy
