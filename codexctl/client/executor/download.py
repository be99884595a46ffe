"""Copies from an official executor, by its `fs/*` calls; links and modes as its shell sees them.

Nothing is written outside the target, and a file appears there only when it is complete. Where
there is no such shell (Windows), links and modes are not known. What failed alone stands in the
summary.
"""

from __future__ import annotations

import fnmatch
import posixpath
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from codexctl.client.executor.blocks import Blocks, entries, metadata
from codexctl.client.executor.connection import ExecutorConnection
from codexctl.client.executor.shell import run_there
from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.transfer.source import source_name
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import NotCopied, Target
from codexctl.wire.files import DIRECTORY, FILE, SYMLINK, Entry

LINKS = (
    'find "$@" -type l -exec sh -c \'for f; do printf "%s\\0%s\\0" "$f" "$(readlink "$f")"; done\''
    " _ {} +"
)
PROGRAMS = 'find "$@" -type f -perm -100 -exec printf "%s\\0" {} +'

Step = Callable[[int], None]


class _Remote(NamedTuple):
    """One thing there; `parts` is its path below the target here."""

    path: str
    parts: tuple[str, ...]
    is_directory: bool
    size: int
    mtime_ns: int


def download(
    connection: ExecutorConnection,
    paths: Sequence[str],
    target: str,
    *,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is there to `target` here; nothing is written outside it."""
    roots = [found for given in paths for found in _expand(connection, given)]
    links, programs = _shell_view(connection, [path for path, _ in roots])
    summary = Summary()
    place = Target.open(target, many=len(roots) > 1)
    try:
        for path, name in roots:
            for remote in _walk(connection, path, (name,), links, summary):
                _take(connection, remote, place, links, programs, summary, step)
        for parts, message in place.close():
            summary.fail("/".join(parts), message)
    finally:
        place.abandon()
    return summary


def _expand(connection: ExecutorConnection, given: str) -> list[tuple[str, str]]:
    """The paths that one argument names there, with their names here; patterns are matched."""
    path = connection.absolute(given)
    if metadata(connection, path) is not None:
        return [(path, source_name(given if given.rstrip("/") else "."))]
    if not set(given) & set("*?["):
        raise CodexctlError(f"{given} does not exist there", hint="check the path and its spelling")
    found = ["/"]
    for part in path.split("/")[1:]:
        found = [
            posixpath.join(folder, name)
            for folder in found
            for name in (
                [part] if not set(part) & set("*?[") else _matching(connection, folder, part)
            )
        ]
    matches = [match for match in found if metadata(connection, match) is not None]
    if not matches:
        raise CodexctlError(f"nothing there matches {given}", hint="check the pattern")
    return [(match, source_name(match)) for match in matches]


def _matching(connection: ExecutorConnection, folder: str, pattern: str) -> list[str]:
    try:
        names = [str(entry["fileName"]) for entry in entries(connection, folder)]
    except ConnectionFailed:
        raise
    except CodexctlError:
        return []
    hidden = pattern.startswith(".")
    return sorted(
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and (hidden or not name.startswith("."))
    )


def _shell_view(
    connection: ExecutorConnection, paths: list[str]
) -> tuple[dict[str, str], set[str]]:
    """Links with their targets, and the files that may be executed, as the shell sees them."""
    if connection.environment.os == "windows":
        return {}, set()
    _, output = run_there(connection, ["/bin/sh", "-c", LINKS, "codexctl", *paths])
    words = output.decode("utf-8", "surrogateescape").split("\0")
    links = dict(zip(words[::2], words[1::2], strict=False))
    _, output = run_there(connection, ["/bin/sh", "-c", PROGRAMS, "codexctl", *paths])
    return links, set(output.decode("utf-8", "surrogateescape").split("\0"))


def _walk(
    connection: ExecutorConnection,
    path: str,
    parts: tuple[str, ...],
    links: dict[str, str],
    summary: Summary,
) -> Iterator[_Remote]:
    """A folder before what is in it. Links are not followed, except those named as a root."""
    try:
        found = metadata(connection, path) or {}
        is_directory = bool(found.get("isDirectory"))
        yield _Remote(
            path,
            parts,
            is_directory,
            int(found.get("size") or 0),
            int(found.get("modifiedAtMs") or 0) * 1_000_000,
        )
        if not is_directory:
            return
        names = {str(entry["fileName"]) for entry in entries(connection, path)}
    except ConnectionFailed:
        raise
    except CodexctlError as error:
        summary.fail(path, str(error))
        return
    # The executor does not list a link that leads nowhere.
    names |= {posixpath.basename(link) for link in links if posixpath.dirname(link) == path}
    for name in sorted(names):
        inner = posixpath.join(path, name)
        if name in ("", ".", "..") or "/" in name:
            summary.fail(inner, "no name of a file")
        elif inner in links:
            yield _Remote(inner, (*parts, name), False, 0, 0)
        else:
            yield from _walk(connection, inner, (*parts, name), links, summary)


def _take(
    connection: ExecutorConnection,
    remote: _Remote,
    place: Target,
    links: dict[str, str],
    programs: set[str],
    summary: Summary,
    step: Step,
) -> None:
    """Write one thing here; what goes wrong with it alone is noted."""
    link = links.get(remote.path) if len(remote.parts) > 1 else None
    kind = SYMLINK if link is not None else DIRECTORY if remote.is_directory else FILE
    mode = 0o755 if kind == DIRECTORY or remote.path in programs else 0o644
    mtime_ns = remote.mtime_ns or time.time_ns()
    entry = Entry(0, remote.parts, kind, mode, mtime_ns, remote.size, link or "")
    try:
        path = place.place(entry)
        if kind == DIRECTORY:
            place.make_folder(path, entry)
            summary.directories += 1
        elif kind == SYMLINK:
            place.make_link(path, entry)
            summary.symlinks += 1
        else:
            fd = place.open_part(path)
            with open(fd, "wb") as file:
                file.truncate(0)
                with Blocks(connection, remote.path, "read") as blocks:
                    before = summary.bytes
                    size = blocks.read(file.write, lambda moved: step(before + moved))
                file.flush()
                place.commit(path, fd, entry, rename=True)
            summary.files += 1
            summary.bytes += size
    except ConnectionFailed:
        raise
    except (NotCopied, CodexctlError, OSError) as error:
        summary.fail(remote.path, str(error))
