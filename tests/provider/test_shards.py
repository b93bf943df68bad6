"""One source shared by mapped tasks, in a real Airflow: each row goes once, a user's rows in order, at one rate."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from airflow.sdk import DAG

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, csv_text
from tests.provider.runs import Run, RunDag

SHARDS = 4
USERS = 16
ROWS = [
    {
        "id": f"{turn}-{user}",
        "user": f"user_{user}",
        "name": f"Name {user}",
        "company": "Company",
        "text": f"Turn {turn}",
    }
    for turn in range(3)
    for user in range(USERS)
]


def mapped(dag: DAG, **options: Any) -> None:
    """Add the operator to the DAG, once for each shard."""
    HaloTicketOperator.partial(task_id="tickets", dag=dag, submission=NOTE, **options).expand(
        shard=[f"{index}/{SHARDS}" for index in range(SHARDS)]
    )


def summaries(run: Run) -> list[dict[str, Any]]:
    """What the tasks returned."""
    return [run.xcom("tickets", map_index=index) for index in range(SHARDS)]


def test_shards_send_every_row_once(dag: DAG, run: RunDag, halo: Simulator, tmp_path: Path) -> None:
    """Each task reads the file and sends its own share, and all shares are the whole."""
    path = tmp_path / "notes.csv"
    path.write_text(csv_text(ROWS), encoding="utf-8")
    mapped(dag, csv_path=str(path))

    done = summaries(run(dag))

    shares = [set(summary["session_ids"]) for summary in done]
    assert [summary["delivered"] for summary in done] == [summary["read"] for summary in done] == list(map(len, shares))
    assert set.union(*shares) == {row["id"] for row in ROWS}
    assert sum(map(len, shares)) == len(halo.chats) == len(ROWS)


def test_rows_of_a_user_stay_in_one_shard_and_in_order(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """However many requests are in flight."""
    mapped(dag, rows=ROWS)

    shards_of_users = defaultdict(set)
    for index, summary in enumerate(summaries(run(dag))):
        for row_key in summary["session_ids"]:
            shards_of_users[row_key.partition("-")[2]].add(index)
    turns = defaultdict(list)
    for chat in halo.chats:
        turns[chat.user_id].append(chat.message)

    assert list(map(len, shards_of_users.values())) == [1] * USERS
    assert list(turns.values()) == [["Turn 0", "Turn 1", "Turn 2"]] * USERS


def test_requests_per_second_are_divided_among_the_shards(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """Of 40 requests a second each of four shards starts 10, so that all may run at once."""
    mapped(dag, rows=ROWS, requests_per_second=40)

    shards = {
        session_id: index
        for index, summary in enumerate(summaries(run(dag)))
        for session_id in summary["session_ids"].values()
    }
    starts = defaultdict(list)
    for chat in halo.chats:
        starts[shards[chat.session_id]].append(chat.started)

    paces = [1 / median(later - earlier for earlier, later in pairwise(moments)) for moments in starts.values()]
    assert paces == [pytest.approx(10, rel=0.25)] * SHARDS


def test_second_run_over_the_same_shards_sends_nothing(dag: DAG, run: RunDag, halo: Simulator) -> None:
    """A row's shard is the same in every run, and its delivery is known anyway."""
    mapped(dag, rows=ROWS)
    first, second = summaries(run(dag)), summaries(run(dag))

    assert [summary["already_delivered"] for summary in second] == [summary["delivered"] for summary in first]
    assert len(halo.chats) == len(ROWS)
