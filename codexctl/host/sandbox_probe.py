"""Whether this machine can start the sandbox, why not and how to mend it; and what it starts.

`Sandbox` is the adapter around `codexctl.host.sandbox`: it looks at the real file system, tries the
sandbox once and tries again only while it does not work, so that mending needs no restart.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from codexctl.errors import Refused
from codexctl.host.sandbox import (
    Plan,
    SandboxRequest,
    Surroundings,
    bwrap_argv,
    plan_sandbox,
)
from codexctl.host.sandbox_paths import MAX_SCANNED_ENTRIES, SYSTEM_SCANNED

PROBE_S = 10.0
# As root: how old the knowledge of the system's private files may be.
LOOK_AGAIN_S = 2.0
# Of a hidden folder's entries: links beyond these are not looked at.
MAX_LINKS_ENTRIES = 256


class RealFiles:
    """`codexctl.host.sandbox.Files` over the file system, for one plan: what was seen is kept."""

    def __init__(self) -> None:
        self._links: dict[str, str | None] = {}
        self._real: dict[str, str] = {"/": "/"}

    def is_dir(self, path: str) -> bool:
        return os.path.isdir(path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def readlink(self, path: str) -> str | None:
        if path not in self._links:
            try:
                self._links[path] = os.readlink(path)
            except OSError:
                self._links[path] = None
        return self._links[path]

    def realpath(self, path: str) -> str:
        real = self._real.get(path)
        if real is None:
            # os.path.realpath would look at the same parents again for each of many paths.
            folder, _, name = path.rpartition("/")
            if name in ("", ".", ".."):
                real = os.path.realpath(path)
            else:
                parent = self.realpath(folder or "/")
                step = f"{parent}/{name}" if parent != "/" else f"/{name}"
                real = step if self.readlink(step) is None else os.path.realpath(step)
            self._real[path] = real
        return real

    def links_inside(self, folder: str) -> list[str]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry, _ in zip(entries, range(MAX_LINKS_ENTRIES), strict=False):
                    if entry.is_symlink():
                        found.append(os.path.realpath(entry.path))
        except OSError:
            return []  # missing, a file, or not ours to read: then neither is it the sandbox's
        return found


class Facts(NamedTuple):
    """What decides why bwrap does not start."""

    platform: str
    installed: bool
    distribution: str
    as_root: bool
    in_container: bool
    max_user_namespaces: int | None
    unprivileged_clone: int | None
    apparmor_restricts: int | None


_INSTALL = {
    "debian": "apt-get install bubblewrap",
    "fedora": "dnf install bubblewrap",
    "arch": "pacman -S bubblewrap",
    "alpine": "apk add bubblewrap",
    "suse": "zypper install bubblewrap",
}
_NAMESPACE_TROUBLE = ("namespace", "mount", "permi")
_WITHOUT = 'or, at your own risk, allow "--sandbox off" by sandbox.mode = "optional" in policy.toml'


def explain(facts: Facts, stderr: str) -> Refused:
    """One sentence and the way to mend it, for a sandbox that did not start."""
    reason = stderr.strip().split("\n")[0].removeprefix("bwrap: ")[:300]
    if facts.platform != "linux":
        return Refused(
            f"the sandbox needs Linux, and this host runs {facts.platform}", hint=_WITHOUT[3:]
        )
    if not facts.installed:
        command = _INSTALL.get(facts.distribution, "install the package bubblewrap")
        return Refused(
            "the sandbox cannot start: bubblewrap is not installed on this host",
            hint=f"as root on the host: {command}",
        )
    if not facts.as_root and facts.max_user_namespaces == 0:
        return Refused(
            "the sandbox cannot start: user namespaces are switched off on this host",
            hint="as root on the host: sysctl -w user.max_user_namespaces=15000",
        )
    if not facts.as_root and facts.unprivileged_clone == 0:
        return Refused(
            "the sandbox cannot start: user namespaces are for root only on this host",
            hint="as root on the host: sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if facts.in_container and any(word in reason.lower() for word in _NAMESPACE_TROUBLE):
        return Refused(
            f"the sandbox cannot start inside this container: {reason}",
            hint="start the container with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined, " + _WITHOUT,
        )
    if not facts.as_root and facts.apparmor_restricts:
        return Refused(
            f"the sandbox cannot start: AppArmor restricts user namespaces on this host ({reason})",
            hint="give bwrap an AppArmor profile (docs/host.md has it), or as root on the host: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    return Refused(f"the sandbox cannot start: {reason or 'bwrap gave no reason'}", hint=_WITHOUT)


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _distribution() -> str:
    try:
        with open("/etc/os-release") as file:
            text = file.read().lower()
    except OSError:
        return ""
    likes = [line for line in text.split("\n") if line.startswith(("id=", "id_like="))]
    return next((name for name in _INSTALL if any(name in line for line in likes)), "")


def gather_facts() -> Facts:
    return Facts(
        platform=sys.platform,
        installed=shutil.which("bwrap") is not None,
        distribution=_distribution(),
        as_root=os.geteuid() == 0,
        in_container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))),
        max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_clone=_number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restricts=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
    )


class PrivateFiles:
    """What others cannot read of the system: root's commands must not read it either.

    A folder is looked through again only when it has changed, so that `look` costs one stat a
    folder from the second time on.
    """

    def __init__(self, trees: Sequence[str] = SYSTEM_SCANNED) -> None:
        self._trees = trees
        self._seen: dict[str, _Folder] = {}

    def look(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Private files and folders now, and trees that are too large to tell."""
        masked: list[str] = []
        left_out: list[str] = []
        seen: dict[str, _Folder] = {}
        for tree in self._trees:
            found: list[str] = []
            count = 0
            waiting = [tree]
            while waiting and count <= MAX_SCANNED_ENTRIES:
                path = waiting.pop()
                folder = self._folder(path)
                if folder is not None:
                    seen[path] = folder
                    count += folder.entries
                    found += folder.private
                    waiting += folder.folders
            if waiting:
                left_out.append(os.path.realpath(tree))
            else:
                masked += found
        self._seen = seen
        return tuple(masked), tuple(left_out)

    def _folder(self, path: str) -> _Folder | None:
        try:
            changed = os.stat(path, follow_symlinks=False).st_mtime_ns
            known = self._seen.get(path)
            if known is not None and known.changed == changed:
                return known
            entries = 0
            private: list[str] = []
            folders: list[str] = []
            with os.scandir(path) as found:
                for entry in found:
                    entries += 1
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        (folders if mode & 0o005 == 0o005 else private).append(entry.path)
                    elif stat.S_ISREG(mode) and not mode & 0o004:
                        private.append(entry.path)
        except OSError:
            return None  # gone meanwhile, or no folder
        return _Folder(changed, entries, private, folders)


