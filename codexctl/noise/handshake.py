"""IK, IKpsk1 and IKpsk2 over noiseprotocol, with its traps closed.

Noise specification revision 34, sections 5.3 and 7.5. The initiator is the device, the responder
the host. Each object does one handshake in order and is dead after any failure:

    device = Initiator(suite, key, host_public, prologue)
    host = Responder(suite, key, prologue)
    first = host.read_first(device.write_first())       # first.remote_static: authorize it here
    message, host_transport = host.write_second(b"…")
    payload, device_transport = device.read_second(message)

psk1 (used by pairing) makes a wrong token fail at message 1, before the responder says anything;
psk2 would show it only to the initiator, after message 2. The payload of message 1 can be replayed.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from noise.connection import Keypair, NoiseConnection
from noise.constants import Empty
from noise.exceptions import (
    NoiseHandshakeError,
    NoiseInvalidMessage,
    NoiseMaxNonceError,
    NoisePSKError,
    NoiseValidationError,
    NoiseValueError,
)

from codexctl.errors import AuthenticationFailed
from codexctl.noise.keys import KEY_BYTES, PrivateKey
from codexctl.noise.suites import Suite
from codexctl.noise.transport import Transport

IK, IK_PSK1, IK_PSK2 = "IK", "IKpsk1", "IKpsk2"
PATTERNS = (IK, IK_PSK1, IK_PSK2)
MAX_PAYLOAD_BYTES = 4096
# A message is its payload, at most two public keys and two tags.
MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES + 2 * KEY_BYTES + 2 * 16
PSK_BYTES = 32

# All that noiseprotocol and what is below it raise on a bad message or a bad key; its own mistakes
# (an index past a short message, a missing psk) among them.
FAILURES = (
    InvalidTag,
    ValueError,
    TypeError,
    IndexError,
    NoiseHandshakeError,
    NoiseInvalidMessage,
    NoiseMaxNonceError,
    NoisePSKError,
    NoiseValidationError,
    NoiseValueError,
)


class HandshakeFailed(AuthenticationFailed):
    """A handshake message was not genuine; the handshake is dead.

    `sender_knows_host` is true where the sender's static key decrypted: it was made for this
    responder's key, by somebody who then lacked the psk. Anything else is noise.
    """

    code = "handshake"

    def __init__(self, message: str, *, sender_knows_host: bool = False) -> None:
        super().__init__(message, hint="pair this device with the host again")
        self.sender_knows_host = sender_knows_host


class FirstMessage(NamedTuple):
    """What a responder has read: whom it talks to, and a payload that may be a replay."""

    remote_static: bytes
    payload: bytes


def prologue(label: str, *parts: str) -> bytes:
    """`label` and parts, each behind its length in 64 bits big-endian (PROTOCOL.md section 3)."""
    encoded = [part.encode() for part in (label, *parts)]
    return b"".join(struct.pack(">Q", len(part)) + part for part in encoded)


def _connection(
    suite: Suite,
    pattern: str,
    static: PrivateKey,
    bound: bytes,
    psk: bytes | None,
    ephemeral: bytes | None,
) -> NoiseConnection:
    if pattern not in PATTERNS:
        raise ValueError(f"unknown handshake pattern {pattern}")
    # noiseprotocol finds a missing psk only when it is needed, as a TypeError.
    if (psk is None) != (pattern == IK):
        raise ValueError(f"{pattern} {'takes no' if pattern == IK else 'needs a'} psk")
    if psk is not None and len(psk) != PSK_BYTES:
        raise ValueError(f"a psk has {PSK_BYTES} bytes")
    noise = NoiseConnection.from_name(suite.protocol(pattern))
    noise.set_prologue(bytes(bound))
    noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes)
    if psk is not None:
        noise.set_psks(bytes(psk))
    if ephemeral is not None:
        noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, ephemeral)
    return noise


def _check_payload(payload: bytes) -> bytes:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a handshake payload has at most {MAX_PAYLOAD_BYTES} bytes")
    return bytes(payload)


def _check_message(message: bytes | bytearray | memoryview) -> bytes:
    if len(message) > MAX_MESSAGE_BYTES:
        raise HandshakeFailed(f"a handshake message is over {MAX_MESSAGE_BYTES} bytes")
    return bytes(message)


class Initiator:
    """The device's side. `ephemeral` exists for test vectors only."""

    def __init__(
        self,
        suite: Suite,
        static: PrivateKey,
        remote_static: bytes,
        bound: bytes,
        *,
        pattern: str = IK,
        psk: bytes | None = None,
        ephemeral: bytes | None = None,
    ) -> None:
        noise = _connection(suite, pattern, static, bound, psk, ephemeral)
        noise.set_as_initiator()
        try:
            noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, bytes(remote_static))
            noise.start_handshake()
        except FAILURES as error:
            raise HandshakeFailed("the host's public key is not an X25519 key") from error
        self._noise: NoiseConnection | None = noise
        self._written = False

    def write_first(self, payload: bytes = b"") -> bytes:
        noise = self._noise
        if noise is None or self._written:
            raise RuntimeError("message 1 is written once")
        payload = _check_payload(payload)
        self._written = True
        try:
            return bytes(noise.write_message(payload))
        except FAILURES as error:
            self._noise = None
            # Diffie-Hellman with a key of low order ends in all zeros and is refused.
            raise HandshakeFailed("the host's public key cannot be used") from error

    def read_second(self, message: bytes | bytearray | memoryview) -> tuple[bytes, Transport]:
        """The payload of message 2 and the transport. HandshakeFailed leaves nothing to retry."""
        noise, self._noise = self._noise, None
        if noise is None or not self._written:
            raise RuntimeError("message 2 is read once, after message 1 was written")
        try:
            payload = bytes(noise.read_message(_check_message(message)))
        except FAILURES as error:
            raise HandshakeFailed("the host's answer to the handshake is not genuine") from error
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise HandshakeFailed(f"the host's answer is over {MAX_PAYLOAD_BYTES} bytes")
        return payload, Transport(noise.noise_protocol)


