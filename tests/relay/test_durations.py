"""Durations as typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexctl.durations import MAX_DURATION_S, format_duration, parse_duration
from codexctl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("8h", 28800), ("1d", 86400), ("2w", 1209600), ("1h30m", 5400)],
)
def test_it_reads_what_people_type(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(f" {text.upper()} ") == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "0s", "-1d", "1y", "1.5h", "d", "1 d", "9999999999w", "\u0661s"]
)
def test_it_refuses_the_rest_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert "8h" in caught.value.hint


@given(st.text(max_size=20))
def test_no_text_gets_past_it(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError:
        return
    assert 1 <= seconds <= MAX_DURATION_S


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (42, "42s"), (300, "5m"), (301, "5m 1s"), (93600, "1d 2h"), (86460, "1d")],
)
def test_it_writes_two_units(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text
