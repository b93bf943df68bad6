"""x"""
import os
import signal
import threading
import time
from datetime import UTC, datetime

import pytest

from halo_provider.simulator import Fault
from tests.conftest import IDENTITY_SECRET
from tests.provider.conftest import Run

SRC = """
from airflow.sdk import DAG
from datetime import datetime, UTC
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.submission import Submission, User
with DAG("sup", schedule=None, start_date=datetime(2026,1,1,tzinfo=UTC)):
    HaloTicketOperator(task_id="tickets", submission=Submission(name="note", key="id", user=User(id="user"), message="{text}"),
       rows=[{"id": str(i), "user": f"u{i}", "text": "PRIVATE"} for i in range(50)], concurrency=4)
"""
@pytest.mark.parametrize("kill", [False, True])
def test_sup(run, halo, halo_url, connect, ledger, airflow_home, kill):
    t=time.time()
    connect(extra={"identity_secret": IDENTITY_SECRET})
    f = airflow_home/"dags"/"sup.py"; f.write_text(SRC)
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.dag_processing.bundles.manager import DagBundlesManager; DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder=f, bundle_name="dags-folder")
    sync_bag_to_db(bag, "dags-folder", None)
    dag = bag.dags["sup"]
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType
    now = datetime.now(UTC)
    scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    dag_run = scheduled.create_dagrun(run_id=f"manual__{now.isoformat()}", logical_date=now, data_interval=(now, now), run_after=now,
            run_type=DagRunType.MANUAL, triggered_by=DagRunTriggeredByType.TEST, state=DagRunState.RUNNING)
    ti = dag_run.get_task_instance("tickets"); ti.try_number += 1; ti.set_state("queued")
    from airflow.executors import workloads
    from airflow.executors.workloads import BundleInfo
    from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor, supervise_task
    w = workloads.TaskInstance.model_validate(ti, from_attributes=True) if hasattr(workloads,"TaskInstance") else None
    if kill:
        halo.always("/chat", Fault.silence())
        def k():
            while not halo.chats_in_flight: time.sleep(.05)
            import psutil
            c = psutil.Process().children()
            print("children", c)
            k.t = time.time()
            os.kill(c[0].pid, signal.SIGTERM)
        threading.Thread(target=k).start()
    rc = supervise_task(ti=w, bundle_info=BundleInfo(name="dags-folder"), dag_rel_path="sup.py", token="", client=InProcessTestSupervisor._api_client(dag), log_path="sup/x.log")
    r = Run("sup", dag_run.run_id)
    print(rc, r.state("tickets"), r.xcom("tickets"))
    if kill: print("kill took", time.time()-k.t)
    for f in (airflow_home/"logs").rglob("*"):
        if f.is_file(): print(f, f.read_text()[:9000])
    print(time.time()-t, ledger())
