"""Use the installed wheel as a stranger would: Airflow knows the provider, and rows become tickets."""

import asyncio
import tempfile
from importlib.util import find_spec
from pathlib import Path

from airflow.providers_manager import ProvidersManager

import halo_provider
from halo_provider.client.client import HaloClient
from halo_provider.delivery.delivery import deliver
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.simulator import EXAMPLE_WIDGET_KEY, Simulator, serving
from halo_provider.sources.lists import ListSource
from halo_provider.submission import Submission

ROWS = [
    {"submission_id": n, "applicant_id": n, "applicant_name": "A", "company": "C", "type": "T", "details": "D"}
    for n in range(20)
]

if "site-packages" not in halo_provider.__file__:
    raise SystemExit(f"not the installed package: {halo_provider.__file__}")
if find_spec("halo_provider.demo"):
    raise SystemExit("the wheel holds the demo, which is a tool of the checkout")
if "halo" not in ProvidersManager().hooks or "airflow-provider-halo" not in ProvidersManager().providers:
    raise SystemExit("Airflow does not see the provider")


async def run(url: str) -> None:
    """Deliver the rows twice: the second time there is nothing to send."""
    ledger = Ledger.at_path(Path(tempfile.mkdtemp()) / "ledger.db")
    for expected in ("delivered", "already_delivered"):
        lease_holder = ledger.lease_holder("halo_default/application", task_instance=TaskInstanceRef())
        async with HaloClient(widget_key=EXAMPLE_WIDGET_KEY, base_url=url) as client:
            report = await deliver(
                ListSource(ROWS), submission=Submission.application(), client=client, lease_holder=lease_holder
            )
        if report.summary()[expected] != len(ROWS):
            raise SystemExit(f"expected {len(ROWS)} rows {expected}: {report}")


simulator = Simulator()
with serving(simulator) as origin:
    asyncio.run(run(origin))
print(f"wheel {halo_provider.__version__}: {len(simulator.chats)} tickets from {len(ROWS)} rows, sent twice")
