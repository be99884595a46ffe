"""The sending side of a copy, without a transport: bytes in by `feed`, bytes out by `produce`.

Rules:
1. Entries are announced ahead of their data, at most WINDOW files that are not ended.
2. The receiver answers each file with `want` (from an offset, with the SHA-256 of what it has) or
   `failed`; what it wants is sent in that order. Where the hash of our first `offset` bytes
   differs, the file is sent from its start.
3. A file ends with its size and SHA-256; one that cannot be read to its end ends with `failed`.
4. When everything is sent comes `finish`; the receiver's `finished` ends the copy.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator

from codexctl.errors import CodexctlError, ProtocolError
from codexctl.transfer.source import Found, Unreadable, open_file
from codexctl.transfer.summary import Summary
from codexctl.wire import files as wire

# One `produce` returns about this much, so that small files share a write.
PRODUCE_BYTES = 64 * 1024
# Of a prefix that is checked between two looks at the network.
CHECK_BYTES = 4 << 20
ZEROS = bytes(1 << 20)


class Sender:
    """Sends what `found` yields. `finished` and `summary` tell the end."""

    def __init__(self, found: Iterator[Found | Unreadable]) -> None:
        self._found = found
        self._reader = wire.FrameReader()
        self._announced: dict[int, Found] = {}  # files that wait for the receiver's answer
        self._wanted: deque[tuple[Found, wire.Want]] = deque()
        self._current: _Reading | None = None
        self._count = 0
        self._walked = False
        self._finish_sent = False
        self.finished = False
        self.summary = Summary()

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes from the receiver. ProtocolError where they make no sense; its error is raised."""
        for kind, content in self._reader.feed(data):
            if kind == wire.WANT:
                want = wire.decode_want(content)
                found = self._answered(want.number)
                if want.offset > found.size:
                    raise ProtocolError("more of a file is there than was announced")
                self._wanted.append((found, want))
            elif kind == wire.FAILED:
                failure = wire.decode_failure(content)
                self._announced.pop(failure.number, None)
                self.summary.fail(failure.path, failure.message)
            elif kind == wire.FINISHED and self._finish_sent:
                self.summary.take(wire.decode(content))
                self.finished = True
            elif kind == wire.ERROR:
                raise received_error(content)
            else:
                raise ProtocolError(f"a receiver does not send file frames of type {kind}")

    def _answered(self, number: int) -> Found:
        found = self._announced.pop(number, None)
        if found is None:
            raise ProtocolError("an answer is about a file that was not announced")
        return found

    def produce(self) -> bytes | None:
        """Bytes for the receiver; empty when there is work left but nothing yet, None to wait."""
        frames: list[bytes] = []
        size = 0
        while size < PRODUCE_BYTES:
            step = self._step()
            if not step:
                return b"".join(frames) if frames else step
            frames.append(step)
            size += len(step)
        return b"".join(frames)

    def _step(self) -> bytes | None:
        if self._current is not None:
            return self._read()
        if self._wanted:
            return self._begin(*self._wanted.popleft())
        if not self._walked and len(self._announced) < wire.WINDOW:
            return self._announce()
        if self._walked and not self._announced and not self._finish_sent:
            self._finish_sent = True
            return wire.frame(wire.FINISH, b"")
        return None

    def _announce(self) -> bytes:
        found = next(self._found, None)
        if found is None:
            self._walked = True
            return b""
        if isinstance(found, Unreadable):
            kind = wire.FAILED if found.failed else wire.SKIPPED
            (self.summary.fail if found.failed else self.summary.skip)(found.path, found.message)
            return wire.failure_frame(kind, wire.Failure(-1, found.path, found.message))
        entry = wire.Entry(self._count, *found[1:])
        self._count += 1
        if found.kind == wire.FILE:
            self._announced[entry.number] = found
        return wire.entry_frame(entry)

    def _begin(self, found: Found, want: wire.Want) -> bytes:
        try:
            fd, status = open_file(found.path, follow=len(found.parts) == 1)
        except OSError as error:
            return self._failed(want.number, found, error)
        # A file that grows is copied as long as it is now.
        self._current = _Reading(want, found, fd, status.st_size)
        return self._current.begin() if not want.offset else self._read()

    def _read(self) -> bytes:
        reading = self._current
        assert reading is not None
        try:
            step = reading.step()
        except OSError as error:
            self._end_reading()
            return self._failed(reading.want.number, reading.found, error)
        if reading.ended:
            self._end_reading()
        return step

    def _end_reading(self) -> None:
        assert self._current is not None
        os.close(self._current.fd)
        self._current = None

    def _failed(self, number: int, found: Found, error: OSError) -> bytes:
        message = (error.strerror or str(error)).lower()
        self.summary.fail(found.path, message)
        return wire.failure_frame(wire.FAILED, wire.Failure(number, found.path, message))

    def close(self) -> None:
        """Let go of the file that is being read."""
        if self._current is not None:
            self._end_reading()


