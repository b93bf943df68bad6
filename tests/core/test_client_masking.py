"""What is masked out of Halo's words: the row's own values and e-mail addresses, however they are quoted."""

import html
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo_provider.client.masking import MASK, MAX_WORDS, MIN_PART, MIN_VALUE, masked_words
from halo_provider.exceptions import MAX_ERROR_TEXT

MESSAGE = "Dear team, our contract ends in May and we'd like to know what happens to our data afterwards."


@pytest.mark.parametrize(
    ("words", "values", "masked"),
    [
        ("the name Ada Lovelace is taken", ["Ada Lovelace"], "the name *** is taken"),
        ("Ada Lovelace, Ada Lovelace", ["Ada Lovelace"], "***, ***"),
        ("ADA LOVELACE is taken", ["Ada Lovelace"], "*** is taken"),
        ("ada lovelace is taken", ["ADA LOVELACE"], "*** is taken"),
        ("name 'Ada Lovelace' is taken", ["  Ada Lovelace\n"], "name '***' is taken"),
        ("Example Company Ltd exists", ["Company", "Example Company"], "*** Ltd exists"),
        ("Example Company Ltd exists", ["Example Company", "Company Ltd"], "*** exists"),
        ("id 4711 is unknown", ["4711"], "id *** is unknown"),
        ("田中太郎様 is unknown", ["田中太郎"], "***様 is unknown"),
        ("GRÖSSE is unknown", ["größe", "Grösse"], "*** is unknown"),
        ("the message is too long", ["Ada Lovelace", "", "x"], "the message is too long"),
        ("", ["Ada Lovelace"], ""),
        ("no", [], "no"),
    ],
)
def test_values_of_the_row_are_masked(words: str, values: list[str], masked: str) -> None:
    """Wherever they stand, in any case; a longer value goes before one that is part of it."""
    assert masked_words(words, values=values) == masked


@pytest.mark.parametrize("value", ["", "1", "no", "Bob"])
def test_short_values_are_not_masked_by_themselves(value: str) -> None:
    """They would leave nothing readable."""
    assert len(value) < MIN_VALUE
    assert masked_words("no 1: Bobsleigh is not a plan", values=[value]) == "no 1: Bobsleigh is not a plan"


def test_short_values_are_masked_as_part_of_a_longer_one() -> None:
    """A name of three letters in a greeting."""
    assert masked_words("cannot read: Hello Bob", values=["Bob", "Hello Bob"]) == "cannot read: ***"


@pytest.mark.parametrize("value", ['Say "hello" & <go>\non\ttop', "Größe ✓ für Ähnliches", "back\\slash/es"])
@pytest.mark.parametrize("write", [json.dumps, lambda v: json.dumps(v, ensure_ascii=False), html.escape])
def test_values_are_found_as_json_and_html_write_them(value: str, write: object) -> None:
    """An error may quote the request's own text, or be a page."""
    words = f"invalid: {write(value)} ."  # type: ignore[operator]

    masked = masked_words(words, values=[value])

    assert masked in {f"invalid: {MASK} .", f'invalid: "{MASK}" .'}


@pytest.mark.parametrize(("start", "end"), [(0, 40), (12, 50), (60, len(MESSAGE)), (20, 20 + MIN_PART)])
def test_long_part_of_a_value_is_masked(start: int, end: int) -> None:
    """A message is rarely quoted whole."""
    assert masked_words(f"bad text: {MESSAGE[start:end]}...", values=[MESSAGE]) == f"bad text: {MASK}..."


def test_short_part_of_a_value_stays() -> None:
    """Else Halo's own "our data" would be masked, because the message has it too."""
    assert masked_words("this is not our data", values=[MESSAGE]) == "this is not our data"


@pytest.mark.parametrize("left", range(MIN_VALUE, len("Ada Lovelace") + 1))
def test_value_that_is_cut_off_at_the_end_is_masked(left: int) -> None:
    """An error's text ends after MAX_ERROR_TEXT characters, in the middle of a value if need be."""
    value = "Ada Lovelace"
    words = "x" * (MAX_ERROR_TEXT - left - 1) + " " + value[:left]

    assert masked_words(words, values=[value]).endswith("x " + MASK)


@pytest.mark.parametrize(
    ("words", "masked"),
    [
        ("ada@example.com is taken", "*** is taken"),
        ("<ada.lovelace+test@mail.example.co.uk>", "<***>"),
        ("mailto:o'hara-x_1%y@example.com?subject=x", "mailto:***?subject=x"),
        ("email=ada@localhost, bob@example.com.", "email=***, ***."),
        ("größe@exämple.de", "***"),
        ("a@b", "***"),
        ("at @ home, @handle and user@", "at @ home, @handle and user@"),
    ],
)
def test_email_addresses_are_always_masked(words: str, masked: str) -> None:
    """Also those of others: Halo may name the owner of an account."""
    assert masked_words(words, values=[]) == masked


def test_words_are_bounded() -> None:
    """A page of HTML does not become a log line."""
    assert masked_words("x" * 10_000, values=[]) == "x" * MAX_WORDS


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("a" * MAX_WORDS, "a" * 100_000),
        ("a" * MAX_WORDS, "a" * MIN_VALUE),
        ("ab" * MAX_WORDS, "ba" * 50_000),
        ("@" * MAX_WORDS, "x@" * 50_000),
        ("a@" * MAX_WORDS, "b"),
        ("a." * MAX_WORDS, "b"),
        ("é" * MAX_WORDS, "É" * 100_000),
    ],
)
def test_masking_takes_time_in_proportion_to_the_text(words: str, value: str) -> None:
    """Neither words nor values can make it slow."""
    began = time.thread_time()

    masked_words(words, values=[value, value[:-1], value[1:]])

    assert time.thread_time() - began < 1.0


LETTERS = st.text(alphabet='abB é"\\<&\n@.', max_size=40)


@given(LETTERS, LETTERS, st.text(alphabet="abé ", min_size=MIN_VALUE, max_size=12), LETTERS)
def test_no_value_is_left(before: str, after: str, value: str, other: str) -> None:
    """Whatever else stands around it, and whatever other values there are."""
    value = value.strip()
    masked = masked_words(before + value + after, values=[value, other])

    assert len(value) < MIN_VALUE or value not in masked.replace(MASK, "\0")


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=4))
def test_masking_survives_any_text(words: str, values: list[str]) -> None:
    """Nothing that Halo or a row may hold makes reading an error fail."""
    assert isinstance(masked_words(words, values=values), str)
