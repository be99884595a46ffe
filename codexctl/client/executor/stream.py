"""One official stream after its handshake: JSON-RPC messages in encrypted records. No I/O.

Every message is JSON behind its length (32 bits, big-endian); that byte stream is cut into records
of at most 60 KiB. Frames that come are put in order within a window, decrypted once and
acknowledged. What is to be sent is appended to `outbox`.

Versions differ in where sequence numbers start: 0, or 1 where 0 means that nothing was received.
The first frame of the executor tells; records of this end count from 0 until `count_from_one`, for
an executor that has ignored what was sent so.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from codexctl.errors import ProtocolError
from codexctl.noise.transport import Transport
from codexctl.wire import relay
from codexctl.wire.relay import Buffer

RECORD_BYTES = 60 * 1024
MAX_MESSAGE_BYTES = 64 << 20
ACK_RECORDS = 8
AHEAD_RECORDS = 64
AHEAD_BYTES = 1 << 20
_LENGTH = struct.Struct(">I")


class StreamReset(ProtocolError):
    """The executor or the relay ended the stream; `reason` is the frame's own."""

    code = "reset"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream was reset: {reason or 'no reason was given'}")
        self.reason = reason


class ExecutorStream:
    """Both directions of one stream."""

    def __init__(self, stream_id: str, transport: Transport) -> None:
        self.outbox: list[bytes] = []
        self._stream_id = stream_id
        self._prefix = relay.prefix(stream_id)
        self._transport = transport
        self._sent = 0
        self._opening: list[bytes] = []  # ciphertexts sent before anything came
        self._base: int | None = None  # the executor's first sequence number
        self._received = 0
        self._unacked = 0
        self._ahead: dict[int, bytes] = {}
        self._buffer = bytearray()

    def send(self, message: dict[str, Any]) -> None:
        """Encrypt one JSON-RPC message. ProtocolError where it is too long."""
        content = json.dumps(message, separators=(",", ":")).encode()
        if len(content) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message to the executor is over {MAX_MESSAGE_BYTES} bytes")
        content = _LENGTH.pack(len(content)) + content
        for start in range(0, len(content), RECORD_BYTES):
            record = self._transport.encrypt(content[start : start + RECORD_BYTES])
            if self._base is None:
                self._opening.append(record)
            self._put(record)

    def _put(self, record: bytes) -> None:
        self.outbox.append(relay.data_header(self._prefix, self._sent, len(record)) + record)
        self._sent += 1

    def count_from_one(self) -> None:
        """Send again, byte for byte, what was sent before anything came; now counted from 1."""
        self._sent = 1
        for record in self._opening:
            self._put(record)

    def receive(self, message: Buffer) -> list[dict[str, Any]]:
        """One WebSocket message; the JSON-RPC messages that it completes.

        StreamReset and ProtocolError end the stream.
        """
        frame = relay.decode(message)
        if frame.stream_id != self._stream_id:
            return []
        if isinstance(frame.body, relay.Reset):
            raise StreamReset(frame.body.reason)
        if isinstance(frame.body, relay.Handshake):
            raise ProtocolError("the executor began a second handshake on one stream")
        if not isinstance(frame.body, relay.Data):
            return []
        self._record(frame.body.seq, frame.body.payload)
        return self._messages()

    def _record(self, seq: int, payload: Buffer) -> None:
        if self._base is None:
            if seq > 1:
                raise ProtocolError(f"the executor counts its records from {seq}, not from 0 or 1")
            self._base = seq
            self._opening.clear()
        place = seq - self._base
        if place < self._received or place in self._ahead:
            return
        if place > self._received:
            waiting = sum(map(len, self._ahead.values())) + len(payload)
            if place - self._received > AHEAD_RECORDS or waiting > AHEAD_BYTES:
                raise ProtocolError("the relay lost a record of the executor")
            self._ahead[place] = bytes(payload)
            return
        self._buffer += self._transport.decrypt(payload)
        self._received += 1
        while self._received in self._ahead:
            self._buffer += self._transport.decrypt(self._ahead.pop(self._received))
            self._received += 1
        self._unacked += 1
        if self._unacked >= ACK_RECORDS:
            self.acknowledge()

    def acknowledge(self) -> None:
        """Say what has arrived, if anything is new."""
        if self._unacked:
            self._unacked = 0
            # The next one expected where counting starts at 0; the last one where it starts at 1.
            frame = relay.Frame(self._stream_id, relay.ACK, ack=self._received)
            self.outbox.append(relay.encode(frame))

    def _messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if not 0 < size <= MAX_MESSAGE_BYTES:
                raise ProtocolError(f"the executor announced a message of {size} bytes")
            end = at + _LENGTH.size + size
            if len(buffer) < end:
                break
            found.append(_parse(buffer[at + _LENGTH.size : end]))
            at = end
        if at:
            del buffer[:at]
        return found


def _parse(content: bytearray) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("the executor sent what is no JSON-RPC message")
    return value
