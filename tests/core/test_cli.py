"""halo-ledger, as a person uses it."""

import csv
import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from halo_provider.cli import COLUMNS, NAMESPACE_COLUMNS, main
from halo_provider.ledger import Ledger, TaskInstanceRef
from halo_provider.ledger.admin import LedgerAdmin
from halo_provider.ledger.row_filter import RowFilter
from halo_provider.ledger.row_reader import RowReader
from halo_provider.ledger.rules import Candidate
from halo_provider.ledger.statuses import LedgerStatus, RowStatus
from halo_provider.simulator import Fault, Simulator
from halo_provider.sources.csv_file import CsvOptions, CsvSource
from halo_provider.sources.rejects import RejectsFile
from tests.core.deliveries import NAMESPACE, Deliveries, note, notes, rows_in

THREE_STATUSES = [("0", "delivered"), ("1", "in_doubt"), ("2", "delivered")]


class Command:
    """The command over one ledger; `said` and `warned` are what it printed the last time."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = url
        self._capsys = capsys
        self.said = ""
        self.warned = ""

    def __call__(self, *arguments: str) -> int:
        """Run it and return its exit code."""
        code = main(["--url", self._url, "--actor", "somebody@example.com", *arguments])
        self.said, self.warned = self._capsys.readouterr()
        return code


class Terminal(StringIO):
    """Somebody who answers with this line; None is no terminal."""

    def __init__(self, answer: str | None) -> None:
        super().__init__(answer)
        self._answer = answer

    def isatty(self) -> bool:
        """Whether somebody is there."""
        return self._answer is not None


@pytest.fixture
def halo_ledger(sqlite_ledger_url: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command over this test's ledger."""
    return Command(sqlite_ledger_url, capsys)


@pytest.fixture
def one_in_doubt(deliveries: Deliveries, halo: Simulator) -> Simulator:
    """A ledger with the rows 0 and 2 delivered and 1 held back in doubt, though Halo has it."""
    halo.script_for(user_id="user-1", faults=[Fault.drop_after_acceptance()])
    deliveries.run(notes(3), on_in_doubt="hold")
    return halo


