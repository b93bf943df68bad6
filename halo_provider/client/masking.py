"""Masks what Halo's own words quote of a row, so that they can stand in logs, exceptions, the ledger and pages."""

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from halo_provider.exceptions import MAX_ERROR_TEXT

MAX_WORDS = 2_000  # characters of Halo's words that are kept
MIN_VALUE = 4  # characters: a shorter value, such as "no" or "12", stands in too many words to be masked
MIN_PART = 16  # characters: a part of a value that is at least as long is masked, too
MASK = "***"

# Possessive, and from the beginning of a run only: the time is in proportion to the text.
_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@[\w-]++(?:\.[\w-]++)*+")


def masked_words(words: str, *, values: Iterable[str]) -> str:
    """`words` with the row's own `values` and every e-mail address replaced by ``***``.

    Values are found in any case, and as they are or as JSON or HTML write them. A value that is quoted in part is found
    where the part has MIN_PART characters, or ends the words where an error's text may have been cut off. A value of
    fewer than MIN_VALUE characters is not masked by itself. At most MAX_WORDS characters of the words are kept.
    """
    words = words[:MAX_WORDS]
    text = _folded(words)
    masked = bytearray(len(words))  # 1 for each character to mask

    def mask(start: int, end: int) -> None:
        masked[start:end] = b"\1" * (end - start)

    parts: dict[str, list[int]] = {}
    for start in range(len(text) - MIN_PART + 1):
        parts.setdefault(text[start : start + MIN_PART], []).append(start)
    for form in {_folded(form) for value in values for form in _forms(value)}:
        for start in _occurrences(form, text):
            mask(start, start + len(form))
        for part in parts.keys() & {form[i : i + MIN_PART] for i in range(len(form) - MIN_PART + 1)}:
            for start in parts[part]:
                mask(start, start + MIN_PART)
        if len(text) >= MAX_ERROR_TEXT:
            mask(len(text) - _beginning_at_end(form, text), len(text))
    for email in _EMAIL.finditer(words):
        mask(email.start(), email.end())
    return "".join(_unmasked(words, masked))


def _folded(text: str) -> str:
    """The text in lower case, character by character, so that each keeps its place."""
    if text.isascii():
        return text.lower()
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)


def _forms(value: str) -> set[str]:
    """The ways in which an answer may write a value; none for a value that is too short to be masked."""
    value = value.strip()
    if len(value) < MIN_VALUE:
        return set()
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value)}


def _occurrences(value: str, text: str) -> Iterator[int]:
    start = text.find(value)
    while start >= 0:
        yield start
        start = text.find(value, start + 1)


def _beginning_at_end(value: str, text: str) -> int:
    """How many characters at the end of the text are the beginning of the value; 0 for fewer than MIN_VALUE."""
    for length in range(min(len(value), MIN_PART) - 1, MIN_VALUE - 1, -1):
        if text.endswith(value[:length]):
            return length
    return 0


def _unmasked(words: str, masked: bytearray) -> Iterator[str]:
    """The words in pieces, with one MASK for each run of masked characters."""
    for is_masked, run in itertools.groupby(zip(masked, words, strict=True), key=lambda pair: pair[0]):
        yield MASK if is_masked else "".join(character for _, character in run)
