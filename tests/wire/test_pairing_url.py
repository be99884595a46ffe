"""The pairing URL: round trips, and that a cut or altered one never passes for the original."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.errors import UsageError
from codexctl.wire.pairing_url import PairingOffer, format_url, is_loopback, parse_url

KEY = bytes(range(32))
TOKEN = bytes(range(100, 116))
OFFER = PairingOffer("http://127.0.0.1:8080", "env-1_x", KEY, "c", TOKEN, "box")
URL = format_url(OFFER)

relays = st.sampled_from(
    [
        "http://127.0.0.1:8080",
        "http://localhost",
        "http://[::1]:9",
        "https://relay.example.net",
        "https://example.net:8443/codexctl/relay",
        "https://10.0.0.7:443",
    ]
)
offers = st.builds(
    PairingOffer,
    relays,
    st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=256),
    st.binary(min_size=32, max_size=32),
    st.sampled_from("ca"),
    st.binary(min_size=16, max_size=16),
    st.text(min_size=1, max_size=64).filter(str.isprintable),
    st.none() | st.binary(min_size=32, max_size=32),
).filter(lambda offer: offer.pin is None or offer.relay.startswith("https:"))


@given(offers)
@settings(max_examples=100, deadline=None)
def test_an_offer_survives_its_url(offer: PairingOffer) -> None:
    url = format_url(offer)
    assert url.isascii()
    assert parse_url(url) == offer
    assert parse_url(f"  {url}\n") == offer


@given(offers, st.data())
@settings(max_examples=200, deadline=None)
def test_a_truncated_url_never_passes_for_the_original(
    offer: PairingOffer, data: st.DataObject
) -> None:
    url = format_url(offer)
    cut = url[: data.draw(st.integers(0, len(url) - 1))]
    try:
        parsed = parse_url(cut)
    except UsageError:
        pass
    else:
        # Only the end, name or pin, can be cut without a trace; key and token are whole.
        assert parsed != offer
        assert parsed[:5] == offer[:5]


@given(offers, st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_character_never_passes_for_the_original(
    offer: PairingOffer, data: st.DataObject
) -> None:
    url = format_url(offer)
    at = data.draw(st.integers(0, len(url) - 1))
    character = data.draw(st.characters(max_codepoint=0x2FF).filter(lambda c: c != url[at]))
    changed = url[:at] + character + url[at + 1 :]
    try:
        parsed = parse_url(changed)
    except UsageError:
        return
    assert parsed != offer or changed.strip() == url


@given(
    st.text(max_size=200) | st.text(max_size=100).map(lambda tail: f"http://127.0.0.1/pair#{tail}")
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_an_offer_or_a_usage_error(text: str) -> None:
    try:
        offer = parse_url(text)
    except UsageError:
        return
    assert parse_url(format_url(offer)) == offer


def _with(old: str, new: str) -> str:
    assert old in URL
    return URL.replace(old, new)


@pytest.mark.parametrize(
    ("url", "sentence", "hint"),
    [
        ("7-acorn-bamboo-comet", "not a pairing URL", "pair --show"),
        ("ftp://127.0.0.1/pair#v=1", "not a pairing URL", "pair --show"),
        (URL[: URL.index("#")], "cut off or is not one", "pair --show"),
        (URL[: URL.index("&")], "its h= is missing", "in quotes"),
        (URL[: URL.index("&t")], "its t= is missing", "pair --show"),
        (_with("v=1", "v=2"), "version 2", "same version"),
        (_with("v=1", "v=x"), "was cut or altered", "pair --show"),
        (_with("/pair#", "/pear#"), "cut off or is not one", "pair --show"),
        (_with("127.0.0.1", "192.0.2.1"), "without TLS on another machine, 192.0.2.1", "--tls"),
        (_with("http:", "https:") + "&p=AAAA", "its p= is damaged", "pair --show"),
        (URL + "&p=" + "A" * 43, "pins a key of a relay without TLS", "pair --show"),
        (URL + "&x=1", "a part 'x'", "pair --show"),
        (URL + "&n=box", "was cut or altered", "pair --show"),
        (_with("n=box", "n="), "host name is not one", "pair --show"),
        (_with("n=box", "n=a%0Ab"), "host name is not one", "pair --show"),
        (_with("n=box", "n=%ff"), "host name is not one", "pair --show"),
        (_with("n=box", "n=b%6Fx"), "host name is not one", "pair --show"),
        (_with("s=c", "s=z"), "a suite 'z'", "update"),
        (_with("h=env-1_x", "h=env.1"), "host id is not one", "pair --show"),
        (_with("127.0.0.1:8080", "127.0.0.1:99999"), "names no relay", "pair --show"),
        (_with("127.0.0.1:8080", "me@127.0.0.1"), "not a base URL", "pair --show"),
        (_with("127.0.0.1:8080", "127.0.0.1/x?y"), "not a base URL", "pair --show"),
        (_with("127.0.0.1:8080", ""), "names no relay", "pair --show"),
        (URL + "x" * 2048, "too long", "pair --show"),
    ],
)
def test_each_damage_has_its_sentence(url: str, sentence: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(url)
    assert sentence in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_unused_bits_of_base64_are_not_a_second_spelling() -> None:
    token = URL.split("&t=")[1].split("&")[0]
    assert token[-1] in "AQgw"
    for last in set(string.ascii_letters + string.digits + "-_") - set("AQgw"):
        with pytest.raises(UsageError, match="its t= is damaged"):
            parse_url(URL.replace(token, token[:-1] + last))


def test_an_offer_that_no_url_carries_is_refused() -> None:
    with pytest.raises(ValueError, match="host id"):
        format_url(OFFER._replace(environment_id="a b"))
    with pytest.raises(ValueError, match="without TLS"):
        format_url(OFFER._replace(relay="http://example.net"))


def test_a_repr_does_not_show_the_token() -> None:
    assert repr(OFFER) == (
        "PairingOffer(relay='http://127.0.0.1:8080', name='box', token=(hidden))"
    )


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("127.0.0.1.example.net", False),
        ("10.0.0.1", False),
        ("localhost.example.net", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback(host) is local
