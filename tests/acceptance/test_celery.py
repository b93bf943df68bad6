"""Two Celery workers share one source: held to a pool and a rate, and when one of them dies in the middle."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from halo_provider.ledger.statuses import LedgerStatus
from tests.acceptance.celery_workers import (
    CONCURRENCY,
    POOL_SLOTS,
    REQUESTS_PER_SECOND,
    SHARDS,
    SLOTS,
    DeliveryRecord,
    site,
)

pytestmark = pytest.mark.acceptance

ROWS = 2_000
PACED_ROWS = 96


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened, in this order."""

    paced: DeliveryRecord
    survived: DeliveryRecord


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_url: str) -> Iterator[Story]:
    """Deliver some rows slowly, and many as fast as Halo answers, until the second worker dies, and after."""
    folder = tmp_path_factory.mktemp("celery")
    with site(folder, postgres_url=postgres_url, redis_url=redis_url) as airflow:
        airflow.start_workers("first", "second")
        yield Story(
            paced=airflow.deliver(PACED_ROWS, dag_id="paced"),
            survived=airflow.deliver(ROWS, killing="second"),
        )


def test_pool_bounds_the_shards_that_run_at_once(story: Story) -> None:
    """On all workers together, though they have slots for every shard."""
    assert (story.paced.most_tasks, story.paced.tries) == (POOL_SLOTS, [1] * SHARDS)


def test_requests_per_second_are_kept_by_all_shards_together(story: Story) -> None:
    """In no second there are more, as each shard keeps its part of the rate (give or take a late request)."""
    assert story.paced.busiest_second <= REQUESTS_PER_SECOND
    assert story.paced.fastest_shard == pytest.approx(REQUESTS_PER_SECOND / SHARDS, rel=0.2)


def test_paced_shards_send_each_row_once(story: Story) -> None:
    """Nothing is in doubt, and nothing sent twice, where nobody dies."""
    assert (story.paced.state, story.paced.statuses) == ("success", {LedgerStatus.DELIVERED: PACED_ROWS})
    assert story.paced.accepted.total() == len(story.paced.accepted) == PACED_ROWS
    assert story.paced.doubted == set()


def test_every_row_is_delivered_though_a_worker_dies(story: Story) -> None:
    """The run is green in the end, Halo has every row, and the ledger knows it."""
    assert (story.survived.state, story.survived.statuses) == ("success", {LedgerStatus.DELIVERED: ROWS})
    assert len(story.survived.accepted) == ROWS


def test_only_rows_once_in_doubt_reach_halo_twice(story: Story) -> None:
    """They are those that the dead worker had in flight."""
    assert story.survived.doubles <= story.survived.doubted
    assert 0 < len(story.survived.doubted) <= SLOTS * CONCURRENCY


def test_shards_of_the_dead_worker_are_tried_again(story: Story) -> None:
    """By the other one, once Airflow misses them."""
    assert (min(story.survived.tries), len(story.survived.tries)) == (1, SHARDS)
    assert max(story.survived.tries) > 1
