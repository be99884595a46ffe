"""The way to an official executor: the registry's `connect`, a WebSocket, the hybrid handshake.

The executor's key comes from the registry: it makes a fresh one at each start, so that there is
nothing to pin. Whoever runs the relay could put itself in between (docs/official.md).
"""

from __future__ import annotations

import select
import struct
import time
from typing import NamedTuple

from codexctl.client.executor.stream import ExecutorStream
from codexctl.client.handshake import HANDSHAKE_TIMEOUT_S, new_stream_id, open_websocket
from codexctl.client.registry import (
    ExecutorConnect,
    HostOffline,
    Relay,
    TokenRefused,
    connect_executor,
)
from codexctl.client.store import HostRecord
from codexctl.client.websocket import WebSocket
from codexctl.errors import AuthenticationFailed, ConnectionFailed
from codexctl.noise.hybrid import HybridInitiator, HybridKey
from codexctl.wire import relay as frames

PROLOGUE_LABEL = "codex-exec-server-relay-noise/v1"
# How the parts of the prologue are measured: 64 bits, or 32 in older versions.
LENGTHS = (">Q", ">I")
# An executor that has got about 16 bad handshakes refuses good ones as well for 10 s (seen with
# 0.169). Its reason is the same, so that a refusal is believed when it is repeated after that.
BELIEVED_AFTER_S = 11.0
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class HandshakeRefused(AuthenticationFailed):
    """The executor reset the stream instead of answering the handshake."""

    code = "handshake-refused"


class Way(NamedTuple):
    """An open stream; `registration_id` is new whenever the executor was started anew."""

    websocket: WebSocket
    stream: ExecutorStream
    registration_id: str


def open_way(record: HostRecord, key: HybridKey) -> Way:
    """Connect and shake hands. HostOffline, TokenRefused and ConnectionFailed where that fails."""
    for attempt, lengths in enumerate((*LENGTHS, LENGTHS[0])):
        if attempt == len(LENGTHS):
            time.sleep(BELIEVED_AFTER_S)
        try:
            return _open(record, key, lengths)
        except HandshakeRefused as error:
            refused = error
    raise refused


def _open(record: HostRecord, key: HybridKey, lengths: str) -> Way:
    relay = Relay(record.relay, record.pin, record.token)
    answer = _ask(relay, record, key)
    stream_id = new_stream_id()
    bound = b"".join(
        struct.pack(lengths, len(part)) + part.encode()
        for part in (PROLOGUE_LABEL, record.environment_id, answer.registration_id, stream_id)
    )
    initiator = HybridInitiator(key, answer.executor_key, bound)
    websocket = open_websocket(relay, answer)
    try:
        first = initiator.write_first(answer.authorization.reveal().encode())
        for body in (frames.Resume(0), frames.Handshake(first)):
            websocket.send(frames.encode(frames.Frame(stream_id, body)))
        reply = _answer(websocket, stream_id, record)
        _, transport = initiator.read_second(reply)
    except BaseException:
        websocket.close()
        raise
    return Way(websocket, ExecutorStream(stream_id, transport), answer.registration_id)


def _ask(relay: Relay, record: HostRecord, key: HybridKey) -> ExecutorConnect:
    try:
        return connect_executor(relay, record.environment_id, key.public)
    except HostOffline as error:
        raise HostOffline(
            f"the relay knows no executor {record.environment_id} of this token's owner",
            hint=_start(record),
        ) from error
    except TokenRefused as error:
        raise TokenRefused(
            f"the relay does not take the token of {record.name}: it is unknown, revoked, expired "
            "or for another environment",
            hint=f"add it again with a new one: codexctl hosts add {record.name} --relay "
            f"{record.relay} --token-file FILE",
        ) from error


def _start(record: HostRecord) -> str:
    return (
        f"start it: codex exec-server --remote {record.relay} "
        f"--environment-id {record.environment_id}"
    )


def _answer(websocket: WebSocket, stream_id: str, record: HostRecord) -> bytes:
    """The payload of the executor's handshake frame."""
    poll = select.poll()
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
    while (left := deadline - time.monotonic()) > 0:
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
                raise _refusal(frame.body.reason, record)
            if isinstance(frame.body, frames.Handshake):
                return bytes(frame.body.payload)
        if not alive or websocket.closed_because:
            raise ConnectionFailed(
                f"the relay closed the connection {websocket.closed_because}".rstrip()
            )
    raise ConnectionFailed(
        f"the executor {record.name} did not answer the handshake",
        hint=f"restart it there: {_start(record).removeprefix('start it: ')}",
    )


def _refusal(reason: str, record: HostRecord) -> ConnectionFailed:
    if reason == "peer-gone":
        return HostOffline(
            f"the executor {record.name} is not connected to its relay", hint=_start(record)
        )
    if reason == "executor-full":
        return ConnectionFailed(
            f"the executor {record.name} serves as many streams as it can",
            hint="end one, or try again later",
        )
    if reason in ("limit", "stream-taken", "peer-slow"):
        return ConnectionFailed(f"the relay refused the stream: {reason}", hint="try again later")
    return HandshakeRefused(
        f"the executor {record.name} refused the handshake ({reason or 'without a reason'})",
        hint="it may run another version of codex: see codex --version there",
    )
