"""Relay, host and device as three real processes: a relay that dies, and what a relay can see."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import Machine, Running
from tests.support.tap import Tap

MIB = 1 << 20


class Setup:
    """A relay machine, a host, a device; the relay's port survives its restarts."""

    def __init__(self, folder: Path) -> None:
        self.relay_machine = Machine(folder / "relay")
        self.host_machine = Machine(folder / "host")
        self.device = Machine(folder / "device")
        self.relay = self.start_relay("127.0.0.1:0")
        self.url = self.relay.event("ready")["relay"]
        self.listen = self.url.removeprefix("http://")
        token = self.relay_machine.json(
            "relay", "token", "create", "--name", "h", "--expires", "1d"
        )
        self.host_machine.environment["CODEXCTL_RELAY_TOKEN"] = token["token"]

    def start_relay(self, listen: str) -> Running:
        return self.relay_machine.start("relay", "serve", "--json", "--listen", listen)

    def start_host(self, url: str) -> Running:
        host = self.host_machine.start("host", "serve", "--json", "--relay", url, "--name", "box")
        assert host.event("ready")["host"] == "box"
        return host

    def pair(self) -> None:
        offer = json.loads(self.host_machine.run("pair", "--show", "--json").stdout)
        assert offer["event"] == "pairing"
        self.device.run("pair", offer["url"], "--name", "box")


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    try:
        yield made
    finally:
        made.relay.__exit__(None, None, None)


WRITE_200_MIB = (
    "import sys,hashlib\n"
    "h=hashlib.sha256()\n"
    "for i in range(200):\n"
    "    b=hashlib.sha256(str(i).encode()).digest()*32768\n"
    "    h.update(b); sys.stdout.buffer.write(b)\n"
    "sys.stderr.write(h.hexdigest())\n"
)


@pytest.mark.slow
def test_200_mib_arrive_whole_through_a_relay_that_is_killed_and_started_again(
    setup: Setup,
) -> None:
    with setup.start_host(setup.url):
        setup.pair()
        command = [sys.executable, "-m", "codexctl", "exec", "box", "--"]
        process = subprocess.Popen(
            [*command, "python3", "-c", WRITE_200_MIB],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=setup.device.cwd,
            env=setup.device.environment,
        )
        assert process.stdout is not None
        digest = hashlib.sha256()
        read = 0
        restarted = False
        with process:
            while chunk := process.stdout.read(MIB):
                digest.update(chunk)
                read += len(chunk)
                if read >= 60 * MIB and not restarted:
                    restarted = True
                    setup.relay.kill()
                    setup.relay.__exit__(None, None, None)
                    setup.relay = setup.start_relay(setup.listen)
                    setup.relay.event("ready")
            assert process.stderr is not None
            sent = process.stderr.read().decode()
        assert process.returncode == 0, sent
        assert read == 200 * MIB
        assert digest.hexdigest() == sent[-64:]


def test_200_mib_of_stdin_arrive_whole_through_a_relay_that_is_killed(setup: Setup) -> None:
    block = bytes(range(256)) * 4096
    expected = hashlib.sha256()
    with setup.start_host(setup.url):
        setup.pair()
        process = subprocess.Popen(
            [sys.executable, "-m", "codexctl", "exec", "box", "--", "sha256sum"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=setup.device.cwd,
            env=setup.device.environment,
        )
        assert process.stdin is not None
        for number in range(100):
            data = block[number:] + block[:number]
            expected.update(data)
            process.stdin.write(data)
            if number == 30:
                setup.relay.kill()
                setup.relay.__exit__(None, None, None)
                setup.relay = setup.start_relay(setup.listen)
                setup.relay.event("ready")
        out, _ = process.communicate(timeout=90)
        assert process.returncode == 0
        assert out.decode().split()[0] == expected.hexdigest()


def test_the_relay_sees_no_byte_of_a_command_its_input_or_its_output(setup: Setup) -> None:
    with Tap(setup.listen) as tap, setup.start_host(tap.url):
        setup.pair()
        secret = "correct-horse-battery-staple"
        done = setup.device.run(
            "exec", "box", "--", "sh", "-c", f"cat; echo {secret}-out; echo {secret}-err >&2",
            input=f"{secret}-in\n".encode() * 50,
        )  # fmt: skip
        assert f"{secret}-out".encode() in done.stdout
        assert f"{secret}-in".encode() in done.stdout
        assert f"{secret}-err".encode() in done.stderr
        seen = tap.seen()
    assert len(seen) > 10_000
    for fragment in (b"correct-horse", b"battery", b"echo ", b"argv", b"stdout", b"exit"):
        assert fragment not in seen
    # The capture does hold what the relay has to know.
    assert b"environment" in seen
    assert threading.active_count() < 50
