"""Noise transport messages of one finished handshake: one owner, in order, bounded.

Noise specification revision 34, section 5.1. The cipher objects are those that noiseprotocol made,
the nonce counters too. Only copies are saved: a record is encrypted into the buffer that is sent.
"""

from __future__ import annotations

import _thread
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag

from codexctl.errors import ProtocolError

if TYPE_CHECKING:
    from noise.noise_protocol import NoiseProtocol

Buffer = bytes | bytearray | memoryview

TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65535
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES
# Sequence numbers on the wire have 32 bits and are the nonces: far below Noise's own 2**64 - 2.
MAX_MESSAGES = 2**32 - 1


class NotGenuine(ProtocolError):
    """A transport message did not authenticate; the nonce stays, a genuine one may follow."""

    code = "not-genuine"


class Transport:
    """Encrypts and decrypts in sequence. Belongs to the thread that first uses it.

    noiseprotocol's counters are read, used and incremented without a lock, so that two threads
    would use a nonce twice: another thread gets RuntimeError.
    """

    __slots__ = ("_decrypt", "_encrypt", "_owner", "handshake_hash")

    def __init__(self, protocol: NoiseProtocol) -> None:
        """Of a protocol whose handshake has just been split."""
        self._encrypt = protocol.cipher_state_encrypt
        self._decrypt = protocol.cipher_state_decrypt
        self._owner = 0
        self.handshake_hash: bytes = bytes(protocol.handshake_hash)

    @property
    def sent(self) -> int:
        """How many messages were encrypted; the nonce of the next one."""
        return int(self._encrypt.n)

    @property
    def received(self) -> int:
        """How many messages were decrypted; the nonce that the next one must have."""
        return int(self._decrypt.n)

    def _own(self) -> None:
        caller = _thread.get_ident()
        if caller != self._owner:
            if self._owner:
                raise RuntimeError("a Noise transport is used by one thread")
            self._owner = caller

    def encrypt_into(self, plaintext: Buffer, out: memoryview) -> None:
        """Encrypt into `out`, which has exactly 16 bytes more than `plaintext`.

        ValueError over 65519 bytes (the library would take them and lose the channel); after
        2**32 - 1 messages ProtocolError.
        """
        self._own()
        state = self._encrypt
        if len(plaintext) > MAX_PLAINTEXT_BYTES:
            raise ValueError(f"a Noise message holds at most {MAX_PLAINTEXT_BYTES} bytes")
        n = state.n
        if n >= MAX_MESSAGES:
            raise ProtocolError("a session has used up its sequence numbers")
        # Counted first: whatever happens below, this nonce is never used again.
        state.n = n + 1
        cipher = state.cipher
        cipher.cipher.encrypt_into(cipher.format_nonce(n), plaintext, None, out)

    def encrypt(self, plaintext: Buffer) -> bytes:
        out = bytearray(len(plaintext) + TAG_BYTES)
        self.encrypt_into(plaintext, memoryview(out))
        return bytes(out)

    def decrypt(self, ciphertext: Buffer) -> bytes:
        """The next message's plaintext. NotGenuine (nonce kept) where it is not that message."""
        self._own()
        state = self._decrypt
        if not TAG_BYTES <= len(ciphertext) <= MAX_MESSAGE_BYTES:
            raise NotGenuine("a Noise message has an impossible length")
        n = state.n
        if n >= MAX_MESSAGES:
            raise ProtocolError("a session has used up its sequence numbers")
        cipher = state.cipher
        try:
            plaintext: bytes = cipher.cipher.decrypt(cipher.format_nonce(n), ciphertext, None)
        except InvalidTag:
            raise NotGenuine("a Noise message did not authenticate") from None
        state.n = n + 1
        return plaintext
