"""Paths that break, relays that replay, ends of another version: against a real host."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codexctl.client import handshake as device_handshake
from codexctl.client.ask import control
from codexctl.client.connection import Connection
from codexctl.client.handshake import WrongHostKey, exchange, new_stream_id, open_websocket
from codexctl.client.registry import Relay, connect
from codexctl.client.store import HostRecord, HostStore
from codexctl.errors import AuthenticationFailed, ConnectionFailed
from codexctl.noise.handshake import Initiator, prologue
from codexctl.noise.keys import PrivateKey
from codexctl.noise.suites import DEFAULT
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.session.records import PathFault, SessionOver
from codexctl.state.identity import load_identity
from codexctl.wire.handshake import KIND_SESSION, PROLOGUE_LABEL
from tests.e2e.conftest import Pair
from tests.support.programs import Machine
from tests.support.tap import Tap

MIB = 1 << 20


def paired(box: Pair) -> tuple[HostRecord, PrivateKey]:
    """The device's own record and key, to speak as it does."""
    home = Home(str(box.device.home))
    record = HostStore(home).find("box")
    assert record is not None
    return record, load_identity(home)


@pytest.mark.slow
def test_a_path_that_is_cut_again_and_again_delivers_every_byte_once(tmp_path: Path) -> None:
    box = Pair(tmp_path)
    try:
        with Tap(box.relay.removeprefix("http://")) as tap:
            url = box.up.event("pairing")["url"].replace(box.relay, tap.url)
            box.device.run("pair", url)
            script = (
                "import sys,hashlib; h=hashlib.sha256()\n"
                "for i in range(80):\n"
                "    b=hashlib.sha256(b'%d' % i).digest()*32768; h.update(b)\n"
                "    sys.stdout.buffer.write(b)\n"
                "sys.stderr.write(h.hexdigest())"
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "codexctl", "exec", "box", "--", "python3", "-c", script],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=box.device.cwd,
                env=box.device.environment,
            )
            digest, read, cuts = hashlib.sha256(), 0, 0
            with process:
                assert process.stdout is not None
                assert process.stderr is not None
                while chunk := process.stdout.read(MIB):
                    digest.update(chunk)
                    read += len(chunk)
                    if read >= (cuts + 1) * 15 * MIB and cuts < 4:
                        cuts += 1
                        tap.cut()
                told = process.stderr.read().decode()
            assert (process.returncode, read, cuts) == (0, 80 * MIB, 4), told
            assert digest.hexdigest() == told[-64:]
    finally:
        box.up.__exit__(None, None, None)


def test_another_version_of_the_protocol_is_named(
    box: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, key = paired(box)
    monkeypatch.setattr(device_handshake, "PROTOCOL_VERSION", 2)
    with pytest.raises(SessionOver, match="another version of the protocol") as caught:
        Connection.open(record, key)
    assert "this host speaks version 1" in str(caught.value)
    assert "update codexctl" in caught.value.hint


def test_a_relay_that_presents_another_key_is_caught(box: Pair) -> None:
    record, key = paired(box)
    with pytest.raises(WrongHostKey, match="another key"):
        Connection.open(record._replace(host_key=PrivateKey.generate().public_bytes), key)


def test_a_device_whose_key_is_not_paired_is_refused(box: Pair) -> None:
    record, _ = paired(box)
    with pytest.raises(SessionOver, match="does not know this device"):
        Connection.open(record, PrivateKey.generate())


def test_a_replayed_first_message_opens_nothing(box: Pair) -> None:
    record, key = paired(box)
    relay = Relay(record.relay, record.pin, record.token)
    answer = connect(relay, record.environment_id, DEFAULT, key.public_bytes)
    stream = new_stream_id()
    bound = prologue(PROLOGUE_LABEL, record.environment_id, answer.registration_id, stream)
    first = Initiator(DEFAULT, key, record.host_key, bound).write_first()
    genuine = open_websocket(relay, answer)
    exchange(genuine, stream, KIND_SESSION, first)
    # The same stream has its session; on another stream the prologue does not fit.
    for replay_stream, error in ((stream, ConnectionFailed), (new_stream_id(), SessionOver)):
        again = connect(relay, record.environment_id, DEFAULT, key.public_bytes)
        websocket = open_websocket(relay, again)
        with pytest.raises(error):
            exchange(websocket, replay_stream, KIND_SESSION, first)
        websocket.close()
    genuine.close()


@pytest.mark.parametrize("payload", [b"", b"\x01" * 96, bytes(4000)])
def test_garbage_in_a_handshake_is_refused_and_the_host_serves_on(
    box: Pair, payload: bytes
) -> None:
    record, key = paired(box)
    relay = Relay(record.relay, record.pin, record.token)
    for kind in (1, 2, 3, 9):
        answer = connect(relay, record.environment_id, DEFAULT, key.public_bytes)
        websocket = open_websocket(relay, answer)
        with pytest.raises((SessionOver, PathFault)):
            exchange(websocket, new_stream_id(), kind, payload)
        websocket.close()
    with Connection.open(record, key) as connection:
        assert control(connection, "ps") == {"processes": []}


def test_a_session_of_a_host_that_was_restarted_ends_with_the_reason(box: Pair) -> None:
    record, key = paired(box)
    connection = Connection.open(record, key)
    box.restart()
    end = time.monotonic() + 40
    with pytest.raises(SessionOver, match="restarted"):
        connection.run(lambda: time.monotonic() > end)
    connection.close()


def test_a_revoked_relay_token_is_told_from_a_relay_that_is_away(box: Pair) -> None:
    record, key = paired(box)
    forged = record._replace(token=Secret("cxr_wrong"))
    with pytest.raises(AuthenticationFailed) as caught:
        Connection.open(forged, key)
    assert caught.value.hint
    away = record._replace(relay="http://127.0.0.1:9")
    with pytest.raises(ConnectionFailed, match="cannot reach the relay") as unreachable:
        Connection.open(away, key)
    assert not isinstance(unreachable.value, AuthenticationFailed)


def test_a_copy_of_a_hosts_home_is_told_apart_and_one_of_the_two_ends(tmp_path: Path) -> None:
    relay, first, copy = (Machine(tmp_path / name) for name in ("relay", "first", "copy"))
    with relay.start("relay", "serve", "--json", "--listen", "127.0.0.1:0") as serving:
        url = serving.event("ready")["relay"]
        create = ("relay", "token", "create", "--name", "h", "--expires", "1d")
        token = relay.json(*create)["token"]
        for machine in (first, copy):
            machine.environment["CODEXCTL_RELAY_TOKEN"] = token
        options = ("host", "serve", "--json", "--relay", url, "--name", "box")
        with first.start(*options) as one:
            one.event("ready")
            copy.home.mkdir()
            key = (first.home / "identity.key").read_bytes()
            (copy.home / "identity.key").write_bytes(key)
            (copy.home / "identity.key").chmod(0o600)
            with copy.start(*options) as two:
                two.event("ready")
                assert one.process.wait(30) == 255
        assert b"taken this host's place" in b"".join(one.errors)
