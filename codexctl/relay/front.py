"""The front door: HTTP/1.1 by h11, and the hand-over of upgrades to picows, on one port.

A connection starts here. Calls are answered and the connection kept; a request to upgrade that
carries a good ticket gets its transport a new protocol, picows' own, which is fed a plain upgrade
request in place of the original: what a browser or proxy put around it has been checked here.
From then on not a byte of that connection passes through this module.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import h11
from picows.picows import (  # type: ignore[attr-defined]  # its stub leaves WSProtocol out
    WSAutoPingStrategy,
    WSProtocol,
)

from codexctl.relay.calls import Answer, Failure, Request
from codexctl.relay.limits import (
    HEAD_TIMEOUT_S,
    KEEPALIVE_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    READ_BYTES,
    STALLED_S,
)
from codexctl.wire.relay import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from codexctl.relay.link import Link
    from codexctl.relay.server import RelayServer

_KEY = re.compile(r"[A-Za-z0-9+/]{22}==", re.ASCII)  # 16 bytes

# picows tells about every frame that breaks a rule of RFC 6455; the handler that a running relay
# adds decides what of it is kept.
picows_log = logging.getLogger("codexctl.relay.picows")
picows_log.addHandler(logging.NullHandler())
picows_log.propagate = False
picows_log.setLevel(logging.ERROR)
# An adapter, because picows makes a child logger a connection of a plain one.
_QUIET = logging.LoggerAdapter(picows_log)


class _Socket(WSProtocol):  # type: ignore[misc]  # picows types WSProtocol as Any
    """picows' protocol, reading at most READ_BYTES at a time.

    Without it the buffer of a connection grows to what the kernel holds, several MiB.
    """

    __slots__ = ()

    def get_buffer(self, hint: int) -> memoryview:
        view: memoryview = super().get_buffer(hint)
        return view[:READ_BYTES]


class Front(asyncio.Protocol):
    """One connection until it is closed or has become a WebSocket."""

    __slots__ = ("_body", "_http", "_paused", "_request", "_server", "_timer", "_transport")

    _transport: asyncio.Transport

    def __init__(self, server: RelayServer) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # aiofastnet's transport has all of asyncio's methods without deriving from it.
        self._transport = cast(asyncio.Transport, transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connected = transport.get_extra_info("socket")
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALLED_S * 1000))
        if self._server.front_opened(self):
            self._wait(HEAD_TIMEOUT_S)
        else:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        self._server.front_closed(self)

    def pause_writing(self) -> None:
        # Who sends calls and reads no answers is not read from, nor answered further.
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._go_on()

    def data_received(self, data: bytes) -> None:
        self._http.receive_data(data)
        self._go_on()

    def abort(self) -> None:
        """Make room for others."""
        self._transport.abort()

    # Inside

    def _go_on(self) -> None:
        try:
            self._advance()
        except h11.RemoteProtocolError as error:
            self._server.count("bad_requests")
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._refuse(error.error_status_hint, "this is not an HTTP request")
            else:
                self._transport.abort()

    def _advance(self) -> None:
        while not self._paused and not self._transport.is_closing():
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            if isinstance(event, h11.Request):
                self._request = event
                self._body.clear()
                self._wait(HEAD_TIMEOUT_S)
                if self._http.they_are_waiting_for_100_continue:
                    going_on = h11.InformationalResponse(status_code=100, headers=[])
                    self._transport.write(self._http.send(going_on) or b"")
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY_BYTES:
                    self._refuse(413, f"the body is over {MAX_BODY_BYTES} bytes")
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._finish()
                if self._http.our_state is h11.SWITCHED_PROTOCOL:
                    return
            else:
                self._transport.close()
                return

    def _finish(self) -> None:
        """A whole request is here: answer it."""
        request = self._request
        assert request is not None
        headers: dict[str, str] = {}
        for name, value in request.headers:
            headers[name.decode()] = value.decode("latin-1")
        method = "GET" if request.method == b"HEAD" else request.method.decode()
        call = Request(method, request.target.decode("latin-1"), headers, bytes(self._body))
        if _is_websocket(call):
            self._upgrade(call)
            return
        page = self._server.page(call, self._peer())
        if page is not None:
            self._send(page[0], page[1], page[2])
        else:
            self._answer(self._server.call(call, self._peer()))
        if self._http.our_state is h11.MUST_CLOSE:
            self._transport.close()
        elif not self._transport.is_closing():
            self._http.start_next_cycle()
            self._wait(KEEPALIVE_TIMEOUT_S)

    def _upgrade(self, call: Request) -> None:
        key = call.headers.get("sec-websocket-key", "")
        if call.headers.get("sec-websocket-version") != "13" or not _KEY.fullmatch(key):
            self._refuse(400, "this is not a WebSocket request of version 13")
            return
        try:
            link = self._server.link_for(call)
        except Failure as failure:
            self._answer(failure.answer)
            self._transport.close()
            return
        tail, _ = self._http.trailing_data
        self._stop_waiting()
        self._server.front_closed(self)
        self._http.send(h11.InformationalResponse(status_code=101, headers=[]))
        become_websocket(self._transport, link, key, tail)

    def _refuse(self, status: int, message: str) -> None:
        self._answer(Failure(status, "bad-request", message).answer, close=True)
        self._transport.close()

    def _answer(self, answer: Answer, *, close: bool = False) -> None:
        body = b"" if answer.body is None else json.dumps(answer.body).encode() + b"\n"
        extra = [("retry-after", str(answer.retry_after_s))] if answer.retry_after_s else []
        if close:
            extra.append(("connection", "close"))
        self._send(answer.status, "application/json" if body else "", body, extra)

    def _send(
        self, status: int, kind: str, body: bytes, extra: list[tuple[str, str]] | None = None
    ) -> None:
        headers = [("cache-control", "no-store"), ("x-content-type-options", "nosniff")]
        if kind:
            headers.append(("content-type", kind))
        if status != 204:
            headers.append(("content-length", str(len(body))))
        if status == 401:
            headers.append(("www-authenticate", "Bearer"))
        if kind.startswith("text/html"):
            headers.append(
                ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'")
            )
            headers.append(("referrer-policy", "no-referrer"))
        reason = HTTPStatus(status).phrase.encode()
        response = h11.Response(status_code=status, headers=headers + (extra or []), reason=reason)
        out = self._http.send(response) or b""
        if body and (self._request is None or self._request.method != b"HEAD"):
            out += self._http.send(h11.Data(data=body)) or b""
        out += self._http.send(h11.EndOfMessage()) or b""
        self._transport.write(out)

    def _peer(self) -> str:
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    def _wait(self, seconds: float) -> None:
        """Close the connection unless the next step is done in time."""
        self._stop_waiting()
        self._timer = self._server.loop.call_later(seconds, self._timed_out)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timed_out(self) -> None:
        self._server.count("timeouts")
        self._transport.abort()


def become_websocket(transport: asyncio.Transport, link: Link, key: str, tail: bytes) -> None:
    """Hand a connection over to picows; `tail` is what came behind the upgrade request."""
    protocol = _Socket(
        None,
        None,
        False,  # server side
        lambda request: link,
        _QUIET,
        True,
        None,  # the handshake is complete in this very call
        False,
        10.0,
        10.0,
        WSAutoPingStrategy.PING_WHEN_IDLE,
        False,  # Link answers pings, unless its socket is congested
        MAX_MESSAGE_BYTES,
        None,
        2048,  # picows' least; it grows with what arrives
    )
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    head = (
        "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    )
    rest = memoryview(head.encode("latin-1") + tail)
    while rest and not transport.is_closing():
        room = protocol.get_buffer(-1)
        size = min(len(room), len(rest))
        room[:size] = rest[:size]
        protocol.buffer_updated(size)
        rest = rest[size:]


def _is_websocket(call: Request) -> bool:
    upgrade = call.headers.get("upgrade", "").lower()
    connection = call.headers.get("connection", "").lower().split(",")
    return (
        call.method == "GET"
        and upgrade == "websocket"
        and "upgrade" in (word.strip() for word in connection)
    )
