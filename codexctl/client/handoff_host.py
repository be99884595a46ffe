"""A paired host as one side of a handoff (codexctl.client.handoff.Remote)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from codexctl.client.agent import INPUT, read_bytes, stream
from codexctl.client.connection import ChannelHandler, Connection
from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.wire.channel import decode_json

KEEP_EVERY_S = 2.0  # the other host's session is looked at so often while this one works


class HostRemote:
    """Calls over a connection; while one waits, the other's session is kept alive."""

    kind = "host"

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.name = connection.record.name
        self.id = connection.record.environment_id
        self._waiting = 0

    def keeps(self, other: HostRemote) -> None:
        """From now on look after `other`'s session whenever this one is waited for."""
        self.connection.call_after(KEEP_EVERY_S, lambda: self._keep(other))

    def _keep(self, other: HostRemote) -> None:
        other.look()
        self.keeps(other)

    def look(self) -> None:
        """Move what there is to be moved, without waiting; nothing where it is waited for."""
        if self._waiting:
            return
        looked: list[bool] = []
        self.connection.call_after(0, lambda: looked.append(True))
        self._run(lambda: bool(looked))

    def _run(self, until: Any) -> None:
        self._waiting += 1
        try:
            self.connection.run(until)
        finally:
            self._waiting -= 1

    def stream(self, method: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._waiting += 1
        try:
            yield from stream(self.connection, method, params)
        finally:
            self._waiting -= 1

    def read(self, method: str, params: dict[str, Any]) -> Iterator[bytes]:
        return read_bytes(self.connection, method, params)

    def write(
        self, method: str, params: dict[str, Any], data: Iterator[bytes]
    ) -> list[dict[str, Any]]:
        upload = _Upload()
        opening = {"method": method, "params": params, "input": True}
        channel = self.connection.channel("agent", opening, upload)
        try:
            self._run(lambda: upload.opened_now or upload.over)
            for piece in data:
                view = memoryview(piece)
                while view and not upload.over:
                    view = view[channel.write(INPUT, view) :]
                    if view:
                        upload.room = False
                        channel.waiting = True
                        self._run(lambda: upload.room or upload.over)
                if upload.over:
                    break
            if not upload.over:
                channel.write_eof(INPUT)
                self._run(lambda: upload.over)
        finally:
            if channel.is_open:
                channel.close()
        if upload.error is not None:
            raise upload.error
        lines = bytes(upload.answer).splitlines()
        if not lines:
            raise ConnectionFailed(f"{self.name} ended the transfer without an answer")
        return [decode_json(line) for line in lines]


class _Upload(ChannelHandler):
    def __init__(self) -> None:
        self.opened_now = False
        self.room = True
        self.over = False
        self.error: CodexctlError | None = None
        self.answer = bytearray()

    def opened(self, result: dict[str, Any]) -> None:
        self.opened_now = True

    def writable(self) -> None:
        self.room = True

    def data(self, stream: int, data: memoryview) -> None:
        self.answer += data  # a line or two: what is not consumed bounds it

    def closed(self, error: CodexctlError | None) -> None:
        self.over, self.error = True, error
