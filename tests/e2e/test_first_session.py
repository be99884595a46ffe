"""A first session from nothing to revocation, by two machines with real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.machines import Machine, Running


class Session(NamedTuple):
    host: Machine
    device: Machine
    up: Running
    workspace: Path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A host that is up, and a device that has paired with it by URL."""
    folder = tmp_path_factory.mktemp("session")
    workspace = folder / "workspace"
    workspace.mkdir()
    (workspace / "hello.txt").write_text("hello\n")
    host, device = Machine(folder / "host"), Machine(folder / "device")
    argv = ["--json", "--listen", "127.0.0.1:0", "--name", "box", "--workspace", str(workspace)]
    with host.start("up", *argv) as up:
        ready = up.event("ready")
        assert ready["host"] == "box"
        offer = up.event("pairing")
        assert set(offer) >= {"url", "code", "expires_in_s"}
        assert offer["url"].startswith(f"{ready['relay']}/pair#v=1&")
        assert 0 < offer["expires_in_s"] <= 300
        paired = device.run("pair", offer["url"], "--name", "devbox")
        assert paired.returncode == 0, paired.stderr
        again = device.run("pair", offer["url"], "--name", "other")
        assert again.returncode != 0
        assert b"hint: " in again.stderr
        yield Session(host, device, up, workspace)
    assert up.process.returncode == 0, up.seen


def test_the_host_is_listed_online(session: Session) -> None:
    hosts = session.device.json("hosts", "--json")
    assert [(host["name"], host["transport"], host["online"]) for host in hosts] == [
        ("devbox", "relay", True)
    ]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-program"], 127),
        (["./hello.txt"], 126),
    ],
)
def test_exit_statuses_pass_through(session: Session, command: list[str], status: int) -> None:
    done = session.device.run("exec", "devbox", "--", *command)
    assert done.returncode == status, done.stderr


def test_stdout_stderr_and_stdin_are_separate_and_whole(session: Session) -> None:
    data = bytes(range(256)) * 4096
    done = session.device.run(
        "exec", "devbox", "--", "sh", "-c", "echo begun >&2; cat; echo ended >&2", stdin=data
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"begun\nended\n")


def test_arguments_are_not_touched_and_one_word_is_a_command_line(session: Session) -> None:
    word = "a b  'c' \"d\" $HOME * \\ ü\n"
    done = session.device.run("exec", "devbox", "--", "printf", "%s", word)
    assert done.stdout.decode() == word
    done = session.device.run("exec", "devbox", "--", "cat hello.txt | tr a-z A-Z")
    assert done.stdout == b"HELLO\n"


def test_the_workspace_is_writable_and_the_system_is_not(session: Session) -> None:
    done = session.device.run("exec", "devbox", "--", "sh", "-c", "echo made > made.txt; pwd")
    assert done.stdout.decode().strip() == str(session.workspace)
    assert (session.workspace / "made.txt").read_text() == "made\n"
    done = session.device.run("exec", "devbox", "--", "touch", "/usr/bin/made")
    assert done.returncode != 0
    assert not Path("/usr/bin/made").exists()


def test_a_host_nobody_knows_is_a_failed_connection(session: Session) -> None:
    done = session.device.run("exec", "devbos", "--", "true")
    assert done.returncode == 255
    assert done.stderr == (
        b"codexctl: no host is called devbos\nhint: did you mean devbox? see: codexctl hosts\n"
    )


def test_what_was_detached_is_listed_and_ended(session: Session) -> None:
    device = session.device
    started = device.json("exec", "--json", "--detach", "devbox", "--", "sleep", "600")
    listed = {process["process"]: process for process in device.json("ps", "devbox", "--json")}
    assert started["process"] in listed
    assert device.run("ps", "devbox", "--kill", started["process"]).returncode == 0


def test_the_doctor_finds_every_hop_well(session: Session) -> None:
    checks = session.device.json("doctor", "devbox", "--json")
    assert [check["status"] for check in checks] == ["ok", "ok", "ok"]
    checks = {check["name"]: check["status"] for check in session.host.json("doctor", "--json")}
    assert (checks["sandbox"], checks["host daemon"]) == ("ok", "ok")


def test_revoking_ends_it_and_one_command_pairs_again(session: Session) -> None:
    host, device = session.host, session.device
    (listed,) = host.json("devices", "--json")
    assert listed["last_seen"] is not None
    assert host.run("devices", "revoke", listed["name"]).returncode == 0
    done = device.run("exec", "devbox", "--", "true")
    assert done.returncode == 255
    assert b"hint: " in done.stderr
    offer = json.loads(host.run("pair", "--show", "--json").stdout.splitlines()[0])
    assert device.run("pair", offer["url"], "--name", "devbox").returncode == 0
    assert device.run("exec", "devbox", "--", "true").returncode == 0


def test_a_typed_code_pairs_a_second_device(session: Session, tmp_path: Path) -> None:
    offer = json.loads(session.host.run("pair", "--show", "--json").stdout.splitlines()[0])
    other = Machine(tmp_path / "other")
    relay = offer["url"].partition("/pair#")[0]
    typed = offer["code"].upper().replace("-", " ")
    done = other.run("pair", typed, "--relay", relay, "--name", "devbox")
    assert done.returncode == 0, done.stderr
    assert other.run("exec", "devbox", "--", "cat", "hello.txt").stdout == b"hello\n"


def test_the_audit_log_holds_it_all_and_verifies(session: Session) -> None:
    done = session.host.run("audit", "verify")
    assert done.returncode == 0, done.stderr
    kinds = {record["kind"] for record in session.host.json("audit", "list", "--json")}
    assert {"pairing", "exec", "revocation"} <= kinds
