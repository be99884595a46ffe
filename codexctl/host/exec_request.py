"""What a device asks for in the open frame of exec and pty channels, checked. No I/O.

The frame comes from the device: nothing in it is believed (PROTOCOL.md section 6).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from codexctl.errors import UsageError
from codexctl.host.spawn import Terminal

MAX_ARGUMENTS = 4096
MAX_COMMAND_BYTES = 48 * 1024  # what one open frame can hold anyway
MAX_VARIABLES = 256
MAX_TERMINAL = 10_000  # columns or rows

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TERM = re.compile(r"[A-Za-z0-9._+-]{1,64}")


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """An open frame of exec or pty, checked. Neither `argv` nor `shell`: the login shell itself.

    The last three are for who asks for less than the policy gives: names of the login environment
    to leave out, real paths to hide, and those of the workspace that alone can be written
    (`SandboxRequest.narrowed`).
    """

    argv: tuple[str, ...]
    shell: str | None
    cwd: str | None
    env: dict[str, str]
    network: bool
    sandbox: bool
    detach: bool
    tty: Terminal | None
    without: frozenset[str] = frozenset()
    hidden: tuple[str, ...] = ()
    narrowed: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, params: dict[str, Any], kind: str) -> ExecRequest:
        """UsageError says what is not as PROTOCOL.md section 6 has it."""
        argv = params.get("argv")
        shell = params.get("shell")
        if argv is not None and (
            not isinstance(argv, list)
            or not 0 < len(argv) <= MAX_ARGUMENTS
            or not all(_is_text(item) for item in argv)
        ):
            raise UsageError(f"argv has to be a list of 1 to {MAX_ARGUMENTS} texts")
        if shell is not None and not _is_text(shell):
            raise UsageError("shell has to be a command line")
        if argv is not None and shell is not None:
            raise UsageError("a command is either argv or a shell command line, not both")
        if argv is None and shell is None and kind != "pty":
            raise UsageError("there is no command", hint="name one after --")
        cwd = params.get("cwd")
        if cwd is not None and not (_is_text(cwd) and cwd):
            raise UsageError("cwd has to be a path")
        env = params.get("env") or {}
        if not isinstance(env, dict) or len(env) > MAX_VARIABLES:
            raise UsageError(f"env has to be an object of at most {MAX_VARIABLES} texts")
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name) or not _is_text(value):
                raise UsageError(f"{name[:80]!r} cannot be set: not the name of a variable")
        sandbox = params.get("sandbox", "on")
        if sandbox not in ("on", "off"):
            raise UsageError('sandbox has to be "on" or "off"')
        return cls(
            tuple(argv or ()),
            shell,
            cwd,
            env,
            params.get("network") is True,
            sandbox == "on",
            params.get("detach") is True,
            parse_terminal(params.get("tty")) if kind == "pty" else None,
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value) <= MAX_COMMAND_BYTES


def parse_terminal(value: object) -> Terminal:
    """The terminal of an open frame; what is missing has its default. UsageError."""
    if value is None:
        return Terminal()
    if not isinstance(value, dict):
        raise UsageError("tty has to be an object with cols, rows and term")
    cols, rows = parse_size([value.get("cols", 80), value.get("rows", 24)])
    term = value.get("term") or Terminal().term
    if not isinstance(term, str) or not _TERM.fullmatch(term):
        raise UsageError("tty.term has to be the name of a terminal type")
    return Terminal(cols, rows, term)


def parse_size(value: object) -> tuple[int, int]:
    """[COLS, ROWS] of a resize. UsageError."""
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(number) is int and 0 < number <= MAX_TERMINAL for number in value)
    ):
        return value[0], value[1]
    raise UsageError(f"a terminal has 1 to {MAX_TERMINAL} columns and rows")
