"""Bad input and faults around the official ends: each ends in one clear error, the others go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from codexctl.client.executor.handshake import open_way
from codexctl.client.executor.stream import StreamReset
from codexctl.client.handshake import new_stream_id
from codexctl.client.http import request
from codexctl.client.store import HostRecord, HostStore
from codexctl.client.websocket import WebSocket
from codexctl.noise.hybrid import HybridKey
from codexctl.noise.keys import hybrid_document
from codexctl.paths import Home
from codexctl.relay.limits import Limits
from codexctl.secret import Secret
from codexctl.wire import relay as frames
from tests.official.site import Executor, Site, wait_until
from tests.support.codex import needs_codex
from tests.support.programs import COMMAND_TIMEOUT_S, Machine

pytestmark = needs_codex


def works(site: Site, name: str = "box") -> None:
    """A command still runs there."""
    assert site.laptop.run("exec", "-n", name, "--", "echo", "on").stdout == b"on\n"


@contextmanager
def waiting_command(site: Site, name: str = "box") -> Iterator[subprocess.Popen[bytes]]:
    """A command that has started and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "codexctl", "exec", name, "--", "sh", "-c",
         "echo ready; read word; echo got $word"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=site.laptop.cwd, env=site.laptop.environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def record(site: Site) -> HostRecord:
    found = HostStore(Home(str(site.laptop.home))).find("box")
    assert found is not None
    return found


def test_a_wrong_token_is_told_at_both_ends(site: Site) -> None:
    file = site.token_file("cxr_this-is-no-token")
    done = site.laptop.run(
        "hosts", "add", "other", "--relay", site.url, "--token-file", file, check=255
    )
    assert b"token is missing, unknown, revoked or expired" in done.stderr
    executor = Executor(site.url, "cxr_this-is-no-token", "other", site.folder / "refused")
    site.executors.append(executor)
    assert executor.process.wait(COMMAND_TIMEOUT_S) != 0
    assert "401" in executor.stderr
    works(site)


def test_a_revoked_and_an_expired_token_are_told(site: Site) -> None:
    revoked = site.new_token("revoked", "--environment", "box")
    site.add(site.laptop, "revoked", token=revoked, environment="box")
    works(site, "revoked")
    expired = site.new_token("expired", "--environment", "box", "--expires", "2s")
    until = time.monotonic() + 2.0
    try:
        site.add(site.laptop, "expired", token=expired, environment="box")
        added = True
    except AssertionError:
        # A machine so slow that it expired before it was used.
        added = False
    site.relay.run("relay", "token", "revoke", "revoked", "--yes")
    names = ["revoked", "expired"] if added else ["revoked"]
    wait_until(lambda: time.monotonic() > until + 1, "the token's end")
    for name in names:
        done = site.laptop.run("exec", "-n", name, "--", "true", check=255)
        assert b"the relay does not take the token" in done.stderr
        assert b"codexctl hosts add" in done.stderr
    works(site)


def test_a_revocation_ends_what_runs(site: Site) -> None:
    token = site.new_token("short", "--environment", "box")
    site.add(site.laptop, "short", token=token, environment="box")
    with waiting_command(site, "short") as process:
        site.relay.run("relay", "token", "revoke", "short", "--yes")
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(COMMAND_TIMEOUT_S) == 255
        assert b"the relay does not take the token" in errors
    works(site)


def test_a_token_reaches_its_own_environment_alone(site: Site) -> None:
    token = site.new_token("other-only", "--environment", "elsewhere")
    file = site.token_file(token)
    done = site.laptop.run(
        "hosts", "add", "reach", "--relay", site.url, "--token-file", file,
        "--environment", "box", check=255,
    )  # fmt: skip
    assert b"reaches no executor box" in done.stderr
    # Nor can it register one.
    executor = Executor(site.url, token, "elsewhere", site.folder / "no-owner")
    site.executors.append(executor)
    assert executor.process.wait(COMMAND_TIMEOUT_S) != 0
    assert "403" in executor.stderr


def test_forbidden_characters_in_an_id(site: Site) -> None:
    done = site.laptop.run(
        "hosts", "add", "a", "--relay", site.url, "--token-file", site.token_file(site.token),
        "--environment", "two words", check=2,
    )  # fmt: skip
    assert b"cannot be an environment id" in done.stderr
    answer = request(
        "POST",
        f"{site.url}/cloud/environment/two%20words/register",
        token=Secret(site.token),
        body={"security_profile": "noise_hybrid_ik_v1"},
    )
    assert answer.status == 400
    assert "A-Z a-z 0-9 - _" in answer.value["message"]


def test_the_newest_executor_wins_and_the_older_is_told(site: Site) -> None:
    older = site.start("twice")
    site.add(site.laptop, "twice")
    newer = site.start("twice")
    assert older.process.wait(COMMAND_TIMEOUT_S) != 0
    assert "another executor has registered as twice since" in older.stderr
    done = site.laptop.run("exec", "-n", "twice", "--", "pwd")
    assert done.stdout.decode().strip() == str(newer.workspace)
    newer.kill()
    works(site)


