"""The same dirty rows end alike, whichever file they come from, and so do the rows of an upstream task."""

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from airflow.sdk import DAG

from halo_provider.operators.halo import HaloIdentifyOperator, HaloTicketOperator
from halo_provider.simulator import Simulator
from halo_provider.submission import Entry, Submission, User
from tests.provider.runs import RunDag
from tests.provider.stored import KINDS, parameter_of, stored_as
from tests.provider.summaries import counts

CASE = Submission(
    name="case",
    key="id",
    user=User(id="user", traits={"plan": "plan"}),
    message="{text}",
    context={"case": Entry(label="Case {id}", type="custom", fields=["text", "plan"])},
)
DIRTY = [
    {"id": "007", "user": "u1", "text": "Leading zeros", "plan": "NA"},
    {"id": "1", "user": "", "text": "No user", "plan": ""},
    {"id": "", "user": "u2", "text": "No key", "plan": "pro"},
    {"id": "2", "user": "u3", "text": "Zoë 日本 🎫, \"quoted\"; 'and' {braces}", "plan": "1e5"},
    {"id": "2", "user": "u3", "text": "Zoë 日本 🎫, \"quoted\"; 'and' {braces}", "plan": "1e5"},
    {"id": "2", "user": "u3", "text": "Another text", "plan": "1e5"},
    {"id": "3", "user": "u4", "text": "x" * 10_001, "plan": "pro"},
    {"id": "4\n5", "user": "u5", "text": "A key of two lines", "plan": "pro"},
    {"id": " 6 ", "user": " u6 ", "text": " padded ", "plan": " "},
    {"id": "8", "user": "u8", "text": "", "plan": "pro"},
]


SAME_KEY = (
    "rows … and … have the same key '2' and different content; give each a key of its own, "
    "or send the second one after the first with on_change='follow_up'"
)


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The dirty rows in one format."""
    kind = request.param
    if kind == "rows":
        return {"rows": DIRTY}
    if kind == "frame":
        return {"rows": pd.DataFrame(DIRTY)}
    path = tmp_path / f"cases.{kind}"
    path.write_bytes(stored_as(kind, pd.DataFrame(DIRTY)))
    return {parameter_of(kind): str(path)}


@pytest.mark.parametrize("source", ["rows", "frame", *KINDS], indirect=True)
def test_dirty_rows_end_alike(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], source: dict[str, Any], tmp_path: Path
) -> None:
    """Counts, messages, context, and what is wrong with which column of which row."""
    rejects_path = tmp_path / "rejects.csv"
    HaloTicketOperator(
        task_id="tickets", dag=dag, submission=CASE, rejects_path=str(rejects_path), concurrency=1, **source
    )

    result = run(dag)

    assert (result.state("tickets"), counts(result.xcom("tickets"))) == (
        "failed",
        {"delivered": 3, "duplicate": 1, "rejected": 6},
    )
    assert [(chat.message, chat.context["case"]["value"]["plan"] or "") for chat in halo.chats] == [
        ("Leading zeros", "NA"),
        ("Zoë 日本 🎫, \"quoted\"; 'and' {braces}", "1e5"),
        (" padded ", " "),
    ]
    with rejects_path.open(encoding="utf-8", newline="") as lines:
        rejects = list(csv.DictReader(lines))
    assert [[reject[name] for name in ("id", "user", "text", "plan")] for reject in rejects] == [
        list(DIRTY[place].values()) for place in (1, 2, 5, 6, 7, 9)
    ]
    assert [
        (reject["_field"], re.sub(r"rows \d+ and \d+", "rows … and …", reject["_reason"])) for reject in rejects
    ] == [
        ("user", "the user's id is empty; fill it, or leave user out of the submission"),
        ("id", "the row's key is empty; every row needs one, or it could be sent twice"),
        ("", SAME_KEY),
        (
            "text",
            "the message has 10,001 characters (10,001 of them from this column), Halo accepts 10,000; shorten it",
        ),
        ("id", "an id cannot hold control characters or line breaks; clean the value"),
        ("text", "the message is empty for this row"),
    ]
    assert "6 of 10 rows were rejected" in str(errors[0])


@pytest.mark.parametrize("source", ["csv.gz", "parquet", "jsonl", "xlsx"], indirect=True)
def test_users_of_every_format_are_identified(dag: DAG, run: RunDag, halo: Simulator, source: dict[str, Any]) -> None:
    """Each once, from the rows that name one."""
    HaloIdentifyOperator(task_id="identify", dag=dag, submission=CASE, max_rejected=10, **source)

    summary = run(dag).xcom("identify")

    assert (summary["read"], summary["users"], summary["rejected"]) == (10, 7, 1)
    assert set(halo.users) == {"u1", "u2", "u3", "u4", "u5", "u6", "u8"}
