"""A snapshot back into a folder: the target's half of the git part of a handoff.

`make_folder` makes a folder of its own with the objects that a clone on this machine has (by hard
links) or that a remote gives; `unpack` adds those of the bundle; `apply` makes HEAD, branch, index,
files and stashes what they are at the source; `verify` takes a snapshot of the result and compares.
Paths are written by git alone, which follows no link and leaves no working tree; a bundle is
checked by git's fsck on its way into the repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

from codexctl.agent.handoff.git import Git, GitFailed, init_bare
from codexctl.agent.handoff.repository import (
    CARRIED_INFO,
    CARRIED_SETTINGS,
    CARRIED_STATE,
    Repository,
    open_repository,
)
from codexctl.agent.handoff.snapshot import (
    RAW_ATTRIBUTES,
    REFS,
    Snapshot,
    replace_refs,
    take,
)
from codexctl.agent.handoff.view import EMPTY_TREE
from codexctl.errors import CodexctlError, ProtocolError

CLONE_TIMEOUT_S = 900.0
HAVE = "refs/have"
ARRIVED = "refs/codexctl/handoff"
# Writing files waits for the disk more than for a processor.
_PARALLEL = ("checkout.workers=4", "checkout.thresholdForParallelism=100")
BRANCH_SETTINGS = ("remote", "merge", "rebase")
# What old histories have and harms nobody; all else that git's fsck knows refuses a bundle.
_TOLERATED = (
    "badDateOverflow", "badDate", "badTimezone", "missingEmail", "missingNameBeforeEmail",
    "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "multipleAuthors", "zeroPaddedDate",
    "zeroPaddedFilemode", "gitmodulesParse", "gitmodulesBlob",
    "gitmodulesLarge",
)  # fmt: skip

_CHECKED = ("fetch.fsckObjects=true", *(f"fetch.fsck.{name}=ignore" for name in _TOLERATED))


class Corrupted(CodexctlError):
    """What arrived is not what was sent, or holds what a handoff must not write."""

    code = "corrupted"


def git_of(place: str) -> Git:
    """The repository that a handoff made at `place`."""
    return Git(os.path.join(place, ".git"), work_tree=place)


def make_folder(
    place: str, snapshot: Snapshot, *, seed: str | None = None, remote: str | None = None
) -> None:
    """Make `place`, which is not there yet, with a repository that has no files in it yet.

    `seed` is the git dir of a clone on this machine, `remote` an address to clone from.
    """
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.mkdir(place)
    git_dir = os.path.join(place, ".git")
    source = seed or remote
    if source is not None:
        here = Git(place)
        local = ["--local"] if seed else []
        here.run(
            "clone", "--quiet", "--mirror", "--template=", *local, "--", source, git_dir,
            timeout=None if seed else CLONE_TIMEOUT_S,
            env={"GIT_DIR": git_dir, "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"},
        )  # fmt: skip
        git = Git(git_dir)
        mirrored = git.text("for-each-ref", "--format=%(refname)").splitlines()
        if remote is not None:
            names = {name: name for name in mirrored if name.startswith("refs/heads/")}
            origin = _remote_name(snapshot, remote)
            moved = [
                f"create refs/remotes/{origin}/{name.removeprefix('refs/heads/')} {name}\n"
                for name in names
            ]
            git.feed((line.encode() for line in moved), "update-ref", "--stdin")
    else:
        Git(place).run(
            "init", "--quiet", "--template=", f"--object-format={snapshot.object_format}", place,
            env={"GIT_DIR": git_dir},
        )  # fmt: skip


def _remote_name(snapshot: Snapshot, url: str) -> str:
    return next((name for name, value in snapshot.remotes.items() if value == url), "origin")


def reachable(git: Git, offered: list[str]) -> list[str]:
    """Those of the offered commits that this repository has with all their history."""
    if not offered:
        return []
    lines = [f"{oid}\n".encode() for oid in offered]
    told = git.feed(lines, "cat-file", "--batch-check=%(objectname) %(objecttype)")
    there = [line.split()[0].decode() for line in told.splitlines() if line.endswith(b" commit")]
    if not there:
        return []
    asked = (f"{oid}\n".encode() for oid in there)
    # What no ref reaches may lack its parents: git would refuse a bundle that builds on it.
    alone = set(git.feed(asked, "rev-list", "--stdin", "--not", "--all").decode().split())
    return [oid for oid in there if oid not in alone]


def unpack(folder: str, place: str, snapshot: Snapshot, bundle: str, haves: list[str]) -> Git:
    """Add the bundle's objects to the carrier in `folder`; it is checked whole. Corrupted."""
    carrier = init_bare(
        os.path.join(folder, "carrier.git"),
        snapshot.object_format,
        [os.path.join(place, ".git", "objects")],
    )
    lines = {str(number): oid for number, oid in enumerate(haves)}
    replace_refs(carrier, HAVE, lines)
    _believe(
        carrier.run, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", bundle,
        f"+{REFS}/*:{REFS}/*",
    )  # fmt: skip
    wanted = [snapshot.head, *(stash.oid for stash in snapshot.stashes)]
    for oid in (*wanted, *([snapshot.upstream[1]] if snapshot.upstream else [])):
        if oid is not None and carrier.ask("cat-file", "-e", f"{oid}^{{commit}}") is None:
            raise Corrupted(f"the commit {oid[:12]} did not arrive")
    for oid in (snapshot.work, snapshot.meta):
        if carrier.ask("cat-file", "-e", f"{oid}^{{tree}}") is None:
            raise Corrupted("the working tree's content did not arrive")
    return carrier


