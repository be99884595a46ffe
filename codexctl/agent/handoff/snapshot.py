"""A working tree as git objects in a repository beside it, so that nothing of it is changed.

The carrier is a bare repository of codexctl's own that borrows the objects of the thread's
repository. It gets two commits: `work`, whose tree holds the bytes of every file that differs from
the index or is untracked, with no filter applied; and `meta`, whose tree holds the rest: how the
index differs from HEAD and the objects that only the index has, flags, deletions, unusual modes,
the files of a merge in progress. With HEAD and the stashes that is the state of the tree. The same
state gives the same ids on every machine: that is how a target shows that it restored it exactly.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from codexctl.agent.handoff.git import Git, init_bare
from codexctl.agent.handoff.repository import (
    STATE_COMMITS,
    NotMovable,
    Repository,
    Stash,
    is_oid,
    open_repository,
    read_small,
)
from codexctl.agent.handoff.secrets import why_secret
from codexctl.agent.handoff.view import EMPTY_TREE, Index, make_view, others
from codexctl.errors import ProtocolError

MAX_NAMED = 100  # files that stay behind are named up to this many
REFS = "refs/handoff"
SENT = "refs/sent"
# Whatever .gitattributes say, these paths hold bytes.
RAW_ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding -diff -merge -export-subst\n"


class Left(NamedTuple):
    """Something that the handoff does not carry, and why."""

    path: str
    why: str


class Submodule(NamedTuple):
    """A submodule's state: what the index records, what is checked out (None: nothing)."""

    path: str
    recorded: str
    checked_out: str | None
    changed: bool


class Snapshot(NamedTuple):
    """The state of a working tree; what a target needs besides the carrier's objects."""

    object_format: str
    branch: str | None
    head: str | None
    upstream: tuple[str, str] | None
    stashes: tuple[Stash, ...]
    settings: dict[str, str]
    remotes: dict[str, str]
    work: str
    meta: str

    @property
    def digest(self) -> str:
        """SHA-256 of what has to be the same on both sides."""
        same = [self.object_format, self.branch, self.head, self.stashes, self.work, self.meta]
        return hashlib.sha256(json.dumps(same).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, value: object) -> Snapshot:
        """ProtocolError where something is missing, of another type, or no id or ref name."""
        try:
            made = cls(
                value["object_format"],  # type: ignore[index]  # a wrong type is told below
                *(value[name] for name in cls._fields[1:]),  # type: ignore[index]  # as above
            )
            if made.upstream is not None:
                ref, oid = made.upstream
                made = made._replace(upstream=(ref, oid))
            made = made._replace(stashes=tuple(Stash(*stash) for stash in made.stashes))
            _check(made)
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ProtocolError("a handoff's snapshot is not as it has to be") from None
        return made


def _check(snapshot: Snapshot) -> None:
    ids = [snapshot.work, snapshot.meta, *(stash.oid for stash in snapshot.stashes)]
    ids += [snapshot.head] if snapshot.head is not None else []
    ids += [snapshot.upstream[1]] if snapshot.upstream is not None else []
    refs = [snapshot.branch] if snapshot.branch is not None else []
    refs += [snapshot.upstream[0]] if snapshot.upstream is not None else []
    texts = [text for pair in (snapshot.settings, snapshot.remotes) for text in pair.items()]
    if (
        snapshot.object_format not in EMPTY_TREE
        or not all(map(is_oid, ids))
        or not all(isinstance(ref, str) and ref.startswith("refs/") for ref in refs)
        or not all(isinstance(part, str) for text in texts for part in text)
        or not all(isinstance(stash.message, str) for stash in snapshot.stashes)
        or any("\n" in stash.message for stash in snapshot.stashes)
    ):
        raise ValueError
    if snapshot.branch is not None and not snapshot.branch.startswith("refs/heads/"):
        raise ValueError
    if snapshot.upstream is not None and not snapshot.upstream[0].startswith("refs/remotes/"):
        raise ValueError


class Survey(NamedTuple):
    """What a snapshot found on its way, for the person."""

    changed: int
    untracked: int
    size: int  # bytes of the files that `work` holds
    left: tuple[Left, ...]
    left_more: int
    submodules: tuple[Submodule, ...]
    lfs: int


