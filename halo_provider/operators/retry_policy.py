"""When Airflow should run a task again after Halo's errors. Needs Airflow 3.3, where retry policies came."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from halo_provider.compat import RetryDecision, RetryPolicy
from halo_provider.exceptions import DeliveryIncompleteError, HaloCallError, HaloError

if TYPE_CHECKING:
    from halo_provider.compat import Context


class HaloRetryPolicy(RetryPolicy):
    """Fails at once where another try cannot help, and comes back when Halo asked to."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 -- Airflow's signature
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Decide by the error's own facts; everything unknown is Airflow's to decide."""
        if isinstance(exception, HaloError) and not exception.retry_can_help:
            return RetryDecision.fail(reason=str(exception))
        if isinstance(exception, HaloCallError | DeliveryIncompleteError) and exception.retry_after:
            return RetryDecision.retry(
                delay=timedelta(seconds=exception.retry_after), reason="Halo asked to come back then"
            )
        return RetryDecision.default()
