"""What a folder's repository is like, read without running anything that it could name.

`open_repository` says of every state that a handoff cannot carry what it is and how to leave it.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from codexctl.agent.handoff.git import Git, GitFailed
from codexctl.errors import CodexctlError

MAX_FILE_BYTES = 1 << 20  # of a state file or an exclude file
MAX_STASHES = 1000
MAX_CONFIG_VALUE = 4096

# Settings that change how a tree reads; nothing that starts a program.
CARRIED_SETTINGS = (
    "core.autocrlf", "core.eol", "core.filemode", "core.ignorecase", "core.symlinks",
    "core.precomposeunicode", "core.sparsecheckout", "core.sparsecheckoutcone", "core.quotepath",
    "core.abbrev", "user.name", "user.email",
)  # fmt: skip
# A merge, cherry-pick or revert of one commit is these files; they are carried as they are.
CARRIED_STATE = (
    "MERGE_HEAD", "MERGE_MODE", "MERGE_MSG", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD",
)  # fmt: skip
STATE_COMMITS = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")
# What holds a plan of further commands, which another machine must not take over unseen.
REFUSED_STATE = {
    "rebase-merge": ("a rebase", "git rebase --continue, or git rebase --abort"),
    "rebase-apply": ("a rebase or git am", "git rebase --abort, or git am --abort"),
    "sequencer": ("a series of picks", "git cherry-pick --continue, or git cherry-pick --abort"),
    "BISECT_LOG": ("a bisect", "git bisect reset"),
}
CARRIED_INFO = ("exclude", "attributes", "sparse-checkout")
_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REMOTE_KEY = re.compile(r"remote\.([A-Za-z0-9][A-Za-z0-9._/-]*)\.url")


class NotMovable(CodexctlError):
    """A working tree that a handoff cannot carry as it is."""

    code = "not-movable"


class Stash(NamedTuple):
    """One entry of `git stash list`."""

    oid: str
    message: str


class Repository(NamedTuple):
    """A working tree and what git's own files say about it."""

    top: str
    git_dir: str
    common_dir: str
    object_format: str
    branch: str | None  # a full ref name; None where HEAD is detached
    head: str | None  # None where there is no commit yet
    upstream: tuple[str, str] | None  # a remote-tracking ref and its commit
    stashes: tuple[Stash, ...]
    settings: dict[str, str]
    remotes: dict[str, str]
    state: dict[str, str]
    info: dict[str, str]

    @property
    def objects(self) -> str:
        return os.path.join(self.common_dir, "objects")

    def git(self) -> Git:
        return Git(self.git_dir)


def is_oid(text: object) -> bool:
    return isinstance(text, str) and _OID.fullmatch(text) is not None


def open_repository(cwd: str) -> Repository:
    """The repository whose working tree holds `cwd`. NotMovable says why it cannot move."""
    if not os.path.isdir(cwd):
        raise NotMovable(
            f"the thread's folder {cwd} is not there", hint="bring it back, or fork the thread"
        )
    top, git_dir = _find(cwd)
    git = Git(git_dir)
    common = os.path.normpath(os.path.join(git_dir, _commondir(git_dir)))
    _check_kind(git, common, top)
    for name, (what, remedy) in REFUSED_STATE.items():
        if os.path.lexists(os.path.join(git_dir, name)):
            raise NotMovable(f"{top} is in the middle of {what}", hint=f"first: {remedy}")
    branch = git.ask("symbolic-ref", "--quiet", "HEAD")
    head = git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if branch is None and head is None:
        raise NotMovable(f"{top} has a damaged HEAD", hint="see: git status")
    settings = _settings(git)
    found = ((name, read_small(git_dir, name)) for name in CARRIED_STATE)
    state = {name: text for name, text in found if text is not None}
    info = {}
    for name in CARRIED_INFO:
        folder = git_dir if name == "sparse-checkout" else common
        if (text := read_small(os.path.join(folder, "info"), name)) is not None:
            info[name] = text
    remotes = {
        match[1]: public_url(value)
        for key, value in settings.items()
        if (match := _REMOTE_KEY.fullmatch(key))
    }
    return Repository(
        top=top,
        git_dir=git_dir,
        common_dir=common,
        object_format=git.text("rev-parse", "--show-object-format"),
        branch=branch,
        head=head,
        upstream=_upstream(git, branch),
        stashes=_stashes(git),
        settings=_carried(settings, branch),
        remotes={name: url for name, url in remotes.items() if url},
        state=state,
        info=info,
    )


