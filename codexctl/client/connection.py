"""A device's session with a host: blocking sockets, one poll loop, paths replaced as they break.

    connection = Connection.open(record, key)
    channel = connection.channel("exec", {"argv": ["true"]}, handler)
    connection.run(lambda: handler.done)

Everything happens inside `run`, in the thread that calls it; handlers are called from there. When
the path breaks, `run` gets another one for as long as it takes, with capped backoff and jitter;
what time cannot cure is raised. Between calls of `run` nothing moves: a caller that stays away for
longer than the protocol's 9 s loses the path and nothing else.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

from codexctl.client.handshake import check_key, handshake, open_websocket, suite_of
from codexctl.client.registry import Relay, connect
from codexctl.client.store import HostRecord
from codexctl.client.websocket import WebSocket
from codexctl.errors import (
    AuthenticationFailed,
    CodexctlError,
    ConnectionFailed,
    ProtocolError,
)
from codexctl.noise.keys import PrivateKey
from codexctl.session import core
from codexctl.session.records import PathFault, SessionOver
from codexctl.wire.handshake import KIND_SESSION

BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 15.0
GOODBYE_S = 2.0
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_GONE = select.POLLHUP | select.POLLERR


class ChannelHandler:
    """What a channel tells its user; override what matters. Called from inside `run`."""

    def opened(self, result: dict[str, Any]) -> None: ...

    def data(self, stream: int, data: memoryview) -> None:
        """Bytes that are valid during the call; `Channel.consumed` when they are dealt with."""

    def eof(self, stream: int) -> None: ...

    def message(self, value: dict[str, Any]) -> None: ...

    def writable(self) -> None:
        """More may be written; called once after `Channel.waiting` was set."""

    def closed(self, error: CodexctlError | None) -> None: ...


class Channel:
    """One channel of a connection, opened by this device."""

    def __init__(self, connection: Connection, number: int, handler: ChannelHandler) -> None:
        self.handler = handler
        self.waiting = False  # set it to be told when more may be written
        self._number = number
        self._session = connection.session

    @property
    def writable(self) -> int:
        """Bytes that `write` would take now."""
        return self._session.sendable(self._number)

    @property
    def is_open(self) -> bool:
        return self._session.is_open(self._number)

    def write(self, stream: int, data: bytes | memoryview) -> int:
        """Send what credit and room allow; returns how many bytes were taken."""
        return self._session.data(self._number, stream, data, time.monotonic())

    def write_eof(self, stream: int) -> None:
        self._session.eof(self._number, stream)

    def send(self, value: dict[str, Any]) -> None:
        self._session.message(self._number, value)

    def consumed(self, size: int) -> None:
        self._session.consumed(self._number, size)

    def close(self) -> None:
        self._session.close(self._number)


class Connection:
    """A live session. Use it as a context manager: leaving it ends the session at the host."""

    def __init__(
        self,
        record: HostRecord,
        key: PrivateKey,
        websocket: WebSocket,
        session: core.Session,
        hello: dict[str, Any],
        notice: Callable[[str], None],
    ) -> None:
        self.record = record
        self.session = session
        self.hello = hello  # the host's words about itself, from message 2
        self._key = key
        self._websocket: WebSocket | None = websocket
        self.notice = notice
        self._channels: dict[int, Channel] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._path = websocket.fileno()
        self._poll.register(self._path, _READABLE)
        self._awaits_write = False
        self._failures = 0
        self._retry_at = 0.0
        self._told = False
        self._timers: list[tuple[float, Callable[[], None]]] = []

    @classmethod
    def open(
        cls,
        record: HostRecord,
        key: PrivateKey,
        notice: Callable[[str], None] = lambda text: None,
    ) -> Connection:
        """Connect and shake hands. ConnectionFailed (255) and its kinds where that fails."""
        relay = Relay(record.relay, record.pin, record.token)
        websocket, session, hello = handshake(relay, record, key, kind=KIND_SESSION)
        return cls(record, key, websocket, session, hello, notice)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def channel(self, kind: str, params: dict[str, Any], handler: ChannelHandler) -> Channel:
        """Open a channel; `handler.opened` or `handler.closed` tells how it went."""
        number = self.session.open(kind, params)
        channel = Channel(self, number, handler)
        self._channels[number] = channel
        return channel

    # --- other file descriptors in the same loop ---

    def watch(
        self,
        fd: int,
        on_readable: Callable[[], None] | None = None,
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        """Call back when `fd` can be read (or is hung up) or written. Replaces what was watched."""
        self.unwatch(fd)
        mask = 0
        if on_readable is not None:
            self._readers[fd] = on_readable
            mask |= select.POLLIN
        if on_writable is not None:
            self._writers[fd] = on_writable
            mask |= select.POLLOUT
        if mask:
            self._poll.register(fd, mask)

    def unwatch(self, fd: int) -> None:
        if fd in self._readers or fd in self._writers:
            self._readers.pop(fd, None)
            self._writers.pop(fd, None)
            self._poll.unregister(fd)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once from inside `run`, `seconds` from now or a little later."""
        self._timers.append((time.monotonic() + seconds, callback))

    # --- the loop ---

    def run(self, until: Callable[[], bool]) -> None:
        """Move bytes until `until()` holds. SessionOver and AuthenticationFailed end it early."""
        while True:
            now = time.monotonic()
            self._flush(now)
            if until():
                return
            if self._websocket is None and now >= self._retry_at:
                self._reconnect()
                continue
            self._turn(now)

    def _turn(self, now: float) -> None:
        websocket = self._websocket
        due = self._due()
        timeout = None if due is None else int(max(0.0, due - now) * 1000) + 1
        secure = websocket if websocket is not None and websocket.secure else None
        if secure is not None and secure.pending:
            timeout = 0
        for fd, mask in self._poll.poll(timeout):
            if fd == self._path:
                self._path_event(mask)
                continue
            if mask & (select.POLLIN | _GONE) and fd in self._readers:
                self._readers[fd]()
            if mask & (select.POLLOUT | _GONE) and fd in self._writers:
                self._writers[fd]()
        if secure is not None and secure.pending and secure is self._websocket:
            self._path_event(select.POLLIN)
        now = time.monotonic()
        if due is not None and now >= due:
            self._tick(now)

    def _due(self) -> float | None:
        due = self.session.records.deadline() if self._websocket else self._retry_at
        for at, _ in self._timers:
            due = at if due is None else min(due, at)
        return due

    def _tick(self, now: float) -> None:
        if self._timers:
            due = [timer for timer in self._timers if timer[0] <= now]
            self._timers = [timer for timer in self._timers if timer[0] > now]
            for _, callback in due:
                callback()
        try:
            self.session.records.tick(now)
        except PathFault as error:
            self._lose_path(error)

    def _path_event(self, mask: int) -> None:
        websocket = self._websocket
        assert websocket is not None
        try:
            if mask & _READABLE:
                alive = websocket.read()
                for message in websocket.messages():
                    self._dispatch(self.session.receive(message, time.monotonic()))
                if self._failures and self.session.records.ready:
                    self._resumed()
                self._offer_room()
                if not alive or websocket.closed_because:
                    raise PathFault(f"the relay closed the connection {websocket.closed_because}")
        except SessionOver:
            self._drop_path()
            raise
        except (OSError, PathFault, ProtocolError) as error:
            self._lose_path(error)

    def _dispatch(self, events: list[core.Event]) -> None:
        for event in events:
            if isinstance(event, core.SessionClosed):
                raise event.error or SessionOver("the host ended the session")
            if isinstance(event, core.Opened):
                self.session.close(event.channel)
                continue
            channel = self._channels.get(event.channel)
            if channel is None:
                continue
            handler = channel.handler
            if isinstance(event, core.DataArrived):
                handler.data(event.stream, memoryview(event.data))
            elif isinstance(event, core.MessageArrived):
                handler.message(event.value)
            elif isinstance(event, core.EofArrived):
                handler.eof(event.stream)
            elif isinstance(event, core.Accepted):
                handler.opened(event.result)
            elif isinstance(event, core.Closed):
                del self._channels[event.channel]
                handler.closed(event.error)

    def _offer_room(self) -> None:
        # Credit or an ack may have come; both make room.
        for channel in list(self._channels.values()):
            if channel.waiting and channel.writable > 0:
                channel.waiting = False
                channel.handler.writable()

    def _flush(self, now: float) -> None:
        """Records from what is pending, messages onto the socket."""
        session, websocket = self.session, self._websocket
        session.flush(now)
        if websocket is None:
            return
        outbox = session.outbox
        if outbox:
            for message in outbox:
                websocket.send(message)
            outbox.clear()
        elif not websocket.wants_write:
            return
        try:
            websocket.write()
        except OSError as error:
            self._lose_path(error)
            return
        if websocket.wants_write != self._awaits_write:
            self._awaits_write = websocket.wants_write
            mask = _READABLE | (select.POLLOUT if self._awaits_write else 0)
            self._poll.modify(self._path, mask)

    # --- paths ---

    def _drop_path(self, linger_s: float = 0.0) -> None:
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            self._poll.unregister(self._path)
            self._path = -1
            websocket.close(linger_s=linger_s)
        self.session.records.path_lost()

    def _lose_path(self, error: Exception) -> None:
        self._drop_path()
        if self.session.closed:
            raise SessionOver("the host ended the session")
        self._schedule_retry(error)

    def _schedule_retry(self, error: Exception) -> None:
        delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 16))
        self._failures += 1
        # Jitter between half and all of it, so that a relay's clients do not return as one.
        share = 0.5 + int.from_bytes(os.urandom(2), "big") / 131072
        self._retry_at = time.monotonic() + delay * share
        if not self._told and self._failures > 2:
            self._told = True
            self.notice(f"connection to {self.record.name} lost ({error}); trying again")

    def _reconnect(self) -> None:
        relay = Relay(self.record.relay, self.record.pin, self.record.token)
        try:
            answer = connect(
                relay, self.record.environment_id, suite_of(self.record), self._key.public_bytes
            )
            try:
                check_key(self.record, answer.host_key)
            except AuthenticationFailed:
                answer.close()
                raise
            websocket = open_websocket(relay, answer)
        except AuthenticationFailed:
            raise
        except (ConnectionFailed, OSError) as error:
            self._schedule_retry(error)
            return
        self._websocket = websocket
        self._awaits_write = False
        self._path = websocket.fileno()
        self._poll.register(self._path, _READABLE)
        self.session.records.path_opened(time.monotonic())

    def _resumed(self) -> None:
        # Only now: a relay that takes the WebSocket while the host is away is no success.
        self._failures = 0
        if self._told:
            self._told = False
            self.notice(f"connected to {self.record.name} again")

    @property
    def has_path(self) -> bool:
        return self._websocket is not None

    def close(self) -> None:
        """End the session: the host learns it at once, if a path is there. Harmless when closed."""
        if self._websocket is None:
            return
        # The host should learn that what is still open ends: else it would run on, detached.
        linger_s = GOODBYE_S if self.session.channels else 0.0
        self.session.end()
        try:
            self._flush(time.monotonic())
        except CodexctlError:
            pass
        self._drop_path(linger_s)
