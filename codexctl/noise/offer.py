"""Secrets of a pairing offer: what the relay may know, what names it, what keys the handshake.

PROTOCOL.md section 5. All are HKDF-SHA256 (RFC 5869, empty salt) of one secret, the token of a URL
or the key that a typed code led to; none of them leads back to it or to another.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from typing import NamedTuple

from codexctl.secret import Secret

TOKEN_BYTES = 16
OFFER_ID_BYTES = 8


class OfferKeys(NamedTuple):
    """`ticket` is the bearer for the relay, `psk` the 32 bytes of IKpsk1, `offer_id` 8 bytes."""

    ticket: Secret
    ticket_sha256: str
    offer_id: bytes
    psk: bytes

    def __repr__(self) -> str:
        return f"OfferKeys(offer_id={self.offer_id.hex()})"


def hkdf(secret: bytes, info: str) -> bytes:
    """HKDF-SHA256 with an empty salt, 32 bytes."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info.encode() + b"\x01", "sha256")


def derive(secret: bytes) -> OfferKeys:
    """The keys of an offer from its token (16 bytes) or code key (32 bytes)."""
    ticket = urlsafe_b64encode(hkdf(secret, "codexctl pairing ticket v1")).rstrip(b"=").decode()
    digest = hashlib.sha256(ticket.encode())
    return OfferKeys(
        Secret(ticket),
        digest.hexdigest(),
        digest.digest()[:OFFER_ID_BYTES],
        hkdf(secret, "codexctl pairing psk v1"),
    )
