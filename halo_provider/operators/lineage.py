"""What a delivery tells about where rows come from and go to: OpenLineage datasets, and asset events."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halo_provider.compat import Asset, AssetAlias, BaseHook

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from halo_provider.compat import Context, OperatorLineage


def announce(outlets: Iterable[Any], context: Context, counts: Mapping[str, int]) -> None:
    """
    Put the counts into the extra of the asset events that the task makes when it succeeds.

    :param outlets: the operator's
    :param context: the task's
    :param counts: rows by their status
    """
    for outlet in outlets:
        if isinstance(outlet, Asset | AssetAlias):
            context["outlet_events"][outlet].extra.update({"halo": dict(counts)})


def lineage(
    *,
    halo_conn_id: str,
    submission_name: str,
    csv_path: str | None,
    sql: str | None,
    sql_conn_id: str | None,
    counts: Mapping[str, int] | None = None,
) -> OperatorLineage[Any, Any]:
    """
    Describe the task to OpenLineage: the file or the tables it reads, and the submissions it makes.

    The output is ``halo://<halo_conn_id>`` / ``<submission.name>``, with the rows delivered in this run. Needs
    apache-airflow-providers-openlineage, which alone calls it.

    :param counts: rows by their status, once they are known
    """
    from halo_provider.compat import (  # noqa: PLC0415 -- only where OpenLineage asks
        Dataset,
        OperatorLineage,
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )

    names = [_file(csv_path)] if csv_path else _tables(sql, sql_conn_id) if sql and sql_conn_id else []
    facets: dict[str, Any] = {}
    if counts:
        facets["outputStatistics"] = OutputStatisticsOutputDatasetFacet(rowCount=counts["delivered"])
    return OperatorLineage(
        inputs=[Dataset(namespace=namespace, name=name) for namespace, name in names],
        outputs=[
            OutputDataset(namespace=f"halo://{halo_conn_id}", name=submission_name, outputFacets=facets),
        ],
    )


def _file(path: str) -> tuple[str, str]:
    """Namespace and name of a file, by OpenLineage's naming rules."""
    scheme, separator, rest = path.partition("://")
    if not separator or scheme == "file":
        return "file", str(Path(rest or path).absolute())
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket.rpartition('@')[2]}", key  # before the @ is a connection's id


def _tables(sql: str, sql_conn_id: str) -> list[tuple[str, str]]:
    """Namespace and name of every table that a query reads."""
    from halo_provider.compat import SQLParser  # noqa: PLC0415 -- only where OpenLineage asks

    connection = BaseHook.get_connection(sql_conn_id)
    port = f":{connection.port}" if connection.port else ""
    namespace = f"{connection.conn_type}://{connection.host or ''}{port}"
    found = SQLParser(dialect=connection.conn_type).parse(sql)
    schema = f"{connection.schema}." if connection.schema else ""
    return [(namespace, f"{schema}{table.qualified_name}") for table in (found.in_tables if found else [])]
