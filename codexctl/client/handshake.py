"""The device's side of the handshakes of `noise_ik_v1` (PROTOCOL.md section 3)."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

from codexctl.client.registry import Connect, ExecutorConnect, HostOffline, Relay, connect
from codexctl.client.sockets import parse_address
from codexctl.client.store import OFFICIAL, HostRecord
from codexctl.client.websocket import WebSocket
from codexctl.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ProtocolError,
    StateError,
    UsageError,
)
from codexctl.noise.handshake import Initiator, prologue
from codexctl.noise.keys import HybridPublic, PrivateKey
from codexctl.noise.suites import DEFAULT, SUITES, Suite
from codexctl.session import core
from codexctl.session.records import PathFault, reset_error
from codexctl.wire import channel as wire
from codexctl.wire import relay as frames
from codexctl.wire.handshake import KIND_HYBRID, PROLOGUE_LABEL, PROTOCOL_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.noise.hybrid import HybridInitiator

HANDSHAKE_TIMEOUT_S = 10.0
BUSY_TRIES = 10
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


def new_stream_id() -> str:
    """A version 4 UUID as text (RFC 9562), without importing uuid."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class WrongHostKey(AuthenticationFailed):
    """The relay presents another key than the one that pairing pinned."""

    code = "wrong-host-key"


def check_key(record: HostRecord, host_key: bytes) -> None:
    if host_key != record.host_key:
        raise WrongHostKey(
            f"the relay shows another key for {record.name} than was pinned at pairing",
            hint="if the host was set up anew, pair again; if not, do not trust this relay",
        )


def handshake(
    relay: Relay,
    record: HostRecord,
    key: PrivateKey,
    *,
    kind: int,
    psk: bytes | None = None,
    offer_id: bytes = b"",
) -> tuple[WebSocket, core.Session, dict[str, Any]]:
    """A WebSocket, a session on it and what the host says of itself; all or nothing.

    `record` needs name, environment_id, host_key, suite and key_sha256. `kind` is KIND_SESSION (in
    the hybrid suite where that is pinned), or KIND_PAIRING with the `psk` and `offer_id` of the
    offer. `key_sha256` of what the host says, hexadecimal, is there only if it is that of the key
    document which the relay shows: then it may be pinned.
    """
    suite = suite_of(record)
    try:
        answer = connect(relay, record.environment_id, suite, key.public_bytes)
    except HostOffline as error:
        raise _offline(record, str(error)) from error
    try:
        check_key(record, answer.host_key)
    except WrongHostKey:
        answer.close()
        raise
    stream_id = new_stream_id()
    bound = prologue(PROLOGUE_LABEL, record.environment_id, answer.registration_id, stream_id)
    initiator: Initiator | HybridInitiator
    try:
        if record.key_sha256 is not None and psk is None:
            kind = KIND_HYBRID
            initiator = _hybrid(record, key, answer, bound)
        else:
            pattern = "IK" if psk is None else "IKpsk1"
            initiator = Initiator(suite, key, record.host_key, bound, pattern=pattern, psk=psk)
    except BaseException:
        answer.close()
        raise
    websocket = open_websocket(relay, answer)
    first = offer_id + initiator.write_first()
    try:
        reply = _until_not_busy(lambda: exchange(websocket, stream_id, kind, first))
        payload, transport = initiator.read_second(reply)
        hello = wire.decode_json(payload)
        if hello.get("key_sha256") != HybridPublic(record.host_key, answer.mlkem768).sha256.hex():
            hello.pop("key_sha256", None)
    except BaseException as error:
        websocket.close()
        if isinstance(error, PathFault) and error.reported:
            raise _offline(record, str(error)) from error
        raise
    session = core.Session(stream_id, transport, time.monotonic(), is_device=True)
    return websocket, session, hello


