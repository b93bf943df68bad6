"""Waiting for what the server's thread does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the server's thread has noticed something."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
