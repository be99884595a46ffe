"""What a thread's events come to: blocks to show and the state of the thread. No I/O.

    view = ThreadView()
    for event in events:            # objects of PROTOCOL.md section 8
        view.feed(event)
    view.take()                     # the blocks that are complete since the last time, in order
    view.live                       # those that still change: a running command, a message coming

A block is complete once and never changes again, so that whoever shows it writes it once. Blocks
complete in the order of the events, not in that of their starts: a long command holds nothing back.
Notifications that are not known here change nothing; `codexctl thread watch --json` has them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LIVE_OUTPUT_CHARS = 64 * 1024  # kept of what a running command printed; the whole comes at its end
MAX_LIVE_BLOCKS = 64  # an end that never came must not keep blocks for ever
_SHELL_FLAGS = ("-c", "-lc", "-ic", "-lic")


@dataclass(slots=True)
class Block:
    """One thing that happened. `kind` says which of the other fields mean anything.

    user, message, reasoning, review: `text`. command: `title`, `text` (its output), `exit_code`.
    files: `changes`. plan: `steps`. tool: `title`, `text`. approval: `approval`. turn: the end of a
    turn, `text` where it failed. notice: `text`.
    """

    kind: str
    key: str = ""
    title: str = ""
    text: str = ""
    state: str = "running"  # then done, failed, declined, interrupted, pending
    exit_code: int | None = None
    duration_s: float | None = None
    changes: tuple[Mapping[str, Any], ...] = ()  # path, kind, diff, as the official item has them
    steps: tuple[Mapping[str, Any], ...] = ()  # step, status
    approval: Mapping[str, Any] = field(default_factory=dict)
    started_at_ms: int | None = None


def plain_command(command: str) -> str:
    """The command line without the shell that the agent wraps around it."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    wrapped = len(words) == 3 and words[0].endswith("sh") and words[1] in _SHELL_FLAGS
    return words[2] if wrapped else command


def change_lines(change: Mapping[str, Any]) -> list[str]:
    """One file's change, each line with its sign; the item has none where all is new or gone."""
    kind = _mapping(change.get("kind")).get("type")
    lines = str(change.get("diff") or "").rstrip("\n").split("\n")
    sign = {"add": "+", "delete": "-"}.get(str(kind), "")
    return [sign + line for line in lines]


