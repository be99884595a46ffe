"""An agent's end of an exec-server channel in memory, before the real host."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from codexctl.errors import CodexctlError
from codexctl.host.execserver.service import serve_exec_server
from codexctl.session.channel import Peer
from tests.host.conftest import Host
from tests.host.memory_channel import LAPTOP, MemoryChannel


class Failed(Exception):
    """The host answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']} {error['message']}")
        self.code: int = error["code"]


class Agent:
    """Calls methods, and reads what it is told about its processes."""

    def __init__(
        self, host: Host, peer: Peer = LAPTOP, *, credit: int | None = None, **params: Any
    ) -> None:
        self.host = host
        self.channel = MemoryChannel("exec-server", params, peer, credit=credit)
        self._number = 0
        self._task = host._tasks.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            await serve_exec_server(self.channel, self.host.context)
        except CodexctlError as error:
            await self.channel.close(error)

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in bytes(self.channel.output[1]).split(b"\n")[:-1]]

    def write(self, line: bytes) -> None:
        self.channel.input(line)

    def ask(self, method: str, **params: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self.write(json.dumps(message).encode() + b"\n")
        return self._number

    def answer(self, number: int) -> dict[str, Any] | None:
        found = [m for m in self.messages() if m.get("id") == number and "method" not in m]
        return found[0] if found else None

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result. Failed."""
        number = self.ask(method, **params)
        await self.channel.until(lambda: self.answer(number) or self.channel.closed)
        answer = self.answer(number)
        assert answer is not None, self.channel.error
        if "error" in answer:
            raise Failed(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def start(self, id: str, *argv: str, **params: Any) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "processId": id,
            "argv": list(argv),
            "cwd": url(self.host.bench.workspace),
            "env": {},
            "tty": False,
            "pipeStdin": False,
            "arg0": None,
        }
        return await self.call("process/start", **{**usual, **params})

    def told(self, id: str, method: str) -> list[dict[str, Any]]:
        """The parameters of what was told about a process."""
        return [
            m["params"]
            for m in self.messages()
            if m.get("method") == method and m["params"]["processId"] == id
        ]

    def output(self, id: str, stream: str = "stdout") -> bytes:
        told = self.told(id, "process/output")
        return b"".join(base64.b64decode(m["chunk"]) for m in told if m["stream"] == stream)

    async def run(self, id: str, *argv: str, **params: Any) -> tuple[int, str]:
        """The status and what was printed, of a process that ends."""
        await self.start(id, *argv, **params)
        await self.channel.until(lambda: self.told(id, "process/closed"))
        (ended,) = self.told(id, "process/exited")
        said = self.output(id) + self.output(id, "stderr")
        return ended["exitCode"], said.decode(errors="replace")

    async def end(self) -> None:
        """The agent ends."""
        self.channel.end_input()
        await self.channel.until(lambda: self.channel.closed)
        async with asyncio.timeout(30):
            await self._task


def url(path: object) -> str:
    return f"file://{path}"
