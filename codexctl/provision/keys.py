"""The keys of one workspace: its login key, and the host key that the machine is born with.

Both are ed25519, made here in OpenSSH's own format and kept 0600 in `workspaces/ID` of the home.
A file that exists is used, never overwritten. The host's private half leaves this device in the
user data only, and is deleted once the machine has made a key of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from codexctl.errors import CodexctlError, StateError
from codexctl.paths import Home
from codexctl.provision.model import resource_name
from codexctl.secret import Secret
from codexctl.state.files import create_private, describe_os_error, read_private, replace_file

FOLDER = "workspaces"
AGENT_TIMEOUT_S = 60.0


class WorkspaceFiles:
    """The folder of one workspace and the names of what is in it."""

    __slots__ = ("folder", "workspace_id")

    def __init__(self, home: Home, workspace_id: str) -> None:
        self.workspace_id = workspace_id
        self.folder = home.join(FOLDER, workspace_id)

    @property
    def key(self) -> str:
        """The login key; its public half is beside it with `.pub`."""
        return os.path.join(self.folder, "id_ed25519")

    @property
    def host_key(self) -> str:
        """The private host key that is put on the machine; gone after the rotation."""
        return os.path.join(self.folder, "first_host_key")

    @property
    def known_hosts(self) -> str:
        """The one pinned key, under the alias `codexctl-ID`."""
        return os.path.join(self.folder, "known_hosts")

    @property
    def lock(self) -> str:
        return os.path.join(self.folder, "lock")

    @property
    def alias(self) -> str:
        """The name under which ssh looks the host key up."""
        return resource_name(self.workspace_id)

    def make(self) -> None:
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise describe_os_error(error, self.folder, "make") from error

    def pin(self, host_keys: list[str]) -> None:
        """Trust these keys (`TYPE BASE64`) and no other."""
        lines = "".join(f"{self.alias} {key}\n" for key in host_keys)
        replace_file(self.known_hosts, lines.encode())

    def pinned(self) -> list[str]:
        """The trusted keys; [] while there is none."""
        try:
            text = read_private(self.known_hosts, what="the workspace's known hosts").decode()
        except FileNotFoundError:
            return []
        return [line.split(" ", 1)[1] for line in text.splitlines() if " " in line]

    def drop_first_host_key(self) -> None:
        for path in (self.host_key, f"{self.host_key}.pub"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def remove(self) -> None:
        """Delete the folder with everything in it; harmless twice."""
        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise describe_os_error(error, self.folder, "remove") from error


def ensure_key(path: str, comment: str, passphrase: Secret | None = None) -> str:
    """Make the ed25519 key pair at `path` unless it is there; answers the public line.

    StateError where the file is open to others or is no key.
    """
    public = f"{path}.pub"
    if os.path.exists(path):
        read_private(path, what="the key")
        try:
            with open(public, encoding="ascii") as file:
                return file.read().strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return _write_public(public, _public_of(path, passphrase), comment)
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.reveal().encode())
    create_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, encryption
        ),
    )
    line = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return _write_public(public, line.decode(), comment)


def _write_public(path: str, key: str, comment: str) -> str:
    line = f"{key} {comment}"
    replace_file(path, f"{line}\n".encode(), mode=0o644)
    return line


def _public_of(path: str, passphrase: Secret | None) -> str:
    from cryptography.hazmat.primitives import serialization

    password = passphrase.reveal().encode() if passphrase else None
    try:
        key = serialization.load_ssh_private_key(read_private(path, what="the key"), password)
    except (ValueError, TypeError) as error:
        raise StateError(
            f"{path} is damaged or has a passphrase", hint="restore it, or destroy the workspace"
        ) from error
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def add_to_agent(path: str) -> None:
    """Hand the key to the running ssh-agent; it asks for the passphrase on the terminal itself."""
    if not os.environ.get("SSH_AUTH_SOCK"):
        raise CodexctlError("no ssh agent is running", hint="start one: eval $(ssh-agent)")
    try:
        done = subprocess.run(
            ["ssh-add", "-q", path], check=False, timeout=AGENT_TIMEOUT_S, stderr=subprocess.PIPE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodexctlError(f"ssh-add did not run: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise CodexctlError(f"ssh-add refused the key: {reason}")


def remove_from_agent(path: str) -> None:
    """Take it out again; whether it was there does not matter."""
    if os.environ.get("SSH_AUTH_SOCK") and os.path.exists(f"{path}.pub"):
        try:
            subprocess.run(
                ["ssh-add", "-q", "-d", f"{path}.pub"],
                check=False,
                timeout=AGENT_TIMEOUT_S,
                stderr=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass


def public_key_of_line(line: str) -> str:
    """`TYPE BASE64` of a public key line, without its comment."""
    return " ".join(line.split()[:2])
