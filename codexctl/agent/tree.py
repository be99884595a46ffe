"""A thread's working tree: its git state, what it was at the thread's start, a worktree of its own.

The tree at the start is kept as a git tree in a bare repository of codexctl's own that borrows the
objects of the person's; nothing is written to theirs. Everything blocks: call it in a thread. Git
runs as it does for a handoff, without the repository's own configuration, which an agent can write.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from codexctl.agent.handoff.git import Git, GitFailed, init_bare
from codexctl.errors import UsageError

READ_BYTES = 256 * 1024
WORKTREE_S = 600.0
EMPTY_TREE = {
    "sha1": "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    "sha256": "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PROGRESS = {
    "rebase-merge": "rebase", "rebase-apply": "rebase", "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert", "BISECT_LOG": "bisect",
}  # fmt: skip


class Place(NamedTuple):
    """Where a repository is. All absolute and real."""

    top: str
    git_dir: str
    common_dir: str
    object_format: str


def find(cwd: str) -> Place | None:
    """The repository whose working tree holds `cwd`; None for a folder of none, or a bare one."""
    at = os.path.realpath(cwd)
    while not os.path.lexists(os.path.join(at, ".git")):
        if at == "/" or _looks_bare(at):
            return None
        at = os.path.dirname(at)
    git_dir = os.path.join(at, ".git")
    if not os.path.isdir(git_dir):
        try:
            with open(git_dir, encoding="utf-8") as file:
                name = file.read(4096).strip().removeprefix("gitdir: ")
        except (OSError, ValueError):
            return None
        git_dir = os.path.normpath(os.path.join(at, name))
    git = Git(git_dir)
    try:
        common = git.text("rev-parse", "--path-format=absolute", "--git-common-dir")
        return Place(at, git_dir, common, git.text("rev-parse", "--show-object-format"))
    except GitFailed:
        return None


def _looks_bare(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "HEAD")) and os.path.isdir(
        os.path.join(folder, "objects")
    )


def state(cwd: str, scratch: str) -> dict[str, Any]:
    """The git state of a folder, as a person wants to know it before a thread starts there.

    `scratch` is a folder of codexctl's own, which may be there.
    """
    place = find(cwd)
    if place is None:
        return {"cwd": cwd, "repository": None, "bare": _looks_bare(os.path.realpath(cwd))}
    git = Git(place.git_dir)
    branch = git.ask("symbolic-ref", "--quiet", "--short", "HEAD")
    head = git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    progress = [
        what
        for name, what in _PROGRESS.items()
        if os.path.lexists(os.path.join(place.git_dir, name))
    ]
    view = _view(place, scratch)
    view.run("update-index", "-q", "--refresh", ok=(0, 1))
    base = head or EMPTY_TREE[place.object_format]
    same = ("--name-only", "--ignore-submodules=dirty", "-z")
    conflicted = {r.partition(b"\t")[2] for r in view.records("ls-files", "--unmerged", "-z")}
    counts = {
        "staged": _count(view.records("diff-index", "--cached", *same, base)),
        "unstaged": _count(view.records("diff-files", *same)),
        "untracked": _count(view.records("ls-files", "--others", "--exclude-standard", "-z")),
        "conflicted": len(conflicted),
    }
    links = sum(r.startswith(b"160000 ") for r in view.records("ls-files", "--stage", "-z"))
    return {
        "cwd": cwd,
        "repository": place.top,
        "bare": False,
        "branch": branch,
        "head": head,
        "detached": branch is None,
        "unborn": head is None,
        "in_progress": progress[0] if progress else None,
        "submodules": links,
        "lfs_pointers": _lfs_pointers(view),
        **counts,
        "dirty": any(counts.values()),
    }


def _lfs_pointers(view: Git) -> int:
    """How many tracked files stand there as Git LFS pointers, without their content."""
    found = 0
    tracked = ("--no-literal-pathspecs", "ls-files", "-z", "--", ":(attr:filter=lfs)")
    for name in view.records(*tracked):
        path = os.path.join(os.fsencode(view.work_tree or ""), name)
        with contextlib.suppress(OSError), open(path, "rb", opener=_regular) as file:
            found += file.read(len(LFS_POINTER)) == LFS_POINTER
    return found


def _regular(path: str, flags: int) -> int:
    """Opens no link, and does not wait for a pipe's other end."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _count(records: Iterator[bytes]) -> int:
    return sum(1 for _ in records)


