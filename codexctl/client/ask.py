"""Channels that answer once: control methods, pairing."""

from __future__ import annotations

from typing import Any

from codexctl.client.connection import ChannelHandler, Connection
from codexctl.errors import CodexctlError, ConnectionFailed


class _Answer(ChannelHandler):
    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        self.error: CodexctlError | None = None
        self.over = False

    def opened(self, result: dict[str, Any]) -> None:
        self.result = result

    def closed(self, error: CodexctlError | None) -> None:
        self.error, self.over = error, True


def request(connection: Connection, kind: str, params: dict[str, Any]) -> dict[str, Any]:
    """Open a channel that answers once and closes; its answer, or its error raised."""
    answer = _Answer()
    channel = connection.channel(kind, params, answer)
    connection.run(lambda: answer.over or answer.result is not None)
    channel.close()
    if answer.error is not None:
        raise answer.error
    if answer.result is None:
        raise ConnectionFailed("the host closed the channel without an answer")
    return answer.result


def control(
    connection: Connection, method: str, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Call a control method of the host (PROTOCOL.md section 6)."""
    return request(connection, "control", {"method": method, "params": params or {}})