class _Reading:
    """One file while it is read: first the prefix that the receiver has, then what it lacks."""

    def __init__(self, want: wire.Want, found: Found, fd: int, size: int) -> None:
        self.want, self.found, self.fd = want, found, fd
        self.ended = False
        self._size = size
        self._at = 0
        self._digest = hashlib.sha256()
        self._unchecked = want.offset if want.offset <= size else 0
        self._data_until = 0  # of what is no hole, from `_at`
        self._begun = False

    def begin(self) -> bytes:
        self._begun = True
        return wire.json_frame(wire.BEGIN, {"n": self.want.number, "offset": self._at})

    def step(self) -> bytes:
        if self._unchecked:
            self._check()
            return b"" if self._unchecked else self._checked()
        if not self._begun:
            return self._checked()
        if self._at == self._size:
            self.ended = True
            return self._end()
        hole = self._hole()
        if hole:
            hash_zeros(self._digest, hole)
            self._at += hole
            return wire.json_frame(wire.HOLE, {"size": hole})
        data = os.pread(self.fd, min(wire.MAX_DATA_BYTES, self._data_until - self._at), self._at)
        if not data:
            # It was cut while it was read: the receiver gets what is there.
            self._size = self._at
            return b""
        self._digest.update(data)
        self._at += len(data)
        return wire.frame(wire.DATA, data)

    def _check(self) -> None:
        data = os.pread(self.fd, min(CHECK_BYTES, self._unchecked), self._at)
        self._digest.update(data)
        self._at += len(data)
        self._unchecked = self._unchecked - len(data) if data else 0

    def _checked(self) -> bytes:
        if self._at != self.want.offset or self._digest.hexdigest() != self.want.sha256:
            self._at = 0
            self._digest = hashlib.sha256()
        return self.begin()

    def _hole(self) -> int:
        """How many zero bytes without data on the disk come next."""
        if self._at < self._data_until:
            return 0
        try:
            start = os.lseek(self.fd, self._at, os.SEEK_DATA)
        except OSError:
            start = self._size  # nothing but a hole up to the end
        if start > self._at:
            return min(start, self._size, self._at + wire.MAX_HOLE_BYTES) - self._at
        self._data_until = min(os.lseek(self.fd, self._at, os.SEEK_HOLE), self._size)
        return 0

    def _end(self) -> bytes:
        return wire.json_frame(
            wire.END,
            {"n": self.want.number, "size": self._size, "sha256": self._digest.hexdigest()},
        )


def hash_zeros(digest: hashlib._Hash, size: int) -> None:
    while size:
        part = min(size, len(ZEROS))
        digest.update(memoryview(ZEROS)[:part])
        size -= part


def received_error(content: bytes) -> CodexctlError:
    """The other side's fatal error, as an exception of the class that its exit code says."""
    from codexctl.errors import NotFoundOnHost, Refused

    value = wire.decode(content)
    message, hint = value.get("message"), value.get("hint")
    kinds = {Refused.exit_code: Refused, NotFoundOnHost.exit_code: NotFoundOnHost}
    kind = kinds.get(value.get("exit_code", 1), CodexctlError)
    return kind(
        message[:2000] if isinstance(message, str) else "the other side failed",
        hint=hint[:2000] if isinstance(hint, str) else "",
    )
