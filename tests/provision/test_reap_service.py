"""`codexctl workspace reap --install` under a real systemd user manager, which really reaps."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from tests.provision.conftest import World
from tests.support.systemd import UserManager, user_manager

DEADLINE_S = 60.0
KNOWN_TO_SERVICES = ("PYTHONPATH", "REFERENCE_CLOUD", "REFERENCE_MACHINES", "CODEXCTL_SSH_CONFIG")


def reap(world: World, manager: UserManager, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [*manager.enter, sys.executable, "-m", "codexctl", "workspace", "reap", *arguments],
        env={**world.env, **manager.environment},
        cwd=world.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_service_ends_what_expires(machines: World) -> None:
    machines.ok("provision", "reference", "--name", "box", "--bare", "--yes", "--json", "--ttl=2s")
    assert machines.things() != []
    variables = {name: machines.env[name] for name in KNOWN_TO_SERVICES}
    with user_manager(machines.folder, **variables) as manager:
        installed = reap(machines, manager, "--install", "--every", "1s", "--json")
        assert installed["run"] == []
        deadline = time.monotonic() + DEADLINE_S
        while machines.things():
            log = (machines.folder / "services.log").read_bytes()
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        unit = str(installed["unit"])
        assert manager.systemctl("is-active", unit) == "active"
        reap(machines, manager, "--uninstall", "--json")
        assert manager.systemctl("is-active", unit) == "inactive"
