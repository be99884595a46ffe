"""RelayMessageFrame: the protobuf message that each relay WebSocket message carries.

PROTOCOL.md section 1 is the description, vectors.json has examples; both ends and the relay use
this one codec. It is written by hand because the generated code costs an import and two copies a
frame (the tests hold it against protobuf's own parser).

    frame = decode(message)                    # raises ProtocolError, never anything else
    message = encode_data(stream_id, seq, ciphertext)
"""

from __future__ import annotations

from typing import NamedTuple

from codexctl.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

VERSION = 1
MAX_MESSAGE_BYTES = 256 * 1024  # of one WebSocket message, the official limit
MAX_STREAM_ID_BYTES = 128
MAX_RESET_REASON_BYTES = 256
MAX_HANDSHAKE_BYTES = 65535  # a Noise message
MAX_PAYLOAD_BYTES = 65535
MAX_UINT32 = 0xFFFFFFFF
MAX_FIELDS = 32  # of one message, nested ones counted apart


class Data(NamedTuple):
    """One Noise transport message; `seq` counts from 0 in each direction of a stream."""

    seq: int
    payload: Buffer
    segment_index: int = 0
    segment_count: int = 1


class Ack(NamedTuple):
    """Nothing but the frame's own `ack` and `ack_bits`."""


class Resume(NamedTuple):
    """The sender expects `next_seq` next: everything before it has arrived."""

    next_seq: int


class Reset(NamedTuple):
    """The stream is over, for `reason`."""

    reason: str


class Heartbeat(NamedTuple):
    """Nothing; it shows that the path lives."""


class Handshake(NamedTuple):
    """One handshake message."""

    payload: Buffer


Body = Data | Ack | Resume | Reset | Heartbeat | Handshake


class Frame(NamedTuple):
    """A decoded RelayMessageFrame. `ack` is the next sequence number its sender expects."""

    stream_id: str
    body: Body
    ack: int = 0
    ack_bits: int = 0


ACK = Ack()
HEARTBEAT = Heartbeat()

