"""The doctor's checks, each seen well and ill."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from codexctl.cli import doctor_checks as checks
from codexctl.cli.main import run
from codexctl.client.store import HostRecord, HostStore
from codexctl.errors import CodexctlError
from codexctl.host.control import listen
from codexctl.paths import Home
from codexctl.secret import Secret
from codexctl.state.identity import load_identity


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CODEXCTL_HOME", str(tmp_path / "home"))
    return Home.from_env()


def _record(relay: str) -> HostRecord:
    return HostRecord(
        name="box",
        environment_id="env",
        own_name="box",
        host_key=bytes(32),
        suite="Noise_IK_25519_ChaChaPoly_BLAKE2s",
        relay=relay,
        pin=None,
        token=Secret("token"),
        token_expires_at=int(time.time()) + 86400,
        device_id="device",
        scopes=("exec",),
        paired_at=0,
    )


def test_a_fresh_home_is_no_failure(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    seen = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert list(seen) == [
        "home",
        "keys",
        "state",
        "policy",
        "sandbox",
        "codex",
        "ssh",
        "host daemon",
    ]
    assert {seen[name]["status"] for name in ("home", "keys", "state", "host daemon")} == {"skip"}
    assert set(seen["home"]) == {"name", "status", "detail", "remedy", "duration_ms"}
    assert not os.path.exists(home.path)


def test_a_used_home_is_well(home: Home) -> None:
    load_identity(home)
    HostStore(home).add(_record("http://127.0.0.1:1"))
    assert checks.check_home(home) == ("ok", home.path, "")
    assert checks.check_keys(home).status == "ok"
    assert checks.check_state(home) == ("ok", "device.db", "")


def test_an_open_home_fails(home: Home) -> None:
    os.makedirs(home.path)
    os.chmod(home.path, 0o777)
    outcome = checks.check_home(home)
    assert (outcome.status, outcome.remedy) == ("fail", f"chmod 700 {home.path}")


def test_a_home_that_is_a_file_fails(home: Home) -> None:
    Path(home.path).write_text("")
    assert checks.check_home(home).status == "fail"


def test_a_key_that_others_can_read_fails_with_its_remedy(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    load_identity(home)
    os.chmod(home.identity, 0o644)
    assert checks.check_keys(home) == (
        "fail",
        f"others can read {home.identity}",
        f"chmod 600 {home.identity}",
    )
    assert run(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"fail  keys: others can read {home.identity}" in out
    assert f"      do: chmod 600 {home.identity}\n" in out


def test_a_damaged_key_and_a_damaged_database_fail(home: Home) -> None:
    home.ensure()
    Path(home.identity).write_text("garbage")
    os.chmod(home.identity, 0o600)
    check = checks.run_step(("keys", lambda: checks.check_keys(home)))
    assert (check.status, check.remedy[:7]) == ("fail", "restore")
    Path(home.device_db).write_bytes(b"not a database " * 100)
    check = checks.run_step(("state", lambda: checks.check_state(home)))
    assert check.status == "fail"
    assert home.device_db in check.detail


def test_a_broken_policy_fails_with_its_line(home: Home) -> None:
    home.ensure()
    Path(home.policy).write_text("[sandbox]\nmood = 1\n")
    check = checks.run_step(("policy", lambda: checks.check_policy(home)))
    assert check.status == "fail"
    assert "line 2" in check.detail


def test_a_missing_sandbox_is_a_failure_only_on_a_host(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.check_sandbox(home).status == "warn"
    home.ensure()
    Path(home.host_db).touch()
    outcome = checks.check_sandbox(home)
    assert outcome.status == "fail"
    assert "bubblewrap" in outcome.remedy
    assert checks.check_codex(home).status == "warn"
    assert checks.check_ssh().status == "warn"


def test_a_daemon_that_does_not_answer_fails(home: Home) -> None:
    home.ensure()
    listener = listen(home)
    listener.setblocking(True)

    def hang_up() -> None:
        with listener.accept()[0] as asker:
            asker.recv(4096)

    thread = threading.Thread(target=hang_up)
    thread.start()
    check = checks.run_step(("host daemon", lambda: checks.check_daemon(home)))
    thread.join()
    listener.close()
    assert check.status == "fail"


@pytest.fixture
def relay() -> Iterator[tuple[str, dict[str, object]]]:
    """A relay's health with an answer of the test's choosing: a clock that is wrong, a stranger."""
    answer: dict[str, object] = {}

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200 if self.path == "/v1/health" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answer
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("skew", "status"), [(0, "ok"), (-60, "warn"), (60, "warn"), (4000, "fail"), (-4000, "fail")]
)
def test_clocks_are_compared(relay: tuple[str, dict[str, object]], skew: int, status: str) -> None:
    url, answer = relay
    answer.update(status="ok", version="0.1.0", now=int(time.time()) + skew)
    outcome = checks.check_relay(url, None)
    assert outcome.status == status
    assert bool(outcome.remedy) == (status != "ok")


def test_a_draining_relay_and_a_stranger_are_told(relay: tuple[str, dict[str, object]]) -> None:
    url, answer = relay
    assert checks.check_relay(url, None).status == "fail"
    answer.update(status="draining", version="0.1.0", now=int(time.time()))
    assert checks.check_relay(url, None).status == "warn"


def test_a_relay_that_is_gone_fails_and_so_does_its_host(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    HostStore(home).add(_record(url))
    assert run(["doctor", "box", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)
    assert [(check["name"], check["status"]) for check in results] == [
        ("keys", "skip"),
        (f"relay {url}", "fail"),
        ("host box", "fail"),
    ]
    assert "cannot reach the relay" in results[1]["detail"]
    assert "relay ping" in results[1]["remedy"]


def test_an_unknown_host_is_an_error_of_the_connection(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", os.devnull)
    assert run(["doctor", "nobody"]) == 255
    assert "no host is called nobody" in capsys.readouterr().err


def test_an_alias_that_ssh_cannot_reach_fails(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("Host gone\n  HostName 127.0.0.1\n  Port 1\n  StrictHostKeyChecking yes\n")
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(config))
    outcome = checks.check_alias("gone")
    assert outcome.status == "fail"
    assert "refused" in outcome.detail
    assert outcome.remedy == "try it: ssh -v gone true"


def test_what_the_system_says_is_a_failure_too() -> None:
    def denied() -> checks.Outcome:
        raise PermissionError(13, "Permission denied", "/somewhere")

    def locked() -> checks.Outcome:
        raise CodexctlError("it is locked", hint="unlock it")

    assert checks.run_step(("x", denied))[:4] == ("x", "fail", "/somewhere: Permission denied", "")
    assert checks.run_step(("y", locked))[:4] == ("y", "fail", "it is locked", "unlock it")
    with pytest.raises(sqlite3.ProgrammingError):
        checks.run_step(("z", lambda: (_ for _ in ()).throw(sqlite3.ProgrammingError())))
