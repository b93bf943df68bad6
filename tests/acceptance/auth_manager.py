"""An auth manager for ``[core] auth_manager``: Airflow's simple one knows roles, and no rights to a single DAG."""

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

ONLY = "only_"


class OneDagAuthManager(SimpleAuthManager):
    """Who is called ``only_`` and a DAG's id has the role's rights to this DAG, and none to another."""

    def is_authorized_dag(self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None) -> bool:
        """Whether the role allows it, and the DAG is the user's."""
        dag_id = details.id if details else None  # None is a list of DAGs, from which Airflow leaves out the others
        if user.username.startswith(ONLY) and dag_id not in {None, user.username.removeprefix(ONLY)}:
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
