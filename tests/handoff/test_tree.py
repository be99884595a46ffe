"""A working tree before and after: what git says, every byte and mode; hypothesis makes trees."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.agent.handoff.bundle import keep_sent, make_bundle, offer
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.repository import NotMovable, open_repository
from codexctl.agent.handoff.restore import apply, git_of, make_folder, reachable
from tests.handoff.trees import Sides, git, make, state, write

NAMES = ("a", "b c", "ünï", "-x", "d/e", "d/f\ng", "[g]*", "d/deep/h", "i")
CONTENTS = (b"", b"one\n", b"two\r\nlines\r\n", b"\0binary\xff", b"$Id$\n", b"x" * 5000)
ACTIONS = (
    "commit", "stage", "change", "delete", "remove", "link", "executable", "private", "intend",
    "assume", "stash", "stash untracked", "branch", "detach",
)  # fmt: skip

Step = tuple[str, str, bytes]
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(NAMES), st.sampled_from(CONTENTS)),
    max_size=12,
)


def perform(tree: Path, step: Step) -> None:
    """One thing that a person does; what git refuses is not done."""
    action, name, content = step
    path = tree / name
    if action in ("stage", "change", "intend") or not path.exists():
        if path.is_symlink() or path.is_dir() or any(p.is_file() for p in path.parents):
            return
        write(tree, name, content)
    if action == "commit":
        git(tree, "add", "--", f":(literal){name}", ok=False)
        git(tree, "commit", "--quiet", "-m", name, ok=False)
    elif action == "stage":
        git(tree, "add", "--", f":(literal){name}", ok=False)
    elif action == "delete":
        path.unlink()
    elif action == "remove":
        git(tree, "rm", "--quiet", "--force", "--", f":(literal){name}", ok=False)
    elif action == "link":
        path.unlink()
        path.symlink_to("/etc/passwd" if content else "nowhere")
    elif action in ("executable", "private") and not path.is_symlink():
        path.chmod(0o755 if action == "executable" else 0o640)
    elif action == "intend":
        git(tree, "add", "--intent-to-add", "--", f":(literal){name}", ok=False)
    elif action == "assume":
        git(tree, "update-index", "--assume-unchanged", "--", name, ok=False)
    elif action == "stash":
        git(tree, "stash", "push", "--quiet", ok=False)
    elif action == "stash untracked":
        git(tree, "stash", "push", "--quiet", "-u", "-m", f"of {name!r}", ok=False)
    elif action == "branch":
        git(tree, "checkout", "--quiet", "-b", "feature/one", ok=False)
    elif action == "detach":
        git(tree, "checkout", "--quiet", "--detach", ok=False)


@settings(max_examples=6, deadline=None)
@given(steps, st.booleans())
def test_any_tree_arrives_exactly(done: list[Step], begun: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = make(Path(folder) / "tree", **({"i": "i\n", "d__e": "e\n"} if begun else {}))
        for step in done:
            perform(tree, step)
        before = state(tree)
        sides = Sides.beside(tree)
        sides.move()
        assert state(tree) == before, "the source was changed"
        arrived = state(sides.place)
        # Git keeps no mode but the executable bit of files that are as committed.
        carried = [name for name, file in before["files"].items() if file[0] != 0o640]
        for side in (before, arrived):
            side["files"] = {name: side["files"][name] for name in carried}
        assert arrived == before


def test_everything_at_once_and_applied_twice(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n", b="b\n", c="c\n", d__e="e\n", gone="g\n")
    write(tree, "a", "stashed\n")
    git(tree, "stash")
    write(tree, "b", "staged\n")
    git(tree, "add", "b")
    write(tree, "b", "staged and changed\n")
    write(tree, "c", "c\n", 0o755)
    git(tree, "mv", "d/e", "moved")
    (tree / "gone").unlink()
    write(tree, "private", "p\n", 0o600)
    write(tree, "new folder/ü\n", b"\r\n\0")
    (tree / "link").symlink_to("/etc/shadow")
    write(tree, "intended", "i\n")
    git(tree, "add", "-N", "intended")
    before = state(tree)
    sides = Sides.beside(tree)
    survey = sides.move()
    assert state(sides.place) == before
    assert (survey.untracked, survey.left) == (3, ())
    snapshot, _ = sides.take()
    # As after a crash in the middle of it.
    write(sides.place, "b", "half written")
    (sides.place / "moved").unlink()
    write(sides.place / ".git", "index.lock", "")
    apply(str(sides.theirs), str(sides.place), snapshot)
    assert state(sides.place) == before


def test_a_clone_there_gives_the_objects_and_keeps_its_own(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", big="0123456789" * 50_000)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(tree), str(clone))
    write(clone, "dirty", "theirs")
    git(clone, "add", "dirty")
    git(clone, "stash")
    write(clone, "big", "theirs")
    theirs = state(clone)
    write(tree, "small", "new commit\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "second")
    write(tree, "loose", "x")
    sides = Sides.beside(tree)
    sides.move(clone=clone)
    assert state(sides.place) == state(tree)
    assert state(clone) == theirs
    assert (sides.ours / "bundle").stat().st_size < 5000
    assert git(sides.place, "fsck", "--strict") is not None


def test_a_second_handoff_sends_only_what_changed(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    write(tree, "large", os.urandom(300_000))
    first = Sides.beside(tree)
    first.move()
    assert (first.ours / "bundle").stat().st_size > 300_000
    for folder in (first.ours, first.theirs):
        keep_sent(str(folder))
    write(tree, "little", "b\n")
    snapshot, _ = first.take()
    again = first._replace(place=tmp_path / "again")
    known = reachable(Git(str(first.theirs / "carrier.git")), offer(first.carrier(), snapshot))
    assert known
    make_folder(str(again.place), snapshot, seed=str(first.place / ".git"))
    make_bundle(first.carrier(), str(first.ours), known)
    assert (first.ours / "bundle").stat().st_size < 5000
    again.arrive(snapshot, known)
    assert state(again.place) == state(tree)


def test_the_source_repository_is_not_written(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    write(tree, "a", "changed\n")
    write(tree, "new", "new\n")

    def everything() -> dict[str, tuple[float, int]]:
        return {
            str(path): (path.lstat().st_mtime, path.lstat().st_size)
            for path in sorted(tree.rglob("*"))
        }

    before = everything()
    Sides.beside(tree).take()
    assert everything() == before


def test_an_agent_cannot_have_the_handoff_run_a_program(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n", b="b\n")
    ran = tmp_path / "ran"
    program = write(tmp_path, "program", f"#!/bin/sh\ntouch {ran}\ncat\n", 0o755)
    write(tree, ".gitattributes", "* filter=evil diff=evil\n")
    for key in (
        "core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process",
        "diff.evil.textconv", "diff.external", "core.sshCommand", "credential.helper",
        "core.pager", "core.editor", "gpg.program", "uploadpack.packObjectsHook",
    ):  # fmt: skip
        git(tree, "config", key, str(program))
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        write(tree / ".git" / "hooks", name, program.read_bytes(), 0o755)
    write(tree, "a", "changed\n")
    os.utime(tree / "b", (1, 1))
    ran.unlink(missing_ok=True)
    sides = Sides.beside(tree)
    sides.move(clone=tree)
    assert not ran.exists()
    config = (sides.place / ".git" / "config").read_text()
    assert str(program) not in config
    hooks = sides.place / ".git" / "hooks"
    assert not hooks.exists() or not list(hooks.iterdir())


def test_secrets_and_ignored_files_stay_and_are_named(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    write(tree, ".gitignore", "*.log\nbuild/\n")
    write(tree, "auth.json", "{}")
    write(tree, "notes.txt", "-----BEGIN OPENSSH PRIVATE KEY-----\nxyz\n")
    write(tree, "keys/id_ed25519", "k")
    write(tree, "run.log", "log")
    write(tree, "build/out.bin", "out")
    write(tree, "build/auth.json", "{}")
    sides = Sides.beside(tree)
    survey = sides.move("build/*")
    there = set(state(sides.place)["files"])
    assert there == {"a", ".gitignore", "build/out.bin"}
    named = {left.path for left in survey.left}
    assert named == {"auth.json", "notes.txt", "keys/id_ed25519", "build/auth.json"}
    git(tree, "add", "-f", "auth.json")
    with pytest.raises(NotMovable, match=r"auth\.json is staged"):
        sides.take()


def test_passwords_in_addresses_stay(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    for name, url in (
        ("origin", "https://person:secret@example.org/x.git?token=secret"),
        ("ssh", "ssh://git@example.org/x.git"),
        ("short", "git@example.org:x.git"),
        ("evil", "ext::sh -c evil"),
    ):
        git(tree, "config", f"remote.{name}.url", url)
    assert open_repository(str(tree)).remotes == {
        "origin": "https://example.org/x.git",
        "ssh": "ssh://git@example.org/x.git",
        "short": "git@example.org:x.git",
    }


def test_a_branch_follows_what_it_followed(tmp_path: Path) -> None:
    origin = make(tmp_path / "origin", a="a\n")
    tree = tmp_path / "tree"
    git(tmp_path, "clone", "--quiet", str(origin), str(tree))
    write(tree, "a", "b\n")
    git(tree, "commit", "--quiet", "-am", "ahead")
    sides = Sides.beside(tree)
    sides.move()
    status = ("status", "--porcelain=v2", "--branch")
    assert b"# branch.ab +1 -0" in git(tree, *status)
    assert git(sides.place, *status) == git(tree, *status)


def test_a_linked_worktree_arrives_as_a_repository_of_its_own(tmp_path: Path) -> None:
    main = make(tmp_path / "main", a="a\n")
    tree = tmp_path / "tree"
    git(main, "worktree", "add", "--quiet", "-b", "side", str(tree))
    write(tree, "a", "changed\n")
    write(tree, "new", "new\n")
    sides = Sides.beside(tree)
    sides.move()
    assert state(sides.place) == state(tree)
    assert (sides.place / ".git").is_dir()


def test_sparse_trees_and_split_indexes(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n", d__e="e\n", f__g="g\n")
    git(tree, "sparse-checkout", "set", "--cone", "d")
    git(tree, "update-index", "--split-index")
    write(tree, "d/e", "changed\n")
    git(tree, "add", "d/e")
    sides = Sides.beside(tree)
    sides.move()
    assert state(sides.place) == state(tree)
    assert not (sides.place / "f").exists()


def test_a_repository_of_another_object_format(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "--quiet", "--object-format=sha256")
    write(tree, "a", "a\n")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "first")
    write(tree, "b", "b\n")
    sides = Sides.beside(tree)
    sides.move()
    assert state(sides.place) == state(tree)
    assert git_of(str(sides.place)).text("rev-parse", "--show-object-format") == "sha256"


def test_a_clone_from_the_remote_where_there_is_none(tmp_path: Path) -> None:
    origin = make(tmp_path / "origin", a="0123456789" * 50_000)
    git(origin, "branch", "other")
    tree = tmp_path / "tree"
    git(tmp_path, "clone", "--quiet", str(origin), str(tree))
    write(tree, "b", "new\n")
    git(tree, "add", "b")
    git(tree, "commit", "--quiet", "-m", "ahead")
    write(tree, "c", "loose\n")
    sides = Sides.beside(tree)
    snapshot, _ = sides.take()
    assert snapshot.remotes == {"origin": str(origin)}
    make_folder(str(sides.place), snapshot, remote=str(origin))
    haves = reachable(git_of(str(sides.place)), offer(sides.carrier(), snapshot))
    make_bundle(sides.carrier(), str(sides.ours), haves)
    assert (sides.ours / "bundle").stat().st_size < 5000
    sides.arrive(snapshot, haves)
    assert state(sides.place) == state(tree)
    refs = git(sides.place, "for-each-ref", "--format=%(refname)").decode().split()
    assert "refs/remotes/origin/other" in refs
    assert [ref for ref in refs if not ref.startswith("refs/remotes/origin/")] == [
        "refs/heads/main"
    ]
    config = git(sides.place, "config", "remote.origin.url").decode().strip()
    assert config == str(origin)
