"""Signals to a user who is not root, whose sessions a server passes them on to as SSH has it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.ssh.test_exec import DEADLINE_S, command
from tests.support.sshd import find_sshd, make_key


class SignalServer:
    """An SSH server in a thread; its command says ready, and ends with the signal it gets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.port = 0

    def __enter__(self) -> SignalServer:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(self._folder / "host_key")],
            authorized_client_keys=str(self._folder / "client_key.pub"),
            process_factory=self._command,
            encoding=None,
        )
        async with server:
            self.port = server.get_port()
            self._ready.set()
            await self._over.wait()

    async def _command(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(b"ready\n")
        try:
            while True:
                await process.stdin.read(1)
                await asyncio.sleep(0.01)
        except asyncssh.SignalReceived as received:
            process.stdout.write(f"got {received.signal}\n".encode())
            process.exit_with_signal(received.signal)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SignalServer]:
    find_sshd()  # for ssh -G and ssh-keygen
    for name in ("host_key", "client_key"):
        make_key(tmp_path / name)
    with SignalServer(tmp_path) as running:
        key = (tmp_path / "host_key.pub").read_text()
        (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{running.port} {key}")
        (tmp_path / "config").write_text(
            f"Host web\n HostName 127.0.0.1\n Port {running.port}\n User ada\n"
            f" IdentityFile {tmp_path}/client_key\n IdentityAgent none\n"
            f" UserKnownHostsFile {tmp_path}/known_hosts\n"
        )
        monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(tmp_path / "config"))
        yield running


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, b"INT", 130), (signal.SIGTERM, b"TERM", 143)]
)
def test_a_signal_is_passed_on(
    server: SignalServer, number: signal.Signals, name: bytes, status: int
) -> None:
    with subprocess.Popen(
        command("exec", "web", "wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"got " + name + b"\n"
        assert process.wait(DEADLINE_S) == status
