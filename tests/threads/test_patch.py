"""Patches as git writes them, and applying them with real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.client.apply import PatchConflict, apply_patch, find_checkout
from codexctl.client.patch import changes, stat_lines
from codexctl.errors import CodexctlError

ODD_NAMES = ("plain.txt", "with space b/x.txt", 'quote"d\tname.txt', "naïve-ü.txt", "new\nline")


def git(folder: Path, *arguments: str) -> bytes:
    config = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *config, *arguments], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    for name in ODD_NAMES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"line {n}\n" for n in range(20)))
    (folder / "blob").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "start")
    return folder


def change_much(repo: Path) -> bytes:
    """Changes of all kinds, as a patch; the tree is as it was afterwards."""
    (repo / "plain.txt").write_text(
        "-- looks like a header\n" + "".join(f"line {n}\n" for n in range(19))
    )
    (repo / "with space b" / "x.txt").unlink()
    (repo / 'quote"d\tname.txt').rename(repo / "moved.txt")
    (repo / "naïve-ü.txt").chmod(0o755)
    (repo / "new\nline").write_text("other\n")
    (repo / "blob").write_bytes(bytes(reversed(range(256))))
    (repo / "link").symlink_to("plain.txt")
    (repo / "added é.txt").write_text("one\ntwo")
    git(repo, "add", "-A")
    patch = git(repo, "diff", "--cached", "--binary", "--full-index", "-M", "HEAD")
    git(repo, "reset", "-q", "--hard")
    return patch


def test_what_a_patch_changes_is_what_git_says(repo: Path) -> None:
    patch = change_much(repo)
    found = {change.path: change for change in changes(patch.split(b"\n"))}
    assert {path: c.kind for path, c in found.items()} == {
        "plain.txt": "modified",
        "with space b/x.txt": "deleted",
        "moved.txt": "renamed",
        "naïve-ü.txt": "modified",
        "new\nline": "modified",
        "blob": "modified",
        "link": "added",
        "added é.txt": "added",
    }
    assert found["moved.txt"].old_path == 'quote"d\tname.txt'
    assert found["blob"].binary
    (repo / "p").write_bytes(patch)
    numbers = git(repo, "apply", "--numstat", "-z", "p")
    for entry in numbers.split(b"\0")[:-1]:
        added, removed, path = entry.decode().split("\t", 2)
        change = found[path]
        if not change.binary:
            assert (change.added, change.removed) == (int(added), int(removed))


def test_the_stat_fits_its_width(repo: Path) -> None:
    found = list(changes(change_much(repo).split(b"\n")))
    for width in (30, 80):
        lines = stat_lines(found, width)
        assert max(map(len, lines[:-1])) <= width
    assert lines[-1] == " 8 files changed, 5 insertions(+), 41 deletions(-)"
    assert stat_lines([], 80) == []


def test_a_patch_goes_into_another_checkout(repo: Path, tmp_path: Path) -> None:
    patch = change_much(repo)
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", "repo", "other")
    (other / "mine").write_text("untracked, stays")
    (tmp_path / "p").write_bytes(patch)
    apply_patch(str(tmp_path / "p"), find_checkout(str(other / "with space b")))
    assert git(other, "diff", "--cached", "--binary", "--full-index", "-M", "HEAD") == patch
    assert git(other, "status", "--porcelain", "-uall").endswith(b"?? mine\n")
    assert os.readlink(other / "link") == "plain.txt"


def test_what_moved_on_is_merged_three_ways(repo: Path, tmp_path: Path) -> None:
    patch = change_much(repo)
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", "repo", "other")
    lines = (other / "plain.txt").read_text().replace("line 10\n", "mine 10\n")
    (other / "plain.txt").write_text(lines)
    git(other, "commit", "-qam", "on")
    (tmp_path / "p").write_bytes(patch)
    apply_patch(str(tmp_path / "p"), str(other))
    text = (other / "plain.txt").read_text()
    assert text.startswith("-- looks like a header\n")
    assert "mine 10\n" in text


@pytest.mark.parametrize("committed", [True, False])
def test_a_conflict_is_named_and_changes_nothing(
    repo: Path, tmp_path: Path, committed: bool
) -> None:
    patch = change_much(repo)
    (tmp_path / "p").write_bytes(patch)
    (repo / "new\nline").write_text("mine\n")
    (repo / "plain.txt").write_text("mine too\n")
    if committed:
        git(repo, "commit", "-qam", "mine")
    before = git(repo, "status", "--porcelain=v2", "-uall")
    objects = git(repo, "count-objects")
    with pytest.raises(PatchConflict) as caught:
        apply_patch(str(tmp_path / "p"), str(repo))
    assert "plain.txt" in caught.value.message
    assert git(repo, "status", "--porcelain=v2", "-uall") == before
    assert git(repo, "count-objects") == objects
    assert (repo / "plain.txt").read_text() == "mine too\n"


def test_a_patch_of_another_repository_is_refused(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(change_much(repo))
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    with pytest.raises(PatchConflict, match=r"plain\.txt"):
        apply_patch(str(tmp_path / "p"), str(other))
    assert [path.name for path in other.iterdir()] == [".git"]


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(CodexctlError, match="not in a git working tree"):
        find_checkout(str(tmp_path))
    with pytest.raises(CodexctlError, match="no folder"):
        find_checkout(str(tmp_path / "missing"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12))
def test_any_bytes_are_read_to_their_end(lines: list[bytes]) -> None:
    list(changes([b"diff --git a/x b/x", *lines]))
    list(changes(b"diff --git " + line for line in lines))
