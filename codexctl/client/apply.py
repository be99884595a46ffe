"""Apply a thread's patch to a local checkout, with git's own three-way apply, whole or not at all.

`git apply --3way` writes what fits and leaves conflict marks for the rest. So it is tried first in
an index and an object folder of its own, where it can break nothing; only what went in there
without a conflict is done in the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from codexctl.errors import CodexctlError

GIT_LIMIT_S = 600.0


class PatchConflict(CodexctlError):
    """The checkout has changed where the patch changes it."""

    code = "conflict"

    def __init__(self, paths: list[str], checkout: str, reason: str) -> None:
        self.paths = paths
        named = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        super().__init__(
            f"the change conflicts with {checkout} in {named}" if paths else reason,
            hint="nothing was changed; commit or put away what is there, or apply the change to "
            "the commit that the thread started from",
        )


class _Done(NamedTuple):
    status: int
    out: bytes
    err: str


def find_checkout(path: str) -> str:
    """The top folder of the git working tree around `path`; CodexctlError where there is none."""
    if not os.path.isdir(path):
        raise CodexctlError(f"there is no folder {path}", hint="name the checkout with --to DIR")
    done = _git(path, "rev-parse", "--show-toplevel")
    top = os.fsdecode(done.out.removesuffix(b"\n"))
    if done.status or not top:
        raise CodexctlError(
            f"{path} is not in a git working tree", hint="name the checkout with --to DIR"
        )
    return top


def apply_patch(patch: str, checkout: str) -> None:
    """Apply the patch file to the working tree and the index of `checkout`.

    PatchConflict names the paths, and the checkout is as it was. What is uncommitted elsewhere in
    it stays; where the patch touches a file with uncommitted changes, git refuses.
    """
    with tempfile.TemporaryDirectory(prefix="codexctl-apply-") as folder:
        _try(patch, checkout, folder)
    done = _apply(patch, checkout, {})
    if done.status:
        raise PatchConflict(_complained(done.err), checkout, _reason(done.err))


def _try(patch: str, checkout: str, folder: str) -> None:
    """Apply to a copy of the index with objects of its own. PatchConflict where that conflicts."""
    index = os.fsdecode(_need(checkout, "rev-parse", "--git-path", "index")).strip()
    objects = os.fsdecode(_need(checkout, "rev-parse", "--git-path", "objects")).strip()
    index, objects = (os.path.join(checkout, path) for path in (index, objects))
    own_index, own_objects = os.path.join(folder, "index"), os.path.join(folder, "objects")
    os.mkdir(own_objects)
    if os.path.exists(index):
        shutil.copyfile(index, own_index)
    environment = {
        "GIT_INDEX_FILE": own_index,
        "GIT_OBJECT_DIRECTORY": own_objects,
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": _quoted(os.path.realpath(objects)),
    }
    done = _apply(patch, checkout, environment, "--cached")
    listed = _git(checkout, "ls-files", "--unmerged", "-z", environment=environment)
    unmerged = {entry.partition(b"\t")[2] for entry in listed.out.split(b"\0") if entry}
    if done.status or unmerged:
        paths = [os.fsdecode(path) for path in sorted(unmerged)] or _complained(done.err)
        raise PatchConflict(paths, checkout, _reason(done.err))


def _apply(patch: str, checkout: str, environment: Mapping[str, str], *options: str) -> _Done:
    options = ("--3way", "--binary", "--whitespace=nowarn", *options)
    return _git(checkout, "apply", *options, os.path.abspath(patch), environment=environment)


def _git(checkout: str, *arguments: str, environment: Mapping[str, str] | None = None) -> _Done:
    # Messages are read: they have to be git's own words. Hooks of a checkout do not run for apply.
    variables = {**os.environ, "LC_ALL": "C", **(environment or {})}
    try:
        done = subprocess.run(
            ["git", "-C", checkout, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=variables,
            timeout=GIT_LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise CodexctlError("git is not installed here", hint="install git") from None
    except subprocess.TimeoutExpired:
        raise CodexctlError(f"git {arguments[0]} took more than {GIT_LIMIT_S:.0f} s") from None
    return _Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def _need(checkout: str, *arguments: str) -> bytes:
    done = _git(checkout, *arguments)
    if done.status:
        raise CodexctlError(f"git {arguments[0]} failed in {checkout}: {_reason(done.err)}")
    return done.out


def _quoted(path: str) -> str:
    """A path for GIT_ALTERNATE_OBJECT_DIRECTORIES, where `:` separates and `"` quotes."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _complained(err: str) -> list[str]:
    """The paths in git's messages: `error: PATH: does not match index` and the like."""
    found: dict[str, None] = {}
    for line in err.splitlines():
        if line.startswith("error: patch failed: "):
            found[line.removeprefix("error: patch failed: ").rpartition(":")[0]] = None
        elif line.startswith("error: ") and ": " in line[7:]:
            found[line[7:].rpartition(": ")[0]] = None
    return list(found)


def _reason(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith(("error:", "fatal:"))]
    text = (lines or err.splitlines() or ["git gave no reason"])[-1]
    return f"git cannot apply the change: {text.partition(': ')[2] or text}"
