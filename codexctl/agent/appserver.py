"""One connection to a `codex app-server`: JSON-RPC, an object a message, no "jsonrpc" member.

    server = AppServer(messages, on_lines)
    await server.run()                      # in a task; until the stream ends or makes no sense
    thread = await server.call("thread/start", {"cwd": "/home/u/app"})

Ids of calls are this connection's own. Whatever is no answer to a call, notifications and requests
of the server, is handed on as it was written, in batches of what came together: `on_lines` gets the
text and the object.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Protocol

from codexctl.agent.errors import AgentRefused, AgentUnavailable

MAX_GARBAGE_LINES = 20  # of one process: a stray print is passed over, a broken stream is not
MAX_BATCH = 256  # messages handed on together
MAX_CALLS = 256  # waiting for their answers at a time
CALL_S = 60.0
TOLD_CHARS = 200

_log = logging.getLogger(__name__)


class Broken(Exception):
    """The stream is over or cannot be understood; the argument is the reason, a part sentence."""


class Line(NamedTuple):
    """A notification or request as it came: `raw` is its text, `value` parsed."""

    raw: str
    value: dict[str, Any]


class Messages(Protocol):
    """A stream of texts both ways. OSError where it fails; its end ends the iteration."""

    def __aiter__(self) -> AsyncIterator[str]: ...

    async def send(self, text: str) -> None: ...


class AppServer:
    """The client side of one app-server. `on_lines` must not fail and does not wait."""

    def __init__(self, messages: Messages, on_lines: Callable[[list[Line]], None]) -> None:
        self._messages = messages
        self._on_lines = on_lines
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._batch: list[Line] = []
        self._next = 0
        self._garbage = 0
        self._over = ""

    async def run(self) -> None:
        """Read until the end, which is always `Broken`; calls that wait fail with it."""
        reason = "the connection was given up"
        try:
            async for text in self._messages:
                self._take(text)
            raise Broken("it ended")
        except OSError as error:
            raise Broken(f"its socket failed: {error}") from error
        except Broken as error:
            reason = str(error)
            raise
        finally:
            self._flush()
            self._over = reason
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(AgentUnavailable(f"the app-server is gone: {reason}"))
                    call.exception()  # retrieved here: the caller may have been cancelled

    def _take(self, text: str) -> None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or not ("method" in value or "id" in value):
            self._wrong(text)
        elif "method" in value:
            if not self._batch:
                asyncio.get_running_loop().call_soon(self._flush)
            self._batch.append(Line(text.strip(), value))
            if len(self._batch) >= MAX_BATCH:
                self._flush()
        else:
            # An answer may be about what was said before it.
            self._flush()
            self._answered(value)

    def _flush(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._on_lines(batch)

    def _wrong(self, text: str) -> None:
        self._garbage += 1
        _log.warning("the app-server wrote what is no message: %r", text[:TOLD_CHARS])
        if self._garbage > MAX_GARBAGE_LINES:
            raise Broken(f"it wrote what is no message: {text[:TOLD_CHARS]!r}")

    def _answered(self, value: dict[str, Any]) -> None:
        number = value.get("id")
        call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is not None and not call.done():
            call.set_result(value)

    async def call(
        self, method: str, params: dict[str, Any], *, timeout_s: float = CALL_S
    ) -> dict[str, Any]:
        """The result. AgentRefused has the server's own words; AgentUnavailable: no answer came.

        TimeoutError after `timeout_s`: the caller decides what a silent server means.
        """
        if self._over:
            raise AgentUnavailable(f"the app-server is gone: {self._over}")
        if len(self._calls) >= MAX_CALLS:
            raise AgentUnavailable(f"{MAX_CALLS} calls already wait for the app-server")
        self._next += 1
        number = self._next
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._send({"id": number, "method": method, "params": params})
                answer = await future
        finally:
            self._calls.pop(number, None)
        if "error" in answer:
            error = answer["error"] if isinstance(answer["error"], dict) else {}
            raise AgentRefused(f"codex says: {error.get('message') or answer['error']}")
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    async def notify(self, method: str) -> None:
        await self._send({"method": method})

    async def respond(self, request_id: object, result: dict[str, Any]) -> None:
        """Answer a request of the server's."""
        await self._send({"id": request_id, "result": result})

    async def refuse(self, request_id: object, message: str) -> None:
        """Answer a request of the server's with an error."""
        await self._send({"id": request_id, "error": {"code": -32601, "message": message}})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._messages.send(json.dumps(message))
        except OSError as error:
            raise AgentUnavailable(f"the app-server is gone: {error}") from error
