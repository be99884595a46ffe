"""Paths, permission profiles and environments of the official agent, as values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.host.execserver.requests import (
    Folders,
    RpcError,
    Start,
    Wish,
    parse_variables,
    parse_wish,
)

PARTS = st.lists(st.text(min_size=1, max_size=6).filter(lambda t: "/" not in t and "\0" not in t
                         and t not in (".", "..")), max_size=4)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(PARTS, st.booleans(), st.sampled_from([None, "/home/me/p"]))
@settings(max_examples=60, deadline=None)
def test_a_path_comes_back_as_it_came(parts: list[str], urls: bool, local: str | None) -> None:
    folders = Folders(local, "/srv/work")
    path = "/".join([local or "", *parts]) or "/"
    if not urls and path.encode(errors="replace") != path.encode(errors="surrogateescape"):
        return
    sent = path if not urls else Folders(None, "").shown(path)
    here = folders.path(sent)
    assert here.startswith("/srv/work" if local else "/")
    assert folders.path(folders.shown(here)) == here
    assert folders.shown(here) == sent


def test_what_only_begins_like_the_folder_is_another() -> None:
    folders = Folders("/home/me/p", "/srv/work")
    assert folders.path("file:///home/me/p2/a") == "/home/me/p2/a"
    assert folders.path("file:///home/me/p/../x") == "/home/me/x"
    assert folders.path("file:///home/me/p/a/../b") == "/srv/work/b"
    assert folders.shown("/srv/work2") == "file:///srv/work2"


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_any_profile_is_understood_or_refused(value: Any) -> None:
    for wrapped in (value, {"permissions": value}, {"permissions": {"type": "managed", **(
        value if isinstance(value, dict) else {})}}):  # fmt: skip
        with suppress(RpcError):
            assert isinstance(parse_wish(wrapped, Folders(None, "/w"), "0.1"), Wish)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_any_start_is_understood_or_refused(value: Any) -> None:
    params = {"processId": "a", "argv": ["true"], "cwd": "/", "env": value, "envPolicy": value}
    with suppress(RpcError):
        assert Start.parse(params, Folders(None, "/w"), "").argv == ("true",)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"type": "new"}, "codex 9.9 describes its sandbox"),
        ({"type": "managed", "network": "half"}, "describes its sandbox"),
        (
            {
                "type": "managed",
                "network": "enabled",
                "file_system": {
                    "type": "restricted",
                    "entries": [
                        {"access": "deny", "path": {"type": "glob_pattern", "pattern": "*.env"}}
                    ],
                },
            },
            "by a pattern",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(profile: dict[str, Any], words: str) -> None:
    with pytest.raises(RpcError, match=words):
        parse_wish({"permissions": profile}, Folders(None, "/w"), "9.9")


def test_a_profile_that_hides_the_workspace_is_refused() -> None:
    wish = Wish(rules={"/w/sub": "write"})
    with pytest.raises(RpcError, match="hides /w"):
        wish.narrowed("/w")
    assert Wish(rules={"/": "read", "/w/sub": "write"}).narrowed("/w") == (
        ("/w", False),
        ("/w/sub", True),
    )
    assert Wish().narrowed("/w") == ()


LOGIN = {"HOME": "/h", "PATH": "/bin", "API_KEY": "k", "MY_TOKEN": "t", "EDITOR": "vi"}


@pytest.mark.parametrize(
    ("policy", "without"),
    [
        (None, set()),
        ({"inherit": "none", "ignoreDefaultExcludes": True}, set(LOGIN)),
        ({"inherit": "core", "ignoreDefaultExcludes": True}, {"API_KEY", "MY_TOKEN", "EDITOR"}),
        ({"inherit": "all"}, {"API_KEY", "MY_TOKEN"}),
        ({"ignoreDefaultExcludes": True, "exclude": ["edit*"]}, {"EDITOR"}),
        ({"ignoreDefaultExcludes": True, "includeOnly": ["P*"]}, set(LOGIN) - {"PATH"}),
    ],
)
def test_what_of_the_login_is_left_out(policy: object, without: set[str]) -> None:
    variables = parse_variables({"env": {"A": "1"}, "envPolicy": policy})
    assert variables.without(LOGIN) == without
    assert variables.env == {"A": "1"}
