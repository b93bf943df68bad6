"""Who may see rows and who may change them, by Airflow's own authentication and authorisation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request, status

from halo_provider.compat import (
    AuditLog,
    BaseUser,
    DagAccessEntity,
    XComModel,
    conf,
    create_session,
    dag_details,
    get_auth_manager,
    requires_access_dag,
)
from halo_provider.hooks.ledger import OWN_LEDGER_KEY, own_ledger

MAX_XCOMS = 1_000  # the newest, that are read to find other ledgers

# Airflow's dependency reads the DAG id from the URL's path; every route that shows rows has it there.
SEES_ROWS = Depends(requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE))
DECIDES = Depends(requires_access_dag("POST", DagAccessEntity.RUN))


def visible(dag_ids: Iterable[str], user: BaseUser) -> list[str]:
    """The DAGs, of those given, whose rows the user may see."""
    return [dag_id for dag_id in dag_ids if _is_allowed("GET", DagAccessEntity.TASK_INSTANCE, dag_id, user)]


def decides(dag_id: str, user: BaseUser) -> bool:
    """Whether the user may change the DAG's rows: the right to trigger the DAG includes it."""
    return _is_allowed("POST", DagAccessEntity.RUN, dag_id, user)


def audit(user: BaseUser, event: str, *, dag_id: str, run_id: str | None, details: Mapping[str, Any]) -> None:
    """Write what a user is about to do into Airflow's audit log. What cannot be written there is not done."""
    with create_session() as db:
        db.add(
            AuditLog(
                event=event,
                owner=user.get_name(),
                owner_display_name=user.get_name(),
                dag_id=dag_id,
                run_id=run_id,
                extra=json.dumps(details, ensure_ascii=False),
            )
        )


def other_ledgers(dag_ids: Sequence[str] | None, *, run_id: str | None = None) -> list[tuple[str, str]]:
    """DAGs of those given, or of all, whose rows are in a ledger of their operators' own, with its connection."""
    wanted = [XComModel.key == OWN_LEDGER_KEY]
    if dag_ids is not None:
        wanted.append(XComModel.dag_id.in_(dag_ids))
    if run_id is not None:
        wanted.append(XComModel.run_id == run_id)
    with create_session() as db:
        found = db.query(XComModel).filter(*wanted).order_by(XComModel.timestamp.desc()).limit(MAX_XCOMS)
        named = {(each.dag_id, str(XComModel.deserialize_value(each))) for each in found}
    return sorted((dag_id, conn_id) for dag_id, conn_id in named if own_ledger(conn_id) is not None)


def clears(dag_id: str, user: BaseUser) -> bool:
    """Whether the user may clear the DAG's task instances."""
    return _is_allowed("PUT", DagAccessEntity.TASK_INSTANCE, dag_id, user)


def _is_allowed(method: Literal["GET", "POST", "PUT"], entity: DagAccessEntity, dag_id: str, user: BaseUser) -> bool:
    return get_auth_manager().is_authorized_dag(
        method=method, access_entity=entity, details=dag_details(dag_id), user=user
    )


def same_origin(request: Request) -> None:
    """Refuse what another site may have sent in the user's name: Airflow's cookie alone proves nothing.

    A bearer token does, for no site can add it. Browsers say themselves where a request comes from, in Sec-Fetch-Site
    or, on plain HTTP, in Origin. Raises HTTPException 403.
    """
    fetched_from = request.headers.get("sec-fetch-site")
    if fetched_from is not None:
        proven = fetched_from == "same-origin"
    elif origin := request.headers.get("origin"):
        own = {request.url.netloc, urlsplit(conf.get("api", "base_url", fallback="")).netloc}
        proven = urlsplit(origin).netloc in own - {""}  # a sandboxed page's origin is "null", without a host
    else:
        proven = request.headers.get("authorization", "").lower().startswith("bearer ")
    if not proven:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "this request does not come from Airflow's own pages")


SAME_ORIGIN = Depends(same_origin)
