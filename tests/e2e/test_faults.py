"""What a person sees when things are wrong: one sentence, one hint, the right status."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import missing
from tests.support.programs import COMMAND_TIMEOUT_S, Machine

URL = (
    "http://127.0.0.1:1/pair#v=1&h=nobody&k=NL7kp8oyV85WhC4kK3f-XvgrHvwCgco2QvCSKSyKr2Y"
    "&s=c&t=FFc0lgdYWc8VhP7qEnBcsA&n=box"
)


WRITERS = [
    ["pair", URL],
    ["up", "--listen", "127.0.0.1:0"],
    ["relay", "token", "create", "--name", "x"],
]


def _check(done: subprocess.CompletedProcess[bytes], status: int, *having: str) -> None:
    """The status, one sentence and one hint on stderr, with these words in them."""
    text = done.stderr.decode()
    assert done.returncode == status, text
    sentence, hint = text.splitlines()[-2:]
    assert sentence.startswith("codexctl: ")
    assert hint.startswith("hint: ")
    for words in having:
        assert words in text
    assert "Traceback" not in text
    assert "defect" not in text


def _in_small_world(
    machine: Machine, prepare: str, *argv: str
) -> subprocess.CompletedProcess[bytes]:
    """Run codexctl where CODEXCTL_HOME is a file system of its own, made by `prepare`."""
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        missing("mounting needs unshare and user namespaces")
    machine.home.mkdir()
    mount = 'mount -t tmpfs -o size=256k,mode=700 none "$CODEXCTL_HOME"'
    script = f'set -e; {mount}; {prepare}; exec "{sys.executable}" -m codexctl "$@"'
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *argv],
        env=machine.environment,
        cwd=machine.cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
    )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("argv", WRITERS, ids=lambda argv: argv[0])
def test_a_read_only_home(machine: Machine, argv: list[str]) -> None:
    done = _in_small_world(machine, 'mount -o remount,ro "$CODEXCTL_HOME"', *argv)
    _check(done, 1, str(machine.home))


@pytest.mark.parametrize("argv", WRITERS, ids=lambda argv: argv[0])
def test_a_full_disk(machine: Machine, argv: list[str]) -> None:
    fill = 'dd if=/dev/zero of="$CODEXCTL_HOME/filler" bs=4k 2>/dev/null || true'
    done = _in_small_world(machine, fill, *argv)
    _check(done, 1, str(machine.home), "free some space")


def test_a_home_that_is_a_file(machine: Machine) -> None:
    machine.home.write_text("")
    _check(machine.run("pair", URL, check=None), 1, str(machine.home))


def test_an_empty_home_variable(machine: Machine) -> None:
    machine.environment["CODEXCTL_HOME"] = ""
    _check(machine.run("hosts", check=None), 1, "CODEXCTL_HOME is set but empty")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.partition("&")[0], "in quotes"),
        (lambda url: url[:-60], "cut"),
        (lambda url: url.replace("v=1", "v=9"), "same version"),
        (lambda url: url.replace("127.0.0.1:1/", "example.net/"), "without TLS"),
        (lambda url: "https://example.net/", "not one"),
    ],
)
def test_a_damaged_url_is_wrong_usage(machine: Machine, change: object, words: str) -> None:
    assert callable(change)
    _check(machine.run("pair", change(URL), check=None), 2, words)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("7-acorn-bamboo", "2 words"),
        ("7-acorn-bamboo-komet", "did you mean comet?"),
        ("x", "number"),
    ],
)
def test_a_damaged_code_is_wrong_usage(machine: Machine, code: str, words: str) -> None:
    _check(machine.run("pair", code, "--relay", "http://127.0.0.1:1", check=None), 2, words)


def test_a_relay_that_is_not_there(machine: Machine) -> None:
    _check(machine.run("pair", URL, check=None), 255, "cannot reach the relay", "relay ping")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda db: db.write_bytes(b"not a database " * 64), "is damaged"),
        (lambda db: sqlite3.connect(db).execute("PRAGMA user_version=99"), "newer codexctl"),
    ],
)
def test_a_state_file_that_cannot_be_used(machine: Machine, spoil: object, words: str) -> None:
    assert callable(spoil)
    machine.home.mkdir()
    spoil(machine.home / "device.db")
    _check(machine.run("hosts", check=None), 1, words)


def test_with_json_each_is_one_object(machine: Machine) -> None:
    done = machine.run("pair", URL, "--json", check=None)
    assert (done.returncode, done.stdout) == (255, b"")
    assert set(json.loads(done.stderr)) == {"error", "message", "hint", "exit_code"}
