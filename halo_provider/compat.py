"""
Where an Airflow name lives, from 2.11 to 3.3: the only module that imports Airflow, or knows that its versions differ.

A name is looked up when it is first asked for, so that importing this module costs nothing, and a page's name is no
burden for a DAG file. Its places are listed newest first, and the first that has the name is taken: what decides is
what is there, never a version's number. A name that no place has raises ImportError: this Airflow lacks the feature.

The functions at the end hide the few differences that are not about a place. A DAG file that has to run on Airflow 2.11
and on 3 alike may take ``Param``, ``task`` and ``CronDataIntervalTimetable`` from here; ``from airflow import DAG`` is
right everywhere, and Airflow passes over a file that does not name it.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
    from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
    from airflow.models.dag import DagModel
    from airflow.models.log import Log as AuditLog
    from airflow.models.xcom import XCom, XComModel
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
        BaseNotifier,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Connection,
        Context,
        CronDataIntervalTimetable,
        ObjectStoragePath,
        Param,
        PokeReturnValue,
        RetryDecision,
        RetryPolicy,
        get_current_context,
        task,
    )
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
    from airflow.sdk.log import mask_secret
    from airflow.sdk.observability.stats import Stats
    from airflow.sdk.types import TaskInstanceKey
    from airflow.triggers.base import BaseTrigger, TriggerEvent
    from airflow.utils.session import create_session

__all__ = [
    "AirflowFailException",
    "AirflowPlugin",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "Asset",
    "AssetAlias",
    "AuditLog",
    "BaseHook",
    "BaseNotifier",
    "BaseOperator",
    "BaseOperatorLink",
    "BaseSensorOperator",
    "BaseTrigger",
    "BaseUser",
    "Connection",
    "Context",
    "CronDataIntervalTimetable",
    "DagAccessEntity",
    "DagDetails",
    "DagModel",
    "Dataset",
    "GetUserDep",
    "ObjectStoragePath",
    "OperatorLineage",
    "OutputDataset",
    "OutputStatisticsOutputDatasetFacet",
    "Param",
    "PokeReturnValue",
    "RetryDecision",
    "RetryPolicy",
    "SQLParser",
    "Stats",
    "TaskInstanceKey",
    "TriggerEvent",
    "XCom",
    "XComModel",
    "conf",
    "create_session",
    "dag_details",
    "facts_log",
    "get_auth_manager",
    "get_current_context",
    "has_tabs",
    "mask_secret",
    "requires_access_dag",
    "run_after",
    "task",
    "xcom_value",
]

_FACETS = "airflow.providers.common.compat.openlineage.facet"
_SECURITY = "airflow.api_fastapi.core_api.security"
_AUTH_MODELS = "airflow.api_fastapi.auth.managers.models"
_PLACES: dict[str, tuple[str, ...]] = {  # newest first; where a name was another one, after a colon
    "AirflowFailException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowPlugin": ("airflow.plugins_manager",),
    "AirflowSensorTimeout": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "AirflowSkipException": ("airflow.sdk.exceptions", "airflow.exceptions"),
    "Asset": ("airflow.sdk", "airflow.datasets:Dataset"),
    "AssetAlias": ("airflow.sdk", "airflow.datasets:DatasetAlias"),
    "AuditLog": ("airflow.models.log:Log",),
    "BaseHook": ("airflow.sdk", "airflow.hooks.base"),
    "BaseNotifier": ("airflow.sdk", "airflow.notifications.basenotifier"),
    "BaseOperator": ("airflow.sdk", "airflow.models.baseoperator"),
    "BaseOperatorLink": ("airflow.sdk", "airflow.models.baseoperatorlink"),
    "BaseSensorOperator": ("airflow.sdk", "airflow.sensors.base"),
    "BaseTrigger": ("airflow.triggers.base",),
    "BaseUser": (f"{_AUTH_MODELS}.base_user",),
    "Connection": ("airflow.sdk", "airflow.models.connection"),
    "Context": ("airflow.sdk", "airflow.utils.context"),
    "CronDataIntervalTimetable": ("airflow.sdk", "airflow.timetables.interval"),
    "DagAccessEntity": (f"{_AUTH_MODELS}.resource_details",),
    "DagDetails": (f"{_AUTH_MODELS}.resource_details",),
    "DagModel": ("airflow.models.dag",),
    "Dataset": (_FACETS,),
    "GetUserDep": (_SECURITY,),
    "ObjectStoragePath": ("airflow.sdk", "airflow.io.path"),
    "OperatorLineage": ("airflow.providers.openlineage.extractors",),
    "OutputDataset": (_FACETS,),
    "OutputStatisticsOutputDatasetFacet": (_FACETS,),
    "Param": ("airflow.sdk", "airflow.models.param"),
    "PokeReturnValue": ("airflow.sdk", "airflow.sensors.base"),
    "RetryDecision": ("airflow.sdk",),
    "RetryPolicy": ("airflow.sdk",),
    "SQLParser": ("airflow.providers.openlineage.sqlparser",),
    "Stats": ("airflow.sdk.observability.stats", "airflow.observability.stats", "airflow.stats"),
    "TaskInstanceKey": ("airflow.sdk.types", "airflow.models.taskinstancekey"),
    "TriggerEvent": ("airflow.triggers.base",),
    "XCom": ("airflow.models.xcom",),
    "XComModel": ("airflow.models.xcom",),  # from Airflow 3.0 on, for the pages
    "conf": ("airflow.sdk.configuration", "airflow.configuration"),
    "create_session": ("airflow.utils.session",),
    "get_auth_manager": ("airflow.api_fastapi.app",),
    "get_current_context": ("airflow.sdk", "airflow.operators.python"),
    "mask_secret": ("airflow.sdk.log", "airflow.utils.log.secrets_masker"),
    "requires_access_dag": (_SECURITY,),
    "task": ("airflow.sdk", "airflow.decorators"),
}


def __getattr__(name: str) -> Any:
    """Look a name up, once. Raises ImportError where this Airflow has it nowhere."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for place in _PLACES[name]:
        module, _, former_name = place.partition(":")
        try:
            found = getattr(import_module(module), former_name or name)
        except (ImportError, AttributeError):
            continue
        globals()[name] = found
        return found
    raise ImportError(f"this Airflow has no {name}: looked for it in {', '.join(_PLACES[name])}", name=name)


