"""Waiting for what another thread or another process does."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TIMEOUT = 15.0  # seconds a test waits for what it makes happen


def wait_until(condition: Callable[[], Any]) -> None:
    """Return as soon as the condition is true. Raises TimeoutError where that takes longer than TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something in another thread while the block runs, and wait for it at the end."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()
