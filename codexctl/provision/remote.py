"""One pinned ssh connection to a workspace, for a caller without an event loop.

Only the pinned host keys are trusted; neither ~/.ssh/config nor the agent takes part, except for a
jump host, which the person's own ssh reaches. Scripts travel on stdin to `sh`, so the login shell
may be any. Output is bytes. asyncssh is imported on first use.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from codexctl.client.ssh_config import ENV_CONFIG
from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed
from codexctl.secret import Secret

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")

CONNECT_TIMEOUT_S = 15.0
KEEPALIVE_S = 5.0
KEEPALIVE_MISSES = 3
RUN_TIMEOUT_S = 60.0
MAX_OUTPUT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where and as whom, and which host keys (`TYPE BASE64`) are the machine's."""

    address: str
    port: int
    user: str
    key: str
    """Path of the private key."""
    host_keys: tuple[str, ...]
    passphrase: Secret | None = None
    proxy_jump: str = ""
    agent: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a script ended. A signal counts as status 255."""

    status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace").strip()

    @property
    def reason(self) -> str:
        """The last line that it said, for a sentence."""
        lines = (self.err or self.out).decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"status {self.status}"


class HostKeyMismatch(AuthenticationFailed):
    """Somebody else answers, or cloud-init ignored the user data; nothing was sent."""

    code = "host-key"


class LoginRefused(AuthenticationFailed):
    """The machine answers with its own host key and does not take our key (yet)."""

    code = "login"


class Link:
    """The connection, made on first use and again when it was lost. Use it in a `with`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._runner = asyncio.Runner()
        self._connection: asyncssh.SSHClientConnection | None = None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self.drop()
        self._runner.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end on this link's loop."""
        return self._runner.run(work)

    def drop(self) -> None:
        """Forget the connection; the next use makes a new one."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def connect(self) -> None:
        """Log in. HostKeyMismatch, LoginRefused or ConnectionFailed say why not."""
        if self._connection is None:
            self._connection = self.wait(self._open())

    async def _open(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        target = self.target
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncssh.connect(
                    target.address,
                    target.port,
                    username=target.user,
                    client_keys=[_client_key(target)],
                    passphrase=None,
                    known_hosts=([asyncssh.import_public_key(k) for k in target.host_keys], [], []),
                    server_host_key_algs=_algorithms(target.host_keys),
                    config=None,
                    agent_path=() if target.agent else None,
                    proxy_command=_proxy(target),
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=KEEPALIVE_MISSES,
                    encoding=None,
                )
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
            raise HostKeyMismatch(
                f"the host key of {target.address} port {target.port} is not the expected one",
                hint="nothing was sent; another machine answers there, or cloud-init ignored its "
                "user data (look at the provider's console)",
            ) from error
        except asyncssh.PermissionDenied as error:
            raise LoginRefused(
                f"{target.user}@{target.address} does not accept the workspace's key"
            ) from error
        except (OSError, asyncssh.Error, TimeoutError) as error:
            reason = str(error) or f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
            raise ConnectionFailed(
                f"cannot connect to {target.address} port {target.port}: {reason}"
            ) from error

    def host_key(self) -> str:
        """The key that the machine showed on this connection, `TYPE BASE64`."""
        self.connect()
        assert self._connection is not None
        key = self._connection.get_server_host_key()
        if key is None:
            raise ConnectionFailed("the connection has no host key")
        return " ".join(key.export_public_key().decode().split()[:2])

    def run(self, script: str, *, data: bytes = b"", timeout_s: float = RUN_TIMEOUT_S) -> Result:
        """Run a `sh` script, `data` on its stdin. ConnectionFailed when the connection is lost."""
        self.connect()
        return self.wait(self._run(script, data, timeout_s))

    async def _run(self, script: str, data: bytes, timeout_s: float) -> Result:
        import asyncssh

        assert self._connection is not None
        # sh reads a script from stdin a line at a time, so with data it has to be an argument.
        command = f"exec sh -c {shlex.quote(script)}" if data else "exec sh -s"
        try:
            async with asyncio.timeout(timeout_s):
                done = await self._connection.run(
                    command, input=data or script.encode(), encoding=None, check=False
                )
        except TimeoutError as error:
            raise CodexctlError(
                f"a step on {self.target.address} did not end within {timeout_s:.0f} s"
            ) from error
        except (OSError, asyncssh.Error) as error:
            self.drop()
            raise ConnectionFailed(f"the connection to the machine was lost: {error}") from error
        if done.returncode is None or done.returncode == -1:
            self.drop()
            raise ConnectionFailed("the connection to the machine was lost")
        status = done.returncode if done.returncode >= 0 else 255
        return Result(status, _bytes(done.stdout), _bytes(done.stderr))

    def check(
        self, script: str, *, what: str, data: bytes = b"", timeout_s: float = RUN_TIMEOUT_S
    ) -> str:
        """The output of a script that must succeed; CodexctlError names `what` and the reason."""
        result = self.run(script, data=data, timeout_s=timeout_s)
        if result.status != 0:
            raise CodexctlError(f"{what} failed on the machine: {result.reason}")
        return result.text


def _algorithms(host_keys: tuple[str, ...]) -> list[str]:
    """The signature algorithms of the pinned keys: no other key is asked for."""
    algorithms: dict[str, None] = {}
    for key in host_keys:
        kind = key.split()[0]
        for name in ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,):
            algorithms[name] = None
    return list(algorithms)


def _proxy(target: Target) -> list[str]:
    """The person's own ssh, as far as the last jump host; [] for a direct connection."""
    if not target.proxy_jump:
        return []
    *before, last = target.proxy_jump.split(",")
    config = os.environ.get(ENV_CONFIG)
    return [
        "ssh",
        *(["-F", config] if config else []),
        *(["-J", ",".join(before)] if before else []),
        *("-W", f"[{target.address}]:{target.port}"),
        last if last.startswith("ssh://") else f"ssh://{last}",
    ]


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


def _client_key(target: Target) -> asyncssh.SSHKey:
    import asyncssh

    passphrase = target.passphrase.reveal() if target.passphrase else None
    try:
        return asyncssh.read_private_key(target.key, passphrase)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise CodexctlError(
            f"cannot use the key {target.key}: {error}",
            hint="give its passphrase, or destroy the workspace",
        ) from error
