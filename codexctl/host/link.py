"""The host's one WebSocket to its relay: registered, kept alive, replaced for ever.

Whatever arrives goes to the daemon, which knows the sessions. All of them share this path;
`LinkPath` is what a session writes to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from picows import (
    WSAutoPingStrategy,
    WSCloseCode,
    WSError,
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from codexctl.client.registry import Registration, Relay, register
from codexctl.client.sockets import key_hash, tls_context
from codexctl.errors import AuthenticationFailed, ConnectionFailed, ProtocolError
from codexctl.noise.keys import HybridPublic
from codexctl.noise.suites import Suite
from codexctl.wire.relay import MAX_MESSAGE_BYTES, Buffer

PING_AFTER_S = 4.0  # of silence
PONG_WITHIN_S = 4.0  # so a dead relay is found in under 10 s
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 15.0
REPLACED = 4001  # the relay's close code, PROTOCOL.md section 1
WRITE_HIGH_BYTES = 1 << 20  # waiting in the socket's buffer; then sessions wait

_log = logging.getLogger(__name__)


class LinkPath(WSListener):
    """One WebSocket. Sessions compare paths by identity."""

    def __init__(self, link: RelayLink) -> None:
        self._link = link
        self._transport: WSTransport | None = None
        self.congested = False
        self.close_code = 0

    def send(self, message: Buffer) -> None:
        if self._transport is not None:
            self._transport.send(WSMsgType.BINARY, message)

    def on_ws_connected(self, transport: WSTransport) -> None:
        transport.underlying_transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._transport = transport

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY and frame.fin:
            try:
                self._link.on_message(self, frame.get_payload_as_memoryview())
            except ProtocolError as error:
                _log.warning("the relay sent a bad frame: %s", error)
                transport.send_close(WSCloseCode.PROTOCOL_ERROR)
                transport.disconnect()
        elif frame.msg_type == WSMsgType.CLOSE:
            self.close_code = int.from_bytes(frame.get_payload_as_bytes()[:2], "big")
            transport.disconnect()
        elif frame.msg_type not in (WSMsgType.PING, WSMsgType.PONG):
            transport.send_close(WSCloseCode.UNSUPPORTED_DATA)
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._transport = None

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        self._link.on_uncongested(self)

    def disconnect(self) -> None:
        if self._transport is not None:
            self._transport.send_close(WSCloseCode.GOING_AWAY)
            self._transport.disconnect()


class RelayLink:
    """`run()` keeps the link up until cancelled; only AuthenticationFailed ends it before."""

    def __init__(
        self,
        relay: Relay,
        environment_id: str,
        suite: Suite,
        public: HybridPublic,
        *,
        on_message: Callable[[LinkPath, memoryview], None],
        on_uncongested: Callable[[LinkPath], None],
        on_up: Callable[[LinkPath], None],
        on_down: Callable[[LinkPath], None],
    ) -> None:
        self.relay = relay
        self.environment_id = environment_id
        self.registration_id = ""
        self.on_message = on_message
        self.on_uncongested = on_uncongested
        self._suite = suite
        self._public = public
        self._on_up = on_up
        self._on_down = on_down
        self.path: LinkPath | None = None

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                registration = await asyncio.to_thread(
                    register,
                    self.relay,
                    self.environment_id,
                    self._suite,
                    self._public,
                )
                path, transport = await self._connect(registration)
            except AuthenticationFailed:
                raise
            except (ConnectionFailed, WSError, OSError, TimeoutError) as error:
                failures += 1
                delay = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 16))
                _log.warning("no connection to the relay (%s); trying again", error)
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
                continue
            failures = 0
            self.registration_id = registration.registration_id
            self.path = path
            self._on_up(path)
            try:
                await transport.wait_disconnected()
            finally:
                self.path = None
                path.disconnect()
                self._on_down(path)
            if path.close_code == REPLACED:
                raise AuthenticationFailed(
                    "another process has taken this host's place at the relay",
                    hint="it runs with a copy of this CODEXCTL_HOME: end one of the two",
                )
            _log.info("the connection to the relay ended; connecting again")

    async def _connect(self, registration: Registration) -> tuple[LinkPath, WSTransport]:
        self.registration_id = registration.registration_id
        url = registration.url.reveal()
        path = LinkPath(self)
        options: dict[str, Any] = {}
        if url.startswith("wss:"):
            options["ssl_context"] = tls_context(pinned=self.relay.pin is not None)
        transport, _ = await ws_connect(
            lambda: path,
            url,
            max_frame_size=MAX_MESSAGE_BYTES,
            max_redirects=0,
            enable_auto_ping=True,
            auto_ping_idle_timeout=PING_AFTER_S,
            auto_ping_reply_timeout=PONG_WITHIN_S,
            auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
            # Addresses that carry a ticket are not for a log.
            logger_name=logging.getLogger("codexctl.picows.quiet"),
            **options,
        )
        if self.relay.pin is not None and url.startswith("wss:"):
            tls = transport.underlying_transport.get_extra_info("ssl_object")
            if tls is None or key_hash(tls) != self.relay.pin:
                transport.disconnect(False)
                raise AuthenticationFailed("the relay shows another key than the one pinned")
        return path, transport


logging.getLogger("codexctl.picows.quiet").disabled = True
