"""The first two bytes of a handshake frame's payload, and the label that prologues begin with.

PROTOCOL.md section 3.
"""

from __future__ import annotations

PROTOCOL_VERSION = 1
KIND_SESSION, KIND_PAIRING, KIND_CODE, KIND_HYBRID = 1, 2, 3, 4
PROLOGUE_LABEL = "codexctl-relay-noise/v1"