class Carrier:
    """The folder of one thread's snapshots; `git` writes bytes as they are."""

    def __init__(self, folder: str, repository: Repository) -> None:
        self.folder = folder
        self.top = repository.top
        path = os.path.join(folder, "carrier.git")
        self.git = init_bare(path, repository.object_format, [repository.objects])
        self.git = self.git._replace(
            work_tree=repository.top, index_file=os.path.join(folder, "work.index")
        )
        with open(os.path.join(path, "info-attributes"), "w") as file:
            file.write(RAW_ATTRIBUTES)
        os.makedirs(os.path.join(path, "info"), exist_ok=True)
        os.replace(os.path.join(path, "info-attributes"), os.path.join(path, "info", "attributes"))
        # A killed git leaves these; nothing else of codexctl's works in this folder meanwhile.
        for lock in ("work.index.lock", "view/index.lock"):
            if os.path.lexists(os.path.join(folder, lock)):
                os.unlink(os.path.join(folder, lock))


def take(
    repository: Repository,
    folder: str,
    *,
    include_ignored: tuple[str, ...] = (),
    only: str | None = None,
    label: str = "",
) -> tuple[Snapshot, Survey]:
    """Snapshot the working tree into the carrier in `folder`. Reads the tree, writes only there.

    With `only`, the id of a `work` tree, the untracked files are those of that tree and no others:
    so a target looks at what it restored. NotMovable where a part cannot be carried.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    carrier = Carrier(folder, repository)
    view = make_view(folder, repository)
    view.run("update-index", "-q", "--refresh", ok=(0, 1))
    base = repository.head or EMPTY_TREE[repository.object_format]
    index = Index(view, base)
    files = _Files(repository.top)
    carried = _work_list(carrier, view, index, files, include_ignored, only)
    work = _write_work(carrier, carried)
    if only is None:
        _check_staged(index)
    meta = _write_meta(carrier.git, repository, index, files)
    snapshot = Snapshot(
        repository.object_format,
        repository.branch,
        repository.head,
        repository.upstream,
        repository.stashes,
        repository.settings,
        repository.remotes,
        work,
        meta,
    )
    if only is None:
        keep(carrier.git, repository, snapshot, label)
    submodules = tuple(_submodule(folder, repository.top, *link) for link in index.links)
    survey = Survey(
        len(index.changed), files.untracked, files.size, tuple(files.left[:MAX_NAMED]),
        max(0, len(files.left) - MAX_NAMED), submodules, _count_lfs(view, index),
    )  # fmt: skip
    return snapshot, survey


class _Files:
    """What the files of `work` are like, gathered as they pass."""

    def __init__(self, top: str) -> None:
        self.top = os.fsencode(top)
        self.size = 0
        self.untracked = 0
        self.modes: list[bytes] = []
        self.left: list[Left] = []

    def status(self, path: bytes) -> os.stat_result | None:
        """None for what cannot be carried, or is not there (any more)."""
        try:
            status = os.lstat(os.path.join(self.top, path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        kept = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        return status if kept else None

    def add(self, path: bytes, status: os.stat_result) -> bytes:
        self.size += status.st_size
        mode = status.st_mode & 0o777
        if stat.S_ISREG(status.st_mode) and mode not in (0o644, 0o755):
            self.modes.append(b"%o %s\0" % (mode, path))
        return path


def _work_list(
    carrier: Carrier,
    view: Git,
    index: Index,
    files: _Files,
    globs: tuple[str, ...],
    only: str | None,
) -> Iterator[bytes]:
    """The paths that `work` holds."""
    tracked = dict.fromkeys((*index.changed, *index.unmerged))
    for path in tracked:
        if (status := files.status(path)) is not None:
            yield files.add(path, status)
    if only is not None:
        for path in carrier.git.records("ls-tree", "-r", "-z", "--name-only", "--full-tree", only):
            if path not in tracked and (status := files.status(path)) is not None:
                yield files.add(path, status)
        return
    for path in others(view, globs):
        if path.endswith(b"/"):
            files.left.append(Left(os.fsdecode(path), "it is a repository of its own"))
            continue
        status = files.status(path)
        if status is None:
            continue
        why = None
        if stat.S_ISREG(status.st_mode):
            why = why_secret(carrier.top, path, status.st_size)
        if why is not None:
            files.left.append(Left(os.fsdecode(path), why))
            continue
        files.untracked += 1
        yield files.add(path, status)


def _write_work(carrier: Carrier, paths: Iterator[bytes]) -> str:
    """Hash these files into the carrier; the id of their tree. What did not change is not read."""
    git = carrier.git
    assert git.index_file is not None
    before: set[bytes] = set()
    if os.path.exists(git.index_file):
        before = set(git.records("ls-files", "-z"))

    def told() -> Iterator[bytes]:
        for path in paths:
            before.discard(path)
            yield path + b"\0"

    git.feed(told(), "update-index", "--add", "--remove", "--replace", "-z", "--stdin")
    if before:
        gone = (path + b"\0" for path in before)
        git.feed(gone, "update-index", "--force-remove", "-z", "--stdin")
    return git.text("write-tree")


def _check_staged(index: Index) -> None:
    for path in index.added:
        why = why_secret("/", path, 0)
        if why is not None:
            name = os.fsdecode(path)
            raise NotMovable(
                f"{name} is staged, and is not carried: {why}",
                hint=f"unstage it: git restore --staged -- {name}",
            )


def _write_meta(git: Git, repository: Repository, index: Index, files: _Files) -> str:
    """Everything of the state that is neither a commit nor a file; the id of its tree."""
    parts: dict[str, Iterable[bytes]] = {
        "delta": index.delta,
        "deleted": (path + b"\0" for path in sorted(index.deleted)),
        "intended": (path + b"\0" for path in index.intended),
        "assumed": (path + b"\0" for path in index.assumed),
        "skipped": (path + b"\0" for path in index.skipped),
        "modes": sorted(files.modes),
        **{f"state.{name}": [os.fsencode(text)] for name, text in repository.state.items()},
        **{f"info.{name}": [os.fsencode(text)] for name, text in repository.info.items()},
    }
    lines = [
        b"100644 blob %s\t%s\0"
        % (git.feed(content, "hash-object", "-w", "--stdin").strip(), name.encode())
        for name, content in parts.items()
    ]
    lines += [b"100644 blob %s\tblob.%s\0" % (oid, oid) for oid in sorted(index.new_objects)]
    return git.feed(lines, "mktree", "-z").decode().strip()


def keep(git: Git, repository: Repository, snapshot: Snapshot, label: str) -> None:
    """Name everything of the snapshot by refs of the carrier, and nothing else."""
    refs = {
        "work": git.text("commit-tree", "-m", "work", snapshot.work),
        "meta": git.text("commit-tree", "-m", f"meta {label}", snapshot.meta),
    }
    if snapshot.head is not None:
        refs["head"] = snapshot.head
    if snapshot.upstream is not None:
        refs["upstream"] = snapshot.upstream[1]
    for number, stash in enumerate(snapshot.stashes):
        refs[f"stash/{number}"] = stash.oid
    for name in STATE_COMMITS:
        for number, oid in enumerate(repository.state.get(name, "").split()):
            if is_oid(oid):
                refs[f"state/{name}/{number}"] = oid
    replace_refs(git, REFS, refs)


def replace_refs(git: Git, prefix: str, refs: dict[str, str]) -> None:
    """Make `refs` all there is below `prefix`."""
    old = git.text("for-each-ref", "--format=%(refname)", prefix).split()
    new = {f"{prefix}/{name}": oid for name, oid in refs.items()}
    lines = [f"delete {name}\n" for name in old if name not in new]
    lines += [f"update {name} {oid}\n" for name, oid in new.items()]
    git.feed((line.encode() for line in lines), "update-ref", "--stdin")


def _count_lfs(view: Git, index: Index) -> int:
    """How many files are kept outside of the repository by git-lfs."""
    top = view.work_tree or ""
    texts = (read_small(top, os.fsdecode(path)) or "" for path in index.attributes)
    if not any("filter=lfs" in text for text in texts):
        return 0
    paths = (path + b"\0" for path in view.records("ls-files", "-z"))
    told = view.feed(paths, "check-attr", "-z", "--stdin", "filter")
    return told.count(b"\0filter\0lfs\0")


def _submodule(folder: str, top: str, path: bytes, recorded: str) -> Submodule:
    name = os.fsdecode(path)
    place = os.path.join(top, name)
    if not os.path.lexists(os.path.join(place, ".git")):
        return Submodule(name, recorded, None, False)
    try:
        inner = open_repository(place)
    except NotMovable:
        return Submodule(name, recorded, None, True)
    view = make_view(os.path.join(folder, "submodule"), inner)
    view.run("update-index", "-q", "--refresh", ok=(0, 1))
    base = inner.head or EMPTY_TREE[inner.object_format]
    index = Index(view, base)
    loose = next(others(view, ()), None)
    changed = bool(index.delta or index.changed or index.deleted or loose is not None)
    shutil.rmtree(os.path.join(folder, "submodule"), ignore_errors=True)
    return Submodule(name, recorded, inner.head, changed)
