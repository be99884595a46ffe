"""The host daemon: sessions of paired devices over one link to the relay, and the control socket.

    daemon = Daemon.create(home, relay=…, name=…, workspace=…, tell=print_event)
    await daemon.run()

Every session, handler and timer lives in the daemon's task group and ends with it. What devices ask
for is done by the handlers of `HANDLERS`; this module decides who may talk at all.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

from codexctl import __version__
from codexctl.agent.notify_feed import NotifyFeed
from codexctl.agent.notify_service import Notifications
from codexctl.agent.service import serve_agent
from codexctl.client.registry import Relay
from codexctl.errors import AuthenticationFailed, CodexctlError, Refused, StateError
from codexctl.host import control, store
from codexctl.host.app_server import serve_app_server
from codexctl.host.context import HostContext
from codexctl.host.exec_handler import HANDLERS
from codexctl.host.exec_handler import control as answer_control
from codexctl.host.execserver.service import serve_exec_server
from codexctl.host.files import serve_file
from codexctl.host.forward import serve_tcp
from codexctl.host.link import LinkPath, RelayLink
from codexctl.host.pairing import PairingDesk
from codexctl.noise.handshake import HandshakeFailed, Responder, prologue
from codexctl.noise.hybrid import HybridKey, HybridResponder
from codexctl.noise.keys import key_id
from codexctl.noise.suites import DEFAULT, Suite
from codexctl.noise.transport import Transport
from codexctl.paths import Home
from codexctl.session import core
from codexctl.session.channel import Peer
from codexctl.session.records import PathFault
from codexctl.session.serve import Handler, ServedChannel, ServedSession
from codexctl.state.identity import load_identity
from codexctl.wire import relay as frames
from codexctl.wire.handshake import (
    KIND_CODE,
    KIND_HYBRID,
    KIND_PAIRING,
    KIND_SESSION,
    PROLOGUE_LABEL,
    PROTOCOL_VERSION,
)

MAX_SESSIONS = 512
HANDSHAKES_PER_S = 50
HANDSHAKE_BURST = 100
PROVE_WITHIN_S = 30.0  # message 1 may be a replay: a session that sends no record is dropped
HOUSEKEEPING_S = 1.0

_log = logging.getLogger(__name__)
Tell = Callable[[dict[str, Any]], None]


class Daemon:
    """One host. `create` opens files and may refuse; `run` serves until cancelled."""

    def __init__(
        self,
        home: Home,
        context: HostContext,
        db: sqlite3.Connection,
        relay: Relay,
        shown_relay: str,
        tell: Tell,
        lock: int,
    ) -> None:
        self.home = home
        self.context = context
        self.key = load_identity(home)
        self.environment_id = key_id(self.key.public_bytes)
        self._suite: Suite = DEFAULT
        self._hybrid = HybridKey(self.key, self.key.kem_seed)
        self._db = db
        self._lock = lock
        self._shown_relay = shown_relay
        self._tell = tell
        self._boot = secrets.token_hex(8)
        self._sessions: dict[bytes, ServedSession] = {}
        self._allowance = float(HANDSHAKE_BURST)
        self._allowed_at = 0.0
        self._seen: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self.up = asyncio.Event()
        self.link = RelayLink(
            relay,
            self.environment_id,
            self._suite,
            self._hybrid.public,
            on_message=self._message,
            on_uncongested=self._uncongested,
            on_up=lambda path: self.up.set(),
            on_down=self._down,
        )
        self.pairing = PairingDesk(
            relay,
            shown_relay,
            self.environment_id,
            context.name,
            self._suite,
            self.key,
            db,
            context.audit,
            tell,
        )

    @classmethod
    def create(
        cls,
        home: Home,
        *,
        relay: Relay,
        name: str,
        workspace: str,
        tell: Tell,
        shown_relay: str | None = None,
    ) -> Daemon:
        """Lock the home, read policy and keys. StateError or PolicyError where that fails."""
        home.ensure()
        lock = _lock(home)
        try:
            db = store.open_store(home)
            context = HostContext.create(home, workspace, name)
            return cls(home, context, db, relay, shown_relay or relay.url, tell, lock)
        except BaseException:
            os.close(lock)
            raise

    async def run(self) -> None:
        """Serve until cancelled, or until the relay no longer takes this host's token."""
        notifications = Notifications(self.home, self.context.name, self._shown_relay)
        feed = NotifyFeed(self.context.agent, notifications, self._reachable)
        methods: dict[str, control.Method] = {
            "notify.reload": notifications.reload,
            "status": self._status,
            "pairing.create": self.pairing.create,
            "pairing.withdraw": self.pairing.withdraw,
            "pairing.live": self.pairing.live,
            "devices.revoke": self._revoke,
        }
        listener = control.listen(self.home)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(control.serve(listener, methods))
                tasks.create_task(self._housekeeping())
                tasks.create_task(self._warm())
                tasks.create_task(self.link.run())
                tasks.create_task(self.context.warm())
                tasks.create_task(self.context.agent.run())
                tasks.create_task(feed.run())
        finally:
            for session in self._sessions.values():
                session.end(CodexctlError("the host is stopping"))
            listener.close()
            try:
                os.unlink(self.home.control_socket)
            except OSError:
                pass
            await self.context.aclose()
            self._db.close()
            os.close(self._lock)

    def _reachable(self, device: str) -> bool:
        """Whether a device has a path to this host now."""
        return any(s.has_path and s.peer.device_id == device for s in self._sessions.values())

    async def _warm(self) -> None:
        """Find out now what the first command would wait for; a failure is told to that one."""
        try:
            await self.context.sandbox()
        except CodexctlError as error:
            _log.warning("commands will be refused: %s", error)

    # --- messages from the relay ---

    def _message(self, path: LinkPath, message: memoryview) -> None:
        stream = frames.peek_stream_id(message)
        session = self._sessions.get(stream)
        if session is None:
            self._stranger(path, message)
            return
        if not session.on_path(path):
            session.path_opened(path, first=False)
        try:
            session.receive(message)
        except PathFault as error:
            session.path_lost()
            if not error.reported:
                _reset(path, stream.decode(), f"path: {error}")

    def _stranger(self, path: LinkPath, message: memoryview) -> None:
        frame = frames.decode(message)
        body = frame.body
        if isinstance(body, frames.Handshake):
            reason = self._handshake(path, frame.stream_id, bytes(body.payload))
            if reason:
                _reset(path, frame.stream_id, reason)
        elif isinstance(body, frames.Data | frames.Resume):
            _reset(path, frame.stream_id, "unknown-session")

    def _uncongested(self, path: LinkPath) -> None:
        for session in self._sessions.values():
            if session.on_path(path):
                session.uncongested()

    def _down(self, path: LinkPath) -> None:
        self.up.clear()
        for session in self._sessions.values():
            session.path_lost()

    # --- handshakes; a returned text is the reason of a reset ---

    def _handshake(self, path: LinkPath, stream_id: str, payload: bytes) -> str:
        now = asyncio.get_running_loop().time()
        if not self._allow(now) or len(self._sessions) >= MAX_SESSIONS:
            return "busy"
        if payload[:1] != bytes((PROTOCOL_VERSION,)):
            return f"version: this host speaks version {PROTOCOL_VERSION}"
        bound = prologue(PROLOGUE_LABEL, self.environment_id, self.link.registration_id, stream_id)
        kind, rest = payload[1:2], payload[2:]
        if kind in (bytes((KIND_SESSION,)), bytes((KIND_HYBRID,))):
            return self._session_handshake(path, stream_id, kind[0], bound, rest)
        if kind == bytes((KIND_PAIRING,)):
            return self._pairing_handshake(path, stream_id, bound, rest, now)
        if kind == bytes((KIND_CODE,)):
            answer = self.pairing.answer_code(stream_id, rest, now)
            if answer is None:
                return "pairing"
            self._answer(path, stream_id, KIND_CODE, answer)
            return ""
        return "protocol: unknown kind of handshake"

    def _allow(self, now: float) -> bool:
        gained = (now - self._allowed_at) * HANDSHAKES_PER_S
        self._allowance = min(HANDSHAKE_BURST, self._allowance + gained)
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _session_handshake(
        self, path: LinkPath, stream_id: str, kind: int, bound: bytes, message: bytes
    ) -> str:
        responder: Responder | HybridResponder
        whole_key = None
        try:
            if kind == KIND_HYBRID:
                responder = HybridResponder(self._hybrid, bound)
                remote = responder.read_first(message).remote
                public_key, whole_key = remote.x25519, remote.sha256
            else:
                responder = Responder(self._suite, self.key, bound)
                public_key = responder.read_first(message).remote_static
        except HandshakeFailed:
            return "protocol: the handshake is not genuine"
        device = store.device_by_key(self._db, public_key)
        if device is None:
            reason = "unpaired"
        elif device.revoked_at is not None:
            reason = "revoked"
        elif device.key_sha256 not in (None, whole_key):
            reason = "suite"
        else:
            if device.key_sha256 is None and whole_key is not None:
                # The first session in the hybrid suite: from now on no other is taken.
                with store.reporting(self.home.host_db):
                    store.pin_device(self._db, device.id, whole_key)
            peer = Peer(device.id, device.name, device.scopes & self.context.policy.scopes)
            self._begin(path, stream_id, kind, responder, peer, self._serve)
            return ""
        who = key_id(public_key)[:16] if device is None else device.name
        self.context.audit.append("session", who=who, what=reason, outcome="denied")
        return reason

    def _pairing_handshake(
        self, path: LinkPath, stream_id: str, bound: bytes, message: bytes, now: float
    ) -> str:
        answered = self.pairing.answer_pairing(message, bound, now)
        if answered is None:
            return "pairing"
        offer, public_key, responder = answered
        device_id = key_id(public_key)[:16]

        async def pair(channel: ServedChannel) -> None:
            if channel.kind != "pair":
                raise Refused("this session is for pairing only")
            try:
                await self.pairing.serve(channel, public_key, offer)
            finally:
                self.pairing.ended(offer)

        peer = Peer(device_id, device_id, frozenset())
        self._begin(path, stream_id, KIND_PAIRING, responder, peer, pair)
        return ""

    def _begin(
        self,
        path: LinkPath,
        stream_id: str,
        kind: int,
        responder: Responder | HybridResponder,
        peer: Peer,
        handle: Handler,
    ) -> None:
        assert self._tasks is not None
        hello = {
            "host": self.context.name,
            "version": __version__,
            "boot": self._boot,
            "scopes": sorted(peer.scopes),
            "key_sha256": self._hybrid.public.sha256.hex(),
        }
        message, transport = responder.write_second(json.dumps(hello).encode())
        self._answer(path, stream_id, kind, message)
        self._tasks.create_task(self._run_session(path, stream_id, transport, peer, handle))

    def _answer(self, path: LinkPath, stream_id: str, kind: int, content: bytes) -> None:
        payload = bytes((PROTOCOL_VERSION, kind)) + content
        path.send(frames.encode(frames.Frame(stream_id, frames.Handshake(payload))))

    # --- sessions ---

    def _run_session(
        self, path: LinkPath, stream_id: str, transport: Transport, peer: Peer, handle: Handler
    ) -> Coroutine[Any, Any, None]:
        loop = asyncio.get_running_loop()
        session = ServedSession(
            core.Session(stream_id, transport, loop.time(), is_device=False), peer, handle, loop
        )
        # Before the task runs: the device's first record may be in the same read as its handshake.
        stream = stream_id.encode()
        self._sessions[stream] = session
        session.path_opened(path, first=True)

        async def live() -> None:
            try:
                await session.run()
            finally:
                del self._sessions[stream]

        return live()

    async def _serve(self, channel: ServedChannel) -> None:
        self._seen.add(channel.peer.device_id)
        kind = channel.kind
        if kind in HANDLERS:
            await HANDLERS[kind](channel, self.context)
        elif kind == "control":
            await self._control(channel)
        elif kind == "file":
            await serve_file(channel, self.context)
        elif kind == "tcp":
            await serve_tcp(channel, self.context)
        elif kind == "agent":
            await serve_agent(channel, self.context)
        elif kind == "app-server":
            await serve_app_server(channel, self.context)
        elif kind == "exec-server":
            await serve_exec_server(channel, self.context)
        else:
            raise Refused(
                f"this host does not know channels of kind {kind[:40]!r}",
                hint="update codexctl on the host",
            )

    async def _control(self, channel: ServedChannel) -> None:
        method = channel.params.get("method")
        params = channel.params.get("params") or {}
        if not isinstance(method, str) or not isinstance(params, dict):
            raise Refused("a control request names its method and its params")
        if method == "renew-token":
            await channel.accept(await self._renew(channel.peer))
        else:
            await channel.accept(await answer_control(method, params, channel.peer, self.context))

    async def _renew(self, peer: Peer) -> dict[str, Any]:
        """A new relay token for a paired device, in time before the old one expires."""
        token = await self.pairing.mint(peer.name)
        with store.reporting(self.home.host_db):
            store.add_relay_token(self._db, peer.device_id, token["id"])
        return token

    async def _housekeeping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = loop.time()
            for offer in self.pairing.offers.expire(now):
                self._tell({"event": "pairing-expired", "id": offer.pairing_id})
            for session in list(self._sessions.values()):
                unproven = session.unproven and now - session.started > PROVE_WITHIN_S
                if unproven or session.abandoned(now):
                    session.end(CodexctlError("the session was given up"), tell=False)
            seen, self._seen = self._seen, set()
            for device_id in seen:
                store.touch_device(self._db, device_id)

    # --- the control socket ---

    async def _status(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": self.context.name,
            "environment_id": self.environment_id,
            "version": __version__,
            "relay": self.link.relay.url,
            "online": self.link.path is not None,
            "workspace": self.context.workspace,
            "sessions": len(self._sessions),
            "pid": os.getpid(),
        }

    async def _revoke(self, params: dict[str, Any]) -> dict[str, Any]:
        """Revoke a device by its id: rows first, then live sessions, then its relay token."""
        device_id = params.get("id")
        found = [d for d in store.list_devices(self._db) if d.id == device_id]
        if not found:
            raise Refused("no such device is paired", hint="see: codexctl devices")
        device = found[0]
        store.revoke_device(self._db, device.id)
        cut = 0
        for session in self._sessions.values():
            if session.peer.device_id == device.id:
                session.end(
                    AuthenticationFailed(
                        "the host has revoked this device", hint="pair again: codexctl pair URL"
                    )
                )
                cut += 1
        self.context.processes.hang_up_device(device.id)
        self.context.audit.append("revocation", who="owner", what=device.name, outcome="revoked")
        told = [await self.pairing.revoke_token(token) for token in device.relay_tokens]
        return {"name": device.name, "sessions_cut": cut, "relay_told": all(told)}


def _reset(path: LinkPath, stream_id: str, reason: str) -> None:
    path.send(frames.encode(frames.Frame(stream_id, frames.Reset(reason))))


def _lock(home: Home) -> int:
    """The home's host lock; StateError where another daemon has it. Closing it lets go."""
    path = home.join("host.lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"cannot make {path}: {error.strerror}",
            hint="set CODEXCTL_HOME to a folder that you can write",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StateError(
            f"a host already runs from {home.path}",
            hint="stop it first, or set CODEXCTL_HOME to another folder for a second host",
        ) from error
    return fd
