"""Public Noise test vectors, where the folder with them stands beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codexctl.noise.handshake import PATTERNS, Initiator, Responder
from codexctl.noise.keys import PrivateKey
from codexctl.noise.suites import SUITES

FILE = Path(__file__).parents[3] / "shared" / "data" / "noise-ik-vectors.json"


def _vectors() -> list[dict[str, Any]]:
    if not FILE.exists():
        return []
    loaded = json.loads(FILE.read_text())
    vectors: list[dict[str, Any]] = loaded["vectors"] if isinstance(loaded, dict) else loaded
    return vectors


def _supported(name: str) -> tuple[Any, str] | None:
    for suite in SUITES.values():
        for pattern in PATTERNS:
            if suite.protocol(pattern).decode() == name:
                return suite, pattern
    return None


CASES = [(v, found) for v in _vectors() if (found := _supported(v["protocol_name"]))]


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs")
@pytest.mark.skipif(not CASES, reason="the folder with the public vectors is not there")
def test_every_supported_public_vector() -> None:
    for vector, (suite, pattern) in CASES:
        run = _Run(vector, suite, pattern)
        run.handshake()
        run.transport()
    assert {pattern for _, (_, pattern) in CASES} == set(PATTERNS)


class _Run:
    def __init__(self, vector: dict[str, Any], suite: Any, pattern: str) -> None:
        def get(key: str) -> bytes | None:
            value = vector.get(key)
            return bytes.fromhex(value) if value else None

        psks = vector.get("init_psks") or []
        psk = bytes.fromhex(psks[0]) if psks else None
        initiator_static, responder_static = get("init_static"), get("resp_static")
        assert initiator_static is not None
        assert responder_static is not None
        self.messages = vector["messages"]
        self.initiator = Initiator(
            suite,
            PrivateKey(initiator_static),
            get("init_remote_static") or PrivateKey(responder_static).public_bytes,
            get("init_prologue") or b"",
            pattern=pattern,
            psk=psk,
            ephemeral=get("init_ephemeral"),
        )
        self.responder = Responder(
            suite,
            PrivateKey(responder_static),
            get("resp_prologue") or b"",
            pattern=pattern,
            psk=psk,
            ephemeral=get("resp_ephemeral"),
        )

    def _message(self, index: int) -> tuple[bytes, bytes]:
        message = self.messages[index]
        return bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"])

    def handshake(self) -> None:
        payload, ciphertext = self._message(0)
        first = self.initiator.write_first(payload)
        assert first == ciphertext
        assert self.responder.read_first(first).payload == payload
        payload, ciphertext = self._message(1)
        second, self.host = self.responder.write_second(payload)
        assert second == ciphertext
        got, self.device = self.initiator.read_second(second)
        assert got == payload

    def transport(self) -> None:
        for index in range(2, len(self.messages)):
            payload, ciphertext = self._message(index)
            sender, receiver = (
                (self.device, self.host) if index % 2 == 0 else (self.host, self.device)
            )
            assert sender.encrypt(payload) == ciphertext
            assert receiver.decrypt(ciphertext) == payload
