"""Files as they come: every row of them ends in one status, and what is rejected can be repaired and fed again."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from airflow.sdk import DAG

from halo_provider.operators.halo import HaloTicketOperator
from halo_provider.simulator import Simulator
from halo_provider.submission import Entry, Submission, User
from tests.provider.runs import RunDag, Statuses
from tests.provider.summaries import counts

CASE = Submission(
    name="case",
    key="case_id",
    user=User(id="user_id"),
    message="{title}: {text}",
    context={"case": Entry(label="Case {case_id}", type="custom", fields="*")},
)
HEADER = b"case_id,user_id,title,text\n"


@dataclass(frozen=True, slots=True)
class Delivered:
    """How a file ended: the task's state and error, the counts that are not zero, and the rejects file."""

    state: str
    error: str
    read: int
    counts: dict[str, int]
    rejects_path: Path
    encoding: str

    def rejects(self) -> list[dict[str, str]]:
        """The rejected rows."""
        with self.rejects_path.open(encoding=self.encoding, newline="") as lines:
            return list(csv.DictReader(lines))

    def reasons(self) -> dict[str, str]:
        """{line: reason} of the rejected rows."""
        return {reject["_row"]: reject["_reason"] for reject in self.rejects()}


Deliver = Callable[..., Delivered]


@pytest.fixture
def deliver(dag: DAG, run: RunDag, errors: list[BaseException], tmp_path: Path) -> Deliver:
    """Deliver a file with these bytes."""

    def deliver(content: bytes, **csv_options: str) -> Delivered:
        (tmp_path / "cases.csv").write_bytes(content)
        rejects_path = tmp_path / "rejects.csv"
        if "tickets" not in dag.task_dict:
            HaloTicketOperator(
                task_id="tickets",
                dag=dag,
                submission=CASE,
                csv_path=str(tmp_path / "cases.csv"),
                csv_options=csv_options,
                rejects_path=str(rejects_path),
            )
        errors.clear()
        result = run(dag)
        summary = result.xcom("tickets")
        return Delivered(
            state=result.state("tickets"),
            error=str(errors[0]) if errors else "",
            read=summary["read"],
            counts=counts(summary),
            rejects_path=rejects_path,
            encoding=csv_options.get("encoding", "utf-8"),
        )

    return deliver


def messages(halo: Simulator) -> list[str]:
    """The accepted messages, sorted."""
    return sorted(chat.message for chat in halo.chats)


def test_byte_order_mark_is_no_part_of_the_first_column(deliver: Deliver, halo: Simulator) -> None:
    """Excel's "CSV UTF-8" begins with one."""
    delivered = deliver(b"\xef\xbb\xbf" + HEADER + "1,u1,Café,good\n".encode())
    assert (delivered.state, delivered.counts) == ("success", {"delivered": 1})
    assert messages(halo) == ["Café: good"]


