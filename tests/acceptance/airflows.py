"""A real Airflow for one test module, with DAGs of its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from halo_provider.demo.airflow import LOOPBACK, AirflowApi, airflow_environment, free_ports, start_airflow
from halo_provider.demo.processes import Home, Processes, Progress


@contextmanager
def running_airflow(
    home: Home,
    *,
    dag_ids: Sequence[str],
    settings: Mapping[str, str],
    metadata_url: str | None = None,
    api: type[AirflowApi] = AirflowApi,
) -> Iterator[tuple[AirflowApi, Processes]]:
    """Scheduler, DAG processor and API server over the home's `dags` folder, as soon as they know these DAGs.

    `settings` are environment variables beside the demo's own. Without `metadata_url` the metadata is in SQLite.
    """
    (port,) = free_ports(1)
    environment = {
        **airflow_environment(home, simulator_port=0, airflow_port=port, metadata_url=metadata_url),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home.path / "dags"),
        **settings,
    }
    with ExitStack() as stack:
        airflow = stack.enter_context(api(f"http://{LOOPBACK}:{port}"))
        processes = Processes(home=home, environment=environment, stack=stack, progress=Progress())
        start_airflow(processes, airflow, dag_ids=dag_ids)
        yield airflow, processes
