"""Hybrid IK: X25519 and ML-KEM-768 together, so that either one alone keeps the secret.

The suite of the official `codex` exec-server, `Noise_hybridIK_25519+MLKEM768_AESGCM_SHA256`; key
documents spell it `X25519`. The pattern, in the words of the Noise specification and its KEM
extension:

    <- s
    -> skem, e, es, s, ss
    <- ekem, skem, e, ee, se

`e` sends the X25519 key, then the ML-KEM key, each mixed into the hash; `s` encrypts each of the
two. `ekem` sends its ciphertext in clear and mixes the secret as a key; `skem` encrypts its
ciphertext and mixes the secret into key and hash. The state and the ciphers are noiseprotocol's.
The roles, and what they refuse, are those of `handshake.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from noise.backends.default import DefaultNoiseBackend
from noise.noise_protocol import NoiseProtocol
from noise.state import HandshakeState, SymmetricState

from codexctl.noise.handshake import FAILURES, MAX_PAYLOAD_BYTES, HandshakeFailed
from codexctl.noise.keys import (
    KEM_PUBLIC_BYTES,
    KEM_SEED_BYTES,
    KEY_BYTES,
    HybridPublic,
    PrivateKey,
)
from codexctl.noise.transport import TAG_BYTES, Transport

PROTOCOL_NAME = b"Noise_hybridIK_25519+MLKEM768_AESGCM_SHA256"
KEM_CIPHERTEXT_BYTES = 1088
_EPHEMERAL_BYTES = KEY_BYTES + KEM_PUBLIC_BYTES
# Without their payloads; a tag stands behind whatever is encrypted.
FIRST_BYTES = KEM_CIPHERTEXT_BYTES + 2 * _EPHEMERAL_BYTES + 3 * TAG_BYTES
SECOND_BYTES = 2 * KEM_CIPHERTEXT_BYTES + _EPHEMERAL_BYTES + 2 * TAG_BYTES


class HybridKey:
    """Both private keys of one end; its repr shows a public half only."""

    __slots__ = ("_dh", "_kem", "public")

    def __init__(self, x25519: PrivateKey, kem_seed: bytes) -> None:
        if len(kem_seed) != KEM_SEED_BYTES:
            raise ValueError(f"an ML-KEM-768 seed has {KEM_SEED_BYTES} bytes")
        self._dh = X25519PrivateKey.from_private_bytes(x25519.private_bytes)
        self._kem = MLKEM768PrivateKey.from_seed_bytes(kem_seed)
        self.public = HybridPublic(x25519.public_bytes, self._kem.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> HybridKey:
        return cls(PrivateKey.generate(), MLKEM768PrivateKey.generate().private_bytes_raw())

    def exchange(self, public: bytes) -> bytes:
        """The X25519 secret; ValueError for a key of low order."""
        return self._dh.exchange(X25519PublicKey.from_public_bytes(public))

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return self._kem.decapsulate(ciphertext)

    def __repr__(self) -> str:
        return f"HybridKey(public={self.public.x25519.hex()})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a private key is not pickled")


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh secret for who has this ML-KEM-768 key, and the ciphertext that leads there."""
    return MLKEM768PublicKey.from_public_bytes(public).encapsulate()


class HybridFirst(NamedTuple):
    """What a responder has read: whom it talks to, and a payload that may be a replay."""

    remote: HybridPublic
    payload: bytes


class _Messages:
    """The symmetric state with the tokens of the pattern as methods, and a message being read."""

    def __init__(self, bound: bytes, responder: HybridPublic, *, initiator: bool) -> None:
        # A plain IK of the same primitives carries hash, cipher and split; only its name differs.
        self._protocol: Any = NoiseProtocol(b"Noise_IK_25519_AESGCM_SHA256", DefaultNoiseBackend())
        self._protocol.name = PROTOCOL_NAME
        self._protocol.handshake_state = HandshakeState()
        self._protocol.handshake_state.initiator = initiator
        self._protocol.initiator = initiator
        self.state: Any = SymmetricState.initialize_symmetric(self._protocol)
        self._protocol.symmetric_state = self.state
        for part in (bound, responder.x25519, responder.mlkem768):
            self.state.mix_hash(part)
        self._left = b""

    def reading(self, message: bytes | bytearray | memoryview, fixed: int) -> None:
        """Begin to read a message of `fixed` bytes and a payload. ValueError on its length."""
        if not fixed <= len(message) <= fixed + MAX_PAYLOAD_BYTES:
            raise ValueError("a handshake message has an impossible length")
        self._left = bytes(message)

    def _take(self, size: int) -> bytes:
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def write_e(self, key: HybridKey) -> bytes:
        for part in key.public:
            self.state.mix_hash(part)
        return key.public.x25519 + key.public.mlkem768

    def read_e(self) -> HybridPublic:
        key = HybridPublic(self._take(KEY_BYTES), self._take(KEM_PUBLIC_BYTES))
        for part in key:
            self.state.mix_hash(part)
        return key

    def write_s(self, key: HybridKey) -> bytes:
        return b"".join(self.encrypt(part) for part in key.public)

    def read_s(self) -> HybridPublic:
        x25519 = self.decrypt(self._take(KEY_BYTES + TAG_BYTES))
        return HybridPublic(x25519, self.decrypt(self._take(KEM_PUBLIC_BYTES + TAG_BYTES)))

    def write_ekem(self, to: HybridPublic) -> bytes:
        secret, ciphertext = encapsulate(to.mlkem768)
        self.state.mix_hash(ciphertext)
        self.state.mix_key(secret)
        return ciphertext

    def read_ekem(self, key: HybridKey) -> None:
        ciphertext = self._take(KEM_CIPHERTEXT_BYTES)
        self.state.mix_hash(ciphertext)
        self.state.mix_key(key.decapsulate(ciphertext))

    def write_skem(self, to: HybridPublic) -> bytes:
        secret, ciphertext = encapsulate(to.mlkem768)
        sent = self.encrypt(ciphertext)
        self.state.mix_key_and_hash(secret)
        return sent

    def read_skem(self, key: HybridKey, *, encrypted: bool) -> None:
        size = KEM_CIPHERTEXT_BYTES + (TAG_BYTES if encrypted else 0)
        self.state.mix_key_and_hash(key.decapsulate(self.decrypt(self._take(size))))

    def dh(self, key: HybridKey, public: bytes) -> None:
        self.state.mix_key(key.exchange(public))

    def encrypt(self, plaintext: bytes) -> bytes:
        return bytes(self.state.encrypt_and_hash(plaintext))

    def decrypt(self, ciphertext: bytes) -> bytes:
        return bytes(self.state.decrypt_and_hash(ciphertext))

    def read_payload(self) -> bytes:
        return self.decrypt(self._left)

    def split(self) -> Transport:
        self.state.split()
        return Transport(self._protocol)


