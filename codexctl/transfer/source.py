"""What is sent: a walk over trees in a fixed order, and regular files opened without a race."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from codexctl.errors import CodexctlError
from codexctl.wire.files import (
    CONTENTS,
    DIRECTORY,
    FILE,
    MAX_DEPTH,
    MAX_NAME_BYTES,
    MAX_TARGET_BYTES,
    PART_SUFFIX,
    SYMLINK,
)


class Found(NamedTuple):
    """One thing below a root, as `lstat` saw it. `path` is where to open it."""

    path: str
    parts: tuple[str, ...]
    kind: str
    mode: int
    mtime_ns: int
    size: int
    target: str


class Unreadable(NamedTuple):
    """What cannot be sent, with the reason; `failed` is False for what is left out on purpose."""

    path: str
    message: str
    failed: bool


def expand_sources(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Each path with the name that it gets below the target; patterns become what they match.

    A path that exists is never a pattern. CodexctlError names the one that is not there.
    """
    found: list[tuple[str, str]] = []
    for given in paths:
        path = os.path.expanduser(given) or "."
        if os.path.lexists(path):
            found.append((path, source_name(path)))
            continue
        matches = sorted(glob.glob(path)) if glob.has_magic(path) else []
        if not matches:
            raise CodexctlError(f"{given} does not exist", hint="check the path and its spelling")
        found += [(match, source_name(match)) for match in matches]
    return found


def source_name(path: str) -> str:
    """The last component, as cp takes it; CONTENTS for `.`, `folder/.`, `/` and their like."""
    name = os.path.basename(path.rstrip("/"))
    return CONTENTS if name in ("", ".", "..") else name


def walk(roots: Sequence[tuple[str, str]]) -> Iterator[Found | Unreadable]:
    """Everything below the roots, a folder before what is in it, names in the order of their bytes.

    Links are not followed, except those that were named as a root.
    """
    for path, name in roots:
        try:
            status = os.stat(path)
        except OSError as error:
            yield _unreadable(path, error)
            continue
        if name == CONTENTS and not stat.S_ISDIR(status.st_mode):
            yield Unreadable(path, "not a directory", True)
            continue
        for found in _walk(path, (name,), status):
            if isinstance(found, Unreadable) and found.path == path:
                # Asked for by name, so that leaving it out is no success.
                yield found._replace(failed=True)
            else:
                yield found


def _walk(
    path: str, parts: tuple[str, ...], status: os.stat_result
) -> Iterator[Found | Unreadable]:
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if parts[-1].endswith(PART_SUFFIX):
        yield Unreadable(path, "a partial copy, left out", False)
    elif len(os.fsencode(parts[-1])) > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
        yield Unreadable(path, f"nested deeper than {MAX_DEPTH} folders", True)
    elif stat.S_ISREG(status.st_mode):
        yield Found(path, parts, FILE, mode, status.st_mtime_ns, status.st_size, "")
    elif stat.S_ISLNK(status.st_mode):
        try:
            target = os.readlink(path)
        except OSError as error:
            yield _unreadable(path, error)
            return
        if not 0 < len(os.fsencode(target)) <= MAX_TARGET_BYTES:
            yield Unreadable(path, "its target is too long", True)
            return
        yield Found(path, parts, SYMLINK, mode, status.st_mtime_ns, 0, target)
    elif stat.S_ISDIR(status.st_mode):
        try:
            names = sorted(os.listdir(path), key=os.fsencode)
        except OSError as error:
            yield _unreadable(path, error)
            return
        yield Found(path, parts, DIRECTORY, mode, status.st_mtime_ns, 0, "")
        for name in names:
            inner = os.path.join(path, name)
            try:
                inner_status = os.lstat(inner)
            except OSError as error:
                yield _unreadable(inner, error)
                continue
            yield from _walk(inner, (*parts, name), inner_status)
    else:
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        yield Unreadable(path, f"{kind}, left out", False)


def _unreadable(path: str, error: OSError) -> Unreadable:
    return Unreadable(path, (error.strerror or str(error)).lower(), True)


def open_file(path: str, *, follow: bool) -> tuple[int, os.stat_result]:
    """A regular file's descriptor and status; OSError also where it has become something else."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OSError(0, "no regular file any more")
    return fd, status