def _believe(run: Callable[..., bytes], *arguments: str) -> None:
    """Have git take in what arrived. Corrupted where it refuses that."""
    try:
        run(*arguments)
    except GitFailed as error:
        if error.hint:
            raise  # the disk, not what arrived
        raise Corrupted(
            f"what arrived is refused: {error}",
            hint="undo and begin again: codexctl thread handoff THREAD --undo",
        ) from error


def apply(folder: str, place: str, snapshot: Snapshot) -> None:
    """Make the tree at `place` what the snapshot says. It may be called again after a crash."""
    carrier = Git(os.path.join(folder, "carrier.git"))
    git = git_of(place)
    for name in ("index.lock", "HEAD.lock", "config.lock"):
        if os.path.lexists(os.path.join(place, ".git", name)):
            os.unlink(os.path.join(place, ".git", name))
    meta = _Meta(carrier, snapshot.meta)
    _configure(git, snapshot, meta)
    _believe(git._replace(config=_CHECKED).run,
        "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", carrier.git_dir,
        f"+{REFS}/*:{ARRIVED}/*", f"^{REFS}/work",
    )  # fmt: skip
    _point(git, snapshot)
    _fill_index(git, snapshot, meta)
    writing = git._replace(config=_PARALLEL)
    writing.run("checkout-index", "--quiet", "--all", "--force", "--index", ok=(0, 1, 128))
    _write_files(folder, place, snapshot, meta)
    _flag(git, meta)
    git.run("update-index", "-q", "--refresh", ok=(0, 1))
    _store_stashes(git, snapshot)
    for name in CARRIED_STATE:
        _write(os.path.join(place, ".git", name), meta.get(f"state.{name}"))
    replace_refs(git, ARRIVED, {})


class _Meta:
    """The parts of a `meta` tree."""

    def __init__(self, git: Git, tree: str) -> None:
        self.git = git
        self.oids: dict[str, str] = {}
        for record in git.records("ls-tree", "-z", tree):
            facts, _, name = record.partition(b"\t")
            mode, kind, oid = facts.decode().split(" ")
            if kind != "blob" or mode != "100644":
                raise Corrupted("a handoff's meta data is not as it has to be")
            self.oids[os.fsdecode(name)] = oid

    def get(self, name: str) -> bytes | None:
        """A small part, whole; None where it is not there."""
        oid = self.oids.get(name)
        return None if oid is None else self.git.run("cat-file", "blob", oid)

    def records(self, name: str) -> Iterator[bytes]:
        oid = self.oids.get(name)
        if oid is None:
            raise Corrupted(f"a handoff's meta data has no {name}")
        return self.git.records("cat-file", "blob", oid)

    def paths(self, name: str) -> Iterator[bytes]:
        """As `records`, where each is a path that stays in the working tree."""
        for path in self.records(name):
            yield safe_path(path)


def safe_path(path: bytes) -> bytes:
    """A path below the working tree and outside .git. Corrupted for any other."""
    parts = path.split(b"/")
    if not path or any(part in (b"", b".", b"..") or part.lower() == b".git" for part in parts):
        raise Corrupted(f"a handoff brought the path {os.fsdecode(path)[:200]!r}")
    return path


