"""The file of a conversation below CODEX_HOME: found, sent from where it differs, put in place."""

from __future__ import annotations

import os
import re
import shutil

from codexctl.agent.handoff.bundle import Part, hash_file
from codexctl.errors import ProtocolError

ARCHIVED, LIVE = "archived_sessions", "sessions"
_RELATIVE = re.compile(r"(?:\d{4}/\d{2}/\d{2}/)?rollout-[0-9A-Za-z.-]{1,120}\.jsonl")


def relative_path(codex_home: str, path: str, thread: str) -> str:
    """Where below `sessions` the rollout lies. ProtocolError for what is no rollout of `thread`."""
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(codex_home))
    return check_relative(relative.removeprefix(f"{LIVE}/").removeprefix(f"{ARCHIVED}/"), thread)


def check_relative(relative: str, thread: str) -> str:
    if not _RELATIVE.fullmatch(relative) or thread not in relative:
        raise ProtocolError(f"{relative[:200]!r} is not the place of a thread's rollout")
    return relative


def find_rollout(codex_home: str, relative: str) -> str | None:
    """The path of an earlier copy here, live or archived."""
    name = os.path.basename(relative)
    for path in (
        os.path.join(codex_home, LIVE, relative),
        os.path.join(codex_home, ARCHIVED, name),
        os.path.join(codex_home, ARCHIVED, relative),
    ):
        if os.path.isfile(path) and not os.path.islink(path):
            return path
    return None


def prefix_of(path: str, size: int) -> Part | None:
    """The first `size` bytes of a file; None where it is shorter."""
    part = hash_file(path, size)
    return part if part.size == size else None


def put(source: str, codex_home: str, relative: str) -> str:
    """Put a rollout at its place in one step, on the disk; returns the place."""
    place = os.path.join(codex_home, LIVE, relative)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    temporary = f"{place}.arriving"
    shutil.copyfile(source, temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, place)
    return place
