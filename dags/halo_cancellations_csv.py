"""Cancellations become Halo tickets, and a person sees every one of them.

Every row of `data/cancellations.csv` asks Halo for a human: nobody should leave without having been spoken to.

The submission is the ready-made `Submission.cancellation`, which knows the label, the type and the fields that
Halo's documentation recommends, with three parts of it replaced:

* `user` adds the customer's name and e-mail address, for **identify** to tell Halo;
* `company` adds the company the customer belongs to;
* `escalate=True` adds "Please create a support ticket." to the message, which makes a ticket at once where the
  agent's escalation is on. Without it the agent decides. Several cancellations of one customer become one
  ticket: Halo merges what arrives while a ticket of that customer is open.

**Schedule: none.** The file is an export that arrives when somebody makes one. Running again is always safe: a row
is known by its `cancellation_id`, and a row that was delivered is never sent again.

**Connection:** `halo_default`, with the widget key as its password.
"""

from datetime import timedelta
from pathlib import Path

from airflow import DAG

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.submission import Company, Submission, User

CANCELLATIONS = str(Path(__file__).parent / "data" / "cancellations.csv")

CANCELLATION = Submission.cancellation(
    user=User(id="customer_id", traits={"name": "customer_name", "email": "customer_email"}),
    company=Company(id="company_id", traits={"name": "company_name", "contract_term": "contract_term"}),
    escalate=True,
)

with DAG(
    dag_id="halo_cancellations_csv",
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    identify = HaloIdentifyOperator(task_id="identify", csv_path=CANCELLATIONS, submission=CANCELLATION)
    tickets = HaloTicketOperator(task_id="tickets", csv_path=CANCELLATIONS, submission=CANCELLATION)

    identify >> tickets
