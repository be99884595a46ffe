"""Blocks of a thread as terminal lines, at any width: a pure function of the blocks.

`lines(blocks, width)` gives text with SGR colours and nothing else that a terminal obeys: what the
agent, its commands and its files say is cleaned first, since it comes from anywhere.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from codexctl.client.thread_view import Block, ThreadView, change_lines, plain_command

MIN_WIDTH = 20  # columns; narrower terminals wrap by themselves
OUTPUT_HEAD_LINES = 4  # shown of a long output, unless all of it is asked for
OUTPUT_TAIL_LINES = 12
DIFF_LINES = 40  # shown of one file's change
LIVE_LINES = 8  # shown of an output that still grows
ALL = 1 << 30

# CSI, OSC and the other string commands, then every other escape.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)|\x1b[ -/]*[0-~]?", re.DOTALL
)
_TRAILING = re.compile(r"[ ]+((?:\x1b\[[0-9;]*m)*)$")
_MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "declined": ("✗", "yellow")}
_STEPS = {"completed": ("✓", "green"), "inProgress": ("▸", "cyan"), "pending": ("○", "dim")}
_KINDS = {"add": ("A", "green"), "delete": ("D", "red"), "update": ("M", "yellow")}
_WANTS = {
    "command": "to run a command",
    "file-change": "to change files",
    "permissions": "more permissions",
    "question": "an answer",
    "elicitation": "an answer for an MCP server",
}


def clean(text: str) -> str:
    """Text of which a terminal obeys only line ends; of a line drawn over, the last state."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    out = []
    for line in text.split("\n"):
        line = line.rstrip("\r").rpartition("\r")[2].expandtabs(8)
        if not line.isprintable():
            line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        out.append(line)
    return "\n".join(out)


def make_console(width: int, *, colour: bool) -> Console:
    """A console that renders into memory; everything about the terminal is said to it."""
    return Console(
        file=io.StringIO(),
        width=max(width, MIN_WIDTH),
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        _environ={},
    )


def lines(
    blocks: Iterable[Block], width: int, *, colour: bool = True, full: bool = False
) -> list[str]:
    """Complete blocks as lines of at most `width` columns; `full` shows all of every output."""
    out: list[str] = []
    for block in blocks:
        out += _rendered(block_renderable(block, full=full), width, colour)
    return out


def live_lines(
    view: ThreadView, width: int, height: int, *, now_ms: int, colour: bool = True, title: str = ""
) -> list[str]:
    """What still changes, at most `height` lines; the last one is the thread's state."""
    out: list[str] = []
    for block in view.live.values():
        out += _rendered(_live(block, now_ms), width, colour)
    room = max(height - 1, 0)
    return [
        *(out[-room:] if room else []),
        *_rendered(_status(view, title, now_ms), width, colour)[:1],
    ]


def _rendered(renderable: RenderableType, width: int, colour: bool) -> list[str]:
    console = make_console(width, colour=colour)
    console.print(renderable, overflow="fold", soft_wrap=False)
    assert isinstance(console.file, io.StringIO)
    return [_TRAILING.sub(r"\1", line) for line in console.file.getvalue().split("\n")[:-1]]


def block_renderable(block: Block, *, full: bool = False) -> RenderableType:
    """One complete block for a rich console."""
    return _RENDERERS.get(block.kind, _tool)(block, full)


# --- one function a kind ---


def _user(block: Block, full: bool) -> RenderableType:
    return Group(Text(), _hanging("> ", Text(clean(block.text), style="bold"), style="bold cyan"))


def _message(block: Block, full: bool) -> RenderableType:
    # Links stay readable text: a terminal would follow what the agent chose.
    return Group(Text(), Markdown(clean(block.text), hyperlinks=False, code_theme="ansi_dark"))


def _reasoning(block: Block, full: bool) -> RenderableType:
    text = clean(block.text).replace("**", "")
    return _hanging("· ", Text(text, style="dim italic"), style="dim")


def _review(block: Block, full: bool) -> RenderableType:
    if block.title == "reviewing":
        return Text(f"reviewing {clean(block.text)}", style="bold magenta")
    body = Markdown(clean(block.text), hyperlinks=False, code_theme="ansi_dark")
    return Group(Text(), Text("review", style="bold magenta"), body)


def _command(block: Block, full: bool) -> RenderableType:
    output = clean(block.text).strip("\n")
    head = _hanging("$ ", _headline(block), style="bold")
    if not output:
        return Group(Text(), head)
    shown = Text("\n".join(_cut(output.split("\n"), full)), style="dim")
    return Group(Text(), head, Padding(shown, (0, 0, 0, 2)))


