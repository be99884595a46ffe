"""The process of an app-server: found again or started, under a guard (codexctl.agent.guard).

`app-server.json` in the home names the folder with its sockets, so that a daemon that was restarted
goes on with the same app-server, whose turns run and whose questions wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from codexctl.agent import guard
from codexctl.agent.codex import Codex
from codexctl.agent.errors import AgentUnavailable
from codexctl.host.environment import LoginEnvironment
from codexctl.paths import Home
from codexctl.state.files import replace_file

if TYPE_CHECKING:
    from codexctl.agent.socket import SocketMessages

RECORD = "app-server.json"
LOG = "app-server.log"
SOCKET = "app-server.sock"
LISTEN_S = 60.0  # for a new one to listen
LOOK_EVERY_S = 0.02
ENDED_S = guard.END_S + 5.0
LAST_WORDS_BYTES = 4096
TOLD_CHARS = 200


class Running:
    """A connection to an app-server.

    With `keep` it outlives this connection, for the next daemon.
    """

    def __init__(self, home: Home, folder: str, *, taken_over: bool) -> None:
        self.socket = os.path.join(folder, SOCKET)
        self.taken_over = taken_over
        self.keep = False
        self.messages: SocketMessages
        self._log = home.join(LOG)

    def last_words(self) -> str:
        """What it said on stderr at last, but for warnings; empty where nothing."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:TOLD_CHARS] if lines and not lines[-1].startswith("WARNING") else ""


@asynccontextmanager
async def app_server(
    home: Home, codex: Codex, login: LoginEnvironment, caps: tuple[str, ...]
) -> AsyncIterator[Running]:
    """The app-server of this home. AgentUnavailable where it does not start.

    It ends with the block, unless `keep` was set on what the block got.
    """
    # Most hosts never serve a thread, and need not pay for this.
    from codexctl.agent.socket import connected

    identity = [codex.path, codex.version, login.variables.get("CODEX_HOME", ""), *caps]
    known = _read(home)
    held = None
    if known is not None:
        held = await _hold(known["folder"])
        if held is not None and known["identity"] != identity:
            await _dismiss(held)
            held = None
    taken_over = held is not None
    if known is None or held is None:
        folder = tempfile.mkdtemp(prefix="codexctl-")  # short: a socket's path has 107 bytes
        known = {"folder": folder, "identity": identity}
        held, pid = await _started(home, folder, codex, login)
        replace_file(home.join(RECORD), json.dumps({**known, "pid": pid}).encode())
    running = Running(home, known["folder"], taken_over=taken_over)
    try:
        await _until_it_listens(running, held[0])
        async with connected(running.socket) as running.messages:
            yield running
    finally:
        if running.keep:
            held[1].close()
        else:
            await _dismiss(held)
            _forget(home)


def _read(home: Home) -> dict[str, Any] | None:
    try:
        with open(home.join(RECORD), encoding="utf-8") as file:
            record = json.load(file)
        return {name: record[name] for name in ("folder", "identity")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def was_running(home: Home) -> bool:
    """Whether an app-server may be there that an earlier daemon left."""
    return os.path.exists(home.join(RECORD))


def _forget(home: Home) -> None:
    try:
        os.unlink(home.join(RECORD))
    except FileNotFoundError:
        pass


Held = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _hold(folder: str) -> Held | None:
    """A connection to the guard, which keeps the app-server for as long; None where none is."""
    try:
        return await asyncio.open_unix_connection(os.path.join(folder, guard.SOCKET))
    except OSError:
        return None


async def _started(
    home: Home, folder: str, codex: Codex, login: LoginEnvironment
) -> tuple[Held, int]:
    """A new guard with its app-server, held, and its process id. AgentUnavailable."""
    log = await asyncio.to_thread(open, home.join(LOG), "wb")
    with log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            guard.__name__,
            folder,
            codex.path,
            "app-server",
            "--listen",
            f"unix://{os.path.join(folder, SOCKET)}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
            env=login.variables,
            cwd=login.home,
            start_new_session=True,
        )
    await process.wait()
    held = await _hold(folder)
    if held is not None:
        return held, process.pid
    raise AgentUnavailable("the app-server's guard does not start", hint="see: codexctl doctor")


async def _until_it_listens(running: Running, guarded: asyncio.StreamReader) -> None:
    from codexctl.agent.socket import connected

    end = time.monotonic() + LISTEN_S
    while time.monotonic() < end and not guarded.at_eof():
        try:
            async with connected(running.socket):
                return
        except OSError:
            pass  # it tells nobody when it is ready
        await asyncio.sleep(LOOK_EVERY_S)
    words = running.last_words()
    raise AgentUnavailable(
        f"the app-server does not start{': ' if words else ''}{words}",
        hint="see on the host: codex app-server --listen off",
    )


async def _dismiss(held: Held) -> None:
    """Have the guard end all, and wait until it has; harmless where it has ended."""
    reader, writer = held
    try:
        writer.write(guard.END)
        async with asyncio.timeout(ENDED_S):
            await reader.read()
    except (OSError, TimeoutError):
        pass
    writer.close()
