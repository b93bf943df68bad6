"""A DAG file over rows that hold personal values, for tasks that run in a process of their own."""

PRIVATE_DAG = """
from datetime import UTC, datetime
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.submission import Entry, Submission, User

PRIVATE = Submission(
    name="private",
    key="id",
    user=User(id="user", traits={{"name": "name", "email": "email"}}),
    message="{{text}}",
    context={{"case": Entry(label="Case", fields=["text", "note"])}},
)
with DAG({dag_id!r}, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
    source = {{"csv_path": {csv_path!r}, "submission": PRIVATE, "max_attempts": 1, "concurrency": 2}}
    HaloIdentifyOperator(task_id="identify", **source) >> HaloTicketOperator(
        task_id="tickets", trigger_rule="all_done", **source
    )
"""