def _headline(block: Block) -> Text:
    text = Text(clean(block.title), style="bold")
    mark, colour = _MARKS.get(block.state, ("", ""))
    if block.state == "failed" and block.exit_code:
        mark = f"exit {block.exit_code}"
    elif block.state in ("declined", "interrupted"):
        mark, colour = block.state, "yellow"
    if mark:
        text.append(f"  {mark}", style=colour)
    if block.duration_s is not None and block.duration_s >= 1:
        text.append(f" {block.duration_s:.1f} s", style="dim")
    return text


def _files(block: Block, full: bool) -> RenderableType:
    parts: list[RenderableType] = [Text()]
    for change in block.changes:
        kind = change.get("kind")
        name = str(kind.get("type")) if isinstance(kind, Mapping) else "update"
        mark, colour = _KINDS.get(name, ("M", "yellow"))
        head = Text(f"{mark} ", style=colour).append(clean(str(change.get("path"))), style="bold")
        moved = kind.get("move_path") if isinstance(kind, Mapping) else None
        if moved:
            head.append(f" → {clean(str(moved))}", style="bold")
        if block.state in ("failed", "declined", "interrupted"):
            head.append(f"  {block.state}", style="red")
        diff = clean("\n".join(change_lines(change))).split("\n")
        parts += [head, Padding(diff_text(diff, full=full), (0, 0, 0, 2))]
    return Group(*parts)


def diff_text(diff: Sequence[str], *, full: bool) -> Text:
    """Lines of a unified diff in colour."""
    limit = ALL if full else DIFF_LINES
    text = Text()
    for at, line in enumerate(diff[:limit]):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        text.append(("\n" if at else "") + line, style=style)
    if len(diff) > limit:
        text.append(f"\n… {len(diff) - limit} more lines", style="dim")
    return text


def _plan(block: Block, full: bool) -> RenderableType:
    parts: list[RenderableType] = [Text(), Text("plan", style="bold magenta")]
    if block.text:
        parts.append(Padding(Text(clean(block.text), style="italic"), (0, 0, 0, 2)))
    for step in block.steps:
        mark, colour = _STEPS.get(str(step.get("status")), ("○", "dim"))
        done = Text(clean(str(step.get("step"))), style="dim" if colour != "cyan" else "bold")
        parts.append(Padding(_hanging(f"{mark} ", done, style=colour), (0, 0, 0, 2)))
    return Group(*parts)


def _tool(block: Block, full: bool) -> RenderableType:
    text = _headline(block)
    if block.text:
        text.append(f"\n{clean(block.text)}", style="dim")
    return _hanging("* ", text, style="bold")


def _notice(block: Block, full: bool) -> RenderableType:
    colour = "red" if block.state == "failed" else "dim yellow"
    return _hanging("! ", Text(clean(block.text), style=colour), style=colour)


def _turn(block: Block, full: bool) -> RenderableType:
    words = {"completed": ("done", "green"), "interrupted": ("interrupted", "yellow")}
    word, colour = words.get(block.state, (clean(block.state) or "ended", "red"))
    text = Text(f"— turn {word}", style=colour)
    if block.duration_s is not None:
        text.append(f" in {span(block.duration_s)}", style="dim")
    if block.text:
        text.append(f": {clean(block.text)}", style="red")
    return Group(Text(), text)


def _approval(block: Block, full: bool) -> RenderableType:
    approval = block.approval
    if block.state != "pending":
        return _hanging("? ", Text(decision_text(approval, block.state), style="dim"), style="dim")
    body = approval_renderable(approval, full=full)
    foot = Text(_command_for(approval), style="bold")
    title = f"the agent wants {_WANTS.get(str(approval.get('kind')), 'an answer')}"
    return Group(
        Text(), Panel(Group(body, Text(), foot), title=title, border_style="yellow", expand=True)
    )


def approval_renderable(approval: Mapping[str, Any], *, full: bool = True) -> RenderableType:
    """All that a decision is about: the exact command or patch, where, why, what else it wants."""
    parts: list[RenderableType] = []
    command = approval.get("command")
    if command:
        words = command if isinstance(command, str) else " ".join(map(str, command))
        parts.append(_hanging("$ ", Text(clean(plain_command(words)), style="bold")))
    for name in ("command_kind", "cwd", "reason", "grant_root"):
        if approval.get(name):
            parts.append(_fact(name, clean(str(approval[name]))))
    for name in ("network", "permissions"):
        if approval.get(name):
            parts.append(_fact(name, _json(approval[name])))
    form = approval.get("elicitation")
    if isinstance(form, Mapping):
        parts += [
            _fact(name, clean(value) if isinstance(value, str) else _json(value))
            for name, value in form.items()
        ]
    if approval.get("patch"):
        parts.append(diff_text(clean(str(approval["patch"])).split("\n"), full=full))
    for question in approval.get("questions") or ():
        parts += _question(question)
    return Group(*parts)


def approval_lines(approval: Mapping[str, Any], width: int, *, colour: bool) -> list[str]:
    """All that a decision is about, as lines."""
    return _rendered(approval_renderable(approval), width, colour)


