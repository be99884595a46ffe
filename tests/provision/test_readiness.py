"""What never gets ready is said with what was seen, on a real machine whose cloud-init hangs."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from codexctl.provision import readiness
from codexctl.provision.keys import ensure_key
from codexctl.provision.readiness import NotReady, Stage, Teller
from codexctl.provision.remote import Link, Target
from tests.provision import machine

pytestmark = pytest.mark.skipif(bool(machine.unavailable()), reason=machine.unavailable())
NEVER_S = 10_000


@contextmanager
def booted(folder: Path) -> Iterator[Target]:
    """A machine in the middle of its cloud-init, for ever."""
    key = str(folder / "key")
    user = {"name": "codex", "shell": "/bin/sh", "ssh_authorized_keys": [ensure_key(key, "me")]}
    place = folder / "machine"
    place.mkdir()
    port, pid = machine.boot(place, yaml.safe_dump({"users": [user]}), delay_s=NEVER_S)
    try:
        machine.await_port(port)
        shown = (place / "ssh" / "ssh_host_ed25519_key.pub").read_text().split()[:2]
        step = place / "var" / "codexctl" / "step"
        step.write_text("20-setup-sh\n")
        yield Target("127.0.0.1", port, "codex", key, (" ".join(shown),))
    finally:
        machine.halt(pid)


def test_a_cloud_init_that_hangs_is_given_up_with_the_step_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CLOUD_INIT", readiness.CLOUD_INIT.replace("-ge 100", "-ge 1"))
    stages: list[Stage] = []
    with booted(tmp_path) as target, Link(target) as link, pytest.raises(NotReady) as raised:
        readiness.await_cloud_init(link, "box", Teller(stages.append), timeout_s=0.5)
    assert "still running (step 20-setup-sh)" in raised.value.message
    assert "codexctl workspace logs box" in raised.value.hint
    assert (stages[-1].stage, stages[-1].state) == ("cloud-init", "failed")
    assert stages[0].detail == ""


def test_a_port_that_never_opens_is_given_up(tmp_path: Path) -> None:
    ensure_key(str(tmp_path / "key"), "me")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        port = closed.getsockname()[1]
        target = Target("127.0.0.1", port, "codex", str(tmp_path / "key"), ())
        stages: list[Stage] = []
        with Link(target) as link, pytest.raises(NotReady, match="stage port"):
            readiness.await_login(link, "box", Teller(stages.append), timeout_s=0.6)
    assert [stage.state for stage in stages] == ["waiting", "failed"]
    assert json.dumps(stages[-1].detail) == '"Connection refused"'
