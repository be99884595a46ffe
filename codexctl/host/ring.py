"""The last output of a process, in order over its streams, bounded. No I/O.

Offsets count all bytes of all streams from 0. What an append pushes out is gone; `since` says how
much of what was asked for that was.
"""

from __future__ import annotations

from collections import deque

# Kept for each process: two screens of a busy build, or what a terminal shows many times over.
RING_BYTES = 1 << 20
# Small chunks are joined up to this size, so that a byte at a time costs no object each.
_JOIN_BYTES = 4096


class OutputRing:
    """Chunks of (stream, bytes); holds at least the last `limit` bytes, at most a chunk more."""

    __slots__ = ("_chunks", "_limit", "_size", "end")

    def __init__(self, limit: int = RING_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self.end = 0

    def __len__(self) -> int:
        return self._size

    def append(self, stream: int, data: bytes) -> None:
        size = len(data)
        chunks = self._chunks
        self.end += size
        self._size += size
        if size < _JOIN_BYTES and chunks:
            last_stream, last = chunks[-1]
            if last_stream == stream and len(last) + size <= _JOIN_BYTES:
                chunks[-1] = (stream, last + data)
                return
        chunks.append((stream, data))
        while self._size - len(chunks[0][1]) >= self._limit:
            self._size -= len(chunks.popleft()[1])

    def since(self, offset: int) -> tuple[int, list[tuple[int, bytes]]]:
        """Bytes after `offset` that are no longer kept, and the chunks that are, in order."""
        start = self.end - self._size
        dropped = max(0, start - offset)
        skip = max(0, offset - start)
        kept = []
        for stream, data in self._chunks:
            if skip >= len(data):
                skip -= len(data)
                continue
            kept.append((stream, data[skip:] if skip else data))
            skip = 0
        return dropped, kept

    def clear(self) -> None:
        """Forget what is kept; the count of all bytes stays."""
        self._chunks.clear()
        self._size = 0
