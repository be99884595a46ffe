"""A relay with a key of its own: pinned by the pairing URL, on both ends."""

from __future__ import annotations

import hashlib
import socket
import ssl
from pathlib import Path

import pytest

from codexctl.client.connection import Connection
from codexctl.client.store import HostStore
from codexctl.errors import AuthenticationFailed
from codexctl.paths import Home
from codexctl.relay.tls import self_signed
from codexctl.state.identity import load_identity
from codexctl.wire.pairing_url import format_url, parse_url
from tests.support.programs import Machine
from tests.support.tap import Tap

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


class Impostor(Tap):
    """Between a device and a relay, with a key of its own, and answers that lead back to itself."""

    def __init__(self, target: str, home: Home) -> None:
        super().__init__(target)
        certificate, key, _ = self_signed(home, ["127.0.0.1"])
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificate, key)
        self._client = ssl.create_default_context()
        self._client.check_hostname = False
        self._client.verify_mode = ssl.CERT_NONE
        self._addresses = [(target.encode(), self.url.removeprefix("https://").encode())]

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def between(
        self, near: socket.socket, far: socket.socket
    ) -> tuple[socket.socket, socket.socket]:
        return self._server.wrap_socket(near, server_side=True), self._client.wrap_socket(far)

    def altered(self, data: bytes) -> bytes:
        for theirs, ours in self._addresses:
            data = data.replace(theirs, ours)
        return data


def test_a_typed_code_takes_the_key_that_the_host_names(tmp_path: Path) -> None:
    host, device = Machine(tmp_path / "host"), Machine(tmp_path / "device")
    with host.start(*OPTIONS) as up:
        event = up.event("pairing")
        offer = parse_url(event["url"])
        # A mistyped word costs the offer as ever, and says so.
        number, first, *rest = event["code"].split("-")
        other = "-".join((number, *rest, first))
        wrong = device.run("pair", other, "--relay", offer.relay, check=255)
        assert b"the code is wrong, and used up by this try" in wrong.stderr
        again = host.json("pair", "--show", "--no-wait")
        device.run("pair", again["code"], "--relay", offer.relay, "--name", "box")
        record = HostStore(Home(str(device.home))).find("box")
        assert record is not None
        assert record.pin == offer.pin
        assert device.run("exec", "box", "--", "echo", "there").stdout == b"there\n"


def test_a_typed_code_finds_out_who_stands_in_between(tmp_path: Path) -> None:
    host, device = Machine(tmp_path / "host"), Machine(tmp_path / "device")
    with host.start(*OPTIONS) as up:
        event = up.event("pairing")
        target = parse_url(event["url"]).relay.removeprefix("https://")
        with Impostor(target, Home(str(tmp_path / "impostor")).ensure()) as impostor:
            done = device.run("pair", event["code"], "--relay", impostor.url, check=255)
            assert b"the relay shows this device another key" in done.stderr
            assert b"codexctl pair --show" in done.stderr
            assert b"/v1/pairings/claim" in impostor.seen(), "it did stand in between"
        assert device.json("hosts") == []
        assert host.json("devices") == []
