"""Open frames of exec and pty come from the device: they are obeyed or refused, never believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import UsageError
from codexctl.host.exec_request import (
    MAX_ARGUMENTS,
    MAX_TERMINAL,
    ExecRequest,
    parse_size,
    parse_terminal,
)
from codexctl.host.process import SIGNALS, signal_number

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20_000) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ("argv", "shell", "cwd", "env", "network", "sandbox", "detach", "tty")


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6), st.sampled_from(["exec", "pty"]))
@settings(max_examples=300, deadline=None)
def test_any_object_is_checked(params: dict[str, Any], kind: str) -> None:
    try:
        request = ExecRequest.parse(params, kind)
    except UsageError:
        return
    assert all(isinstance(word, str) and "\0" not in word for word in request.argv)
    assert len(request.argv) <= MAX_ARGUMENTS
    assert request.argv or request.shell is not None or kind == "pty"
    assert not (request.argv and request.shell is not None)
    assert (request.tty is not None) == (kind == "pty")
    assert type(request.network) is type(request.sandbox) is type(request.detach) is bool
    for name, value in request.env.items():
        assert name.isidentifier()
        assert "\0" not in value
    if request.tty is not None:
        assert 0 < request.tty.cols <= MAX_TERMINAL
        assert 0 < request.tty.rows <= MAX_TERMINAL


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_size_and_signal_is_checked(value: Any) -> None:
    for parse in (parse_size, parse_terminal, signal_number):
        try:
            parse(value)
        except UsageError as error:
            assert str(error)  # noqa: PT017 - each of them may refuse


def test_only_true_is_true() -> None:
    request = ExecRequest.parse({"argv": ["x"], "network": 1, "detach": "yes"}, "exec")
    assert (request.network, request.detach, request.sandbox) == (False, False, True)


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_by_both_names(name: str) -> None:
    assert signal_number(name) == signal_number(f"SIG{name}") > 0
