"""The device's end of a WebSocket (RFC 6455) on a non-blocking socket: binary messages, no more.

By hand for two reasons that were measured: every WebSocket library imports asyncio or what costs
as much (a cold `exec` would double), and frames are decrypted out of the buffer they are read into.
What the server may not do (masked frames, fragmented control frames, reserved bits, text) is a
ProtocolError.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

from codexctl import __version__
from codexctl.client.http import MAX_HEAD_BYTES, parse_head
from codexctl.client.sockets import Socket, connect, parse_address
from codexctl.errors import ConnectionFailed, ProtocolError
from codexctl.wire.relay import MAX_MESSAGE_BYTES, Buffer

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_READ_BUFFER_BYTES = 2 * MAX_MESSAGE_BYTES
_MAX_CONTROL_BYTES = 125
# Below this, XOR of two large integers is quick enough; above, the C masker's import pays.
_SLOW_MASK_BYTES = 1 << 20
_BUFFERS_A_CALL = 16
_MASKS_A_CALL = 64
_SMALL_BYTES = 4096  # up to here a copy costs less than a second buffer


class WebSocket:
    """A connected WebSocket. `messages()` yields views that are valid until the next call."""

    def __init__(self, url: str, pin: bytes | None, sock: Socket | None = None) -> None:
        """Connect and upgrade (blocking, bounded). ConnectionFailed or AuthenticationFailed.

        `sock` is an open connection to the same server, as an HTTP request before has left it: it
        saves the round trips of another one.
        """
        address = parse_address(url)
        key = base64.b64encode(os.urandom(16))
        self._sock = connect(address, pin) if sock is None else sock
        self.secure = address.secure
        self._buffer = bytearray(_READ_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._fragments: bytearray | None = None
        self._out: deque[memoryview] = deque()
        self._masked_bytes = 0
        self._masks: list[bytes] = []
        self.closed_because = ""
        try:
            self._upgrade(address.target, address.authority, key)
        except OSError as error:
            self._sock.close()
            raise ConnectionFailed(
                f"the relay at {address.authority} did not open a WebSocket: "
                f"{error.strerror or error}"
            ) from error
        except BaseException:
            self._sock.close()
            raise
        self._sock.setblocking(False)

    def _upgrade(self, target: str, authority: str, key: bytes) -> None:
        self._sock.sendall(
            (
                f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key.decode()}\r\n"
                f"Sec-WebSocket-Version: 13\r\nUser-Agent: codexctl/{__version__}\r\n\r\n"
            ).encode("latin-1")
        )
        head_end = -1
        while head_end < 0:
            if self._end > MAX_HEAD_BYTES:
                raise ProtocolError("the relay's answer has a head without end")
            size = self._sock.recv_into(self._view[self._end :])
            if size == 0:
                raise OSError("it closed the connection")
            self._end += size
            head_end = self._buffer.find(b"\r\n\r\n", 0, self._end)
        status, headers = parse_head(bytes(self._view[:head_end]))
        self._start = head_end + 4
        if status != 101:
            raise ConnectionFailed(
                f"the relay refused a WebSocket with HTTP status {status}",
                hint="a reverse proxy in between must pass WebSocket upgrades on",
            )
        expected = base64.b64encode(
            hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
        ).decode()
        if headers.get("sec-websocket-accept") != expected:
            raise ProtocolError("what answers there does not speak WebSocket")

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- sending ---

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def send(self, message: Buffer) -> None:
        """Queue one binary message; `write` puts it on the socket."""
        self._queue(_BINARY, message)

    def _queue(self, opcode: int, payload: Buffer) -> None:
        size = len(payload)
        mask = self._new_mask()
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 65536:
            head = struct.pack(">BBH", 0x80 | opcode, 0xFE, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0xFF, size)
        if size < _SMALL_BYTES:
            self._out.append(memoryview(head + mask + self._mask(payload, mask)))
        else:
            self._out.append(memoryview(head + mask))
            self._out.append(memoryview(self._mask(payload, mask)))

    def _new_mask(self) -> bytes:
        """Four unpredictable bytes (RFC 6455 section 5.3); asked of the system in stocks."""
        if not self._masks:
            stock = os.urandom(4 * _MASKS_A_CALL)
            self._masks = [stock[at : at + 4] for at in range(0, len(stock), 4)]
        return self._masks.pop()

    def _mask(self, payload: Buffer, mask: bytes) -> bytes:
        size = len(payload)
        if self._masked_bytes < _SLOW_MASK_BYTES:
            self._masked_bytes += size
            repeated = (mask * (size // 4 + 1))[:size]
            number = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
            return number.to_bytes(size, "little")
        try:
            from websockets.speedups import apply_mask
        except ImportError:  # a platform without a compiled wheel
            from websockets.utils import apply_mask

        return apply_mask(payload, mask)

    def write(self) -> None:
        """Write what the socket takes. OSError where the connection is gone."""
        out = self._out
        while out:
            try:
                sent = self._send(out)
            except OSError as error:
                if _would_block(error):
                    return
                raise
            while sent and sent >= len(out[0]):
                sent -= len(out.popleft())
            if sent:
                out[0] = out[0][sent:]

    def _send(self, out: deque[memoryview]) -> int:
        if self.secure:
            return self._sock.send(out[0])
        if len(out) == 1:
            return self._sock.send(out[0])
        # One system call for what has gathered; TLS has no such call.
        return self._sock.sendmsg(islice(out, _BUFFERS_A_CALL))

    # --- receiving ---

    def read(self) -> bool:
        """Read once what is there. False at the end of the stream; OSError when it broke."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._buffer):
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        try:
            size = self._sock.recv_into(self._view[self._end :])
        except OSError as error:
            if _would_block(error):
                return True
            raise
        self._end += size
        return size > 0

    @property
    def pending(self) -> bool:
        """Whether TLS holds bytes that no poll would announce."""
        return self.secure and bool(self._sock.pending())  # type: ignore[attr-defined]  # SSLSocket

    def messages(self) -> Iterator[Buffer]:
        """The whole binary messages read so far. ProtocolError ends the connection's use."""
        while not self.closed_because:
            frame = self._next_frame()
            if frame is None:
                return
            first, payload = frame
            opcode, final = first & 0x0F, bool(first & 0x80)
            if first & 0x70 or (opcode >= _CLOSE and (not final or len(payload) > 125)):
                raise ProtocolError("the relay broke the WebSocket protocol")
            if opcode == _BINARY and final and self._fragments is None:
                yield payload
            elif opcode == _PING:
                self._queue(_PONG, bytes(payload))
            elif opcode == _CLOSE:
                self.closed_because = _close_reason(bytes(payload))
            elif opcode in (_BINARY, _CONTINUATION):
                whole = self._gather(opcode, final, payload)
                if whole is not None:
                    yield whole
            elif opcode != _PONG:
                raise ProtocolError("the relay sent a WebSocket message that is not binary")

    def _next_frame(self) -> tuple[int, memoryview] | None:
        start, available = self._start, self._end - self._start
        if available < 2:
            return None
        first, second = self._buffer[start], self._buffer[start + 1]
        if second & 0x80:
            raise ProtocolError("the relay sent a masked WebSocket frame")
        size, header = second, 2
        if second == 126:
            header = 4
        elif second == 127:
            header = 10
        if available < header:
            return None
        if header > 2:
            size = int.from_bytes(self._view[start + 2 : start + header], "big")
        if size > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"the relay sent a message of over {MAX_MESSAGE_BYTES} bytes")
        if available < header + size:
            return None
        self._start = start + header + size
        return first, self._view[start + header : self._start]

    def _gather(self, opcode: int, final: bool, payload: memoryview) -> bytes | None:
        if (self._fragments is None) != (opcode == _BINARY):
            raise ProtocolError("the relay broke the WebSocket protocol")
        gathered = (self._fragments or bytearray()) + payload
        if len(gathered) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"the relay sent a message of over {MAX_MESSAGE_BYTES} bytes")
        self._fragments = None if final else gathered
        return bytes(gathered) if final else None

    def close(self, *, linger_s: float = 0.0) -> None:
        """Say goodbye and close. Harmless when closed.

        Closing a socket that still has bytes to read resets the connection, and what was sent last
        may be lost with it: `linger_s` is how long to read and discard until the relay has closed.
        """
        if self._sock.fileno() < 0:
            return
        try:
            if not self.closed_because:
                self._queue(_CLOSE, struct.pack(">H", 1000))
            if linger_s:
                self._sock.settimeout(linger_s)
            self.write()
            self._sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + linger_s
            while linger_s and time.monotonic() < deadline and self._sock.recv_into(self._view):
                pass
        except OSError:
            pass
        self._sock.close()


def _close_reason(payload: bytes) -> str:
    code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
    text = payload[2:].decode("utf-8", "replace")
    return f"{code} {text}".strip()


def _would_block(error: OSError) -> bool:
    # TLS has names of its own for it; ssl is not imported for a relay on loopback.
    return isinstance(error, BlockingIOError) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )
