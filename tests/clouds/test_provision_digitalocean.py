"""codexctl's command line against the fake DigitalOcean: a whole life, and deaths on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_digitalocean import FakeDigitalOcean, fake_digitalocean
from tests.clouds.machines import Machines, use
from tests.clouds.test_digitalocean import NOTHING, ONE
from tests.provision import machine
from tests.provision.conftest import World

ADDRESS = "127.22.0.1"
PROVISION = ("provision", "digitalocean", "--region", "lon1", "--name", "api", "--yes", "--bare")
DESTROY = ("workspace", "destroy", "api", "--yes")
SSH_TIMEOUT_S = 30


@contextmanager
def world_with(cloud: FakeDigitalOcean, folder: Path) -> Iterator[World]:
    world = World(folder)
    world.env |= {
        "DIGITALOCEAN_END_POINT": cloud.url,
        "DIGITALOCEAN_TOKEN": TOKEN,
        "NO_PROXY": "*",
    }
    try:
        yield world
    finally:
        machine.halt_all(folder)


def test_a_droplet_with_a_real_machine_behind_it_lives_works_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with fake_digitalocean() as cloud, world_with(cloud, tmp_path) as world:
        machines = Machines(tmp_path, ADDRESS)
        cloud.on_boot = lambda droplet: machines.boot(
            droplet["id"], cloud.user_data[int(droplet["id"])]
        )
        cloud.on_destroy = machines.halt
        cloud.boot_polls = 2
        events = world.events(*PROVISION, "--ttl", "8h", "--json")
        assert events[-1]["event"] == "ready", events
        assert cloud.exists() == ONE
        use(world, "api")
        assert world.ok("workspace", "list").count("api") == 1
        assert "nothing" in world.run("workspace", "reap").stderr
        world.ok(*DESTROY)
        assert cloud.exists() == NOTHING
        assert cloud.hourly_bill() == 0
        assert world.left_here() == []


# Where codexctl dies: the call that the cloud has received, and whether it is carried out.
DEATHS = [
    ("POST", "/v2/tags", True),
    ("POST", "/v2/firewalls", False),
    ("POST", "/v2/firewalls", True),
    ("POST", "/v2/account/keys", True),
    ("POST", "/v2/droplets", False),
    ("POST", "/v2/droplets", True),
    ("GET", "/v2/droplets/.*", True),
    ("DELETE", "/v2/droplets/.*", False),
    ("DELETE", "/v2/droplets/.*", True),
    ("DELETE", "/v2/firewalls/.*", True),
    ("DELETE", "/v2/account/keys/.*", True),
    ("DELETE", "/v2/tags/codexctl-id.*", True),
]


def killed_in(folder: Path, number: int) -> str:
    """A row of the table: what was there when codexctl died, what ended it, what is left."""
    method, path, effect = DEATHS[number]
    with fake_digitalocean() as cloud, world_with(cloud, folder) as world:
        # Nothing listens on the droplet: a provision is at its end only by being killed.
        cloud.on_boot = lambda droplet: "127.22.0.2"
        if method == "DELETE":
            die_in(cloud, world, PROVISION, "GET", "/v2/droplets/.*", effect=True)
        die_in(
            cloud, world, DESTROY if method == "DELETE" else PROVISION, method, path, effect=effect
        )
        there = cloud.exists()
        ending = ("workspace", "reap", "--yes") if number % 2 else DESTROY
        world.ok(*ending)
        assert cloud.exists() == NOTHING, (method, path, effect)
        assert world.left_here() == []
        assert json.loads(world.ok("workspace", "list", "--json")) == []
        counts = " ".join(f"{name} {count}" for name, count in there.items())
        return f"{method} {path} {'done' if effect else 'not done'}: {counts}; {ending[1]}: nothing"


def die_in(
    cloud: FakeDigitalOcean,
    world: World,
    command: tuple[str, ...],
    method: str,
    path: str,
    *,
    effect: bool,
) -> None:
    victim: list[subprocess.Popen[str]] = []
    cloud.fail(method, path, None, effect=effect, meanwhile=lambda: victim[0].kill())
    victim.append(world.start(*command))
    _, errors = victim[0].communicate(timeout=SSH_TIMEOUT_S)
    assert victim[0].returncode == -signal.SIGKILL, errors


@pytest.mark.slow
def test_killed_in_any_call_it_is_brought_to_an_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = [tmp_path / str(number) for number in range(len(DEATHS))]
        rows = list(pool.map(killed_in, folders, range(len(DEATHS))))
    with capsys.disabled():
        sys.stdout.write("\n".join(["", "killed while DigitalOcean was asked to", *rows, ""]))
