"""A session's channels over its records (PROTOCOL.md section 6). No I/O, no clock.

The rules:
- The device opens odd channels, the host even ones; 0 is the session itself.
- Data needs credit, which the receiver gives as its user consumes; control frames do not.
- A channel is forgotten when both sides have closed it; frames for a forgotten one are ignored.
- Frames gather in a record until DATA_BYTES are there or `flush` is called.

Inputs are methods; what happened comes back as events, what is to be written stands in `outbox`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from codexctl.errors import CodexctlError, ProtocolError
from codexctl.noise.transport import Transport
from codexctl.session.records import KEPT_BYTES, Records, SessionOver
from codexctl.wire import channel as wire
from codexctl.wire.relay import Buffer

INITIAL_CREDIT = 1 << 20  # bytes of data each side may send on a new channel
MAX_CREDIT = 16 << 20
MAX_CHANNELS = 256
CREDIT_STEP = 256 << 10  # consumed bytes are given back in steps, not one by one
# A channel whose receiver has dealt with as much as its first credit is a bulk one: it gets more,
# enough for 40 MB/s over 100 ms. One that stalls never costs more than the first credit.
BULK_CREDIT = 3 << 20


class Opened(NamedTuple):
    """The peer opened a channel; answer with `accept` or `close`."""

    channel: int
    kind: str
    params: dict[str, Any]


class Accepted(NamedTuple):
    """The peer accepted a channel that was opened here."""

    channel: int
    result: dict[str, Any]


class DataArrived(NamedTuple):
    """Bytes of a stream; call `consumed` when they are dealt with."""

    channel: int
    stream: int
    data: Buffer


class EofArrived(NamedTuple):
    channel: int
    stream: int


class MessageArrived(NamedTuple):
    channel: int
    value: dict[str, Any]


class Credited(NamedTuple):
    """More data may be sent on this channel."""

    channel: int


class Closed(NamedTuple):
    """The peer closed the channel; `error` is its reason, if any. It is closed here as well."""

    channel: int
    error: CodexctlError | None


class SessionClosed(NamedTuple):
    """The peer ended the session."""

    error: CodexctlError | None


Event = (
    Opened
    | Accepted
    | DataArrived
    | EofArrived
    | MessageArrived
    | Credited
    | Closed
    | SessionClosed
)


class _Channel:
    __slots__ = ("allowed", "consumed", "credit", "local_closed", "remote_closed", "until_bulk")

    def __init__(self) -> None:
        self.credit = INITIAL_CREDIT  # bytes that may be sent
        self.allowed = INITIAL_CREDIT  # bytes that the peer may still send
        self.consumed = 0  # since credit was last given
        self.until_bulk = INITIAL_CREDIT  # to be consumed before it counts as bulk
        self.local_closed = False
        self.remote_closed = False


class RemoteError(CodexctlError):
    """What the other end reported, with its own exit code."""

    code = "remote"

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1, code: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code  # type: ignore[misc]  # decided by the other end, not the class
        self.code = code or "remote"  # type: ignore[misc]  # likewise


def _remote_error(content: Buffer) -> RemoteError | None:
    value = wire.decode_json(content)
    if not value:
        return None
    exit_code = value.get("exit_code")
    return RemoteError(
        str(value.get("message") or "the other end gave no reason")[:2000],
        hint=str(value.get("hint") or "")[:2000],
        exit_code=exit_code if isinstance(exit_code, int) and 0 < exit_code < 256 else 1,
        code=str(value.get("error") or "remote")[:64],
    )


class Session:
    """One end of a session: channels, credit, records. All times are seconds of one clock."""

    def __init__(
        self, stream_id: str, transport: Transport, now: float, *, is_device: bool
    ) -> None:
        self.records = Records(stream_id, transport, now, is_device=is_device)
        # Messages to write to the path, in order; the driver clears it.
        self.outbox: list[Buffer] = self.records.outbox
        self._channels: dict[int, _Channel] = {}
        self._next_channel = 1 if is_device else 2
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.closed = False

    @property
    def channels(self) -> int:
        return len(self._channels)

    # --- sending ---

    def open(self, kind: str, params: dict[str, Any]) -> int:
        """Open a channel and return its number. ProtocolError where too many are open."""
        if len(self._channels) >= MAX_CHANNELS:
            raise ProtocolError(f"a session has at most {MAX_CHANNELS} channels")
        number = self._next_channel
        self._next_channel += 2
        self._channels[number] = _Channel()
        self._put(wire.OPEN, number, 0, wire.encode_json({**params, "kind": kind}))
        return number

    def accept(self, number: int, result: dict[str, Any]) -> None:
        self._put_open(wire.OPENED, number, wire.encode_json(result))

    def message(self, number: int, value: dict[str, Any]) -> None:
        self._put_open(wire.MESSAGE, number, wire.encode_json(value))

    def eof(self, number: int, stream: int) -> None:
        self._put_open(wire.EOF, number, b"", stream)

    def close(self, number: int, error: CodexctlError | None = None) -> None:
        """Close a channel from here; harmless when it is closed."""
        state = self._channels.get(number)
        if state is None or state.local_closed:
            return
        state.local_closed = True
        self._put(wire.CLOSE, number, 0, wire.encode_error(error) if error else b"{}")
        if state.remote_closed:
            del self._channels[number]

    def end(self, error: CodexctlError | None = None) -> None:
        """End the session: tell the peer; nothing may be sent after it."""
        if not self.closed:
            self._put(wire.CLOSE, 0, 0, wire.encode_error(error) if error else b"{}")
            self.closed = True

    def is_open(self, number: int) -> bool:
        state = self._channels.get(number)
        return state is not None and not state.local_closed and not state.remote_closed

    def sendable(self, number: int) -> int:
        """How many bytes of data this channel may send now: credit, and room for kept records."""
        state = self._channels.get(number)
        if state is None or state.local_closed or self.closed:
            return 0
        room = self.records.room - self._pending_bytes
        if state.credit < room:
            room = state.credit
        return room if room > 0 else 0

    def unconfirmed(self, number: int) -> int:
        """At most so many bytes of this channel's data may not have reached the peer."""
        state = self._channels.get(number)
        if state is None:
            return 0
        kept = KEPT_BYTES - self.records.room + self._pending_bytes
        return max(0, min(INITIAL_CREDIT - state.credit, kept))

    def data(self, number: int, stream: int, data: Buffer, now: float) -> int:
        """Send as much of `data` as `sendable` allows; returns how many bytes were taken."""
        size = min(len(data), self.sendable(number))
        if size <= 0:
            return 0
        self._channels[number].credit -= size
        if size <= wire.DATA_BYTES:
            # A copy unless it is bytes already: the caller may reuse its buffer before the flush.
            self._put(wire.DATA, number, stream, bytes(data[:size]))
            if self._pending_bytes >= wire.DATA_BYTES:
                self.flush(now)
            return size
        view = memoryview(data)
        for start in range(0, size, wire.DATA_BYTES):
            stop = min(start + wire.DATA_BYTES, size)
            self._put(wire.DATA, number, stream, view[start:stop])
            self.flush(now)
        return size

    def consumed(self, number: int, size: int) -> bool:
        """Give the peer credit for data that was dealt with, in steps; whether this was one."""
        state = self._channels.get(number)
        if state is None or state.remote_closed or state.local_closed:
            return False
        state.consumed += size
        if state.consumed < CREDIT_STEP:
            return False
        more = 0
        if state.until_bulk > 0:
            state.until_bulk -= state.consumed
            more = BULK_CREDIT if state.until_bulk <= 0 else 0
        self.grant(number, state.consumed + more)
        state.consumed = 0
        return True

    def grant(self, number: int, size: int) -> None:
        """Allow the peer `size` more bytes of data; never more than MAX_CREDIT in all."""
        state = self._channels.get(number)
        if state is None or state.local_closed:
            return
        size = min(size, MAX_CREDIT - state.allowed)
        if size > 0:
            state.allowed += size
            self._put(wire.CREDIT, number, 0, wire.encode_credit(size))

    def _put_open(self, kind: int, number: int, content: bytes, stream: int = 0) -> None:
        state = self._channels.get(number)
        if state is not None and not state.local_closed:
            self._put(kind, number, stream, content)

    def _put(self, kind: int, number: int, stream: int, content: Buffer) -> None:
        if self.closed:
            return
        size = wire.HEADER_BYTES + len(content)
        if size > wire.MAX_RECORD_BYTES:
            raise ProtocolError("a message is too long for one record")
        self._pending.append(wire.HEADER.pack(kind, stream, len(content), number))
        self._pending.append(content)  # type: ignore[arg-type]  # b"".join takes any buffer
        self._pending_bytes += size

    def flush(self, now: float) -> None:
        """Make records of what is pending; call it at the end of each turn."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        size, self._pending_bytes = self._pending_bytes, 0
        if size <= wire.MAX_RECORD_BYTES:
            self.records.send(b"".join(pending), now)
            return
        start = gathered = 0
        for at in range(0, len(pending), 2):
            frame = len(pending[at]) + len(pending[at + 1])
            if gathered + frame > wire.MAX_RECORD_BYTES:
                self.records.send(b"".join(pending[start:at]), now)
                start, gathered = at, 0
            gathered += frame
        self.records.send(b"".join(pending[start:]), now)

    # --- receiving ---

    def receive(self, message: Buffer, now: float) -> list[Event]:
        """Take one message of this stream from the path. PathFault or SessionOver as Records."""
        events: list[Event] = []
        for plaintext in self.records.receive(message, now):
            try:
                self._record(plaintext, events)
            except ProtocolError as error:
                # It was authentic, so the peer itself is wrong; no path cures that.
                raise SessionOver(
                    f"the other end broke the protocol: {error}",
                    hint="update codexctl on both ends",
                ) from error
        return events

    def _record(self, plaintext: bytes, events: list[Event]) -> None:
        for frame in wire.decode_record(memoryview(plaintext)):
            number = frame.channel
            if frame.type == wire.DATA:
                state = self._channels.get(number)
                if state is None or state.remote_closed:
                    continue
                state.allowed -= len(frame.content)
                if state.allowed < 0:
                    raise ProtocolError("more data was sent than credit was given for")
                if not state.local_closed:
                    events.append(DataArrived(number, frame.stream, frame.content))
            elif number == 0:
                if frame.type == wire.CLOSE:
                    self.closed = True
                    events.append(SessionClosed(_remote_error(frame.content)))
            elif frame.type == wire.OPEN:
                events.append(self._peer_opened(number, frame.content))
            else:
                self._control(frame, events)

    def _control(self, frame: wire.ChannelFrame, events: list[Event]) -> None:
        number = frame.channel
        state = self._channels.get(number)
        if state is None or state.remote_closed:
            return
        if frame.type == wire.CLOSE:
            state.remote_closed = True
            if state.local_closed:
                del self._channels[number]
                return
            events.append(Closed(number, _remote_error(frame.content)))
            self.close(number)
        elif frame.type == wire.CREDIT:
            state.credit += wire.decode_credit(frame.content)
            if state.credit > MAX_CREDIT:
                raise ProtocolError(f"credit sums to more than {MAX_CREDIT} bytes")
            events.append(Credited(number))
        elif state.local_closed:
            return
        elif frame.type == wire.OPENED:
            events.append(Accepted(number, wire.decode_json(frame.content)))
        elif frame.type == wire.EOF:
            events.append(EofArrived(number, frame.stream))
        elif frame.type == wire.MESSAGE:
            events.append(MessageArrived(number, wire.decode_json(frame.content)))

    def _peer_opened(self, number: int, content: Buffer) -> Opened:
        if number % 2 == self._next_channel % 2:
            raise ProtocolError("a channel was opened under a number of this end")
        if number in self._channels:
            raise ProtocolError("a channel was opened twice")
        if len(self._channels) >= MAX_CHANNELS:
            raise ProtocolError(f"more than {MAX_CHANNELS} channels were opened")
        params = wire.decode_json(content)
        kind = params.pop("kind", "")
        if not isinstance(kind, str):
            raise ProtocolError("a channel's kind is not a text")
        self._channels[number] = _Channel()
        return Opened(number, kind, params)
