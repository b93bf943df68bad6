"""Sources and results on S3: moto's server answers as S3 does, and Amazon's provider asks it."""

import bz2
import gzip
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pandas as pd
import pytest
from airflow.sdk import DAG
from moto.server import ThreadedMotoServer

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, csv_text, rows
from tests.provider.runs import RunDag, Supervise
from tests.provider.stored import KINDS, parameter_of, stored_as
from tests.provider.summaries import chat_ids, counts

Put = Callable[[str, bytes], None]


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The address of an S3 with one bucket, which is called ``bucket``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def closed_port() -> int:
    """A loopback port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> Any:
    """Its client; the connection ``s3`` leads to it, and ``s3_gone`` to a port that nothing listens at."""
    for conn_id, url in (("S3", s3_url), ("S3_GONE", f"http://127.0.0.1:{closed_port}")):
        extra = {
            "endpoint_url": url,
            "region_name": "us-east-1",
            "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2},
        }
        connection = {"conn_type": "aws", "login": "example", "password": "example", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id}", json.dumps(connection))
    client = boto3.client(
        "s3", endpoint_url=s3_url, aws_access_key_id="example", aws_secret_access_key="example", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    for found in client.list_objects_v2(Bucket="bucket").get("Contents", []):
        client.delete_object(Bucket="bucket", Key=found["Key"])
    return client


@pytest.fixture
def put(s3: Any) -> Put:
    """Store an object in the bucket."""

    def put(key: str, content: bytes) -> None:
        s3.put_object(Bucket="bucket", Key=key, Body=content)

    return put


SUPERVISED = """
from airflow.sdk import DAG
from halo_provider.operators.halo import HaloTicketOperator
from tests.provider.notes import NOTE

with DAG("supervised_bucket", schedule=None):
    HaloTicketOperator(task_id="tickets", submission=NOTE, csv_path="s3://s3_gone@bucket/notes.csv")
"""


def test_bucket_that_cannot_be_reached_says_so_in_the_tasks_log(supervise: Supervise, s3: Any) -> None:
    """A real task process asks its supervisor for the connection from the thread that reads.

    It is the first test here, since fsspec refuses to work in the child of a process that has used it.
    """
    result, log = supervise(SUPERVISED, "tickets")
    assert result.state("tickets") == "failed"
    assert "Could not connect to the endpoint URL" in log
    assert "TaskGroup" not in log


def test_partitions_of_a_bucket_are_one_source(dag: DAG, run: RunDag, halo: Simulator, put: Put) -> None:
    """A pattern takes in the folders of days, and a rejected row says its file and line."""
    faulty = [rows(4)[2], {**rows(4)[3], "user": ""}]
    put("day=2/part-0.csv.bz2", bz2.compress(csv_text(faulty).encode()))
    put("day=1/part-0.csv.gz", gzip.compress(csv_text(rows(2)).encode()))
    put("day=1/part-0.txt", b"no part of it")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path="s3://s3@bucket/day=*/part-*.csv.*",
        concurrency=1,
        max_rejected=1,
    )
    assert counts(run(dag).xcom("tickets")) == {"delivered": 3, "rejected": 1}
    assert [chat.message for chat in halo.chats] == [row["text"] for row in rows(3)]


def test_rejects_and_results_are_stored_in_the_bucket(dag: DAG, run: RunDag, put: Put, s3: Any) -> None:
    """Under their names, with the file and the line of a row that was rejected."""
    put("notes.csv.gz", gzip.compress(csv_text([{**rows(1)[0], "user": ""}]).encode()))
    put("more.csv.gz", gzip.compress(csv_text(rows(2)[1:]).encode()))
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=["s3://s3@bucket/notes.csv.gz", "s3://s3@bucket/more.csv.gz"],
        max_rejected=1,
        rejects_path="s3://s3@bucket/rejects.csv",
        results_path="s3://s3@bucket/results.csv",
    )
    assert run(dag).state("tickets") == "success"
    stored = {
        name: s3.get_object(Bucket="bucket", Key=name)["Body"].read().decode()
        for name in ("rejects.csv", "results.csv")
    }
    assert "s3://s3@bucket/notes.csv.gz:2,user," in stored["rejects.csv"]
    assert stored["results.csv"].splitlines()[0] == "row_key,user_id,session_id,status,attempts"
    assert {line.split(",")[3] for line in stored["results.csv"].splitlines()[1:]} == {"delivered", "rejected"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_from_the_bucket(kind: str, dag: DAG, run: RunDag, halo: Simulator, put: Put) -> None:
    """The same rows make the same messages."""
    put(f"notes.{kind}", stored_as(kind, pd.DataFrame(rows(3))))
    source = {parameter_of(kind): f"s3://s3@bucket/notes.{kind}"}
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, **source)
    assert counts(run(dag).xcom("tickets")) == {"delivered": 3}
    assert chat_ids(halo) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://s3_gone@bucket/notes.csv", 'EndpointConnectionError: Could not connect to the endpoint URL: "http'),
        ("s3://s3_gone@bucket/*.csv", 'EndpointConnectionError: Could not connect to the endpoint URL: "http'),
        ("s3://s3@nobodys/notes.csv", ""),
        ("s3://s3@bucket/nothing.csv", "there is no such file"),
    ],
)
def test_bucket_that_cannot_be_read_says_so(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], s3: Any, path: str, words: str
) -> None:
    """With the path, in the storage's own words."""
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=path)
    result = run(dag)
    assert (result.state("tickets"), result.xcom("tickets")["read"]) == ("failed", 0)
    assert str(errors[0]).startswith(f"{path}: {words}")
    assert halo.requests == []


@pytest.mark.parametrize(
    ("parameter", "file"), [("rejects_path", "the rejects file"), ("results_path", "the results file")]
)
def test_bucket_that_cannot_be_written_says_so(
    *, dag: DAG, run: RunDag, errors: list[BaseException], s3: Any, parameter: str, file: str
) -> None:
    """The rows are delivered, the ledger has them, and the task is red for the file's sake."""
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=NOTE, rows=rows(2), **{parameter: "s3://s3_gone@bucket/out.csv"}
    )
    result = run(dag)
    assert (result.state("tickets"), counts(result.xcom("tickets"))) == ("failed", {"delivered": 2})
    assert str(errors[0]).startswith(f"{file} s3://s3_gone@bucket/out.csv cannot be written: EndpointConnectionError: ")
