"""codexctl's command line against the fake AWS: killed in a call, it is brought to an end."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.clouds.conftest import OpenAccount
from tests.clouds.fake_aws import KEY, SECRET_KEY, FakeAws
from tests.provision.conftest import World, world

__all__ = ["world"]

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
    world: World,
    action: str,
    effect: bool,
    ending: tuple[str, ...],
) -> None:
    world.env |= {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "*",
    }
    if action == "TerminateInstances":
        die_in(aws, world, PROVISION, "RunInstances", effect=True)
        die_in(aws, world, DESTROY, action, effect=effect)
    else:
        die_in(aws, world, PROVISION, action, effect=effect)
    assert len(aws.runs) == effect
    world.ok(*ending)
    assert open_aws().list_owned([REGION]) == []
    assert world.left_here() == []
    assert json.loads(world.ok("workspace", "list", "--json")) == []