def _configure(git: Git, snapshot: Snapshot, meta: _Meta) -> None:
    """The repository's config from what may be carried; whatever a clone left there goes."""
    version = "1" if snapshot.object_format == "sha256" else "0"
    settings = {"core.repositoryformatversion": version, "core.bare": "false"}
    settings["core.logallrefupdates"] = "true"
    if version == "1":
        settings["extensions.objectformat"] = snapshot.object_format
    branch = (snapshot.branch or "").removeprefix("refs/heads/")
    allowed = {*CARRIED_SETTINGS, *(f"branch.{branch}.{key}" for key in BRANCH_SETTINGS)}
    settings |= {key: value for key, value in snapshot.settings.items() if key in allowed}
    for name, url in snapshot.remotes.items():
        settings[f"remote.{name}.url"] = url
        settings[f"remote.{name}.fetch"] = f"+refs/heads/*:refs/remotes/{name}/*"
    path = os.path.join(git.git_dir, "config")
    fresh = f"{path}.handoff"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    with open(fresh, "w"):
        pass
    for key, value in settings.items():
        git.run("config", "--file", fresh, key, value)
    os.replace(fresh, path)
    for name in CARRIED_INFO:
        _write(os.path.join(git.git_dir, "info", name), meta.get(f"info.{name}"))


def _write(path: str, content: bytes | None) -> None:
    """A file of git's own, or none."""
    if os.path.lexists(path):
        os.unlink(path)
    if content is not None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)


def _point(git: Git, snapshot: Snapshot) -> None:
    """HEAD, the branch and what it follows; of a clone's refs remotes and tags stay."""
    names = git.text("for-each-ref", "--format=%(refname)").splitlines()
    kept = ("refs/remotes/", "refs/tags/", f"{ARRIVED}/")
    lines = [
        f"delete {name}\n"
        for name in names
        if not name.startswith(kept) and name not in (snapshot.branch, "refs/stash")
    ]
    if snapshot.branch is not None and snapshot.head is not None:
        lines.append(f"update {snapshot.branch} {snapshot.head}\n")
    if snapshot.upstream is not None:
        lines.append(f"update {snapshot.upstream[0]} {snapshot.upstream[1]}\n")
    # HEAD may name a branch that goes: the new one first.
    if snapshot.branch is not None:
        if git.ask("check-ref-format", snapshot.branch) is None:
            raise Corrupted(f"{snapshot.branch!r} is not the name of a branch")
        git.run("symbolic-ref", "HEAD", snapshot.branch)
    elif snapshot.head is not None:
        git.run("update-ref", "--no-deref", "HEAD", snapshot.head)
    else:
        raise ProtocolError("a handoff's snapshot has neither a branch nor a commit")
    git.feed((line.encode() for line in lines), "update-ref", "--stdin")


def _fill_index(git: Git, snapshot: Snapshot, meta: _Meta) -> None:
    base = snapshot.head or EMPTY_TREE[snapshot.object_format]
    # --reset keeps what is known of files that stay as they are, so that they are not rewritten.
    git.run("read-tree", "--reset", base)
    delta = (record + b"\0" for record in meta.records("delta"))
    git.feed(delta, "update-index", "-z", "--index-info")
    skipped = [path + b"\0" for path in meta.paths("skipped")]
    git.feed(skipped, "update-index", "--skip-worktree", "-z", "--stdin")


def _write_files(folder: str, place: str, snapshot: Snapshot, meta: _Meta) -> None:
    """Delete what is deleted there, then write the bytes of all that differs from the index."""
    top = os.fsencode(place)
    for path in meta.paths("deleted"):
        _remove(top, path)
    raw = Git(
        os.path.join(folder, "carrier.git"), work_tree=place,
        index_file=os.path.join(folder, "work.index"),
        config=("core.bare=false", *_PARALLEL),
    )  # fmt: skip
    info = os.path.join(raw.git_dir, "info")
    os.makedirs(info, exist_ok=True)
    with open(os.path.join(info, "attributes"), "w") as file:
        file.write(RAW_ATTRIBUTES)
    # Git takes no path into an index that leaves the tree or means its own folder.
    _believe(raw.run, "read-tree", "--reset", snapshot.work)
    _believe(raw.run, "checkout-index", "--quiet", "--all", "--force", "--index")
    raw.run("update-index", "-q", "--refresh", ok=(0, 1))
    for record in meta.records("modes"):
        mode, _, path = record.partition(b" ")
        _set_mode(top, safe_path(path), int(mode, 8) & 0o777)


