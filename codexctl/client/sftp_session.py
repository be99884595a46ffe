"""One SFTP session to an ssh alias, with what both directions of a copy need of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncssh

from codexctl.client.ssh import quote_argv
from codexctl.client.ssh_config import SshTarget
from codexctl.client.ssh_connect import connect
from codexctl.errors import CodexctlError, ConnectionFailed

# Files below this size are copied anew rather than hashed: asking takes as long.
RESUME_FROM_BYTES = 256 * 1024
# Of one file that is on the way; larger ones are moved in pieces of this size.
PIECE_BYTES = 4 << 20
PARALLEL_FILES = 16

LOST = (
    asyncssh.ConnectionLost,
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.DisconnectError,
    ConnectionError,
)

_HASH = (
    'if command -v sha256sum >/dev/null 2>&1; then set -- "$1" sha256sum; '
    'else set -- "$1" shasum -a 256; fi; n=$1; shift; head -c "$n" <"$0" | "$@"'
)


class Sftp:
    """The session and the connection below it. Remote paths are bytes, relative to the home."""

    def __init__(
        self,
        target: SshTarget,
        connection: asyncssh.SSHClientConnection,
        client: asyncssh.SFTPClient,
    ) -> None:
        self.target = target
        self.client = client
        self._connection = connection

    async def sha256(self, path: bytes, size: int) -> str | None:
        """The SHA-256 of a remote file's first `size` bytes; None where nothing there can tell."""
        script = ["sh", "-c", _HASH, os.path.join("./", os.fsdecode(path)), str(size)]
        try:
            done = await self._connection.run(
                quote_argv(script), stdin=asyncssh.DEVNULL, encoding=None
            )
        except (asyncssh.ChannelOpenError, asyncssh.ProcessError):
            return None  # a server for SFTP alone
        said = done.stdout if isinstance(done.stdout, bytes) else b""
        digest = said.lstrip(b"\\")[:64].decode("ascii", "replace")
        return digest if done.exit_status == 0 and len(digest) == 64 else None

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs | None:
        """None for what does not exist."""
        try:
            return await self.client.lstat(path)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            return None


@asynccontextmanager
async def open_sftp(target: SshTarget, config: str | None) -> AsyncIterator[Sftp]:
    """Connect. ConnectionFailed also where the connection is lost later."""
    asyncio.get_running_loop().set_exception_handler(_quiet)
    async with connect(target, config=config) as connection:
        try:
            client = await connection.start_sftp_client(path_encoding=None)
        except (asyncssh.Error, OSError) as error:
            raise CodexctlError(
                f"{target.alias} has no SFTP: {str(error)[:1].lower()}{str(error)[1:]}",
                hint="enable the sftp subsystem in its sshd_config",
            ) from error
        try:
            async with client:
                yield Sftp(target, connection, client)
        except LOST as error:
            raise ConnectionFailed(
                f"lost {target.alias} in the middle of the copy",
                hint="run the same command again: it goes on where it broke off",
            ) from error


def _quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncssh leaves the parallel requests of a file behind when one of them finds the
    connection lost; that is told once, by whoever waits."""
    if not isinstance(context.get("exception"), LOST):
        loop.default_exception_handler(context)


def remote_path(path: str) -> bytes:
    """A path as SFTP takes it: relative ones, and `~/`, are below the home."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return os.fsencode(path) or b"."


def reason_of(error: asyncssh.Error | OSError) -> str:
    """What failed with one file; what fails for all of them is raised again."""
    if isinstance(error, LOST):
        raise error
    if isinstance(error, asyncssh.Error):
        full = isinstance(error, (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded))
        if full:
            raise CodexctlError(
                "the disk of the target is full",
                hint="free some space there, then run the same command again: it resumes",
            ) from error
        return error.reason.lower()
    return (error.strerror or str(error)).lower()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error that ended a task group: the others followed from it."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