def _view(place: Place, folder: str) -> Git:
    """A repository at `folder` over the same tree and objects, with a copy of the index."""
    objects = os.path.join(place.common_dir, "objects")
    bare = init_bare(os.path.join(folder, "tree.git"), place.object_format, [objects])
    index = os.path.join(bare.git_dir, "index")
    for name in os.listdir(bare.git_dir):
        if name == "index" or name.startswith(("sharedindex.", "index.")):
            os.unlink(os.path.join(bare.git_dir, name))
    for name in os.listdir(place.git_dir):
        if name == "index" or name.startswith("sharedindex."):
            source = os.path.join(place.git_dir, name)
            if stat.S_ISREG(os.lstat(source).st_mode):
                shutil.copy2(source, os.path.join(bare.git_dir, name))
    exclude = os.path.join(place.common_dir, "info", "exclude")
    os.makedirs(os.path.join(bare.git_dir, "info"), exist_ok=True)
    if os.path.isfile(exclude):
        shutil.copyfile(exclude, os.path.join(bare.git_dir, "info", "exclude"))
    return bare._replace(work_tree=place.top, index_file=index, config=("core.bare=false",))


def snapshot(place: Place, folder: str) -> str:
    """The working tree as it is now, untracked files too, as a tree in `folder`; its id."""
    view = _view(place, folder)
    # 1: some file could not be read; the others are there.
    view.run("add", "--all", "--ignore-errors", ok=(0, 1))
    return view.text("write-tree")


def base_of(place: Place, folder: str, tree: str | None, commit: str | None) -> str:
    """What a thread's changes are against: its kept tree, else its first commit, else HEAD."""
    git = _view(place, folder)
    for candidate in (tree, f"{commit}^{{commit}}" if commit else None):
        if candidate is not None and git.ask("cat-file", "-e", candidate) is not None:
            return candidate.removesuffix("^{commit}")
    head = Git(place.git_dir).ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    return head or EMPTY_TREE[place.object_format]


def changes(place: Place, folder: str, base: str) -> Iterator[bytes]:
    """The patch from `base` to the working tree as it is now, in pieces."""
    import subprocess

    now = snapshot(place, folder)
    git = Git(os.path.join(folder, "tree.git"))
    process = subprocess.Popen(
        git.argv(
            ["diff-tree", "-r", "-p", "--binary", "--full-index", "--find-renames", "--no-color",
             "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", base, now]
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=git.git_dir,
        env=git.environment(),
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            while piece := process.stdout.read(READ_BYTES):
                yield piece
        except GeneratorExit:
            process.kill()
            raise
    if process.returncode != 0:
        raise GitFailed("git diff-tree failed", hint="see on the host: git status")


def branch_name(text: str) -> str:
    """A branch for a thread that is to do `text`: its first words."""
    words = re.findall(r"[a-z0-9]+", text.lower())[:5]
    return f"codex/{'-'.join(words)[:40] or 'thread'}"


def add_worktree(place: Place, folder: str, branch: str) -> tuple[str, str]:
    """Make a worktree of HEAD in `folder` on a new branch, numbered where that is taken.

    The branch and the worktree's path.
    """
    git = Git(place.git_dir)
    if git.ask("check-ref-format", f"refs/heads/{branch}") is None:
        raise UsageError(f"{branch!r} is no name for a branch")
    if git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
        raise UsageError(
            f"{place.top} has no commit yet, so it can have no worktree",
            hint="commit something first, or start without --worktree",
        )
    taken = set(git.text("for-each-ref", "--format=%(refname:short)", "refs/heads").split())
    name, path, number = branch, os.path.join(folder, branch.replace("/", "-")), 1
    while name in taken or os.path.lexists(path):
        number += 1
        name = f"{branch}-{number}"
        path = os.path.join(folder, name.replace("/", "-"))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    git.run(
        "worktree", "add", "--quiet", "-b", name, path, "HEAD",
        ok=(0,), timeout=WORKTREE_S,
    )  # fmt: skip
    return name, path
