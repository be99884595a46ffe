"""Descriptors that other processes share, read and written from an event loop without O_NONBLOCK.

Setting O_NONBLOCK on stdout would set it for the shell that started us as well. So writes are as
small as a ready pipe takes, and reads happen when there is something.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections import deque
from collections.abc import Callable

READ_BYTES = 64 * 1024
# What a pipe takes without blocking once it says that it is writable (POSIX PIPE_BUF).
PIPE_BYTES = 4096


class Output:
    """Writes in order; `waiting` bytes are not written yet, `drained` is called after progress."""

    def __init__(self, fd: int, broken: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._broken = broken
        self._chunks: deque[memoryview] = deque()
        self._limit = READ_BYTES if stat.S_ISREG(os.fstat(fd).st_mode) else PIPE_BYTES
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._watched = False
        self._closed = False
        self.waiting = 0
        self.drained: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        self._chunks.append(memoryview(data))
        self.waiting += len(data)
        if not self._watched:
            self._pump()

    def _pump(self) -> None:
        try:
            while self._chunks:
                if not self._poll.poll(0):
                    if not self._watched:
                        self._loop.add_writer(self._fd, self._pump)
                        self._watched = True
                    return
                chunk = self._chunks[0]
                written = os.write(self._fd, chunk[: self._limit])
                self.waiting -= written
                if written == len(chunk):
                    self._chunks.popleft()
                else:
                    self._chunks[0] = chunk[written:]
        except OSError:
            # The reader is gone (or the disk is full): nobody is there to be written to.
            self.close()
            self._broken()
        self._unwatch()
        self.drained()

    def _unwatch(self) -> None:
        if self._watched:
            self._loop.remove_writer(self._fd)
            self._watched = False

    def close(self) -> None:
        self._closed = True
        self._chunks.clear()
        self.waiting = 0
        self._unwatch()


class Input:
    """Reads a descriptor while `deliver` wants more."""

    def __init__(self, fd: int, deliver: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._deliver = deliver
        self._handle: asyncio.Handle | None = None
        self._watched = False
        self._ended = False

    def resume(self) -> None:
        if self._ended or self._watched or self._handle is not None:
            return
        try:
            self._loop.add_reader(self._fd, self._read)
            self._watched = True
        except (PermissionError, OSError):
            # A regular file or /dev/null: always readable, and not for epoll.
            self._handle = self._loop.call_soon(self._read_file)

    def pause(self) -> None:
        if self._watched:
            self._loop.remove_reader(self._fd)
            self._watched = False
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _read_file(self) -> None:
        self._handle = self._loop.call_soon(self._read_file)
        self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self.pause()
            self._ended = True
        self._deliver(data)
