"""A real systemd user manager in a mount namespace of its own, as a login gives one.

with user_manager(tmp_path) as manager:
    subprocess.run([*manager.enter, "systemctl", "--user", "start", "x"], env=manager.environment)

It sees the machine's files but a /run and a cgroup tree of its own; its end ends its services.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.needs import missing

SYSTEMD = "/lib/systemd/systemd"
START_S = 30.0
# The manager refuses to run on a system that was not booted with systemd, by a look at /run.
SETUP = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
    mount -t tmpfs none /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    own=/sys/fs/cgroup/systemd/codexctl-test-$$
    mkdir "$own"
    echo $$ >"$own/cgroup.procs"
fi
exec "$@"
"""


@dataclass(frozen=True)
class UserManager:
    """`enter` before a command runs it beside the manager; `environment` is what it needs."""

    enter: list[str]
    environment: dict[str, str]

    def systemctl(self, *arguments: str) -> str:
        return subprocess.run(
            [*self.enter, "systemctl", "--user", "--no-pager", *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()


@contextlib.contextmanager
def user_manager(folder: Path, **variables: str) -> Iterator[UserManager]:
    """Skips where this cannot be had: without root, systemd or the right to mount.

    `variables` are what a login would have set for every service.
    """
    if os.geteuid() != 0:
        pytest.skip("a mount namespace of its own takes root")
    if not os.path.exists(SYSTEMD):
        missing("systemd is not installed (Debian package systemd)")
    environment = {
        "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}",
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
    # There is no journal: what services print goes where the manager prints.
    config = folder / "config" / "systemd" / "user.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[Manager]\nDefaultStandardOutput=inherit\nDefaultStandardError=inherit\n")
    with open(folder / "services.log", "wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", SETUP, "sh", SYSTEMD, "--user", "--log-target=null"],
            env={**os.environ, **environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        # unshare and the shell replace themselves, so the process stays this one.
        manager = UserManager(["nsenter", f"--mount=/proc/{process.pid}/ns/mnt"], environment)
        deadline = time.monotonic() + START_S
        while manager.systemctl("is-system-running") not in ("running", "degraded"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip("systemd's user manager does not start in a namespace here")
            time.sleep(0.1)
        yield manager
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_S)
        # The hierarchy is the machine's own, whatever shows it.
        left = f"/sys/fs/cgroup/systemd/codexctl-test-{process.pid}"
        for path, _, _ in os.walk(left, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
