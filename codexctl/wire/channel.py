"""Channel frames: what stands in a session's records (PROTOCOL.md section 6). No I/O, no state.

for frame in decode_record(plaintext): ...
plaintext = encode_frame(Type.DATA, channel, stream, content)
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

from codexctl.errors import CodexctlError, ProtocolError
from codexctl.wire.relay import Buffer

MAX_RECORD_BYTES = 61440  # of plaintext, the official limit of one record
HEADER = struct.Struct(">BBHI")
HEADER_BYTES = HEADER.size
MAX_CONTENT_BYTES = MAX_RECORD_BYTES - HEADER_BYTES
# Measured: larger data frames cost cache misses, smaller ones Python calls.
DATA_BYTES = 32 * 1024
MAX_CHANNEL = 0xFFFFFFFF

OPEN, OPENED, CLOSE, DATA, EOF, CREDIT, MESSAGE = range(1, 8)
STDIN, STDOUT, STDERR = 0, 1, 2
_LAST_TYPE = MESSAGE
_LAST_STREAM = STDERR

_CREDIT = struct.Struct(">I")


class ChannelFrame(NamedTuple):
    """One channel frame; `content` is a slice of the record it came in."""

    type: int
    channel: int
    stream: int
    content: Buffer


def encode_frame(type: int, channel: int, stream: int = 0, content: Buffer = b"") -> bytes:
    """Header and content; ValueError where the content does not fit a record."""
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError(f"a channel frame holds at most {MAX_CONTENT_BYTES} bytes")
    return HEADER.pack(type, stream, len(content), channel) + bytes(content)


def decode_record(plaintext: Buffer) -> list[ChannelFrame]:
    """All frames of a record, in order. ProtocolError where one is cut, unknown or too long."""
    size = len(plaintext)
    if size > MAX_RECORD_BYTES:
        raise ProtocolError(f"a record is over {MAX_RECORD_BYTES} bytes")
    frames: list[ChannelFrame] = []
    at = 0
    while at < size:
        if size - at < HEADER_BYTES:
            raise ProtocolError("a record ends inside a channel frame's header")
        kind, stream, length, channel = HEADER.unpack_from(plaintext, at)
        at += HEADER_BYTES
        if not OPEN <= kind <= _LAST_TYPE:
            raise ProtocolError(f"a channel frame has the unknown type {kind}")
        if stream > _LAST_STREAM:
            raise ProtocolError(f"a channel frame has the unknown stream {stream}")
        if length > size - at:
            raise ProtocolError("a record is shorter than a channel frame in it says")
        frames.append(ChannelFrame(kind, channel, stream, plaintext[at : at + length]))
        at += length
    return frames


def encode_json(value: dict[str, Any]) -> bytes:
    """The content of open, opened, close and message frames."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def decode_json(content: Buffer) -> dict[str, Any]:
    """The JSON object of a frame; ProtocolError where it is not one, or nested too deep."""
    raw = bytes(content)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise ProtocolError("a channel frame's content is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("a channel frame's content is not a JSON object")
    return value


def encode_credit(amount: int) -> bytes:
    return _CREDIT.pack(amount)


def decode_credit(content: Buffer) -> int:
    if len(content) != _CREDIT.size:
        raise ProtocolError("a credit frame does not have 4 bytes")
    amount: int = _CREDIT.unpack(content)[0]
    return amount


def encode_error(error: CodexctlError) -> bytes:
    """A close frame's content; shortened so that it fits whatever the message is."""
    record = error.as_json()
    return encode_json({**record, "message": error.message[:2000], "hint": error.hint[:2000]})
