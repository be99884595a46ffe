"""A real sshd on loopback with keys and config of its own, run as the user who runs the tests.

    with Sshd.start(tmp_path / "server") as server:
        server.alias("web")           # a line for an ssh config
        server.known_hosts_line()

Starting as root takes sshd's privilege separation folder, which is made when it is missing.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT_S = 10.0


def find_sshd() -> str:
    """The path of sshd, or a skip that names the package."""
    path = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None or shutil.which("ssh") is None:
        if os.environ.get("CI"):
            pytest.fail("sshd is missing on CI")
        pytest.skip("openssh-server or openssh-client is not installed")
    return path


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


class Sshd:
    """A running server; `folder` holds its host key, its authorized_keys and a client key."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.port = port
        self.process = process
        self.user = getpass.getuser()

    @property
    def client_key(self) -> Path:
        return self.folder / "client_key"

    @property
    def host_key(self) -> str:
        """Type and base64 of the public host key."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def authorize(self, public_key: Path) -> None:
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(public_key.read_text())

    def known_hosts_line(self, name: str | None = None) -> str:
        return f"{name or f'[127.0.0.1]:{self.port}'} {self.host_key}\n"

    def alias(self, name: str, known_hosts: Path, *lines: str, key: Path | None = None) -> str:
        """A Host block; `lines` come first and so outweigh what is standard here."""
        standard = (
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"User {self.user}",
            f"IdentityFile {key or self.client_key}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {known_hosts}",
            "GlobalKnownHostsFile /dev/null",
        )
        return "\n  ".join((f"Host {name}", *lines, *standard)) + "\n"

    def connections(self) -> list[int]:
        """Process ids below the server: its processes of each connection, and commands."""
        answer = subprocess.run(
            ["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, check=True
        )
        parents = {
            int(pid): int(parent) for pid, parent in map(str.split, answer.stdout.splitlines())
        }
        found = [self.process.pid]
        for above in found:
            found += [pid for pid, parent in parents.items() if parent == above]
        return found[1:]

    def cut(self) -> None:
        """Kill every connection, as a machine that loses its power."""
        for pid in self.connections():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *lines: str) -> Iterator[Sshd]:
        """Start a server; `lines` are added to its config first."""
        sshd = find_sshd()
        own_sftp = any(line.startswith("Subsystem") for line in lines)
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        if not (folder / "host_key").exists():
            make_key(folder / "host_key")
            make_key(folder / "client_key")
            (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
        for _ in range(5):
            # sshd cannot take port 0; another process may be quicker with the one found here.
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            config = folder / "sshd_config"
            config.write_text(
                "\n".join(
                    (
                        *lines,
                        "ListenAddress 127.0.0.1",
                        f"Port {port}",
                        f"HostKey {folder / 'host_key'}",
                        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
                        "StrictModes no",
                        "UsePAM no",
                        "PasswordAuthentication no",
                        "KbdInteractiveAuthentication no",
                        "PermitRootLogin prohibit-password",
                        "MaxStartups 100",
                        "PidFile none",
                        "PrintMotd no",
                        "PrintLastLog no",
                        "UseDNS no",
                        *(() if own_sftp else ("Subsystem sftp internal-sftp",)),
                        "",
                    )
                )
            )
            log = (folder / "sshd.log").open("ab")
            with log:
                process = subprocess.Popen(
                    [sshd, "-D", "-e", "-f", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if _answers(process, port):
                break
            process.wait()
        else:
            pytest.fail(f"sshd does not start: {(folder / 'sshd.log').read_text()[-500:]}")
        server = cls(folder, port, process)
        try:
            yield server
        finally:
            server.cut()
            process.terminate()
            process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            time.sleep(0.02)
    process.terminate()
    return False
