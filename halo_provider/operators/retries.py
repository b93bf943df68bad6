"""Ends a task's retries where another try cannot help: by its retry policy, or where Airflow has none by its error."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from halo_provider.compat import AirflowFailException
from halo_provider.exceptions import HaloError

try:
    from halo_provider.operators.retry_policy import HaloRetryPolicy
except ImportError:  # retry policies came with Airflow 3.3
    HaloRetryPolicy = None  # type: ignore[assignment,misc]

if TYPE_CHECKING:
    from collections.abc import Callable

    from halo_provider.compat import BaseOperator

_ResultT = TypeVar("_ResultT")


def use_retry_policy(operator: BaseOperator) -> None:
    """Give the operator `HaloRetryPolicy`, unless it has a policy or Airflow knows none."""
    if HaloRetryPolicy is not None and operator.retry_policy is None:
        operator.retry_policy = HaloRetryPolicy()


def ends_retries(execute: Callable[..., _ResultT]) -> Callable[..., _ResultT]:
    """Make AirflowFailException of an error that no retry can help, where no `HaloRetryPolicy` says so."""

    @wraps(execute)
    def wrapper(self: BaseOperator, *args: Any, **kwargs: Any) -> _ResultT:
        try:
            return execute(self, *args, **kwargs)
        except HaloError as error:
            has_policy = HaloRetryPolicy is not None and isinstance(self.retry_policy, HaloRetryPolicy)
            if error.retry_can_help or has_policy:
                raise
            final = AirflowFailException(str(error))
            vars(final).update(vars(error))
            raise final from error

    return wrapper
