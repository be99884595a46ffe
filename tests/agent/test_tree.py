"""What is said of a folder's git state, whatever state that is; patches and worktrees of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codexctl.agent import tree
from codexctl.errors import CodexctlError


def git(folder: Path, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
    identity = [
        "-c",
        "user.name=n",
        "-c",
        "user.email=n@example.org",
        "-c",
        "protocol.file.allow=always",
    ]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode in ok, done.stderr
    return done.stdout.strip()


def commit(folder: Path, text: str) -> None:
    (folder / "a.txt").write_text(text)
    git(folder, "add", "a.txt")
    git(folder, "commit", "-q", "-m", text.strip())


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one\n")
    return folder


def unborn(app: Path) -> None:
    git(app, "switch", "-q", "--orphan", "new")


def detached(app: Path) -> None:
    git(app, "switch", "-q", "--detach")


def conflicted(app: Path) -> None:
    git(app, "switch", "-q", "-c", "other")
    commit(app, "other\n")
    git(app, "switch", "-q", "main")
    commit(app, "main\n")
    git(app, "merge", "other", ok=(1,))


def rebasing(app: Path) -> None:
    git(app, "switch", "-q", "-c", "other")
    commit(app, "other\n")
    git(app, "switch", "-q", "main")
    commit(app, "main\n")
    git(app, "rebase", "other", ok=(1,))


def with_submodule(app: Path) -> None:
    library = app.parent / "library"
    library.mkdir()
    git(library, "init", "-q")
    commit(library, "lib\n")
    git(app, "submodule", "--quiet", "add", str(library), "lib")
    git(app, "commit", "-q", "-m", "lib")


def with_lfs_pointers(app: Path) -> None:
    """As a clone without git-lfs has them; one file has its content."""
    (app / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    for name in ("a.bin", "b.bin"):
        oid = f"oid sha256:{'0' * 64}\nsize 12345\n"
        (app / name).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}")
    (app / "c.bin").write_bytes(b"\0content")
    (app / "pipe.bin").write_text("")
    git(app, "add", ".")
    git(app, "commit", "-q", "-m", "lfs")
    (app / "pipe.bin").unlink()
    os.mkfifo(app / "pipe.bin")


def changed(app: Path) -> None:
    (app / "a.txt").write_text("staged\n")
    git(app, "add", "a.txt")
    (app / "a.txt").write_text("changed\n")
    (app / "new.txt").write_text("new\n")
    (app / ".gitignore").write_text("*.log\n")
    (app / "x.log").write_text("ignored\n")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda app: None, {"branch": "main", "detached": False, "dirty": False}),
        (unborn, {"branch": "new", "head": None, "unborn": True}),
        (detached, {"branch": None, "detached": True, "dirty": False}),
        (conflicted, {"in_progress": "merge", "conflicted": 1, "dirty": True}),
        (rebasing, {"in_progress": "rebase", "detached": True, "conflicted": 1}),
        (with_submodule, {"submodules": 1, "dirty": False}),
        (with_lfs_pointers, {"lfs_pointers": 2, "staged": 0, "unstaged": 1}),
        (changed, {"staged": 1, "unstaged": 1, "untracked": 2, "dirty": True}),
    ],
    ids=["clean", "unborn", "detached", "conflicted", "rebasing", "submodule", "lfs", "changed"],
)
def test_the_state_of_a_repository_is_told(
    app: Path, tmp_path: Path, make: Callable[[Path], None], expected: dict[str, Any]
) -> None:
    make(app)
    before = git(app, "status", "--porcelain=v2", "--branch")
    found = tree.state(str(app), str(tmp_path / "scratch"))
    assert {name: found[name] for name in expected} == expected
    assert found["repository"] == str(app)
    assert git(app, "status", "--porcelain=v2", "--branch") == before


def test_what_is_no_working_tree_is_told(app: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(app), "bare.git")
    bare = tree.state(str(tmp_path / "bare.git"), str(tmp_path / "scratch"))
    assert (bare["repository"], bare["bare"]) == (None, True)
    (tmp_path / "plain").mkdir()
    plain = tree.state(str(tmp_path / "plain"), str(tmp_path / "scratch"))
    assert (plain["repository"], plain["bare"]) == (None, False)


STATES = [unborn, detached, conflicted, rebasing, with_submodule, with_lfs_pointers]


@pytest.mark.parametrize("make", STATES)
def test_a_patch_is_of_what_changed_since_in_any_state(
    app: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(app)
    (app / "before").write_text("before\n")
    place = tree.find(str(app))
    assert place is not None
    folder = str(tmp_path / "kept")
    base = tree.snapshot(place, folder)
    before = git(app, "count-objects")
    assert b"".join(tree.changes(place, folder, base)) == b""
    (app / "after").write_bytes(b"\0after")
    os.symlink("after", app / "link")
    patch = b"".join(tree.changes(place, folder, base))
    assert b"b/after" in patch
    assert b"b/link" in patch
    assert b"b/before" not in patch
    # The repository itself gets nothing.
    assert git(app, "count-objects") == before


def test_nothing_that_a_repository_names_is_run(app: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    git(app, "config", "filter.evil.clean", f"touch {mark}; cat")
    git(app, "config", "core.fsmonitor", f"touch {mark}")
    (app / ".gitattributes").write_text("* filter=evil\n")
    (app / "a.txt").write_text("changed\n")
    tree.state(str(app), str(tmp_path / "scratch"))
    place = tree.find(str(app))
    assert place is not None
    tree.snapshot(place, str(tmp_path / "kept"))
    assert not mark.exists()


def test_worktrees_get_branches_that_are_free(app: Path, tmp_path: Path) -> None:
    place = tree.find(str(app))
    assert place is not None
    folder = str(tmp_path / "trees")
    assert tree.add_worktree(place, folder, "codex/x") == ("codex/x", f"{folder}/codex-x")
    assert tree.add_worktree(place, folder, "codex/x")[0] == "codex/x-2"
    with pytest.raises(CodexctlError, match="is no name for a branch"):
        tree.add_worktree(place, folder, "a..b")
    unborn(app)
    with pytest.raises(CodexctlError, match="has no commit yet"):
        tree.add_worktree(place, folder, "codex/y")


@pytest.mark.parametrize(
    ("prompt", "branch"),
    [
        ("Fix the flaky test, please: now!", "codex/fix-the-flaky-test-please"),
        ("", "codex/thread"),
        ("日本語", "codex/thread"),
    ],
)
def test_a_branch_is_named_after_the_prompt(prompt: str, branch: str) -> None:
    assert tree.branch_name(prompt) == branch
