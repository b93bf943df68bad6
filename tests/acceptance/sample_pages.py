"""The pages over examples, on Airflow's own API server: ``python -m tests.acceptance.sample_pages [FOLDER]``.

Renews the pictures of the README, or with a folder takes every page in light and dark, 1400 and 800 pixels wide.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
from sqlalchemy import insert

from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.delivery_records import DeliveryCounts, DeliveryRecords
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.statuses import LedgerStatus
from halo_provider.ledger.tables import deliveries, submissions
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, serving
from tests.acceptance.browsers import CHROMIUM_FLAGS, chromium

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LOOKS = ("light", "dark")
WIDTHS = (1400, 800)  # pixels
DAG, RUN, NAMESPACE = "applications", "scheduled__2026-11-28T06:00:00+00:00", "halo_default/application"
NO_ANSWER = "POST /chat: no answer within 120 s; Halo may have it"
INVALID = "POST /chat: Halo answered 422: user.email is not a valid e-mail address"
AUTH_MANAGER = "tests.acceptance.auth_manager.OneDagAuthManager"  # by name: Airflow must not be imported too soon
USER = "admin"
ONE_DAG_USER = f"only_{DAG}"
PASSWORD = "password of admin"


def _rows_of(dag_id: str, **query: str) -> str:
    return f"dags/{dag_id}/rows?{urlencode(query)}"


PAGES = {
    "halo-overview": "",
    "halo-run": _rows_of(DAG, run_id=RUN),
    "halo-row": f"dags/{DAG}/row?{urlencode({'namespace': NAMESPACE, 'row_key': 'APP-1003'})}",
    "halo-dag": _rows_of(DAG, sort="-updated_at"),
    "halo-cause": _rows_of(DAG, run_id=RUN, status="rejected", error=INVALID),
    "halo-requeue": f"dags/{DAG}/decision?{urlencode({'action': 'requeue', 'run_id': RUN, 'status': 'in_doubt'})}",
    "halo-resolve": f"dags/{DAG}/decision?{urlencode({'action': 'resolve', 'run_id': RUN})}",
    "halo-missing": f"dags/{DAG}/row?{urlencode({'namespace': NAMESPACE, 'row_key': 'nothing'})}",
}
PAGES_FOR_ONE_DAG = {  # of a person who may see DAG, and nothing else
    "halo-overview-of-one": "",
    "halo-refusal": "dags/cancellations/rows",
}
IN_README = {"halo-overview", "halo-run", "halo-row"}


def fill(ledger: Ledger) -> None:
    """Deliveries of two DAGs: one with rows in doubt and rejected, and one that runs."""
    now = ledger.now()
    records = DeliveryRecords(ledger)

    def delivery(dag_id: str, run_id: str, hours: float, counts: DeliveryCounts, *, ended: bool = True) -> None:
        owner = f"{dag_id} {run_id}"
        name = {"applications": "application", "cancellations": "cancellation"}[dag_id]
        task_instance = TaskInstanceRef(dag_id=dag_id, run_id=run_id, task_id="tickets", map_index=-1, try_number=1)
        records.begin(owner, namespace=f"halo_default/{name}", task_instance=task_instance, total=counts.total)
        records.update(owner, counts, ended=ended)
        started = now - timedelta(hours=hours)
        ledger.transaction(
            lambda db: db.execute(
                deliveries.update().where(deliveries.c.owner == owner).values(started_at=started, updated_at=now)
            )
        )

    for day in range(8, 1, -1):
        counts = DeliveryCounts(delivered=180 + 9 * day, rejected=day % 3, requests=190 + 9 * day, seconds=9.0)
        delivery(DAG, f"scheduled__2026-11-{28 - day}T06:00:00+00:00", 24.0 * day, counts)
        counts = DeliveryCounts(delivered=60 + 4 * day, already_delivered=20, requests=60 + 4 * day, seconds=4.0)
        delivery("cancellations", f"scheduled__2026-11-{28 - day}T07:00:00+00:00", 24.0 * day - 1, counts)
    troubled = DeliveryCounts(
        delivered=171,
        rejected=7,
        in_doubt=6,
        requests=190,
        refused=4,
        request_seconds=86.0,
        seconds=12.0,
        error=NO_ANSWER,
        unlisted=[("row 42", "submission_id: the key is empty")],
    )
    delivery(DAG, RUN, 3.0, troubled)
    running = DeliveryCounts(delivered=310, rejected=12, requests=330, request_seconds=140.0, seconds=21.0, total=900)
    delivery("cancellations", "manual__2026-11-28T09:00:00+00:00", 0.01, running, ended=False)
    statuses = [(LedgerStatus.IN_DOUBT, NO_ANSWER)] * 6 + [(LedgerStatus.REJECTED, INVALID)] * 4
    statuses += [(LedgerStatus.REJECTED, "POST /chat: Halo answered 400: the agent does not exist")] * 2
    statuses += [(LedgerStatus.DELIVERED, None)] * 171
    rows = [
        {
            "namespace": NAMESPACE,
            "row_key": f"APP-{1000 + number}",
            "status": status,
            "user_id": f"applicant_{number % 50}",
            "session_id": f"ses_example_{number:024}" if status is LedgerStatus.DELIVERED else None,
            "attempts": 1 + number % 2,
            "error": error,
            "dag_id": DAG,
            "run_id": RUN,
            "task_id": "tickets",
            "map_index": -1,
            "try_number": 1,
            "created_at": now - timedelta(hours=3),
            "updated_at": now - timedelta(hours=3) + timedelta(seconds=number),
        }
        for number, (status, error) in enumerate(statuses)
    ]
    for number in range(310 + 12 + 40):  # of the delivery that runs; and of a DAG that has no delivery's record
        is_ours = number < 310 + 12  # as the delivery counts them
        is_rejected = number < 12
        rows.append(
            {
                **rows[-1],
                "namespace": "halo_default/cancellation" if is_ours else "halo_default/renewal",
                "row_key": f"{'CAN' if is_ours else 'REN'}-{1000 + number}",
                "status": LedgerStatus.REJECTED if is_rejected else LedgerStatus.DELIVERED,
                "session_id": None if is_rejected else f"ses_example_{number:024}",
                "error": "POST /chat: Halo answered 422: the ticket is closed" if is_rejected else None,
                "dag_id": "cancellations" if is_ours else "renewals",
                "run_id": "manual__2026-11-28T09:00:00+00:00",
                "created_at": now - timedelta(seconds=40),
                "updated_at": now - timedelta(seconds=40 - number // 16),
            }
        )
    ledger.transaction(lambda db: db.execute(insert(submissions), rows))
    admin = LedgerAdmin(ledger, actor="example")
    admin.requeue(RowFilter(row_keys=("APP-1003",)), reason="not in Halo", decision="e" * 32)
    admin.undo("e" * 32, dag_ids=(DAG,))


def settings(home: Path) -> dict[str, str]:
    """The environment of an Airflow with an administrator and somebody with one DAG; its connection leads into Halo."""
    passwords = home / "example_passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys((USER, ONE_DAG_USER), PASSWORD)))
    connection = {
        "conn_type": "halo",
        "host": "http://127.0.0.1:1",
        "password": EXAMPLE_WIDGET_KEY,
        "extra": {
            "dashboard_url": "https://dashboard.example.com",
            "user_url": "https://dashboard.example.com/users/{user_id}",
            "session_url": "https://dashboard.example.com/sessions/{session_id}",
        },
    }
    return {
        "AIRFLOW_CONN_HALO_DEFAULT": json.dumps(connection),
        "AIRFLOW__CORE__AUTH_MANAGER": AUTH_MANAGER,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin,{ONE_DAG_USER}:op",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
    }


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Airflow's API server over the examples in `home`; yields its address."""
    with closing(Ledger.at_path(home / "halo_ledger.db")) as ledger:
        fill(ledger)
    from airflow.api_fastapi.app import create_app  # noqa: PLC0415 -- reads the configuration

    with serving(create_app(apps="core")) as url:
        yield url