def test_utf_16_is_known_by_its_mark(deliver: Deliver, halo: Simulator) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs."""
    delivered = deliver("case_id\tuser_id\ttitle\ttext\n1\tu1\tCafé\tgood\n".encode("utf-16"), delimiter="\t")
    assert delivered.counts == {"delivered": 1}
    assert messages(halo) == ["Café: good"]


def test_windows_line_ends_are_line_ends(deliver: Deliver, halo: Simulator) -> None:
    """A carriage return is no part of the last value, and a blank line is no row."""
    delivered = deliver(b"case_id,user_id,title,text\r\n1,u1,One,good\r\n\r\n2,u2,Two,good\r\n\r\n")
    assert (delivered.read, delivered.counts) == (2, {"delivered": 2})
    assert messages(halo) == ["One: good", "Two: good"]


def test_ragged_rows_are_rejected_one_by_one(deliver: Deliver, halo: Simulator) -> None:
    """Too short and too long: each with its line, what could be read of it, and what was too much."""
    delivered = deliver(HEADER + b"1,u1,One,good\n2,u2,Two\n3,u3,Three,bad,and more\n4,u4,Four,good\n")
    short, long = delivered.rejects()
    assert (delivered.state, delivered.counts) == ("failed", {"delivered": 2, "rejected": 2})
    assert short["_reason"] == "line 3 has 3 values where the header has 4 columns; repair the line"
    assert (short["case_id"], short["title"], short["text"]) == ("2", "Two", "")
    assert long["_reason"].startswith("line 4 has 5 values where the header has 4 columns; repair the line")
    assert "and more" in long["_reason"]
    assert messages(halo) == ["Four: good", "One: good"]


def test_value_beyond_the_header_is_in_no_log(deliver: Deliver) -> None:
    """What the rejects file says about a row for its repair, the error does not."""
    delivered = deliver(HEADER + b"1,u1,One,bad,Confidential\n")
    assert "Confidential" in delivered.rejects_path.read_text(encoding="utf-8")
    assert "Confidential" not in delivered.error


def test_row_without_a_key_is_rejected(deliver: Deliver, halo: Simulator) -> None:
    """Nothing, or nothing but white space: it could be sent twice."""
    delivered = deliver(HEADER + b",u1,One,bad\n  ,u2,Two,bad\n3,u3,Three,good\n")
    assert (delivered.state, delivered.counts) == ("failed", {"delivered": 1, "rejected": 2})
    assert [(reject["_row"], reject["_field"]) for reject in delivered.rejects()] == [
        ("2", "case_id"),
        ("3", "case_id"),
    ]
    assert messages(halo) == ["Three: good"]


def test_message_longer_than_halo_takes_is_rejected(deliver: Deliver, halo: Simulator) -> None:
    """The reason names the column, the sizes and the remedy; the limit itself still goes."""
    longest = 10_000 - len("Two: ")
    delivered = deliver(HEADER + b"1,u1,One," + b"x" * 11_000 + b"\n2,u2,Two," + b"y" * longest + b"\n")
    (reject,) = delivered.rejects()
    assert (delivered.state, delivered.counts) == ("failed", {"delivered": 1, "rejected": 1})
    assert reject["_field"] == "text"
    assert reject["_reason"] == (
        "the message has 11,005 characters (11,000 of them from this column), Halo accepts 10,000; shorten it"
    )
    assert reject["text"] == "x" * 11_000
    assert [len(message) for message in messages(halo)] == [10_000]


def test_braces_in_values_stay_as_they_are(deliver: Deliver, halo: Simulator) -> None:
    """Values are never expanded again, neither as placeholders nor as templates."""
    delivered = deliver(HEADER + b"1,u1,{user_id} {{ ds }},{0.__class__} }{ %(a)s\n")
    assert delivered.counts == {"delivered": 1}
    assert messages(halo) == ["{user_id} {{ ds }}: {0.__class__} }{ %(a)s"]


def test_duplicates_count_once(deliver: Deliver, halo: Simulator) -> None:
    """The first row of a key is sent; those with the same content are counted, and no reason for red."""
    delivered = deliver(HEADER + b"1,u1,First,good\n2,u2,Two,good\n1,u1,First,good\n1,u1,First,good\n")
    assert (delivered.state, delivered.counts) == ("success", {"delivered": 2, "duplicate": 2})
    assert messages(halo) == ["First: good", "Two: good"]


def test_undeclared_encoding_rejects_the_rows_it_spoils(deliver: Deliver, halo: Simulator) -> None:
    """What cannot be read is not guessed: the reason names the option, the file keeps the bytes."""
    delivered = deliver(HEADER + "1,u1,Plain,good\n2,u2,Café,bad\n".encode("cp1252"))
    assert (delivered.state, delivered.counts) == ("failed", {"delivered": 1, "rejected": 1})
    assert b"2,u2,Caf\xe9,bad" in delivered.rejects_path.read_bytes()
    assert (
        b"give csv_options the file's own encoding, e.g. {'encoding': 'cp1252'}" in delivered.rejects_path.read_bytes()
    )
    assert messages(halo) == ["Plain: good"]


def test_declared_encoding_is_read(deliver: Deliver, halo: Simulator) -> None:
    """A file in cp1252 with the euro sign; its rejects are in cp1252 as well."""
    delivered = deliver(HEADER + "1,u1,Café €5,good\n2,,Café €6,bad\n".encode("cp1252"), encoding="cp1252")
    (reject,) = delivered.rejects()
    assert delivered.counts == {"delivered": 1, "rejected": 1}
    assert messages(halo) == ["Café €5: good"]
    assert reject["title"] == "Café €6"


def test_unclosed_quote_is_rejected_with_its_line(deliver: Deliver, halo: Simulator) -> None:
    """What stands before it is delivered; each line that the quote swallowed is accounted for, and can be repaired."""
    delivered = deliver(HEADER + b'1,u1,One,good\n2,u2,"Two,bad\n3,u3,Three,lost in the quote\n')
    reasons = delivered.reasons()
    assert (delivered.state, delivered.counts) == ("failed", {"delivered": 1, "rejected": 2})
    assert "check the quotes" in reasons["3"]
    assert "it belongs to the quoted value of line 3" in reasons["4"]
    assert "3,u3,Three,lost in the quote" in reasons["4"]
    assert messages(halo) == ["One: good"]


def test_text_after_a_closing_quote_is_rejected_with_its_line(deliver: Deliver, halo: Simulator) -> None:
    """Sloppy quotes spoil their own row only."""
    delivered = deliver(HEADER + b'1,u1,"One" more,bad\n2,u2,Two,good\n')
    assert delivered.counts == {"delivered": 1, "rejected": 1}
    assert list(delivered.reasons()) == ["2"]
    assert messages(halo) == ["Two: good"]


def test_quoted_line_breaks_belong_to_the_value(deliver: Deliver, halo: Simulator) -> None:
    """A row may take several lines; its own line is the first of them."""
    delivered = deliver(HEADER + b'1,u1,One,"line\none, two\n\nthree ""quoted"""\n2,,Two,bad\n')
    assert delivered.counts == {"delivered": 1, "rejected": 1}
    assert messages(halo) == ['One: line\none, two\n\nthree "quoted"']
    assert list(delivered.reasons()) == ["6"]


