"""The cipher suites; a key document names one, and a key of another is refused."""

from __future__ import annotations

from typing import NamedTuple


class Suite(NamedTuple):
    """`name` as key documents spell it (pattern IK); `letter` as pairing URLs do."""

    name: str
    letter: str
    primitives: str

    def protocol(self, pattern: str) -> bytes:
        """The Noise protocol name of `pattern` (IK, IKpsk1, IKpsk2) in this suite."""
        return f"Noise_{pattern}_{self.primitives}".encode()


CHACHA = Suite(
    "Noise_IK_25519_ChaChaPoly_BLAKE2s", letter="c", primitives="25519_ChaChaPoly_BLAKE2s"
)
# Browsers have this one natively in WebCrypto.
AESGCM = Suite("Noise_IK_25519_AESGCM_SHA256", letter="a", primitives="25519_AESGCM_SHA256")

DEFAULT = CHACHA
SUITES: dict[str, Suite] = {suite.name: suite for suite in (CHACHA, AESGCM)}
BY_LETTER: dict[str, Suite] = {suite.letter: suite for suite in (CHACHA, AESGCM)}
SECURITY_PROFILE = "noise_ik_v1"
# X25519 and ML-KEM-768 together: `hybrid.py`. Key documents and records name it so.
HYBRID = "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256"
HYBRID_PROFILE = "noise_hybrid_ik_v1"
