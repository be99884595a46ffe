"""The wrapper of noiseprotocol: what works, and that each of the library's traps is closed."""

from __future__ import annotations

import copy
import threading

import pytest

from codexctl.noise.handshake import (
    IK,
    IK_PSK1,
    IK_PSK2,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    PATTERNS,
    HandshakeFailed,
    Initiator,
    Responder,
    prologue,
)
from codexctl.noise.keys import PrivateKey
from codexctl.noise.suites import CHACHA, SUITES, Suite
from codexctl.noise.transport import MAX_PLAINTEXT_BYTES, NotGenuine, Transport

BOUND = prologue("test/v1", "host", "registration", "stream")
PSK = b"p" * 32


def keys() -> tuple[PrivateKey, PrivateKey]:
    return PrivateKey.generate(), PrivateKey.generate()


def pair(
    suite: Suite = CHACHA, pattern: str = IK, psk: bytes | None = None
) -> tuple[Initiator, Responder, PrivateKey]:
    device, host = keys()
    return (
        Initiator(suite, device, host.public_bytes, BOUND, pattern=pattern, psk=psk),
        Responder(suite, host, BOUND, pattern=pattern, psk=psk),
        device,
    )


def transports(suite: Suite = CHACHA) -> tuple[Transport, Transport]:
    initiator, responder, _ = pair(suite)
    responder.read_first(initiator.write_first())
    message, host = responder.write_second()
    _, device = initiator.read_second(message)
    return device, host


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda s: s.letter)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_handshake_shows_the_device_and_carries_payloads(suite: Suite, pattern: str) -> None:
    psk = None if pattern == IK else PSK
    initiator, responder, device = pair(suite, pattern, psk)
    first = responder.read_first(initiator.write_first(b"one"))
    assert (first.remote_static, first.payload) == (device.public_bytes, b"one")
    message, host_side = responder.write_second(b"two")
    payload, device_side = initiator.read_second(message)
    assert payload == b"two"
    assert host_side.handshake_hash == device_side.handshake_hash
    assert device_side.decrypt(host_side.encrypt(b"down")) == b"down"
    assert host_side.decrypt(device_side.encrypt(b"up")) == b"up"


def test_a_wrong_token_is_refused_at_message_1_with_psk1_and_names_a_guess() -> None:
    device, host = keys()
    initiator = Initiator(CHACHA, device, host.public_bytes, BOUND, pattern=IK_PSK1, psk=PSK)
    responder = Responder(CHACHA, host, BOUND, pattern=IK_PSK1, psk=b"q" * 32)
    with pytest.raises(HandshakeFailed) as caught:
        responder.read_first(initiator.write_first())
    assert caught.value.sender_knows_host


def test_a_wrong_token_shows_only_after_message_2_with_psk2() -> None:
    device, host = keys()
    initiator = Initiator(CHACHA, device, host.public_bytes, BOUND, pattern=IK_PSK2, psk=PSK)
    responder = Responder(CHACHA, host, BOUND, pattern=IK_PSK2, psk=b"q" * 32)
    assert responder.read_first(initiator.write_first()).remote_static == device.public_bytes
    message, _ = responder.write_second()
    with pytest.raises(HandshakeFailed):
        initiator.read_second(message)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 79, 80, 95, 96, 200, MAX_MESSAGE_BYTES + 1])
def test_noise_of_any_length_is_one_error_and_no_guess(size: int) -> None:
    _, host = keys()
    responder = Responder(CHACHA, host, BOUND, pattern=IK_PSK1, psk=PSK)
    with pytest.raises(HandshakeFailed) as caught:
        responder.read_first(b"\x07" * size)
    assert not caught.value.sender_knows_host


def test_after_a_failure_even_the_genuine_message_is_not_taken() -> None:
    initiator, responder, _ = pair()
    genuine = initiator.write_first()
    with pytest.raises(HandshakeFailed):
        responder.read_first(genuine[:-1] + b"\x00")
    with pytest.raises(RuntimeError):
        responder.read_first(genuine)
    with pytest.raises(RuntimeError):
        responder.write_second()


def test_a_broken_message_2_kills_the_initiator() -> None:
    initiator, responder, _ = pair()
    responder.read_first(initiator.write_first())
    message, _ = responder.write_second()
    with pytest.raises(HandshakeFailed):
        initiator.read_second(message[:-1] + bytes((message[-1] ^ 1,)))
    with pytest.raises(RuntimeError):
        initiator.read_second(message)


def test_the_prologue_is_bound() -> None:
    device, host = keys()
    other = prologue("test/v1", "host", "registration", "other stream")
    initiator = Initiator(CHACHA, device, host.public_bytes, BOUND)
    with pytest.raises(HandshakeFailed):
        Responder(CHACHA, host, other).read_first(initiator.write_first())


