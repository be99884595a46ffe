"""Start one process on pipes or a terminal, in a session of its own. Nothing waits here.

posix_spawn shares the daemon's memory until the exec, so that a large daemon starts commands as
quickly as a small one; and no Python runs between fork and exec.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import sys
import termios
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from codexctl.errors import Refused
from codexctl.host.sandbox import INFO_FD
from codexctl.wire.channel import STDERR, STDOUT

# Commands get the limit that this process was started with; a daemon raises its own.
FILE_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)


class Terminal(NamedTuple):
    """A terminal's size in characters, and its type for TERM."""

    cols: int = 80
    rows: int = 24
    term: str = "xterm-256color"


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: `argv` in full with the sandbox before it, and how it is told of.

    `executable` is the file to start, argv[0] being what it is called. `cwd` is entered by the
    sandbox, or by a shell where there is none.
    """

    executable: str
    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    cwd: str
    command: tuple[str, ...]
    device_id: str
    device: str
    tty: Terminal | None = None
    stdin: bool = True
    sandboxed: bool = True
    network: bool = False


class Spawned(NamedTuple):
    """What was started. Descriptors are ours and do not block; -1 is none.

    `outputs` maps streams to descriptors; on a terminal `stdin` is the same one. From `info` the
    sandbox's first pid can be read.
    """

    pid: int
    pidfd: int
    stdin: int
    outputs: dict[int, int]
    info: int


def spawn(launch: Launch) -> Spawned:
    """Start it. Refused where the system cannot; then nothing is left open."""
    opened: list[int] = []
    try:
        return _spawn(launch, opened)
    except OSError as error:
        for fd in opened:
            os.close(fd)
        exhausted = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        raise Refused(
            f"cannot start {launch.command[0]}: {error.strerror}",
            hint="the host is out of processes, files or memory: see codexctl ps"
            if error.errno in exhausted
            else "",
        ) from error


def _spawn(launch: Launch, opened: list[int]) -> Spawned:
    """`opened` is filled with the descriptors that stay ours."""
    theirs: list[int] = []
    stdin = info = -1
    outputs: dict[int, int] = {}
    try:
        if launch.tty is not None:
            master, slave = os.openpty()
            theirs.append(slave)
            opened.append(master)
            stdin = outputs[STDOUT] = master
            set_size(master, launch.tty.cols, launch.tty.rows)
            actions = _terminal_actions(slave, launch.sandboxed)
        else:
            if launch.stdin:
                read, stdin = os.pipe()
                theirs.append(read)
                opened.append(stdin)
            else:
                theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            for stream in (STDOUT, STDERR):
                outputs[stream], write = os.pipe()
                theirs.append(write)
                opened.append(outputs[stream])
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs)]
        if launch.sandboxed:
            info, write = os.pipe()
            theirs.append(write)
            opened.append(info)
            actions.append((os.POSIX_SPAWN_DUP2, write, INFO_FD))
        for fd in opened:
            os.set_blocking(fd, False)
        pid = os.posix_spawn(
            launch.executable,
            launch.argv,
            launch.environment,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            # What Python ignores a command must not.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        for fd in theirs:
            os.close(fd)
    return Spawned(pid, _pidfd_of(pid), stdin, outputs, info)


def _pidfd_of(pid: int) -> int:
    """A descriptor that is readable when it has ended, -1 where the system has none of the kind.

    Its file limit is set on the way.
    """
    if sys.platform != "linux":
        return -1
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, FILE_LIMIT)
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return -1
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _terminal_actions(slave: int, sandboxed: bool) -> list[Any]:
    if sandboxed:
        # setsid inside the sandbox makes it the controlling terminal there.
        return [(os.POSIX_SPAWN_DUP2, slave, number) for number in range(3)]
    # The first terminal that a session's leader opens becomes its own.
    name = os.ttyname(slave)
    return [(os.POSIX_SPAWN_OPEN, number, name, os.O_RDWR, 0) for number in range(3)]


def set_size(terminal: int, cols: int, rows: int) -> None:
    """Set a terminal's size in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
