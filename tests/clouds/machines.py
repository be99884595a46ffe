"""Real machines behind a fake cloud: an sshd each, on port 22 of an address of the loopback net."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from tests.provision import machine
from tests.provision.conftest import World

SSH_TIMEOUT_S = 30


class Machines:
    """Boots and halts them by the cloud's ids. Skips the test where that cannot be done."""

    def __init__(self, folder: Path, address: str) -> None:
        reason = machine.unavailable()
        if reason:
            pytest.skip(reason)
        try:
            socket.create_server((address, 22)).close()
        except OSError as error:
            pytest.skip(f"{address} port 22 cannot be used: {error.strerror}")
        self._folder, self._address = folder, address
        self._running: dict[object, int] = {}

    def boot(self, name: object, user_data: str) -> str:
        """Its address."""
        place = self._folder / f"machine-{name}"
        place.mkdir(exist_ok=True)
        _, pid = machine.boot(place, user_data, address=self._address, port=22)
        self._running[name] = pid
        return self._address

    def halt(self, name: object) -> None:
        machine.halt(self._running.pop(name))


def use(world: World, name: str) -> None:
    """What a person does first with a workspace: ssh, and codexctl exec."""
    ssh = ["ssh", "-F", str(world.config), "-o", "BatchMode=yes", name, "echo", "by ssh"]
    done = subprocess.run(ssh, env=world.env, capture_output=True, text=True, timeout=SSH_TIMEOUT_S)
    assert done.stdout == "by ssh\n", done.stderr
    assert world.ok("exec", name, "--", "echo", "by codexctl") == "by codexctl\n"
