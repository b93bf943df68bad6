"""The soak in small: `make soak` plays more and longer rounds, on every ledger."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

CHECKOUT = Path(__file__).parents[2]
LONGEST = 240  # seconds; the last round begins within 30


def test_judge_finds_nothing_after_half_a_minute_of_chaos() -> None:
    """Killed, stopped and cut off on a SQLite ledger: every row is accounted for, in order, and none doubled."""
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.5", "--ledger", "sqlite", "--no-page"]

    soak = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=LONGEST, check=False)

    assert soak.returncode == 0, soak.stderr
    assert "| SQLite |" in soak.stdout