def has_tabs() -> bool:
    """Whether Airflow's UI shows a plugin's pages, as tabs and from its navigation.

    Airflow 3.0 mounts them too, but keeps a browser's login where they cannot read it: they answer bearer tokens.
    """
    return hasattr(_here("AirflowPlugin"), "external_views")


def dag_details(dag_id: str) -> DagDetails:
    """What Airflow's authorisation is asked about: a DAG, and its team where Airflow has teams."""
    team_name_of = getattr(_here("DagModel"), "get_team_name", None)
    details: DagDetails = (
        _here("DagDetails")(id=dag_id)
        if team_name_of is None
        else _here("DagDetails")(id=dag_id, team_name=team_name_of(dag_id))
    )
    return details


def run_after(context: Context) -> datetime:
    """When the run was due: the end of its data interval, or when it was triggered."""
    dag_run: Any = context["dag_run"]
    due: datetime = getattr(dag_run, "run_after", None) or context.get("data_interval_end") or dag_run.execution_date
    return due


def xcom_value(key: str, *, ti_key: TaskInstanceKey) -> Any:
    """What a task instance pushed, where links are made by Airflow's webserver."""
    return _here("XCom").get_value(key=key, ti_key=ti_key)


def facts_log(log: Any) -> Any:
    """The task's log, as one that takes facts by keyword: structlog's does, the standard library's does not."""
    return _FactsLog(log) if isinstance(log, logging.Logger) else log


class _FactsLog:
    """Writes the facts behind the message, as `name=value`."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def info(self, message: str, *values: Any, **facts: Any) -> None:
        self._log.info(_with_facts(message, facts), *values, stacklevel=2)

    def warning(self, message: str, *values: Any, **facts: Any) -> None:
        self._log.warning(_with_facts(message, facts), *values, stacklevel=2)


def _with_facts(message: str, facts: dict[str, Any]) -> str:
    if not facts:
        return message
    written = " ".join(
        f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in facts.items()
    )
    return f"{message} {written.replace('%', '%%')}"


def _here(name: str) -> Any:
    """A name of this module's own table, from inside it."""
    return globals().get(name) or __getattr__(name)
