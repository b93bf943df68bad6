"""Debian's Chromium without a screen."""

import os
import shutil

import pytest

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Where it is; skips where it is not, and fails in CI."""
    if found := shutil.which("chromium"):
        return found
    if os.environ.get("CI"):
        pytest.fail("CI needs Debian's chromium: apt-get install chromium")
    pytest.skip("Debian's chromium is not installed")
