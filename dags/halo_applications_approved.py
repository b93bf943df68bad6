"""Partnership applications become Halo tickets, after a person has seen how many and has approved it.

* **plan** reads and checks `data/applications.csv`, and asks the ledger which rows were delivered before. It sends
  nothing. Its XCom holds the counts, and the first requests with their values masked.
* **approve** shows the counts and these examples, and waits for a person: under *Required Actions* in Airflow's UI. A
  person who rejects skips the next task, and nothing is sent.
* **tickets** sends the applications, and no more of them than were approved: where the file has more rows to send by
  then, it is red before the first is sent. It is the number that is approved, not the rows.

**Schedule: none.** A run starts when somebody wants to send, by hand or over REST. Running again is always safe: a row
that was delivered is never sent again, so that the next plan counts only what is new.

**Needs Airflow 3.1**, which came with tasks that wait for people; on an older one **approve** fails and says so.

**Connection:** `halo_default`, with the widget key as its password.
"""

from datetime import timedelta
from pathlib import Path

from airflow import DAG
from airflow.exceptions import AirflowException

from halo_provider.compat import AirflowFailException, task
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Entry, Submission, User

try:
    from airflow.providers.standard.operators.hitl import ApprovalOperator
except (ImportError, AirflowException):  # before Airflow 3.1
    ApprovalOperator = None


@task(task_id="approve")
def nobody_can_approve() -> None:
    """Stand in for the approval where Airflow has no tasks that wait for people."""
    raise AirflowFailException("a task that waits for a person needs Airflow 3.1 or later; nothing was sent")


APPLICATIONS = str(Path(__file__).parent / "data" / "applications.csv")

APPLICATION = Submission.application(
    user=User(id="applicant_id", traits={"name": "contact_name", "email": "contact_email"}),
    message="New {application_type} application from {contact_name} at {company_name}. Please review and follow up.",
    context={
        "application": Entry(
            label="Partnership Application",
            type="custom",
            fields=["company_name", "application_type", "annual_revenue", "use_case", "submitted_at"],
        ),
    },
)

WHAT_IS_PLANNED = """
{% set plan = ti.xcom_pull(task_ids="plan") %}
| read | to send | already delivered | duplicate | rejected | in doubt |
|---|---|---|---|---|---|
| {{ plan.read }} | **{{ plan.would_send }}** | {{ plan.already_delivered }} | {{ plan.duplicate }} | {{ plan.rejected }} | {{ plan.in_doubt }} |

The first requests, with their values masked:
{% for example in plan.examples %}
```json
{{ example | tojson(indent=2) }}
```
{% endfor %}
"""  # noqa: E501 -- a line of a table

with DAG(
    dag_id="halo_applications_approved",
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    plan = HaloTicketOperator(task_id="plan", csv_path=APPLICATIONS, submission=APPLICATION, dry_run=True)
    if ApprovalOperator is None:
        approve = nobody_can_approve()
    else:
        approve = ApprovalOperator(
            task_id="approve",
            subject="Send {{ ti.xcom_pull(task_ids='plan').would_send }} applications to Halo?",
            body=WHAT_IS_PLANNED,
        )
    tickets = HaloTicketOperator(
        task_id="tickets",
        csv_path=APPLICATIONS,
        submission=APPLICATION,
        max_submissions="{{ ti.xcom_pull(task_ids='plan').would_send }}",
    )

    plan >> approve >> tickets
