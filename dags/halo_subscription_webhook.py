"""One webhook event becomes one Halo ticket, however often the event arrives.

Whatever receives your billing system's webhooks passes them on as they are, over Airflow's REST API:

    POST /api/v2/dags/halo_subscription_webhook/dagRuns
    {"logical_date": null,
     "conf": {"id": "evt_1001", "type": "subscription.cancelled",
              "data": {"customer": {"id": "usr_2001", "name": "Ada Example"},
                       "plan": "Growth", "reason": "Too expensive", "mrr_lost": "199.00",
                       "cancelled_at": "2026-11-09T11:19:00Z"}}}

Webhooks are delivered at least once. Here the event's `id` is the row's key, and `HaloHook.deliver` goes through the
same ledger as the operators do: the second time, the event is found delivered, and nothing is sent.

Events of another type skip the task, with the reason in its log. An event that lacks something fails at once, without
a retry, and says what is missing.

**Schedule: none.** Every event is a run of its own.

**Connection:** `halo_default`, with the widget key as its password.
"""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from airflow import DAG
from pydantic import BaseModel, ValidationError

from halo_provider.compat import AirflowFailException, AirflowSkipException, task
from halo_provider.hooks.halo import HaloHook
from halo_provider.submission import Submission

CANCELLED = "subscription.cancelled"

CANCELLATION = Submission.cancellation(name="cancelled_subscription", key="event_id", escalate=True)


class Customer(BaseModel):
    """Who cancelled."""

    id: str
    name: str


class Cancellation(BaseModel):
    """What was cancelled, and why."""

    customer: Customer
    plan: str
    reason: str
    mrr_lost: Decimal
    cancelled_at: datetime


class Event(BaseModel):
    """The run's conf; whatever else the sender puts into it is ignored."""

    id: str
    type: Literal["subscription.cancelled"]
    data: Cancellation


@task
def ticket(**context: Any) -> dict[str, Any]:
    event = event_of(context["dag_run"].conf or {})
    row = {
        "event_id": event.id,
        "customer_id": event.data.customer.id,
        "customer_name": event.data.customer.name,
        **event.data.model_dump(exclude={"customer"}),
    }
    return HaloHook().deliver([row], submission=CANCELLATION)


def event_of(conf: dict[str, Any]) -> Event:
    if conf.get("type", CANCELLED) != CANCELLED:
        raise AirflowSkipException(f"only {CANCELLED} makes a ticket, not {conf['type']}")
    try:
        return Event.model_validate(conf)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise AirflowFailException(f"the run's conf is no {CANCELLED} event; {'; '.join(wrong)}") from None


with DAG(
    dag_id="halo_subscription_webhook",
    schedule=None,
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["halo", "example"],
    doc_md=__doc__,
):
    ticket()
