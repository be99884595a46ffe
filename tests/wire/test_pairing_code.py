"""The typed pairing code: what a person may type, what is refused, and the list of words."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import UsageError
from codexctl.wire.pairing_code import (
    MAX_NAMEPLATE,
    WORD_COUNT,
    PairingCode,
    format_code,
    new_words,
    parse_code,
    word_list,
)

codes = st.builds(
    PairingCode,
    st.integers(1, MAX_NAMEPLATE),
    st.binary(min_size=3, max_size=3).map(new_words),
)


def test_the_list_is_fit_for_speaking_and_typing() -> None:
    words = word_list()
    assert len(words) == len(set(words)) == WORD_COUNT
    assert all(word.isascii() and word.islower() and 3 <= len(word) <= 7 for word in words)
    assert len({word[:3] for word in words}) == WORD_COUNT
    # One wrong, missing or added letter never makes another word of the list.
    assert not [pair for pair in combinations(words, 2) if _within_one_edit(*pair)]


def _within_one_edit(a: str, b: str) -> bool:
    if len(a) > len(b):
        a, b = b, a
    if len(b) - len(a) > 1:
        return False
    at = next((i for i, letter in enumerate(a) if letter != b[i]), len(a))
    return a[at + (len(a) == len(b)) :] == b[at + 1 :]


@given(codes)
@settings(max_examples=50, deadline=None)
def test_a_code_survives_its_text(code: PairingCode) -> None:
    assert parse_code(str(code)) == code
    assert format_code(*code) == str(code)


@pytest.mark.parametrize(
    "text",
    [
        "7-acorn-bamboo-comet",
        "7 ACORN bamboo  Comet",
        " 7-Acorn bamboo - comet\n",
        "07-acorn-bamboo-comet",
    ],
)
def test_case_spaces_and_dashes_do_not_matter(text: str) -> None:
    assert parse_code(text) == PairingCode(7, ("acorn", "bamboo", "comet"))


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("", "begins with a number", "looks like"),
        ("acorn-bamboo-comet", "begins with a number", "looks like"),
        ("0-acorn-bamboo-comet", "0 is not the number", "looks like"),
        ("99999999999-acorn-bamboo-comet", "is not the number", "looks like"),
        ("7-acorn-bamboo", "this has 2 words", "looks like"),
        ("7-acorn", "this has 1 word", "looks like"),
        ("7-acorn-bamboo-comet-cloud", "this has 4 words", "looks like"),
        ("7-acorn-bambo-comet", "'bambo' is not a word", "did you mean bamboo?"),
        ("7-acorn-bamboo-qqqqqq", "'qqqqqq' is not a word", "looks like"),
        ("7-" + "a" * 80, "too long", "looks like"),
        ("\u0667-acorn-bamboo-comet", "begins with a number", "looks like"),
    ],
)
def test_what_is_not_a_code_is_refused_with_a_reason(text: str, sentence: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_code(text)
    assert sentence in caught.value.message
    assert hint in caught.value.hint


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_code_or_a_usage_error(text: str) -> None:
    try:
        code = parse_code(text)
    except UsageError:
        return
    assert parse_code(str(code)) == code


@given(codes, st.data())
@settings(max_examples=100, deadline=None)
def test_one_wrong_letter_in_a_word_never_makes_another_code(
    code: PairingCode, data: st.DataObject
) -> None:
    text = str(code)
    first = text.index("-") + 1
    at = data.draw(st.integers(first, len(text) - 1).filter(lambda i: text[i] != "-"))
    letter = data.draw(
        st.sampled_from("abcdefghijklmnopqrstuvwxyz").filter(lambda c: c != text[at])
    )
    with pytest.raises(UsageError):
        parse_code(text[:at] + letter + text[at + 1 :])


def test_a_repr_does_not_show_the_words() -> None:
    code = PairingCode(7, ("acorn", "bamboo", "comet"))
    assert "acorn" not in repr(code)
    assert code.password == "acorn-bamboo-comet"


def test_words_come_from_exactly_three_bytes() -> None:
    assert new_words(b"\x00\x01\xff") == (word_list()[0], word_list()[1], word_list()[255])
    with pytest.raises(ValueError, match="3 bytes"):
        new_words(b"\x00")
