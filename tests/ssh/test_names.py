"""A name that is a paired host and an ssh alias: which one is meant, and who says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from codexctl.cli.target import find_host, find_ssh
from codexctl.client.store import HostRecord, HostStore
from codexctl.errors import ConnectionFailed
from codexctl.paths import Home
from codexctl.secret import Secret
from tests.support.sshd import find_sshd


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    find_sshd()
    (tmp_path / "config").write_text("Host box web\n  HostName 192.0.2.7\n")
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("CODEXCTL_HOME", str(tmp_path / "home"))
    home = Home(str(tmp_path / "home")).ensure()
    record = HostRecord(
        name="box",
        environment_id="e",
        own_name="box",
        host_key=bytes(32),
        suite="c",
        relay="http://127.0.0.1:1",
        pin=None,
        token=Secret("t"),
        token_expires_at=0,
        device_id="d",
        scopes=("exec",),
        paired_at=0,
    )
    HostStore(home).add(record)
    return home


def test_the_paired_host_comes_first_and_ssh_can_be_forced(home: Home) -> None:
    assert find_host(home, "box") is not None
    assert find_host(home, "ssh:box") is None
    assert find_ssh("ssh:box").hostname == "192.0.2.7"
    assert find_host(home, "web") is None
    assert find_ssh("web").alias == "web"
    with pytest.raises(ConnectionFailed, match="no host is called nobody"):
        find_ssh("nobody")


def test_it_is_told_once_and_to_a_person(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_host(home, "box")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    find_host(home, "box")
    assert "ssh:box is SSH" in capsys.readouterr().err
    find_host(home, "box")
    assert capsys.readouterr().err == ""
