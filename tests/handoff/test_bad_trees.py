"""Trees that a handoff carries only in part or not at all, and bundles that it must not believe."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from codexctl.agent.handoff.bundle import BUNDLE, make_bundle
from codexctl.agent.handoff.git import Git
from codexctl.agent.handoff.repository import NotMovable, open_repository
from codexctl.agent.handoff.restore import Corrupted, make_folder, safe_path, unpack
from codexctl.agent.handoff.snapshot import REFS, Snapshot
from codexctl.errors import ProtocolError
from tests.handoff.trees import Sides, git, make, state, write

# --- what is refused, with the way out ---


def bare(folder: Path) -> Path:
    git(folder, "init", "--quiet", "--bare", "bare")
    return folder / "bare"


def rebasing(folder: Path) -> Path:
    tree = conflicted(folder, "rebase")
    assert (tree / ".git" / "rebase-merge").is_dir()
    return tree


def shallow(folder: Path) -> Path:
    origin = make(folder / "origin", a="a\n")
    git(origin, "commit", "--quiet", "--allow-empty", "-m", "second")
    git(folder, "clone", "--quiet", "--depth=1", origin.as_uri(), "clone")
    return folder / "clone"


def bisecting(folder: Path) -> Path:
    tree = make(folder / "tree", a="a\n")
    git(tree, "bisect", "start")
    return tree


def conflicted(folder: Path, how: str = "merge") -> Path:
    """A tree in the middle of a merge, pick or rebase with a conflict."""
    tree = make(folder / "tree", a="one\n", b="b\n")
    git(tree, "checkout", "--quiet", "-b", "other")
    write(tree, "a", "other\n")
    git(tree, "commit", "--quiet", "-am", "other")
    git(tree, "checkout", "--quiet", "main")
    write(tree, "a", "mine\n")
    git(tree, "commit", "--quiet", "-am", "mine")
    git(tree, how, "other", ok=False)
    return tree


@pytest.mark.parametrize(
    ("made", "words", "remedy"),
    [
        (lambda folder: folder / "missing", "is not there", "fork"),
        (lambda folder: folder, "is not in a git repository", "init"),
        (bare, "is a bare repository", "clone"),
        (rebasing, "in the middle of a rebase", "git rebase --abort"),
        (bisecting, "in the middle of a bisect", "git bisect reset"),
        (shallow, "is a shallow clone", "--unshallow"),
    ],
)
def test_what_cannot_move_says_how_it_could(
    tmp_path: Path, made: Callable[[Path], Path], words: str, remedy: str
) -> None:
    with pytest.raises(NotMovable, match=words) as caught:
        open_repository(str(made(tmp_path)))
    assert remedy in caught.value.hint


# --- what is carried all the same ---


@pytest.mark.parametrize("how", ["merge", "cherry-pick"])
def test_conflicts_arrive_as_they_are_and_can_be_ended_there(tmp_path: Path, how: str) -> None:
    tree = conflicted(tmp_path, how)
    sides = Sides.beside(tree)
    sides.move()
    assert state(sides.place) == state(tree)
    assert b"u UU" in git(sides.place, "status", "--porcelain=v2")
    write(sides.place, "a", "both\n")
    git(sides.place, "add", "a")
    git(sides.place, "commit", "--quiet", "--no-edit")
    parents = git(sides.place, "log", "-1", "--format=%P").split()
    assert len(parents) == (2 if how == "merge" else 1)


def test_submodules_are_named_with_what_they_are(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner", x="x\n")
    tree = make(tmp_path / "tree", a="a\n")
    git(tree, "submodule", "add", "--quiet", str(inner), "lib")
    git(tree, "commit", "--quiet", "-m", "lib")
    write(tree, "lib/x", "changed\n")
    sides = Sides.beside(tree)
    survey = sides.move()
    (module,) = survey.submodules
    head = git(inner, "rev-parse", "HEAD").decode().strip()
    assert (module.path, module.recorded, module.checked_out) == ("lib", head, head)
    assert module.changed
    assert git(sides.place, "ls-files", "--stage") == git(tree, "ls-files", "--stage")


def test_pointers_of_large_files_stay_pointers(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    write(tree, ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
    write(tree, "large.bin", pointer)
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "-m", "large")
    sides = Sides.beside(tree)
    survey = sides.move()
    assert survey.lfs == 1
    assert (sides.place / "large.bin").read_text() == pointer
    assert state(sides.place) == state(tree)


@pytest.mark.parametrize("begun", [True, False])
def test_a_detached_head_and_a_branch_without_a_commit(tmp_path: Path, begun: bool) -> None:
    tree = make(tmp_path / "tree", **({"a": "a\n"} if begun else {}))
    if begun:
        git(tree, "checkout", "--quiet", "--detach")
    else:
        git(tree, "checkout", "--quiet", "-b", "fresh")
    write(tree, "staged", "s\n")
    git(tree, "add", "staged")
    write(tree, "loose", "l\n")
    sides = Sides.beside(tree)
    sides.move()
    assert state(sides.place) == state(tree)


def test_repositories_inside_are_named_and_stay(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", a="a\n")
    make(tree / "inside", b="b\n")
    survey = Sides.beside(tree).move()
    assert [(left.path, left.why) for left in survey.left] == [
        ("inside/", "it is a repository of its own")
    ]


# --- what must not be believed ---


def prepared(tmp_path: Path) -> tuple[Sides, Snapshot]:
    sides = Sides.beside(make(tmp_path / "tree", a="a\n"))
    write(sides.tree, "new", "new\n")
    snapshot, _ = sides.take()
    make_bundle(sides.carrier(), str(sides.ours), [])
    make_folder(str(sides.place), snapshot)
    return sides, snapshot


@pytest.mark.parametrize("at", [0.02, 0.5, 0.97])
def test_a_damaged_bundle_is_refused(tmp_path: Path, at: float) -> None:
    sides, snapshot = prepared(tmp_path)
    bundle = sides.ours / BUNDLE
    data = bytearray(bundle.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    bundle.write_bytes(data)
    with pytest.raises(Corrupted):
        sides.arrive(snapshot, [])
    assert sorted(path.name for path in sides.place.iterdir()) == [".git"]


def test_a_bundle_that_lacks_what_was_announced_is_refused(tmp_path: Path) -> None:
    sides, snapshot = prepared(tmp_path)
    for false in (
        snapshot._replace(head="1" * 40),
        snapshot._replace(work="2" * 40),
    ):
        with pytest.raises(Corrupted):
            sides.arrive(false, [])


def mktree(carrier: Git, entries: list[tuple[str, str, bytes]]) -> str:
    """A tree with any names, as no honest git would make it."""
    lines = []
    for mode, name, content in entries:
        oid = carrier.feed([content], "hash-object", "-w", "--stdin").decode().strip()
        lines.append((mode, name, oid))
    raw = b"".join(
        f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in sorted(lines)
    )
    done = subprocess.run(
        ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        input=raw, capture_output=True, check=True,
        env={**os.environ, "GIT_DIR": carrier.git_dir},
    )  # fmt: skip
    return done.stdout.decode().strip()


@pytest.mark.parametrize(
    "entries",
    [
        [("100644", "../escaped", b"x")],
        [("100644", "..", b"x")],
        [("100644", ".git", b"x")],
        [("100644", ".GIT", b"x")],
        [("100644", "a/../../escaped", b"x")],
        [("100644", "/tmp/escaped", b"x")],
    ],
)
def test_a_tree_that_leaves_its_folder_is_refused(
    tmp_path: Path, entries: list[tuple[str, str, bytes]]
) -> None:
    sides, snapshot = prepared(tmp_path)
    carrier = sides.carrier()
    tree = mktree(carrier, entries)
    commit = carrier.text("commit-tree", "-m", "evil", tree)
    carrier.run("update-ref", f"{REFS}/work", commit)
    carrier.run("bundle", "create", "--quiet", str(sides.ours / BUNDLE), f"--glob={REFS}/*")
    with pytest.raises(Corrupted):
        sides.arrive(snapshot._replace(work=tree), [])
    assert not (tmp_path / "escaped").exists()
    assert not (sides.place.parent / "escaped").exists()
    assert not (sides.place / ".git" / "HEAD").read_text().startswith("x")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    sides, snapshot = prepared(tmp_path)
    carrier = sides.carrier()
    # The index of HEAD says `d` is a link to elsewhere; the files say that there is one below it.
    write(sides.tree, "d/x", "evil\n")
    taken, _ = sides.take()
    link = mktree(carrier, [("120000", "d", str(outside).encode())])
    evil = carrier.text("commit-tree", "-m", "evil", link)
    carrier.run("update-ref", f"{REFS}/head", evil)
    carrier.run("bundle", "create", "--quiet", str(sides.ours / BUNDLE), f"--glob={REFS}/*")
    try:
        sides.arrive(taken._replace(head=evil), [])
    except Corrupted:
        pass  # that it is not the source's tree, or that it cannot be written
    assert list(outside.iterdir()) == []
    del snapshot


@pytest.mark.parametrize(
    "path", [b"", b"/etc/passwd", b"../x", b"a/../../x", b".git/config", b"a/.GIT/x", b"a//b"]
)
def test_paths_that_leave_are_refused(path: bytes) -> None:
    with pytest.raises(Corrupted):
        safe_path(path)


@pytest.mark.parametrize(
    "change",
    [
        {"branch": "refs/remotes/x/y"},
        {"branch": "--upload-pack=evil"},
        {"head": "HEAD"},
        {"work": "refs/heads/main"},
        {"stashes": [["1" * 40, "a\nb"]]},
        {"stashes": [["--all", "m"]]},
        {"upstream": ["refs/heads/main", "1" * 40]},
        {"object_format": "md5"},
        {"settings": {"a": 1}},
        {"meta": None},
    ],
)
def test_a_snapshot_from_elsewhere_is_checked(change: dict[str, object]) -> None:
    good = Snapshot(
        "sha1", "refs/heads/main", "1" * 40, None, (), {}, {}, "2" * 40, "3" * 40
    ).as_json()
    assert Snapshot.from_json(good)
    with pytest.raises(ProtocolError):
        Snapshot.from_json({**good, **change})
    for name in good:
        with pytest.raises(ProtocolError):
            Snapshot.from_json({key: value for key, value in good.items() if key != name})


def test_settings_that_would_run_something_are_not_taken_over(tmp_path: Path) -> None:
    sides, snapshot = prepared(tmp_path)
    evil = {"core.fsmonitor": "/evil", "core.hookspath": "/evil", "filter.x.clean": "/evil"}
    unpack(str(sides.theirs), str(sides.place), snapshot, str(sides.ours / BUNDLE), [])
    sides.arrive(snapshot._replace(settings=evil), [])
    assert "evil" not in (sides.place / ".git" / "config").read_text()