@contextmanager
def opened(browser: Any, url: str, *, look: str, width: int, user: str = USER) -> Iterator[Any]:
    """A page of a browser in which somebody is logged in."""
    login = httpx.post(f"{url}/auth/token", json={"username": user, "password": PASSWORD}, timeout=60.0)
    token = login.raise_for_status().json()["access_token"]
    context = browser.new_context(viewport={"width": width, "height": 1200}, color_scheme=look)
    context.set_default_timeout(60_000)
    context.add_cookies([{"name": "_token", "value": token, "url": url}])
    yield context.new_page()
    context.close()


def take(driver: Any, url: str, folder: Path | None) -> None:
    """Take every page into a folder, or renew the pictures of the README."""
    browser = driver.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
    for look in LOOKS if folder else LOOKS[:1]:
        for width in WIDTHS if folder else WIDTHS[:1]:
            for user, pages in ((USER, PAGES), (ONE_DAG_USER, PAGES_FOR_ONE_DAG)):
                with opened(browser, url, look=look, width=width, user=user) as page:
                    for name in pages if folder else IN_README & pages.keys():
                        page.goto(f"{url}/halo/{pages[name]}")
                        place = folder / f"{name}-{look}-{width}.png" if folder else IMAGES / f"{name}.png"
                        page.screenshot(path=str(place), full_page=folder is not None)
    browser.close()


def main() -> None:
    """Serve the examples, and take the pictures."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 -- needs a browser

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(prefix="halo-pages-") as home:
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **settings(Path(home))}
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)
        with served(Path(home)) as url, sync_playwright() as driver:
            take(driver, url, folder)


if __name__ == "__main__":
    main()