class _Folder(NamedTuple):
    changed: int
    entries: int
    private: list[str]
    folders: list[str]


class Sandbox:
    """Starts commands of one host in its sandbox. Owned by the host's event loop."""

    def __init__(self, around: Surroundings, workspace: str) -> None:
        self._around = around
        self._workspace = workspace
        self._works = False
        self._lock = asyncio.Lock()
        self._private = PrivateFiles()
        self._looked_at = 0.0
        self._bwrap = ""
        self._setsid = ""

    async def ready(self) -> None:
        """Return where the sandbox starts here; else Refused with the way to mend it."""
        if self._works and not self._stale():
            return
        async with self._lock:
            if not self._works:
                await asyncio.to_thread(self.probe)
            elif self._stale():
                await asyncio.to_thread(self._look)

    def _stale(self) -> bool:
        return self._around.as_root and time.monotonic() - self._looked_at > LOOK_AGAIN_S

    def _look(self) -> None:
        masked, left_out = self._private.look()
        self._around = replace(self._around, masked=masked, left_out=left_out, as_root=True)
        self._looked_at = time.monotonic()

    def probe(self) -> None:
        """As `ready`, blocking: runs bwrap once around `true`, at most PROBE_S."""
        facts = gather_facts()
        self._bwrap = shutil.which("bwrap") or ""
        # util-linux and busybox both have it; a terminal inside needs a session of its own.
        self._setsid = shutil.which("setsid", path="/usr/bin:/bin:/usr/local/bin") or "setsid"
        if not self._bwrap or facts.platform != "linux":
            raise explain(facts, "")
        if facts.as_root:
            self._look()
        request = SandboxRequest(self._workspace, self._workspace)
        plan = plan_sandbox(self._around, request, RealFiles())
        # Nothing is made on the host for a trial.
        mounts = tuple(mount for mount in plan.mounts if mount.path not in plan.placeholders)
        prefix = bwrap_argv(Plan(mounts, ()), request, as_root=self._around.as_root, info=False)
        argv = [self._bwrap, *prefix[1:], "true"]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise explain(facts, str(error)) from error
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").split("\n")
            raise explain(facts, next((x for x in lines if x.startswith("bwrap: ")), lines[-1]))
        self._works = True

    def command(
        self, request: SandboxRequest, argv: Sequence[str], *, program: str = "", tty: bool = False
    ) -> list[str]:
        """The argv that runs `argv` in the sandbox; `program` is the file that argv[0] means.

        Refused where the workspace or the program cannot be shown inside.
        """
        plan = plan_sandbox(self._around, request, RealFiles())
        if program:
            real = os.path.realpath(program)
            if real not in request.denied and not plan.shows(real):
                raise Refused(
                    f"{program} lies outside what the sandbox of this host shows",
                    hint="have the host's owner add its folder to sandbox.readable in policy.toml",
                )
        for path in plan.placeholders:
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass  # another command starts at this moment
            except OSError as error:
                raise Refused(f"cannot hide {path}: {error.strerror}") from error
        prefix = bwrap_argv(plan, request, as_root=self._around.as_root)
        prefix[0] = self._bwrap
        return [*prefix, *([self._setsid, "-c"] if tty else []), *argv]
