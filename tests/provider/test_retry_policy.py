"""HaloRetryPolicy: no retry where it cannot help, a later one where Halo asks for it, else Airflow's own."""

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException

from halo_provider.exceptions import (
    DeliveryIncompleteError,
    HaloAuthenticationError,
    HaloConfigurationError,
    HaloConnectionError,
    HaloPermissionError,
    HaloRateLimitError,
    HaloRedirectError,
    HaloRejectedError,
    HaloServerError,
    LedgerError,
    RowsRejectedError,
    SourceError,
    TooManySubmissionsError,
)
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.operators.retry_policy import HaloRetryPolicy
from halo_provider.simulator import Fault, Simulator
from tests.provider.notes import NOTE, rows
from tests.provider.runs import Attempt, Connect


def incomplete(*, retry_after: float | None) -> DeliveryIncompleteError:
    """A run that left rows over."""
    return DeliveryIncompleteError(failed=1, in_doubt=0, not_attempted=2, reason=None, retry_after=retry_after)


def decide(error: BaseException) -> RetryDecision:
    """What the policy says after a first try of four."""
    return HaloRetryPolicy().evaluate(error, try_number=1, max_tries=3)


@pytest.mark.parametrize(
    "error",
    [
        HaloAuthenticationError("/chat", status=401, message="no"),
        HaloPermissionError("/chat", status=403, message="no"),
        HaloRedirectError("/chat", status=302, message="elsewhere"),
        HaloRejectedError("/chat", status=422, message="no"),
        HaloConfigurationError("timeout must be more than 0"),
        RowsRejectedError(rejected=1, read=2, first="row 2: no key", rejects_path=None),
        TooManySubmissionsError(would_send=3, max_submissions=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_a_retry_cannot_help_fails_the_task_at_once(error: Exception) -> None:
    """Somebody has to change something first; the reason is the error's own text."""
    assert decide(error) == RetryDecision.fail(reason=str(error))


@pytest.mark.parametrize(
    "error",
    [
        HaloRateLimitError("/chat", status=429, message="later", retry_after=1_200.0),
        HaloServerError("/chat", status=503, message="later", retry_after=1_200.0),
        incomplete(retry_after=1_200.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_retry_comes_when_halo_asks_for_it(error: Exception) -> None:
    """A Retry-After that was too long to wait for inside the task."""
    decision = decide(error)
    assert decision.action == RetryDecision.retry().action
    assert decision.retry_delay == timedelta(minutes=20)


@pytest.mark.parametrize(
    "error",
    [
        incomplete(retry_after=None),
        HaloServerError("/chat", status=500, message="oops"),
        HaloConnectionError("/chat", sent=False, reason="refused"),
        LedgerError("the ledger cannot be used: locked"),
        SourceError("applications.csv: No such file or directory"),
        AirflowException("something else"),
        KeyError("a defect"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_left_to_airflows_retries(error: Exception) -> None:
    """The task's own retries and retry_delay hold."""
    assert decide(error) == RetryDecision.default()


@pytest.mark.parametrize("operator", [HaloIdentifyOperator, HaloTicketOperator])
def test_operators_have_the_policy(operator: Any) -> None:
    """Nobody has to think of it."""
    assert isinstance(operator(task_id="task", submission=NOTE, rows=[]).retry_policy, HaloRetryPolicy)


def test_policy_of_the_dag_author_is_kept() -> None:
    """The operators' own is a default, and no more."""

    class Stubborn(RetryPolicy):
        def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> Any:
            return RetryDecision.retry()

    policy = Stubborn()
    assert HaloTicketOperator(task_id="task", submission=NOTE, rows=[], retry_policy=policy).retry_policy is policy


def test_long_retry_after_delays_the_next_try_of_a_ticket_task(dag: DAG, attempt: Attempt, halo: Simulator) -> None:
    """A wait of more than five minutes is Airflow's: the slot is free at once, and retry_delay is overruled."""
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=900)])
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        rows=rows(2),
        concurrency=1,
        retries=2,
        retry_delay=timedelta(seconds=5),
    )
    result = attempt(dag, "tickets")
    assert result.state("tickets") == "up_for_retry"
    assert result.task("tickets").retry_delay_override == pytest.approx(900, abs=1)
    assert result.xcom("tickets")["not_attempted"] == 2
    assert len(halo.requests) == 1


def test_long_retry_after_delays_the_next_try_of_an_identify_task(dag: DAG, attempt: Attempt, halo: Simulator) -> None:
    """The same for users and companies."""
    halo.script(path="/users/identify", faults=[Fault.rate_limited(retry_after=900, as_http_date=True)])
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=NOTE, rows=rows(2), concurrency=1, retries=2)
    result = attempt(dag, "identify")
    assert result.state("identify") == "up_for_retry"
    assert result.task("identify").retry_delay_override == pytest.approx(900, abs=2)
    assert len(halo.requests) == 1


def test_short_retry_after_is_waited_for_in_the_task(dag: DAG, attempt: Attempt, halo: Simulator) -> None:
    """The row is not sent before the time is over, and no attempt is used up."""
    halo.script(path="/chat", faults=[Fault.rate_limited(retry_after=0.3)])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(1), concurrency=1, max_attempts=1)
    result = attempt(dag, "tickets")
    assert result.xcom("tickets")["delivered"] == 1
    assert halo.requests[1].started - halo.requests[0].started >= 0.3


def test_permission_error_is_not_retried(dag: DAG, attempt: Attempt, halo: Simulator, connect: Connect) -> None:
    """A 403 is about the connection: the task fails with tries left."""
    halo.script(path="/chat", faults=[Fault.status(403, body={"error": "verification is enforced"})])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(2), concurrency=1, retries=3)
    assert attempt(dag, "tickets").state("tickets") == "failed"
    assert len(halo.requests) == 1


def test_rows_left_over_are_retried(dag: DAG, attempt: Attempt, halo: Simulator) -> None:
    """What another try may settle is tried again, after Airflow's own delay."""
    halo.script(path="/chat", faults=[Fault.drop_before_acceptance()])
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, rows=rows(1), max_attempts=1, retries=1)
    result = attempt(dag, "tickets")
    assert result.state("tickets") == "up_for_retry"
    assert result.task("tickets").retry_delay_override is None
