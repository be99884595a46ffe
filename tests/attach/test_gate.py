"""Who is let in at a local door."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.attach_gate import MAX_HEAD_BYTES, Turned, admit

TOKEN = "tAk-en_1"
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n%s\r\n"
SHOWN = b"Authorization: Bearer tAk-en_1\r\n"


@given(st.integers(0, len(HEAD) + len(SHOWN)), st.binary(max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_token_opens_and_stays_here(cut: int, behind: bytes) -> None:
    received = HEAD % SHOWN + behind
    whole = len(HEAD % SHOWN)
    assert admit(received, TOKEN) == HEAD % b"" + behind
    if cut < whole:
        assert admit(received[:cut], TOKEN) is None


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"", b"401"),
        (b"Authorization: Bearer other\r\n", b"401"),
        (b"Authorization: Basic tAk-en_1\r\n", b"401"),
        (SHOWN + SHOWN, b"401"),
        (SHOWN + b"Origin: https://example.org\r\n", b"403"),
        (SHOWN + b"X: " + b"x" * MAX_HEAD_BYTES, b"431"),
    ],
)
def test_everybody_else_is_turned_away(lines: bytes, status: bytes) -> None:
    received = HEAD % lines if status != b"431" else (HEAD % lines)[:-2]
    with pytest.raises(Turned) as turned:
        admit(received, TOKEN)
    assert turned.value.args[0].split()[1] == status
    assert TOKEN.encode() not in turned.value.args[0]


def test_a_socket_of_ones_own_needs_no_token() -> None:
    assert admit(HEAD % b"", None) == HEAD % b""
    with pytest.raises(Turned):
        admit(HEAD % b"Origin: x\r\n", None)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_nothing_else_passes(received: bytes) -> None:
    try:
        assert admit(received, TOKEN) is None
    except Turned:
        pass