def test_an_executor_that_starts_anew_ends_what_ran(site: Site) -> None:
    first = site.start("anew")
    site.add(site.laptop, "anew")
    with waiting_command(site, "anew") as process:
        first.kill()
        second = site.start("anew")
        _, errors = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert process.returncode == 255
        assert b"was started anew; what ran there has ended" in errors
    works(site, "anew")
    second.kill()
    wait_until(lambda: not site.online("anew"), "the relay notices")
    done = site.laptop.run("exec", "-n", "anew", "--", "true", check=255)
    assert b"is not connected to its relay" in done.stderr
    assert b"codex exec-server --remote" in done.stderr


def _claimed(site: Site) -> tuple[WebSocket, str]:
    """A harness's WebSocket with a claimed stream, before any handshake."""
    answer = request(
        "POST",
        f"{site.url}/cloud/environment/box/connect",
        token=Secret(site.token),
        body={"harness_public_key": hybrid_document(HybridKey.generate().public)},
    )
    websocket, stream = WebSocket(answer.value["url"], None), new_stream_id()
    websocket.send(frames.encode(frames.Frame(stream, frames.Resume(0))))
    websocket.write()
    return websocket, stream


def test_handshakes_that_never_finish_hold_up_nobody(site: Site) -> None:
    idle = [_claimed(site) for _ in range(40)]
    try:
        # Of more than these the executor itself has enough, and refuses everybody for 10 s.
        for websocket, stream in idle[:4]:
            garbage = frames.Handshake(os.urandom(3600))
            websocket.send(frames.encode(frames.Frame(stream, garbage)))
            websocket.write()
        works(site)
    finally:
        for websocket, _ in idle:
            websocket.close()


def test_more_streams_than_an_executor_takes_are_refused_by_name(site: Site) -> None:
    with waiting_command(site) as process:
        idle = [_claimed(site) for _ in range(Limits().streams_an_executor - 1)]
        try:
            refused = site.laptop.run("exec", "-n", "box", "--", "true", check=255)
            assert b"the executor box serves as many streams as it can" in refused.stderr
            idle.pop()[0].close()
            works(site)
        finally:
            for websocket, _ in idle:
                websocket.close()
        out, _ = process.communicate(b"on\n", timeout=COMMAND_TIMEOUT_S)
        assert out == b"got on\n"


def test_a_message_over_the_limit_ends_its_own_link_alone(site: Site) -> None:
    with waiting_command(site) as process:
        websocket, _ = _claimed(site)
        websocket.send(bytes(300 * 1024))
        wait_until(lambda: _closed(websocket), "the relay closes it")
        assert websocket.closed_because.startswith("1009")
        websocket.close()
        out, _ = process.communicate(b"it\n", timeout=COMMAND_TIMEOUT_S)
        assert out == b"got it\n"


def _closed(websocket: WebSocket) -> bool:
    try:
        websocket.write()
        websocket.read()
    except OSError:
        return True
    assert list(websocket.messages()) == []
    return bool(websocket.closed_because)


def test_a_damaged_record_resets_its_own_stream_alone(site: Site) -> None:
    with waiting_command(site) as process:
        way = open_way(record(site), HybridKey.generate())
        way.stream.send({"id": 1, "method": "initialize", "params": {"clientName": "x"}})
        damaged = bytearray(way.stream.outbox[0])
        damaged[-1] ^= 1
        way.websocket.send(bytes(damaged))
        reasons: list[str] = []

        def reset() -> bool:
            way.websocket.write()
            way.websocket.read()
            for message in way.websocket.messages():
                try:
                    way.stream.receive(message)
                except StreamReset as error:
                    reasons.append(error.reason)
            return bool(reasons)

        wait_until(reset, "the executor resets the stream")
        way.websocket.close()
        out, _ = process.communicate(b"it\n", timeout=COMMAND_TIMEOUT_S)
        assert out == b"got it\n"


def test_the_relay_restarts_while_both_stay(site: Site) -> None:
    with waiting_command(site) as process:
        site.restart_relay()
        out, errors = process.communicate(b"it\n", timeout=COMMAND_TIMEOUT_S)
        assert (process.returncode, out, errors) == (0, b"got it\n", b"")
    wait_until(site.online, "the executor is back")
    works(site)


@pytest.mark.parametrize("profile", ["noise_ik_v1", "none_v1"])
def test_a_relay_cannot_lead_back_to_plain_ik(site: Site, profile: str) -> None:
    """What the relay says is replaced by what a lying one would say; no handshake begins."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Liar(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            key = {"suite": "Noise_IK_25519_AESGCM_SHA256", "x25519_public_key": "A" * 43 + "="}
            answer = {
                "environment_id": "box",
                "url": f"ws://{self.headers['Host']}/x",
                "security_profile": profile,
                "executor_registration_id": "reg_1",
                "executor_public_key": key,
                "harness_key_authorization": "a",
            }
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        laptop = Machine(site.folder / f"misled-{profile}")
        known = record(site)._replace(relay=f"http://127.0.0.1:{server.server_port}")
        HostStore(Home(str(laptop.home))).add(known)
        done = laptop.run("exec", "-n", "box", "--", "true", check=255)
        assert b"box is no official executor on this relay" in done.stderr
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
