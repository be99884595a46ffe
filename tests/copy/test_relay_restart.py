"""A copy outlives its relay: killed in the middle and started again, nothing is sent twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.programs import Machine, pair

SIZE = 100 << 20
DEADLINE_S = 60


@pytest.mark.slow
def test_a_download_goes_on_by_itself(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    block = os.urandom(1 << 20)
    with (workspace / "big").open("wb") as file:
        for at in range(SIZE >> 20):
            file.write(at.to_bytes(4, "big") + block[4:])
    hub, host, device = (Machine(tmp_path / name) for name in ("hub", "host", "device"))
    token = hub.json("relay", "token", "create", "--name", "owner", "--expires", "1d")["token"]
    (tmp_path / "token").write_text(token)
    (tmp_path / "token").chmod(0o600)
    relay = hub.start("relay", "serve", "--json", "--listen", "127.0.0.1:0")
    url = relay.event("ready")["relay"]
    argv = ("host", "serve", "--json", "--relay", url, "--name", "box")
    more = ("--token-file", str(tmp_path / "token"), "--workspace", str(workspace))
    with relay, host.start(*argv, *more) as serving:
        serving.event("ready")
        with host.start("pair", "--show", "--json") as offer:
            name = pair(offer, device)
        with subprocess.Popen(
            [sys.executable, "-m", "codexctl", "cp", f"{name}:big", "big", "--json"],
            env=device.environment,
            cwd=device.cwd,
            stdout=subprocess.PIPE,
        ) as copy:
            part = device.cwd / "big.codexctl-part"
            deadline = time.monotonic() + DEADLINE_S
            while not part.exists() or part.stat().st_size < 5 << 20:
                assert time.monotonic() < deadline
                assert copy.poll() is None
                time.sleep(0.005)
            relay.kill()
            listen = url.removeprefix("http://")
            with hub.start("relay", "serve", "--json", "--listen", listen) as again:
                again.event("ready")
                out, _ = copy.communicate(timeout=DEADLINE_S)
        assert copy.returncode == 0
        summary = json.loads(out)
        assert (summary["bytes"], summary["resumed_bytes"]) == (SIZE, 0)
    ours, theirs = (
        hashlib.sha256(path.read_bytes()).digest()
        for path in (device.cwd / "big", workspace / "big")
    )
    assert ours == theirs
