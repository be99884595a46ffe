"""A `HostChannel` joined in memory to a device's end, with credit, a close and a loss."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from codexctl.errors import CodexctlError
from codexctl.session.channel import (
    ChannelClosed,
    ChannelEvent,
    DataReceived,
    EofReceived,
    MessageReceived,
    Peer,
)

WAIT_S = 20.0
CREDIT_BYTES = 1 << 20
LAPTOP = Peer("d1", "laptop", frozenset({"view", "exec"}))


class MemoryChannel:
    """The host's end; the device's end are the methods below the line."""

    def __init__(
        self,
        kind: str,
        params: dict[str, Any],
        peer: Peer = LAPTOP,
        *,
        credit: int | None = None,
    ) -> None:
        self.kind = kind
        self.params = params
        self.peer = peer
        self.lost = False
        self.unconfirmed = 0
        self.opened: dict[str, Any] | None = None
        self.output: dict[int, bytearray] = {0: bytearray(), 1: bytearray(), 2: bytearray()}
        self.ended_streams: list[int] = []
        self.messages: list[dict[str, Any]] = []
        self.error: CodexctlError | None = None
        self.closed = False
        self.credited = 0
        # None is unlimited; else bytes that the host may still send.
        self.credit = credit
        self._events: deque[ChannelEvent] = deque()
        self._listener: Callable[[ChannelEvent | None], None] | None = None
        self._changed = asyncio.Event()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def accept(self, result: dict[str, Any]) -> None:
        self._check()
        self.opened = result
        self._change()

    async def receive(self) -> ChannelEvent | None:
        while not self._events:
            if self.closed:
                return None
            await self._changed.wait()
        return self._events.popleft()

    def listen(self, listener: Callable[[ChannelEvent | None], None]) -> None:
        while self._events:
            listener(self._events.popleft())
        self._listener = listener
        if self.closed:
            listener(None)

    def _arrived(self, event: ChannelEvent) -> None:
        if self._listener is not None:
            self._listener(event)
        else:
            self._events.append(event)
        self._change()

    def consumed(self, size: int) -> None:
        self.credited += size
        self._change()

    async def write(self, stream: int, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            self._check()
            size = len(left) if self.credit is None else min(self.credit, len(left))
            if size == 0:
                await self._changed.wait()
                continue
            self.output[stream] += left[:size]
            left = left[size:]
            if self.credit is not None:
                self.credit -= size
            self._change()

    @property
    def room(self) -> int:
        if self.closed:
            return 0
        return 1 << 20 if self.credit is None else self.credit

    def write_now(self, stream: int, data: bytes) -> None:
        assert len(data) <= self.room
        self.output[stream] += data
        if self.credit is not None:
            self.credit -= len(data)
        self._change()

    async def write_eof(self, stream: int) -> None:
        self._check()
        self.ended_streams.append(stream)
        self._change()

    async def send(self, value: dict[str, Any]) -> None:
        self._check()
        self.messages.append(value)
        self._change()

    async def close(self, error: CodexctlError | None = None) -> None:
        if not self.closed:
            self.error = error
            self._over()

    def _over(self) -> None:
        first, self.closed = not self.closed, True
        if first and self._listener is not None:
            self._listener(None)
        self._change()

    def _check(self) -> None:
        if self.closed:
            raise ChannelClosed

    # --- the device's end ---

    @property
    def exit(self) -> dict[str, Any] | None:
        return next((m["exit"] for m in self.messages if "exit" in m), None)

    def input(self, data: bytes) -> None:
        self._arrived(DataReceived(0, data))

    def end_input(self) -> None:
        self._arrived(EofReceived(0))

    def message(self, **value: Any) -> None:
        self._arrived(MessageReceived(value))

    def hang_up(self) -> None:
        self._over()

    def lose(self) -> None:
        self.lost = True
        self.hang_up()

    def grant(self, size: int) -> None:
        assert self.credit is not None
        self.credit += size
        self._change()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that this channel's changes bring about."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await self._changed.wait()
