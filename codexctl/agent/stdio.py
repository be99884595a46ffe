"""The agent's requests over a pair of pipes instead of a session: for a host reached by SSH alone.

One request at a time. A frame is a type (one byte), a length (four, big-endian) and so many bytes:

    device to host   O {"method", "params", "input"}    D input    E end of input    C done with it
    host to device   A accepted    D output    E end of output    C end: {} or the error's object

The host begins with MARK, before which a login shell may print what it likes. It ends at the end of
its input.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from typing import Any

from codexctl.errors import CodexctlError, ProtocolError
from codexctl.host.context import HostContext
from codexctl.host.policy import SCOPES
from codexctl.session.channel import (
    ChannelClosed,
    ChannelEvent,
    DataReceived,
    EofReceived,
    Peer,
)
from codexctl.wire.channel import decode_json, encode_error, encode_json

MARK = b"\0codexctl agent 1\0"
HEADER = struct.Struct(">cI")
MAX_FRAME_BYTES = 1 << 20
OPEN, ACCEPTED, DATA, EOF, CLOSE = b"O", b"A", b"D", b"E", b"C"


def frame(kind: bytes, content: bytes | memoryview = b"") -> bytes:
    return HEADER.pack(kind, len(content)) + content


def parse_header(header: bytes) -> tuple[bytes, int]:
    """Type and length. ProtocolError for a frame that is too long."""
    kind, size = HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {size} bytes came; at most {MAX_FRAME_BYTES} may")
    return kind, size


class StdioChannel:
    """Implements `codexctl.session.channel.HostChannel` for one request."""

    kind = "agent"
    lost = False
    unconfirmed = 0

    def __init__(
        self,
        params: dict[str, Any],
        peer: Peer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.params = params
        self.peer = peer
        self.done_with = False  # the device has said that it is
        self._reader = reader
        self._writer = writer
        self._closed = False

    async def accept(self, result: dict[str, Any]) -> None:
        await self._put(ACCEPTED, encode_json(result))

    async def receive(self) -> ChannelEvent | None:
        kind, content = await read_frame(self._reader)
        if kind == DATA:
            return DataReceived(0, content)
        if kind == EOF:
            return EofReceived(0)
        self.done_with = True
        return None

    def consumed(self, size: int) -> None:
        """The pipe holds the device up: it is read only when the next event is wanted."""

    async def write(self, stream: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        for at in range(0, len(view), MAX_FRAME_BYTES):
            await self._put(DATA, view[at : at + MAX_FRAME_BYTES])

    async def write_eof(self, stream: int) -> None:
        await self._put(EOF)

    async def send(self, value: dict[str, Any]) -> None:
        raise ProtocolError("requests to the agent have no messages")

    def listen(self, listener: Callable[[ChannelEvent | None], None]) -> None:
        raise ProtocolError("requests to the agent are received, not listened to")

    @property
    def room(self) -> int:
        return 0

    def write_now(self, stream: int, data: bytes) -> None:
        raise ProtocolError("what goes over a pipe is waited for")

    async def close(self, error: CodexctlError | None = None) -> None:
        if not self._closed:
            await self._put(CLOSE, b"{}" if error is None else encode_error(error))
            self._closed = True

    async def _put(self, kind: bytes, content: bytes | memoryview = b"") -> None:
        if self._closed:
            raise ChannelClosed
        try:
            self._writer.write(frame(kind, content))
            await self._writer.drain()
        except ConnectionError:
            raise ChannelClosed from None


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next frame. IncompleteReadError at the end."""
    kind, size = parse_header(await reader.readexactly(HEADER.size))
    return kind, await reader.readexactly(size)


async def serve_stdio(context: HostContext, user: str) -> None:
    """Serve requests on stdin and stdout until stdin ends."""
    from codexctl.agent.service import serve_agent

    peer = Peer("ssh", f"{user} over ssh", frozenset(SCOPES))
    reader, writer = await _pipes()
    async with asyncio.TaskGroup() as tasks:
        agent = tasks.create_task(context.agent.run())
        writer.write(MARK)
        try:
            while True:
                kind, content = await read_frame(reader)
                if kind != OPEN:
                    continue  # what was sent to a request that has ended
                channel = StdioChannel(decode_json(content), peer, reader, writer)
                error: CodexctlError | None = None
                try:
                    await serve_agent(channel, context)
                except ChannelClosed:
                    pass
                except CodexctlError as failure:
                    error = failure
                await channel.close(error)
        except (asyncio.IncompleteReadError, ChannelClosed):
            pass  # the device is gone
        agent.cancel()
    await context.aclose()


async def _pipes() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_FRAME_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop), sys.stdout.buffer
    )
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)
