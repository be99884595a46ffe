"""Static X25519 keys and the documents and names of their public halves."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from codexctl.errors import ProtocolError
from codexctl.noise.suites import SUITES, Suite

KEY_BYTES = 32


class PrivateKey:
    """An X25519 private key; its repr shows the public half only."""

    __slots__ = ("private_bytes", "public_bytes")

    def __init__(self, private_bytes: bytes) -> None:
        if len(private_bytes) != KEY_BYTES:
            raise ValueError(f"an X25519 private key has {KEY_BYTES} bytes")
        self.private_bytes = private_bytes
        self.public_bytes: bytes = (
            X25519PrivateKey.from_private_bytes(private_bytes).public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(X25519PrivateKey.generate().private_bytes_raw())

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public_bytes.hex()})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a private key is not pickled")


def key_id(public_bytes: bytes) -> str:
    """A short stable name of a public key: 26 characters of base32, lower case (130 bits)."""
    digest = hashlib.sha256(b"codexctl key id v1" + public_bytes).digest()
    return base64.b32encode(digest).decode().lower()[:26]


def key_document(suite: Suite, public_bytes: bytes) -> dict[str, str]:
    """The JSON object that names a public key and its suite (PROTOCOL.md section 2)."""
    return {
        "suite": suite.name,
        "x25519_public_key": base64.b64encode(public_bytes).decode(),
    }


def parse_key_document(value: Any) -> tuple[Suite, bytes]:
    """Suite and public key; ProtocolError where the document is not of `noise_ik_v1`."""
    if not isinstance(value, dict):
        raise ProtocolError("a key document is not a JSON object")
    suite = SUITES.get(value.get("suite", ""))
    if suite is None:
        raise ProtocolError(
            "the host's key is of another suite",
            hint="it may run the official codex executor, or a newer codexctl",
        )
    try:
        public = base64.b64decode(value["x25519_public_key"], validate=True)
    except (KeyError, TypeError, ValueError):
        public = b""
    if len(public) != KEY_BYTES:
        raise ProtocolError("a key document holds no X25519 public key")
    return suite, public