class ThreadView:
    """The state of one thread as far as its events told it."""

    def __init__(self) -> None:
        self.live: dict[str, Block] = {}
        self.status = "unknown"  # idle, active, waiting, failed
        self.cursor = 0
        self.name = ""
        self.cwd = ""  # set by who knows it: paths of files are shown from there
        self.turn = ""
        self.outcome = ""  # how the last turn ended: completed, failed, interrupted
        self.tokens = 0
        self.pending: dict[str, Mapping[str, Any]] = {}  # approvals that wait, by their id
        self._complete: list[Block] = []

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take the next event line."""
        cursor = event.get("cursor")
        if isinstance(cursor, int):
            self.cursor = max(self.cursor, cursor)
        params = event.get("params")
        handler = _HANDLERS.get(str(event.get("method")))
        if handler is not None and isinstance(params, Mapping):
            handler(self, params)

    def take(self) -> list[Block]:
        """The blocks that became complete since the last call."""
        complete, self._complete = self._complete, []
        return complete

    # --- turns and the thread ---

    def _status_changed(self, params: Mapping[str, Any]) -> None:
        status = _mapping(params.get("status"))
        kind = status.get("type")
        flags = status.get("activeFlags")
        if kind == "active":
            self.status = "waiting" if flags else "active"
        elif kind in ("idle", "notLoaded"):
            self.status = "idle"
        elif kind == "systemError":
            self.status = "failed"

    def _turn_started(self, params: Mapping[str, Any]) -> None:
        self.turn = str(_mapping(params.get("turn")).get("id", ""))
        self.outcome = ""
        self.status = "active"

    def _turn_completed(self, params: Mapping[str, Any]) -> None:
        turn = _mapping(params.get("turn"))
        self.outcome = str(turn.get("status", ""))
        self._end_live()
        error = _mapping(turn.get("error"))
        duration = turn.get("durationMs")
        block = Block("turn", text=str(error.get("message") or ""), state=self.outcome)
        block.duration_s = duration / 1000 if isinstance(duration, int) else None
        self._complete.append(block)
        self.status = "failed" if self.outcome == "failed" else "idle"

    def _end_live(self) -> None:
        """End what runs: its own end will not come any more."""
        for key in list(self.live):
            block = self.live.pop(key)
            if block.text or block.kind not in ("reasoning", "message"):
                block.state = "interrupted"
                self._complete.append(block)

    def _named(self, params: Mapping[str, Any]) -> None:
        self.name = str(params.get("threadName") or "")

    def _tokens_used(self, params: Mapping[str, Any]) -> None:
        total = _mapping(_mapping(params.get("tokenUsage")).get("total")).get("totalTokens")
        if isinstance(total, int):
            self.tokens = total

    def _plan_updated(self, params: Mapping[str, Any]) -> None:
        steps = params.get("plan")
        if isinstance(steps, list):
            chosen = tuple(_mapping(step) for step in steps)
            text = str(params.get("explanation") or "")
            self._complete.append(Block("plan", text=text, state="done", steps=chosen))

    def _goal_updated(self, params: Mapping[str, Any]) -> None:
        goal = _mapping(params.get("goal"))
        self._notice(f"goal ({goal.get('status', '')}): {goal.get('objective', '')}")

    def _goal_cleared(self, params: Mapping[str, Any]) -> None:
        self._notice("the goal was cleared")

    def _warned(self, params: Mapping[str, Any]) -> None:
        self._notice(str(params.get("message") or params.get("summary") or ""))

    def _failed(self, params: Mapping[str, Any]) -> None:
        # What ends the turn is told by the turn's end.
        if params.get("willRetry"):
            self._notice(f"{_mapping(params.get('error')).get('message', '')}; trying again")

    def _notice(self, text: str, state: str = "done") -> None:
        self._complete.append(Block("notice", text=text, state=state))

    # --- items ---

    def _item_started(self, params: Mapping[str, Any]) -> None:
        item = _mapping(params.get("item"))
        if item.get("type") == "userMessage":
            return  # complete at once
        key = _key(params, item.get("id"))
        block = self._block(item)
        block.key = key
        started = params.get("startedAtMs")
        block.started_at_ms = started if isinstance(started, int) else None
        self.live[key] = block
        while len(self.live) > MAX_LIVE_BLOCKS:
            self._complete.append(self.live.pop(next(iter(self.live))))

    def _item_completed(self, params: Mapping[str, Any]) -> None:
        item = _mapping(params.get("item"))
        earlier = self.live.pop(_key(params, item.get("id")), None)
        block = self._block(item)
        if earlier is not None and not block.text:
            block.text = earlier.text
        if block.state == "running":
            block.state = "done"
        if block.text or block.kind not in ("message", "reasoning", "review", "user"):
            self._complete.append(block)

    def _text_delta(self, params: Mapping[str, Any]) -> None:
        block = self.live.get(_key(params, params.get("itemId")))
        delta = params.get("delta")
        if block is not None and isinstance(delta, str):
            block.text = (block.text + delta)[-LIVE_OUTPUT_CHARS:]

    def _patch_updated(self, params: Mapping[str, Any]) -> None:
        block = self.live.get(_key(params, params.get("itemId")))
        changes = params.get("changes")
        if block is not None and isinstance(changes, list):
            block.changes = self._changes(changes)

    def _block(self, item: Mapping[str, Any]) -> Block:
        block = _block(item)
        if block.kind == "files":
            block.changes = self._changes(item.get("changes") or ())
        return block

    def _changes(self, changes: Iterable[object]) -> tuple[Mapping[str, Any], ...]:
        """The official changes with paths from the thread's folder, as a person would say them."""
        prefix = f"{self.cwd}/"
        found = [_mapping(change) for change in changes]
        return tuple({**c, "path": str(c.get("path")).removeprefix(prefix)} for c in found)

    # --- codexctl's own ---

    def _approval_requested(self, params: Mapping[str, Any]) -> None:
        approval = _mapping(params.get("approval"))
        self.pending[str(approval.get("id"))] = approval
        self.status = "waiting"
        self._complete.append(Block("approval", state="pending", approval=approval))

    def _approval_ended(self, params: Mapping[str, Any]) -> None:
        approval = _mapping(params.get("approval"))
        self.pending.pop(str(approval.get("id")), None)
        if not self.pending and self.status == "waiting":
            self.status = "active"
        state = str(approval.get("state") or "answered")
        self._complete.append(Block("approval", state=state, approval=approval))

    def _agent_ended(self, params: Mapping[str, Any]) -> None:
        self._end_live()
        self.status, self.outcome = "failed", "failed"
        self._notice(str(params.get("message") or "the app-server ended"), "failed")

    def _moving(self, params: Mapping[str, Any]) -> None:
        self._notice(f"it is being moved to {params.get('to')}")

    def _moved(self, params: Mapping[str, Any]) -> None:
        self._notice(f"it has moved to {params.get('to')}, and goes on there")

    def _stayed(self, params: Mapping[str, Any]) -> None:
        self._notice(f"it was not moved to {params.get('to')}, and stays")

    def _arrived(self, params: Mapping[str, Any]) -> None:
        self._notice(f"it has come from {params.get('source')}")