def _open_parent(top: bytes, path: bytes) -> int:
    """The folder that `path` is in, reached through no symbolic link. OSError."""
    *folders, _ = path.split(b"/")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for name in folders:
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _remove(top: bytes, path: bytes) -> None:
    """Remove a file and the folders that it leaves empty, as git does."""
    try:
        fd = _open_parent(top, path)
    except OSError:
        return  # its folder is not there: nor is it
    try:
        os.unlink(os.path.basename(path), dir_fd=fd)
    except (FileNotFoundError, IsADirectoryError):
        return
    finally:
        os.close(fd)
    parts = path.split(b"/")[:-1]
    while parts:
        try:
            fd = _open_parent(top, b"/".join(parts))
            try:
                os.rmdir(parts[-1], dir_fd=fd)
            finally:
                os.close(fd)
        except OSError:
            return  # not empty
        parts.pop()


def _set_mode(top: bytes, path: bytes, mode: int) -> None:
    try:
        parent = _open_parent(top, path)
    except OSError as error:
        raise Corrupted(f"a mode came for {os.fsdecode(path)!r}, which is not there") from error
    try:
        fd = os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def _flag(git: Git, meta: _Meta) -> None:
    intended = [path + b"\0" for path in meta.paths("intended")]
    if intended:
        top = os.fsencode(git.work_tree or "")
        # `git add -N` wants a file: one that is deleted is lent for the moment.
        missing = [p[:-1] for p in intended if not os.path.lexists(os.path.join(top, p[:-1]))]
        for path in missing:
            os.makedirs(os.path.dirname(os.path.join(top, path)), exist_ok=True)
            with open(os.path.join(top, path), "xb"):
                pass
        options = ("--intent-to-add", "--force", "--pathspec-from-file=-", "--pathspec-file-nul")
        git.feed(intended, "add", *options)
        for path in missing:
            _remove(top, path)
    assumed = [path + b"\0" for path in meta.paths("assumed")]
    git.feed(assumed, "update-index", "--assume-unchanged", "-z", "--stdin")


def _store_stashes(git: Git, snapshot: Snapshot) -> None:
    there = tuple(
        (oid, message)
        for record in _stash_records(git)
        for oid, _, message in (os.fsdecode(record).partition("\n"),)
    )
    if there == tuple(snapshot.stashes):
        return
    if git.ask("rev-parse", "--verify", "--quiet", "refs/stash") is not None:
        git.run("update-ref", "-d", "refs/stash")
    log = os.path.join(git.git_dir, "logs", "refs", "stash")
    if os.path.lexists(log):
        os.unlink(log)
    for stash in reversed(snapshot.stashes):
        git.run("stash", "store", "--quiet", "-m", stash.message, stash.oid)


def _stash_records(git: Git) -> Iterator[bytes]:
    if git.ask("rev-parse", "--verify", "--quiet", "refs/stash") is None:
        return iter(())
    return git.records("log", "-g", "-z", "--format=%H%n%gs", "refs/stash", "--")


def verify(folder: str, place: str, snapshot: Snapshot) -> Repository:
    """Snapshot what stands at `place` now and compare. Corrupted names what differs."""
    repository = open_repository(place)
    found, _ = take(repository, folder, only=snapshot.work)
    if found.digest != snapshot.digest:
        names = ("branch", "head", "stashes", "work", "meta")
        differs = [name for name in names if getattr(found, name) != getattr(snapshot, name)]
        raise Corrupted(
            f"the tree restored in {place} is not that of the source ({', '.join(differs)})",
            hint="undo and begin again: codexctl thread handoff THREAD --undo",
        )
    return repository


def empty_tree(place: str) -> None:
    """Remove everything but the repository."""
    for name in os.listdir(place):
        if name != ".git":
            remove(os.path.join(place, name))


def remove(path: str) -> None:
    """Remove a folder or file that a handoff made. Harmless when repeated."""
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
        return
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        # Folders without write permission for their owner.
        subprocess.run(["chmod", "-R", "u+rwX", "--", path], check=False)
        shutil.rmtree(path)
