"""One sshd for the folder's tests, and a world of config and known_hosts for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from codexctl.client.ssh_config import SshTarget, find_alias
from tests.support.sshd import Sshd


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd.start(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@dataclass
class World:
    """An ssh config and a known_hosts file that nothing else uses."""

    folder: Path
    server: Sshd
    blocks: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def add(
        self, name: str, *lines: str, server: Sshd | None = None, key: Path | None = None
    ) -> None:
        block = (server or self.server).alias(name, self.known_hosts, *lines, key=key)
        with self.config.open("a") as file:
            file.write(block)

    def trust(self, server: Sshd, name: str | None = None) -> None:
        with self.known_hosts.open("a") as file:
            file.write(server.known_hosts_line(name))

    def target(self, name: str = "web") -> SshTarget:
        found = find_alias(name, str(self.config))
        assert found is not None
        return found


@pytest.fixture
def world(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An alias `web` whose host key is known."""
    made = World(tmp_path, sshd)
    made.add("web")
    made.trust(sshd)
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(made.config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made
