"""The commands of a Markdown page, and whether what they print is what the page says.

Every ```sh and ```console block has a comment on the line before its fence:

    <!-- run: device -->        on the machine of that name, in a folder of its own
    <!-- run: host stays -->    its one command is started and left running
    <!-- shown: REASON -->      not executed, and why

A `sh` block is commands alone; each must succeed. In a `console` block commands stand behind `$ `,
and what follows is what they print, stdout and stderr together, with `...` for anything (on a line
of its own, for any lines). Runs of spaces are equal, since the columns of a table move.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("sh", "console", "bash", "shell", "sh-session")


class Command(NamedTuple):
    """One command and what the page says that it prints; None where it says nothing."""

    text: str
    expected: list[str] | None
    line: int


class Block(NamedTuple):
    """`where` is empty for a block that is only shown."""

    where: str
    stays: bool
    commands: list[Command]
    line: int


class Unmarked(Exception):
    """A block of commands without a comment that says what to do with it."""


def parse(path: Path) -> list[Block]:
    """The blocks of commands in the page's order."""
    blocks: list[Block] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r"```(\S+)", lines[at])
        if fence is None or fence[1] not in LANGUAGES:
            at += 1
            continue
        end = lines.index("```", at + 1)
        marker = lines[at - 1] if at else ""
        run = re.fullmatch(r"<!-- run: (\w+)( stays)? -->", marker)
        if run is None and re.fullmatch(r"<!-- shown: .+ -->", marker) is None:
            raise Unmarked(f"{path.name}:{at + 1}: say above it whether this is run")
        body = list(enumerate(lines[at + 1 : end], start=at + 2))
        commands = _console(body) if fence[1] == "console" else _script(body)
        blocks.append(Block(run[1] if run else "", bool(run and run[2]), commands, at + 1))
        at = end + 1
    return blocks


def _script(body: list[tuple[int, str]]) -> list[Command]:
    return [Command(text, None, line) for line, text in body if text and not text.startswith("#")]


def _console(body: list[tuple[int, str]]) -> list[Command]:
    commands: list[Command] = []
    for line, text in body:
        if text.startswith("$ "):
            commands.append(Command(text[2:], [], line))
        else:
            assert commands, f"line {line}: output before a command"
            expected = commands[-1].expected
            assert expected is not None
            expected.append(text)
    return commands


def matches(expected: list[str], printed: str) -> bool:
    """Whether `printed` is what the page says."""
    pattern = ""
    for line in expected:
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            parts = [re.escape(_spaces(part)) for part in line.split("...")]
            pattern += ".*".join(parts) + r" ?\n"
    text = "".join(f"{_spaces(line)}\n" for line in printed.rstrip("\n").split("\n") if printed)
    return re.fullmatch(pattern, text) is not None


def _spaces(text: str) -> str:
    return re.sub(r" +", " ", text)