# Field numbers of RelayMessageFrame, and its `oneof body`.
_VERSION, _STREAM_ID, _ACK_FIELD, _ACK_BITS = 1, 2, 3, 4
_DATA, _ACK_BODY, _RESUME, _RESET, _HEARTBEAT_BODY, _HANDSHAKE = 5, 6, 7, 8, 9, 10
_BODIES = range(_DATA, _HANDSHAKE + 1)

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_SMALL = [bytes((value,)) for value in range(0x80)]


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    if at < end and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    while True:
        if at >= end:
            raise ProtocolError("a relay frame ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ProtocolError("a relay frame holds a number of more than ten bytes")


def _fields(data: Buffer, at: int, end: int) -> list[tuple[int, int, int, int]]:
    """The fields between `at` and `end` as (number, wire type, value or start, end)."""
    out: list[tuple[int, int, int, int]] = []
    while at < end:
        key, at = _read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        if number == 0 or key > MAX_UINT32:
            raise ProtocolError("a relay frame has an impossible field number")
        if kind == _VARINT:
            value, at = _read_varint(data, at, end)
            out.append((number, kind, value, at))
        elif kind == _LENGTH_DELIMITED:
            size, at = _read_varint(data, at, end)
            if size > end - at:
                raise ProtocolError("a relay frame is shorter than a field in it says")
            out.append((number, kind, at, at + size))
            at += size
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            if size > end - at:
                raise ProtocolError("a relay frame is shorter than a field in it says")
            out.append((number, kind, at, at + size))
            at += size
        else:
            raise ProtocolError("a relay frame has a field of an unknown type")
        if len(out) > MAX_FIELDS:
            raise ProtocolError(f"a relay frame has more than {MAX_FIELDS} fields")
    return out


def _expect(kind: int, wanted: int, name: str) -> None:
    if kind != wanted:
        raise ProtocolError(f"field {name} of a relay frame has the wrong type")


def _uint32(value: int, name: str) -> int:
    if value > MAX_UINT32:
        raise ProtocolError(f"field {name} of a relay frame is over 32 bits")
    return value


def _text(data: Buffer, start: int, end: int, limit: int, name: str) -> str:
    if end - start > limit:
        raise ProtocolError(f"field {name} of a relay frame is over {limit} bytes")
    try:
        return str(data[start:end], "utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"field {name} of a relay frame is not UTF-8") from None


def decode(data: Buffer) -> Frame:
    """Parse one WebSocket message; payloads are slices of `data` (a memoryview stays one).

    Unknown fields are skipped, as protobuf asks; a message without version 1, without a stream id
    or without exactly one body is refused with ProtocolError.
    """
    size = len(data)
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a relay frame is over {MAX_MESSAGE_BYTES} bytes")
    version = ack = ack_bits = 0
    stream_id = ""
    body: Body | None = None
    for number, kind, value, end in _fields(data, 0, size):
        if number == _VERSION:
            _expect(kind, _VARINT, "version")
            version = value
        elif number == _STREAM_ID:
            _expect(kind, _LENGTH_DELIMITED, "stream_id")
            if stream_id:
                # The relay routes by the first one; protobuf's last one would be another stream.
                raise ProtocolError("a relay frame has two stream ids")
            stream_id = _text(data, value, end, MAX_STREAM_ID_BYTES, "stream_id")
        elif number == _ACK_FIELD:
            _expect(kind, _VARINT, "ack")
            ack = _uint32(value, "ack")
        elif number == _ACK_BITS:
            _expect(kind, _VARINT, "ack_bits")
            ack_bits = _uint32(value, "ack_bits")
        elif number in _BODIES:
            _expect(kind, _LENGTH_DELIMITED, "body")
            if body is not None:
                raise ProtocolError("a relay frame has two bodies")
            body = _decode_body(number, data, value, end)
    if version != VERSION:
        raise ProtocolError(f"a relay frame has version {version}, not {VERSION}")
    if not stream_id:
        raise ProtocolError("a relay frame has no stream id")
    if body is None:
        raise ProtocolError("a relay frame has no body")
    return Frame(stream_id, body, ack, ack_bits)


def _decode_body(number: int, data: Buffer, start: int, end: int) -> Body:
    if number == _DATA:
        return _decode_data(data, start, end)
    if number == _HANDSHAKE:
        payload = _payload(data, start, end, 1, MAX_HANDSHAKE_BYTES)
        return Handshake(payload)
    if number == _RESUME:
        next_seq = 0
        for field, kind, value, _ in _fields(data, start, end):
            if field == 1:
                _expect(kind, _VARINT, "resume.next_seq")
                next_seq = _uint32(value, "resume.next_seq")
        return Resume(next_seq)
    if number == _RESET:
        reason = ""
        for field, kind, value, stop in _fields(data, start, end):
            if field == 1:
                _expect(kind, _LENGTH_DELIMITED, "reset.reason")
                reason = _text(data, value, stop, MAX_RESET_REASON_BYTES, "reset.reason")
        return Reset(reason)
    _fields(data, start, end)
    return ACK if number == _ACK_BODY else HEARTBEAT


def _decode_data(data: Buffer, start: int, end: int) -> Data:
    """A data body; fields in any order, as protobuf allows."""
    seq = index = 0
    count = 0
    payload: Buffer = b""
    for field, kind, value, stop in _fields(data, start, end):
        if field == 1:
            _expect(kind, _VARINT, "data.seq")
            seq = _uint32(value, "data.seq")
        elif field == 2:
            _expect(kind, _VARINT, "data.segment_index")
            index = _uint32(value, "data.segment_index")
        elif field == 3:
            _expect(kind, _VARINT, "data.segment_count")
            count = _uint32(value, "data.segment_count")
        elif field == 4:
            _expect(kind, _LENGTH_DELIMITED, "data.payload")
            if stop - value > MAX_PAYLOAD_BYTES:
                raise ProtocolError(f"a relay frame's payload is over {MAX_PAYLOAD_BYTES} bytes")
            payload = data[value:stop]
    if index != 0 or count != 1:
        raise ProtocolError("a relay frame is segmented, which no end of this protocol does")
    return Data(seq, payload)


def decode_data(message: Buffer, start: int) -> Data:
    """The body of a data frame that begins as `prefix` and the data field's key do, up to `start`.

    The hot path of both ends: no ack before the body and no field behind it, as every codexctl end
    sends them. What is not exactly so goes the long way through `decode`.
    """
    size = len(message)
    if size > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a relay frame is over {MAX_MESSAGE_BYTES} bytes")
    length, at = _read_varint(message, start, size)
    if length != size - at:
        body = decode(message).body
        if not isinstance(body, Data):
            raise ProtocolError("a relay frame has two bodies")
        return body
    body_start, seq = at, 0
    if at < size and message[at] == 0x08:
        seq, at = _read_varint(message, at + 1, size)
    if message[at : at + 3] == b"\x18\x01\x22":
        length, at = _read_varint(message, at + 3, size)
        if length == size - at and length <= MAX_PAYLOAD_BYTES and seq <= MAX_UINT32:
            return Data(seq, message[at:])
    return _decode_data(message, body_start, size)


def _payload(data: Buffer, start: int, end: int, number: int, limit: int) -> Buffer:
    payload: Buffer = b""
    for field, kind, value, stop in _fields(data, start, end):
        if field == number:
            _expect(kind, _LENGTH_DELIMITED, "payload")
            if stop - value > limit:
                raise ProtocolError(f"a relay frame's payload is over {limit} bytes")
            payload = data[value:stop]
    return payload


def peek_stream_id(data: Buffer) -> bytes:
    """The stream id of a message, for routing; looks at nothing behind it where it stands first.

    Every known sender writes version and stream id first. Other orders take the long way.
    """
    if len(data) > 4 and data[0] == 0x08 and data[1] == VERSION and data[2] == 0x12:
        size = data[3]
        if 0 < size <= min(MAX_STREAM_ID_BYTES, 0x7F) and len(data) >= 4 + size:
            return bytes(data[4 : 4 + size])
    return decode(data).stream_id.encode()


def prefix(stream_id: str) -> bytes:
    """Version and stream id as every frame of one stream begins; made once a stream."""
    raw = stream_id.encode()
    if not raw or len(raw) > MAX_STREAM_ID_BYTES:
        raise ValueError("a stream id has 1 to 128 bytes")
    return b"\x08\x01\x12" + _varint(len(raw)) + raw


def _tail(ack: int, ack_bits: int) -> bytes:
    out = b""
    if ack:
        out += b"\x18" + _varint(ack)
    if ack_bits:
        out += b"\x20" + _varint(ack_bits)
    return out


def data_header(stream_prefix: bytes, seq: int, payload_size: int) -> bytes:
    """All of a data frame that stands before its payload; the payload's bytes follow and end it.

    The frame carries no ack of its own: kept bytes are resent as they are, and an old ack in them
    would say less than the receiver knows. Acks travel in ack frames.
    """
    inner = (b"\x08" + _varint(seq) if seq else b"") + b"\x18\x01\x22" + _varint(payload_size)
    return stream_prefix + b"\x2a" + _varint(len(inner) + payload_size) + inner


def encode(frame: Frame) -> bytes:
    """The bytes of one WebSocket message."""
    body = frame.body
    head = prefix(frame.stream_id) + _tail(frame.ack, frame.ack_bits)
    if isinstance(body, Data):
        return data_header(head, body.seq, len(body.payload)) + bytes(body.payload)
    if isinstance(body, Handshake):
        inner = b"\x0a" + _varint(len(body.payload)) + bytes(body.payload)
        number = _HANDSHAKE
    elif isinstance(body, Resume):
        inner = b"\x08" + _varint(body.next_seq) if body.next_seq else b""
        number = _RESUME
    elif isinstance(body, Reset):
        raw = body.reason.encode()[:MAX_RESET_REASON_BYTES].decode(errors="ignore").encode()
        inner = b"\x0a" + _varint(len(raw)) + raw if raw else b""
        number = _RESET
    else:
        inner = b""
        number = _ACK_BODY if isinstance(body, Ack) else _HEARTBEAT_BODY
    return head + _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(inner)) + inner
