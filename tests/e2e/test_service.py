"""`codexctl host install` under a real systemd user manager, which really starts the host."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from tests.support.programs import Machine
from tests.support.systemd import UserManager, user_manager

DEADLINE_S = 60.0  # RestartSec is 10 s


def main_pid(manager: UserManager, unit: str, *, other_than: int = 0) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        pid = int(manager.systemctl("show", "-P", "MainPID", unit) or 0)
        if pid not in (0, other_than):
            return pid
        assert time.monotonic() < deadline, manager.systemctl("status", unit)
        time.sleep(0.1)


def offer_of(host: Machine, log: Path) -> dict[str, str]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        done = host.run("pair", "--show", "--json", check=None)
        if done.returncode == 0:
            offer: dict[str, str] = json.loads(done.stdout)
            return offer
        assert time.monotonic() < deadline, done.stderr + log.read_bytes()
        time.sleep(0.1)


def test_the_service_serves_comes_again_and_goes(tmp_path: Path) -> None:
    relay, host, device = (Machine(tmp_path / name) for name in ("relay", "host", "device"))
    with (
        user_manager(tmp_path) as manager,
        relay.start("relay", "serve", "--json", "--listen", "127.0.0.1:0") as serving,
    ):
        url = serving.event("ready")["relay"]
        token = relay.json("relay", "token", "create", "--name", "h", "--expires", "1d")["token"]
        host.prefix = manager.enter
        host.environment |= {**manager.environment, "CODEXCTL_RELAY_TOKEN": token}
        options = ("--relay", url, "--name", "box", "--workspace", str(host.cwd))
        installed = host.json("host", "install", *options)
        assert installed["started"] is True
        assert installed["run"] == []
        unit = installed["unit"]
        first = main_pid(manager, unit)
        device.run("pair", offer_of(host, tmp_path / "services.log")["url"])
        done = device.run("exec", "box", "--", "sh", "-c", "echo from the service; pwd")
        assert done.stdout.splitlines() == [b"from the service", os.fsencode(host.cwd)]
        # The token is in a file of its own, not in the unit.
        assert token not in Path(installed["path"]).read_text()
        # What crashes is started again, and the same device may still use it.
        os.kill(first, signal.SIGKILL)
        assert main_pid(manager, unit, other_than=first) != first
        deadline = time.monotonic() + DEADLINE_S
        while (done := device.run("exec", "box", "--", "echo", "again", check=None)).returncode:
            assert time.monotonic() < deadline, done.stderr
        assert done.stdout == b"again\n"
        # It starts with the next login, until it is removed.
        assert manager.systemctl("is-enabled", unit) == "enabled"
        removed = json.loads(host.run("host", "install", "--uninstall", "--json").stdout)
        assert removed["removed"] is True
        assert manager.systemctl("is-active", unit) == "inactive"
        assert not Path(installed["path"]).exists()