def inbox_lines(
    approval: Mapping[str, Any], title: str, width: int, *, colour: bool, full: bool
) -> list[str]:
    """An approval in a list: whose it is, all of it, and how it is decided or was."""
    parts: list[RenderableType] = [Text(clean(title), style="bold")]
    state = str(approval.get("state"))
    if state == "pending":
        parts.append(approval_renderable(approval, full=full))
        left = approval.get("expires_in_s")
        head = _command_for(approval)
        more = f"  waits for {span(left)} more" if isinstance(left, int | float) else ""
        parts.append(Text(head, style="bold yellow").append(more, style="not bold dim"))
    else:
        parts.append(Text(decision_text(approval, state), style="dim"))
    return [
        *_rendered(Group(parts[0], Padding(Group(*parts[1:]), (0, 0, 0, 2))), width, colour),
        "",
    ]


def _command_for(approval: Mapping[str, Any]) -> str:
    form = approval.get("elicitation")
    schema = form.get("requestedSchema") if isinstance(form, Mapping) else None
    fields = schema.get("properties") if isinstance(schema, Mapping) else None
    verb = "answer" if approval.get("kind") == "question" or fields else "approve"
    return clean(f"codexctl thread {verb} {str(approval.get('id') or '')[:13]}")


def _fact(name: str, value: str) -> Text:
    return Text(f"{name.replace('_', ' ')}: ", style="dim").append(value, style="not dim")


def _question(question: object) -> list[RenderableType]:
    if not isinstance(question, Mapping):
        return []
    text = str(question.get("question") or question.get("header") or "")
    parts: list[RenderableType] = [
        Text(f"{clean(str(question.get('id') or ''))}: ", style="dim").append(
            clean(text), style="bold"
        )
    ]
    for option in question.get("options") or ():
        if isinstance(option, Mapping):
            line = Text(f"- {clean(str(option.get('label')))}", style="cyan")
            if option.get("description"):
                line.append(f"  {clean(str(option['description']))}", style="dim")
            parts.append(Padding(line, (0, 0, 0, 2)))
    return parts


def decision_text(approval: Mapping[str, Any], state: str) -> str:
    """How an approval ended, in a few words."""
    what = plain_command(str(approval.get("command") or "")) or str(approval.get("kind") or "it")
    if state == "answered":
        who = approval.get("decided_by")
        return clean(f"{approval.get('decision')}{f' by {who}' if who else ''}: {what}")
    why = approval.get("withdrawn_because")
    return clean(f"{state}: {what}{f' ({why})' if why else ''}")


def _live(block: Block, now_ms: int) -> RenderableType:
    if block.kind == "command":
        head = _hanging("$ ", _headline(block), style="bold yellow")
        if block.started_at_ms is not None:
            running = max(now_ms - block.started_at_ms, 0) / 1000
            head = Group(head, Text(f"  running for {span(running)}", style="dim"))
        output = clean(block.text).strip("\n").split("\n")[-LIVE_LINES:] if block.text else []
        shown = Text("\n".join(output), style="dim")
        return Group(head, Padding(shown, (0, 0, 0, 2))) if output else head
    if block.kind == "message":
        return Text(clean(block.text))
    return block_renderable(block)


def _status(view: ThreadView, title: str, now_ms: int) -> RenderableType:
    colours = {"active": "green", "waiting": "yellow", "failed": "red"}
    word = {"waiting": "waiting for a person", "unknown": "…"}.get(view.status, view.status)
    text = Text("● ", style=colours.get(view.status, "dim")).append(clean(title), style="bold")
    text.append(f"  {word}", style=colours.get(view.status, "dim"))
    if view.tokens:
        text.append(f"  {view.tokens} tokens", style="dim")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def span(seconds: float) -> str:
    """A duration for a person: 0.4 s, 42 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _cut(output: list[str], full: bool) -> list[str]:
    if full or len(output) <= OUTPUT_HEAD_LINES + OUTPUT_TAIL_LINES + 1:
        return output
    hidden = len(output) - OUTPUT_HEAD_LINES - OUTPUT_TAIL_LINES
    return [
        *output[:OUTPUT_HEAD_LINES],
        f"… {hidden} lines …",
        *output[-OUTPUT_TAIL_LINES:],
    ]


def _hanging(mark: str, text: Text, style: str = "") -> RenderableType:
    """`mark` in front, and the text's later lines below its first one."""
    from rich.table import Table

    grid = Table.grid(padding=0)
    grid.add_column(width=len(mark), no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, style=style), text)
    return grid


def _json(value: object) -> str:
    import json

    return clean(json.dumps(value, ensure_ascii=False))


_RENDERERS = {
    "user": _user,
    "message": _message,
    "reasoning": _reasoning,
    "review": _review,
    "command": _command,
    "files": _files,
    "plan": _plan,
    "tool": _tool,
    "notice": _notice,
    "turn": _turn,
    "approval": _approval,
}
