"""Partnership applications become Halo tickets.

Every row of `data/applications.csv` becomes one chat request to Halo, sent in the applicant's name with the
application as context, so that the agent opens a ticket which somebody can act on.

* **identify** tells Halo who the applicants are and which companies they work for, each of them once.
* **tickets** sends the applications. Its XCom holds the counts of the run and the chat session of every row.

**Schedule: none.** The file is an export that arrives when somebody makes one, so a run starts by hand, over REST
or from the DAG that makes the export. Running again is always safe: a row is known by its `submission_id`,
and a row that was delivered is never sent again. A growing file could therefore as well be read `@daily`.

**Connection:** `halo_default`, with the widget key as its password.
"""

from datetime import timedelta
from pathlib import Path

from airflow import DAG

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.submission import Company, Entry, Submission, User

APPLICATIONS = str(Path(__file__).parent / "data" / "applications.csv")

APPLICATION = Submission(
    name="application",
    key="submission_id",
    user=User(
        id="applicant_id",
        traits={"name": "contact_name", "email": "contact_email", "role": "contact_role"},
    ),
    company=Company(
        id="company_id",
        traits={"name": "company_name", "country": "country"},
    ),
    message="New {application_type} application from {contact_name} at {company_name}. Please review and follow up.",
    context={
        "application": Entry(
            label="Partnership Application",
            type="custom",
            fields=["company_name", "application_type", "annual_revenue", "use_case", "submitted_at"],
        ),
    },
)

with DAG(
    dag_id="halo_applications_csv",
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    identify = HaloIdentifyOperator(task_id="identify", csv_path=APPLICATIONS, submission=APPLICATION)
    tickets = HaloTicketOperator(task_id="tickets", csv_path=APPLICATIONS, submission=APPLICATION)

    identify >> tickets
