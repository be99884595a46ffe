"""The ssh provider against a real machine: the contract, and what it leaves as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from codexctl_plugins.ssh import SshProvider

from codexctl.provision.conformance import ProviderConformance
from codexctl.provision.model import Provider
from tests.provision import machine
from tests.provision.conftest import World

pytestmark = pytest.mark.skipif(bool(machine.unavailable()), reason=machine.unavailable())
MINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPeIkp6PtKTP7MMWhZ8CEKnLtBRWt7RV7rb2WHPkLAvH me\n"


class Devbox:
    """A machine that exists: its folder, and an ssh config with an alias for it."""

    def __init__(self, folder: Path, shell: str = "/bin/bash", **user: Any) -> None:
        self.folder = folder / "devbox"
        self.folder.mkdir(parents=True)
        key = folder / "mykey"
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", key], check=True)
        public = key.with_suffix(".pub").read_text().strip()
        user = {"name": "me", "shell": shell, "ssh_authorized_keys": [public], **user}
        port, self.pid = machine.boot(self.folder, yaml.safe_dump({"users": [user]}))
        self.home = self.folder / "home" / "me"
        self.key, self.port = key, port
        self.known_hosts = folder / "known_hosts"
        host_key = (self.folder / "ssh" / "ssh_host_ed25519_key.pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}")
        self.config = folder / "config"
        self.text = (
            f"Host devbox\n  HostName 127.0.0.1\n  Port {port}\n  User me\n"
            f"  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.known_hosts}\n  GlobalKnownHostsFile /dev/null\n"
        )
        self.config.write_text(self.text)
        machine.await_port(port)

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Mode and content of everything in the home."""
        return {
            str(path.relative_to(self.home)): (path.stat().st_mode, path.read_bytes())
            for path in sorted(self.home.rglob("*"))
            if path.is_file()
        }


class TestSsh(ProviderConformance):
    @pytest.fixture(autouse=True)
    def _devbox(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.devbox = Devbox(tmp_path)
        monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(self.devbox.config))
        yield
        machine.halt(self.devbox.pid)

    def provider(self) -> Provider:
        return SshProvider()

    def options(self) -> dict[str, Any]:
        return {"destination": "devbox"}

    @contextmanager
    def _elsewhere(self) -> Iterator[None]:
        self.devbox.config.write_text(self.devbox.text.replace("Port ", "Port 1\n#"))
        yield
        self.devbox.config.write_text(self.devbox.text)

    def provoke(self, fault: str) -> Any:
        return self._elsewhere() if fault in ("unreachable", "server-error") else None


@pytest.mark.parametrize("shell", ["bash", "fish", "tcsh"])
def test_an_adopted_machine_is_left_as_it_was(world: World, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    devbox = Devbox(world.folder, path)
    keys = devbox.home / ".ssh" / "authorized_keys"
    keys.write_text(keys.read_text() + MINE.rstrip("\n"))
    before = devbox.snapshot()
    env = {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
    done = world.run("provision", "ssh", "devbox", "--name", "box", "--bare", "--yes", **env)
    assert done.returncode == 0, done.stderr
    assert "nothing of it is ever destroyed" in done.stderr
    answer = subprocess.run(
        ["ssh", "-F", devbox.config, "box", "echo hello"], capture_output=True, text=True
    )
    assert answer.stdout == "hello\n", answer.stderr
    listed = json.loads(world.ok("workspace", "list", "--json"))
    assert (listed[0]["provider"], listed[0]["spent"]) == ("ssh", "0.0000")
    assert world.run("workspace", "reap", "--yes", **env).returncode == 0
    world.ok("workspace", "destroy", "box", "--yes", **env)
    after = devbox.snapshot()
    name = ".ssh/authorized_keys"
    assert after.pop(name)[1] == before.pop(name)[1] + b"\n"
    assert after == before
    assert devbox.config.read_text() == devbox.text
    assert world.left_here() == []


def test_an_unknown_or_changed_host_key_is_told_and_nothing_is_sent(world: World) -> None:
    devbox = Devbox(world.folder)
    env = {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
    known = devbox.known_hosts.read_text()
    devbox.known_hosts.write_text("")
    done = world.run("provision", "ssh", "devbox", "--bare", "--yes", **env)
    assert "the host key of devbox is not known yet" in done.stderr
    name, kind, _ = known.split()[:3]
    devbox.known_hosts.write_text(f"{name} {kind} {MINE.split()[1]}\n")
    done = world.run("provision", "ssh", "devbox", "--bare", "--yes", **env)
    assert "has changed; nothing was sent" in done.stderr
    assert not (devbox.home / ".codexctl-workspaces").exists()


def test_what_a_cloud_alone_can_do_is_refused(world: World) -> None:
    devbox = Devbox(world.folder)
    env = {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
    for option in (["--ttl", "8h"], ["--package", "git"], ["--idle-stop", "1h"]):
        done = world.run("provision", "ssh", "devbox", "--bare", "--yes", *option, **env)
        assert done.returncode == 2, done.stderr
    assert not (devbox.home / ".codexctl-workspaces").exists()
