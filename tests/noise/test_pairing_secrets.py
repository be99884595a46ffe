"""What a token leads to, and the typed code's exchange: the device's one guess comes first."""

from __future__ import annotations

import pytest

from codexctl.noise.code import CodeDevice, CodeHost, CodeNoise, WrongCode
from codexctl.noise.offer import derive, hkdf


def test_hkdf_is_that_of_rfc_5869() -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    expected = HKDF(SHA256(), 32, None, b"info").derive(b"secret")
    assert hkdf(b"secret", "info") == expected


def test_the_keys_of_an_offer_differ_and_show_nothing() -> None:
    keys = derive(b"t" * 16)
    assert keys.psk.hex() not in repr(keys)
    assert keys.ticket.reveal() not in repr(keys)
    assert derive(b"t" * 16) == keys
    assert derive(b"u" * 16).offer_id != keys.offer_id
    assert len(keys.psk) == 32


def exchange(
    device_words: str, host_words: str, stream: str = "s"
) -> tuple[CodeDevice, CodeHost, bytes]:
    device, host = CodeDevice(device_words, "s"), CodeHost(host_words, stream)
    return device, host, device.host_message(host.device_message(device.start()))


def test_the_right_code_gives_both_the_document_and_one_secret() -> None:
    device, host, confirmation = exchange("a-b-c", "a-b-c")
    answer, secret = host.confirm(confirmation, b'{"name":"x"}')
    assert device.document(answer) == (b'{"name":"x"}', secret)


@pytest.mark.parametrize(("words", "stream"), [("a-b-d", "s"), ("a-b-c", "another stream")])
def test_a_wrong_code_or_another_stream_is_caught_by_the_host(words: str, stream: str) -> None:
    _, host, confirmation = exchange("a-b-c", words, stream)
    with pytest.raises(WrongCode):
        host.confirm(confirmation, b"{}")
    with pytest.raises(CodeNoise):
        host.confirm(confirmation, b"{}")


def test_a_relay_that_changes_the_document_is_caught() -> None:
    device, host, confirmation = exchange("a-b-c", "a-b-c")
    answer, _ = host.confirm(confirmation, b'{"key":"right"}')
    with pytest.raises(WrongCode):
        device.document(answer.replace(b"right", b"wrong"))


@pytest.mark.parametrize("message", [b"", b"A", bytes(33), b"B" + b"\xff" * 32, b"A" * 200])
def test_what_is_no_message_is_no_guess(message: bytes) -> None:
    with pytest.raises(CodeNoise):
        CodeHost("a-b-c", "s").device_message(message)
    device = CodeDevice("a-b-c", "s")
    with pytest.raises(CodeNoise):
        device.host_message(message)


def test_a_reflected_message_is_noise() -> None:
    device = CodeDevice("a-b-c", "s")
    with pytest.raises(CodeNoise):
        device.host_message(device.start())
