"""The process of an app-server: started in a group of its own, ended with all that it started."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from codexctl.agent.errors import NoCodex
from codexctl.host.environment import LoginEnvironment

END_S = 5.0  # between SIGTERM and SIGKILL


@asynccontextmanager
async def app_server(
    path: str, login: LoginEnvironment
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The streams of a new `codex app-server`, which ends with the block. NoCodex."""
    try:
        process = await asyncio.create_subprocess_exec(
            path,
            "app-server",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=login.variables,
            cwd=login.home,
            start_new_session=True,
        )
    except OSError as error:
        raise NoCodex(f"{path} does not start: {error.strerror}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout, process.stdin
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """The npm package's codex is a script with the real one as its child: end the group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            async with asyncio.timeout(END_S):
                await process.wait()
            break
        except TimeoutError:
            continue