def test_list_prints_the_rows_wanted_and_how_many_there_are(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """The rows on standard output, for grep; the counts beside it."""
    assert halo_ledger("list", "--status", "in_doubt") == 0

    header, line = halo_ledger.said.splitlines()
    assert header.split() == list(COLUMNS)
    assert line.split()[:6] == [NAMESPACE, "1", "in_doubt", "user-1", "-", "1"]
    assert line.index("in_doubt") == header.index("status")
    assert halo_ledger.warned.strip() == "1 in_doubt"


def test_list_prints_json_lines(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """For jq: one object a row, and nothing else on standard output."""
    assert halo_ledger("list", "--format", "json") == 0

    rows = [json.loads(line) for line in halo_ledger.said.splitlines()]
    statuses = {row["row_key"]: row["status"] for row in rows}
    assert statuses == {"0": "delivered", "1": "in_doubt", "2": "delivered"}


def test_list_stops_at_its_limit(deliveries: Deliveries, halo_ledger: Command) -> None:
    """More rows than a page, but no more than asked for; the counts are of all."""
    deliveries.run(notes(250))

    assert halo_ledger("list", "--limit", "120") == 0

    assert len(halo_ledger.said.splitlines()) == 1 + 120
    assert halo_ledger.warned.strip() == "250 delivered"


def test_list_of_an_empty_ledger_says_so(halo_ledger: Command) -> None:
    """No rows is an answer."""
    assert halo_ledger("list") == 0
    assert (halo_ledger.said.split(), halo_ledger.warned.strip()) == (list(COLUMNS), "no rows")


def test_list_prints_csv(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """With the same columns, and nothing where there is nothing."""
    halo_ledger("list", "--format", "csv")

    header, *rows = csv.reader(halo_ledger.said.splitlines())
    assert header == list(COLUMNS)
    assert [row[:3] for row in rows] == [[NAMESPACE, key, status] for key, status in THREE_STATUSES]
    assert rows[1][header.index("session_id")] == ""


def test_text_that_a_terminal_would_obey_stays_on_its_line(
    one_in_doubt: Simulator, halo_ledger: Command, ledger: Ledger
) -> None:
    """A reason is a person's text."""
    LedgerAdmin(ledger, actor="x").reject(RowFilter(row_keys=("1",)), reason="first\nsecond \x1b[2J")
    halo_ledger("list", "--status", "rejected")

    assert len(halo_ledger.said.splitlines()) == 2
    assert "first second  [2J" in halo_ledger.said


def test_namespaces_are_listed_with_their_rows(
    one_in_doubt: Simulator, halo_ledger: Command, deliveries: Deliveries
) -> None:
    """One line each, every status a column."""
    halo_ledger("namespaces", "--format", "csv")

    header, line = csv.reader(halo_ledger.said.splitlines())
    assert header == list(NAMESPACE_COLUMNS)
    assert dict(zip(header[:-1], line, strict=False)) == {
        "namespace": NAMESPACE, "rows": "3", "pending": "0", "in_flight": "0", "delivered": "2", "rejected": "0",
        "in_doubt": "1", "failed": "0",
    }  # fmt: skip


def test_summary_counts_what_the_options_name(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """One line for each namespace and status, with the first and the last change."""
    halo_ledger("summary", "--format", "json")
    every = [json.loads(line) for line in halo_ledger.said.splitlines()]
    halo_ledger("summary", "--status", "in_doubt", "--format", "json")
    (some,) = [json.loads(line) for line in halo_ledger.said.splitlines()]

    assert [(each["status"], each["rows"]) for each in every] == [("delivered", 2), ("in_doubt", 1)]
    assert all(each["oldest"] <= each["newest"] for each in every)
    assert some == every[1]


def test_show_tells_everything_about_a_row_with_its_history(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """Its columns, and what happened to it."""
    halo_ledger("reject", "--namespace", NAMESPACE, "--reason", "a test row", "1")

    assert halo_ledger("show", NAMESPACE, "1") == 0

    assert "rejected  a test row  (somebody@example.com)" in halo_ledger.said
    assert halo_ledger.said.index("in_doubt  ") < halo_ledger.said.index("rejected  a test row")


def test_show_of_an_unknown_row_fails(halo_ledger: Command) -> None:
    """And says why."""
    assert halo_ledger("show", NAMESPACE, "nobody") == 1
    assert "no such row" in halo_ledger.warned


def test_resolved_row_is_never_sent_again(
    one_in_doubt: Simulator, halo_ledger: Command, deliveries: Deliveries
) -> None:
    """Found in Halo's inbox: the next run takes it as delivered."""
    code = halo_ledger("resolve", "--namespace", NAMESPACE, "--session-id", "sess_found", "1")
    run = deliveries.run(notes(3))

    assert (code, halo_ledger.said) == (0, "1 rows resolved\n")
    assert run.counts == {RowStatus.ALREADY_DELIVERED: 3}
    assert run.of("1").session_id == "sess_found"


def test_requeued_row_is_sent_by_the_next_run(
    one_in_doubt: Simulator, halo_ledger: Command, deliveries: Deliveries
) -> None:
    """Even by one that holds back doubt."""
    code = halo_ledger("requeue", "--namespace", NAMESPACE, "--status", "in_doubt", "--yes")
    run = deliveries.run(notes(3), on_in_doubt="hold")

    assert (code, halo_ledger.said) == (0, "1 rows requeued\n")
    assert run.counts == {RowStatus.ALREADY_DELIVERED: 2, RowStatus.DELIVERED: 1}


def test_prune_forgets_rows_older_than_so_many_days(
    one_in_doubt: Simulator, halo_ledger: Command, ledger: Ledger
) -> None:
    """Only those that have come to their end."""
    young = halo_ledger("prune", "--namespace", NAMESPACE, "--older-than", "1", "--yes"), halo_ledger.said
    old = halo_ledger("prune", "--namespace", NAMESPACE, "--older-than", "0", "--yes"), halo_ledger.said

    assert (young, old) == ((0, "0 rows deleted\n"), (0, "2 rows deleted\n"))
    assert rows_in(ledger).keys() == {"1"}


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["requeue"], "1 rows would be requeued: 1 in_doubt"),
        (["reject", "--reason", "test"], "1 rows would be rejected: 1 in_doubt"),
        (["prune", "--older-than", "0"], "2 rows would be deleted: 2 delivered"),
    ],
    ids=["requeue", "reject", "prune"],
)
@pytest.mark.parametrize("answer", [None, "", "n", "yes"])
def test_what_changes_many_rows_asks_first(
    *,
    arguments: list[str],
    question: str,
    answer: str | None,
    one_in_doubt: Simulator,
    halo_ledger: Command,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says how many, and takes no answer for no; where nobody can be asked, it wants --yes."""
    before = rows_in(ledger)
    monkeypatch.setattr("sys.stdin", Terminal(answer))

    code = halo_ledger(arguments[0], "--namespace", NAMESPACE, *arguments[1:])

    assert halo_ledger.warned.startswith(f"{question}\n")
    assert code == (0 if answer == "yes" else 1)
    assert (rows_in(ledger) != before) == (answer == "yes")
    assert ("--yes does it without a question" in halo_ledger.warned) == (answer is None)


def test_forgotten_user_is_not_sent_again(
    one_in_doubt: Simulator, halo_ledger: Command, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks, says what Halo still has, and the next run sends nothing of the user."""
    monkeypatch.setattr("sys.stdin", Terminal("yes"))

    assert halo_ledger("forget", "--user", "user-1") == 0

    assert halo_ledger.said == "1 rows forgotten\n"
    assert halo_ledger.warned.startswith("1 rows would be forgotten: 1 in_doubt\n")
    assert halo_ledger.warned.endswith("Halo still has what it got of this user: delete it there\n")
    assert deliveries.run(notes(3)).counts == {RowStatus.ALREADY_DELIVERED: 2, RowStatus.REJECTED: 1}


def test_user_whose_row_is_being_sent_is_not_forgotten_yet(halo_ledger: Command, ledger: Ledger) -> None:
    """The exit code and the words say so."""
    holder = ledger.lease_holder(NAMESPACE, task_instance=TaskInstanceRef())
    holder.claim([Candidate("1", user_id="user-1", payload_hash="1")], on_in_doubt="resend")

    assert halo_ledger("forget", "--user", "user-1", "--yes") == 1

    assert halo_ledger.said == "0 rows forgotten\n"
    assert halo_ledger.warned == ("halo-ledger: 1 rows are a running task's; forget the user again when it has ended\n")


def test_nothing_to_change_is_nothing_to_ask(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """No row is old enough."""
    assert halo_ledger("prune", "--older-than", "1") == 0
    assert (halo_ledger.said, halo_ledger.warned) == ("0 rows deleted\n", "")


def test_prune_without_an_age_asks_for_one(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """Beside a URL there is no configuration of Airflow's."""
    assert halo_ledger("prune", "--yes") == 1
    assert halo_ledger.warned == (
        "halo-ledger: how old? give --older-than DAYS, or set [halo] retention_days in Airflow's configuration\n"
    )


def test_row_named_but_not_changed_is_a_failure(one_in_doubt: Simulator, halo_ledger: Command) -> None:
    """A delivered row cannot be requeued: the exit code and the words say so."""
    assert halo_ledger("requeue", "--namespace", NAMESPACE, "0", "1") == 1
    assert halo_ledger.said == "1 rows requeued\n"
    assert "state that does not allow it" in halo_ledger.warned


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["requeue", "1"],
        ["resolve", "--namespace", NAMESPACE, "1"],
        ["resolve", "--namespace", NAMESPACE, "--session-id", "sess_found"],
        ["reject", "--namespace", NAMESPACE, "1"],
        ["list", "--status", "lost"],
    ],
    ids=" ".join,
)
def test_incomplete_command_changes_nothing(
    arguments: list[str], one_in_doubt: Simulator, halo_ledger: Command, ledger: Ledger
) -> None:
    """Without a namespace, a session, a row to give it to, a reason or an age the words are off: exit code 2."""
    before = rows_in(ledger)

    with pytest.raises(SystemExit) as ended:
        halo_ledger(*arguments)

    assert (ended.value.code, rows_in(ledger)) == (2, before)


def test_ledger_that_cannot_be_reached_is_one_line_of_error(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, no password."""
    assert main(["--url", "postgresql+psycopg2://someone:hunter2-example@127.0.0.1:1/nowhere", "list"]) == 1

    said, warned = capsys.readouterr()
    assert said == ""
    assert warned.startswith("halo-ledger: the ledger cannot be opened: ")
    assert len(warned.splitlines()) == 1
    assert "hunter2-example" not in warned


@pytest.mark.parametrize("command", ["list", "namespaces", "prune"])
def test_missing_file_is_no_empty_ledger(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is wrong says so, and makes no file."""
    path = tmp_path / "halo_leger.db"

    assert main(["--url", f"sqlite:///{path}", command]) == 1

    assert capsys.readouterr().err == f"halo-ledger: there is no ledger: no file {path}\n"
    assert not path.exists()


def test_database_of_something_else_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is created in it."""
    path = tmp_path / "other.db"
    path.touch()

    assert main(["--url", f"sqlite:///{path}", "list"]) == 1

    assert capsys.readouterr().err == f"halo-ledger: there is no ledger: {path} has no table halo_submissions\n"
    assert path.read_bytes() == b""


def test_actor_is_whoever_is_logged_in_or_the_number_of_who_has_no_name(
    one_in_doubt: Simulator, sqlite_ledger_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers run as users without a name; that is no reason to fail, nor to act unnamed."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)

    assert main(["--url", sqlite_ledger_url, "requeue", "--namespace", NAMESPACE, "1"]) == 0

    history = RowReader(ledger).history(NAMESPACE, "1")
    assert history[-1].actor == f"uid {os.getuid()}"


def test_installed_command_works_on_its_own(one_in_doubt: Simulator, sqlite_ledger_url: str) -> None:
    """The script that pip installs, in a process of its own, without Airflow."""
    script = Path(sys.executable).parent / "halo-ledger"

    ended = subprocess.run(
        [script, "--url", sqlite_ledger_url, "list", "--status", "in_doubt"], capture_output=True, text=True, check=True
    )

    assert "in_doubt" in ended.stdout.splitlines()[1]
    assert ended.stderr == "1 in_doubt\n"


def test_repaired_rejects_are_sent_under_the_same_keys(deliveries: Deliveries, halo: Simulator, tmp_path: Path) -> None:
    """The round trip: bad rows into a file, repaired there, fed again; delivered rows are not in it, nor sent twice."""
    rejects = tmp_path / "rejects.csv"
    rows = [note("a"), note("b", text=""), note("c", text="x" * 11_000)]
    with rejects.open("wb") as stream:
        file = RejectsFile(stream, columns=["id", "user", "text"], options=CsvOptions())
        first = deliveries.run(rows)
        for outcome in first.outcomes:
            if outcome.status is RowStatus.REJECTED and outcome.error is not None:
                file.write(outcome.row, outcome.error)
        file.close()
    repaired = rejects.read_text(encoding="utf-8").replace("b,user-b,,", "b,user-b,Hello.,").replace("x" * 11_000, "x")
    rejects.write_text(repaired, encoding="utf-8", newline="")

    source = CsvSource(path=str(rejects), open_binary=lambda: rejects.open("rb"), options=CsvOptions())
    second = deliveries.run(source)
    third = deliveries.run([note("a"), note("b", text="Hello."), note("c", text="x")])

    assert first.counts == {RowStatus.DELIVERED: 1, RowStatus.REJECTED: 2}
    assert second.counts == {RowStatus.DELIVERED: 2}
    assert third.counts == {RowStatus.ALREADY_DELIVERED: 3}
    assert sorted(chat.message for chat in halo.chats) == ["Hello.", "Thank you.", "x"]
    assert deliveries.statuses() == dict.fromkeys("abc", LedgerStatus.DELIVERED)