def _find(cwd: str) -> tuple[str, str]:
    """The top folder and the git dir for `cwd`, by the rules of git's own search."""
    at = os.path.realpath(cwd)
    while True:
        place = os.path.join(at, ".git")
        if _is_git_dir(place):
            return at, place
        if os.path.isfile(place):
            break
        if _is_git_dir(at):
            raise NotMovable(
                f"{at} is a bare repository, which has no working tree",
                hint="start the thread in a clone or a worktree of it",
            )
        if at == "/":
            raise NotMovable(
                f"{cwd} is not in a git repository", hint=f"make it one: git -C {cwd} init"
            )
        at = os.path.dirname(at)
    text = read_small(at, ".git") or ""
    if not text.startswith("gitdir: "):
        raise NotMovable(f"{place} is not a repository of git", hint=f"see: git -C {at} status")
    return at, os.path.normpath(os.path.join(at, text.removeprefix("gitdir: ").rstrip("\n")))


def _is_git_dir(path: str) -> bool:
    head = os.path.join(path, "HEAD")
    return os.path.lexists(head) and os.path.isdir(os.path.join(path, "objects"))


def _commondir(git_dir: str) -> str:
    return (read_small(git_dir, "commondir") or ".").strip()


def _check_kind(git: Git, common: str, top: str) -> None:
    try:
        bare = git.ask("config", "--file", os.path.join(common, "config"), "--bool", "core.bare")
        git.run("rev-parse", "--git-dir")
    except GitFailed as error:
        raise NotMovable(
            f"{top} is not a working repository: {error}", hint="see: git status"
        ) from error
    if bare == "true" and git.git_dir == common:
        raise NotMovable(
            f"{top} is set to be bare (core.bare)", hint="git config --unset core.bare"
        )
    if os.path.lexists(os.path.join(common, "shallow")):
        raise NotMovable(
            f"{top} is a shallow clone, whose history is not there to be carried",
            hint=f"fetch the rest first: git -C {top} fetch --unshallow",
        )
    config = os.path.join(common, "config")
    if git.ask("config", "--file", config, "extensions.partialClone") is not None:
        raise NotMovable(
            f"{top} is a partial clone, whose objects are not all there",
            hint=f"fetch them first: git -C {top} fetch --refetch --no-filter",
        )


def _settings(git: Git) -> dict[str, str]:
    """The repository's own configuration, without what it includes; later lines outweigh."""
    common = os.path.normpath(os.path.join(git.git_dir, _commondir(git.git_dir)))
    found: dict[str, str] = {}
    for path in (os.path.join(common, "config"), os.path.join(git.git_dir, "config.worktree")):
        if not os.path.isfile(path):
            continue
        listed = git.run("config", "--file", path, "--no-includes", "--null", "--list")
        for record in listed.split(b"\0")[:-1]:
            key, newline, value = os.fsdecode(record).partition("\n")
            if len(value) <= MAX_CONFIG_VALUE:
                found[key] = value if newline else "true"
    return found


def _carried(settings: dict[str, str], branch: str | None) -> dict[str, str]:
    kept = {key: settings[key] for key in CARRIED_SETTINGS if key in settings}
    if branch is not None:
        name = branch.removeprefix("refs/heads/")
        for key in (f"branch.{name}.remote", f"branch.{name}.merge", f"branch.{name}.rebase"):
            if key in settings:
                kept[key] = settings[key]
    return kept


def public_url(url: str) -> str:
    """A remote's address without a password or token in it; empty for what is no address."""
    if "://" not in url:
        return "" if url.startswith("-") or "::" in url else url
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    place = parts.netloc.rpartition("@")[2]
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    if parts.scheme == "ssh" and user:
        place = f"{user}@{place}"
    return urlunsplit((parts.scheme, place, parts.path, "", ""))


def _upstream(git: Git, branch: str | None) -> tuple[str, str] | None:
    if branch is None:
        return None
    listed = git.ask("for-each-ref", "--format=%(upstream)", branch)
    if not listed or not listed.startswith("refs/remotes/"):
        return None
    commit = git.ask("rev-parse", "--verify", "--quiet", f"{listed}^{{commit}}")
    return None if commit is None else (listed, commit)


def _stashes(git: Git) -> tuple[Stash, ...]:
    if git.ask("rev-parse", "--verify", "--quiet", "refs/stash") is None:
        return ()
    found = []
    for record in git.records("log", "-g", "-z", "--format=%H%n%gs", "refs/stash", "--"):
        oid, _, message = os.fsdecode(record).partition("\n")
        found.append(Stash(oid, message))
        if len(found) > MAX_STASHES:
            raise NotMovable(f"there are over {MAX_STASHES} stashes", hint="drop some of them")
    return tuple(found)


def read_small(folder: str, name: str) -> str | None:
    """The text of a small regular file; None where there is none."""
    try:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = os.read(fd, MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise NotMovable(f"{os.path.join(folder, name)} is over {MAX_FILE_BYTES} bytes")
    return os.fsdecode(data)
