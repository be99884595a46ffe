"""Listing aliases without a process, and resolving them with ssh itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client import ssh_config
from codexctl.client.ssh_config import (
    alias_names,
    find_alias,
    host_matches,
    is_concrete,
    resolve,
    split_hop,
    split_line,
)
from codexctl.errors import CodexctlError, ConnectionFailed
from tests.support.sshd import find_sshd


def write(folder: Path, text: str, name: str = "config") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_patterns_negations_and_match_blocks_are_no_aliases(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Host web *.example db? !old *\n"
        "host=one two # three\n"
        '  Host "quo" bad,comma -dash\n'
        "Match host four\n  User x\n"
        "HOST\tlast\n"
        "Host web\n",
    )
    assert alias_names(path) == ["web", "one", "two", "quo", "last"]


def test_a_name_that_its_own_line_negates_is_no_alias(tmp_path: Path) -> None:
    assert alias_names(write(tmp_path, "Host prod !prod\nHost a !b\n")) == ["a"]


def test_include_is_followed_with_globs_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "more d").mkdir()
    write(tmp_path / "more d", "Host b\n", "1.conf")
    write(tmp_path / "more d", "Host c\n", "2.conf")
    path = write(tmp_path, f'Include "{tmp_path}/more d/*.conf" {tmp_path}/missing\nHost a\n')
    assert alias_names(path) == ["b", "c", "a"]


def test_include_inside_a_host_block_counts_for_that_host_alone(tmp_path: Path) -> None:
    inner = write(tmp_path, "Host web\nHost db\n", "inner")
    path = write(tmp_path, f"Host w*\n  Include {inner}\nMatch all\n  Include {inner}\n")
    assert alias_names(path) == ["web"]


def test_a_circle_of_includes_ends(tmp_path: Path) -> None:
    path = write(tmp_path, f"Include {tmp_path}/other\nHost a\n")
    write(tmp_path, f"Include {tmp_path}/config {tmp_path}/other\nHost b\n", "other")
    assert alias_names(path) == ["b", "a"]


def test_include_is_bounded_in_depth_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for depth in range(30):
        write(tmp_path, f"Host h{depth}\nHost *\nInclude {tmp_path}/f{depth + 1}\n", f"f{depth}")
    assert alias_names(str(tmp_path / "f0")) == [f"h{n}" for n in range(ssh_config.MAX_DEPTH + 1)]
    monkeypatch.setattr(ssh_config, "MAX_FILES", 3)
    assert alias_names(str(tmp_path / "f0")) == ["h0", "h1", "h2"]


def test_files_that_cannot_be_read_hold_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = write(tmp_path, f"Include {tmp_path}/fifo {tmp_path}\nHost a\n")
    assert alias_names(path) == ["a"]
    assert alias_names(str(tmp_path / "missing")) == []
    monkeypatch.setattr(ssh_config, "MAX_FILE_BYTES", 10)
    assert alias_names(path) == []


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom codexctl.client.ssh_config import alias_names\nalias_names('/dev/null')\n"
        "print(*(set(sys.modules) & {'asyncio', 'asyncssh', 'subprocess', 'dataclasses', 'click'}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == ""


WORDS = st.text(st.sampled_from("ab *?!\"'\\#=,-$;\t.éÿ\x00\r"), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_any_line_is_parsed_into_usable_names(words: list[str]) -> None:
    for name in split_line("Host " + " ".join(words))[1:]:
        if is_concrete(name):
            assert not name.startswith("-")
            assert not set(name) & set(" \t*?!,'\"\\;\x00\r")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)))
def test_quoted_arguments_come_back(words: list[str]) -> None:
    assert split_line("Host " + " ".join(f'"{word} x"' for word in words))[1:] == [
        f"{word} x" for word in words
    ]


@settings(max_examples=200, deadline=None)
@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_wildcards_are_those_of_a_shell(pattern: str, name: str) -> None:
    from fnmatch import fnmatchcase

    assert host_matches((pattern,), name) == fnmatchcase(name, pattern)


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not host_matches(("*a" * 200 + "b",), "a" * 2000)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["web", "w*", "!web", '"web"', "web2", "#", "a=b"]), min_size=1))
def test_ssh_agrees_about_what_a_host_line_matches(words: list[str]) -> None:
    find_sshd()
    arguments = split_line("Host " + " ".join(words))[1:]
    if not arguments:
        return
    answer = subprocess.run(
        ["ssh", "-G", "-F", "/dev/stdin", "web"],
        input=f"Host {' '.join(words)}\n  User matched\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("user matched" in answer.stdout) == host_matches(tuple(arguments), "web")


def test_an_alias_is_resolved_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_sshd()
    monkeypatch.setenv("TRAVELLER", "yes")
    path = write(
        tmp_path,
        "Host web\n HostName web.example\n Port 2200\n IdentityFile ~/keys/%h-%p\n"
        ' ProxyJump me@a:1,b\n HostKeyAlias pinned\n SendEnv TRAV*\n SetEnv A="b c"\n'
        f" UserKnownHostsFile {tmp_path}/%n /x\n IdentityAgent none\n"
        "Match host web.example\n User ada\n"
        "Host cmd\n ProxyCommand nc %h %p %%\n",
    )
    web = find_alias("web", path)
    assert web is not None
    assert (web.hostname, web.port, web.user) == ("web.example", 2200, "ada")
    assert web.identity_files == (f"{ssh_config.ssh_home()}/keys/web.example-2200",)
    assert web.proxy_jump == ("me@a:1", "b")
    assert web.known_as == "pinned"
    assert web.identity_agent is None
    assert web.known_hosts_files[:2] == (f"{tmp_path}/web", "/x")
    assert dict(web.environment) == {"TRAVELLER": "yes", "A": "b c"}
    cmd = find_alias("cmd", path)
    assert cmd is not None
    assert cmd.proxy_command == "nc cmd 22 %"
    other = find_alias("eve@web", path)
    assert other is not None
    assert other.user == "eve"
    for name in ("nobody", "@web", "-l@web", "$(id)@web", "a b@web"):
        assert find_alias(name, path) is None


def test_a_config_that_ssh_refuses_is_told_with_its_line(tmp_path: Path) -> None:
    find_sshd()
    path = write(tmp_path, "Host web\n Bogus yes\n")
    with pytest.raises(ConnectionFailed, match="ssh cannot resolve web"):
        find_alias("web", path)


def test_without_ssh_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConnectionFailed, match="ssh is not installed") as caught:
        resolve("web")
    assert "openssh-client" in caught.value.hint


@pytest.mark.parametrize(
    ("hop", "parts"),
    [
        ("a", (None, "a", None)),
        ("u@a:22", ("u", "a", 22)),
        ("u@dom@a", ("u@dom", "a", None)),
        ("[::1]:99", (None, "::1", 99)),
        ("ssh://u@a:7/", ("u", "a", 7)),
    ],
)
def test_hops(hop: str, parts: tuple[str | None, str, int | None]) -> None:
    assert split_hop(hop) == parts


@settings(max_examples=200, deadline=None)
@given(st.text("ab@:[]/1 ", max_size=12))
def test_any_hop_is_parsed_or_refused(hop: str) -> None:
    try:
        _, host, _ = split_hop(hop)
    except CodexctlError:
        return
    assert host
