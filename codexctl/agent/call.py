"""One request of a device to the agent: its params, checked, and the way back.

Methods live in tables of name -> `Method` (codexctl.agent.threads and others); the service gives
each a `Call`. Results are JSON lines on stream 1; input that is too large for the request comes on
stream 0.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from codexctl.agent.agent import Agent
from codexctl.errors import Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.session.channel import DataReceived, EofReceived, HostChannel, Peer

OUTPUT = 1
MAX_TEXT_BYTES = 4 << 20  # a prompt or message

Handle = Callable[["Call"], Awaitable[None]]


class Method(NamedTuple):
    """What the service needs to know of a method: who may call it, and who does it."""

    scope: str
    handle: Handle


class Call:
    """A request that was accepted."""

    def __init__(
        self,
        method: str,
        params: Mapping[str, Any],
        channel: HostChannel,
        context: HostContext,
        *,
        has_input: bool,
    ) -> None:
        self.method = method
        self.params = params
        self.channel = channel
        self.context = context
        self.has_input = has_input

    @property
    def agent(self) -> Agent:
        return self.context.agent

    @property
    def peer(self) -> Peer:
        return self.channel.peer

    def need(self, scope: str) -> None:
        """Refused where the device has not this scope here."""
        if scope not in self.peer.scopes & self.context.policy.scopes:
            self.context.note(self.method, self.peer, self.params.get("thread") or "", "denied")
            raise Refused(
                f"this device has no scope {scope!r} on this host",
                hint=f"pair it again; on the host: codexctl pair --show --scope {scope}",
            )

    async def line(self, value: Mapping[str, Any]) -> None:
        """Write one result."""
        await self.channel.write(OUTPUT, json.dumps(value, separators=(",", ":")).encode() + b"\n")

    async def write(self, data: bytes | memoryview) -> None:
        """Write raw bytes, for a method whose result is not lines."""
        await self.channel.write(OUTPUT, data)

    # --- params ---

    def text(self, name: str) -> str:
        """A param that is a text and not empty. UsageError."""
        value = self.params.get(name)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{self.method} needs {name}, a text")
        return value

    def maybe_text(self, name: str) -> str | None:
        """A param that is a text, or None where it is not given. UsageError."""
        value = self.params.get(name)
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} of {self.method} is a text")
        return value or None

    def flag(self, name: str) -> bool:
        value = self.params.get(name, False)
        if not isinstance(value, bool):
            raise UsageError(f"{name} of {self.method} is true or false")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """A param that is a whole number from 0; above `most` it is `most`. UsageError."""
        value = self.params.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"{name} of {self.method} is a whole number")
        return min(value, most)

    async def long_text(self, name: str) -> str:
        """A text that comes as a param or, when the request says so, as input. UsageError."""
        if not self.has_input:
            return self.text(name)
        data = bytearray()
        while (event := await self.channel.receive()) is not None:
            if isinstance(event, EofReceived):
                break
            if isinstance(event, DataReceived):
                data += event.data
                self.channel.consumed(len(event.data))
            if len(data) > MAX_TEXT_BYTES:
                raise UsageError(f"{name} has more than {MAX_TEXT_BYTES >> 20} MiB")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{name} is not UTF-8 at byte {error.start}") from None
        if not text.strip():
            raise UsageError(f"{name} is empty")
        return text
