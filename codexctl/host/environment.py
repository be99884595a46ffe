"""The person's login shell and the environment it gives, asked of the shell itself.

rc files print, wait, fail, start other shells or need a terminal; so the shell is asked in a
session of its own, for a bounded time, what `env -0` says between two random marks, and whatever
else comes is ignored. csh and fish take the same command: nothing in it is special to them.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

from codexctl.errors import NotFoundOnHost, Refused

# One asking of the shell; there are at most two.
ASK_S = 5.0
MAX_ENVIRONMENT_BYTES = 1 << 20
FALLBACK_SHELL = "/bin/sh"
FALLBACK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Shells that are no shells: commands go to FALLBACK_SHELL.
_CLOSED = ("nologin", "false", "true", "sync", "shutdown", "halt", "git-shell", "rssh", "scponly")
_INTERACTIVE = ("bash", "zsh", "ksh", "mksh", "fish")
_PROBE = "CODEXCTL_PROBE"
# Names that describe the asking rather than the person.
_TRANSIENT = ("_", "SHLVL", "PWD", "OLDPWD", _PROBE)


@dataclass(frozen=True, slots=True)
class LoginEnvironment:
    """`variables` as a login gives them; `complete` is False where the shell did not tell."""

    shell: str
    home: str
    user: str
    variables: dict[str, str] = field(repr=False)
    complete: bool = True

    @property
    def path(self) -> str:
        return self.variables.get("PATH", FALLBACK_PATH)

    def shell_command(self, line: str) -> list[str]:
        """The argv that runs a command line as `ssh HOST LINE` does: the login shell's -c."""
        return [self.shell, "-c", line]

    def login_shell(self) -> list[str]:
        """The argv of the login shell itself; every known one takes -l alone."""
        return [self.shell, "-l"]


def find_program(name: str, path: str, cwd: str) -> str:
    """The file that `name` means with this PATH. NotFoundOnHost; Refused if not executable."""
    if not name or "\0" in name:
        raise NotFoundOnHost("the command has no name", hint="name a program after --")
    folders = [""] if "/" in name else path.split(":")
    found = ""
    for folder in folders:
        candidate = os.path.join(cwd, folder, name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            found = found or candidate
    if found or ("/" in name and os.path.isdir(os.path.join(cwd, name))):
        found = found or os.path.join(cwd, name)
        raise Refused(
            f"{found} is there but cannot be executed", hint=f"on the host: ls -l {found}"
        )
    raise NotFoundOnHost(
        f"{name}: command not found on the host",
        hint="" if "/" in name else f"its PATH is {path}",
    )


def login_shell_of(entry: pwd.struct_passwd | None) -> str:
    """The shell of the pwd database if it can run commands, else /bin/sh."""
    shell = entry.pw_shell if entry else ""
    if not shell or os.path.basename(shell) in _CLOSED or not os.access(shell, os.X_OK):
        return FALLBACK_SHELL
    return shell


async def discover(
    *, shell: str | None = None, home: str | None = None, timeout_s: float = ASK_S
) -> LoginEnvironment:
    """Ask the login shell, at most twice `timeout_s`; never fails, a mute shell gives defaults."""
    try:
        entry: pwd.struct_passwd | None = pwd.getpwuid(os.getuid())
    except KeyError:
        entry = None  # a container's user without a name
    shell = shell or login_shell_of(entry)
    home = home or os.environ.get("HOME") or (entry.pw_dir if entry else "/")
    user = entry.pw_name if entry else str(os.getuid())
    base = {
        "HOME": home, "USER": user, "LOGNAME": user, "SHELL": shell, "PATH": FALLBACK_PATH,
    }  # fmt: skip
    inherited = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "CODEXCTL_HOME", "CODEX_HOME")
    base.update((name, os.environ[name]) for name in inherited if name in os.environ)
    flags = [["-i"], []] if os.path.basename(shell) in _INTERACTIVE else [[]]
    for extra in flags:
        found = await asyncio.to_thread(_ask, shell, extra, base, timeout_s)
        if found is not None:
            return LoginEnvironment(shell, home, user, base | found)
    if "PATH" in os.environ:
        base["PATH"] = os.environ["PATH"]
    return LoginEnvironment(shell, home, user, base, complete=False)


def _ask(
    shell: str, flags: list[str], base: dict[str, str], timeout_s: float
) -> dict[str, str] | None:
    """The environment a login gives, or None where the marks did not come in time."""
    mark = secrets.token_hex(16)
    # /bin/sh reads this from a variable: no quoting of the login shell's touches it.
    probe = f'printf "\\0%s\\0" {mark}; env -0; printf "%s\\0" {mark}'
    try:
        process = subprocess.Popen(
            # A name that begins with - makes any shell a login shell; csh's -l stands alone only.
            ["-" + os.path.basename(shell), *flags, "-c", f'exec /bin/sh -c "${_PROBE}"'],
            executable=shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=base["HOME"] if os.path.isdir(base["HOME"]) else "/",
            env={**base, "TERM": "dumb", _PROBE: probe},
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        output = _read_until(process, b"\0" + mark.encode() + b"\0", timeout_s)
    finally:
        _end(process)
    if output is None:
        return None
    found = {}
    for entry in output.split(b"\0"):
        name, separator, value = entry.partition(b"=")
        key = os.fsdecode(name)
        if separator and key not in _TRANSIENT and not (key == "TERM" and value == b"dumb"):
            found[key] = os.fsdecode(value)
    return found if found.get("PATH") else None


def _read_until(process: subprocess.Popen[bytes], mark: bytes, timeout_s: float) -> bytes | None:
    """What stands between two marks; stops at the second, as others may hold the pipe open."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    until = time.monotonic() + timeout_s
    output = b""
    while len(output) <= MAX_ENVIRONMENT_BYTES:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return None
        output += chunk
        # env -0 ends each variable with NUL: both marks stand between two of them.
        parts = output.split(mark)
        if len(parts) >= 3:
            return parts[1]
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the shell's whole session: interactive ones give each of their commands a group."""
    for group in {process.pid, *_groups_of_session(process.pid)}:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _groups_of_session(session: int) -> set[int]:
    if sys.platform != "linux":
        return set()
    groups = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(name)) == session:
                groups.add(os.getpgid(int(name)))
        except OSError:
            continue  # ended while we looked
    return groups
