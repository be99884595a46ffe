"""Addresses of relays, heads of HTTP answers, rules of forwards: what is taken, what refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codexctl.cli.forward import parse_rule
from codexctl.client.http import parse_head
from codexctl.client.sockets import Address, parse_address
from codexctl.errors import ProtocolError, UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8700", Address(False, "127.0.0.1", 8700, "/")),
        ("https://relay.example", Address(True, "relay.example", 443, "/")),
        ("ws://h/x?y=1", Address(False, "h", 80, "/x?y=1")),
        ("wss://[::1]:9/a", Address(True, "::1", 9, "/a")),
        ("http://h?q", Address(False, "h", 80, "/?q")),
        ("http://h/p#fragment", Address(False, "h", 80, "/p")),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse_address(url) == address


def test_an_ipv6_authority_has_brackets() -> None:
    assert parse_address("http://[::1]:9").authority == "[::1]:9"


@pytest.mark.parametrize(
    "url",
    ["", "relay", "ftp://h", "http://", "http://:80", "http://u@h", "http://h:0", "http://h:99999",
     "http://h:x", "http://h/a b", "http://h/\r\nX: y", "http://h\n/", "http://h/é", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert caught.value.hint


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_parser_or_smuggles_a_line(text: str) -> None:
    for candidate in (text, "http://" + text):
        with contextlib.suppress(UsageError):
            address = parse_address(candidate)
            assert not set("\r\n ") & set(address.host + address.target)


def test_a_ticket_is_not_shown_in_the_error() -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("http://h:bad/x?ticket=secret")
    assert "secret" not in str(caught.value)


def test_a_head_is_parsed() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nA: b\r\nC:d ") == (200, {"a": "b", "c": "d"})


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_head_parser(raw: bytes) -> None:
    for candidate in (raw, b"HTTP/1.1 " + raw):
        with contextlib.suppress(ProtocolError):
            parse_head(candidate)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3000", ("127.0.0.1", 3000, "127.0.0.1", 3000)),
        ("8080:3000", ("127.0.0.1", 8080, "127.0.0.1", 3000)),
        ("0:5432", ("127.0.0.1", 0, "127.0.0.1", 5432)),
        ("8080:db.lan:80", ("127.0.0.1", 8080, "db.lan", 80)),
        ("0.0.0.0:8080:80", ("0.0.0.0", 8080, "127.0.0.1", 80)),
        ("127.0.0.2:8080:db:80", ("127.0.0.2", 8080, "db", 80)),
    ],
)
def test_forward_rules(text: str, rule: tuple[str, int, str, int]) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "x", "1:x", "70000", "1:0", ":80", "80:", "1:2:3:4:5", "-1"])
def test_bad_forward_rules(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)
