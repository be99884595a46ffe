"""`python -m benchmarks.day FOLDER WARM DAY`: KiB that a host's agent grows by over DAY events.

A process of its own, whose app-server is the tests' fake: it sends WARM events and then DAY more.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from codexctl.agent.agent import Agent
from codexctl.host.environment import LoginEnvironment
from codexctl.paths import Home
from tests.support.codex import CODEX, fake_codex
from tests.support.memory import peak_kib

WITHIN_S = 300.0


async def measure(folder: Path, warm: int, day: int) -> int:
    variables = fake_codex(folder, "talk") | {"FAKE_CODEX_EVENTS": str(warm + day)}
    login = LoginEnvironment("/bin/sh", str(folder), "person", variables)

    async def logged_in() -> LoginEnvironment:
        return login

    agent = Agent(Home(str(folder / "home")).ensure(), "box", logged_in)

    async def stored(events: int) -> int:
        while agent.store.last < events:
            await asyncio.sleep(0.1)
        return peak_kib()

    async with asyncio.timeout(WITHIN_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        agent.supervisor.want()
        before = await stored(warm)
        after = await stored(warm + day)
        running.cancel()
    return after - before


if __name__ == "__main__":
    assert CODEX is not None
    os.umask(0o077)
    print(asyncio.run(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
