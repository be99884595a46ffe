"""What both roles of a handoff share: their folder of a thread, work outside the loop, places."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from codexctl.agent.call import Call
from codexctl.agent.errors import AgentRefused
from codexctl.agent.handoff.bundle import BUNDLE
from codexctl.errors import UsageError
from codexctl.host.agents_md import find_agents_md
from codexctl.paths import Home
from codexctl.state.files import describe_os_error

T = TypeVar("T")
PARTS = ("bundle", "rollout")
FOLDER = "handoff"
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


def folder_of(home: Home, thread: str) -> str:
    """Where the carrier of a thread lives, and what is sent or has arrived."""
    return home.join(FOLDER, thread)


async def work(thread: str, function: Callable[[], T]) -> T:
    """Run what blocks, one at a time for a thread. A caller that leaves does not stop it.

    So a step that is asked for again waits until the one that nobody listens to has ended.
    """

    def run() -> T:
        with _locks[thread]:
            try:
                return function()
            except OSError as error:
                raise describe_os_error(error, str(error.filename or "a file"), "use") from error

    return await asyncio.to_thread(run)


async def codex_home(call: Call) -> str:
    login = await call.context.login()
    return login.variables.get("CODEX_HOME") or os.path.join(login.home, ".codex")


def part_name(call: Call) -> str:
    """`bundle` or `rollout`. UsageError."""
    part = call.text("part")
    if part not in PARTS:
        raise UsageError(f"a handoff has no part {part[:40]!r}")
    return part


def instructions(cwd: str, home: str) -> dict[str, str]:
    """The AGENTS.md that are not in the repository: where (in words), and the SHA-256 of each."""
    found = {}
    for document in find_agents_md(cwd, home):
        if os.path.dirname(document.path) == home:
            with open(document.path, "rb") as file:
                digest = hashlib.sha256(file.read(1 << 20)).hexdigest()
            found[f"the person's {os.path.basename(document.path)}"] = digest
    return found


async def ask_server(call: Call, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """As `agent.call`; nothing where this app-server refuses or does not know the method."""
    try:
        return await call.agent.call(method, params)
    except AgentRefused:
        return {}


def note(call: Call, thread: str, method: str, **params: Any) -> None:
    """An event of codexctl's own in the thread's history, for whoever watches it."""
    call.agent.append([(thread, {"method": method, "params": {"threadId": thread, **params}})])


async def news(call: Call, within_s: float) -> None:
    """Wait for an event of the agent, or so long."""
    try:
        async with asyncio.timeout(within_s):
            await call.agent.changed(call.agent.store.last)
    except TimeoutError:
        pass  # whoever asked looks again


async def turns_of(call: Call, thread: str) -> list[str]:
    """The ids of the newest turns, the newest first; what a read back compares."""
    params = {"threadId": thread, "limit": 5, "sortDirection": "desc", "itemsView": "notLoaded"}
    answer = await ask_server(call, "thread/turns/list", params)
    return [str(turn.get("id")) for turn in answer.get("data") or []]


def bundle_path(folder: str) -> str:
    return os.path.join(folder, BUNDLE)
