"""Files that operators read and write: opened without waiting for anybody, and written completely or not at all."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from airflow.sdk import DAG

from halo_provider.operators.files import atomic_write, open_binary
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE
from tests.provider.runs import RunDag

NO_FILE = "it is no regular file, but a pipe, a socket or a device; copy it to a file first"


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """A socket in the file system."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        yield tmp_path / "socket"


def test_regular_file_is_opened(tmp_path: Path) -> None:
    """And read in full, wherever its path leads to."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"id\n1\n" * 100_000)
    (tmp_path / "link.csv").symlink_to(path)

    for name in ("rows.csv", "link.csv"):
        with open_binary(str(tmp_path / name)) as stream:
            assert stream.read() == path.read_bytes()


def test_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    """Opening it would wait for a writer, and no stop could end that."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match=NO_FILE):
        open_binary(str(tmp_path / "pipe"))


def test_device_is_refused() -> None:
    """It may have no end."""
    with pytest.raises(OSError, match=NO_FILE):
        open_binary("/dev/zero")


def test_socket_is_refused(bound: Path) -> None:
    """As by every open()."""
    with pytest.raises(OSError, match="No such device or address"):
        open_binary(str(bound))


def test_folder_and_missing_file_have_the_systems_own_words(tmp_path: Path) -> None:
    """As everybody knows them."""
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        open_binary(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        open_binary(str(tmp_path / "missing.csv"))


def test_what_is_refused_is_closed(tmp_path: Path) -> None:
    """A run that is tried again and again does not use up the process's descriptors."""
    os.mkfifo(tmp_path / "pipe")
    before = psutil.Process().num_fds()

    for _ in range(10):
        with pytest.raises(OSError, match=NO_FILE):
            open_binary(str(tmp_path / "pipe"))

    assert psutil.Process().num_fds() == before


def test_task_over_a_pipe_fails_and_says_why(
    dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], tmp_path: Path
) -> None:
    """With the path; nothing is sent."""
    os.mkfifo(tmp_path / "pipe")
    HaloTicketOperator(task_id="tickets", dag=dag, submission=NOTE, csv_path=str(tmp_path / "pipe"))

    assert run(dag).state("tickets") == "failed"
    assert str(errors[0]) == f"{tmp_path}/pipe: {NO_FILE}"
    assert halo.requests == []


def test_file_that_is_not_completed_is_not_there(tmp_path: Path) -> None:
    """What stood under its name before is untouched."""
    path = tmp_path / "results.csv"
    path.write_bytes(b"of the last run")

    def fail() -> None:
        with atomic_write(str(path)) as stream:
            stream.write(b"half of it")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert (list(tmp_path.iterdir()), path.read_bytes()) == ([path], b"of the last run")