class Responder:
    """The host's side."""

    def __init__(
        self,
        suite: Suite,
        static: PrivateKey,
        bound: bytes,
        *,
        pattern: str = IK,
        psk: bytes | None = None,
        ephemeral: bytes | None = None,
    ) -> None:
        noise = _connection(suite, pattern, static, bound, psk, ephemeral)
        noise.set_as_responder()
        noise.start_handshake()
        self._noise: NoiseConnection | None = noise
        self._read = False

    def read_first(self, message: bytes | bytearray | memoryview) -> FirstMessage:
        noise = self._noise
        if noise is None or self._read:
            raise RuntimeError("message 1 is read once")
        self._read = True
        state = noise.noise_protocol.handshake_state
        try:
            payload = bytes(noise.read_message(_check_message(message)))
        except FAILURES as error:
            self._noise = None
            raise HandshakeFailed(
                "the handshake is not genuine",
                sender_knows_host=not isinstance(state.rs, Empty),
            ) from error
        if len(payload) > MAX_PAYLOAD_BYTES:
            self._noise = None
            raise HandshakeFailed(f"a handshake payload is over {MAX_PAYLOAD_BYTES} bytes")
        # No public accessor; it is deleted when message 2 splits the state.
        return FirstMessage(bytes(state.rs.public_bytes), payload)

    def write_second(self, payload: bytes = b"") -> tuple[bytes, Transport]:
        noise = self._noise
        if noise is None or not self._read:
            raise RuntimeError("message 2 is written once, after message 1 was read")
        payload = _check_payload(payload)
        self._noise = None
        try:
            message = bytes(noise.write_message(payload))
        except FAILURES as error:
            raise HandshakeFailed("the device's public key cannot be used") from error
        return message, Transport(noise.noise_protocol)
