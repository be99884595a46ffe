"""codexctl's command line against the fake AWS: a whole life, and deaths on the way."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.clouds.conftest import OpenAccount
from tests.clouds.fake_aws import KEY, SECRET_KEY, FakeAws
from tests.clouds.machines import Machines, use
from tests.provision.conftest import World, world

__all__ = ["world"]

ADDRESS = "127.22.0.3"
REGION = "eu-west-2"
PROVISION = ("provision", "aws", "--region", REGION, "--name", "api", "--yes", "--bare")
DESTROY = ("workspace", "destroy", "api", "--yes")
REAP = ("workspace", "reap", "--yes")
RUN_TIMEOUT_S = 60


def die_in(
    cloud: FakeAws, world: World, command: tuple[str, ...], action: str, **how: bool
) -> None:
    victim: list[subprocess.Popen[str]] = []
    cloud.fail(action, None, meanwhile=lambda: victim[0].kill(), **how)
    victim.append(world.start(*command))
    _, errors = victim[0].communicate(timeout=RUN_TIMEOUT_S)
    assert victim[0].returncode == -signal.SIGKILL, errors


@pytest.fixture
def there(aws: FakeAws, world: World) -> World:
    """A world in which AWS is the fake one."""
    world.env |= {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "*",
    }
    return world


def test_an_instance_with_a_real_machine_behind_it_lives_works_and_leaves_nothing(
    aws: FakeAws, open_aws: OpenAccount, there: World
) -> None:
    machines = Machines(there.folder, ADDRESS)
    aws.on_run, aws.on_terminate = machines.boot, machines.halt
    events = there.events(*PROVISION, "--ttl", "8h", "--json")
    assert events[-1]["event"] == "ready", events
    use(there, "api")
    assert "nothing" in there.run("workspace", "reap").stderr
    there.ok(*DESTROY)
    assert open_aws().list_owned([REGION]) == []
    assert there.left_here() == []


@pytest.mark.parametrize(
    ("action", "effect", "ending"),
    [
        ("RunInstances", False, DESTROY),
        ("RunInstances", True, REAP),
        ("TerminateInstances", True, DESTROY),
    ],
)
def test_killed_in_a_call_it_is_brought_to_an_end(
    aws: FakeAws,
    open_aws: OpenAccount,
    there: World,
    action: str,
    effect: bool,
    ending: tuple[str, ...],
) -> None:
    if action == "TerminateInstances":
        die_in(aws, there, PROVISION, "RunInstances", effect=True)
        die_in(aws, there, DESTROY, action, effect=effect)
    else:
        die_in(aws, there, PROVISION, action, effect=effect)
    assert len(aws.runs) == effect
    there.ok(*ending)
    assert open_aws().list_owned([REGION]) == []
    assert there.left_here() == []
    assert json.loads(there.ok("workspace", "list", "--json")) == []
