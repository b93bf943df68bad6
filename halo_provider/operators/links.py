"""The button on the task instance that leads to its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from halo_provider.compat import BaseOperatorLink, conf

if TYPE_CHECKING:
    from halo_provider.compat import BaseOperator, TaskInstanceKey

TASK_ROUTE = "halo-task"  # the tab of the task instance, as Airflow's addresses call it


class HaloDeliveriesLink(BaseOperatorLink):
    """
    ``Halo deliveries``: the rows of this task instance, in Airflow's own page.

    The operator pushes the address under ``xcom_key`` when it starts, so the button works while the task runs.
    """

    name = "Halo deliveries"

    @property
    def xcom_key(self) -> str:
        """Where the address is in XCom."""
        return "halo_deliveries"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 -- Airflow's signature
        """The address, made again at the task's end."""
        return deliveries_url(
            dag_id=ti_key.dag_id, run_id=ti_key.run_id, task_id=ti_key.task_id, map_index=ti_key.map_index
        )


def deliveries_url(*, dag_id: str, run_id: str, task_id: str, map_index: int | None) -> str:
    """Where Airflow's UI shows the rows of a task instance."""
    base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    mapped = f"/mapped/{map_index}" if map_index is not None and map_index >= 0 else ""
    place = f"/dags/{quote(dag_id)}/runs/{quote(run_id, safe='')}/tasks/{quote(task_id)}{mapped}"
    return f"{base}{place}/plugin/{TASK_ROUTE}"
