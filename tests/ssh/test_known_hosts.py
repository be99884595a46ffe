"""known_hosts by ssh's rules, compared with ssh-keygen -F where that speaks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.known_hosts import known_keys, match_lines, refusal
from codexctl.errors import AuthenticationFailed
from tests.ssh.conftest import World
from tests.support.sshd import make_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.mark.parametrize(
    ("patterns", "name", "found"),
    [
        ("web", "web", True),
        ("web", "WEB", True),
        ("a,web,b", "web", True),
        ("*.example,!secret.example", "x.example", True),
        ("*.example,!secret.example", "secret.example", False),
        ("[web]:2200", "[web]:2200", True),
        ("[web]:2200", "web", False),
        ("web", "web2", False),
        ("|1|broken|", "web", False),
        ("|1|!!|!!", "web", False),
    ],
)
def test_patterns(patterns: str, name: str, found: bool) -> None:
    assert bool(match_lines("f", f"# c\n\n{patterns} {KEY} comment\n", name)) is found


def test_hashed_names_as_ssh_keygen_makes_them(tmp_path: Path) -> None:
    path = tmp_path / "kh"
    path.write_text(f"other {KEY}\n[web.example]:2200 {KEY}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", str(path)], check=True, capture_output=True)
    assert "web" not in path.read_text()
    found = match_lines("kh", path.read_text(), "[web.example]:2200")
    assert [(key.line, key.key) for key in found] == [(2, KEY)]


def test_markers_and_lines_that_say_nothing() -> None:
    text = f"@revoked web {KEY}\n@cert-authority * {KEY}\n@other web {KEY}\nweb\n@revoked\n"
    assert [(key.marker, key.line) for key in match_lines("f", text, "web")] == [
        ("revoked", 1),
        ("cert-authority", 2),
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("web|1@!*, \tA=\n#é\x00"), max_size=60))
def test_any_text_is_searched(text: str) -> None:
    for key in match_lines("f", text, "web"):
        assert key.line >= 1
        assert len(key.key.split(" ")) == 2


def test_the_bare_name_serves_a_port_that_no_line_has(world: World, tmp_path: Path) -> None:
    world.known_hosts.write_text("")
    world.trust(world.server, "127.0.0.1")
    target = world.target()
    assert [key.key for key in known_keys(target)] == [world.server.host_key]
    assert known_keys(target._replace(host_key_alias="other")) == []


def test_a_file_that_cannot_be_read_is_not_skipped(world: World, tmp_path: Path) -> None:
    target = world.target()._replace(known_hosts_files=(str(tmp_path),))
    with pytest.raises(AuthenticationFailed, match="cannot read"):
        known_keys(target)


def test_a_revoked_authority_is_named(world: World, tmp_path: Path) -> None:
    make_key(tmp_path / "k")
    key = " ".join((tmp_path / "k.pub").read_text().split()[:2])
    known = match_lines("file", f"web {KEY}\n@revoked web {key}\n", "web")
    assert "revoked in file line 2" in str(refusal(world.target(), known, key))
    assert "HAS CHANGED" in str(refusal(world.target(), known[:1], key))
    assert "not known" in str(refusal(world.target(), [], key))