_HANDLERS = {
    "thread/status/changed": ThreadView._status_changed,
    "thread/name/updated": ThreadView._named,
    "thread/goal/updated": ThreadView._goal_updated,
    "thread/goal/cleared": ThreadView._goal_cleared,
    "thread/tokenUsage/updated": ThreadView._tokens_used,
    "turn/started": ThreadView._turn_started,
    "turn/completed": ThreadView._turn_completed,
    "turn/plan/updated": ThreadView._plan_updated,
    "item/started": ThreadView._item_started,
    "item/completed": ThreadView._item_completed,
    "item/agentMessage/delta": ThreadView._text_delta,
    "item/plan/delta": ThreadView._text_delta,
    "item/reasoning/summaryTextDelta": ThreadView._text_delta,
    "item/commandExecution/outputDelta": ThreadView._text_delta,
    "item/fileChange/patchUpdated": ThreadView._patch_updated,
    "codexctl/approval/requested": ThreadView._approval_requested,
    "codexctl/approval/ended": ThreadView._approval_ended,
    "codexctl/agent/ended": ThreadView._agent_ended,
    "codexctl/handoff/frozen": ThreadView._moving,
    "codexctl/handoff/moved": ThreadView._moved,
    "codexctl/handoff/undone": ThreadView._stayed,
    "codexctl/handoff/arrived": ThreadView._arrived,
    "error": ThreadView._failed,
    "warning": ThreadView._warned,
    "guardianWarning": ThreadView._warned,
    "configWarning": ThreadView._warned,
    "deprecationNotice": ThreadView._warned,
}


def _block(item: Mapping[str, Any]) -> Block:
    """A block from an official item, of a known type or not."""
    kind = str(item.get("type"))
    state = str(item.get("status") or "running")
    block = Block("tool", state={"inProgress": "running", "completed": "done"}.get(state, state))
    duration = item.get("durationMs")
    block.duration_s = duration / 1000 if isinstance(duration, int) else None
    text = item.get("text")
    if kind in ("agentMessage", "plan"):
        block.kind, block.text = "message", str(text or "")
    elif kind == "userMessage":
        block.kind, block.text = "user", _content(item.get("content"))
    elif kind == "reasoning":
        block.kind, block.text = "reasoning", "\n\n".join(map(str, item.get("summary") or ()))
    elif kind in ("enteredReviewMode", "exitedReviewMode"):
        block.kind, block.text = "review", str(item.get("review") or "")
        block.title = "review" if kind == "exitedReviewMode" else "reviewing"
    elif kind == "commandExecution":
        block.kind, block.title = "command", plain_command(str(item.get("command") or ""))
        block.text = str(item.get("aggregatedOutput") or "")
        code = item.get("exitCode")
        block.exit_code = code if isinstance(code, int) else None
    elif kind == "fileChange":
        block.kind = "files"
    elif kind == "mcpToolCall":
        block.title = f"{item.get('server', '')}.{item.get('tool', '')}"
        block.text = str(_mapping(item.get("error")).get("message") or "")
    elif kind == "webSearch":
        block.title = f"web search: {item.get('query', '')}"
    else:
        block.title = str(item.get("tool") or item.get("name") or item.get("path") or kind)
    return block


def _content(parts: object) -> str:
    """A message of the person's as text; pictures and files by their kind."""
    texts = []
    for part in parts if isinstance(parts, list) else ():
        part = _mapping(part)
        texts.append(str(part.get("text") or f"[{part.get('type', 'attachment')}]"))
    return "\n".join(texts)


def _key(params: Mapping[str, Any], item: object) -> str:
    return f"{params.get('turnId')} {item}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
