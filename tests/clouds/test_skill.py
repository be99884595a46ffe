"""The skill: the official codex lists it, an agent's turn carries it, and its commands work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import codexctl
from codexctl.cli.skill import PLUGIN, folder
from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_digitalocean import fake_digitalocean
from tests.clouds.machines import Machines
from tests.clouds.test_digitalocean import NOTHING
from tests.docs.blocks import parse
from tests.docs.cli_reference import PLUGIN_SKILL, SKILL
from tests.provision.conftest import World, world
from tests.provision.test_pairing import INSTALLED, prepared
from tests.support.codex import (
    CODEX,
    codex_environment,
    make_codex_home,
    needs_codex,
    say,
    serving_model,
)

__all__ = ["world"]

ADDRESS = "127.22.0.5"
TIMEOUT_S = 100


def test_the_plugin_carries_the_skill_and_the_version_of_this_codexctl() -> None:
    assert PLUGIN_SKILL.read_bytes() == SKILL.read_bytes(), "run ./dev docs"
    root = Path(folder())
    manifest = json.loads((root / "codexctl" / ".codex-plugin" / "plugin.json").read_text())
    assert manifest["version"] == codexctl.__version__
    assert all(len(prompt) <= 128 for prompt in manifest["interface"]["defaultPrompt"])


class Official:
    """The real codex with a home of its own, and codexctl beside it on the PATH."""

    def __init__(self, folder: Path, url: str = "") -> None:
        assert CODEX is not None
        self.home = folder / "codex-home"
        self.home.mkdir(exist_ok=True)
        binaries = folder / "bin"
        binaries.mkdir()
        (binaries / "codex").symlink_to(CODEX)
        self.env = codex_environment(self.home, HOME=str(folder))
        self.env["PATH"] = f"{binaries}:{self.env['PATH']}"
        self.env["CODEXCTL_HOME"] = str(folder / "home")
        self.cwd = folder

    def codexctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "codexctl", *words],
            env=self.env,
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """One answer of the app-server."""
        messages = [
            {"id": 1, "method": "initialize", "params": {"clientInfo": _CLIENT}},
            {"method": "initialized"},
            {"id": 2, "method": method, "params": params},
        ]
        with subprocess.Popen(
            ["codex", "app-server"],
            env=self.env,
            executable=CODEX,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                for message in messages:
                    server.stdin.write(json.dumps(message) + "\n")
                    server.stdin.flush()
                for line in server.stdout:
                    answer = json.loads(line)
                    if answer.get("id") == 2:
                        return answer["result"]
            finally:
                server.kill()
        raise AssertionError(f"codex ended before it answered {method}")

    def skills(self) -> dict[str, Any]:
        """Those of this plugin, by name."""
        found = self.call("skills/list", {"cwds": [str(self.cwd)], "forceReload": True})
        every = [skill for entry in found["data"] for skill in entry["skills"]]
        return {skill["name"]: skill for skill in every if skill.get("pluginId") == PLUGIN}


_CLIENT = {"name": "codexctl-tests", "version": "1"}


@needs_codex
def test_the_official_codex_lists_the_skill_and_forgets_it_again(tmp_path: Path) -> None:
    official = Official(tmp_path)
    done = official.codexctl("skill", "install", "--json")
    assert done.returncode == 0, done.stderr
    assert "codex plugin add codexctl@codexctl" in done.stderr, "codex's own commands are shown"
    assert json.loads(done.stdout)["version"] == codexctl.__version__
    skill = official.skills()["codexctl:codexctl"]
    assert skill["enabled"] is True
    assert "spin up a 4-vCPU machine in London" in skill["description"]
    assert Path(skill["path"]).read_bytes() == SKILL.read_bytes()
    # A second time, as after an update, changes nothing for the worse.
    assert official.codexctl("skill", "install").returncode == 0
    assert "codexctl:codexctl" in official.skills()
    done = official.codexctl("skill", "remove")
    assert done.returncode == 0, done.stderr
    assert official.skills() == {}


@needs_codex
def test_a_turn_of_the_agent_is_told_of_the_skill_and_gets_its_text(tmp_path: Path) -> None:
    with serving_model([[say("understood")]]) as model:
        official = Official(tmp_path)
        make_codex_home(official.home, model)
        assert official.codexctl("skill", "install").returncode == 0
        done = subprocess.run(
            ["codex", "exec", "--skip-git-repo-check", "$codexctl:codexctl a machine in London"],
            executable=CODEX,
            env=official.env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stderr
        sent = json.dumps(model.requests[0])
    assert "make or end cloud workspaces" in sent, "the list of skills"
    assert "Spin up a 4-vCPU machine in London" in sent, "the skill's own text"


def test_without_codex_it_says_what_to_do(world: World) -> None:
    done = world.run("skill", "install", PATH="/nowhere")
    assert done.returncode == 1
    assert "not on the PATH" in done.stderr
    assert "codexctl skill show" in done.stderr
    assert world.ok("skill", "show") == SKILL.read_text(encoding="utf-8")


def test_the_conversation_in_the_skill_orders_uses_and_ends_a_machine(world: World) -> None:
    """Each command of SKILL.md about a cloud, in its order, by a shell as an agent runs it."""
    machines = Machines(world.folder, ADDRESS)
    prepared(world)
    blocks = [block for block in parse(SKILL) if block.where == "cloud"]
    assert len(blocks) == 3
    with fake_digitalocean() as cloud:
        world.env |= {
            "DIGITALOCEAN_END_POINT": cloud.url,
            "DIGITALOCEAN_TOKEN": TOKEN,
            "NO_PROXY": "*",
        }

        def boot(droplet: dict[str, Any]) -> str:
            place = world.folder / f"machine-{droplet['id']}" / "home" / "codex" / INSTALLED
            shutil.copytree(world.cloud / "skeleton" / INSTALLED, place, symlinks=True)
            return machines.boot(droplet["id"], cloud.user_data[int(droplet["id"])])

        cloud.on_boot, cloud.on_destroy = boot, machines.halt
        said = [play(world, command.text) for command in blocks[0].commands]
        providers, _, offer, plan = (json.loads(text) for text in said)
        assert {p["name"] for p in providers if p["creates"]} >= {"digitalocean", "aws"}
        enough = [size for size in offer["sizes"] if size["cpus"] >= 4]
        assert min(enough, key=lambda size: float(size["hour"]))["size"] == plan["size"]
        assert plan["price_hour"].startswith("0.0714")
        assert (plan["event"], plan["ttl_s"]) == ("plan", 8 * 3600)
        assert cloud.exists() == NOTHING, "nothing is made before the person has agreed"
        events, cpus, listed = (play(world, command.text) for command in blocks[1].commands)
        assert json.loads(events.splitlines()[-1])["event"] == "ready"
        assert int(cpus) >= 1
        assert [w["name"] for w in json.loads(listed)] == ["api"]
        last = [play(world, command.text) for command in blocks[2].commands]
        assert json.loads(last[2].splitlines()[-1])["stage"] == "gone"
        assert json.loads(last[3]) == []
        assert cloud.exists() == NOTHING
    assert world.left_here() == []


def play(world: World, command: str) -> str:
    """What it prints, run by a shell that has codexctl on its PATH."""
    binaries = world.folder / "bin"
    if not binaries.exists():
        binaries.mkdir()
        script = binaries / "codexctl"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m codexctl "$@"\n')
        script.chmod(0o755)
    done = subprocess.run(
        ["sh", "-ec", command],
        env={**world.env, "PATH": f"{binaries}{os.pathsep}{world.env['PATH']}"},
        cwd=world.folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
