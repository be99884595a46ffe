"""A workspace with everything: codex, this very codexctl as its wheel, a host that is paired."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.provision.conftest import World

PROVISION = ("provision", "reference", "--name", "box", "--yes", "--json")
INSTALLED = ".local/share/codexctl"


@pytest.fixture
def relay(machines: World) -> Iterator[str]:
    """A relay run from the device's own home, reached by the machine on loopback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "codexctl", "relay", "serve", "--json", "--listen", "127.0.0.1:0"],
        env=machines.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield json.loads(process.stdout.readline())["relay"]
        process.terminate()
        process.stdout.read()


def prepared(world: World) -> None:
    """Have machines come with codexctl's dependencies, so that no test downloads them."""
    home = world.cloud / "skeleton" / INSTALLED
    home.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", home / "venv"], check=True
    )
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home / "venv")}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def test_a_workspace_is_paired_and_runs_commands_through_the_relay(
    machines: World, relay: str
) -> None:
    prepared(machines)
    events = machines.events(*PROVISION, "--relay", relay)
    done = {e["stage"]: e["detail"] for e in events if e.get("state") == "ok"}
    assert "codex-cli 0.0.0-test" in done["codex"]
    assert done["codexctl"].startswith("codexctl ")
    assert relay in done["paired"]
    hosts = json.loads(machines.ok("hosts", "--json"))
    assert [(h["name"], h["transport"], h["online"]) for h in hosts if h["transport"] != "ssh"] == [
        ("box", "relay", True)
    ]
    assert machines.ok("exec", "box", "--", "echo", "hello") == "hello\n"
    machines.ok("workspace", "destroy", "box", "--yes")
    assert machines.things() == []
    assert machines.left_here() == []
    assert json.loads(machines.ok("hosts", "--json")) == []
    tokens = json.loads(machines.ok("relay", "token", "list", "--json"))
    assert {token["status"] for token in tokens} == {"revoked"}


def test_without_a_relay_it_says_how_it_is_reached(machines: World) -> None:
    prepared(machines)
    events = machines.events(*PROVISION)
    paired = next(e for e in events if e.get("stage") == "paired")
    assert paired["state"] == "skipped"
    assert "over ssh" in paired["detail"]
    assert machines.ok("exec", "box", "--", "codexctl", "--version").startswith("codexctl ")


def test_codexctl_leaves_an_adopted_machine_without_a_trace(machines: World, relay: str) -> None:
    from tests.provision.test_ssh_provider import Devbox

    prepared(machines)
    devbox = Devbox(machines.folder)
    (devbox.home / ".local" / "share").mkdir(parents=True)
    skeleton = machines.cloud / "skeleton" / INSTALLED
    subprocess.run(["cp", "-a", skeleton, devbox.home / ".local" / "share"], check=True)
    env = {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
    machines.ok("provision", "ssh", "devbox", "--name", "box", "--yes", "--relay", relay, **env)
    assert machines.ok("exec", "box", "--", "pwd", **env).strip() == "/home/me/workspace"
    assert os.path.islink(devbox.home / ".local" / "bin" / "codexctl")
    machines.ok("workspace", "destroy", "box", "--yes", **env)
    assert not (devbox.home / INSTALLED).exists()
    assert not (devbox.home / ".codexctl").exists()
    assert not (devbox.home / "workspace").exists()
    assert not os.path.lexists(devbox.home / ".local" / "bin" / "codexctl")
    assert not os.path.lexists(devbox.folder / "bin" / "codexctl")