class HybridInitiator:
    """The device's side. `ephemeral` exists for test vectors only."""

    def __init__(
        self,
        static: HybridKey,
        remote: HybridPublic,
        bound: bytes,
        *,
        ephemeral: HybridKey | None = None,
    ) -> None:
        self._messages: _Messages | None = _Messages(bound, remote, initiator=True)
        self._static = static
        self._remote = remote
        self._ephemeral = ephemeral or HybridKey.generate()
        self._written = False

    def write_first(self, payload: bytes = b"") -> bytes:
        messages, key = self._messages, self._ephemeral
        if messages is None or self._written:
            raise RuntimeError("message 1 is written once")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a handshake payload has at most {MAX_PAYLOAD_BYTES} bytes")
        self._written = True
        try:
            message = messages.write_skem(self._remote) + messages.write_e(key)
            messages.dh(key, self._remote.x25519)
            message += messages.write_s(self._static)
            messages.dh(self._static, self._remote.x25519)
            return message + messages.encrypt(payload)
        except FAILURES as error:
            self._messages = None
            raise HandshakeFailed("the host's public key cannot be used") from error

    def read_second(self, message: bytes | bytearray | memoryview) -> tuple[bytes, Transport]:
        """The payload of message 2 and the transport. HandshakeFailed leaves nothing to retry."""
        messages, self._messages = self._messages, None
        if messages is None or not self._written:
            raise RuntimeError("message 2 is read once, after message 1 was written")
        try:
            messages.reading(message, SECOND_BYTES)
            messages.read_ekem(self._ephemeral)
            messages.read_skem(self._static, encrypted=True)
            remote = messages.read_e()
            messages.dh(self._ephemeral, remote.x25519)
            messages.dh(self._static, remote.x25519)
            payload = messages.read_payload()
        except FAILURES as error:
            raise HandshakeFailed("the host's answer to the handshake is not genuine") from error
        return payload, messages.split()


class HybridResponder:
    """The host's side. `ephemeral` exists for test vectors only."""

    def __init__(
        self, static: HybridKey, bound: bytes, *, ephemeral: HybridKey | None = None
    ) -> None:
        self._messages: _Messages | None = _Messages(bound, static.public, initiator=False)
        self._static = static
        self._ephemeral = ephemeral
        self._remote: HybridPublic | None = None
        self._remote_ephemeral: HybridPublic | None = None

    def read_first(self, message: bytes | bytearray | memoryview) -> HybridFirst:
        messages = self._messages
        if messages is None or self._remote is not None:
            raise RuntimeError("message 1 is read once")
        try:
            messages.reading(message, FIRST_BYTES)
            messages.read_skem(self._static, encrypted=False)
            self._remote_ephemeral = messages.read_e()
            messages.dh(self._static, self._remote_ephemeral.x25519)
            self._remote = messages.read_s()
            messages.dh(self._static, self._remote.x25519)
            return HybridFirst(self._remote, messages.read_payload())
        except FAILURES as error:
            self._messages = None
            raise HandshakeFailed("the handshake is not genuine") from error

    def write_second(self, payload: bytes = b"") -> tuple[bytes, Transport]:
        messages, self._messages = self._messages, None
        remote, remote_ephemeral = self._remote, self._remote_ephemeral
        if messages is None or remote is None or remote_ephemeral is None:
            raise RuntimeError("message 2 is written once, after message 1 was read")
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a handshake payload has at most {MAX_PAYLOAD_BYTES} bytes")
        key = self._ephemeral or HybridKey.generate()
        try:
            message = messages.write_ekem(remote_ephemeral) + messages.write_skem(remote)
            message += messages.write_e(key)
            messages.dh(key, remote_ephemeral.x25519)
            messages.dh(key, remote.x25519)
            message += messages.encrypt(payload)
        except FAILURES as error:
            raise HandshakeFailed("the device's public key cannot be used") from error
        return message, messages.split()
