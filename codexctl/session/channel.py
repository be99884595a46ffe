"""What a host's handlers see of a channel: read events, write with backpressure, close.

`HostChannel` is the interface; `codexctl.session.serve` implements it over a session, tests over a
pair in memory. Handlers never see frames, credit or records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from codexctl.errors import CodexctlError


class Peer(NamedTuple):
    """The paired device at the other end of a session."""

    device_id: str
    name: str
    scopes: frozenset[str]


class DataReceived(NamedTuple):
    """Bytes of a stream (0 stdin). Call `HostChannel.consumed` when they are dealt with."""

    stream: int
    data: bytes | memoryview


class EofReceived(NamedTuple):
    """No more data will come on this stream."""

    stream: int


class MessageReceived(NamedTuple):
    """A JSON object of the channel's kind."""

    value: dict[str, Any]


ChannelEvent = DataReceived | EofReceived | MessageReceived


class ChannelClosed(Exception):
    """The other side closed the channel, or its session is gone for good."""


class HostChannel(Protocol):
    """One channel as the host's handler of its kind uses it; one task a direction at a time."""

    @property
    def kind(self) -> str: ...
    @property
    def params(self) -> dict[str, Any]:
        """The open frame's object, unchecked: it comes from the device."""
        ...

    @property
    def peer(self) -> Peer: ...

    @property
    def lost(self) -> bool:
        """True once `receive` gave None because the session is gone, not because of a close."""
        ...

    @property
    def unconfirmed(self) -> int:
        """At most so many bytes that `write` has taken may not have reached the device."""
        ...

    async def accept(self, result: dict[str, Any]) -> None:
        """Answer opened. Before it only `close` may be called."""
        ...

    async def receive(self) -> ChannelEvent | None:
        """The next event; None when the device closed the channel or its session ended.

        Cancelling loses no event.
        """
        ...

    def listen(self, listener: Callable[[ChannelEvent | None], None]) -> None:
        """Hand every event to `listener` as it comes, and then None, in place of `receive`.

        For what is too small to be worth waking a task, as a keystroke is.
        """
        ...

    def consumed(self, size: int) -> None:
        """Give the device credit for `size` bytes of data that `receive` has returned."""
        ...

    async def write(self, stream: int, data: bytes | memoryview) -> None:
        """Send all of `data`; waits for credit and for the session's room. ChannelClosed when over.

        A cancelled write may have sent a part.
        """
        ...

    @property
    def room(self) -> int:
        """Bytes that `write` would take without waiting; 0 when the channel is over."""
        ...

    def write_now(self, stream: int, data: bytes) -> None:
        """As `write`, for at most `room` bytes, from where nothing can be awaited."""
        ...

    async def write_eof(self, stream: int) -> None: ...

    async def send(self, value: dict[str, Any]) -> None:
        """Send a message; ordered with data. At most 60 KiB of JSON."""
        ...

    async def close(self, error: CodexctlError | None = None) -> None:
        """End the channel; with an error the device sees its sentence. Harmless when closed."""
        ...
