"""Local TCP connections carried over tcp channels of one session, in its poll loop."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from codexctl.client.connection import Channel, ChannelHandler, Connection
from codexctl.errors import CodexctlError
from codexctl.wire.channel import DATA_BYTES

MAX_CONNECTIONS = 200  # a session has 256 channels


class Forwarder:
    """Accepts on listeners and opens a channel for each connection."""

    def __init__(self, connection: Connection, notice: Callable[[str], None]) -> None:
        self._connection = connection
        self._notice = notice
        self.live = 0

    def add(self, listener: socket.socket, target: str, port: int) -> None:
        listener.setblocking(False)

        def accept() -> None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if self.admits(sock):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.carry(sock, "tcp", {"host": target, "port": port})

        self._connection.watch(listener.fileno(), accept)

    def admits(self, sock: socket.socket) -> bool:
        """Whether there is room for one more; it is closed where there is not."""
        if self.live < MAX_CONNECTIONS:
            return True
        self._notice(f"more than {MAX_CONNECTIONS} connections at one time; one was refused")
        sock.close()
        return False

    def carry(
        self, sock: socket.socket, kind: str, params: dict[str, Any], first: bytes = b""
    ) -> None:
        """Carry an accepted connection over a new channel; `first` was read from it already.

        `first` is less than a new channel's credit.
        """
        self.live += 1
        _Carried(self, self._connection, sock, kind, params, self._notice, first)


class _Carried(ChannelHandler):
    """One accepted connection and its channel."""

    def __init__(
        self,
        owner: Forwarder,
        connection: Connection,
        sock: socket.socket,
        kind: str,
        params: dict[str, Any],
        notice: Callable[[str], None],
        first: bytes,
    ) -> None:
        sock.setblocking(False)
        self._owner = owner
        self._connection = connection
        self._sock = sock
        self._notice = notice
        self._out: deque[memoryview] = deque()
        self._reading = True
        self._eof_pending = False
        self._closing = False
        self._channel: Channel = connection.channel(kind, params, self)
        if first:
            self._channel.write(0, first)
        self._watch()

    def _watch(self) -> None:
        if self._sock.fileno() < 0:
            return
        reads = self._read if self._reading and not self._channel.waiting else None
        writes = self._write if self._out else None
        if reads or writes:
            self._connection.watch(self._sock.fileno(), reads, writes)
        else:
            self._connection.unwatch(self._sock.fileno())

    def _read(self) -> None:
        room = self._channel.writable
        if room <= 0:
            self._channel.waiting = True
            self._watch()
            return
        try:
            data = self._sock.recv(min(room, DATA_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._finish()
            return
        if data:
            self._channel.write(0, data)
        else:
            self._channel.write_eof(0)
            self._reading = False
            self._watch()

    def writable(self) -> None:
        self._watch()

    def data(self, stream: int, data: memoryview) -> None:
        self._out.append(memoryview(bytes(data)))
        self._write()

    def _write(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                self._channel.consumed(sent)
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._finish()
            return
        if not self._out:
            if self._closing:
                self._finish()
                return
            if self._eof_pending:
                self._shut()
        self._watch()

    def eof(self, stream: int) -> None:
        self._eof_pending = True
        if not self._out:
            self._shut()

    def _shut(self) -> None:
        self._eof_pending = False
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def closed(self, error: CodexctlError | None) -> None:
        if error is not None:
            self._notice(str(error))
        self._closing = True
        if not self._out or error is not None:
            self._finish()

    def _finish(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._connection.unwatch(self._sock.fileno())
        self._sock.close()
        self._out.clear()
        self._channel.close()
        self._owner.live -= 1
