"""A relay of its own process, official executors on it, and devices that use them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codexctl.client.http import request
from codexctl.secret import Secret
from tests.support.codex import CODEX, codex_environment
from tests.support.programs import COMMAND_TIMEOUT_S, Machine, Running
from tests.support.tap import Tap

WITHIN_S = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:.0f} s: {what}"
        time.sleep(0.02)


class Executor:
    """A running `codex exec-server --remote`; its folder holds what commands see as theirs."""

    def __init__(self, url: str, token: str, environment: str, folder: Path) -> None:
        assert CODEX is not None
        self.workspace = folder / "work"
        self.workspace.mkdir(parents=True, exist_ok=True)
        home = folder / "codex"
        home.mkdir(exist_ok=True)
        self._log = folder / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [CODEX, "exec-server", "--remote", url, "--environment-id", environment],
                env=codex_environment(home, CODEX_API_KEY=token),
                cwd=self.workspace,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def stderr(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """At once, with all that it has started; harmless when it has ended."""
        try:
            # The command is a wrapper; the executor itself is its child.
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(COMMAND_TIMEOUT_S)


class Site:
    """A relay with a token, an executor `box`, and a laptop that knows it as `box`.

    The laptop's way to the relay leads over `tap`, which can be cut.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.relay = Machine(folder / "relay")
        self.serve = self.relay.start("relay", "serve", "--json", "--listen", "127.0.0.1:0")
        self.url: str = self.serve.event("ready")["relay"]
        self.tap = Tap(self.url.removeprefix("http://")).__enter__()
        self.token = self.new_token("owner")
        self.executors: list[Executor] = []
        self.laptop = Machine(folder / "laptop")
        self.executor = self.start("box")
        self.add(self.laptop, "box", self.tap.url)

    def new_token(self, name: str, *options: str) -> str:
        made = self.relay.json("relay", "token", "create", "--name", name, *options)
        return str(made["token"])

    def token_file(self, token: str) -> str:
        path = self.folder / f"{token[-8:]}.token"
        path.touch(0o600)
        path.write_text(token)
        return str(path)

    def start(self, environment: str, *, token: str = "") -> Executor:
        """One more executor, online when this returns."""
        before = self.registered_at(environment)
        executor = Executor(
            self.url,
            token or self.token,
            environment,
            self.folder / f"executor-{len(self.executors)}",
        )
        self.executors.append(executor)
        wait_until(lambda: self.online(environment), f"{environment} online; {executor.stderr}")
        if before is not None:
            wait_until(lambda: self.registered_at(environment) != before, "a new registration")
        return executor

    def registered_at(self, environment: str) -> Any:
        """What changes with each registration under another key."""
        answer = request(
            "POST",
            f"{self.url}/cloud/environment/{environment}/connect",
            token=Secret(self.token),
            body={"harness_public_key": KEY},
        )
        return answer.value.get("executor_registration_id")

    def online(self, environment: str = "box") -> bool:
        answer = request(
            "GET", f"{self.url}/v1/environments/{environment}", token=Secret(self.token)
        )
        return answer.value.get("online") is True

    def add(
        self, machine: Machine, name: str, url: str = "", token: str = "", environment: str = ""
    ) -> None:
        file = self.token_file(token or self.token)
        where = ("--relay", url or self.url, "--environment", environment or name)
        machine.run("hosts", "add", name, *where, "--token-file", file)

    def restart_relay(self) -> None:
        self.serve.__exit__(None, None, None)
        listen = self.url.removeprefix("http://")
        self.serve = self.relay.start("relay", "serve", "--json", "--listen", listen)
        self.serve.event("ready")

    def close(self) -> None:
        for executor in self.executors:
            executor.kill()
        self.tap.__exit__(None, None, None)
        self.serve.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)


def start_command(machine: Machine, *arguments: str) -> Running:
    """A command whose stdin and stdout are pipes of the test's own; not read by a thread."""
    return Running(machine, arguments, subprocess.PIPE)


def _key() -> dict[str, str]:
    from codexctl.noise.hybrid import HybridKey
    from codexctl.noise.keys import hybrid_document

    return hybrid_document(HybridKey.generate().public)


KEY = _key()
