"""The ssh provider on machines as people have them: an ordinary user, no root, no sudo.

Reached with the agent's key, with a password (typed on a terminal, or given by an askpass program),
through a jump host, by any login shell; and workspaces whose own key has a passphrase.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.provision import machine
from tests.provision.conftest import World
from tests.provision.npm_registry import VERSION, npm_registry
from tests.provision.terminal import typed
from tests.provision.test_ssh_provider import Devbox

pytestmark = pytest.mark.skipif(bool(machine.unavailable()), reason=machine.unavailable())
UID = 4321
PASSWORD = "correct horse"
BARE = ("provision", "ssh", "devbox", "--name", "box", "--bare", "--yes", "--json")
TIMEOUT_S = 90


def password_hash() -> str:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "passwd", "-6", PASSWORD]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def without_key(devbox: Devbox) -> None:
    devbox.config.write_text(
        devbox.text.replace(f"  IdentityFile {devbox.key}\n", "  PubkeyAuthentication no\n", 1)
    )


def run_by(world: World, devbox: Devbox, *args: str, **env: str) -> str:
    return world.ok(*args, CODEXCTL_SSH_CONFIG=str(devbox.config), **env)


def says(devbox: Devbox, command: str, *words: str, **env: str) -> str:
    """What ssh says to the workspace's own alias."""
    done = subprocess.run(
        ["ssh", "-F", devbox.config, *words, "box", command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def agent(folder: Path) -> Iterator[dict[str, str]]:
    """A running ssh-agent."""
    socket = str(folder / "agent")
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it listens
        yield {"SSH_AUTH_SOCK": socket}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def in_agent(env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        ["ssh-add", "-L"], env={**os.environ, **env}, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith("ssh-")]


@pytest.mark.parametrize("shell", ["bash", "fish", "csh"])
def test_an_ordinary_user_by_any_shell(world: World, shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    devbox = Devbox(world.folder, path, uid=UID)
    before = devbox.snapshot()
    run_by(world, devbox, *BARE)
    assert says(devbox, "id -u").strip() == str(UID)
    run_by(world, devbox, "workspace", "destroy", "box", "--yes")
    assert devbox.snapshot() == before
    owners = {path.stat().st_uid for path in devbox.home.rglob("*")}
    assert owners == {UID}


def test_codexctl_is_installed_by_an_ordinary_user_and_taken_away(world: World) -> None:
    """Neither root nor sudo: all of it in the user's own home, under its own login shell."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    version = "import sys; print(*sys.version_info[:2])"
    found = (
        python and subprocess.run([python, "-c", version], capture_output=True, text=True).stdout
    )
    if not found or found.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip("the system's Python is another one than that of the tests")
    fish = shutil.which("fish") or "/bin/bash"
    devbox = Devbox(world.folder, fish, uid=UID, libraries=sysconfig.get_path("purelib"))
    place = devbox.home / ".local" / "share" / "codexctl" / "venv"
    subprocess.run([str(python), "-m", "venv", "--without-pip", "--symlinks", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("/home/libraries\n")
    for path in (devbox.home / ".local", *(devbox.home / ".local").rglob("*")):
        os.lchown(path, UID, UID)
    command = [word for word in BARE if word != "--bare"]
    events = [json.loads(line) for line in run_by(world, devbox, *command).splitlines()]
    done = {event["stage"] for event in events if event.get("state") == "ok"}
    assert {"login", "codex", "codexctl", "ready"} <= done
    assert says(devbox, "~/.local/bin/codexctl --version").startswith("codexctl ")
    assert not os.path.lexists(devbox.folder / "bin" / "codexctl"), "not for everybody"
    run_by(world, devbox, "workspace", "destroy", "box", "--yes")
    left = [path for path in devbox.home.rglob("*") if "codexctl" in path.name]
    assert left == []


@pytest.mark.parametrize("shell", ["bash", "fish", "csh", "zsh"])
def test_codex_is_put_on_the_path_of_any_login_shell_and_taken_off(
    world: World, shell: str
) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    devbox = Devbox(world.folder, path, uid=UID)
    (devbox.folder / "bin" / "codex").unlink()
    (devbox.home / ".profile").write_text("# mine, without a last line's end")
    (devbox.home / ".cshrc").write_text("set mine = 1\n")
    for name in (".profile", ".cshrc"):
        os.chown(devbox.home / name, UID, UID)
    before = {name: content for name, (_, content) in devbox.snapshot().items()}
    with npm_registry() as registry:
        # The wheel is not sent: what is looked at is how codex is found.
        done = world.run(
            *(word for word in BARE if word != "--bare"),
            "--no-pair",
            CODEXCTL_SSH_CONFIG=str(devbox.config),
            CODEXCTL_NPM_REGISTRY=registry,
            CODEXCTL_TEST_KILL="journal prepared",
        )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert any("codex is missing" in note for note in events[0]["notes"])
    (found,) = [e for e in events if (e.get("stage"), e.get("state")) == ("codex", "ok")]
    assert f"codex-cli {VERSION}" in found["detail"]
    run_by(world, devbox, "workspace", "destroy", "box", "--yes")
    after = {name: content for name, (_, content) in devbox.snapshot().items()}
    assert {name: text.rstrip(b"\n") for name, text in after.items()} == {
        name: text.rstrip(b"\n") for name, text in before.items()
    }


def test_with_a_key_of_the_agent_through_a_jump_host(world: World, tmp_path: Path) -> None:
    jump = Devbox(tmp_path / "jump", uid=UID)
    try:
        devbox = Devbox(world.folder, uid=UID)
        # The key is only in the agent, and the machine only behind the jump host.
        hidden = devbox.text.replace(f"  IdentityFile {devbox.key}\n", "").replace(
            "  IdentityAgent none\n  ", "  ProxyJump jump\n  "
        )
        devbox.config.write_text(
            hidden.replace("  IdentitiesOnly yes\n", "") + jump.text.replace("devbox", "jump")
        )
        with agent(tmp_path) as env:
            add = ["ssh-add", "-q", str(devbox.key)]
            subprocess.run(add, env={**os.environ, **env}, check=True)
            run_by(world, devbox, *BARE, **env)
            assert says(devbox, "echo hello", **env) == "hello\n"
            shown = run_by(world, devbox, "workspace", "ssh-config", "box")
            assert "ProxyJump jump" in shown
            done = run_by(world, devbox, "exec", "box", "--", "echo", "by codexctl", **env)
            assert done == "by codexctl\n"
            log = (jump.folder / "var" / "sshd.log").read_text()
            assert "Accepted publickey for me" in log, "it went through the jump host"
            run_by(world, devbox, "workspace", "destroy", "box", "--yes", **env)
        assert not (devbox.home / ".codexctl-workspaces").exists()
    finally:
        machine.halt(jump.pid)


def test_with_a_password_typed_on_a_terminal_once(world: World) -> None:
    devbox = Devbox(world.folder, uid=UID, passwd=password_hash())
    without_key(devbox)
    env = {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
    refused = world.run(*BARE, **env)
    assert "refuses the login" in refused.stderr, "nobody can be asked"
    status, said = typed(world, [("password: ", PASSWORD)], *BARE, **env)
    assert status == 0, said
    assert said.count("password: ") == 1, "one connection serves all of it"
    assert PASSWORD not in said
    status, said = typed(
        world, [("password: ", PASSWORD)], "workspace", "destroy", "box", "--yes", **env
    )
    assert status == 0, said
    assert not (devbox.home / ".codexctl-workspaces").exists()


def test_with_a_password_that_a_program_gives(world: World) -> None:
    devbox = Devbox(world.folder, uid=UID, passwd=password_hash())
    without_key(devbox)
    asked = world.folder / "asked"
    script = world.folder / "askpass"
    script.write_text(f"#!/bin/sh\necho \"$1\" >>'{asked}'\necho '{PASSWORD}'\n")
    script.chmod(0o755)
    run_by(world, devbox, *BARE, SSH_ASKPASS=str(script))
    assert "me@127.0.0.1's password" in asked.read_text()
    # The workspace's own key does the rest; ssh and codexctl ask nobody.
    done = run_by(world, devbox, "exec", "box", "--", "id", "-u")
    assert done.strip() == str(UID)


def test_the_workspaces_key_has_a_passphrase_and_lies_in_the_agent(world: World) -> None:
    devbox = Devbox(world.folder, uid=UID)
    secret = "a passphrase"
    with agent(world.folder) as env:
        env |= {"CODEXCTL_SSH_CONFIG": str(devbox.config)}
        # Killed on the way, it goes on with the same key and asks for the passphrase again.
        options = [word for word in (*BARE, "--key-passphrase", "--agent") if word != "--json"]
        questions = [("passphrase for the workspace's key", secret), ("Enter passphrase", secret)]
        status, said = typed(world, questions, *options, CODEXCTL_TEST_KILL="7", **env)
        assert status in (-9, 128 + 9), said
        again = [("passphrase for the workspace's key", "wrong")]
        status, said = typed(world, again, "provision", "--resume", "box", **env)
        assert status == 1, said
        assert "passphrase" in said
        questions = [("passphrase for the workspace's key", secret)]
        status, said = typed(world, questions, "provision", "--resume", "box", **env)
        assert status == 0, said
        assert secret not in said
        (key,) = (world.home / "workspaces").glob("*/id_ed25519")
        blank = ["ssh-keygen", "-y", "-P", "", "-f", str(key)]
        assert subprocess.run(blank, capture_output=True).returncode != 0
        assert len(in_agent(env)) == 1
        assert says(devbox, "echo hello", "-o", "BatchMode=yes", **env) == "hello\n"
        run_by(
            world,
            devbox,
            "workspace",
            "destroy",
            "box",
            "--yes",
            SSH_AUTH_SOCK=env["SSH_AUTH_SOCK"],
        )
        assert in_agent(env) == [], "it has left the agent as well"
    assert world.left_here() == []
