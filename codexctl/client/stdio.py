"""This process's stdin, stdout and stderr beside a session: no write blocks, no byte is lost.

A blocking write to a pipe whose reader stopped would also stop heartbeats. Descriptors are shared
with other processes (a shell's terminal), so they are not switched to non-blocking but opened anew
where the system allows that.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Callable

from codexctl.client.connection import Connection


def private_descriptor(fd: int) -> int:
    """A descriptor of what `fd` writes to, non-blocking where that can be had.

    Pipes and terminals are opened anew; a regular file is not (its offset is shared) and does not
    block; what cannot be opened anew is used as it is.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        name = f"/proc/self/fd/{fd}" if sys.platform == "linux" else f"/dev/fd/{fd}"
        try:
            return os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            pass
    return fd


class Output:
    """One of stdout and stderr. `written(size)` is called as bytes leave; bounded by credit."""

    def __init__(self, connection: Connection, fd: int, written: Callable[[int], None]) -> None:
        self._connection = connection
        self._written = written
        self._queue: deque[memoryview] = deque()
        self.fd = private_descriptor(fd)
        self.error: OSError | None = None

    @property
    def broken(self) -> bool:
        """Whether nothing can be written any more: the reader is gone, or the disk is full."""
        return self.error is not None

    @property
    def idle(self) -> bool:
        return not self._queue

    def write(self, data: memoryview) -> None:
        """Write now what is taken now, keep a copy of the rest."""
        if self.broken:
            self._written(len(data))
            return
        if not self._queue:
            sent = self._write(data)
            if sent == len(data):
                return
            data = data[sent:]
            self._connection.watch(self.fd, on_writable=self._drain)
        self._queue.append(memoryview(bytes(data)))

    def _write(self, data: memoryview) -> int:
        total = 0
        try:
            while total < len(data):
                sent = os.write(self.fd, data[total:])
                total += sent
                self._written(sent)
        except BlockingIOError:
            pass
        except OSError as error:
            # What still comes is dropped, and counted as dealt with.
            self.error = error
            self._written(len(data) - total)
            return len(data)
        return total

    def _drain(self) -> None:
        while self._queue:
            data = self._queue[0]
            sent = self._write(data)
            if sent < len(data):
                self._queue[0] = data[sent:]
                return
            self._queue.popleft()
        self._connection.unwatch(self.fd)


ESCAPE = ord("~")
_HELP = (
    b"\r\n~.  end the session\r\n~d  detach: the shell goes on, see codexctl ps\r\n"
    b"~?  this text\r\n~~  a tilde\r\n"
)


class Escapes:
    """The escape characters of a terminal session, as ssh has them: `~` after a line end.

    `feed` returns the bytes to send and the command met, "" or one of ".", "d", "?".
    """

    def __init__(self) -> None:
        self._at_line_start = True
        self._pending = False

    help = _HELP

    def feed(self, data: bytes) -> tuple[bytes, str]:
        may_escape = self._pending or (self._at_line_start and data[:1] == b"~")
        if not may_escape and b"\r" not in data and b"\n" not in data:
            # The usual case at once: no escape can begin before the first line end.
            self._at_line_start = False
            return data, ""
        out = bytearray()
        for byte in data:
            if self._pending:
                self._pending = False
                if byte in b".d?":
                    self._at_line_start = True
                    # What was typed after the command is not for the program.
                    return bytes(out), chr(byte)
                if byte != ESCAPE:
                    out.append(ESCAPE)
            elif self._at_line_start and byte == ESCAPE:
                self._pending = True
                continue
            out.append(byte)
            self._at_line_start = byte in b"\r\n"
        return bytes(out), ""
