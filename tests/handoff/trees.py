"""Repositories for tests of the git part: made with plain git, compared by what git says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from codexctl.agent.handoff.bundle import make_bundle, offer
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.repository import open_repository
from codexctl.agent.handoff.restore import (
    apply,
    git_of,
    make_folder,
    reachable,
    unpack,
    verify,
)
from codexctl.agent.handoff.snapshot import Snapshot, Survey, take

SETTINGS = (
    "user.name=n", "user.email=n@example.org", "init.defaultBranch=main",
    "protocol.file.allow=always", "core.abbrev=12", "advice.detachedHead=false",
)  # fmt: skip


def git(folder: Path, *arguments: str, ok: bool = True) -> bytes:
    """Plain git as a person runs it, with a config of no person."""
    options = [part for setting in SETTINGS for part in ("-c", setting)]
    done = subprocess.run(
        ["git", *options, *arguments],
        cwd=folder,
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
    )
    assert done.returncode == 0 or not ok, done.stderr.decode(errors="replace")
    return done.stdout


def make(folder: Path, **files: str) -> Path:
    """A repository with one commit of these files (a `__` in a name is a slash)."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    for name, text in files.items():
        write(folder, name.replace("__", "/"), text)
    if files:
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", "first")
    return folder


def write(folder: Path, name: str, content: str | bytes, mode: int = 0o644) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def state(folder: Path) -> dict[str, Any]:
    """Everything that has to be the same: what git says, and every file's bytes and mode."""
    files: dict[str, tuple[object, object]] = {}
    for base, folders, names in os.walk(folder):
        if ".git" in folders:
            folders.remove(".git")
        for name in names:
            if name == ".git":
                continue  # of a linked worktree
            path = Path(base, name)
            where = str(path.relative_to(folder))
            if path.is_symlink():
                files[where] = ("link", os.readlink(path))
            else:
                files[where] = (path.stat().st_mode & 0o777, path.read_bytes())
    return {
        "status": git(folder, "status", "--porcelain=v2", "-z", "--untracked-files=all"),
        "stashes": git(folder, "stash", "list"),
        "stash content": git(
            folder, "log", "-g", "-m", "-p", "--format=%H %gs", "refs/stash", "--", ok=False
        ),
        "head": git(folder, "rev-parse", "--verify", "--quiet", "HEAD", ok=False),
        "branch": git(folder, "symbolic-ref", "--quiet", "HEAD", ok=False),
        "index": git(folder, "ls-files", "--stage", "-v", "-z"),
        "files": files,
    }


class Sides(NamedTuple):
    """A working tree, where it goes, and the two folders of codexctl's own."""

    tree: Path
    place: Path
    ours: Path
    theirs: Path

    @classmethod
    def beside(cls, tree: Path) -> Sides:
        base = tree.parent
        return cls(tree, base / "moved" / tree.name, base / "ours", base / "theirs")

    def take(self, *globs: str) -> tuple[Snapshot, Survey]:
        repository = open_repository(str(self.tree))
        return take(repository, str(self.ours), include_ignored=globs, label="test")

    def carrier(self) -> Git:
        return Git(str(self.ours / "carrier.git"))

    def move(self, *globs: str, clone: Path | None = None) -> Survey:
        """The whole way, the snapshot as JSON in between as it is between hosts."""
        taken, survey = self.take(*globs)
        snapshot = Snapshot.from_json(taken.as_json())
        assert snapshot == taken
        seed = None if clone is None else str(clone / ".git")
        make_folder(str(self.place), snapshot, seed=seed)
        haves = reachable(git_of(str(self.place)), offer(self.carrier(), snapshot))
        make_bundle(self.carrier(), str(self.ours), haves)
        self.arrive(snapshot, haves)
        return survey

    def arrive(self, snapshot: Snapshot, haves: list[str]) -> None:
        bundle = str(self.ours / "bundle")
        unpack(str(self.theirs), str(self.place), snapshot, bundle, haves)
        apply(str(self.theirs), str(self.place), snapshot)
        verify(str(self.theirs), str(self.place), snapshot)
