"""A workspace with everything: codex, this very codexctl as its wheel, a host that is paired."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codexctl.client.store import HostRecord, HostStore
from codexctl.paths import ENV_RELAY_TOKEN as ENV_TOKEN
from codexctl.paths import Home
from codexctl.provision.pairing import ENV_RELAY, default_relay
from codexctl.secret import Secret
from tests.provision.conftest import World
from tests.provision.network import Network

PROVISION = ("provision", "reference", "--name", "box", "--yes", "--json")
INSTALLED = ".local/share/codexctl"


@contextmanager
def serving_relay(env: dict[str, str]) -> Iterator[str]:
    """A relay run from the home of `env`, reached by the machine on loopback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "codexctl", "relay", "serve", "--json", "--listen", "127.0.0.1:0"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process:
        yield json.loads(process.stdout.readline())["relay"]
        process.terminate()
        process.stdout.read()


@pytest.fixture
def relay(machines: World) -> Iterator[str]:
    with serving_relay(machines.env) as url:
        yield url


def home_of(world: World) -> Path:
    """CODEXCTL_HOME on the one machine that there is."""
    (home,) = (world.cloud / "machines").glob("*/home/codex/.codexctl")
    return home


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
    assert (home_of(machines) / "relay.token").read_text().startswith("cxe_"), "it worked once"
    tokens = json.loads(machines.ok("relay", "token", "list", "--json"))
    assert {(t["kind"], t["status"]) for t in tokens} == {("host", "active"), ("device", "active")}
    machines.ok("workspace", "destroy", "box", "--yes")
    assert machines.things() == []
    assert machines.left_here() == []
    assert json.loads(machines.ok("hosts", "--json")) == []
    tokens = json.loads(machines.ok("relay", "token", "list", "--json"))
    assert {token["status"] for token in tokens} == {"revoked"}


def test_the_persons_own_token_for_a_relay_elsewhere_never_reaches_the_machine(
    machines: World,
) -> None:
    """And the relay need not be named where this device knows it."""
    prepared(machines)
    elsewhere = {**machines.env, "CODEXCTL_HOME": str(machines.folder / "relay-home")}

    def at_relay(*words: str) -> str:
        command = [sys.executable, "-m", "codexctl", "relay", "token", *words]
        return subprocess.run(
            command, env=elsewhere, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with serving_relay(elsewhere) as url:
        mine = at_relay("create", "--name", "me").strip()
        machines.env |= {"CODEXCTL_RELAY": url, "CODEXCTL_RELAY_TOKEN": mine}
        events = machines.events(*PROVISION)
        assert events[0]["relay"] == url
        assert f"paired with this device through {url}" in " ".join(events[0]["notes"])
        assert machines.ok("exec", "box", "--", "echo", "hello") == "hello\n"
        kept = [path for path in home_of(machines).rglob("*") if path.is_file()]
        assert any(b"cxr_" in path.read_bytes() for path in kept), "the host has one of its own"
        assert not any(mine.encode() in path.read_bytes() for path in kept)
        # Begun again, it goes on with the host that runs; nothing is got twice.
        assert machines.run("provision", "--resume", "box", "--json").returncode == 0
        machines.ok("workspace", "destroy", "box", "--yes")
        tokens = json.loads(at_relay("list", "--json"))
        assert {(t["kind"], t["status"]) for t in tokens} == {
            ("owner", "active"),
            ("host", "revoked"),
            ("device", "revoked"),
        }


def test_a_relay_that_takes_no_token_of_ours_is_said(
    machines: World, relay: str, tmp_path: Path
) -> None:
    prepared(machines)
    (machines.home / "relay.db").rename(tmp_path / "relay.db")  # as if it ran elsewhere
    for token, reason in (("", "no token for"), ("cxr_wrong", "does not take")):
        name = f"box{len(token)}"
        command = ("provision", "reference", "--name", name, "--yes", "--json", "--relay", relay)
        done = machines.run(*command, CODEXCTL_RELAY_TOKEN=token)
        events = [json.loads(line) for line in done.stdout.splitlines()]
        (paired,) = (e for e in events if e.get("stage") == "paired")
        assert (paired["state"], events[-1]["event"]) == ("skipped", "ready")
        assert reason in paired["detail"]


def test_the_way_to_the_machine_drops_while_codexctl_is_installed_and_paired(
    machines: World, relay: str
) -> None:
    prepared(machines)
    with Network() as network:
        machines.env |= network.variables
        drop = "told codexctl waiting,told paired waiting"
        done = machines.run(*PROVISION, "--relay", relay, CODEXCTL_TEST_DROP=drop)
        assert done.returncode == 0, done.stderr
        assert network.drops == 2
        assert machines.ok("exec", "box", "--", "echo", "hello") == "hello\n"
    tokens = json.loads(machines.ok("relay", "token", "list", "--json"))
    active = [token["kind"] for token in tokens if token["status"] == "active"]
    assert active.count("host") == 1


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


@pytest.mark.parametrize(
    ("relays", "expected"),
    [
        (["https://relay.example"], "https://relay.example"),
        (["https://relay.example", "https://relay.example"], "https://relay.example"),
        (["https://relay.example", "https://other.example"], ""),
        (["http://127.0.0.1:8700"], ""),
        (["http://localhost:8700", "https://relay.example"], "https://relay.example"),
        ([], ""),
    ],
)
def test_the_relay_of_the_paired_hosts_is_taken_where_it_is_of_use(
    relays: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENV_RELAY, raising=False)
    monkeypatch.setenv(ENV_TOKEN, "cxr_mine")
    home = Home(str(tmp_path)).ensure()
    for number, url in enumerate(relays):
        name = f"host{number}"
        HostStore(home).add(
            HostRecord(
                *(name, f"environment{number}", name, b"k" * 32, "suite", url, None),
                *(Secret("cxr_device"), 0, "device", ("exec",), 0),
            )
        )
    assert default_relay(home) == expected
    monkeypatch.setenv(ENV_RELAY, "https://named.example/")
    assert default_relay(home) == "https://named.example"
    monkeypatch.delenv(ENV_RELAY)
    monkeypatch.delenv(ENV_TOKEN)
    assert default_relay(home) == "", "without a token of its owner it is of no use"
