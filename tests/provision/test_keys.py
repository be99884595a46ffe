"""Keys of a workspace: OpenSSH's own format, private, never overwritten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from codexctl.errors import CodexctlError, StateError
from codexctl.paths import Home
from codexctl.provision import keys
from codexctl.provision.keys import WorkspaceFiles, ensure_key
from codexctl.secret import Secret


def test_ssh_keygen_reads_what_is_made(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    line = ensure_key(path, "codexctl-1")
    assert os.stat(path).st_mode & 0o777 == 0o600
    said = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", path], capture_output=True, text=True, check=True
    )
    assert said.stdout.split()[:2] == line.split()[:2]
    assert line.endswith(" codexctl-1")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    line = ensure_key(str(path), "x")
    before = path.read_bytes()
    assert ensure_key(str(path), "y") == line
    (tmp_path / "key.pub").unlink()
    assert ensure_key(str(path), "x") == line
    assert path.read_bytes() == before


def test_a_passphrase_is_needed_to_read_it(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    ensure_key(path, "x", Secret("right"))
    for phrase, works in (("right", True), ("wrong", False), ("", False)):
        said = subprocess.run(["ssh-keygen", "-y", "-P", phrase, "-f", path], capture_output=True)
        assert (said.returncode == 0) == works
    os.unlink(f"{path}.pub")
    with pytest.raises(StateError, match="passphrase"):
        ensure_key(path, "x", Secret("wrong"))
    assert ensure_key(path, "x", Secret("right")).startswith("ssh-ed25519 ")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "key")
    ensure_key(path, "x")
    os.chmod(path, 0o644)
    with pytest.raises(StateError, match="can be read by others"):
        ensure_key(path, "x")


def test_a_full_disk_leaves_no_half_key() -> None:
    with pytest.raises((StateError, FileExistsError)):
        ensure_key("/dev/full", "x")


def test_pinning_and_its_end(tmp_path: Path) -> None:
    files = WorkspaceFiles(Home(str(tmp_path)), "a" * 32)
    files.make()
    assert files.pinned() == []
    files.pin(["ssh-ed25519 AAAA", "ssh-rsa BBBB"])
    assert files.pinned() == ["ssh-ed25519 AAAA", "ssh-rsa BBBB"]
    assert Path(files.known_hosts).read_text().startswith(f"codexctl-{'a' * 32} ssh-ed25519")
    files.remove()
    files.remove()
    assert not os.path.exists(files.folder)


def test_the_agent_takes_the_key_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "agent"
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert agent.stdout is not None
        agent.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        path = str(tmp_path / "key")
        line = ensure_key(path, "codexctl-1")
        keys.add_to_agent(path)
        held = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True)
        assert line.split()[1] in held.stdout
        keys.remove_from_agent(path)
        keys.remove_from_agent(path)
        held = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True)
        assert line.split()[1] not in held.stdout
    finally:
        agent.terminate()
        agent.communicate()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    with pytest.raises(CodexctlError, match="no ssh agent"):
        keys.add_to_agent(path)
