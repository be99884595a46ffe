"""One WebSocket of the relay: picows underneath, the hot path of every frame here.

A frame of a routed stream costs a lookup of its first 40 bytes (version and stream id, as every
known end writes them), a look at the few bytes behind them, and the send. All else goes the slow
way: through the strict decoder, and to the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from codexctl.errors import ProtocolError
from codexctl.relay.limits import CLOSE_TIMEOUT_S
from codexctl.wire import relay as wire

if TYPE_CHECKING:
    import asyncio

    from codexctl.relay.effects import LinkId
    from codexctl.relay.server import RelayServer

_BINARY: Final = WSMsgType.BINARY
# Version 1, field 2 of 36 bytes, and the 36 bytes of a UUID.
PREFIX_BYTES: Final = 40


def ends_with_body(message: memoryview, at: int) -> bool:
    """Whether from `at` there are ack fields at most, and then one body up to the message's end.

    So nothing hides behind the body: protobuf lets a second stream id overrule the first, and a
    relay that looks at the first alone would deliver it into somebody else's stream.
    """
    size = len(message)
    try:
        tag = message[at]
        while tag == 0x18 or tag == 0x20:  # ack, ack_bits: numbers
            at += 1
            while message[at] >= 0x80:
                at += 1
            at += 1
            tag = message[at]
        if tag & 7 != 2 or not 0x2A <= tag <= 0x52:
            return False
        length = shift = 0
        while True:
            at += 1
            byte = message[at]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                return at + 1 + length == size
            shift += 7
    except IndexError:
        return False


class Link(WSListener):
    """A host's or device's WebSocket. Made for an upgrade, known to the server from then on."""

    __slots__ = (
        "_closing",
        "_partial",
        "_server",
        "_timer",
        "bytes",
        "congested",
        "frames",
        "heard",
        "id",
        "name",
        "paused",
        "routes",
        "silent",
        "transport",
    )

    transport: WSTransport

    def __init__(self, server: RelayServer, link: LinkId, name: str) -> None:
        self._server = server
        self.id = link
        self.name = name  # for the log: role, owner and environment
        self.routes: dict[bytes, Link] = {}  # by the first bytes of a frame
        self.congested = False
        self.heard = True
        self.silent = 0
        self.paused = False
        self.frames = 0
        self.bytes = 0
        self._closing = False
        self._partial: bytearray | None = None
        self._timer: asyncio.TimerHandle | None = None

    # What picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._server.link_opened(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self.heard = True
        if frame.msg_type == _BINARY and frame.fin and self._partial is None:
            message = frame.get_payload_as_memoryview()
            to = self.routes.get(bytes(message[:PREFIX_BYTES]))
            if to is not None and ends_with_body(message, PREFIX_BYTES):
                self.frames += 1
                self.bytes += len(message)
                to.transport.send(_BINARY, message)
                if to.congested:
                    self._server.pressed(self, to)
            else:
                self._frame(message)
        else:
            self._other(frame)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.link_closed(self)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        self._server.relieved(self)

    # What the server calls

    @property
    def queued(self) -> int:
        """Bytes that wait for this link's socket."""
        return self.transport.underlying_transport.get_write_buffer_size()

    def send(self, message: bytes) -> None:
        # A link that does not read gets no notices either: they would queue without bound.
        if not self.congested:
            self.transport.send(_BINARY, message)

    def ping(self) -> None:
        if not self.congested and not self._closing:
            self.transport.send_ping()

    def pause(self) -> None:
        self.paused = True
        self.transport.underlying_transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        self.transport.underlying_transport.resume_reading()

    def close(self, code: int, reason: str) -> None:
        """Say why and wait a little for the answer; frames that still come are dropped."""
        if self._closing:
            return
        self._closing = True
        self.routes.clear()
        self.transport.send_close(cast(WSCloseCode, code), reason.encode()[:120])
        self.resume()
        self._timer = self._server.loop.call_later(CLOSE_TIMEOUT_S, self.abort)

    def abort(self) -> None:
        self._closing = True
        self.routes.clear()
        self.transport.disconnect(False)

    # Inside

    def _frame(self, message: memoryview | bytearray) -> None:
        """A whole message without a route, or of an unusual form."""
        if self._closing:
            return
        try:
            stream = wire.decode(message).stream_id
        except ProtocolError as error:
            self._server.drop(self, 1002, error.message)
            return
        key = wire.prefix(stream)
        to = self.routes.get(key)
        if to is None:
            self._server.unrouted(self, stream.encode())
            to = self.routes.get(key)
            if to is None:
                return
        self.frames += 1
        self.bytes += len(message)
        to.transport.send(_BINARY, message)
        if to.congested:
            self._server.pressed(self, to)

    def _other(self, frame: WSFrame) -> None:
        """Control frames, texts, and messages in fragments."""
        kind = frame.msg_type
        if kind == WSMsgType.PING:
            if not self.congested and not self._closing:
                self.transport.send_pong(frame.get_payload_as_bytes())
        elif kind == WSMsgType.PONG:
            pass
        elif kind == WSMsgType.CLOSE:
            if not self._closing:
                self._closing = True
                code = frame.get_close_code()
                self.transport.send_close(code if int(cast(int, code)) else WSCloseCode.OK)
            self.transport.disconnect()
        elif kind == WSMsgType.TEXT:
            self._server.drop(self, 1003, "relay frames are binary messages")
        else:
            self._fragment(frame, starts=kind == _BINARY)

    def _fragment(self, frame: WSFrame, *, starts: bool) -> None:
        if starts == (self._partial is not None):
            self._server.drop(self, 1002, "a message began inside another")
            return
        if self._partial is None:
            self._partial = bytearray()
        self._partial += frame.get_payload_as_memoryview()
        if len(self._partial) > wire.MAX_MESSAGE_BYTES:
            self._partial = None
            self._server.drop(self, 1009, f"a message is over {wire.MAX_MESSAGE_BYTES} bytes")
        elif frame.fin:
            message, self._partial = self._partial, None
            self._frame(message)
