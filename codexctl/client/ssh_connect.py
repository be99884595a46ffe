"""A connection to an ssh alias with asyncssh, as strict as ssh about whom it talks to.

What ssh_config resolved decides everything; asyncssh reads no config, no default key and no
known_hosts file by itself. Importing this module imports asyncssh (some 200 ms): import it where a
name has turned out to be an alias.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import asyncssh
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs

from codexctl.client.known_hosts import KnownKey, known_keys, refusal
from codexctl.client.ssh_config import SshTarget, resolve, split_hop
from codexctl.client.ssh_login import Login
from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed

CONNECT_TIMEOUT_S = 30
SLOW_S = 1.0  # until a person at a terminal is told what is waited for
LOGIN_TIMEOUT_S = 120  # people may type a passphrase meanwhile; sshd's own limit
ALIVE_INTERVAL_S = 15
MAX_HOPS = 8
PROXY_END_S = 2.0


@contextlib.asynccontextmanager
async def connect(
    target: SshTarget, *, config: str | None = None
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection, through all hops of the target; closed with everything below it at the end.

    ConnectionFailed says what was not reached, AuthenticationFailed which key was not accepted
    (the host's by known_hosts, or ours by the host). Hops are resolved by the file `config`.
    """
    async with contextlib.AsyncExitStack() as stack:
        waiting = asyncio.get_running_loop().call_later(SLOW_S, _tell_waiting, target.alias)
        stack.callback(waiting.cancel)
        connection = await _connect(target, config, stack, 0)
        waiting.cancel()
        yield connection


def _tell_waiting(alias: str) -> None:
    # A line that stays: a question for a passphrase may stand on the next one.
    if sys.stderr.isatty():
        sys.stderr.write(f"connecting to {alias}\n")


async def _connect(
    target: SshTarget, config: str | None, stack: contextlib.AsyncExitStack, depth: int
) -> asyncssh.SSHClientConnection:
    if depth > MAX_HOPS:
        raise ConnectionFailed(
            f"{target.alias} is reached through more than {MAX_HOPS} hosts",
            hint="look for a circle of ProxyJump lines in the ssh config",
        )
    via: asyncssh.SSHClientConnection | None = None
    if target.proxy_jump:
        *before, last = target.proxy_jump
        user, host, port = split_hop(last)
        hop = await asyncio.to_thread(resolve, host, user=user, port=port, path=config)
        if before:
            # As with ssh -J: hops that are named outweigh what the config has for this one.
            hop = hop._replace(proxy_jump=tuple(before), proxy_command=None)
        via = await _connect(hop, config, stack, depth + 1)
    known = known_keys(target)
    login = Login(target, known)
    stack.callback(login.close)
    sock = None
    if via is None and target.proxy_command is not None:
        sock = stack.enter_context(_proxy(target.proxy_command))
    try:
        connection = await asyncssh.connect(
            target.hostname,
            target.port,
            tunnel=via or (),
            sock=sock,
            config=None,
            family={"inet": socket.AF_INET, "inet6": socket.AF_INET6}.get(
                target.address_family, socket.AF_UNSPEC
            ),
            client_factory=lambda: login,
            username=target.user,
            # Keys come one by one from Login, so that nothing is asked for before it is needed.
            client_keys=None,
            agent_path=None,
            agent_forwarding=target.forward_agent or False,
            gss_host=None,
            x509_trusted_certs=None,
            known_hosts=_trusted(known),
            host_key_alias=target.host_key_alias,
            server_host_key_algs=_host_key_algorithms(target, known),
            kex_algs=_supported(target.key_exchanges, get_kex_algs()),
            encryption_algs=_supported(target.ciphers, get_encryption_algs()),
            mac_algs=_supported(target.macs, get_mac_algs()),
            compression_algs=["zlib@openssh.com", "none"] if target.compression else ["none"],
            connect_timeout=target.connect_timeout_s or CONNECT_TIMEOUT_S,
            login_timeout=LOGIN_TIMEOUT_S,
            keepalive_interval=target.alive_interval_s or ALIVE_INTERVAL_S,
            keepalive_count_max=target.alive_count,
        )
    except (OSError, asyncssh.Error, TimeoutError, ValueError) as error:
        raise _explain(target, known, login, error) from error
    stack.push_async_callback(_close, connection)
    return connection


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        async with asyncio.timeout(PROXY_END_S):
            await connection.wait_closed()
    except TimeoutError:
        # The other side does not answer any more: nothing is left to be said to it.
        connection.abort()


