"""One process of the host: started, read, written to, signalled, detached and reattached.

While somebody is attached, that handler reads its output and stalls it by reading no further; while
nobody is, the output is drained into a bounded ring. No thread and no task a process: a pidfd tells
the loop of its end.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from codexctl.errors import UsageError
from codexctl.host.ring import OutputRing
from codexctl.host.spawn import Launch, set_size, spawn
from codexctl.wire.channel import DATA_BYTES, STDOUT

# A pipe of this size lets a command write on while the host encrypts.
PIPE_BYTES = 1 << 20
# A detached process is read no faster: one that prints without end does not take the host's core.
DETACHED_BYTES_PER_TICK = 4 << 20
DETACHED_TICK_S = 0.1
# Where there is no pidfd: macOS, and Linux before 5.3.
POLL_S = 0.02
# Of a page each, more than a terminal keeps.
TERMINAL_BYTES = 4095  # what Linux gives of a terminal at one time, at most
TERMINAL_READS = 64
# After a device hung up on its command: SIGHUP, then SIGTERM, then SIGKILL.
TERM_AFTER_S = 2.0
KILL_AFTER_S = 7.0
# bwrap needs some milliseconds before the command runs; a signal waits for that.
SIGNAL_RETRY_S = 0.005
SETUP_S = 2.0  # after which it is not looked for any more whether the command runs
SIGNAL_TRIES = 400

_CHILD_PID = re.compile(rb'"child-pid": (\d+)\D')
SIGNALS = ("HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "ALRM", "CONT", "STOP", "TSTP")


class Exit(NamedTuple):
    """How a process ended: by itself with a status, or by a signal (a name without SIG)."""

    status: int | None
    signal: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"signal": self.signal} if self.signal else {"status": self.status}


def signal_number(name: object) -> int:
    """The number of "TERM" or "SIGTERM". UsageError for what may not be sent."""
    short = name.removeprefix("SIG") if isinstance(name, str) else ""
    if short not in SIGNALS:
        raise UsageError(
            f"{str(name)[:40]!r} is not a signal that can be sent",
            hint=f"one of {', '.join(SIGNALS)}",
        )
    return int(getattr(signal, f"SIG{short}"))


def _nothing_at_once() -> bool:
    return False


class HostProcess:
    """One process. `attachment` is the token of who reads it now, or None when it is detached."""

    def __init__(self, id: str, launch: Launch, on_finished: Callable[[HostProcess], None]) -> None:
        self.id = id
        self.launch = launch
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.exit: Exit | None = None
        self.ended = asyncio.Event()
        self.ring = OutputRing()
        # The offset up to which output was handed to a channel.
        self.sent = 0
        self.attachment: object | None = None
        self.attached_to = ""
        self.taken_by: Callable[[str], None] = lambda name: None
        self.on_end: Callable[[], None] = lambda: None
        self.at_once: Callable[[], bool] = _nothing_at_once
        self.stdin = -1
        self.outputs: dict[int, int] = {}
        self._loop = asyncio.get_running_loop()
        self._on_finished = on_finished
        self._pid = -1
        self._pidfd = -1
        self._info = -1
        self._said = b""
        self._init = 0
        self._runs = False
        self._sent_signals: set[int] = set()
        self._wide: set[int] = set()
        # More room than a terminal gives would cost each keystroke.
        self._read_bytes = DATA_BYTES if launch.tty is None else TERMINAL_BYTES
        self._read_waiter: asyncio.Future[None] | None = None
        self._stdin_full = False
        self._watched = False  # the outputs, for `readable`
        # What the command has not taken yet; None is the end of its input.
        self._input: deque[tuple[memoryview | None, Callable[[int], None]]] = deque()
        self._written = 0
        self._budget = DETACHED_BYTES_PER_TICK
        self._escalation: list[asyncio.TimerHandle] = []

    # --- start ---

    def start(self) -> None:
        """Start it, detached and not yet read. Refused where the system cannot."""
        started = spawn(self.launch)
        self._pid, self._pidfd, self.stdin, self.outputs, self._info = started
        if self._pidfd >= 0:
            self._loop.add_reader(self._pidfd, self._reap)
        else:
            self._loop.call_later(POLL_S, self._poll)

    # --- end ---

    def _reap(self) -> None:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            if self._pidfd >= 0:
                self._loop.remove_reader(self._pidfd)
                os.close(self._pidfd)
            self._ended(status)

    def _poll(self) -> None:
        self._reap()
        if self.running:
            self._loop.call_later(POLL_S, self._poll)

    def _ended(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            self.exit = Exit(None, _signal_name(-code))
        elif self.launch.sandboxed and code - 128 in self._sent_signals:
            # bwrap reports a signal as shells do; one that was sent from here is told apart.
            self.exit = Exit(None, _signal_name(code - 128))
        else:
            self.exit = Exit(code)
        self.ended_at = time.time()
        for timer in self._escalation:
            timer.cancel()
        if self._info >= 0:
            os.close(self._info)
            self._info = -1
        self.ended.set()
        self.on_end()
        _wake(self._read_waiter)
        if self.attachment is None and self.launch.tty is not None:
            # What it left in the terminal; what others that hold it still print is not waited for.
            for _ in range(TERMINAL_READS):
                self._drain(STDOUT)
        self._on_finished(self)

    @property
    def running(self) -> bool:
        return self.exit is None

    # --- output: whoever is attached reads, else the ring is filled ---

    def read(self, stream: int) -> bytes | None:
        """The next bytes of a stream, b"" at its end (then it is closed), None for not now."""
        fd = self.outputs.get(stream)
        if fd is None:
            return b""
        try:
            data = os.read(fd, self._read_bytes)
        except BlockingIOError:
            if self.launch.tty is not None and not self.running:
                data = b""  # what else holds the terminal is not waited for, as with ssh
            else:
                return None
        except OSError:
            data = b""  # EIO: the last process has left the terminal
        if not data:
            self._close_output(stream)
        elif len(data) == DATA_BYTES:
            self._widen(fd)
        return data

    async def readable(self) -> None:
        """Wait until an output has something that `at_once` does not take, or the process ended."""
        self._read_waiter = waiter = self._loop.create_future()
        if not self._watched:
            self._watched = True
            for fd in self.outputs.values():
                self._loop.add_reader(fd, self._output_ready)
        try:
            await waiter
        finally:
            self._read_waiter = None

    def _output_ready(self) -> None:
        if self._read_waiter is not None:
            if not self.at_once():
                _wake(self._read_waiter)
        else:
            # Whoever reads is slower than the command. Watching ends only now and not at each
            # read: for a keystroke's echo that would cost more than all the rest.
            self._unwatch()

    def _unwatch(self) -> None:
        self._watched = False
        for fd in self.outputs.values():
            self._loop.remove_reader(fd)

    def attach(self, token: object, name: str, taken: Callable[[str], None]) -> None:
        """Make `token` the reader. Who was it before is told the new one's name by its `taken`."""
        if self.attachment is not None:
            self.taken_by(name)
        self._unwatch()
        self.attachment, self.attached_to, self.taken_by = token, name, taken
        self.at_once = _nothing_at_once

    def detach(self, token: object) -> None:
        """Drain into the ring from now on, if `token` is still the reader."""
        if self.attachment is not token:
            return
        self.attachment, self.attached_to = None, ""
        self._watched = False
        for stream, fd in self.outputs.items():
            self._loop.add_reader(fd, self._drain, stream)

    def _drain(self, stream: int) -> None:
        data = self.read(stream)
        if data:
            self.ring.append(stream, data)
            self._budget -= len(data)
            if self._budget <= 0:
                for fd in self.outputs.values():
                    self._loop.remove_reader(fd)
                self._loop.call_later(DETACHED_TICK_S, self._drain_on)

    def _drain_on(self) -> None:
        self._budget = DETACHED_BYTES_PER_TICK
        if self.attachment is None:
            for stream, fd in self.outputs.items():
                self._loop.add_reader(fd, self._drain, stream)

    # --- input ---

    def feed(self, data: bytes | memoryview, written: Callable[[int], None]) -> None:
        """Queue `data` for the command's input; `written(size)` follows when it has been taken.

        It is also called when the command reads no more. What is queued is bounded by the credit
        that the caller gives, which is to wait for `written`.
        """
        self._input.append((memoryview(data), written))
        if len(self._input) == 1:
            self._flush()

    def end_input(self) -> None:
        """No more input: the pipe is closed; on a terminal its end-of-file character is typed."""
        self._input.append((None, _ignore))
        if len(self._input) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._input:
            data, written = self._input[0]
            if data is None:
                self._type_end()
                data = memoryview(b"")
            while self._written < len(data) and self.stdin >= 0:
                try:
                    self._written += os.write(self.stdin, data[self._written :])
                except BlockingIOError:
                    self._widen(self.stdin)
                    self._loop.add_writer(self.stdin, self._flush)
                    self._stdin_full = True
                    return
                except OSError:
                    self._drop_input()  # the command has closed its end
            self._input.popleft()
            self._written = 0
            written(len(data))
        if self._stdin_full and self.stdin >= 0:
            self._loop.remove_writer(self.stdin)
        self._stdin_full = False

    def _type_end(self) -> None:
        if self.launch.tty is None:
            self._drop_input()
        elif self.stdin >= 0:
            try:
                os.write(self.stdin, termios.tcgetattr(self.stdin)[6][termios.VEOF])
            except (OSError, termios.error):
                pass  # full or gone: then nobody waits for it

    def _drop_input(self) -> None:
        if self.stdin >= 0 and self.launch.tty is None:
            self._close(self.stdin)
        elif self.stdin >= 0:
            self._loop.remove_writer(self.stdin)
        self.stdin = -1

    def resize(self, cols: int, rows: int) -> None:
        """Set the terminal's size; the kernel tells the foreground group."""
        if self.launch.tty is not None and self.stdin >= 0:
            set_size(self.stdin, cols, rows)

    # --- signals ---

    def signal(self, number: int) -> None:
        """Send to the group inside (on a terminal: the foreground's), once the command runs."""
        self._deliver(number, SIGNAL_TRIES)

    def _deliver(self, number: int, tries: int) -> None:
        if not self.running:
            return
        if number == signal.SIGKILL and self.launch.sandboxed:
            # All of the sandbox dies with its first process. Until bwrap tells which that is, it
            # is in bwrap's group, and is killed with it: by itself it would be left behind.
            if first := self._first():
                self._send(os.kill, first, number)
            else:
                self._send(os.killpg, self._pid, number)
        elif group := self._group():
            self._send(os.killpg, group, number)
        elif tries:
            self._loop.call_later(SIGNAL_RETRY_S, self._deliver, number, tries - 1)

    def _send(self, send: Callable[[int, int], None], target: int, number: int) -> None:
        self._sent_signals.add(number)
        try:
            send(target, number)
        except ProcessLookupError:
            pass  # ended at this moment; its exit is on the way

    def _group(self) -> int:
        """The process group that a signal is for; 0 while the command does not run yet."""
        if self.launch.tty is not None and self.stdin >= 0:
            try:
                return os.tcgetpgrp(self.stdin)
            except OSError:
                return 0
        if not self.launch.sandboxed:
            return self._pid
        first = self._first()
        if first and not self._runs:
            self._runs = time.time() - self.started_at > SETUP_S or _runs_command(first)
        return first if self._runs else 0

    def _first(self) -> int:
        """The pid of the sandbox's first process, which leads its group; 0 till it is known."""
        if not self._init and self._info >= 0:
            try:
                # bwrap writes it in pieces.
                self._said += os.read(self._info, 4096)
            except BlockingIOError:
                return 0
            found = _CHILD_PID.search(self._said)
            self._init = int(found[1]) if found else 0
        return self._init

    def hang_up(self) -> None:
        """End it as a lost terminal does: no input, SIGHUP, and what does not help in the end."""
        self._input.clear()
        self._drop_input()
        if self.launch.tty is not None:
            self._close_streams()  # the kernel hangs up the session on this terminal
        else:
            self.signal(signal.SIGHUP)
            later = self._loop.call_later(TERM_AFTER_S, self.signal, signal.SIGTERM)
            self._escalation.append(later)
        self._escalation.append(self._loop.call_later(KILL_AFTER_S, self.signal, signal.SIGKILL))

    # --- descriptors ---

    def _widen(self, fd: int) -> None:
        if fd not in self._wide and sys.platform == "linux":
            self._wide.add(fd)
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # a terminal, or the person's allowance of pipe memory is used up

    def _close_output(self, stream: int) -> None:
        fd = self.outputs.pop(stream)
        if fd == self.stdin:
            self.stdin = -1
        self._close(fd)

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        self._wide.discard(fd)
        os.close(fd)
        _wake(self._read_waiter)

    def _close_streams(self) -> None:
        self._drop_input()
        for stream in list(self.outputs):
            self._close_output(stream)

    def forget(self) -> None:
        """Let go of what is open; a process that runs is killed."""
        self.signal(signal.SIGKILL)
        self._close_streams()
        self.ring.clear()

    def as_json(self) -> dict[str, Any]:
        """A row of `ps`."""
        return {
            "process": self.id,
            "command": list(self.launch.command),
            "cwd": self.launch.cwd,
            "device": self.launch.device,
            "started_at": round(self.started_at, 3),
            "ended_at": None if self.ended_at is None else round(self.ended_at, 3),
            "state": "running" if self.exit is None else "exited",
            "exit": None if self.exit is None else self.exit.as_json(),
            "tty": self.launch.tty is not None,
            "attached": self.attached_to or None,
            "sandbox": "on" if self.launch.sandboxed else "off",
            "network": self.launch.network,
            "kept_bytes": min(len(self.ring), self.ring.end - self.sent),
        }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)  # one of the real-time signals


def _ignore(size: int) -> None:
    pass


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _runs_command(first: int) -> bool:
    """True once a child of the sandbox's first process runs something other than bwrap."""
    try:
        with open(f"/proc/{first}/task/{first}/children") as file:
            pids = file.read().split()
    except OSError:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]  # not in every kernel
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                text = file.read()
        except OSError:
            continue  # ended while we looked
        command, _, rest = text.partition("(")[2].rpartition(")")
        if int(rest.split()[1]) == first and command != "bwrap":
            return True
    return False
