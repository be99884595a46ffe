"""The official ends on our relay: bulk bytes, one command, an agent's turn, and whose time it is.

The executor's own time is measured on its stdio transport, without encryption and relay. The
relay's share is its CPU time against the time that the far executor adds to a turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.row import Row
from codexctl.client.executor.connection import ExecutorConnection
from codexctl.client.executor.shell import run_there
from codexctl.client.store import HostStore
from codexctl.paths import Home
from tests.official.site import Site
from tests.support.codex import (
    CODEX,
    codex_environment,
    make_codex_home,
    outputs,
    run_command,
    say,
    serving_model,
)
from tests.support.programs import Machine

BULK_BYTES = 256 << 20
BULK_ROUNDS = 3
COMMANDS = 200
TURN_ROUNDS = 5
TURN_COMMANDS = 5


def rows() -> list[Row]:
    """All rows; none where the official codex is not installed."""
    if CODEX is None:
        return []
    with tempfile.TemporaryDirectory(prefix="codexctl-bench-") as folder:
        site = Site(Path(folder) / "site")
        try:
            # The laptop's own way leads over a proxy of the tests.
            site.add(site.laptop, "far", environment="box")
            return [*_bulk(site), *_commands(site), *_turns(site, Path(folder))]
        finally:
            site.close()


class Direct:
    """The same executor on stdio: JSON-RPC lines, nothing of ours in between."""

    def __init__(self, folder: Path) -> None:
        assert CODEX is not None
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [CODEX, "exec-server", "--listen", "stdio"],
            env=codex_environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self._say("initialize", {"clientName": "bench"})
        self._until(b'"id":')
        self._write({"method": "initialized", "params": {}})

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _say(self, method: str, params: dict[str, Any]) -> None:
        self._number += 1
        self._write({"id": self._number, "method": method, "params": params})

    def _until(self, wanted: bytes) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if wanted in line[:80]:
                return

    def run(self, argv: list[str]) -> None:
        """Run to the end; the output is read and not looked at."""
        self._say(
            "process/start",
            {"processId": f"p{self._number}", "argv": argv, "cwd": "file:///tmp",
             "env": {"PATH": os.environ["PATH"]}, "tty": False, "pipeStdin": False, "arg0": None},
        )  # fmt: skip
        self._until(b'"method":"process/closed"')

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _bulk(site: Site) -> list[Row]:
    direct = Direct(site.folder / "direct")
    command = ["head", "-c", str(BULK_BYTES), "/dev/zero"]
    ours = [sys.executable, "-m", "codexctl", "exec", "-n", "far", "--", *command]

    def through() -> None:
        subprocess.run(ours, env=site.laptop.environment, stdout=subprocess.DEVNULL, check=True)

    own, all_ = [], []
    for _ in range(BULK_ROUNDS):
        own.append(_timed(lambda: direct.run(command)))
        all_.append(_timed(through))
    direct.close()
    alone, whole = statistics.median(own), statistics.median(all_)
    size = BULK_BYTES / 1e6
    return [
        Row("256 MiB by exec from an official executor through the relay", size / whole,
            unit="MB/s"),
        Row("the same on its stdio, nothing of ours", size / alone, unit="MB/s"),
        Row("share of the time that is the executor's own", alone / whole),
    ]  # fmt: skip


def _commands(site: Site) -> list[Row]:
    record = HostStore(Home(str(site.laptop.home))).find("far")
    assert record is not None
    direct = Direct(site.folder / "direct")
    own, all_ = [], []
    with ExecutorConnection.open(record) as connection:
        for _ in range(COMMANDS):
            own.append(_timed(lambda: direct.run(["true"])))
            all_.append(_timed(lambda: run_there(connection, ["true"])))
    direct.close()
    cold = statistics.median(
        _timed(lambda: site.laptop.run("exec", "-n", "far", "--", "true")) for _ in range(11)
    )
    return [
        Row("one command on an official executor, connected", statistics.median(all_) * 1e3,
            unit="ms"),
        Row("the same on its stdio", statistics.median(own) * 1e3, unit="ms"),
        Row("one command on an official executor, cold", cold * 1e3, unit="ms"),
    ]  # fmt: skip


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Near:
    """A codexctl host on the same relay, paired with the site's laptop as `near`."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.machine = Machine(folder, CODEXCTL_RELAY_TOKEN=site.token)
        where = ("--relay", site.url, "--name", "near", "--workspace", str(self.machine.cwd))
        self.serve = self.machine.start("host", "serve", "--json", *where)
        self.serve.event("ready")
        site.laptop.run("pair", self.machine.json("pair", "--show")["url"])


def _turns(site: Site, folder: Path) -> list[Row]:
    """An agent's turn of five commands: here, by `codexctl env`, through `codexctl exec-server`."""
    near = Near(site, folder / "near")
    variables: dict[str, str] = site.laptop.json("env", "far")
    ways: dict[str, list[float]] = {"here": [], "far": [], "near": []}
    relay = []
    try:
        for _ in range(TURN_ROUNDS):
            for way, times in ways.items():
                before = _cpu_s(site.serve.process.pid)
                times.append(_turn(site, folder / way, variables if way == "far" else {}, way))
                if way == "far":
                    relay.append(_cpu_s(site.serve.process.pid) - before)
    finally:
        near.serve.stop()
        near.serve.__exit__(None, None, None)
    local, far, through = (statistics.median(times) for times in ways.values())
    added = max(far - local, 1e-3)
    return [
        Row("an agent's turn of five commands, here", local * 1e3, unit="ms"),
        Row("the same on an official executor (way 2)", far * 1e3, unit="ms"),
        Row("the same on a codexctl host (way 3)", through * 1e3, unit="ms"),
        Row("the relay's CPU / the time that way 2 adds", statistics.mean(relay) / added,
            "<= 0.1", "<= 0.1"),
    ]  # fmt: skip


def _turn(site: Site, folder: Path, variables: dict[str, str], way: str) -> float:
    """Seconds of one turn."""
    assert CODEX is not None
    script = [[run_command(f"echo {n}", call=f"c{n}")] for n in range(TURN_COMMANDS)]
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    with serving_model([*script, [say("done")]]) as model:
        home = make_codex_home(folder / "codex", model)
        environment = codex_environment(home, **variables)
        if way == "near":
            laptop = Machine(site.laptop.home.parent, CODEX_HOME=str(home))
            laptop.run("env", "near", "--environments-toml", "--folder", str(work), "--default")
            environment["CODEXCTL_HOME"] = str(laptop.home)
        started = time.perf_counter()
        done = subprocess.run(
            [CODEX, "exec", "--skip-git-repo-check", "-C", str(work), "do it"],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        took = time.perf_counter() - started
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert len(model.requests) == TURN_COMMANDS + 1
        given = outputs(model.requests[-1])
        assert all(str(n) in output for n, output in enumerate(given)), given
        return took
