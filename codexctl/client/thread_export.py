"""A thread's conversation as Markdown, turn by turn, from the lines of `thread.export`.

What the agent and the person said stays Markdown; commands, outputs and changes are fenced with
fences that are longer than any in them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from codexctl.client.thread_view import Block, ThreadView, change_lines


def markdown(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Pieces of the document, as the lines come: nothing but the current turn is held."""
    view = ThreadView()
    for line in lines:
        thread, turn = line.get("thread"), line.get("turn")
        if isinstance(thread, Mapping):
            view.cwd = str(thread.get("cwd") or "")
            yield _head(thread)
        elif isinstance(turn, Mapping):
            for item in turn.get("items") or ():
                view.feed({"method": "item/completed", "params": {"item": item}})
            if turn.get("status") in ("failed", "interrupted"):
                view.feed({"method": "turn/completed", "params": {"turn": turn}})
            for block in view.take():
                yield _block(block)


def _head(thread: Mapping[str, Any]) -> str:
    facts = {
        "thread": thread.get("id"),
        "folder": thread.get("cwd"),
        "branch": thread.get("branch"),
        "model": thread.get("model"),
        "begun": _when(thread.get("created_at")),
    }
    rows = [f"- {name}: {value}" for name, value in facts.items() if value]
    title = " ".join(str(thread.get("name") or thread.get("preview") or "Thread").split())
    return f"# {title}\n\n" + "\n".join(rows) + "\n"


def _when(at: object) -> str:
    if not isinstance(at, int | float):
        return ""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))


def _block(block: Block) -> str:
    text = block.text.strip("\n")
    if block.kind == "user":
        return f"\n## {text}\n" if "\n" not in text else f"\n## Asked\n\n{text}\n"
    if block.kind in ("message", "review"):
        return f"\n{text}\n"
    if block.kind == "reasoning":
        return "\n" + "\n".join(f"> {line}".rstrip() for line in text.split("\n")) + "\n"
    if block.kind == "command":
        state = "" if block.state == "done" else f" ({_state(block)})"
        return f"\nCommand{state}:\n\n{fenced(f'$ {block.title}', 'console', text)}"
    if block.kind == "files":
        return "".join(_change(change) for change in block.changes)
    if block.kind == "turn":
        return f"\n*The turn was {block.state}{f': {text}' if text else ''}.*\n"
    return f"\n*{block.title or block.kind}{f': {text}' if text else ''}*\n"


def _state(block: Block) -> str:
    return f"exit {block.exit_code}" if block.exit_code else block.state


def _change(change: Mapping[str, Any]) -> str:
    kind = change.get("kind")
    name = str(kind.get("type")) if isinstance(kind, Mapping) else "update"
    words = {"add": "Added", "delete": "Deleted"}.get(name, "Changed")
    diff = "\n".join(change_lines(change))
    return f"\n{words} `{change.get('path')}`:\n\n{fenced(diff, 'diff')}"


def fenced(text: str, language: str, more: str = "") -> str:
    """A fenced block of code whose content cannot end it."""
    content = f"{text}\n{more}" if more else text
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}\n"
