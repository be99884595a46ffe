"""What the tests' sshd does not do: pass signals on (it runs as root there), ask for passwords."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from tests.ssh.test_exec import DEADLINE_S, command
from tests.ssh.test_terminal import Terminal
from tests.support.sshd import find_sshd, make_key


class Login(asyncssh.SSHServer):
    """Takes the password `sesame`, by either of the two ways of asking."""

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return password == "sesame"


class Server:
    """An SSH server in a thread; its command says ready, and ends with the signal it gets."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder = folder
        self._options = options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.port = 0

    def __enter__(self) -> Server:
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
            **self._options,
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


@contextmanager
def serve(folder: Path, **options: Any) -> Iterator[None]:
    """A server that the alias `web` of the config leads to."""
    find_sshd()  # for ssh -G and ssh-keygen
    for name in ("host_key", "client_key"):
        make_key(folder / name)
    if not options:
        options["authorized_client_keys"] = str(folder / "client_key.pub")
    with Server(folder, **options) as running:
        key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{running.port} {key}")
        (folder / "config").write_text(
            f"Host web\n HostName 127.0.0.1\n Port {running.port}\n User ada\n"
            f" IdentityFile {folder}/client_key\n IdentityAgent none\n"
            f" UserKnownHostsFile {folder}/known_hosts\n"
        )
        yield


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEXCTL_SSH_CONFIG", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, b"INT", 130), (signal.SIGTERM, b"TERM", 143)]
)
def test_a_signal_is_passed_on(
    tmp_path: Path, number: signal.Signals, name: bytes, status: int
) -> None:
    with (
        serve(tmp_path),
        subprocess.Popen(
            command("exec", "web", "wait"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"got " + name + b"\n"
        assert process.wait(DEADLINE_S) == status


@pytest.mark.parametrize("kbdint", [True, False])
def test_a_password_is_asked_for_on_the_terminal(tmp_path: Path, kbdint: bool) -> None:
    options = {"server_factory": Login, "kbdint_auth": kbdint, "public_key_auth": False}
    with serve(tmp_path, **options):
        terminal = Terminal(command("exec", "web", "wait"))
        terminal.expect(b"assword:")
        terminal.type(b"wrong\n")
        terminal.expect(b"assword:")
        terminal.type(b"sesame\n")
        terminal.expect(b"ready")
        terminal.type(b"\x03")
        assert terminal.end() == 130


def test_three_wrong_passwords_are_enough(tmp_path: Path) -> None:
    options = {"server_factory": Login, "kbdint_auth": False, "public_key_auth": False}
    with serve(tmp_path, **options):
        terminal = Terminal(command("exec", "web", "wait"))
        for _ in range(3):
            terminal.expect(b"assword:")
            terminal.type(b"wrong\n")
        terminal.expect(b"accepted no key")
        assert terminal.end() == 255