def test_values_stay_text(deliver: Deliver, halo: Simulator) -> None:
    """What looks like a number, a date or nothing at all reaches Halo to the letter, in keys and ids, too."""
    values = ["NA", "null", "None", "nan", "007", "1e5", "TRUE", "1,5", "2026-01-01"]
    delivered = deliver(HEADER + "".join(f'"{value}","{value}"," {value} ",good\n' for value in values).encode())
    assert delivered.counts == {"delivered": len(values)}
    assert sorted(str(chat.user_id) for chat in halo.chats) == sorted(values)
    assert all(
        (chat.message, chat.context["case"]["value"]["case_id"]) == (f" {chat.user_id} : good", chat.user_id)
        for chat in halo.chats
    )


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", HEADER, HEADER.strip()], ids=repr)
def test_file_without_rows_is_a_green_run(deliver: Deliver, halo: Simulator, content: bytes) -> None:
    """No rows, no failure: an empty file, blank lines, a mark or a header alone."""
    delivered = deliver(content)
    assert (delivered.state, delivered.read) == ("success", 0)
    assert halo.requests == []


def test_missing_columns_are_named_before_anything_is_sent(deliver: Deliver, halo: Simulator) -> None:
    """All of them at once, beside those that are there."""
    delivered = deliver(b"case_id,user_id,headline\n1,u1,One\n")
    assert (delivered.state, delivered.read) == ("failed", 0)
    assert "the submission needs 'title', 'text', which the file does not have" in delivered.error
    assert "Its columns are 'case_id', 'user_id', 'headline'" in delivered.error
    assert halo.requests == []


def test_error_suspects_a_wrong_delimiter(deliver: Deliver, halo: Simulator) -> None:
    """A header that is one single column gives it away."""
    delivered = deliver(b"case_id;user_id;title;text\n1;u1;One;good\n")
    assert (delivered.state, delivered.read) == ("failed", 0)
    assert "is the delimiter really ','?" in delivered.error
    assert halo.requests == []


def test_column_name_that_occurs_twice_is_refused(deliver: Deliver, halo: Simulator) -> None:
    """Which of the two is meant cannot be known."""
    delivered = deliver(b"case_id,user_id,title,text,title\n1,u1,One,good,Two\n")
    assert (delivered.state, delivered.read) == ("failed", 0)
    assert "the header names a column twice: 'title'" in delivered.error
    assert halo.requests == []


def test_other_quotes_and_delimiters_are_kept_in_the_rejects(deliver: Deliver, halo: Simulator) -> None:
    """The rejects file is written as its source is."""
    delivered = deliver(b"case_id;user_id;title;text\n1;u1;'a;b';good\n2;;'c;d';bad\n", delimiter=";", quotechar="'")
    assert delivered.counts == {"delivered": 1, "rejected": 1}
    assert messages(halo) == ["a;b: good"]
    assert delivered.rejects_path.read_text(encoding="utf-8").splitlines()[1].startswith("2;;'c;d';bad;3;user_id;")


def test_repaired_rejects_of_a_dirty_file_send_the_rest_and_nothing_twice(
    deliver: Deliver, halo: Simulator, statuses: Statuses
) -> None:
    """Faults of every kind in one file, put right in the rejects file, which is then fed in place of the source."""
    first = deliver(
        HEADER
        + b"1,u1,One,good\n"
        + b"2,u2,Two\n"
        + b",u3,Three,good\n"
        + b"4,,Four,good\n"
        + b"5,u5,Five,"
        + b"x" * 11_000
        + b"\n"
        + b"1,u1,One,good\n"
        + b"6,u6,Six,good\n"
    )
    assert first.counts == {"delivered": 2, "duplicate": 1, "rejected": 4}
    rejects = first.rejects()
    repairs = {"3": {"text": "good"}, "4": {"case_id": "3"}, "5": {"user_id": "u4"}, "6": {"text": "short"}}
    repaired = first.rejects_path.with_name("repaired.csv")
    with repaired.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, fieldnames=list(rejects[0]))
        writer.writeheader()
        writer.writerows(reject | repairs[reject["_row"]] for reject in rejects)
    second = deliver(repaired.read_bytes())
    assert (second.state, second.counts) == ("success", {"delivered": 4})
    assert second.rejects() == []
    assert messages(halo) == ["Five: short", "Four: good", "One: good", "Six: good", "Three: good", "Two: good"]
    assert set(statuses().values()) == {"delivered"}
    assert not any("_reason" in chat.context["case"]["value"] for chat in halo.chats)
