"""A home, a cloud in a folder and the reference plugin, as a process of its own would find them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.provision import machine

ROOT = Path(__file__).parents[2]
PLUGIN = "[codexctl.plugins]\nreference = tests.provision.reference\n"
RUN_TIMEOUT_S = 90


class World:
    """Where everything of one test is, and codexctl run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.cloud, self.ssh = folder / "home", folder / "cloud", folder / "ssh"
        info = folder / "plugins" / "codexctl_reference-1.0.dist-info"
        for path in (self.home, self.cloud, self.ssh, info):
            path.mkdir(parents=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: codexctl-reference\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(PLUGIN)
        self.config = self.ssh / "config"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": f"{ROOT}:{info.parent}",
            "CODEXCTL_HOME": str(self.home),
            "CODEXCTL_SSH_CONFIG": str(self.config),
            "REFERENCE_CLOUD": str(self.cloud),
            "REFERENCE_MACHINES": "" if machine.unavailable() else "1",
        }

    def faults(self, **faults: Any) -> None:
        (self.cloud / "faults.json").write_text(json.dumps(faults))

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A process of its own, with numbered points to kill it at."""
        return subprocess.run(
            [sys.executable, "-m", "tests.provision.killable", *args],
            env={**self.env, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A process that stays; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.provision.killable", *args],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ok(self, *args: str, **env: str) -> str:
        done = self.run(*args, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def events(self, *args: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok(*args).splitlines()]

    def things(self) -> list[str]:
        """What exists in the cloud."""
        return sorted(path.stem for path in (self.cloud / "things").glob("*.json"))

    def calls(self) -> list[str]:
        try:
            return (self.cloud / "calls.log").read_text().split()
        except FileNotFoundError:
            return []

    def left_here(self) -> list[str]:
        """Keys, config and Include lines that are left on this device."""
        left = [str(path) for path in (self.home / "workspaces").glob("*/*")]
        left += [str(path) for path in (self.home / "ssh_config",) if path.exists()]
        if self.config.exists() and "codexctl" in self.config.read_text():
            left.append(str(self.config))
        return left


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    machine.halt_all(tmp_path)


@pytest.fixture
def machines(world: World) -> World:
    """The same, with a real machine behind every one of the cloud's."""
    reason = machine.unavailable()
    if reason:
        pytest.skip(reason)
    return world
