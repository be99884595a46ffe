"""Notifications in the host daemon: the agent's events in, notices out, in nobody's way.

Sending happens in threads of its own, one notice at a time to each target; nothing here waits for a
target but its own outlet. What a target was told is kept, so that a restart tells nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from codexctl.agent.notify import BODY_CHARS, TITLE_CHARS, Notice, Notifier, Send
from codexctl.agent.notify_send import NotSent, send
from codexctl.agent.notify_targets import (
    TargetRecord,
    all_targets,
    keep_result,
    open_targets,
    told,
)
from codexctl.paths import Home

SHORT_ID = 13  # characters of a thread's id that tell it from others

_ASKS = {
    "command": "asks to run a command",
    "file-change": "asks to change files",
    "permissions": "asks for more permissions",
    "question": "has a question",
    "elicitation": "needs an answer for an MCP server",
}
_log = logging.getLogger(__name__)


class Notifications:
    """One host's notices. All methods are called on the event loop; `run` lasts until cancelled."""

    def __init__(self, home: Home, host: str, relay: str) -> None:
        """`relay` is the address that devices know."""
        self._host = host
        self._relay = relay.rstrip("/")
        self._db = open_targets(home)
        self._targets: dict[str, TargetRecord] = {}
        self._notifier = Notifier((), told(self._db))
        self._names: dict[str, str] = {}
        self._orders: list[Send] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._read_targets()

    async def reload(self, params: dict[str, Any]) -> dict[str, Any]:
        """The control method: the targets were changed by `codexctl notify`."""
        self._read_targets()
        return {}

    def _read_targets(self) -> None:
        self._targets = {target.name: target for target in all_targets(self._db)}
        rules = [target.rule for target in self._targets.values()]
        self._give(self._notifier.set_targets(rules, _now()))

    # --- what happens ---

    def approval_requested(self, approval: Mapping[str, Any], thread: Mapping[str, Any]) -> None:
        """A pending approval; harmless when it was said before."""
        asks = _ASKS.get(str(approval.get("kind")), "needs a person")
        body = [str(approval.get(name)) for name in ("command", "reason") if approval.get(name)]
        for question in approval.get("questions") or ():
            if isinstance(question, Mapping):
                body.append(str(question.get("question") or ""))
        body.append(f"codexctl thread approve {str(approval.get('id'))[:SHORT_ID]}")
        notice = self._notice(f"approval:{approval.get('id')}", "waiting", thread, asks, body)
        self._give(self._notifier.approval_requested(notice, _now()))

    def approval_ended(self, approval_id: str) -> None:
        """It was answered, withdrawn or has expired."""
        self._notifier.approval_ended(f"approval:{approval_id}")

    def turn_started(self, thread_id: str) -> None:
        self._notifier.turn_started(thread_id)

    def turn_completed(self, thread: Mapping[str, Any], turn: Mapping[str, Any]) -> None:
        """The official turn object of `turn/completed`."""
        status = turn.get("status")
        if status == "interrupted":
            return
        failed = status == "failed"
        error = turn.get("error")
        said = [str(error.get("message"))] if isinstance(error, Mapping) else _last_words(turn)
        words = "has failed" if failed else "has finished"
        kind = "failed" if failed else "finished"
        notice = self._notice(f"turn:{turn.get('id')}", kind, thread, words, said)
        self._give(self._notifier.turn_completed(notice, _now()))

    def watched(self, thread_id: str, devices: Iterable[str]) -> None:
        """The ids of the devices that watch a thread from now on."""
        self._give(self._notifier.watched(thread_id, devices, _now()))

    def _notice(
        self, id: str, kind: str, thread: Mapping[str, Any], words: str, body: list[str]
    ) -> Notice:
        thread_id = str(thread.get("id"))
        name = str(thread.get("name") or thread.get("preview") or thread_id[:SHORT_ID])
        title = _printable(f"{self._host}: {' '.join(name.split())[:60]} {words}")
        link = f"{self._relay}/thread#{self._host}:{thread_id}"
        text = _printable("\n".join(line for line in body if line))
        return Notice(id, kind, thread_id, title[:TITLE_CHARS], text[:BODY_CHARS], link)

    # --- sending ---

    def _give(self, orders: list[Send]) -> None:
        self._orders += orders
        self._wake.set()

    async def run(self) -> None:
        """Send what is ordered, and wake the rules when time has passed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                self._orders += self._notifier.tick(_now())
                orders, self._orders = self._orders, []
                for order in orders:
                    self._start(loop, order)
                due = self._notifier.due
                try:
                    async with asyncio.timeout(None if due is None else max(0, due - _now())):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._closed = True
            self._db.close()

    def _start(self, loop: asyncio.AbstractEventLoop, order: Send) -> None:
        target = self._targets.get(order.target)
        if target is None:
            self._give(self._notifier.failed(order.target, _now(), for_good=True))
            return

        def work() -> None:
            failure: NotSent | None = None
            try:
                send(target, order.notice, self._host)
            except NotSent as error:
                failure = error
            try:
                loop.call_soon_threadsafe(self._ended, order, failure)
            except RuntimeError:
                pass  # the host has stopped meanwhile

        # One that hangs must not keep the host from stopping, as a pool's threads would.
        threading.Thread(target=work, name=f"notify {target.name}", daemon=True).start()

    def _ended(self, order: Send, failure: NotSent | None) -> None:
        if self._closed:
            return
        if failure is None:
            keep_result(self._db, order.target, order.ids, None)
            self._give(self._notifier.sent(order.target, _now()))
            return
        _log.warning("notification to %s: %s", order.target, failure)
        keep_result(self._db, order.target, (), failure.message)
        self._give(self._notifier.failed(order.target, _now(), for_good=failure.for_good))


def _now() -> float:
    return time.monotonic()


def _last_words(turn: Mapping[str, Any]) -> list[str]:
    """What the agent said last, where the notification of the turn's end has it."""
    for item in reversed(turn.get("items") or ()):
        if isinstance(item, Mapping) and item.get("type") == "agentMessage":
            return [str(item.get("text") or "")]
    return []


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
