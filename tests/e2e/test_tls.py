"""A relay with a key of its own: pinned by the pairing URL, on both ends."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codexctl.client.connection import Connection
from codexctl.client.store import HostStore
from codexctl.errors import AuthenticationFailed
from codexctl.paths import Home
from codexctl.relay.tls import self_signed
from codexctl.state.identity import load_identity
from codexctl.wire.pairing_url import format_url, parse_url
from tests.relay.ends import tls_context
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


class Impostor:
    """Between a device and a relay, with a key of its own, and answers that lead back to itself."""

    def __init__(self, relay: str, home: Home) -> None:
        self._relay = relay.removeprefix("https://")
        certificate, key, _ = self_signed(home, ["127.0.0.1"])
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificate, key)
        self.seen = bytearray()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its address."""
        server = await asyncio.start_server(self._stand, "127.0.0.1", 0, ssl=self._server)
        async with server:
            _, port = server.sockets[0].getsockname()
            self._own = f"127.0.0.1:{port}"
            yield f"https://{self._own}"

    async def _stand(self, near: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        host, _, port = self._relay.partition(":")
        far, inward = await asyncio.open_connection(host, int(port), ssl=tls_context())
        try:
            await asyncio.gather(self._carry(near, inward), self._carry(far, out))
        finally:
            inward.close()
            out.close()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                self.seen += data
                sink.write(data.replace(self._relay.encode(), self._own.encode()))
                await sink.drain()
        except OSError:
            pass  # one of the two has hung up
        sink.close()


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

    async def pair(impostor: Impostor, code: str) -> bytes:
        async with impostor.listening() as url:
            words = ("pair", code, "--relay", url)
            done = await asyncio.to_thread(device.run, *words, check=255)
            return done.stderr

    with host.start(*OPTIONS) as up:
        event = up.event("pairing")
        relay = parse_url(event["url"]).relay
        impostor = Impostor(relay, Home(str(tmp_path / "impostor")).ensure())
        said = asyncio.run(pair(impostor, event["code"]))
        assert b"the relay shows this device another key" in said
        assert b"codexctl pair --show" in said
        assert b"/v1/pairings/claim" in impostor.seen, "it did stand in between"
        assert device.json("hosts") == []
        assert host.json("devices") == []
