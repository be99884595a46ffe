"""`codexctl relay` as a person and a service manager use it: real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay.ends import KEY

CODEXCTL = [sys.executable, "-m", "codexctl"]
WAIT_S = 20.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "CODEXCTL_HOME": str(tmp_path / "home")}


@pytest.fixture
def relay(environment: dict[str, str], tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A relay process and its URL."""
    with (
        open(tmp_path / "stderr", "w") as log,
        subprocess.Popen(
            [*CODEXCTL, "relay", "serve", "--json", "--listen", "127.0.0.1:0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["event"] == "ready"
            yield process, ready["relay"]
        finally:
            process.kill()


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CODEXCTL, "relay", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        stdin=subprocess.DEVNULL,
    )


def register(url: str, token: str) -> int:
    body = {"security_profile": "noise_ik_v1", "executor_public_key": KEY}
    request = urllib.request.Request(
        f"{url}/cloud/environment/box/register",
        json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_tokens_made_and_revoked_beside_a_running_relay(
    relay: tuple[Any, str], environment: dict[str, str]
) -> None:
    _, url = relay
    made = run(environment, "token", "create", "--name", "lap", "--expires", "1d", "--json")
    assert made.returncode == 0, made.stderr
    token = json.loads(made.stdout)
    assert set(token) == {"token", "id", "expires_at"}
    assert abs(token["expires_at"] - time.time() - 86_400) < 60
    deadline = time.monotonic() + WAIT_S
    while register(url, token["token"]) != 200:  # within a second
        assert time.monotonic() < deadline
        time.sleep(0.05)
    listed = json.loads(run(environment, "token", "list", "--json").stdout)
    assert [(one["name"], one["status"], one["kind"]) for one in listed] == [
        ("lap", "active", "owner")
    ]
    assert token["token"] not in json.dumps(listed)
    assert run(environment, "token", "revoke", "lap").returncode == 0
    while register(url, token["token"]) != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopped_relay_drains_and_ends_well(relay: tuple[Any, str], tmp_path: Path) -> None:
    process, _ = relay
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "stderr").read_text().splitlines()]
    assert events == ["started", "draining", "stopped"]


def test_the_token_alone_goes_to_stdout(environment: dict[str, str]) -> None:
    made = run(environment, "token", "create", "--name", "lap")
    assert made.stdout.startswith("cxr_")
    assert made.stdout.count("\n") == 1
    assert "expires in 30d" in made.stderr
    again = run(environment, "token", "create", "--name", "lap")
    assert again.returncode == 2
    assert "revoke lap" in again.stderr
    table = run(environment, "token", "list").stdout
    assert made.stdout.strip() not in table
    assert "active" in table
    assert "in 29d 23h" in table
    assert run(environment, "token", "create", "--name", "ci", "--environment", "box").stdout
    listed = json.loads(run(environment, "token", "list", "--json").stdout)
    assert {(one["kind"], one["environment_id"]) for one in listed} == {
        ("owner", ""),
        ("device", "box"),
    }


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("token", "create", "--name", "x", "--expires", "soon"), 2, "8h"),
        (("token", "create", "--name", "x", "--expires", "900d"), 2, "at most"),
        (("token", "create"), 2, "--name"),
        (("token", "create", "--name", "x", "--environment", "a b"), 2, "A-Z"),
        (("token", "revoke", "nobody"), 1, "token list"),
        (("serve", "--listen", "0.0.0.0:0"), 2, "--tls-self-signed"),
        (("serve", "--listen", "here"), 2, "127.0.0.1:8700"),
        (("ping", "ftp://x"), 2, "https://"),
        (("ping", "http://127.0.0.1:1"), 255, "relay serve"),
    ],
)
def test_mistakes_get_a_sentence_and_a_hint(
    environment: dict[str, str], arguments: tuple[str, ...], status: int, words: str
) -> None:
    done = run(environment, *arguments)
    assert done.returncode == status
    assert done.stderr.startswith("codexctl: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ping_tells_latency_version_and_clock(
    relay: tuple[Any, str], environment: dict[str, str]
) -> None:
    _, url = relay
    answer = json.loads(run(environment, "ping", url, "--json").stdout)
    assert answer["status"] == "ok"
    assert answer["clock_skew_s"] == 0
    assert 0 < answer["best_ms"] <= answer["latency_ms"]
    text = run(environment, "ping", url)
    assert f"{url}: ok, version {answer['version']}, " in text.stdout


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "CODEXCTL_HOME": str(tmp_path / "file" / "home")}
    done = run(environment, "serve", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "cannot make" in done.stderr
