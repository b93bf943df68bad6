"""A delivery's metrics and its span, for whoever runs Airflow with StatsD, Datadog or OpenTelemetry."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from halo_provider.compat import stats
from halo_provider.ledger.delivery_records import DeliveryCounts
from halo_provider.ledger.tables import DELIVERY_COUNTS

try:
    from opentelemetry import trace
except ImportError:  # Airflow's otel extra is not installed
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from halo_provider.ledger import TaskInstanceRef


class Metrics:
    """
    Counts in Airflow's metrics, tagged with ``dag_id`` and ``task_id`` and nothing of higher cardinality.

    Counters, in rows: ``halo.delivered``, ``halo.already_delivered``, ``halo.duplicate``, ``halo.rejected``,
    ``halo.in_doubt``, ``halo.failed``, ``halo.not_attempted``; in requests: ``halo.requests`` and ``halo.refused``
    (answers of 429). Timer: ``halo.request_time``, the mean time of the requests since the last report.

    :param attempt: whose metrics they are
    """

    def __init__(self, task_instance: TaskInstanceRef) -> None:
        self._tags = {"dag_id": task_instance.dag_id, "task_id": task_instance.task_id}
        self._reported = DeliveryCounts()

    def __call__(self, counts: DeliveryCounts, *, ended: bool) -> None:  # noqa: ARG002 -- a watcher's signature
        """Count what has come since the last report."""
        before, self._reported = self._reported, counts
        for name in DELIVERY_COUNTS:
            if more := getattr(counts, name) - getattr(before, name):
                stats.incr(f"halo.{name}", more, tags=self._tags)
        if requests := counts.requests - before.requests:
            seconds = (counts.request_seconds - before.request_seconds) / requests
            stats.timing("halo.request_time", timedelta(seconds=seconds), tags=self._tags)


@contextmanager
def delivery_span(namespace: str, task_instance: TaskInstanceRef) -> Iterator[dict[str, Any]]:
    """
    Trace the block as the span ``halo.delivery``, where OpenTelemetry is installed and set up.

    What the block puts into the mapping it gets, numbers or text, become attributes ``halo.<name>``.

    :param namespace: connection id and submission name, of which there are few
    :param attempt: whose span it is
    """
    attributes: dict[str, Any] = {}
    if trace is None:
        yield attributes
        return
    about = {
        "halo.namespace": namespace,
        "airflow.dag_id": task_instance.dag_id,
        "airflow.task_id": task_instance.task_id,
    }
    known = {name: value for name, value in about.items() if value is not None}
    with trace.get_tracer("halo_provider").start_as_current_span("halo.delivery", attributes=known) as span:
        try:
            yield attributes
        finally:
            span.set_attributes({f"halo.{name}": value for name, value in attributes.items()})
