"""The typed pairing code `NAMEPLATE-word-word-word` (PROTOCOL.md section 5).

The nameplate finds the offer at the relay, the three words are the password of SPAKE2. A mistyped
word is refused here, before it could use up the one guess: any two words of the list differ in at
least two letters, and no two begin with the same three.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import NamedTuple

from codexctl.errors import UsageError

WORDS_IN_CODE = 3
WORD_COUNT = 256  # one byte each
MAX_NAMEPLATE = 999_999_999
MAX_CODE_CHARS = 64

_HINT = "a code looks like 7-acorn-bamboo-comet; codexctl pair --show on the host makes a new one"


class PairingCode(NamedTuple):
    """A nameplate, which is public, and the three words, which are not shown in a repr."""

    nameplate: int
    words: tuple[str, ...]

    @property
    def password(self) -> str:
        """What SPAKE2 proves knowledge of."""
        return "-".join(self.words)

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.password}"

    def __repr__(self) -> str:
        return f"PairingCode(nameplate={self.nameplate}, words=(hidden))"


@cache
def word_list() -> tuple[str, ...]:
    """The 256 words of words.txt; a word's index is its byte."""
    path = os.path.join(os.path.dirname(__file__), "words.txt")
    with open(path, encoding="ascii") as file:
        return tuple(file.read().split())


def new_words(random_bytes: bytes) -> tuple[str, ...]:
    """The words of three random bytes."""
    if len(random_bytes) != WORDS_IN_CODE:
        raise ValueError(f"a pairing code is made of {WORDS_IN_CODE} bytes")
    return tuple(word_list()[byte] for byte in random_bytes)


def format_code(nameplate: int, words: tuple[str, ...]) -> str:
    return str(PairingCode(nameplate, words))


def parse_code(text: str) -> PairingCode:
    """Parse what a person typed: any case, spaces or dashes between the parts.

    UsageError names what is wrong; for a word that is not on the list also the nearest that is.
    """
    if len(text) > MAX_CODE_CHARS:
        raise UsageError("this is too long for a pairing code", hint=_HINT)
    parts = [part for part in re.split(r"[\s\-]+", text.lower()) if part]
    if not parts or not re.fullmatch(r"[0-9]+", parts[0]):
        raise UsageError("a pairing code begins with a number", hint=_HINT)
    nameplate = int(parts[0])
    if not 1 <= nameplate <= MAX_NAMEPLATE:
        raise UsageError(f"{parts[0]} is not the number of a pairing code", hint=_HINT)
    words = parts[1:]
    if len(words) != WORDS_IN_CODE:
        count = f"{len(words)} word{'' if len(words) == 1 else 's'}"
        raise UsageError(
            f"a pairing code has {WORDS_IN_CODE} words after its number, this has {count}",
            hint=_HINT,
        )
    for word in words:
        if word not in word_list():
            raise UsageError(f"{word!r} is not a word of pairing codes", hint=_suggestion(word))
    return PairingCode(nameplate, tuple(words))


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, word_list(), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else _HINT
