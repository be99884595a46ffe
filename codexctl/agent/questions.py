"""What the app-server asks of people: records in agent.db, and the events that tell of them.

The rules are in codexctl.agent.approvals; here they meet the store and the clock. Whatever changes
a record returns the events to append.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from codexctl.agent import approvals
from codexctl.agent.approvals import Approval, Clock
from codexctl.agent.store import AgentStore
from codexctl.state.database import now_s

MAX_PATCHES = 256  # changes that the agent began and has not ended, kept for their approval
ELSEWHERE = "it was answered at another client of the app-server, or is no longer asked"
UNTOLD = "the app-server ended before it was told of the decision"
LATE = "nobody answered in time"

Event = tuple[str | None, dict[str, Any]]
"""A thread and an object of codexctl's own, to be appended to the events."""


def clock() -> Clock:
    """Seconds since the boot, those of suspend included."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return Clock(file.read().strip(), time.clock_gettime(time.CLOCK_BOOTTIME))
    except OSError:
        return Clock("", time.monotonic())


class Questions:
    """The approvals of one host. `store` gives agent.db; StateError where it cannot be used."""

    def __init__(self, store: Callable[[], AgentStore]) -> None:
        self._store = store
        self._answered: set[tuple[str, int | str]] = set()  # requests of this app-server
        self._patches: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def pending(self) -> list[Approval]:
        return [Approval.from_record(record) for record in self._store().approvals(state="pending")]

    def named(self, name: str) -> list[Approval]:
        """Those whose id is `name`, else those whose id begins so."""
        found = [Approval.from_record(record) for record in self._store().approvals()]
        return [a for a in found if a.id == name] or [a for a in found if a.id.startswith(name)]

    def asked(self, method: str, request_id: int | str, params: dict[str, Any]) -> list[Event]:
        """Record a request of one of approvals.KINDS; nothing where it has a record already."""
        thread = str(params.get("threadId"))
        pending = {(approval.thread, approval.request_id) for approval in self.pending()}
        if (thread, request_id) in pending | self._answered:
            return []  # asked again because this daemon has joined anew
        changes = self._patches.get((thread, str(params.get("itemId"))), [])
        approval = approvals.requested(
            method,
            params,
            id=secrets.token_hex(6),
            request_id=request_id,
            patch=_patch(changes),
            clock=clock(),
            now=now_s(),
        )
        self._keep(approval)
        public = approval.public(clock())
        return [(thread, {"method": "codexctl/approval/requested", "params": {"approval": public}})]

    def answered(self, ended: Approval) -> list[Event]:
        """Keep a decision, before the app-server is told of it."""
        self._answered.add((ended.thread, ended.request_id))
        return self._over(ended)

    def is_answered(self, request_id: object) -> bool:
        """Whether this app-server's request was answered through codexctl."""
        return any(known == request_id for _, known in self._answered)

    def untold(self, ended: Approval) -> list[Event]:
        """The app-server was gone before it heard the decision."""
        reason = f"{UNTOLD} ({ended.decision})"
        return self._over(replace(ended, state="withdrawn", decision=None, reason=reason))

    def end_all(self, reason: str) -> list[Event]:
        """Their app-server is gone, and with it whatever it had under way."""
        self._answered.clear()
        self._patches.clear()
        return self._end(self.pending(), reason)

    def end_thread(self, thread: str, reason: str) -> list[Event]:
        return self._end([a for a in self.pending() if a.thread == thread], reason)

    def end_turn(self, thread: str, turn: object, reason: str) -> list[Event]:
        found = [a for a in self.pending() if (a.thread, a.turn) == (thread, turn)]
        return self._end(found, reason)

    def resolved(self, thread: str, request_id: object) -> list[Event]:
        """The app-server no longer waits for this request."""
        found = [a for a in self.pending() if (a.thread, a.request_id) == (thread, request_id)]
        return self._end(found, ELSEWHERE)

    def expired(self) -> tuple[list[Event], list[tuple[Approval, dict[str, Any]]]]:
        """End what nobody answered in time; the events, and what to tell the app-server."""
        found = [a for a in self.pending() if approvals.remaining(a, clock()) <= 0]
        return self._end(found, LATE, "expired"), [(a, approvals.refusal(a)) for a in found]

    def _end(self, found: list[Approval], reason: str, state: str = "withdrawn") -> list[Event]:
        events: list[Event] = []
        for approval in found:
            events += self._over(approvals.end(approval, state, now=now_s(), reason=reason))
        return events

    def _over(self, ended: Approval) -> list[Event]:
        self._keep(ended)
        public = ended.public(clock())
        over = {"method": "codexctl/approval/ended", "params": {"approval": public}}
        return [(ended.thread, over)]

    def _keep(self, approval: Approval) -> None:
        self._store().put_approval(
            approval.id, approval.thread, approval.state, approval.created_at, approval.as_record()
        )

    # --- changes of files, which their requests do not repeat ---

    def change(self, thread: str, item: object, changes: object) -> None:
        """The agent is about to make these changes."""
        if isinstance(changes, list):
            while len(self._patches) >= MAX_PATCHES:
                del self._patches[next(iter(self._patches))]
            self._patches[thread, str(item)] = changes

    def changed(self, thread: str, item: object) -> None:
        """It has made them, or not."""
        self._patches.pop((thread, str(item)), None)


def _patch(changes: list[dict[str, Any]]) -> str:
    """What a person is shown of a change: each file with its diff, or its whole new content."""
    parts = []
    for change in changes:
        kind = change.get("kind")
        kind = kind if isinstance(kind, dict) else {}
        moved = kind.get("move_path")
        head = f"*** {kind.get('type') or 'update'} {change.get('path')}"
        parts.append(f"{head}{f' -> {moved}' if moved else ''}\n{change.get('diff') or ''}")
    return "\n".join(parts)
