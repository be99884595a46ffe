"""The content of one file on an official executor, in blocks asked for ahead of their answers."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from codexctl.client.executor.connection import ExecutorConnection, NoSuchFile
from codexctl.errors import CodexctlError

BLOCK_BYTES = 512 << 10
BLOCKS_AHEAD = 4


class Blocks:
    """An open file there; leaving the block closes it."""

    def __init__(self, connection: ExecutorConnection, path: str, mode: str) -> None:
        """`mode` is "read", or "replace": what stands there is overwritten."""
        self._connection = connection
        self._handle = f"codexctl-{os.urandom(8).hex()}"
        self._waiting = 0
        self._error: CodexctlError | None = None
        self._arrived: dict[int, bytes] = {}
        self._ended = False
        params = {"path": connection.path(path), "handleId": self._handle, "mode": mode}
        connection.call("fs/open", params)

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None or self._connection.has_path:
            self._connection.call("fs/close", {"handleId": self._handle})

    def write(self, read: Callable[[int], bytes], step: Callable[[int], None]) -> int:
        """Write what `read` gives until it gives nothing; the size. `step` hears how far it is."""
        offset = 0
        while (block := read(BLOCK_BYTES)) and self._error is None:
            self._ask("fs/writeBlock", offset, chunk=b64encode(block).decode())
            offset += len(block)
            self._connection.run(lambda: self._waiting < BLOCKS_AHEAD)
            step(offset)
        self._settle()
        return offset

    def read(self, write: Callable[[bytes], object], step: Callable[[int], None]) -> int:
        """Give all blocks to `write` in order; the size. `step` hears how far it is."""
        asked = written = 0
        while self._error is None:
            while not self._ended and self._waiting + len(self._arrived) < BLOCKS_AHEAD:
                self._ask("fs/readBlock", asked, len=BLOCK_BYTES)
                asked += BLOCK_BYTES
            self._next_answer()
            while written in self._arrived:
                block = self._arrived.pop(written)
                write(block)
                written += len(block)
                step(written)
            if self._ended and not self._waiting:
                break  # what was asked for behind the end has come and is empty
        self._settle()
        return written

    def _ask(self, method: str, offset: int, **more: Any) -> None:
        self._waiting += 1

        def done(result: dict[str, Any] | None, error: CodexctlError | None) -> None:
            self._waiting -= 1
            if result is None:
                self._error = self._error or error
            elif method == "fs/readBlock":
                block = self._arrived[offset] = b64decode(str(result.get("chunk") or ""))
                self._ended = self._ended or bool(result.get("eof")) or len(block) < BLOCK_BYTES

        params = {"handleId": self._handle, "offset": offset, **more}
        self._connection.submit(method, params, done)

    def _next_answer(self) -> None:
        before = self._waiting
        self._connection.run(lambda: self._waiting < before or not before)

    def _settle(self) -> None:
        self._connection.run(lambda: not self._waiting)
        if self._error is not None:
            raise self._error


def metadata(connection: ExecutorConnection, path: str) -> dict[str, Any] | None:
    """What `fs/getMetadata` says; None where there is nothing."""
    try:
        return connection.call("fs/getMetadata", {"path": connection.path(path)})
    except NoSuchFile:
        return None


def entries(connection: ExecutorConnection, path: str) -> list[dict[str, Any]]:
    found = connection.call("fs/readDirectory", {"path": connection.path(path)}).get("entries")
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []
