"""A sensor on a real triggerer, which is killed in mid-wait: `python -m tests.acceptance.ticket_sensor` in small."""

import pytest

from tests.acceptance.ticket_sensor import WITHOUT_TICKET, play

pytestmark = pytest.mark.acceptance

ROWS = 200


def test_sensor_outlives_its_triggerer(metadata_url: str | None) -> None:
    """The next triggerer goes on where the dead one was: every ticket ends resolved, and few calls are made."""
    followed = play(rows=ROWS, variant="structured", metadata_url=metadata_url)

    without = ROWS // WITHOUT_TICKET
    assert followed.states == {"tickets": "success", "resolved": "success"}
    assert followed.triggerers == 2
    told = {name: followed.summary[name] for name in ("rows", "tickets", "resolved", "without_ticket", "waiting")}
    assert told == {
        "rows": ROWS,
        "tickets": ROWS - without,
        "resolved": ROWS - without,
        "without_ticket": without,
        "waiting": 0,
    }
    assert followed.calls_of_first_look < ROWS // 2
