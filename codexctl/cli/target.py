"""From a name on the command line to a way to reach the host: paired hosts, then SSH aliases."""

from __future__ import annotations

import os
import sys

from codexctl.cli.output import notice, progress
from codexctl.errors import CodexctlError, ConnectionFailed, UsageError
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection
    from codexctl.client.ssh_config import SshTarget
    from codexctl.client.store import HostRecord

SSH_PREFIX = "ssh:"
RENEW_BEFORE_S = 30 * 86400  # of the 90 days that a device's relay token lives
TOLD_ALIASES = "told-aliases"


def find_host(home: Home, name: str) -> HostRecord | None:
    """The paired host of this name; None for `ssh:NAME` and for what is not paired."""
    if name.startswith(SSH_PREFIX):
        return None
    from codexctl.client.store import HostStore

    record = HostStore(home).find(name)
    if record is not None and sys.stderr.isatty():
        _tell_of_alias(home, name)
    return record


def _tell_of_alias(home: Home, name: str) -> None:
    """Say once for a name that it is an ssh alias as well, and how that one is reached."""
    from codexctl.client.ssh_config import alias_names

    path = home.join(TOLD_ALIASES)
    try:
        with open(path, "a+") as file:
            file.seek(0)
            if name in file.read().split("\n") or name not in alias_names():
                return
            file.write(f"{name}\n")
    except OSError:
        return  # a home that cannot be written is told of by what has to write there
    notice(f"{name} is a paired host and an ssh alias: this is the host, {SSH_PREFIX}{name} is SSH")


def find_ssh(name: str) -> SshTarget:
    """The SSH alias of this name. ConnectionFailed where there is neither host nor alias."""
    from codexctl.client.ssh_config import find_alias

    target = find_alias(name.removeprefix(SSH_PREFIX))
    if target is None:
        raise unknown_host(name)
    return target


def unknown_host(name: str) -> ConnectionFailed:
    """The error for a name that is nobody's, with the nearest one that is somebody's."""
    from difflib import get_close_matches

    from codexctl.client.names import host_names

    near = get_close_matches(name, host_names(Home.from_env()), n=1)
    hint = f"did you mean {near[0]}? see: codexctl hosts" if near else ""
    return ConnectionFailed(
        f"no host is called {name}",
        hint=hint or "pair with one: codexctl pair URL, or add it to ~/.ssh/config",
    )


def need_host(home: Home, name: str) -> HostRecord:
    """The paired host of this name, for what works through a relay alone."""
    record = find_host(home, name)
    if record is None:
        raise unknown_host(name)
    return record


def is_official(record: HostRecord) -> bool:
    """Whether this is an official executor, on which exec, shell and cp work and no more."""
    from codexctl.client.store import OFFICIAL

    return record.kind == OFFICIAL


def open_connection(home: Home, record: HostRecord) -> Connection:
    """Connect to a paired host; news of its path go to stderr when that is a terminal.

    UsageError for an official executor, which speaks a protocol of its own.
    """
    import time

    from codexctl.client.connection import Connection
    from codexctl.state.identity import load_identity

    if is_official(record):
        raise UsageError(
            f"{record.name} is an official executor, on which exec, shell and cp work and no more",
            hint=f'point the official agent at it: eval "$(codexctl env {record.name})"',
        )
    with progress(f"connecting to {record.name}"):
        connection = Connection.open(record, load_identity(home), path_notice)
    if record.key_sha256 is None and "key_sha256" in connection.hello:
        # A pairing from before: what the host says in this session is its own word.
        from codexctl.client.store import HostStore
        from codexctl.noise.suites import HYBRID

        pinned = bytes.fromhex(connection.hello["key_sha256"])
        HostStore(home).pin(record.environment_id, HYBRID, pinned)
    if record.token_expires_at - time.time() < RENEW_BEFORE_S:
        _renew(home, connection)
    return connection


def _renew(home: Home, connection: Connection) -> None:
    """Have the host get this device a new relay token, before the old one ends."""
    from codexctl.client.ask import control
    from codexctl.client.store import HostStore

    try:
        answer = control(connection, "renew-token")
        HostStore(home).renew(
            connection.record.environment_id, str(answer["token"]), int(answer["expires_at"])
        )
    except (CodexctlError, KeyError, ValueError) as error:
        # The old one still works; the next command tries again.
        path_notice(f"the relay token of {connection.record.name} was not renewed: {error}")


def path_notice(text: str) -> None:
    if sys.stderr.isatty() or os.environ.get("CODEXCTL_DEBUG"):
        notice(text)
