"""One process of an agent: a process of the host whose output is told in numbered events.

Events count from 1: output, then exited, then closed. While the agent reads, output is sent as it
comes, and a slow agent stalls the process; when the session is lost the process goes on without it,
as any other of this host (`codexctl ps`).
"""

from __future__ import annotations

import asyncio
import base64
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from codexctl.host.execserver.requests import INVALID_REQUEST, RpcError
from codexctl.host.process import HostProcess, signal_number
from codexctl.session.channel import ChannelClosed
from codexctl.wire.channel import STDERR, STDOUT

# Kept for process/read, which agents use when they have missed something.
KEPT_BYTES = 1 << 20
MAX_INPUT_BYTES = 1 << 20  # that a process has not taken yet
MAX_WAIT_S = 60.0
TAKEN_STATUS = 255

Notify = Callable[[str, dict[str, Any]], Awaitable[None]]


class AgentProcess:
    """Reads the process from now on; `run` sends its events and returns after the last one."""

    def __init__(self, id: str, process: HostProcess, *, stdin: bool, notify: Notify) -> None:
        self.id = id
        self.process = process
        self.closed = False
        self._stdin = stdin
        self._notify = notify
        self._seq = 0
        self._kept: deque[tuple[int, str, bytes]] = deque()
        self._kept_bytes = 0
        self._status: int | None = None
        self._input = 0
        self._writes: set[str] = set()
        self._changed = asyncio.Event()
        self._taken = ""
        self._sender: asyncio.Task[None] | None = None
        process.attach(self, "the official agent", self._taken_by)

    # --- events ---

    async def run(self) -> None:
        """Send events until the process has ended, or the channel: then it goes on alone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._sender = tasks.create_task(self._send_output())
            if self._taken:
                told = f"codexctl: {self._taken} has taken this process over\n"
                await self._output("stderr", told.encode())
            elif self.process.running:
                return  # the channel is gone
            self._status = self._exit_status()
            await self._tell("process/exited", exitCode=self._status, sandboxDenied=False)
            self.closed = True
            await self._tell("process/closed")
        except ChannelClosed:
            pass
        finally:
            self.leave()

    async def _send_output(self) -> None:
        process = self.process
        try:
            while process.outputs:
                progress = False
                for stream in tuple(process.outputs):
                    data = process.read(stream)
                    if data:
                        process.ring.append(stream, data)
                        await self._output(self._name(stream), data)
                        process.sent += len(data)
                    progress = progress or data is not None
                if not progress:
                    await process.readable()
            await process.ended.wait()
            process.ring.clear()
        except ChannelClosed:
            pass

    def _name(self, stream: int) -> str:
        if self.process.launch.tty is not None:
            return "pty"
        return {STDOUT: "stdout", STDERR: "stderr"}[stream]

    async def _output(self, name: str, data: bytes) -> None:
        self._kept.append((self._seq + 1, name, data))
        self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[2])
        await self._tell("process/output", stream=name, chunk=base64.b64encode(data).decode())

    async def _tell(self, method: str, **more: Any) -> None:
        self._seq += 1
        self._changed.set()
        self._changed = asyncio.Event()
        await self._notify(method, {"processId": self.id, "seq": self._seq, **more})

    def _exit_status(self) -> int:
        ended = self.process.exit
        if ended is None:
            return TAKEN_STATUS
        if ended.signal:
            return 128 + int(getattr(signal, f"SIG{ended.signal}", 0))
        return ended.status or 0

    def _taken_by(self, name: str) -> None:
        self._taken = name
        if self._sender is not None:
            self._sender.cancel()

    def leave(self) -> None:
        """Read no more; it goes on, and what it prints is kept as far as it is kept for anybody."""
        self.process.detach(self)

    def forget(self, unconfirmed: int) -> None:
        """The session is lost, and with it perhaps so many bytes: keep them for who attaches."""
        self.process.sent = max(0, self.process.sent - unconfirmed)

    # --- requests ---

    def write(self, data: bytes, write_id: str) -> str:
        """Give it input, once for each `write_id`; the official status. RpcError when full."""
        if not self._stdin or self.process.stdin < 0:
            return "stdinClosed"
        if write_id and write_id in self._writes:
            return "accepted"
        if self._input + len(data) > MAX_INPUT_BYTES:
            raise RpcError(
                INVALID_REQUEST, f"the process has not read the last {MAX_INPUT_BYTES} bytes"
            )
        if write_id:
            self._writes.add(write_id)
        self._input += len(data)
        self.process.feed(data, self._written)
        return "accepted"

    def _written(self, size: int) -> None:
        self._input -= size

    def interrupt(self) -> None:
        self.process.signal(signal_number("INT"))

    def terminate(self) -> bool:
        """Hang up on it; whether it ran."""
        running = self.process.running
        if running:
            self.process.hang_up()
        return running

    async def read(self, after: int, most: int, wait_s: float) -> dict[str, Any]:
        """process/read: the events after `after`, waited for where there are none."""
        try:
            async with asyncio.timeout(min(wait_s, MAX_WAIT_S)):
                while self._seq <= after and not self.closed:
                    await self._changed.wait()
        except TimeoutError:
            pass
        chunks: list[dict[str, Any]] = []
        lost = self._status is None and bool(self._kept) and after + 1 < self._kept[0][0]
        for seq, name, data in self._kept:
            if seq <= after:
                continue
            most -= len(data)
            if chunks and most < 0:
                break
            chunk = base64.b64encode(data).decode()
            chunks.append({"seq": seq, "stream": name, "chunk": chunk})
        seen = chunks[-1]["seq"] if chunks and most <= 0 else self._seq
        failure = "output that was not read in time is no longer kept" if lost else None
        return {
            "chunks": chunks,
            "nextSeq": seen + 1,
            "exited": self._status is not None,
            "exitCode": self._status,
            "closed": self.closed,
            "failure": failure,
            "sandboxDenied": False,
        }
