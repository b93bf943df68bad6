"""What a callback's context is about: a task instance, a run, a deadline, or tasks that are late on Airflow 2.11."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from halo_provider.exceptions import HaloConfigurationError, HaloError
from halo_provider.hooks.ledger import task_instance_of
from halo_provider.ledger import TaskInstanceRef
from halo_provider.submission import MAX_ROW_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

_READABLE = ":+.-_"  # besides letters and digits, so that the times in the ids of runs stay readable


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One thing to tell, and the key by which it is told once."""

    key: str
    user_id: str
    message: str
    facts: dict[str, Any]
    task_instance: TaskInstanceRef


def alert_of(context: Mapping[str, Any]) -> Alert:
    """
    Return what the context of a callback tells.

    :param context: of ``on_failure_callback`` and the like of a task or a DAG, of a deadline, or what Airflow 2.11
        gives ``sla_miss_callback``
    :raises HaloConfigurationError: if it is about none of these
    """
    if "deadline" in context:
        return _late_run(context)
    if "task_list" in context:
        return _late_tasks(context)
    if "reason" in context:
        return _run(context)
    if context.get("ti") is not None:
        return _task(context)
    raise HaloConfigurationError(
        "HaloNotifier: the context names no task instance, run or deadline; use it as on_failure_callback or "
        "on_retry_callback, or as the callback of a deadline"
    )


def _task(context: Mapping[str, Any]) -> Alert:
    ti = task_instance_of(context)  # type: ignore[arg-type]  # Airflow's Context, which its callbacks get as a dict
    mapped = f"[{ti.map_index}]" if ti.map_index is not None and ti.map_index >= 0 else ""
    error = _reason(context.get("exception"))
    return Alert(
        key=_key("task", ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.try_number),
        user_id=f"airflow/{ti.dag_id}/{ti.task_id}",
        message=f"The Airflow task {ti.dag_id}.{ti.task_id}{mapped} failed in its try {ti.try_number} "
        f"(run {ti.run_id}){f': {error}' if error else ''}.",
        facts=_known(
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=ti.map_index if mapped else None,
            try_number=ti.try_number,
            logical_date=ti.logical_date and ti.logical_date.isoformat(),
            error=error,
            log_url=getattr(context["ti"], "log_url", None),
        ),
        task_instance=ti,
    )


def _run(context: Mapping[str, Any]) -> Alert:
    dag_id, dag_run, reason = context["dag"].dag_id, context.get("dag_run"), str(context["reason"])
    run_id = context.get("run_id") or getattr(dag_run, "run_id", None)
    # A run that was cleared as a whole runs again under the same id.
    clear_number = getattr(dag_run, "clear_number", None) or 0
    return Alert(
        key=_key("run", dag_id, run_id, clear_number, reason),
        user_id=f"airflow/{dag_id}",
        message=f"The Airflow run {run_id} of {dag_id} ended: {reason}.",
        facts=_known(dag_id=dag_id, run_id=run_id, reason=reason),
        task_instance=TaskInstanceRef(dag_id=dag_id, run_id=run_id),
    )


def _late_run(context: Mapping[str, Any]) -> Alert:
    dag_run, deadline = context["dag_run"], context["deadline"]
    dag_id, run_id = dag_run["dag_id"], dag_run["dag_run_id"]
    return Alert(
        key=_key("deadline", deadline["id"]),
        user_id=f"airflow/{dag_id}",
        message=f"The Airflow run {run_id} of {dag_id} is late: its deadline was {deadline['deadline_time']}.",
        facts=_known(dag_id=dag_id, run_id=run_id, deadline=str(deadline["deadline_time"])),
        task_instance=TaskInstanceRef(dag_id=dag_id, run_id=run_id),
    )


def _late_tasks(context: Mapping[str, Any]) -> Alert:
    dag_id, tasks = context["dag"].dag_id, context["task_list"].splitlines()
    return Alert(
        key=_key("sla", dag_id, *tasks),
        user_id=f"airflow/{dag_id}",
        message=f"Tasks of the Airflow DAG {dag_id} missed their SLA: {', '.join(tasks)}.",
        facts=_known(dag_id=dag_id, tasks=tasks),
        task_instance=TaskInstanceRef(dag_id=dag_id),
    )


def _reason(exception: Any) -> str | None:
    """What kind of error it was; its text only where this package made it, which masks what rows hold."""
    if isinstance(exception, HaloError):
        return f"{type(exception).__name__}: {exception}".rstrip(".")
    if isinstance(exception, BaseException):
        return type(exception).__name__
    return None


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _key(*parts: Any) -> str:
    """The parts as one key, so that different parts never make the same; a hash ends what the ledger cannot hold."""
    key = "/".join(quote(str(part), safe=_READABLE) for part in parts)
    if len(key) <= MAX_ROW_KEY:
        return key
    digest = sha256(key.encode()).hexdigest()
    return f"{key[: MAX_ROW_KEY - len(digest) - 1]}~{digest}"
