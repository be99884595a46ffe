"""A host with the official codex and a scripted model, as real processes, and devices beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codexctl.client.agent import call, read_bytes, stream
from codexctl.client.connection import Connection
from codexctl.client.store import HostStore
from codexctl.paths import Home
from codexctl.state.identity import load_identity
from tests.support.codex import CODEX, Model, make_codex_home
from tests.support.programs import Machine, Running


def with_codex(folder: Path, model: Model, *, approval: str = "on-request") -> Machine:
    """A machine whose login has the codex on its PATH, and a CODEX_HOME for `model`."""
    assert CODEX is not None
    person = folder / "person"
    person.mkdir(parents=True)
    line = f'PATH="{Path(CODEX).parent}:{os.environ["PATH"]}"; export PATH\n'
    for name in (".profile", ".bash_profile", ".zprofile"):
        (person / name).write_text(line)
    codex_home = make_codex_home(
        person / ".codex", model, approval=approval, sandbox="workspace-write"
    )
    return Machine(folder, HOME=str(person), CODEX_HOME=str(codex_home), RUST_LOG="off")


class ThreadHost:
    """`codexctl up` on a machine with codex, named `box`; its workspace is `machine.cwd`."""

    def __init__(
        self,
        folder: Path,
        model: Model,
        *,
        policy: str = "",
        config: str = "",
        before: Callable[[Path], None] | None = None,
    ) -> None:
        self.folder = folder
        self.model = model
        self.machine = with_codex(folder / "host", model)
        with open(Path(self.machine.environment["CODEX_HOME"]) / "config.toml", "a") as file:
            file.write(config)
        if policy:
            self.machine.home.mkdir(parents=True, mode=0o700)
            (self.machine.home / "policy.toml").write_text(policy)
        if before is not None:
            before(self.machine.home)
        self.up = self._start("127.0.0.1:0")
        self.relay: str = self.up.event("ready")["relay"]

    def _start(self, listen: str) -> Running:
        return self.machine.start("up", "--json", "--listen", listen, "--name", "box")

    def restart(self, *, kill: bool = False) -> None:
        """Stop or kill the daemon, and start it again on the same port."""
        if kill:
            self.up.kill()
        self.up.__exit__(None, None, None)
        self.up = self._start(self.relay.removeprefix("http://"))
        self.up.event("ready")

    def device(self, name: str, *scopes: str) -> ThreadDevice:
        """A newly paired device; all scopes without any named."""
        import json

        device = Machine(self.folder / name)
        options = [part for scope in scopes for part in ("--scope", scope)]
        offer = json.loads(self.machine.run("pair", "--show", "--json", *options).stdout)
        device.run("pair", offer["url"], "--device-name", name)
        return ThreadDevice(device)

    def close(self) -> None:
        self.up.__exit__(None, None, None)


class ThreadDevice:
    """A paired device that calls the agent of `box` directly, a new session each time."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        home = Home(str(self.machine.home))
        record = HostStore(home).find("box")
        assert record is not None
        with Connection.open(record, load_identity(home)) as connection:
            yield connection

    def call(self, method: str, *, input: bytes = b"", **params: Any) -> list[dict[str, Any]]:
        with self.connected() as connection:
            return call(connection, method, params, input=input)

    def one(self, method: str, *, input: bytes = b"", **params: Any) -> dict[str, Any]:
        (answer,) = self.call(method, input=input, **params)
        return answer

    def bytes(self, method: str, **params: Any) -> bytes:
        """The raw result of a method that has no lines."""
        with self.connected() as connection:
            return b"".join(read_bytes(connection, method, params))

    def events(self, until: str, **params: Any) -> list[dict[str, Any]]:
        """Follow a thread (`thread=`, `cursor=`) up to the first event of that method."""
        found = []
        with self.connected() as connection:
            for event in stream(connection, "thread.watch", {"follow": True, **params}):
                found.append(event)
                if event["method"] == until:
                    return found
        raise AssertionError(f"no {until} in {[event['method'] for event in found]}")
