"""AGENTS.md as the official codex finds it: the global one, then from the project's root down.

In each folder AGENTS.override.md stands for AGENTS.md. The root is the nearest parent that holds
.git; without one only the folder itself counts. Files without any text are passed over.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

NAMES = ("AGENTS.override.md", "AGENTS.md")
# Read for the first heading and to see whether there is text at all.
HEAD_BYTES = 64 * 1024
MAX_HEADING = 200


class AgentsMd(NamedTuple):
    """One document: `size` in bytes, `heading` the text of its first Markdown heading."""

    path: str
    size: int
    heading: str


def find_agents_md(folder: str, codex_home: str) -> list[AgentsMd]:
    """The documents for `folder`, the most general first; unreadable ones are left out."""
    folders = [folder]
    parent = folder
    while parent != "/":
        if os.path.lexists(os.path.join(parent, ".git")):
            break
        parent = os.path.dirname(parent)
        folders.append(parent)
    else:
        folders = [folder]
    found = (_document(place) for place in (codex_home, *reversed(folders)))
    return [document for document in found if document is not None]


def _document(folder: str) -> AgentsMd | None:
    for name in NAMES:
        path = os.path.join(folder, name)
        try:
            # A pipe of that name must not hold the host up.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                continue
            text = os.read(fd, HEAD_BYTES).decode(errors="replace")
        finally:
            os.close(fd)
        if text.strip():
            return AgentsMd(path, status.st_size, _heading(text))
    return None


def _heading(text: str) -> str:
    fenced = False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and stripped.startswith("#"):
            heading = stripped.lstrip("#").strip(" #")
            if heading:
                return heading[:MAX_HEADING]
    return ""
