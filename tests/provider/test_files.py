"""Files that operators read and write: opened without waiting for anybody, and written completely or not at all."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from airflow.sdk import DAG

from halo_provider.operators.files import atomic_write, files_of, open_binary
from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from tests.provider.notes import NOTE, csv_text, rows
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


def test_pattern_names_files_and_no_folders(tmp_path: Path) -> None:
    """Of one folder, or with ** of all below; a file whose own name looks like a pattern is meant itself."""
    for name in ("b.csv", "a.csv", "day=1/c.csv", "[x].csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.csv").mkdir()

    def named(pattern: str) -> list[str]:
        return sorted(str(Path(path).relative_to(tmp_path)) for path in files_of(f"{tmp_path}/{pattern}"))

    assert named("*.csv") == ["[x].csv", "a.csv", "b.csv"]
    assert named("day=*/?.csv") == ["day=1/c.csv"]
    assert named("**/*.csv") == ["[x].csv", "a.csv", "b.csv", "day=1/c.csv"]
    assert named("[x].csv") == ["[x].csv"]
    assert named("nothing-*") == []
    assert files_of(f"file://{tmp_path}/day=*/*.csv") == [f"file://{tmp_path}/day=1/c.csv"]
    assert files_of("missing.csv") == ["missing.csv"]


def test_rejects_of_the_last_run_are_no_source_of_this_one(
    *, dag: DAG, run: RunDag, halo: Simulator, errors: list[BaseException], faulty_csv: Path, tmp_path: Path
) -> None:
    """A pattern that a template makes is checked against the files that the task writes."""
    (tmp_path / "rejects.csv").touch()
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path="{{ params.folder }}/*.csv",
        rejects_path="{{ params.folder }}/rejects.csv",
    )

    assert run(dag).state("tickets") == "failed"
    assert str(errors[0]) == (
        f"rejects_path and csv_path are the same file, '{tmp_path}/rejects.csv'; give it another name"
    )
    assert halo.requests == []


def test_pattern_of_files_is_one_source(dag: DAG, run: RunDag, halo: Simulator, tmp_path: Path) -> None:
    """In the order of the names, and a row that is rejected says its file and line."""
    for name, notes in (("b.csv", rows(4)[2:]), ("a.csv", rows(2))):
        (tmp_path / name).write_text(csv_text(notes), encoding="utf-8")
    with (tmp_path / "a.csv").open("a", encoding="utf-8") as more:
        more.write("5,,no user,company,text\n")
    HaloTicketOperator(
        task_id="tickets",
        dag=dag,
        submission=NOTE,
        csv_path=f"{tmp_path}/*.csv",
        rejects_path=f"{tmp_path}/rejects/today.csv",
        concurrency=1,
        max_rejected=1,
    )

    assert run(dag).state("tickets") == "success"
    assert [chat.message for chat in halo.chats] == [row["text"] for row in rows(4)]
    assert f"{tmp_path}/a.csv:4,user," in (tmp_path / "rejects" / "today.csv").read_text(encoding="utf-8")
