"""A relay with a key of its own: pinned by the pairing URL, on both ends."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from codexctl.client.connection import Connection
from codexctl.client.store import HostStore
from codexctl.errors import AuthenticationFailed
from codexctl.paths import Home
from codexctl.state.identity import load_identity
from codexctl.wire.pairing_url import format_url, parse_url
from tests.support.programs import Machine

OPTIONS = ("up", "--json", "--tls-self-signed", "--listen", "127.0.0.1:0", "--name", "box")


def test_everything_works_over_a_pinned_tls_relay(tmp_path: Path) -> None:
    host, device = Machine(tmp_path / "host"), Machine(tmp_path / "device")
    with host.start(*OPTIONS) as up:
        assert up.event("ready")["relay"].startswith("https://")
        event = up.event("pairing")
        offer = parse_url(event["url"])
        assert offer.pin is not None
        wrong = format_url(offer._replace(pin=bytes(32)))
        done = device.run("pair", wrong, check=255)
        assert b"shows another key" in done.stderr
        # Without the pin the certificate is nobody's.
        done = device.run("pair", event["code"], "--relay", offer.relay, check=255)
        assert b"not trusted" in done.stderr
        device.run("pair", event["url"])
        data = bytes(range(256)) * 20_000
        got = device.run("exec", "box", "--", "cat", input=data).stdout
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        assert device.json("hosts")[0]["online"] is True
        # A device that knows this relay by its pin can type a code for another host of it.
        home = Home(str(device.home))
        record = HostStore(home).find("box")
        assert record is not None
        with pytest.raises(AuthenticationFailed, match="another key"):
            Connection.open(record._replace(pin=b"\x01" * 32), load_identity(home))


def test_beyond_loopback_only_with_tls(tmp_path: Path) -> None:
    done = Machine(tmp_path).run("relay", "serve", "--listen", "0.0.0.0:0", check=2)
    assert b"TLS" in done.stderr
    assert b"hint:" in done.stderr
