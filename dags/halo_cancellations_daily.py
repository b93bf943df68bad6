"""Each day's cancellations, read from a database, become Halo tickets, and a person sees every one of them.

The twin of `halo_applications_daily`, whose documentation tells about windows, backfills and their two traps. What is
different here:

* `escalate=True` asks Halo for a human: nobody should leave without having been spoken to.
* Cancelling is rare, so **tickets** refuses far earlier: a thousand in a day is an outage or a mistake in the query,
  and neither is mended by a thousand tickets.

**Schedule: daily at midnight UTC**, for the day that has just ended; history follows by
`airflow backfill create --dag-id halo_cancellations_daily --from-date 2026-01-01 --to-date 2026-03-31`.

**Connections:** `halo_default`, with its `identity_secret` for backfills, and `halo_source_db`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import DAG

from halo_provider.compat import CronDataIntervalTimetable, Param, task
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.operators.window import Window, run_window
from halo_provider.submission import Company, Submission, User

CANCELLATION = Submission.cancellation(
    user=User(id="customer_id", traits={"name": "customer_name", "email": "customer_email"}),
    company=Company(id="company_id", traits={"name": "company_name", "contract_term": "contract_term"}),
    escalate=True,
)


@task
def window(**context: Any) -> Window:
    return run_window(context)


with DAG(
    dag_id="halo_cancellations_daily",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),  # the first day that a backfill reaches
    catchup=False,
    params={
        "start": Param(
            None,
            type=["null", "string"],
            title="From",
            description="First moment of another window, such as 2026-11-01 or 2026-11-01T12:00+01:00",
        ),
        "end": Param(
            None,
            type=["null", "string"],
            title="Until",
            description="First moment after that window; without a zone it is UTC. Give both or neither.",
        ),
    },
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    cancellations = {
        "sql": "sql/cancellations_daily.sql",
        "sql_conn_id": "halo_source_db",
        "sql_parameters": window(),
        "submission": CANCELLATION,
    }
    identify = HaloIdentifyOperator(task_id="identify", mode="auto", **cancellations)
    tickets = HaloTicketOperator(task_id="tickets", max_submissions=1_000, **cancellations)

    identify >> tickets
