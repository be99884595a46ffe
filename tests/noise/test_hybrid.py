"""The hybrid suite by itself: its vectors, its sizes, what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import ProtocolError
from codexctl.noise.handshake import MAX_PAYLOAD_BYTES, HandshakeFailed
from codexctl.noise.hybrid import (
    FIRST_BYTES,
    SECOND_BYTES,
    HybridInitiator,
    HybridResponder,
)
from codexctl.noise.keys import (
    HybridPublic,
    hybrid_document,
    key_document,
    parse_hybrid_document,
)
from codexctl.noise.suites import DEFAULT, HYBRID
from codexctl.noise.transport import Transport
from tests.noise.make_hybrid_vectors import VECTORS, handshake, key

DEVICE, HOST, OTHER = key("device"), key("host"), key("other")


def _pair(bound: bytes = b"bound") -> tuple[HybridInitiator, HybridResponder]:
    return HybridInitiator(DEVICE, HOST.public, bound), HybridResponder(HOST, bound)


def _both() -> tuple[Transport, Transport]:
    initiator, responder = _pair()
    responder.read_first(initiator.write_first())
    message, host = responder.write_second()
    return initiator.read_second(message)[1], host


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda v: str(v["name"]))
def test_the_vectors_come_out_byte_for_byte(vector: dict[str, object]) -> None:
    first, second = (bytes.fromhex(p) for p in vector["payloads"])  # type: ignore[attr-defined]
    again = handshake(
        str(vector["name"]),
        bytes.fromhex(str(vector["prologue"])),
        first,
        second,
        vector["encapsulations"],  # type: ignore[arg-type]
    )
    assert again == vector


def test_sizes_are_those_of_the_official_end() -> None:
    assert (FIRST_BYTES, SECOND_BYTES) == (3568, 3424)
    initiator, responder = _pair()
    first = initiator.write_first(b"12")
    assert len(first) == 3570
    assert responder.read_first(first).payload == b"12"
    assert len(responder.write_second()[0]) == 3424


@given(at=st.integers(min_value=0, max_value=FIRST_BYTES - 1), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_changed_bit_of_message_1_is_refused(at: int, bit: int) -> None:
    initiator, responder = _pair()
    message = bytearray(initiator.write_first())
    message[at] ^= 1 << bit
    with pytest.raises(HandshakeFailed):
        responder.read_first(message)
    with pytest.raises(RuntimeError):
        responder.write_second()


@given(at=st.integers(min_value=0, max_value=SECOND_BYTES - 1), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_changed_bit_of_message_2_is_refused(at: int, bit: int) -> None:
    initiator, responder = _pair()
    responder.read_first(initiator.write_first())
    message = bytearray(responder.write_second()[0])
    message[at] ^= 1 << bit
    with pytest.raises(HandshakeFailed):
        initiator.read_second(message)


@given(noise=st.binary(max_size=FIRST_BYTES + MAX_PAYLOAD_BYTES + 2))
@settings(max_examples=30, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(HandshakeFailed):
        HybridResponder(HOST, b"").read_first(noise)


@pytest.mark.parametrize("size", [0, FIRST_BYTES - 1, FIRST_BYTES + MAX_PAYLOAD_BYTES + 1, 65535])
def test_impossible_lengths_are_refused(size: int) -> None:
    with pytest.raises(HandshakeFailed):
        HybridResponder(HOST, b"").read_first(bytes(size))


def test_another_prologue_is_refused() -> None:
    initiator = HybridInitiator(DEVICE, HOST.public, b"one")
    with pytest.raises(HandshakeFailed):
        HybridResponder(HOST, b"other").read_first(initiator.write_first())


@pytest.mark.parametrize(
    "wrong",
    [
        HybridPublic(OTHER.public.x25519, HOST.public.mlkem768),
        HybridPublic(HOST.public.x25519, OTHER.public.mlkem768),
    ],
    ids=["another X25519 key", "another ML-KEM key"],
)
def test_each_half_of_the_hosts_key_counts(wrong: HybridPublic) -> None:
    initiator = HybridInitiator(DEVICE, wrong, b"")
    with pytest.raises(HandshakeFailed):
        HybridResponder(HOST, b"").read_first(initiator.write_first())


def test_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(HandshakeFailed):
        HybridInitiator(DEVICE, HybridPublic(bytes(32), HOST.public.mlkem768), b"").write_first()


def test_records_go_both_ways_and_not_twice() -> None:
    device, host = _both()
    record = device.encrypt(b"one")
    assert host.decrypt(record) == b"one"
    with pytest.raises(ProtocolError):
        host.decrypt(record)
    assert host.decrypt(device.encrypt(b"two")) == b"two"
    assert device.handshake_hash == host.handshake_hash


def test_messages_are_written_and_read_once() -> None:
    initiator, responder = _pair()
    with pytest.raises(RuntimeError):
        HybridInitiator(DEVICE, HOST.public, b"").read_second(b"")
    with pytest.raises(ValueError, match="at most"):
        initiator.write_first(bytes(MAX_PAYLOAD_BYTES + 1))
    first = initiator.write_first()
    with pytest.raises(RuntimeError):
        initiator.write_first()
    responder.read_first(first)
    with pytest.raises(RuntimeError):
        responder.read_first(first)


def test_a_private_key_shows_and_pickles_nothing() -> None:
    assert repr(DEVICE) == f"HybridKey(public={DEVICE.public.x25519.hex()})"
    with pytest.raises(TypeError):
        DEVICE.__reduce__()


def test_documents_are_read_back_and_their_hash_is_of_both_keys() -> None:
    public = HOST.public
    assert parse_hybrid_document(hybrid_document(public)) == public
    assert hybrid_document(public)["suite"] == HYBRID
    # A codexctl host's document names the suite that every device knows.
    assert parse_hybrid_document(key_document(DEFAULT, *public)) == public
    assert len({public.sha256, OTHER.public.sha256, public._replace(x25519=bytes(32)).sha256}) == 3
    for broken in (None, {}, key_document(DEFAULT, public.x25519), {"mlkem768_public_key": "="}):
        with pytest.raises(ProtocolError):
            parse_hybrid_document(broken)
