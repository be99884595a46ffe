"""From the agent's events to notices: which thread it is called, and who watches it.

The agent calls `event` for each event it has kept and never waits; what is of interest here is put
in a bounded queue and worked off in order, since the name of a thread has to be asked for.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from codexctl.agent.agent import Agent
from codexctl.agent.notify_service import Notifications
from codexctl.agent.questions import clock
from codexctl.errors import CodexctlError

MAX_QUEUED = 1_000  # events of interest; those beyond are not told of, which the log says
LOOK_EVERY_S = 1.0  # whether a device still watches, while something waits for a person

_METHODS = frozenset(
    {
        "codexctl/approval/requested",
        "codexctl/approval/ended",
        "codexctl/agent/ended",
        "turn/started",
        "turn/completed",
    }
)
_log = logging.getLogger(__name__)


class _Queued(NamedTuple):
    thread: str
    event: dict[str, Any]
    watchers: list[str]  # the devices that saw it


class NotifyFeed:
    """Feeds one host's notifications from its agent."""

    def __init__(
        self, agent: Agent, notifications: Notifications, reachable: Callable[[str], bool]
    ) -> None:
        """`reachable` tells whether a device, by its id, has a live path to this host now."""
        self._agent = agent
        self._notifications = notifications
        self._reachable = reachable
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue(MAX_QUEUED)
        self._open: dict[str, str] = {}  # threads of the approvals that wait, by approval

    def event(self, thread: str | None, event: dict[str, Any]) -> None:
        """A listener of the agent's."""
        if thread is None or event.get("method") not in _METHODS:
            return
        try:
            # Who watches now has seen it, though they may have left before it is worked off.
            self._queue.put_nowait(_Queued(thread, event, self._watchers(thread)))
        except asyncio.QueueFull:
            _log.warning("too many events: one is not told of to anybody")

    async def run(self) -> None:
        """Until cancelled."""
        self._agent.listeners.append(self.event)
        for approval in self._agent.pending():
            # It was asked before a restart; who was told then is not told again.
            asked = {"approval": approval.public(clock())}
            self.event(approval.thread, {"method": "codexctl/approval/requested", "params": asked})
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._notifications.run())
                tasks.create_task(self._look())
                while True:
                    await self._tell(await self._queue.get())
        finally:
            self._agent.listeners.remove(self.event)

    async def _tell(self, queued: _Queued) -> None:
        notifications, thread = self._notifications, queued.thread
        method, params = queued.event["method"], queued.event.get("params") or {}
        if method == "turn/started":
            notifications.turn_started(thread)
            return
        approval = params.get("approval") or {}
        if method == "codexctl/approval/ended":
            self._open.pop(str(approval.get("id")), None)
            notifications.approval_ended(str(approval.get("id")))
            return
        described = await self._describe(thread)
        notifications.watched(thread, queued.watchers)
        if method == "codexctl/approval/requested":
            self._open[str(approval.get("id"))] = thread
            notifications.approval_requested(approval, described)
        elif method == "codexctl/agent/ended":
            # The turn that ran has no end of its own any more.
            turn = {"id": secrets.token_hex(8), "status": "failed", "error": params}
            notifications.turn_completed(described, turn)
        else:
            notifications.turn_completed(described, params.get("turn") or {})

    async def _describe(self, thread: str) -> dict[str, Any]:
        """The thread with its name, as far as the app-server tells."""
        try:
            answer = await self._agent.call("thread/read", {"threadId": thread})
        except CodexctlError:
            return {"id": thread}
        found = answer.get("thread") or {}
        return {"id": thread, "name": found.get("name"), "preview": found.get("preview")}

    def _watchers(self, thread: str) -> list[str]:
        watching = self._agent.watching
        devices = {device for device, what in list(watching) if what in (None, thread)}
        return [device for device in devices if self._reachable(device)]

    async def _look(self) -> None:
        """See who has left a thread that waits: a laptop that was shut says nothing."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for thread in set(self._open.values()):
                self._notifications.watched(thread, self._watchers(thread))
