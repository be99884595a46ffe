"""An SSH machine without a relay as one side of a handoff (codexctl.client.handoff.Remote).

`codexctl host agent` runs there behind the login shell; requests go over its pipes
(codexctl.agent.stdio). Importing this module imports asyncssh.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import asyncssh

from codexctl.agent.stdio import (
    CLOSE,
    DATA,
    EOF,
    HEADER,
    MARK,
    MAX_FRAME_BYTES,
    OPEN,
    frame,
    parse_header,
)
from codexctl.client.handoff_host import KEEP_EVERY_S, HostRemote
from codexctl.client.ssh import quote_argv
from codexctl.client.ssh_config import SshTarget
from codexctl.client.ssh_connect import connect
from codexctl.errors import CodexctlError, ConnectionFailed, ProtocolError
from codexctl.session.core import RemoteError
from codexctl.wire.channel import decode_json

T = TypeVar("T")

# The login shell knows the PATH that codexctl was installed for.
COMMAND = 'exec "${SHELL:-/bin/sh}" -l -c "exec codexctl host agent"'
MAX_GREETING_BYTES = 64 * 1024  # of what a login shell prints first
TOLD_BYTES = 400


class SshRemote:
    """One request at a time over the pipes of a process there."""

    kind = "ssh"

    def __init__(self, alias: str) -> None:
        self.name = self.id = alias
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._ready = threading.Event()
        self._task: Any = None
        self._beside: HostRemote | None = None

    def open(self, target: SshTarget) -> None:
        """Connect and start the agent there. ConnectionFailed with what it said."""
        opened: asyncio.Future[None] | None = None

        async def start() -> None:
            nonlocal opened
            opened = self._loop.create_future()
            self._closing = asyncio.Event()
            self._task = self._loop.create_task(self._hold(target, opened))
            await opened

        self._wait(start())

    async def _hold(self, target: SshTarget, opened: asyncio.Future[None]) -> None:
        """Keep the connection, in the task that made it, until `close`."""
        try:
            async with connect(target) as connection:
                line = "exec " + quote_argv(["sh", "-c", COMMAND])
                self._process = await connection.create_process(line, encoding=None)
                await self._greet()
                opened.set_result(None)
                await self._closing.wait()
                self._process.close()
        except (CodexctlError, asyncssh.Error, OSError) as error:
            if not opened.done():
                told = error if isinstance(error, CodexctlError) else _lost(self.name, error)
                opened.set_exception(told)

    async def _greet(self) -> None:
        assert self._process is not None
        seen = b""
        while MARK not in seen:
            block = await self._process.stdout.read(4096)
            seen += block
            if not block or len(seen) > MAX_GREETING_BYTES:
                said = await self._process.stderr.read(TOLD_BYTES)
                words = said.decode(errors="replace").strip().splitlines()
                raise ConnectionFailed(
                    f"codexctl does not answer on {self.name}: "
                    f"{words[-1] if words else 'it ended'}",
                    hint=f"see what it says: ssh {self.name} codexctl host agent",
                )
        if not seen.endswith(MARK):
            raise ProtocolError(f"{self.name} spoke before it was asked")

    def close(self) -> None:
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._wait(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        await asyncio.wait([self._task])

    def keeps(self, other: HostRemote) -> None:
        """From now on look after `other`'s session whenever this one is waited for."""
        self._beside = other

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while self._beside is not None:
            try:
                return future.result(KEEP_EVERY_S)
            except TimeoutError:
                if future.done():
                    raise
                self._beside.look()
        return future.result()

    # --- codexctl.client.handoff.Remote ---

    def read(self, method: str, params: dict[str, Any]) -> Iterator[bytes]:
        self._put(OPEN, json.dumps({"method": method, "params": params}).encode())
        yield from self._answer()

    def stream(self, method: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        rest = b""
        for piece in self.read(method, params):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (decode_json(line) for line in lines)

    def write(
        self, method: str, params: dict[str, Any], data: Iterator[bytes]
    ) -> list[dict[str, Any]]:
        opening = {"method": method, "params": params, "input": True}
        self._put(OPEN, json.dumps(opening).encode())
        for piece in data:
            view = memoryview(piece)
            for at in range(0, len(view), MAX_FRAME_BYTES):
                self._put(DATA, view[at : at + MAX_FRAME_BYTES])
        self._put(EOF)
        return [decode_json(line) for line in b"".join(self._answer()).splitlines()]

    def _put(self, kind: bytes, content: bytes | memoryview = b"") -> None:
        async def put() -> None:
            assert self._process is not None
            try:
                self._process.stdin.write(frame(kind, content))
                await self._process.stdin.drain()
            except (asyncssh.Error, OSError) as error:
                raise _lost(self.name, error) from error

        self._wait(put())

    def _answer(self) -> Iterator[bytes]:
        """Output until the request ends; its error raised. What is left early is read to its end:
        the next request's answer comes behind it."""
        kind = DATA
        try:
            while kind != CLOSE:
                kind, content = self._wait(self._frame())
                if kind == DATA:
                    yield content
        except GeneratorExit:
            while kind != CLOSE:
                kind, _ = self._wait(self._frame())
            raise
        if value := decode_json(content):
            raise RemoteError(
                str(value.get("message")),
                hint=str(value.get("hint") or ""),
                exit_code=int(value.get("exit_code") or 1),
                code=str(value.get("error") or ""),
            )

    async def _frame(self) -> tuple[bytes, bytes]:
        assert self._process is not None
        try:
            kind, size = parse_header(await self._process.stdout.readexactly(HEADER.size))
            return kind, await self._process.stdout.readexactly(size)
        except (asyncio.IncompleteReadError, asyncssh.Error, OSError) as error:
            raise _lost(self.name, error) from error


def _lost(name: str, error: Exception) -> ConnectionFailed:
    reason = "it ended" if isinstance(error, asyncio.IncompleteReadError) else str(error)
    return ConnectionFailed(f"the connection to {name} was lost: {reason}")


@contextmanager
def open_ssh(target: SshTarget) -> Iterator[SshRemote]:
    """The agent of an SSH machine, for as long as the block runs."""
    remote = SshRemote(target.alias)
    try:
        remote.open(target)
        yield remote
    finally:
        remote.close()
