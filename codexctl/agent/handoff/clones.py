"""Clones that a target has already: where a handoff's objects are taken from instead of sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.repository import public_url
from codexctl.agent.handoff.restore import reachable

MAX_FOLDERS = 5_000  # looked into below the workspace
MAX_DEPTH = 4
MAX_TRIED = 20  # clones that are asked what they have
_PASSED_OVER = frozenset({"node_modules", "target", "build", "dist", "vendor", "__pycache__"})


class Clone(NamedTuple):
    """A clone with some of the offered commits. `git_dir` is its common git dir."""

    path: str
    git_dir: str
    haves: tuple[str, ...]


def find_clone(
    workspace: str,
    first: tuple[str, ...],
    offered: list[str],
    remotes: dict[str, str],
    object_format: str,
) -> Clone | None:
    """The clone below `workspace` (or one of the folders `first`) that has most of the commits."""
    urls = {_plain(url) for url in remotes.values()}
    best: Clone | None = None
    tried = 0
    for path in dict.fromkeys([*first, *_repositories(workspace)]):
        git_dir = os.path.join(path, ".git")
        if not os.path.isdir(os.path.join(git_dir, "objects")):
            continue
        git = Git(git_dir)
        alike = path in first or bool(urls & _urls(git))
        if tried >= MAX_TRIED and not alike:
            continue
        tried += 1
        if git.ask("rev-parse", "--show-object-format") != object_format:
            continue
        if os.path.lexists(os.path.join(git_dir, "shallow")):
            continue
        haves = tuple(reachable(git, offered))
        if haves and (best is None or len(haves) > len(best.haves)):
            best = Clone(path, git_dir, haves)
            if offered and offered[0] in haves:
                break
    return best


def _repositories(workspace: str) -> Iterator[str]:
    """Folders with a `.git` folder, the shallow ones first."""
    level = [workspace]
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[str] = []
        for folder in level:
            if os.path.isdir(os.path.join(folder, ".git")):
                yield folder
                continue
            seen += 1
            if seen > MAX_FOLDERS:
                return
            try:
                with os.scandir(folder) as entries:
                    below += sorted(
                        entry.path
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                        and not entry.name.startswith(".")
                        and entry.name not in _PASSED_OVER
                    )
            except OSError:
                continue  # not ours to read
        level = below


def _urls(git: Git) -> set[str]:
    listed = git.ask(
        "config", "--file", os.path.join(git.git_dir, "config"), "--no-includes",
        "--get-regexp", r"^remote\..*\.url$",
    )  # fmt: skip
    return {_plain(public_url(line.partition(" ")[2])) for line in (listed or "").splitlines()}


def _plain(url: str) -> str:
    """The same for the ways in which one address is written."""
    plain = url.lower().removesuffix("/").removesuffix(".git")
    for scheme in ("https://", "http://", "ssh://", "git://", "file://"):
        plain = plain.removeprefix(scheme)
    return plain.rpartition("@")[2].replace(":", "/")
