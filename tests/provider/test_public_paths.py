"""The paths that people import from and the commands that they run stay where they are."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("halo_provider.submission", ["Company", "Entry", "Submission", "User"]),
        ("halo_provider.operators.halo", ["HaloIdentifyOperator", "HaloTicketOperator"]),
        ("halo_provider.operators.window", ["run_window"]),
        ("halo_provider.hooks.halo", ["HaloHook"]),
        ("halo_provider.exceptions", ["DeliveryIncompleteError", "HaloError", "RowsRejectedError"]),
        ("halo_provider.models", ["Chat", "CreateTicket", "IdentifyUser"]),
        ("halo_provider.notifications.halo", ["HaloNotifier"]),
        ("halo_provider.simulator", ["Fault", "Simulator", "serving"]),
        ("halo_provider.testing", ["Fault", "FreshLedger", "LocalHalo"]),
        ("halo_provider.delivery", ["DeliveryReport", "deliver"]),
        ("halo_provider.ledger", ["Ledger", "TaskInstanceRef"]),
        ("halo_provider.client", ["HaloClient", "HaloReader"]),
        ("halo_provider.sources", ["CsvSource", "ListSource"]),
    ],
)
def test_public_name_is_imported_from_its_documented_path(module: str, names: list[str]) -> None:
    """A release that moves one of these breaks people's DAG files."""
    found = importlib.import_module(module)

    assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "halo_provider.demo"],
        [sys.executable, "-m", "halo_provider.simulator"],
        [str(Path(sys.executable).parent / "halo-check")],
        [str(Path(sys.executable).parent / "halo-ledger")],
        [str(Path(sys.executable).parent / "halo-login")],
    ],
    ids=["demo", "simulator", "halo-check", "halo-ledger", "halo-login"],
)
def test_documented_command_answers(command: list[str]) -> None:
    """Each explains itself."""
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)

    assert (ended.returncode, "usage:" in ended.stdout) == (0, True), ended.stderr