def test_the_prologue_has_lengths_so_that_parts_cannot_slide() -> None:
    assert prologue("l", "ab", "c") != prologue("l", "a", "bc")
    assert prologue("l", "é") == b"\0" * 7 + b"\x01l" + b"\0" * 7 + b"\x02" + "é".encode()


def test_suites_do_not_mix() -> None:
    device, host = keys()
    chacha, aesgcm = SUITES.values()
    initiator = Initiator(chacha, device, host.public_bytes, BOUND)
    with pytest.raises(HandshakeFailed):
        Responder(aesgcm, host, BOUND).read_first(initiator.write_first())


@pytest.mark.parametrize("low_order", [bytes(32), b"\x01" + bytes(31)])
def test_a_host_key_of_low_order_is_refused(low_order: bytes) -> None:
    device, _ = keys()
    with pytest.raises(HandshakeFailed):
        Initiator(CHACHA, device, low_order, BOUND).write_first()


def test_a_wrong_psk_is_a_mistake_of_the_caller() -> None:
    device, host = keys()
    for pattern, psk in ((IK, PSK), (IK_PSK1, None), (IK_PSK2, b"short"), ("IK1", None)):
        with pytest.raises(ValueError, match=r"psk|pattern"):
            Initiator(CHACHA, device, host.public_bytes, BOUND, pattern=pattern, psk=psk)


def test_payloads_are_bounded_both_ways() -> None:
    initiator, responder, _ = pair()
    with pytest.raises(ValueError, match="at most"):
        initiator.write_first(bytes(MAX_PAYLOAD_BYTES + 1))
    initiator, responder, _ = pair()
    first = responder.read_first(initiator.write_first(bytes(MAX_PAYLOAD_BYTES)))
    assert len(first.payload) == MAX_PAYLOAD_BYTES


def test_a_bytearray_and_a_view_are_taken_and_bytes_come_back() -> None:
    initiator, responder, _ = pair()
    first = responder.read_first(bytearray(initiator.write_first(b"x")))
    assert type(first.payload) is bytes
    message, _ = responder.write_second(b"y")
    payload, _ = initiator.read_second(memoryview(message))
    assert type(payload) is bytes


def test_an_oversized_plaintext_is_refused_before_the_channel_is_lost() -> None:
    device, host = transports()
    with pytest.raises(ValueError, match="at most 65519"):
        device.encrypt(bytes(MAX_PLAINTEXT_BYTES + 1))
    assert host.decrypt(device.encrypt(bytes(MAX_PLAINTEXT_BYTES))) == bytes(MAX_PLAINTEXT_BYTES)


def test_a_forged_or_replayed_message_leaves_the_nonce_where_it_was() -> None:
    device, host = transports()
    first, second = device.encrypt(b"1"), device.encrypt(b"2")
    for forged in (b"", b"short", second, first[:-1] + bytes((first[-1] ^ 1,)), bytes(70_000)):
        with pytest.raises(NotGenuine):
            host.decrypt(forged)
    assert host.decrypt(first) == b"1"
    with pytest.raises(NotGenuine):
        host.decrypt(first)
    assert host.decrypt(second) == b"2"
    assert (device.sent, host.received) == (2, 2)


def test_the_last_sequence_number_works_and_none_after_it() -> None:
    device, host = transports()
    for side in (device._encrypt, host._decrypt):
        side.n = 2**32 - 2
    assert host.decrypt(device.encrypt(b"last")) == b"last"
    from codexctl.errors import ProtocolError

    with pytest.raises(ProtocolError, match="used up"):
        device.encrypt(b"one too many")
    with pytest.raises(ProtocolError, match="used up"):
        host.decrypt(bytes(32))


def test_another_thread_may_not_use_a_transport() -> None:
    device, _ = transports()
    device.encrypt(b"mine")
    caught: list[BaseException] = []

    def use() -> None:
        try:
            device.encrypt(b"theirs")
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert [str(e) for e in caught] == ["a Noise transport is used by one thread"]


def test_a_failed_encryption_never_uses_its_nonce_again() -> None:
    device, host = transports()
    with pytest.raises(ValueError, match="buffer"):
        device.encrypt_into(b"abc", memoryview(bytearray(5)))
    assert device.sent == 1
    # The record is lost, not repeated: the next one has another nonce and does not decrypt first.
    with pytest.raises(NotGenuine):
        host.decrypt(device.encrypt(b"abc"))


def test_a_private_key_shows_nothing_and_is_not_copied() -> None:
    key = PrivateKey.generate()
    assert key.private_bytes.hex() not in repr(key)
    with pytest.raises(TypeError):
        copy.copy(key)
    with pytest.raises(ValueError, match="32 bytes"):
        PrivateKey(b"short")
