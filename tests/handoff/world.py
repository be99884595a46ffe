"""A relay, two hosts with the real codex, and a device: every process of its own, to be killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codexctl.client.agent import call
from codexctl.client.connection import Connection
from codexctl.client.handoff import Handoff
from codexctl.client.handoff_host import HostRemote
from codexctl.client.store import HostStore
from codexctl.errors import ConnectionFailed
from codexctl.paths import Home
from codexctl.state.identity import load_identity
from tests.handoff.trees import make, write
from tests.support.codex import CODEX, Model, make_codex_home
from tests.support.programs import Machine, Running

PATIENCE_S = 30.0
HOSTS = {"one": 0, "two": 3600}  # and how far each clock is ahead, in seconds
SKEW = """\
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {ahead_s}
time.time_ns = lambda: _time_ns() + {ahead_s} * 10**9
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until it holds; AssertionError after PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}")


class Host:
    """A machine with a person's home, a workspace and a codex of its own."""

    def __init__(self, folder: Path, name: str, model: Model, *, ahead_s: int = 0) -> None:
        self.name = name
        self.person = folder / "person"
        self.workspace = self.person / "work"
        self.workspace.mkdir(parents=True)
        self.codex_home = make_codex_home(
            folder / "codex", model, approval="on-request", sandbox="workspace-write"
        )
        programs = folder / "bin"
        programs.mkdir()
        assert CODEX is not None
        # Found by the login shell's PATH, as on a real host; node is where it was.
        write(programs, "codex", f'#!/bin/sh\nexec "{CODEX}" "$@"\n', 0o755)
        path = f"{programs}:{os.environ['PATH']}"
        for profile in (".profile", ".bashrc", ".zshrc"):
            write(self.person, profile, f"export PATH='{path}'\n")
        self.machine = Machine(folder, HOME=str(self.person), CODEX_HOME=str(self.codex_home))
        self.machine.cwd = self.workspace
        if ahead_s:
            skewed = folder / "skewed"
            write(skewed, "sitecustomize.py", SKEW.format(ahead_s=ahead_s))
            before = self.machine.environment.get("PYTHONPATH")
            paths = [str(skewed), *([before] if before else [])]
            self.machine.environment["PYTHONPATH"] = os.pathsep.join(paths)
        self.running: Running | None = None

    def start(self, relay: str) -> None:
        self.running = self.machine.start(
            "host", "serve", "--json", "--relay", relay, "--name", self.name
        )
        self.running.event("ready")

    def kill(self) -> None:
        """SIGKILL to the daemon, as a power cut would; its app-server may outlive it."""
        assert self.running is not None
        self.running.kill()
        self.running.__exit__(None, None, None)

    def kill_codex(self) -> None:
        """SIGKILL to every process of this host's codex."""
        mark = f"CODEX_HOME={self.codex_home}".encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environment = Path("/proc", pid, "environ").read_bytes().split(b"\0")
                command = Path("/proc", pid, "cmdline").read_bytes()
                if mark in environment and b"app-server" in command and b"codexctl" not in command:
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                continue  # ended meanwhile

    def stop(self) -> None:
        if self.running is not None:
            self.running.__exit__(None, None, None)
        self.kill_codex()


class World:
    """Everything, running and paired. `ask` is a device's request to a host's agent."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.model = model
        self.relay_machine = Machine(folder / "relay")
        self.device = Machine(folder / "device")
        self.relay = self.relay_machine.start("relay", "serve", "--json", "--listen", "127.0.0.1:0")
        self.url = self.relay.event("ready")["relay"]
        # The clocks of the hosts differ by an hour, in every test.
        self.hosts = {
            name: Host(folder / name, name, model, ahead_s=ahead_s)
            for name, ahead_s in HOSTS.items()
        }
        try:
            for host in self.hosts.values():
                self._pair(host)
        except BaseException:
            self.close()
            raise

    def _pair(self, host: Host) -> None:
        token = self.relay_machine.json(
            "relay", "token", "create", "--name", host.name, "--expires", "1d"
        )
        host.machine.environment["CODEXCTL_RELAY_TOKEN"] = token["token"]
        host.start(self.url)
        offer = json.loads(host.machine.run("pair", "--show", "--json").stdout)
        self.device.run("pair", offer["url"], "--name", host.name)

    def close(self) -> None:
        for host in self.hosts.values():
            host.stop()
        self.relay.__exit__(None, None, None)

    # --- what can die ---

    def kill(self, victim: str) -> None:
        """`one` or `two`, `codex one`, `codex two`, `relay`; started again but for the codexes."""
        if victim == "relay":
            self.relay.kill()
            self.relay.__exit__(None, None, None)
            listen = self.url.removeprefix("http://")
            self.relay = self.relay_machine.start("relay", "serve", "--json", "--listen", listen)
            self.relay.event("ready")
            for name in self.hosts:
                until(lambda name=name: self._reached(name), f"{name} to be back")  # type: ignore[misc]  # a default
        elif victim.startswith("codex "):
            self.hosts[victim.removeprefix("codex ")].kill_codex()
        elif victim in self.hosts:
            self.hosts[victim].kill()
            self.hosts[victim].start(self.url)

    def _reached(self, host: str) -> bool:
        try:
            self.ask(host, "handoff.list")
        except ConnectionFailed:
            return False
        return True

    # --- the device ---

    @property
    def home(self) -> Home:
        return Home(str(self.device.home))

    @contextmanager
    def connection(self, host: str) -> Iterator[Connection]:
        record = HostStore(self.home).find(host)
        assert record is not None
        with Connection.open(record, load_identity(self.home)) as connection:
            yield connection

    def ask(self, host: str, method: str, **params: Any) -> list[dict[str, Any]]:
        with self.connection(host) as connection:
            return call(connection, method, params)

    @contextmanager
    def handoff(self, source: str, target: str, *, id: str = "") -> Iterator[Handoff]:
        with self.connection(source) as ours, self.connection(target) as theirs:
            yield Handoff(HostRemote(ours), HostRemote(theirs), id=id)

    # --- threads ---

    def thread(self, host: str, folder: str, prompt: str) -> str:
        """A thread in a new repository with a dirty tree, after its first turn."""
        tree = make(self.hosts[host].workspace / folder, **{"a.txt": "one\n", "b.txt": "two\n"})
        write(tree, "a.txt", "changed\n")
        write(tree, "new/file.bin", b"\0\1\2", 0o755)
        (made,) = self.ask(host, "thread.start", cwd=folder, prompt=prompt, name=folder)
        self.idle(host, made["id"])
        return str(made["id"])

    def idle(self, host: str, thread: str) -> dict[str, Any]:
        """The thread, when its turn has ended and stands in its rollout."""

        def done() -> dict[str, Any] | None:
            (shown,) = self.ask(host, "thread.show", thread=thread, limit=0)
            path = Path(str(shown.get("path")))
            ended = path.is_file() and b'"task_complete"' in path.read_bytes()
            return shown if shown["status"] == "idle" and ended else None

        found: dict[str, Any] = until(done, f"the turn of {thread} on {host}")
        return found

    def rows(self, host: str, thread: str) -> list[dict[str, Any]]:
        return self.ask(host, "handoff.list", thread=thread)
