"""The sandbox's view of the file system, and the bwrap command line for it. No process, no clock.

Rules, in the order in which they are applied:
1. Nothing is shown but what is listed: an empty root, the system's folders read-only, the home's
   toolchains read-only, the workspace writable; /tmp, /run, /var/tmp and the home are private.
2. Every mount is a real path on itself, so that a path has one name; links on the way are made
   again as links. Hence a hidden path is compared by its real path and has no second door.
3. The deepest mount wins: mounts are applied from the root down.
4. What is hidden is never shown: a mount at or below a hidden path is left out, a workspace there
   is refused, and a hidden path below a mount is masked by an empty read-only folder or by a file
   that cannot be opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple, Protocol

from codexctl.errors import Refused
from codexctl.host.sandbox_paths import (
    HIDDEN_BY_VARIABLE,
    HOME_HIDDEN,
    HOME_PROTECTED,
    HOME_READABLE,
    NO_WORKSPACE_AT,
    NO_WORKSPACE_BELOW,
    READABLE_BY_VARIABLE,
    SYSTEM_PUBLIC,
    SYSTEM_READABLE,
)

# What root keeps inside: to own, enter and change the files of the workspace. Never SYS_ADMIN
# (mounts), DAC_READ_SEARCH (files by handle) or MKNOD (devices).
ROOT_CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")

# The descriptor on which bwrap says the pid of the sandbox's first process.
INFO_FD = 3


class Files(Protocol):
    """What exists. Paths are absolute; nothing raises for what is missing or unreadable."""

    def is_dir(self, path: str) -> bool: ...
    def exists(self, path: str) -> bool: ...
    def readlink(self, path: str) -> str | None: ...
    def realpath(self, path: str) -> str: ...
    def links_inside(self, folder: str) -> list[str]:
        """The real paths that links in this folder lead to."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """The host, for all commands: `home` of the person, `state` is codexctl's own home.

    `masked` are real paths of the system that are not for the sandbox, `unreadable` whole trees
    of it to leave out; `variables` is the login environment.
    """

    home: str
    state: str
    variables: dict[str, str]
    hidden: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    as_root: bool = False

    @cached_property
    def hides(self) -> tuple[tuple[str, bool], ...]:
        """Names of what must not be seen; True where a missing one would be a folder."""
        named = {f"{self.home}/{path.rstrip('/')}": path.endswith("/") for path in HOME_HIDDEN}
        named[self.state] = False
        named.update((path, False) for path in self._named(HIDDEN_BY_VARIABLE))
        named.update((path, False) for path in (*self.hidden, *self.masked))
        return tuple((path.rstrip("/") or "/", is_folder) for path, is_folder in named.items())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of what may be read, PATH aside."""
        return (
            *SYSTEM_READABLE,
            *(f"{self.home}/{path}" for path in HOME_READABLE),
            *self._named(READABLE_BY_VARIABLE),
            *self.readable,
        )

    @cached_property
    def path(self) -> tuple[str, ...]:
        """The folders of PATH."""
        return tuple(os.path.normpath(folder) for folder in self._folders("PATH"))

    def _named(self, table: Iterable[tuple[str, str]]) -> list[str]:
        paths = [
            os.path.join(folder, below)
            for variable, below in table
            for folder in self._folders(variable)
        ]
        return [path.rstrip("/") or "/" for path in paths]

    def _folders(self, variable: str) -> list[str]:
        values = self.variables.get(variable, "").split(":")
        return [value for value in values if value.startswith("/")]


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One command: `writable` is the workspace or another root, `cwd` lies in it (real paths)."""

    writable: str
    cwd: str
    network: bool = False
    denied: tuple[str, ...] = ()
    """Real paths of programs that must not start."""
    narrowed: tuple[tuple[str, bool], ...] = ()
    """Real paths at or below `writable`, and whether each can be written; the deepest decides."""


class Kind(IntEnum):
    """How a path is mounted; at one path the later kind wins."""

    SYMLINK = 0
    PRIVATE = 1
    READ_ONLY = 2
    WRITABLE = 3
    PROC = 4
    DEV = 5
    MASKED_FOLDER = 6
    MASKED_FILE = 7


SHOWN = (Kind.READ_ONLY, Kind.WRITABLE)


class Mount(NamedTuple):
    path: str
    kind: Kind
    target: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The mounts from the root down, and folders to make on the host so that they can be masked."""

    mounts: tuple[Mount, ...]
    placeholders: tuple[str, ...]

    def shows(self, path: str) -> bool:
        """True where this real path is visible inside."""
        return _nearest(path, {mount.path: mount for mount in self.mounts}) in SHOWN


