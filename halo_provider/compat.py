"""
Where an Airflow name lives: the only module that imports Airflow, or knows that its versions differ.

A name is looked up when it is first asked for, so that importing this module costs nothing, and a page's name is no
burden for a DAG file. Most are where apache-airflow-providers-common-compat says. For the others the places are listed
here, newest first, and the first that has the name is taken: what decides is what is there, never a version's number.
A name that no place has raises ImportError: this Airflow lacks the feature.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
    from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
    from airflow.models.dag import DagModel
    from airflow.models.log import Log as AuditLog
    from airflow.plugins_manager import AirflowPlugin
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.providers.openlineage.sqlparser import SQLParser
    from airflow.sdk import (
        Asset,
        AssetAlias,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        Connection,
        Context,
        ObjectStoragePath,
        RetryDecision,
        RetryPolicy,
        get_current_context,
    )
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import AirflowFailException
    from airflow.sdk.log import mask_secret
    from airflow.sdk.observability import stats
    from airflow.sdk.types import TaskInstanceKey
    from airflow.utils.session import create_session

__all__ = [
    "AirflowFailException",
    "AirflowPlugin",
    "Asset",
    "AssetAlias",
    "AuditLog",
    "BaseHook",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseUser",
    "Connection",
    "Context",
    "DagAccessEntity",
    "DagDetails",
    "DagModel",
    "Dataset",
    "GetUserDep",
    "ObjectStoragePath",
    "OperatorLineage",
    "OutputDataset",
    "OutputStatisticsOutputDatasetFacet",
    "RetryDecision",
    "RetryPolicy",
    "SQLParser",
    "TaskInstanceKey",
    "conf",
    "create_session",
    "get_auth_manager",
    "get_current_context",
    "mask_secret",
    "requires_access_dag",
    "stats",
]

_COMMON = "airflow.providers.common.compat.sdk"
_FACETS = "airflow.providers.common.compat.openlineage.facet"
_SECURITY = "airflow.api_fastapi.core_api.security"
_RESOURCES = "airflow.api_fastapi.auth.managers.models.resource_details"
_PLACES: dict[str, tuple[str, ...]] = {  # module and name, newest first
    "AirflowPlugin": ("airflow.plugins_manager:AirflowPlugin",),
    "AuditLog": ("airflow.models.log:Log",),
    "BaseUser": ("airflow.api_fastapi.auth.managers.models.base_user:BaseUser",),
    "DagAccessEntity": (f"{_RESOURCES}:DagAccessEntity",),
    "DagDetails": (f"{_RESOURCES}:DagDetails",),
    "DagModel": ("airflow.models.dag:DagModel",),
    "Dataset": (f"{_FACETS}:Dataset",),
    "GetUserDep": (f"{_SECURITY}:GetUserDep",),
    "OperatorLineage": ("airflow.providers.openlineage.extractors:OperatorLineage",),
    "OutputDataset": (f"{_FACETS}:OutputDataset",),
    "OutputStatisticsOutputDatasetFacet": (f"{_FACETS}:OutputStatisticsOutputDatasetFacet",),
    "RetryDecision": ("airflow.sdk:RetryDecision",),
    "RetryPolicy": ("airflow.sdk:RetryPolicy",),
    "SQLParser": ("airflow.providers.openlineage.sqlparser:SQLParser",),
    "create_session": ("airflow.utils.session:create_session",),
    "get_auth_manager": ("airflow.api_fastapi.app:get_auth_manager",),
    "mask_secret": ("airflow.sdk.log:mask_secret",),
    "requires_access_dag": (f"{_SECURITY}:requires_access_dag",),
    "stats": ("airflow.sdk.observability:stats", f"{_COMMON}:Stats"),
}


def __getattr__(name: str) -> Any:
    """Look a name up, once. Raises ImportError where this Airflow has it nowhere."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    places = _PLACES.get(name, (f"{_COMMON}:{name}",))
    for place in places:
        module, _, attribute = place.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError):
            continue
        globals()[name] = found
        return found
    raise ImportError(f"this Airflow has no {name}: looked for {', '.join(places)}", name=name)
