"""Write hybrid-vectors.json: a few handshakes and records of the hybrid suite with fixed keys.

python -m tests.noise.make_hybrid_vectors

The suite has no public vectors. What makes these right is that the official binary understands the
code that made them (tests/official); they keep it from changing unseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codexctl.noise import hybrid
from codexctl.noise.hybrid import HybridInitiator, HybridKey, HybridResponder
from codexctl.noise.keys import PrivateKey

VECTORS = Path(__file__).with_name("hybrid-vectors.json")
CASES = (("empty", b"", b"", b""), ("official", b"p" * 100, b"cxr_authorization", b""),
         ("session", b"p", b"", b'{"host":"box"}'))  # fmt: skip
PLAINTEXTS = (b"", b"hello", b"x" * 1000)


def key(name: str) -> HybridKey:
    """A key that follows from its name."""
    seed = hashlib.shake_256(name.encode()).digest(96)
    return HybridKey(PrivateKey(seed[:32]), seed[32:])


@contextmanager
def encapsulations(known: list[list[str]] | None) -> Iterator[list[list[str]]]:
    """Record what is encapsulated, or take it from `known` in that order."""
    genuine, used = hybrid.encapsulate, []

    def recorded(public: bytes) -> tuple[bytes, bytes]:
        if known is None:
            secret, ciphertext = genuine(public)
        else:
            secret, ciphertext = (bytes.fromhex(part) for part in known[len(used)])
        used.append([secret.hex(), ciphertext.hex()])
        return secret, ciphertext

    hybrid.encapsulate = recorded
    try:
        yield used
    finally:
        hybrid.encapsulate = genuine


def handshake(name: str, bound: bytes, first: bytes, second: bytes,
              known: list[list[str]] | None = None) -> dict[str, Any]:  # fmt: skip
    """One run of both sides; everything that was sent."""
    with encapsulations(known) as used:
        device, host = key(f"{name} device"), key(f"{name} host")
        initiator = HybridInitiator(
            device, host.public, bound, ephemeral=key(f"{name} device ephemeral")
        )
        responder = HybridResponder(host, bound, ephemeral=key(f"{name} host ephemeral"))
        message_1 = initiator.write_first(first)
        read = responder.read_first(message_1)
        assert (read.remote, read.payload) == (device.public, first)
        message_2, host_transport = responder.write_second(second)
        payload, device_transport = initiator.read_second(message_2)
        assert payload == second
    records = []
    for plaintext in PLAINTEXTS:
        there = device_transport.encrypt(plaintext)
        assert host_transport.decrypt(there) == plaintext
        back = host_transport.encrypt(plaintext)
        assert device_transport.decrypt(back) == plaintext
        records.append([plaintext.hex(), there.hex(), back.hex()])
    return {
        "name": name,
        "prologue": bound.hex(),
        "payloads": [first.hex(), second.hex()],
        "encapsulations": used,
        "messages": [message_1.hex(), message_2.hex()],
        "handshake_hash": device_transport.handshake_hash.hex(),
        "records": records,
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps([handshake(*case) for case in CASES], indent=1) + "\n")