def within(path: str, root: str) -> bool:
    return path == root or path.startswith(root if root == "/" else root + "/")


def plan_sandbox(around: Surroundings, request: SandboxRequest, files: Files) -> Plan:
    """The mounts for one command. Refused where its workspace or cwd cannot be shown."""
    hidden = _hidden_paths(around, request, files)
    _check_workspace(request, hidden)
    mounts: dict[str, Mount] = {}
    home = files.realpath(around.home)
    for path in ("/tmp", "/run", "/var/tmp"):  # noqa: S108 - private ones, inside
        mounts[path] = Mount(path, Kind.PRIVATE)
    if home != "/" and not within(home, request.writable):
        mounts[home] = Mount(home, Kind.PRIVATE)
    names = [around.home, request.writable, request.cwd]
    for path in _shown_paths(around, request, files):
        if not files.exists(path):
            continue
        names.append(path)
        real = files.realpath(path)
        if not files.exists(real) or real in around.left_out:
            continue
        if any(within(real, secret) for secret in hidden):
            continue
        # Nothing on PATH or by a variable shows the whole home or /tmp; the policy may.
        private = within(home, real) or (real in mounts and mounts[real].kind is Kind.PRIVATE)
        if real == "/" or (private and path not in around.readable):
            continue
        mounts[real] = Mount(real, Kind.READ_ONLY)
    mounts[request.writable] = Mount(request.writable, Kind.WRITABLE)
    for path, writes in request.narrowed:
        secret = any(within(path, name) for name in hidden)
        if within(path, request.writable) and files.exists(path) and not secret:
            mounts[path] = Mount(path, Kind.WRITABLE if writes else Kind.READ_ONLY)
    mounts["/proc"] = Mount("/proc", Kind.PROC)
    mounts["/dev"] = Mount("/dev", Kind.DEV)
    kept = {
        path: mount
        for path, mount in mounts.items()
        if mount.kind not in SHOWN or mount.kind is not _nearest(path, mounts, above=True)
    }
    placeholders = []
    for path in sorted(hidden, key=_depth):
        nearest = _nearest(path, kept)
        if nearest not in SHOWN:
            continue
        if files.exists(path):
            folder = files.is_dir(path)
            kept[path] = Mount(path, Kind.MASKED_FOLDER if folder else Kind.MASKED_FILE)
        elif hidden[path] and nearest is Kind.WRITABLE and files.is_dir(os.path.dirname(path)):
            placeholders.append(path)
            kept[path] = Mount(path, Kind.MASKED_FOLDER)
    for link, target in _links_on(names, files):
        if link not in kept and _nearest(link, kept) in (None, Kind.PRIVATE):
            kept[link] = Mount(link, Kind.SYMLINK, target)
    return Plan(tuple(kept[path] for path in sorted(kept, key=_depth)), tuple(placeholders))


def _depth(path: str) -> tuple[int, str]:
    return (path.count("/") if path != "/" else 0, path)


def _nearest(path: str, mounts: Mapping[str, Mount], *, above: bool = False) -> Kind | None:
    """The kind of the deepest mount at or, with `above`, strictly above this path."""
    if above:
        path = os.path.dirname(path)
    while True:
        if path in mounts:
            return mounts[path].kind
        if path == "/":
            return None
        path = os.path.dirname(path)


def _links_on(paths: Iterable[str], files: Files) -> Iterator[tuple[str, str]]:
    """The links met on the way along these paths, under real paths, with what they say."""
    seen: set[str] = set()
    waiting = list(paths)
    while waiting:
        real = "/"
        parts = waiting.pop().split("/")
        for index, part in enumerate(parts):
            if part in ("", "."):
                continue
            step = os.path.dirname(real) if part == ".." else f"{real.rstrip('/')}/{part}"
            target = files.readlink(step)
            if target is not None and step not in seen:
                seen.add(step)
                yield step, target
                waiting.append("/".join([os.path.join(real, target), *parts[index + 1 :]]))
            real = step if target is None else files.realpath(step)


