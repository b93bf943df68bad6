"""Each day's applications become tickets, each once for certain, and the DAG ends when all of them are in Halo's inbox.

The twin of `halo_applications_daily`, whose documentation tells about windows, backfills and their two traps. What is
different here is that it also reads, which a person allows once, with `halo-login --conn-id halo_default`:

* `on_in_doubt="ask"`: where an answer was lost, or a worker died, **tickets** looks the row up in Halo. What Halo has
  is not sent again, and what it does not have is. `reference=True` lets it find a row without comparing texts. Where
  Halo cannot be asked, the row is held, and the task ends red.
* **created** waits until each row has its ticket. It waits in the triggerer, where it takes no worker. Halo's agent may
  answer an application without a ticket: more than a tenth of the day's rows without one ends the task red.

Tickets and their statuses then stand in the ledger, beside the rows; `until="resolved"` would wait for the people, too.

**Schedule: daily at midnight UTC**, for the day that has just ended.

**Connections:** `halo_default`, whose sign-in is kept in the ledger's database, encrypted with Airflow's `fernet_key`,
and `halo_source_db`. **Needs** `airflow-provider-halo[read]` and a triggerer.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import DAG

from halo_provider.compat import CronDataIntervalTimetable, task
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.operators.window import Window, run_window
from halo_provider.sensors.halo import HaloTicketSensor
from halo_provider.submission import Company, Submission, User

APPLICATION = Submission.application(
    user=User(
        id="applicant_id",
        traits={"name": "applicant_name", "email": "contact_email", "role": "contact_role"},
    ),
    company=Company(id="company_id", traits={"name": "company", "country": "country"}),
    reference=True,
)


@task
def window(**context: Any) -> Window:
    return run_window(context)


with DAG(
    dag_id="halo_applications_followed",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),  # the first day that a backfill reaches
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    applications = {
        "sql": "sql/applications_daily.sql",
        "sql_conn_id": "halo_source_db",
        "sql_parameters": window(),
        "submission": APPLICATION,
    }
    identify = HaloIdentifyOperator(task_id="identify", mode="auto", **applications)
    tickets = HaloTicketOperator(
        task_id="tickets", max_submissions=5_000, on_in_doubt="ask", ask_else="hold", **applications
    )
    created = HaloTicketSensor(
        task_id="created",
        until="created",
        poke_interval=60,
        ticket_within=600,  # seconds in which a row's ticket can appear
        max_without_ticket=0.1,
        timeout=timedelta(hours=2).total_seconds(),
    )

    identify >> tickets >> created
