"""Provisioning: what codexctl adds to a cloud's own time, and what it takes on this device.

The clouds are the tests' fakes on loopback with a real sshd behind each machine, which comes up
before a cloud-init that takes its time; so what is over cloud-init's end is codexctl's. Needs root,
bwrap and sshd; without them only the list is measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.installed import installed
from benchmarks.row import Row
from codexctl.paths import Home
from codexctl.provision.core import State
from codexctl.provision.journal import Journal, Settings
from codexctl.provision.model import Machine, Plan, Price, Ref
from tests.clouds import fake_aws
from tests.clouds.digitalocean_cloud import TOKEN
from tests.clouds.fake_digitalocean import fake_digitalocean
from tests.provision import machine

ROUNDS = 5
LIST_ROUNDS = 15
WORKSPACES = 200
CLOUD_INIT_S = 2.0  # that it goes on when sshd is up
ADDRESS = "127.22.0.7"
TIMEOUT_S = 120
# A process inherits the peak memory of who started it, so something small does; not the benchmark.
LAUNCHER = """\
import json, os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
sys.exit(os.waitstatus_to_exitcode(status))
"""
PROVISION = ("--name", "box", "--bare", "--yes", "--json")


class Run(NamedTuple):
    """One provision: seconds over cloud-init's end, seconds of processor, KiB at most, calls."""

    over_s: float
    core_s: float
    memory_kib: int
    calls: int


class Cloud(NamedTuple):
    """A fake cloud that is running: how codexctl is called for it, and what it was asked."""

    words: tuple[str, ...]
    variables: dict[str, str]
    asked: Callable[[], int]


def rows() -> list[Row]:
    found: list[Row] = []
    with installed("[clouds]") as binaries:
        program = str(binaries / "codexctl")
        reason = machine.unavailable()
        if reason:
            sys.stderr.write(f"no machines here: {reason}\n")
        else:
            for name, cloud in (("digitalocean", digitalocean), ("aws", aws)):
                with tempfile.TemporaryDirectory(prefix="codexctl-bench-") as folder:
                    runs = [
                        provision(program, cloud, Path(folder) / str(number))
                        for number in range(ROUNDS)
                    ]
                found += told(name, runs)
        with tempfile.TemporaryDirectory(prefix="codexctl-bench-") as folder:
            found += listed(program, Path(folder))
    return found


def told(name: str, runs: list[Run]) -> list[Row]:
    def median(field: str) -> float:
        return float(statistics.median(getattr(run, field) for run in runs))

    return [
        Row(f"{name}: READY over cloud-init's own end", median("over_s"), "<= 1", "<= 0.5", "s"),
        Row(f"{name}: core time of a provision", median("core_s"), "<= 2", "<= 1.5", "s"),
        Row(
            f"{name}: memory with the SDK loaded", median("memory_kib") / 1024, "<= 120", "<= 90",
            "MiB",
        ),
        Row(f"{name}: API calls of a provision", median("calls")),
    ]  # fmt: skip


def provision(program: str, cloud: Any, folder: Path) -> Run:
    """From nothing to READY, and away again."""
    folder.mkdir()
    with cloud(folder) as there:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CODEXCTL_HOME": str(folder / "home"),
            "CODEXCTL_SSH_CONFIG": str(folder / "ssh" / "config"),
            "NO_PROXY": "*",
            **there.variables,
        }
        (folder / "ssh").mkdir()
        before = there.asked()
        told_usage = folder / "usage"
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, told_usage, program, "provision", *there.words,
             *PROVISION],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        ready = 0.0
        for line in process.stdout:
            if json.loads(line)["event"] == "ready":
                ready = time.time()
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 0, "the provision failed"
        core_s, memory_kib = json.loads(told_usage.read_text())
        calls = there.asked() - before
        end = (folder / "machine" / "run" / "cloud-init" / "result.json").stat().st_mtime
        command = [program, "workspace", "destroy", "box", "--yes"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=TIMEOUT_S)
    return Run(ready - end, core_s, memory_kib, calls)


class _Machine:
    """The one machine behind a cloud."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pid = folder / "machine", 0

    def boot(self, user_data: str) -> str:
        self._folder.mkdir()
        _, self._pid = machine.boot(
            self._folder, user_data, address=ADDRESS, port=22, delay_s=CLOUD_INIT_S
        )
        return ADDRESS

    def halt(self, _: object) -> None:
        machine.halt(self._pid)


@contextmanager
def digitalocean(folder: Path) -> Iterator[Cloud]:
    behind = _Machine(folder)
    with fake_digitalocean() as cloud:
        cloud.on_boot = lambda droplet: behind.boot(cloud.user_data[int(droplet["id"])])
        cloud.on_destroy = behind.halt
        variables = {"DIGITALOCEAN_END_POINT": cloud.url, "DIGITALOCEAN_TOKEN": TOKEN}
        words = ("digitalocean", "--region", "lon1")
        yield Cloud(words, variables, lambda: len(cloud.calls))


@contextmanager
def aws(folder: Path) -> Iterator[Cloud]:
    behind = _Machine(folder)
    place = folder / "moto"
    place.mkdir()
    with fake_aws.moto_server(place) as port, fake_aws.FakeAws(port) as cloud:
        cloud.on_run = lambda name, user_data: behind.boot(user_data)
        cloud.on_terminate = behind.halt
        variables = {
            "AWS_ENDPOINT_URL": cloud.url,
            "AWS_ACCESS_KEY_ID": fake_aws.KEY,
            "AWS_SECRET_ACCESS_KEY": fake_aws.SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        words = ("aws", "--region", "eu-west-2")
        yield Cloud(words, variables, lambda: len(cloud.actions))


def listed(program: str, folder: Path) -> list[Row]:
    """`workspace list` of many, each time a process of its own."""
    home = Home(str(folder)).ensure()
    plan = Plan("lon1", "s-2vcpu-4gb", "ubuntu-24-04-x64", Price(Decimal("0.03571"), Decimal(24)))
    now = int(time.time())
    with Journal(home) as journal:
        for number in range(WORKSPACES):
            made = journal.begin(
                name=f"box-{number}",
                provider="digitalocean",
                selection={},
                account_id="account",
                plan=plan,
                settings=Settings(ttl_s=86_400),
                expires_at=now + 86_400,
                now=now - number,
            )
            seen = Machine(Ref(made.id, "lon1", str(number)), "running", f"203.0.113.{number}")
            journal.set_machine(made.id, seen)
            journal.set_power(made.id, "running", now=now - number)
            journal.save(made.id, State(stage="ready"), now=now)
    environment = {**os.environ, "CODEXCTL_HOME": home.path}
    times = []
    for _ in range(LIST_ROUNDS):
        began = time.perf_counter()
        command = [program, "workspace", "list"]
        out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
        times.append(time.perf_counter() - began)
        assert out.count(b"box-") == WORKSPACES
    value = statistics.median(times) * 1000
    return [Row(f"workspace list of {WORKSPACES}", value, "<= 150", "<= 100", "ms")]