def _hidden_paths(around: Surroundings, request: SandboxRequest, files: Files) -> dict[str, bool]:
    """Real paths that must not be seen: those that exist, and folders (True) that could."""
    hidden: dict[str, bool] = {}
    for path, is_folder in (*around.hides, *((path, False) for path in request.denied)):
        if not is_folder and not files.exists(path):
            continue
        real = files.realpath(path)
        hidden[real] = is_folder or hidden.get(real, False)
        for target in files.links_inside(real):
            # A link that leads to something large is no credential, it is somebody's shortcut.
            if within(request.cwd, target) or within(around.home, target):
                continue
            if not any(within(target, public) for public in SYSTEM_PUBLIC):
                hidden.setdefault(target, False)
    return hidden


def _check_workspace(request: SandboxRequest, hidden: Iterable[str]) -> None:
    root = request.writable
    if root in NO_WORKSPACE_AT or any(within(root, path) for path in NO_WORKSPACE_BELOW):
        raise Refused(
            f"{root} cannot be a workspace: the sandbox would give the system away",
            hint="serve a folder of your own: codexctl host serve --workspace FOLDER",
        )
    for secret in hidden:
        for place, what in ((root, "workspace"), (request.cwd, "folder")):
            if within(place, secret):
                raise Refused(
                    f"the {what} {place} lies in {secret}, which is hidden from commands",
                    hint="use a folder elsewhere; see: codexctl host policy show",
                )


def _shown_paths(around: Surroundings, request: SandboxRequest, files: Files) -> Iterator[str]:
    yield from around.names
    # Often a link to where a resolver daemon keeps it, in /run.
    yield files.realpath("/etc/resolv.conf")
    if within(files.realpath(around.home), request.writable):
        for path in HOME_PROTECTED:
            yield f"{around.home}/{path}"
    for folder in around.path:
        yield _toolchain_of(folder, around.home, files)


def _toolchain_of(folder: str, home: str, files: Files) -> str:
    """The folder to show for one on PATH: bin/ of a toolchain needs the lib/ beside it."""
    parent = os.path.dirname(folder)
    beside = ("lib", "libexec", "pyvenv.cfg")
    if not within(home, parent) and any(files.exists(f"{parent}/{name}") for name in beside):
        return parent
    return folder


def bwrap_argv(
    plan: Plan, request: SandboxRequest, *, as_root: bool, info: bool = True
) -> list[str]:
    """The command line of bwrap up to its `--`; the command's own follows.

    The environment is the one bwrap is started with. With `info` the first process's pid is written
    to INFO_FD. Without a terminal of its own the command cannot push input into the host's.
    """
    argv = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if not request.network:
        argv.append("--unshare-net")
    # When the host daemon dies so do its commands: nobody could reach them any more.
    argv += ["--die-with-parent", "--new-session"]
    if info:
        argv += ["--info-fd", str(INFO_FD)]
    if as_root:
        # bwrap leaves root all capabilities, and with them the power to unmount the masks.
        argv += ["--cap-drop", "ALL"]
        for capability in ROOT_CAPABILITIES:
            argv += ["--cap-add", capability]
    for path, kind, target in plan.mounts:
        if kind is Kind.SYMLINK:
            argv += ["--symlink", target, path]
        elif kind is Kind.PRIVATE:
            argv += ["--tmpfs", path]
        elif kind is Kind.READ_ONLY:
            argv += ["--ro-bind", path, path]
        elif kind is Kind.WRITABLE:
            argv += ["--bind", path, path]
        elif kind is Kind.PROC:
            argv += ["--proc", path]
            if as_root:
                # /proc/sys belongs to root, with or without capabilities: core_pattern alone would
                # be a way out. bwrap covers it only where it looks writable to bwrap.
                argv += ["--remount-ro", path]
        elif kind is Kind.DEV:
            argv += ["--dev", path]
        elif kind is Kind.MASKED_FOLDER:
            argv += ["--tmpfs", path, "--remount-ro", path]
        else:
            # A device on a mount without devices: opening it is refused, also to root.
            argv += ["--ro-bind", "/dev/null", path]
    return [*argv, "--remount-ro", "/", "--chdir", request.cwd, "--"]
