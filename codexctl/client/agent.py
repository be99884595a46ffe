"""Requests to the agent of a host: JSON lines back, or raw bytes (PROTOCOL.md section 8).

    threads = call(connection, "thread.list", {"limit": 20})
    for event in stream(connection, "thread.watch", {"thread": "01a1", "follow": True}): …
    for piece in read_bytes(connection, "thread.diff", {"thread": "01a1"}): …

Nothing is read ahead of who consumes it: the host waits.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

from codexctl.client.connection import Channel, ChannelHandler, Connection
from codexctl.errors import CodexctlError, ProtocolError

INPUT = 0
OUTPUT = 1
MAX_LINE_BYTES = 80 << 20  # the host's own bound of an event is below it
MAX_PARAMS_BYTES = 32 * 1024  # a text that is longer goes as input


class _Reply(ChannelHandler):
    """What comes back of one request, and what goes as its input."""

    def __init__(self, input: bytes) -> None:
        self.channel: Channel | None = None
        self.pieces: deque[bytes] = deque()
        self.over = False
        self.error: CodexctlError | None = None
        self._input = memoryview(input)
        self._ended = False

    def opened(self, result: dict[str, Any]) -> None:
        self.writable()

    def writable(self) -> None:
        """Send what is left of the input, as far as the host takes it."""
        channel = self.channel
        if channel is None or self._ended:
            return
        while self._input:
            taken = channel.write(INPUT, self._input)
            if not taken:
                channel.waiting = True
                return
            self._input = self._input[taken:]
        self._ended = True
        channel.write_eof(INPUT)

    def data(self, stream: int, data: memoryview) -> None:
        self.pieces.append(bytes(data))

    def closed(self, error: CodexctlError | None) -> None:
        self.over, self.error = True, error


def read_bytes(
    connection: Connection, method: str, params: dict[str, Any], *, input: bytes = b""
) -> Iterator[bytes]:
    """The raw result, piece by piece; the host's error is raised when it comes.

    Leaving the iterator early ends the request. `input` is what the method reads besides params.
    """
    reply = _Reply(input)
    opening: dict[str, Any] = {"method": method, "params": params}
    if input:
        opening["input"] = True
    channel = reply.channel = connection.channel("agent", opening, reply)
    try:
        while True:
            connection.run(lambda: bool(reply.pieces) or reply.over)
            while reply.pieces:
                piece = reply.pieces.popleft()
                yield piece
                channel.consumed(len(piece))
            if reply.over:
                if reply.error is not None:
                    raise reply.error
                return
    finally:
        if channel.is_open:
            channel.close()


def stream(
    connection: Connection, method: str, params: dict[str, Any], *, input: bytes = b""
) -> Iterator[dict[str, Any]]:
    """The lines of the result as they come. ProtocolError where they are none."""
    rest = bytearray()
    for piece in read_bytes(connection, method, params, input=input):
        rest += piece
        end = rest.rfind(b"\n", len(rest) - len(piece))
        if end < 0:
            if len(rest) > MAX_LINE_BYTES:
                raise ProtocolError(f"the host sent a line of more than {MAX_LINE_BYTES} bytes")
            continue
        lines = bytes(memoryview(rest)[:end]).split(b"\n")
        del rest[: end + 1]
        for line in lines:
            yield _parse(line)
    if rest:
        raise ProtocolError("the host's answer was cut short")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("the host sent a line that is no JSON object")
    return value


def call(
    connection: Connection, method: str, params: dict[str, Any] | None = None, *, input: bytes = b""
) -> list[dict[str, Any]]:
    """All lines of the result."""
    return list(stream(connection, method, params or {}, input=input))
