"""One command on an official executor, its output collected: what the copy needs a shell for."""

from __future__ import annotations

from typing import Any

from codexctl.client.connection import ChannelHandler
from codexctl.client.executor.connection import ExecutorConnection
from codexctl.errors import CodexctlError
from codexctl.wire.channel import STDIN, STDOUT

MAX_OUTPUT_BYTES = 64 << 20


class _Collect(ChannelHandler):
    def __init__(self) -> None:
        self.output = bytearray()
        self.status = 255
        self.error: CodexctlError | None = None
        self.over = False

    def data(self, stream: int, data: memoryview) -> None:
        if stream == STDOUT and len(self.output) < MAX_OUTPUT_BYTES:
            self.output += data

    def message(self, value: dict[str, Any]) -> None:
        self.status = value["exit"]["status"]

    def closed(self, error: CodexctlError | None) -> None:
        self.error, self.over = error, True


def run_there(connection: ExecutorConnection, argv: list[str]) -> tuple[int, bytes]:
    """Exit status and stdout of a command without stdin. CodexctlError where it did not start."""
    collect = _Collect()
    channel = connection.channel("exec", {"argv": argv}, collect)
    channel.write_eof(STDIN)
    connection.run(lambda: collect.over)
    channel.consumed(len(collect.output))
    if collect.error is not None:
        raise collect.error
    return collect.status, bytes(collect.output)
