"""TLS on the relay's one port, the self-signed key and its pin, and what is refused without TLS."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from codexctl.errors import AuthenticationFailed, CodexctlError, StateError, UsageError
from codexctl.paths import Home
from codexctl.relay import tls
from codexctl.relay.address import Listen, in_url, is_loopback, parse_listen, reachable_name
from codexctl.relay.ping import ping
from codexctl.relay.server import RelayConfig, RelayServer
from tests.relay.ends import Ends, data, frame, new_stream, run, serving


def test_frames_pass_through_tls_on_the_same_port(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, tls_self_signed=True) as ends:
            assert ends.relay.base_url.startswith("https://127.0.0.1:")
            registered = await ends.register()
            assert registered.json["url"].startswith(f"wss://{ends.address}/")
            host, device = await ends.host(), await ends.device()
            stream = new_stream()
            await device.send(frame(stream))
            assert await host.recv() == frame(stream)
            for size in (1, 60_000, 65_535):
                message = data(stream, os.urandom(size))
                for _ in range(20):
                    await device.send(message)
                for _ in range(20):
                    assert await host.recv() == message
                await host.send(message)
                assert await device.recv() == message

    run(test)


def test_a_slow_receiver_behind_tls_holds_up_its_sender(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, tls_self_signed=True) as ends:
            host, device = await ends.host(), await ends.device()
            stream, block = new_stream(), os.urandom(60_000)
            host.transport.pause_reading()
            got = hashlib.sha256()
            sent = hashlib.sha256()
            total = 400
            async with asyncio.TaskGroup() as group:

                async def flood() -> None:
                    for seq in range(total):
                        message = data(stream, block, seq)
                        sent.update(message)
                        await device.send(message)

                group.create_task(flood())
                await ends.until(lambda: any(x.paused for x in ends.relay._links.values()))
                assert ends.figure("queued_bytes") < 1 << 20
                host.transport.resume_reading()
                for _ in range(total):
                    message = await host.recv()
                    assert isinstance(message, bytes)
                    got.update(message)
            assert got.digest() == sent.digest()

    run(test)


def test_a_stranger_who_does_not_finish_the_handshake_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codexctl.relay.server.HEAD_TIMEOUT_S", 0.2)

    async def test() -> None:
        async with serving(tmp_path, tls_self_signed=True) as ends:
            for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100)):
                reader, writer = await asyncio.open_connection("127.0.0.1", ends.port)
                writer.write(garbage)
                try:
                    await reader.read()
                except ConnectionError:
                    pass
                writer.close()
            await ends.host()

    run(test)


def test_the_pin_is_the_keys_and_stays(tmp_path: Path) -> None:
    home = Home(str(tmp_path / "home"))
    cert, key, pin = tls.self_signed(home, ["127.0.0.1", "relay.example.org"])
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    again = tls.self_signed(home, ["10.0.0.1"])
    assert again == (cert, key, pin)
    public = subprocess.run(
        ["openssl", "pkey", "-in", key, "-pubout", "-outform", "DER"],
        check=True,
        capture_output=True,
    ).stdout
    digest = hashlib.sha256(public).digest()
    assert pin == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    os.chmod(key, 0o644)
    with pytest.raises(StateError, match="can be read by others"):
        tls.self_signed(home, [])
    Path(key).write_bytes(b"nonsense")
    os.chmod(key, 0o600)
    with pytest.raises(StateError, match="not a private key"):
        tls.self_signed(home, [])


def test_a_device_can_check_the_pin_of_its_connection(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, tls_self_signed=True) as ends:
            _, writer = await ends.raw()
            session = writer.get_extra_info("ssl_object")
            assert isinstance(session, ssl.SSLObject)
            certificate = session.getpeercert(True)
            assert certificate is not None
            assert tls.spki_pin_of_der(certificate) == ends.relay.pin
            assert session.version() in ("TLSv1.2", "TLSv1.3")
            url, pin = ends.relay.base_url, ends.relay.pin
            answer = await asyncio.to_thread(ping, url, pin=pin, count=2)
            assert (answer.status, answer.clock_skew_s) == ("ok", 0)
            with pytest.raises(AuthenticationFailed, match="not the pinned one"):
                await asyncio.to_thread(ping, url, pin="A" * 43)
            with pytest.raises(AuthenticationFailed) as caught:
                await asyncio.to_thread(ping, url)
            assert "--pin" in caught.value.hint

    run(test)


def test_a_certificate_from_files(tmp_path: Path) -> None:
    cert, key, _ = tls.self_signed(Home(str(tmp_path / "ca")), ["127.0.0.1"])

    async def test() -> None:
        async with serving(tmp_path, tls_cert=cert, tls_key=key) as ends:
            assert ends.relay.pin == ""
            trusting = ssl.create_default_context(cafile=cert)
            reader, writer = await asyncio.open_connection("127.0.0.1", ends.port, ssl=trusting)
            writer.write(b"GET /v1/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

    run(test)


def test_a_renewed_certificate_needs_no_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codexctl.relay.server.TICK_S", 0.02)
    monkeypatch.setattr("codexctl.relay.server.CERTIFICATE_TICKS", 1)
    old = tls.self_signed(Home(str(tmp_path / "old")), ["127.0.0.1"])
    new = tls.self_signed(Home(str(tmp_path / "new")), ["127.0.0.1"])
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(pair: tuple[str, str, str]) -> None:
        for source, target in zip(pair, (cert, key), strict=False):
            shutil.copyfile(source, target)

    async def shown(ends: Ends) -> str:
        _, writer = await ends.raw()
        certificate = writer.get_extra_info("ssl_object").getpeercert(True)
        return tls.spki_pin_of_der(certificate)

    async def test() -> None:
        install(old)
        async with serving(tmp_path, tls_cert=str(cert), tls_key=str(key)) as ends:
            host = await ends.host()
            assert await shown(ends) == old[2]
            install(new)
            while await shown(ends) != new[2]:
                await asyncio.sleep(0.01)
            cert.write_text("a half-written file")
            ticks = ends.relay._ticks
            await ends.until(lambda: ends.relay._ticks > ticks + 2)
            assert await shown(ends) == new[2]
            assert ends.online()
            await host.close()

    run(test)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"listen": "0.0.0.0:0"}, "--tls-self-signed"),
        ({"listen": "[::]:0"}, "--tls-self-signed"),
        ({"listen": "192.0.2.7:0", "public_url": "https://relay.example.org"}, "127.0.0.1"),
        ({"public_url": "http://relay.example.org"}, "https:"),
        ({"public_url": "relay.example.org"}, "https://"),
        ({"public_url": "https://relay.example.org/?x"}, "https://"),
        ({"public_url": "https://a:99999"}, "https://"),
        ({"tls_cert": "/x"}, "--tls-key"),
        ({"tls_cert": "/x", "tls_key": "/y", "tls_self_signed": True}, "--tls-self-signed"),
        ({"listen": "nonsense"}, "127.0.0.1:8700"),
        ({"listen": "127.0.0.1:99999"}, "127.0.0.1:8700"),
        ({"listen": ":80"}, "127.0.0.1:8700"),
    ],
)
def test_what_is_unsafe_or_senseless_is_refused_with_a_hint(
    tmp_path: Path, settings: dict[str, Any], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        RelayServer(RelayConfig(home=Home(str(tmp_path)), **settings))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "192.0.2.7:9"},  # not an address of this machine
        {"listen": "no-such-host.invalid:9"},
        {"tls_cert": "/does/not/exist", "tls_key": "/does/not/exist"},
    ],
)
def test_what_cannot_be_bound_or_read_is_one_sentence(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    if "listen" in settings:
        settings = settings | {"tls_self_signed": True}

    async def test() -> None:
        with pytest.raises(CodexctlError) as caught:
            async with serving(tmp_path, **settings):
                pass
        assert caught.value.message
        assert "\n" not in caught.value.message

    run(test)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            with pytest.raises(StateError, match=f"port {ends.port}: Address already in use"):
                async with serving(tmp_path / "other", listen=f"127.0.0.1:{ends.port}"):
                    pass

    run(test)


def test_behind_a_reverse_proxy_urls_are_the_public_ones(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path, public_url="https://relay.example.org/codex/") as ends:
            assert ends.relay.base_url == "https://relay.example.org/codex"
            assert ends.relay.local_url == f"http://{ends.address}"
            for header in ("Host: relay.example.org", "X-Forwarded-For: 203.0.113.9"):
                answer = await ends.register(headers=(header,))
                assert answer.json["url"].startswith("wss://relay.example.org/codex/v1/socket/")
            # Who is on this machine, as the host of `codexctl up`, needs no way around.
            assert (await ends.register()).json["url"].startswith(f"ws://{ends.address}/")
            await ends.host()
            # Nothing tells such a relay for sure who asks for its metrics.
            assert (await ends.call("GET", "/metrics", token=None)).status == 401

    run(test)


def test_urls_follow_the_name_by_which_the_relay_was_called(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as ends:
            answer = await ends.register(headers=("Host: localhost:9999",))  # a forwarded port
            assert answer.json["url"].startswith("ws://localhost:9999/v1/socket/")
            answer = await ends.register(headers=("Host: a/b@c",))
            assert answer.json["url"].startswith(f"ws://{ends.address}/v1/socket/")

    run(test)


def test_addresses() -> None:
    assert parse_listen("127.0.0.1:0") == Listen("127.0.0.1", 0)
    assert parse_listen("[::1]:80") == Listen("::1", 80)
    assert parse_listen("8700") == Listen("127.0.0.1", 8700)
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example.org")
    assert not is_loopback("10.0.0.1")
    assert in_url("::1", 80, "http") == "[::1]"
    assert in_url("::1", 81, "http") == "[::1]:81"
    assert reachable_name("relay.example.org") == "relay.example.org"
    assert reachable_name("0.0.0.0") not in ("0.0.0.0", "")
