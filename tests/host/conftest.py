"""A host context over a folder of its own, with the person's home in it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from codexctl.errors import CodexctlError
from codexctl.host.environment import FALLBACK_PATH, LoginEnvironment
from codexctl.host.exec_handler import HANDLERS, HostContext
from codexctl.paths import Home
from codexctl.session.channel import Peer
from tests.host.memory_channel import LAPTOP, WAIT_S, MemoryChannel

PHONE = Peer("d2", "phone", frozenset({"view", "exec"}))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("bwrap") is None and "CI" not in os.environ:
        for item in items:
            if "sandboxed" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="bubblewrap is not installed"))


class Bench:
    """A host under test. `run` drives one coroutine with it and tears all down behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.person = folder / "person"
        self.workspace = self.person / "project"
        self.home = Home(str(folder / "state"))
        self.policy = ""
        self.system_policy = ""
        self.shell = "/bin/sh"
        self.workspace.mkdir(parents=True)
        self.home.ensure()

    def context(self) -> HostContext:
        Path(self.home.policy).write_text(self.policy)
        system = self.folder / "system.toml"
        system.write_text(self.system_policy)
        context = HostContext.create(
            self.home,
            str(self.workspace),
            "host",
            system_policy=str(system),
            person=str(self.person),
        )
        person = str(self.person)
        context._login = LoginEnvironment(
            shell=self.shell,
            home=person,
            user="person",
            variables={"HOME": person, "PATH": FALLBACK_PATH, "LANG": "C.UTF-8", "SECRET": "x"},
        )
        return context

    def run(self, scenario: Callable[[Host], Awaitable[None]]) -> None:
        async def main() -> None:
            context = self.context()
            async with asyncio.timeout(WAIT_S * 3), asyncio.TaskGroup() as tasks:
                try:
                    await scenario(Host(self, context, tasks))
                finally:
                    await context.aclose()

        uvloop.run(main())


class Host:
    """Opens channels on a running host."""

    def __init__(self, bench: Bench, context: HostContext, tasks: asyncio.TaskGroup) -> None:
        self.bench = bench
        self.context = context
        self._tasks = tasks

    def open(
        self, kind: str, peer: Peer = LAPTOP, *, credit: int | None = None, **params: Any
    ) -> MemoryChannel:
        channel = MemoryChannel(kind, params, peer, credit=credit)
        self._tasks.create_task(self._serve(channel))
        return channel

    async def _serve(self, channel: MemoryChannel) -> None:
        try:
            await HANDLERS[channel.kind](channel, self.context)
        except CodexctlError as error:
            await channel.close(error)

    async def until(self, condition: Callable[[], object]) -> None:
        """Poll for what no channel tells of."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def exec(self, *argv: str, stdin: bytes = b"", **params: Any) -> MemoryChannel:
        """Run a command to its end."""
        channel = self.open("exec", argv=list(argv), **params)
        if stdin:
            channel.input(stdin)
        channel.end_input()
        await channel.until(lambda: channel.closed)
        return channel


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def sandboxed() -> None:
    """Marks a test that starts the real sandbox."""


def processes_with(argument: str) -> list[str]:
    """Pids of processes that have this argument."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words:
            found.append(name)
    return found


def without_info(argv: list[str]) -> list[str]:
    """The sandbox's command line for a caller that has no descriptor for its first pid."""
    at = argv.index("--info-fd")
    return argv[:at] + argv[at + 2 :]


def require_shell(shell: str) -> str:
    import shutil

    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


async def running_cat(channel: MemoryChannel) -> None:
    """Wait until a cat answers: a line stands there as typed and as answered."""
    channel.input(b"line\r")
    await channel.until(lambda: channel.output[1].count(b"line") == 2)
