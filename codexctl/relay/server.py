"""The relay as a server: one port, the core's effects performed, time and signals fed in.

    async with RelayServer(RelayConfig(home=home, listen="127.0.0.1:0")) as relay:
        print(relay.base_url)
        await relay.until_drained()

Everything runs on one event loop (uvloop where speed counts) and nothing of it awaits: a frame is
forwarded within the callback that read it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiofastnet

from codexctl.errors import CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.relay import tls
from codexctl.relay.address import (
    bind,
    check_exposure,
    in_url,
    parse_listen,
    reachable_name,
)
from codexctl.relay.calls import Answer, Failure, Request, unauthorized
from codexctl.relay.core import Rooms
from codexctl.relay.effects import (
    TOKEN_REVOKED,
    Abort,
    Close,
    Effect,
    Pause,
    Resume,
    Route,
    Send,
)
from codexctl.relay.front import Front, picows_log
from codexctl.relay.limits import HEAD_TIMEOUT_S, SILENT_SWEEPS, SWEEP_S, Limits
from codexctl.relay.link import Link
from codexctl.relay.log import DefectHandler, EventLog, NoLog
from codexctl.relay.pages import PAGES, is_local, metrics
from codexctl.relay.registry import Registry, Ticket
from codexctl.relay.store import Store
from codexctl.wire import relay as wire

TICK_S = 1.0  # also the bound within which a revocation by another process takes effect
CLEAN_S = 3600.0
# Frames wait while a write waits for another process, which needs milliseconds if it is well.
LOCK_WAIT_S = 0.2
CERTIFICATE_TICKS = 60
BACKLOG = 1024
# aiofastnet's own default costs half a MiB a TLS connection.
TLS_BUFFER_BYTES = 2 * (16 * 1024 + 64)

_HOST_HEADER = re.compile(
    r"[A-Za-z0-9.-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?", re.ASCII
)


@dataclass(frozen=True)
class RelayConfig:
    """How a relay is reached. Loopback needs no TLS; everything else does, here or in a proxy."""

    home: Home
    listen: str = "127.0.0.1:0"
    public_url: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_self_signed: bool = False
    limits: Limits = field(default_factory=Limits)
    log: EventLog = field(default_factory=NoLog)


class RelayServer:
    """A relay that serves while its `async with` block runs, and drains when it is left."""

    loop: asyncio.AbstractEventLoop
    base_url: str  # for people and registry calls: http or https, without a slash at its end
    local_url: str  # the same from this machine, past any reverse proxy
    port: int  # that it listens on
    pin: str  # of the self-signed certificate's key; empty otherwise
    store: Store

    def __init__(self, config: RelayConfig) -> None:
        self.config = config
        self._listen = parse_listen(config.listen)
        if bool(config.tls_cert) != bool(config.tls_key):
            raise UsageError(
                "a certificate and its key are given together",
                hint="--tls-cert CHAIN --tls-key KEY",
            )
        if config.tls_cert and config.tls_self_signed:
            raise UsageError(
                "a relay has one certificate", hint="leave --tls-self-signed or --tls-cert away"
            )
        self._scheme = "https" if config.tls_cert or config.tls_self_signed else "http"
        check_exposure(self._listen, tls=self._scheme == "https", public_url=config.public_url)
        self.pin = ""
        self._certificate: tls.Certificate | None = None
        self._links: dict[int, Link] = {}
        self._opening: dict[int, Ticket] = {}
        self._ids = itertools.count(1)
        self._fronts: dict[Front, None] = {}
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None
        self._counts: Counter[str] = Counter()
        self._defects = DefectHandler(config.log)
        self._ticks = 0
        self._last_error = ""

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        now = time.time()
        self.store = Store.open(self.config.home, LOCK_WAIT_S)
        try:
            limits = self.config.limits
            self._rooms = Rooms(limits)
            self._rooms.restored(self.store.live_claims(now), now)
            self._registry = Registry(self.store, self._rooms, limits, os.urandom, now)
            self._drained, self._emptied = asyncio.Event(), asyncio.Event()
            await self._bind()
        except BaseException:
            self.store.close()
            raise
        picows_log.addHandler(self._defects)
        self._tick()
        self.config.log.event("started", relay=self.base_url, pid=os.getpid())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.drain()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            picows_log.removeHandler(self._defects)
            self.store.close()
            self.config.log.event("stopped")

    async def until_drained(self) -> None:
        """Wait until `drain` was called and has ended."""
        await self._drained.wait()

    async def drain(self) -> None:
        """Accept nobody, close every WebSocket with 1012, and be done within `drain_s`.

        Cancelling cuts what is still open. A second call waits for the first.
        """
        if self._registry.draining:
            await self._drained.wait()
            return
        self._registry.draining = True
        self.config.log.event("draining", links=len(self._links))
        for server in self._servers:
            server.close()
        try:
            self._perform(self._rooms.drained(time.time()))
            async with asyncio.timeout(self.config.limits.drain_s):
                while self._links:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            pass  # who does not answer a close frame is cut below
        finally:
            for link in list(self._links.values()):
                link.abort()
            for front in list(self._fronts):
                front.abort()
            self._save_claims()
            self._drained.set()

    # Called by links

    def link_opened(self, link: Link) -> None:
        """A ticket's WebSocket is open."""
        now = time.time()
        ticket = self._opening.pop(link.id)
        self._links[link.id] = link
        self._counts["opened"] += 1
        self.config.log.event("link-opened", link=link.id, who=link.name)
        if ticket.registration_id:
            effects = self._rooms.host_opened(
                link.id,
                ticket.principal,
                ticket.environment_id,
                ticket.registration_id,
                now,
                official=ticket.official,
            )
        else:
            effects = self._rooms.device_opened(
                link.id, ticket.principal, ticket.environment_id, now
            )
        self._perform(effects)

    def link_closed(self, link: Link) -> None:
        if self._links.pop(link.id, None) is None:
            return
        self._counts["frames"] += link.frames
        self._counts["forwarded_bytes"] += link.bytes
        self._perform(self._rooms.left(link.id, time.time()))
        if not self._links:
            self._emptied.set()
        self.config.log.event(
            "link-closed", link=link.id, who=link.name, frames=link.frames, bytes=link.bytes
        )

    def unrouted(self, link: Link, stream: bytes) -> None:
        self._perform(self._rooms.unrouted(link.id, stream, time.time()))

    def pressed(self, link: Link, to: Link) -> None:
        self._perform(self._rooms.pressed(link.id, to.id, to.queued, time.time()))

    def relieved(self, link: Link) -> None:
        self._perform(self._rooms.relieved(link.id))

    def drop(self, link: Link, code: int, reason: str) -> None:
        """A link broke the protocol."""
        self._counts["violations"] += 1
        self.config.log.event("violation", link=link.id, who=link.name, reason=reason)
        link.close(code, reason)
        self._perform(self._rooms.left(link.id, time.time()))

    # Called by the front door

    def front_opened(self, front: Front) -> bool:
        """A connection was accepted; False when it has to go at once."""
        limits = self.config.limits
        if len(self._links) + len(self._fronts) >= limits.connections:
            self._counts["evicted"] += 1
            return False
        if len(self._fronts) >= limits.pending_connections:
            # The oldest goes: who opens many and says nothing must not shut out the others.
            oldest = next(iter(self._fronts))
            self.front_closed(oldest)
            oldest.abort()
            self._counts["evicted"] += 1
        self._fronts[front] = None
        return True

    def front_closed(self, front: Front) -> None:
        self._fronts.pop(front, None)

    def count(self, name: str) -> None:
        self._counts[name] += 1

    def call(self, request: Request, peer: str) -> Answer:
        """Answer a registry call of somebody at the address `peer` and do what it entails."""
        try:
            answer = self._registry.answer(request, self._socket_base(request, peer), time.time())
        except StateError as error:
            # The file's path is for the log; whoever calls hears that it is not their fault.
            self._report(error)
            answer = Failure(
                507, "state", "the relay cannot write its state", "see the relay's log and disk"
            ).answer
        self._counts["requests"] += 1
        if answer.status >= 400:
            self._counts["refused"] += 1
        self._perform(answer.effects)
        return answer

    def page(self, request: Request, peer: str) -> tuple[int, str, bytes] | None:
        """Status, type and body of what is not a registry call; None where it is one."""
        if request.method != "GET":
            return None
        path = request.path.split("?", 1)[0]
        if path in PAGES:
            return 200, "text/html; charset=utf-8", PAGES[path]
        if path != "/metrics":
            return None
        if not self._may_measure(request, peer):
            return 401, "application/json", json.dumps(unauthorized().answer.body).encode() + b"\n"
        return 200, "text/plain; version=0.0.4; charset=utf-8", metrics(self.figures())

    def link_for(self, request: Request) -> Link:
        """The link that an upgrade's ticket stands for. Failure where it stands for none."""
        path = request.path.split("?", 1)[0]
        try:
            ticket = self._registry.redeem(path, time.time())
        except Failure:
            self._counts["refused"] += 1
            raise
        role = "host" if ticket.registration_id else "device"
        who = f"{role}:{ticket.principal.owner}/{ticket.environment_id}:{ticket.principal.token_id}"
        link = Link(self, next(self._ids), who)
        self._opening[link.id] = ticket
        return link

    def figures(self) -> dict[str, int]:
        """All counts, as the metrics name them."""
        values = dict(self._counts) | self._rooms.counts()
        for link in self._links.values():
            values["frames"] = values.get("frames", 0) + link.frames
            values["forwarded_bytes"] = values.get("forwarded_bytes", 0) + link.bytes
        values["pending_connections"] = len(self._fronts)
        values["draining"] = int(self._registry.draining)
        return values

    # For the program around it

    def revoke(self, token_id: str) -> None:
        """Revoke a token and cut its connections now."""
        now = time.time()
        self.store.revoke(token_id, now)
        self._perform(self._rooms.token_ended(token_id, TOKEN_REVOKED, now))

    # Inside

    async def _bind(self) -> None:
        config = self.config
        context = None
        cert, key = config.tls_cert, config.tls_key
        if config.tls_self_signed:
            public = urlsplit(config.public_url).hostname
            names = [reachable_name(self._listen.host), *([public] if public else [])]
            cert, key, self.pin = tls.self_signed(config.home, names)
        if cert:
            self._certificate = tls.Certificate(cert, key)
            context = self._certificate.context
        sockets = bind(self._listen)
        self.port = int(sockets[0].getsockname()[1])
        for listening in sockets:
            self._servers.append(
                await aiofastnet.create_server(
                    self.loop,
                    lambda: Front(self),
                    sock=listening,
                    backlog=BACKLOG,
                    ssl=context,
                    ssl_handshake_timeout=HEAD_TIMEOUT_S if context else None,
                    ssl_incoming_bio_size=TLS_BUFFER_BYTES if context else None,
                    ssl_outgoing_bio_size=TLS_BUFFER_BYTES if context else None,
                )
            )
        name = in_url(reachable_name(self._listen.host), self.port, self._scheme)
        self.local_url = f"{self._scheme}://{name}"
        self.base_url = config.public_url.rstrip("/") or self.local_url

    def _socket_base(self, request: Request, peer: str) -> str:
        """The ws: or wss: URL by which the caller reaches this relay.

        That is the name it has just used, be it of a forwarded port or of another of this
        machine's addresses, unless it came through the reverse proxy.
        """
        host = request.headers.get("host", "")
        if not _HOST_HEADER.fullmatch(host):
            return "ws" + self.base_url.removeprefix("http")
        if self.config.public_url and not is_local(request, peer):
            return "ws" + self.base_url.removeprefix("http")
        return "ws" + self._scheme.removeprefix("http") + "://" + host

    def _may_measure(self, request: Request, peer: str) -> bool:
        if not self.config.public_url and is_local(request, peer):
            return True
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        caller = self.store.authenticate(secret.strip(), time.time())
        return scheme.lower() == "bearer" and caller is not None and caller.kind == "owner"

    def _perform(self, effects: list[Effect] | tuple[Effect, ...]) -> None:
        for effect in effects:
            link = self._links.get(effect.link)
            if link is None:
                continue
            if isinstance(effect, Send):
                self._counts["resets"] += 1
                link.send(effect.message)
            elif isinstance(effect, Route):
                to = self._links.get(effect.to)
                if to is not None:
                    link.routes[wire.prefix(effect.stream.decode())] = to
            elif isinstance(effect, Close):
                self.config.log.event("link-cut", link=link.id, who=link.name, reason=effect.reason)
                link.close(effect.code, effect.reason)
            elif isinstance(effect, Abort):
                self._counts["slow"] += 1
                self.config.log.event("link-cut", link=link.id, who=link.name, reason=effect.reason)
                link.abort()
            elif isinstance(effect, Pause):
                link.pause()
            elif isinstance(effect, Resume):
                link.resume()
            else:
                link.routes.pop(wire.prefix(effect.stream.decode()), None)

    def _tick(self) -> None:
        """Each second: what ends by time, what another process changed, who has fallen silent."""
        now = time.time()
        self._ticks += 1
        self._timer = self.loop.call_later(TICK_S, self._tick)
        try:
            self._perform(self._rooms.ticked(now))
            self._registry.ticked(now)
            self._sweep()
            for token_id in self.store.refresh():
                self.config.log.event("token-revoked", token=token_id)
                self._perform(self._rooms.token_ended(token_id, TOKEN_REVOKED, now))
            self._save_claims()
            if self._ticks % int(CLEAN_S / TICK_S) == 1:
                self.store.clean(now, self._rooms.online_rooms())
            if self._certificate is not None and self._ticks % CERTIFICATE_TICKS == 0:
                self._certificate.refresh()
        except CodexctlError as error:
            # A full or failing disk stops no frame; registrations and tokens say so themselves.
            self._report(error)
        else:
            self._last_error = ""

    def _report(self, error: CodexctlError) -> None:
        if error.message != self._last_error:
            self._last_error = error.message
            self.config.log.event("error", message=error.message)

    def _sweep(self) -> None:
        """Ping who said nothing for a while, cut who did not answer; a tenth of all each second."""
        slices = int(SWEEP_S / TICK_S)
        for link in list(self._links.values()):
            if link.id % slices != self._ticks % slices:
                continue
            if link.heard or link.paused:
                link.heard = False
                link.silent = 0
                continue
            link.silent += 1
            if link.silent >= SILENT_SWEEPS:
                self._counts["silent"] += 1
                self.config.log.event("link-cut", link=link.id, who=link.name, reason="silent")
                link.abort()
            else:
                link.ping()

    def _save_claims(self) -> None:
        # What a failing disk does not take is forgotten: those streams lose their protection if
        # the relay is restarted, and nothing piles up here.
        changes = self._rooms.take_changes()
        if changes:
            self.store.save_claims(changes)


def raise_file_limit() -> None:
    """Let this process open as many sockets as it may: the usual soft limit is 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS refuses "unlimited"; the soft limit stays
