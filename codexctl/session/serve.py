"""A host's end of one session on asyncio: handlers get channels, bytes go to the path there is.

`ServedSession` is fed by the host's link to the relay (`receive`, `path_opened`, `path_lost`) and
writes to the path that the link gave it. Each channel that the device opens is one task of the
session's own group; they end with the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from codexctl.errors import CodexctlError, Refused
from codexctl.session import core
from codexctl.session.channel import (
    ChannelClosed,
    ChannelEvent,
    DataReceived,
    EofReceived,
    MessageReceived,
    Peer,
)
from codexctl.session.records import PathFault, SessionOver
from codexctl.wire.relay import Buffer

_log = logging.getLogger(__name__)

Handler = Callable[["ServedChannel"], Awaitable[None]]
ABANDONED_AFTER_S = 600.0  # without a path; PROTOCOL.md section 4


class Path(Protocol):
    """Where messages of a session go now."""

    def send(self, message: Buffer) -> None: ...

    @property
    def congested(self) -> bool: ...


class ServedChannel:
    """Implements `codexctl.session.channel.HostChannel`."""

    __slots__ = ("_closed", "_events", "_listener", "_lost", "_number", "_reader", "_session",
                 "_writer", "kind", "params")  # fmt: skip

    def __init__(self, session: ServedSession, opened: core.Opened) -> None:
        self.kind = opened.kind
        self.params = opened.params
        self._session = session
        self._number = opened.channel
        # Bounded by the credit that the device was given, and by small control frames.
        self._events: deque[ChannelEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._listener: Callable[[ChannelEvent | None], None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._closed = False
        self._lost = False

    @property
    def peer(self) -> Peer:
        return self._session.peer

    @property
    def lost(self) -> bool:
        """Whether the session was lost for good, rather than the channel closed by the device."""
        return self._lost

    @property
    def unconfirmed(self) -> int:
        """At most so many bytes that `write` has taken may not have reached the device."""
        return self._session.core.unconfirmed(self._number)

    async def accept(self, result: dict[str, Any]) -> None:
        self._check()
        self._session.core.accept(self._number, result)
        self._session.pump()

    async def receive(self) -> ChannelEvent | None:
        while not self._events:
            if self._closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._events.popleft()

    def listen(self, listener: Callable[[ChannelEvent | None], None]) -> None:
        while self._events:
            listener(self._events.popleft())
        self._listener = listener
        if self._closed:
            listener(None)

    def consumed(self, size: int) -> None:
        if self._session.core.consumed(self._number, size):
            self._session.pump()

    async def write(self, stream: int, data: bytes | memoryview) -> None:
        session = self._session
        while True:
            self._check()
            taken = 0
            if not session.congested:
                taken = session.core.data(self._number, stream, data, session.now())
                session.pump()
            if taken == len(data):
                return
            if taken:
                data = memoryview(data)[taken:]
            else:
                await self._until_writable()

    @property
    def room(self) -> int:
        if self._closed or self._session.congested:
            return 0
        return self._session.core.sendable(self._number)

    def write_now(self, stream: int, data: bytes) -> None:
        self._session.core.data(self._number, stream, data, self._session.now())
        self._session.pump()

    async def _until_writable(self) -> None:
        self._writer = asyncio.get_running_loop().create_future()
        self._session.waiting.add(self)
        try:
            await self._writer
        finally:
            self._session.waiting.discard(self)
            self._writer = None

    async def write_eof(self, stream: int) -> None:
        self._check()
        self._session.core.eof(self._number, stream)
        self._session.pump()

    async def send(self, value: dict[str, Any]) -> None:
        self._check()
        self._session.core.message(self._number, value)
        self._session.pump()

    async def close(self, error: CodexctlError | None = None) -> None:
        self.shut(error)
        self._session.pump()

    def shut(self, error: CodexctlError | None = None) -> None:
        self._session.core.close(self._number, error)
        self._session.forget(self._number)
        self.end(lost=False)

    def _check(self) -> None:
        if self._closed:
            raise ChannelClosed

    # --- called by the session ---

    def arrived(self, event: ChannelEvent) -> None:
        if self._listener is not None:
            self._listener(event)
            return
        self._events.append(event)
        _wake(self._reader)

    def writable(self) -> None:
        _wake(self._writer)

    def end(self, *, lost: bool) -> None:
        first, self._closed = not self._closed, True
        self._lost = self._lost or lost
        if first and self._listener is not None:
            self._listener(None)
        _wake(self._reader)
        _wake(self._writer)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class ServedSession:
    """One device's session. `run` lives as long as it does and owns its channels' tasks."""

    def __init__(
        self,
        session: core.Session,
        peer: Peer,
        handle: Handler,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.core = session
        self.peer = peer
        self.now = loop.time
        self.waiting: set[ServedChannel] = set()
        self._handle = handle
        self._loop = loop
        self._path: Path | None = None
        self._channels: dict[int, ServedChannel] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._over: asyncio.Future[CodexctlError | None] = loop.create_future()
        self.started = loop.time()
        self.alone_since = self.started

    @property
    def congested(self) -> bool:
        path = self._path
        return path is not None and path.congested

    async def run(self) -> CodexctlError | None:
        """Serve until the session is over; returns why, None where the device ended it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                error = await self._over
                for channel in list(self._channels.values()):
                    channel.end(lost=error is not None)
        finally:
            self._stop_timer()
            self._path = None
        return error

    def end(self, error: CodexctlError | None, *, tell: bool = True) -> None:
        """End the session from here, telling the device if a path is there."""
        if tell:
            self.core.end(error)
            self._flush()
        if not self._over.done():
            self._over.set_result(error)

    # --- the path ---

    def path_opened(self, path: Path, *, first: bool) -> None:
        """The device is reachable through `path` from now on."""
        self._path = path
        self.alone_since = 0.0
        if not first:
            self.core.records.path_opened(self.now())
        self.pump()

    def path_lost(self) -> None:
        if self._path is not None:
            self._path = None
            self.alone_since = self.now()
            self.core.records.path_lost()
            self._stop_timer()

    def on_path(self, path: Path) -> bool:
        return self._path is path

    @property
    def has_path(self) -> bool:
        return self._path is not None

    @property
    def unproven(self) -> bool:
        """Whether nothing has shown yet that the device is alive and not a replayed message."""
        return not self.core.records.proven

    def abandoned(self, now: float) -> bool:
        """Whether it has been without a path for too long."""
        return self._path is None and now - self.alone_since >= ABANDONED_AFTER_S

    def uncongested(self) -> None:
        """The path takes more again."""
        for channel in list(self.waiting):
            channel.writable()

    def receive(self, message: Buffer) -> None:
        """One message of this session's stream. PathFault: the link should drop this path."""
        try:
            events = self.core.receive(message, self.now())
        except SessionOver as error:
            self.end(error, tell=False)
            return
        for event in events:
            self._event(event)
        if self.waiting and not self.congested and self.core.records.room > 0:
            self.uncongested()
        self.pump()

    def _event(self, event: core.Event) -> None:
        if isinstance(event, core.DataArrived):
            channel = self._channels.get(event.channel)
            if channel is not None:
                channel.arrived(DataReceived(event.stream, event.data))  # type: ignore[arg-type]  # bytes or a view, never a bytearray
            return
        if isinstance(event, core.SessionClosed):
            self.end(event.error, tell=False)
            return
        if isinstance(event, core.Opened):
            self._opened(event)
            return
        channel = self._channels.get(event.channel)
        if channel is None:
            return
        if isinstance(event, core.EofArrived):
            channel.arrived(EofReceived(event.stream))
        elif isinstance(event, core.MessageArrived):
            channel.arrived(MessageReceived(event.value))
        elif isinstance(event, core.Credited):
            channel.writable()
        elif isinstance(event, core.Closed):
            del self._channels[event.channel]
            channel.end(lost=False)

    def _opened(self, event: core.Opened) -> None:
        channel = ServedChannel(self, event)
        if self._tasks is None or self._over.done():
            self.core.close(event.channel, Refused("the session is ending"))
            return
        self._channels[event.channel] = channel
        self._tasks.create_task(self._serve(channel))

    async def _serve(self, channel: ServedChannel) -> None:
        error: CodexctlError | None = None
        try:
            await self._handle(channel)
        except ChannelClosed:
            pass
        except CodexctlError as failure:
            error = failure
        except Exception:
            # One handler's mistake ends its channel, not the device's other channels.
            _log.exception("the handler of a %s channel failed", channel.kind)
            error = CodexctlError("the host made a mistake; its log has the details")
        channel.shut(error)
        self.pump()

    def forget(self, number: int) -> None:
        self._channels.pop(number, None)

    # --- out ---

    def pump(self) -> None:
        """Put what is pending on the path, and see to the timer."""
        self._flush()
        records = self.core.records
        if self._timer is not None and not records.ack_before(self._timer_at):
            return  # of all that is due only an ack can have become earlier
        due = records.deadline()
        if due is None or self._path is None:
            return
        if self._timer is None or due < self._timer_at - 0.001:
            self._stop_timer()
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._tick)

    def _flush(self) -> None:
        session, path = self.core, self._path
        session.flush(self.now())
        if path is not None and session.outbox:
            for message in session.outbox:
                path.send(message)
            session.outbox.clear()

    def _tick(self) -> None:
        self._timer = None
        try:
            self.core.records.tick(self.now())
        except PathFault:
            self.path_lost()
            return
        self.pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
