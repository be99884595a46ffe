"""The pipeline against the real cloud-init of Debian 12 and 13, each with a network of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from codexctl.paths import Home
from codexctl.provision.cloudinit import Wanted, render_user_data
from codexctl.provision.keys import ensure_key
from codexctl.secret import Secret
from tests.provision import real_machine
from tests.provision.conftest import World

BARE = ("provision", "reference", "--name", "box", "--bare", "--yes", "--json")


SCHEMA = "cat >/tmp/$$; cloud-init schema --config-file /tmp/$$; s=$?; rm /tmp/$$; exit $s"
RELEASES = pytest.mark.parametrize("real", ["bookworm", "trixie"], indirect=True)
NEWEST = pytest.mark.parametrize("real", ["trixie"], indirect=True)


@pytest.fixture
def real(request: pytest.FixtureRequest, world: World) -> Iterator[World]:
    reason = real_machine.unavailable(request.param)
    if reason:
        pytest.skip(reason)
    world.env |= {
        "REFERENCE_MACHINES": request.param,
        "CODEXCTL_TEST_ROOTS": str(real_machine.ROOTS),
    }
    yield world
    real_machine.halt_all(world.folder)


def ssh(world: World, command: str) -> str:
    done = subprocess.run(
        ["ssh", "-F", str(world.config), "box", command], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@RELEASES
@pytest.mark.slow
def test_a_real_machine_from_nothing_to_nothing(real: World) -> None:
    setup = real.folder / "setup.sh"
    setup.write_text("echo hello from setup; id -un >/etc/made-by\n")
    events = real.events(*BARE, "--setup", str(setup), "--no-sudo")
    done = [event["stage"] for event in events if event.get("state") == "ok"]
    assert done == ["created", "address", "port", "host key", "login", "cloud-init", "ready"]
    assert ssh(real, "id -un; cat /etc/made-by").split() == ["codex", "root"]
    assert ssh(real, "sudo -n true 2>/dev/null || echo no").strip() == "no"
    folder = next((real.cloud / "machines").iterdir())
    pinned = next((real.home / "workspaces").glob("*/known_hosts")).read_text().split()[1:]
    etc_ssh = folder / "upper" / "etc" / "ssh"
    own = (etc_ssh / "ssh_host_ed25519_key.pub").read_text().split()[:2]
    first = folder / "upper" / "var" / "lib" / "cloud" / "seed" / "nocloud" / "user-data"
    assert pinned == own
    assert own[1] not in first.read_text(), "what the user data held is worthless by now"
    # The overlay marks what the image had and the machine deleted as character devices.
    keys = [path for path in etc_ssh.glob("ssh_host_*") if not path.is_char_device()]
    assert {path.stem for path in keys} == {"ssh_host_ed25519_key"}
    real.ok("workspace", "destroy", "box", "--yes")
    assert real.things() == []
    assert real.left_here() == []


@NEWEST
@pytest.mark.slow
def test_a_step_that_fails_is_told_with_what_it_said(real: World) -> None:
    setup = real.folder / "setup.sh"
    setup.write_text("echo the mirror is down\nfalse\n")
    done = real.run(*BARE, "--setup", str(setup))
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])
    assert "20-setup-sh" in error["message"]
    assert "the mirror is down" in error["message"]
    real.ok("workspace", "destroy", "box", "--yes")
    assert real.things() == []


@NEWEST
@pytest.mark.slow
def test_user_data_that_is_ignored_is_seen_by_the_host_key(real: World) -> None:
    done = real.run(*BARE, CODEXCTL_TEST_IGNORE_USER_DATA="1")
    assert done.returncode == 255
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "host-key"
    real.ok("workspace", "destroy", "box", "--yes")


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_cloud_init_itself_accepts_every_form_of_the_user_data(
    release: str, tmp_path: Path
) -> None:
    reason = real_machine.unavailable(release)
    if reason:
        pytest.skip(reason)
    setup = tmp_path / "setup.sh"
    setup.write_text("true")
    key = ensure_key(str(tmp_path / "key"), "test")
    for bare, close, expires_at in ((True, False, None), (False, True, 2_000_000_000)):
        wanted = Wanted(
            name="box",
            user="codex",
            sudo=not bare,
            packages=() if bare else ("zsh",),
            setup=(str(setup),),
            bare=bare,
            public_key=key,
            host_key_private=Secret((tmp_path / "key").read_text()),
            host_key_public=key,
            close_metadata=close,
            ends_itself=expires_at is not None,
            expires_at=expires_at,
        )
        data = render_user_data(Home(str(tmp_path)), wanted, limit_bytes=1 << 16)
        done = subprocess.run(
            ["chroot", real_machine.ROOTS / release, "sh", "-c", SCHEMA],
            input=data.reveal(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
