"""A patch on standard output: in colour and through a pager on a terminal, else byte for byte."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from codexctl.cli.output import colour_wanted

COPY_BYTES = 1 << 20
_COLOURS = {b"+": b"\x1b[32m", b"-": b"\x1b[31m", b"@": b"\x1b[36m"}
_HEADERS = (
    b"diff ", b"index ", b"--- ", b"+++ ", b"new file", b"deleted file", b"old mode", b"new mode",
    b"rename ", b"copy ", b"similarity ", b"Binary ", b"GIT binary",
)  # fmt: skip
_RESET = b"\x1b[0m"


def show_patch(path: str, *, paged: bool) -> None:
    """Print the patch file. Off a terminal nothing of it is touched, so that git can read it."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        with open(path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, COPY_BYTES)
        sys.stdout.buffer.flush()
        return
    colour = colour_wanted(sys.stdout)
    command = _pager() if paged and _is_long(path) else None
    with open(path, "rb") as file:
        if command is None:
            for line in _coloured(file, colour=colour):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        else:
            _page(command, _coloured(file, colour=colour))


def _is_long(path: str) -> bool:
    """Whether it has more lines than the terminal has rows."""
    from codexctl.client.process import terminal_size

    rows = terminal_size()[1]
    with open(path, "rb") as file:
        return any(number >= rows - 1 for number, _ in enumerate(file, 1))


def _pager() -> list[str] | None:
    """The person's pager as a command; None where there is none or they want none."""
    import shlex

    text = os.environ.get("CODEXCTL_PAGER", os.environ.get("PAGER", "less"))
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if not words or words == ["cat"] or shutil.which(words[0]) is None:
        return None
    return words


def _page(command: list[str], lines: Iterator[bytes]) -> None:
    import subprocess

    # F and X end less by themselves where all fits and keep the screen; R shows colours.
    environment = {"LESS": "FRX", "LV": "-c", **os.environ}
    pager = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert pager.stdin is not None
    try:
        for line in lines:
            pager.stdin.write(line)
        pager.stdin.close()
    except BrokenPipeError:
        pass  # the person has seen enough
    while True:
        try:
            pager.wait()
            return
        except KeyboardInterrupt:
            continue  # it is the pager's


def _coloured(lines: Iterator[bytes], *, colour: bool) -> Iterator[bytes]:
    """Lines for a terminal: what it would obey is shown as escapes, the kinds in colour."""
    for line in lines:
        text = _printable(line.rstrip(b"\n"))
        if not colour:
            yield text + b"\n"
        elif line.startswith(_HEADERS):
            yield b"\x1b[1m" + text + _RESET + b"\n"
        else:
            start = _COLOURS.get(line[:1], b"")
            yield start + text + (_RESET if start else b"") + b"\n"


def _printable(line: bytes) -> bytes:
    text = line.decode(errors="backslashreplace").replace("\t", "        ")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text.encode()
