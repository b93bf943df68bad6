"""The provider as Airflow sees it: found, complete, and cheap to look at."""

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import halo_provider
from halo_provider.get_provider_info import get_provider_info
from halo_provider.hooks.halo import EXTRAS, HaloHook
from halo_provider.notifications.halo import HaloNotifier

HEAVY = {"aiohttp", "fastapi", "numpy", "pandas", "pyarrow", "starlette", "uvicorn"}


@pytest.fixture
def connection_type() -> dict[str, Any]:
    """The metadata of the connection type."""
    (connection_type,) = get_provider_info()["connection-types"]
    return dict(connection_type)


def packages_added(code: str, *, after: str = "") -> set[str]:
    """The packages that the code loads in a fresh interpreter, beyond those that are there before it."""
    listing = f"{after}\nimport sys\nbefore = set(sys.modules)\n{code}\nprint(*sys.modules.keys() - before)"
    ended = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in ended.stdout.splitlines()[-1].split()}


def test_metadata_fits_airflows_schema() -> None:
    """Airflow checks what it finds against this schema, and leaves out what does not fit."""
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(get_provider_info(), schema)


def test_entry_point_leads_to_the_metadata() -> None:
    """The installed package announces itself as a provider."""
    (entry_point,) = distribution("airflow-provider-halo").entry_points.select(group="apache_airflow_provider")
    assert entry_point.load() is get_provider_info
    assert get_provider_info()["versions"] == [halo_provider.__version__]


def test_every_module_that_is_named_exists() -> None:
    """Hooks, operators and the hook's class can be imported as the metadata has them."""
    info = get_provider_info()
    named = [module for kind in ("hooks", "operators") for entry in info[kind] for module in entry["python-modules"]]
    package = Path(halo_provider.__file__).parent.parent
    assert named
    assert [module for module in named if not (package / f"{module.replace('.', '/')}.py").exists()] == []


def test_notifier_is_where_the_metadata_says() -> None:
    """Airflow lists it under the provider's notifications."""
    (name,) = get_provider_info()["notifications"]
    assert name == f"{HaloNotifier.__module__}.{HaloNotifier.__qualname__}"


def test_connection_type_is_the_hooks(connection_type: dict[str, Any]) -> None:
    """Metadata and class tell the same."""
    assert connection_type["hook-class-name"] == f"{HaloHook.__module__}.{HaloHook.__qualname__}"
    assert (connection_type["connection-type"], connection_type["hook-name"]) == (
        HaloHook.conn_type,
        HaloHook.hook_name,
    )


def test_form_has_a_field_for_every_extra_the_hook_reads(connection_type: dict[str, Any]) -> None:
    """Nothing has to be typed as JSON, and no field leads nowhere."""
    source = Path(sys.modules[HaloHook.__module__].__file__ or "").read_text(encoding="utf-8")
    fields = set(connection_type["conn-fields"])
    assert set(re.findall(r'_extra\("(\w+)"\)', source)) <= fields <= set(EXTRAS)


def test_form_explains_its_fields_and_lets_them_be_empty(connection_type: dict[str, Any]) -> None:
    """Every field has a label and a description; none is required."""
    for field in connection_type["conn-fields"].values():
        assert field["label"]
        assert field["description"]
        assert "null" in field["schema"]["type"]


def test_secrets_are_hidden_by_their_names(connection_type: dict[str, Any]) -> None:
    """Airflow masks an extra in its API by the field's name, whatever the form says."""
    hidden = {name for name, field in connection_type["conn-fields"].items() if field["schema"].get("format")}
    assert hidden == {"identity_secret"}
    assert all(re.search("secret|token|password", name) for name in hidden)


def test_standard_fields_say_what_they_are_for(connection_type: dict[str, Any]) -> None:
    """The password is the widget key, and what Halo has no use for is not shown."""
    behaviour = connection_type["ui-field-behaviour"]
    assert behaviour["relabeling"]["password"] == "Widget key"
    assert set(behaviour["hidden-fields"]) == {"login"}


def test_airflow_knows_the_provider(airflow_home: Path) -> None:
    """The providers manager has package, hook, connection form and configuration."""
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415 -- after Airflow's home is there
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime  # noqa: PLC0415

    providers = ProvidersManager()
    hook = ProvidersManagerTaskRuntime().hooks["halo"]
    assert providers.providers["airflow-provider-halo"].version == halo_provider.__version__
    assert hook is not None
    assert (hook.hook_class_name, hook.hook_name) == ("halo_provider.hooks.halo.HaloHook", "Halo")
    assert {"identity_secret", "timeout"} <= {
        name.removeprefix("extra__halo__") for name in providers.connection_form_widgets if "__halo__" in name
    }
    assert "widget key" in str(providers.field_behaviours["halo"]).lower()
    assert "ledger_conn_id" in dict(providers.provider_configs)["airflow-provider-halo"]["halo"]["options"]


def test_every_option_has_its_declared_default(airflow_home: Path) -> None:
    """The options of [halo] can be read without any configuration."""
    from airflow.sdk import conf  # noqa: PLC0415 -- after Airflow's home is there

    options = get_provider_info()["config"]["halo"]["options"]
    assert {name: conf.get("halo", name) for name in options} == {
        name: option["default"] for name, option in options.items()
    }


def test_metadata_loads_no_heavy_package() -> None:
    """Every Airflow process reads it, without importing Airflow, pydantic or anything else."""
    added = packages_added("from halo_provider.get_provider_info import get_provider_info; get_provider_info()")
    assert added - sys.stdlib_module_names == {"halo_provider"}


def test_operators_load_nothing_heavy_when_a_dag_is_parsed() -> None:
    """The DAG processor pays for imports again and again: aiohttp and pandas come when they are used."""
    imports = "import halo_provider.operators.halo, halo_provider.hooks.halo, halo_provider.submission"
    assert packages_added(imports, after="import airflow.sdk") & HEAVY == set()
