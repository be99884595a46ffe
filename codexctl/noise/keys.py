"""Static keys and the documents and names of their public halves (PROTOCOL.md section 2)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from codexctl.errors import ProtocolError
from codexctl.noise.suites import HYBRID, SUITES, Suite

KEY_BYTES = 32
KEM_PUBLIC_BYTES = 1184  # of ML-KEM-768 (FIPS 203)
KEM_SEED_BYTES = 64


class HybridPublic(NamedTuple):
    """Both public keys of one end of the hybrid suite."""

    x25519: bytes
    mlkem768: bytes

    @property
    def sha256(self) -> bytes:
        """What pairing pins: the hash of the whole key document in its one canonical form."""
        text = json.dumps(hybrid_document(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()


class PrivateKey:
    """An X25519 private key; its repr shows the public half only.

    `kem_seed` is that of the ML-KEM-768 key beside it, where there is one: made apart, since who
    computes the one from its public half must not get the other.
    """

    __slots__ = ("kem_seed", "private_bytes", "public_bytes")

    def __init__(self, private_bytes: bytes, kem_seed: bytes = b"") -> None:
        if len(kem_seed) not in (0, KEM_SEED_BYTES):
            raise ValueError(f"an ML-KEM-768 seed has {KEM_SEED_BYTES} bytes")
        if len(private_bytes) != KEY_BYTES:
            raise ValueError(f"an X25519 private key has {KEY_BYTES} bytes")
        self.private_bytes = private_bytes
        self.kem_seed = kem_seed
        self.public_bytes: bytes = (
            X25519PrivateKey.from_private_bytes(private_bytes).public_key().public_bytes_raw()
        )

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(X25519PrivateKey.generate().private_bytes_raw(), os.urandom(KEM_SEED_BYTES))

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public_bytes.hex()})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a private key is not pickled")


def key_id(public_bytes: bytes) -> str:
    """A short stable name of a public key: 26 characters of base32, lower case (130 bits)."""
    digest = hashlib.sha256(b"codexctl key id v1" + public_bytes).digest()
    return base64.b32encode(digest).decode().lower()[:26]


def key_document(suite: Suite, public_bytes: bytes, mlkem768: bytes = b"") -> dict[str, str]:
    """The JSON object that names a public key and its suite (PROTOCOL.md section 2).

    A codexctl host adds its ML-KEM-768 key, which devices of before do not look at.
    """
    document = {
        "suite": suite.name,
        "x25519_public_key": base64.b64encode(public_bytes).decode(),
    }
    if mlkem768:
        document["mlkem768_public_key"] = base64.b64encode(mlkem768).decode()
    return document


def hybrid_document(public: HybridPublic) -> dict[str, str]:
    """As `key_document`, of the hybrid suite."""
    return {
        "suite": HYBRID,
        "x25519_public_key": base64.b64encode(public.x25519).decode(),
        "mlkem768_public_key": base64.b64encode(public.mlkem768).decode(),
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
    return suite, _key(value, "x25519_public_key", KEY_BYTES)


def parse_hybrid_document(value: Any) -> HybridPublic:
    """Both public keys, whatever suite the document names: that of a codexctl host names the one
    which every device knows. ProtocolError where one of the keys is not there.
    """
    if not isinstance(value, dict):
        raise ProtocolError("a key document is not a JSON object")
    return HybridPublic(
        _key(value, "x25519_public_key", KEY_BYTES),
        _key(value, "mlkem768_public_key", KEM_PUBLIC_BYTES),
    )


def _key(document: dict[str, Any], field: str, size: int) -> bytes:
    try:
        public = base64.b64decode(document[field], validate=True)
    except (KeyError, TypeError, ValueError):
        public = b""
    if len(public) != size:
        raise ProtocolError(f"a key document holds no {field} of {size} bytes")
    return public
