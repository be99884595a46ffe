"""The typed code's key exchange: SPAKE2 with key confirmation, the device's guess first.

PROTOCOL.md section 5; SPAKE2 as RFC 9382 describes it, over Ed25519, by the library `spake2` (the
device is its side A, the host side B). Each object is used for one exchange and dead after a
failure. The host says nothing that could confirm a guess before it has seen the device's
confirmation; so who guesses is either right or caught, and caught once.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError

from codexctl.errors import AuthenticationFailed
from codexctl.noise.offer import hkdf

MAC_BYTES = 32
MESSAGE_BYTES = 33  # side and a group element
MAX_DOCUMENT_BYTES = 4096
_DEVICE, _HOST = b"codexctl device", b"codexctl host"
# The library asserts, indexes and raises ValueError on what is no group element.
_NOISE = (SPAKEError, ValueError, AssertionError, IndexError)


class CodeNoise(AuthenticationFailed):
    """What came is not a message of this exchange; nobody guessed."""

    code = "code-noise"


class WrongCode(AuthenticationFailed):
    """A guess was made and was wrong."""

    code = "wrong-code"


class _Keys(NamedTuple):
    secret: bytes
    transcript: bytes

    def confirmation(self, who: str, document: bytes = b"") -> bytes:
        return hmac.digest(self.secret, who.encode() + self.transcript + document, "sha256")


def _keys(shared: bytes, stream_id: str, device: bytes, host: bytes) -> _Keys:
    return _Keys(hkdf(shared, "codexctl pairing code v1"), stream_id.encode() + device + host)


class CodeDevice:
    """start() -> step 1's message; host_message() -> step 3's; document() reads step 4."""

    def __init__(self, password: str, stream_id: str) -> None:
        self._exchange = SPAKE2_A(password.encode(), idA=_DEVICE, idB=_HOST)
        self._stream_id = stream_id
        self._message: bytes = self._exchange.start()
        self._keys: _Keys | None = None

    def start(self) -> bytes:
        return self._message

    def host_message(self, message: bytes) -> bytes:
        """Step 2 in, this end's confirmation out. CodeNoise where it is no group element."""
        if len(message) != MESSAGE_BYTES:
            raise CodeNoise("the host's answer to the code is not genuine")
        try:
            shared = self._exchange.finish(message)
        except _NOISE as error:
            raise CodeNoise("the host's answer to the code is not genuine") from error
        self._keys = _keys(shared, self._stream_id, self._message, message)
        return self._keys.confirmation("device")

    def document(self, answer: bytes) -> tuple[bytes, bytes]:
        """Step 4 in; the host's document and the secret that the offer's keys derive from."""
        keys = self._keys
        if keys is None:
            raise RuntimeError("the host's message comes before its document")
        mac, document = answer[:MAC_BYTES], answer[MAC_BYTES:]
        if len(document) > MAX_DOCUMENT_BYTES or not hmac.compare_digest(
            mac, keys.confirmation("host", document)
        ):
            raise WrongCode(
                "the relay or somebody in between does not know the code",
                hint="get a new code on the host: codexctl pair --show",
            )
        return document, keys.secret


class CodeHost:
    """device_message() -> step 2's; confirm() checks step 3 and makes step 4."""

    def __init__(self, password: str, stream_id: str) -> None:
        self._exchange = SPAKE2_B(password.encode(), idA=_DEVICE, idB=_HOST)
        self._stream_id = stream_id
        self._keys: _Keys | None = None

    def device_message(self, message: bytes) -> bytes:
        """Step 1 in, step 2 out. CodeNoise where it is no group element: nobody guessed."""
        if len(message) != MESSAGE_BYTES:
            raise CodeNoise("a pairing message has the wrong length")
        own: bytes = self._exchange.start()
        try:
            shared = self._exchange.finish(message)
        except _NOISE as error:
            raise CodeNoise("a pairing message is not genuine") from error
        self._keys = _keys(shared, self._stream_id, message, own)
        return own

    def confirm(self, confirmation: bytes, document: bytes) -> tuple[bytes, bytes]:
        """Step 3 in; step 4 and the secret. WrongCode: somebody guessed wrong, burn the offer."""
        keys, self._keys = self._keys, None
        if keys is None:
            raise CodeNoise("a confirmation came before its exchange")
        if len(confirmation) != MAC_BYTES:
            raise CodeNoise("a confirmation has the wrong length")
        if not hmac.compare_digest(confirmation, keys.confirmation("device")):
            raise WrongCode("a wrong pairing code was tried")
        return keys.confirmation("host", document) + document, keys.secret