def suite_of(record: HostRecord) -> Suite:
    """The suite that a host's key document names; that of a hybrid pairing names the default."""
    if record.kind == OFFICIAL:
        raise UsageError(
            f"{record.name} is an official executor, which has no more than exec, shell and cp",
            hint="for the rest run there: codexctl up, and pair with it",
        )
    suite = DEFAULT if record.key_sha256 is not None else SUITES.get(record.suite)
    if suite is None:
        raise StateError(
            f"the host {record.name} was paired with the unknown suite {record.suite}",
            hint="update codexctl, or pair again",
        )
    return suite


def _hybrid(record: HostRecord, key: PrivateKey, answer: Connect, bound: bytes) -> HybridInitiator:
    """The hybrid handshake with the pinned key document and no other, or none at all."""
    from codexctl.noise.hybrid import HybridInitiator, HybridKey

    public = HybridPublic(record.host_key, answer.mlkem768)
    if public.sha256 != record.key_sha256:
        missing = "no post-quantum key" if not answer.mlkem768 else "another post-quantum key"
        raise WrongHostKey(
            f"the relay shows {missing} for {record.name}, where pairing has pinned one",
            hint="if the host was set up anew, pair again; if not, do not trust this relay",
        )
    return HybridInitiator(HybridKey(key, key.kem_seed), public, bound)


def open_websocket(relay: Relay, answer: Connect | ExecutorConnect) -> WebSocket:
    """The WebSocket of a `connect` answer, on the same connection where that leads there."""
    sock = answer.sock
    if sock is not None and not _same_place(relay.url, answer.url.reveal()):
        sock.close()
        sock = None
    return WebSocket(answer.url.reveal(), relay.pin, sock)


def _same_place(url: str, other: str) -> bool:
    return parse_address(url)[:3] == parse_address(other)[:3]


def _until_not_busy(attempt: Callable[[], bytes]) -> bytes:
    """Try again while the host has more handshakes than it takes a second, for some seconds."""
    tries = BUSY_TRIES
    while True:
        try:
            return attempt()
        except PathFault as error:
            tries -= 1
            if not error.busy or not tries:
                raise
        # An eighth of a second on average, so that who waits together does not return together.
        time.sleep(os.urandom(1)[0] / 1024)


def _offline(record: HostRecord, reason: str) -> HostOffline:
    return HostOffline(
        f"{record.name} cannot be reached through its relay: {reason}",
        hint="on the host, run: codexctl host serve (or codexctl up)",
    )


def exchange(websocket: WebSocket, stream_id: str, kind: int, payload: bytes) -> bytes:
    """Send one handshake frame and wait for the host's; its payload, without version and kind.

    ConnectionFailed where none comes in HANDSHAKE_TIMEOUT_S, or the relay or host resets.
    """
    head = bytes((PROTOCOL_VERSION, kind))
    websocket.send(frames.encode(frames.Frame(stream_id, frames.Handshake(head + payload))))
    poll = select.poll()
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectionFailed(
                "the host did not answer the handshake",
                hint="is it awake? see: codexctl doctor HOST",
            )
        try:
            websocket.write()
            mask = _READABLE | (select.POLLOUT if websocket.wants_write else 0)
            poll.register(websocket.fileno(), mask)
            poll.poll(int(left * 1000) + 1)
            alive = websocket.read()
        except OSError as error:
            raise ConnectionFailed(f"the relay broke the connection: {error}") from error
        for message in websocket.messages():
            frame = frames.decode(message)
            if frame.stream_id != stream_id:
                continue
            if isinstance(frame.body, frames.Reset):
                raise reset_error(frame.body.reason)
            if isinstance(frame.body, frames.Handshake):
                answer = bytes(frame.body.payload)
                if answer[:2] != head:
                    raise ProtocolError(
                        "the host answered in another version of the protocol",
                        hint="update codexctl on both ends",
                    )
                return answer[2:]
        if not alive or websocket.closed_because:
            raise ConnectionFailed(
                f"the relay closed the connection {websocket.closed_because}".rstrip()
            )