def _explain(
    target: SshTarget, known: list[KnownKey], login: Login, error: Exception
) -> CodexctlError:
    """What a failed connect means to the person."""
    where = f"{target.alias} ({target.hostname} port {target.port})"
    hint = f"see where it stops: ssh -v {target.alias} true"
    if login.refused is not None:
        return login.refused
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return refusal(target, known, None)
    if isinstance(error, asyncssh.PermissionDenied):
        return AuthenticationFailed(
            f"{where} accepted no key of {target.user}"
            + (f"; {'; '.join(login.skipped)}" if login.skipped else ""),
            hint=f"see which keys were offered: ssh -v {target.alias} true",
        )
    if isinstance(error, asyncssh.ConnectionLost):
        return ConnectionFailed(f"{where} closed the connection while logging in", hint=hint)
    if isinstance(error, TimeoutError):
        return ConnectionFailed(f"{where} did not answer in time", hint=hint)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, asyncssh.Error):
        reason = error.reason
    else:
        reason = str(error)
    return ConnectionFailed(f"cannot reach {where}: {reason[:1].lower()}{reason[1:]}", hint=hint)


def _trusted(
    known: list[KnownKey],
) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """Host keys, authorities and revoked keys. Never an empty value, which asyncssh would take as
    leave to read its own default file."""
    found: dict[str, list[asyncssh.SSHKey]] = {"": [], "cert-authority": [], "revoked": []}
    for entry in known:
        # A key of a type that this library does not know cannot be shown by the host either.
        with contextlib.suppress(asyncssh.KeyImportError):
            found[entry.marker].append(asyncssh.import_public_key(entry.key))
    return found[""], found["cert-authority"], found["revoked"]


def _host_key_algorithms(target: SshTarget, known: list[KnownKey]) -> list[str]:
    """What to ask the host for: the kinds that are known first, so that it shows one of these."""
    authorities = any(entry.marker == "cert-authority" for entry in known)
    certificates = _supported(target.host_key_algorithms, get_certificate_algs())
    plain = _supported(target.host_key_algorithms, get_public_key_algs())
    plain = plain or [name.decode() for name in get_public_key_algs()]
    kinds = {entry.key.split()[0] for entry in known if not entry.marker}

    def is_known(name: str) -> bool:
        return name in kinds or (name.startswith("rsa-sha2-") and "ssh-rsa" in kinds)

    plain.sort(key=lambda name: not is_known(name))  # stable: ssh's order otherwise
    return (certificates or []) + plain if authorities else plain


def _supported(names: tuple[str, ...], supported: list[bytes]) -> list[str] | None:
    """What the config allows and asyncssh has; None leaves the choice to asyncssh."""
    return [name for name in names if name.encode() in supported] or None


@contextlib.contextmanager
def _proxy(command: str) -> Iterator[socket.socket]:
    """Run a ProxyCommand as ssh does: by the person's shell, its stderr on ours."""
    ours, theirs = socket.socketpair()
    shell = os.environ.get("SHELL") or "/bin/sh"
    with ours:
        with theirs:
            try:
                process = subprocess.Popen(
                    [shell, "-c", f"exec {command}"],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    start_new_session=True,  # Ctrl-C is for the remote command
                )
            except OSError as error:
                raise ConnectionFailed(
                    f"cannot run the ProxyCommand with {shell}: {error.strerror}",
                    hint="set SHELL to a shell that is there",
                ) from error
        try:
            yield ours
        finally:
            process.terminate()
            try:
                process.wait(PROXY_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
