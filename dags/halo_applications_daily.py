"""Each day's applications, read from a database, become Halo tickets; history follows by backfill.

* **window** says which slice of time the run is about.
* **identify** tells Halo who the applicants of that slice are.
* **tickets** sends their applications, and refuses to begin where there are more than any day can bring.

**Schedule: daily at midnight UTC**, for the day that has just ended. `sql/applications_daily.sql` selects
`start <= submitted_at < end`, on SQLite, PostgreSQL, MySQL and MariaDB alike, with

| the run | its window |
|---|---|
| scheduled or backfilled | its data interval, one day |
| triggered with `start` and `end` | exactly those |
| triggered with a logical date | the last whole day before it |
| triggered without | the last whole day |

**History:** `airflow backfill create --dag-id halo_applications_daily --from-date 2026-01-01 --to-date 2026-03-31`, or
*Backfill* in the trigger dialog. Running again is always safe: a row is known by its `submission_id`, and a row that
was delivered is never sent again. Two traps, and why this DAG does not fall into them:

* *Activity dates.* Telling Halo about users one by one marks them as active **now**. In a backfill `mode="auto"` sends
  bulk updates instead, which leave everybody's last activity alone; they need the connection's `identity_secret`.
* *Zero-length intervals.* A plain cron string gives every run an interval of no length, in which nothing ever happened.
  `CronDataIntervalTimetable` gives it the whole day.

**Connections:** `halo_default`, and `halo_source_db`, whose table keeps its times in UTC (in SQLite as text that
its own functions make, `2026-11-01 09:15:00`).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow import DAG

from halo_provider.compat import CronDataIntervalTimetable, Param, task
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.operators.window import Window, run_window
from halo_provider.submission import Company, Submission, User

APPLICATION = Submission.application(
    user=User(
        id="applicant_id",
        traits={"name": "applicant_name", "email": "contact_email", "role": "contact_role"},
    ),
    company=Company(id="company_id", traits={"name": "company", "country": "country"}),
)


@task
def window(**context: Any) -> Window:
    return run_window(context)


with DAG(
    dag_id="halo_applications_daily",
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
    applications = {
        "sql": "sql/applications_daily.sql",
        "sql_conn_id": "halo_source_db",
        "sql_parameters": window(),
        "submission": APPLICATION,
    }
    identify = HaloIdentifyOperator(task_id="identify", mode="auto", **applications)
    tickets = HaloTicketOperator(task_id="tickets", max_submissions=5_000, **applications)

    identify >> tickets
