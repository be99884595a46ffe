"""The receiving side of a copy, without a transport: bytes in by `feed`, bytes out by `produce`.

Rules:
1. Folders and links are made when they are announced, modes and times of folders set at the end.
2. A file is asked for from where a partial copy (or an equal file) ends, with the hash of that
   part, which the sender checks. Files are written one after the other.
3. A file becomes complete when its size and SHA-256 are those of the sender's `end`; else it is
   asked for no more and told as failed.
4. What cannot be written fails alone; a full disk ends the copy, and the partial file stays.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase

from codexctl.errors import ProtocolError
from codexctl.transfer.sender import CHECK_BYTES, hash_zeros, received_error
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import NotCopied, Target, reason_of
from codexctl.wire import files as wire


class Receiver:
    """Writes below `target`. `roots` are the names (or patterns) that were asked for, if known.

    `finished` says that the sender has sent all and `produce` has given the last answer.
    """

    def __init__(self, target: Target, roots: Sequence[str] | None = None) -> None:
        self._target = target
        self._roots = roots
        self._reader = wire.FrameReader()
        self._answers: deque[bytes] = deque()
        self._checks: deque[_Check] = deque()
        self._wanted: dict[int, _Wanted] = {}
        self._writing: _Writing | None = None
        self._refused: set[tuple[str, ...]] = set()  # folders that could not be made
        self._last = -1
        self._finish = False
        self.finished = False
        self.summary = Summary()

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes from the sender. ProtocolError where they make no sense; its error is raised."""
        for kind, content in self._reader.feed(data):
            if kind == wire.DATA:
                self._write(content)
            elif kind == wire.ENTRY:
                self._announced(wire.decode_entry(content))
            elif kind == wire.BEGIN:
                self._begun(*wire.decode_begin(content))
            elif kind == wire.HOLE:
                self._skip(wire.decode_hole(content))
            elif kind == wire.END:
                self._ended(wire.decode_end(content))
            elif kind in (wire.FAILED, wire.SKIPPED):
                self._not_sent(kind, wire.decode_failure(content))
            elif kind == wire.FINISH:
                if self._wanted or self._checks or self._writing is not None:
                    raise ProtocolError("the sender finished before all files were sent")
                self._finish = True
            elif kind == wire.ERROR:
                raise received_error(content)
            else:
                raise ProtocolError(f"a sender does not send file frames of type {kind}")

    def produce(self) -> bytes | None:
        """Bytes for the sender; empty when there is work left but nothing yet, None to wait."""
        if self._checks and self._check():
            self._answers.append(self._want(self._checks.popleft()))
        if self._answers:
            answers = b"".join(self._answers)
            self._answers.clear()
            return answers
        if self._checks:
            return b""
        if self._finish and not self.finished:
            for path, message in self._target.close():
                self.summary.fail("/".join(path), message)
            self.finished = True
            return wire.json_frame(wire.FINISHED, self.summary.counts())
        return None

    def close(self) -> None:
        """Let go of everything; what is partial stays for the next attempt."""
        while self._checks:
            os.close(self._checks.popleft().fd)
        if self._writing is not None and self._writing.fd >= 0:
            os.close(self._writing.fd)
            self._writing.fd = -1
        self._target.abandon()

    def _announced(self, entry: wire.Entry) -> None:
        if entry.number != self._last + 1 or self._finish:
            raise ProtocolError("entries are out of order")
        self._last = entry.number
        root = entry.parts[0]
        if self._roots is not None and not any(
            root == name or fnmatchcase(root, name) for name in self._roots
        ):
            raise ProtocolError(f"the sender announced {root[:80]!r}, which was not asked for")
        path = self._target.place(entry)
        try:
            if any(path[:depth] in self._refused for depth in range(1, len(path))):
                raise NotCopied("the directory that it is in was not copied")
            if entry.kind == wire.DIRECTORY:
                self._target.make_folder(path, entry)
                self.summary.directories += 1
            elif not path:
                raise ProtocolError("a file or link has no name")
            elif entry.kind == wire.SYMLINK:
                self._target.make_link(path, entry)
                self.summary.symlinks += 1
            else:
                self._ask(path, entry)
        except NotCopied as refusal:
            if entry.kind == wire.DIRECTORY:
                self._refused.add(path)
            self._fail(entry, str(refusal))

    def _ask(self, path: tuple[str, ...], entry: wire.Entry) -> None:
        if len(self._wanted) >= wire.WINDOW:
            raise ProtocolError("the sender announced too many files at once")
        there = self._target.existing(path, entry)
        self._wanted[entry.number] = wanted = _Wanted(path, entry)
        if there is None:
            # Behind a check that is under way as well: the order of answers means nothing.
            self._answers.append(_want_frame(entry.number, 0, hashlib.sha256()))
        else:
            fd, wanted.complete, size = there
            self._checks.append(_Check(wanted, fd, size))

    def _check(self) -> bool:
        """Hash a bit more of what is there; True when the first of the checks is done."""
        check = self._checks[0]
        wanted = check.wanted
        data = os.pread(check.fd, min(CHECK_BYTES, check.size - wanted.have), wanted.have)
        wanted.digest.update(data)
        wanted.have += len(data)
        return not data or wanted.have == check.size

    def _want(self, check: _Check) -> bytes:
        os.close(check.fd)
        return _want_frame(check.wanted.entry.number, check.wanted.have, check.wanted.digest)

    def _begun(self, number: int, offset: int) -> None:
        wanted = self._wanted.pop(number, None)
        if wanted is None or self._writing is not None:
            raise ProtocolError("a file begins that was not asked for")
        if offset not in (0, wanted.have):
            raise ProtocolError("a file begins elsewhere than it was asked for")
        if offset != wanted.have or not offset:
            wanted.digest, wanted.complete = hashlib.sha256(), False
        self._writing = writing = _Writing(wanted, offset)
        try:
            if wanted.complete:
                writing.fd = self._target.open_complete(wanted.path)
            else:
                writing.fd = self._target.open_part(wanted.path)
                if os.fstat(writing.fd).st_size < offset:
                    raise NotCopied("the partial copy was cut meanwhile")
                os.ftruncate(writing.fd, offset)
        except NotCopied as refusal:
            writing.refusal = str(refusal)

    def _write(self, data: bytes) -> None:
        writing = self._current()
        writing.wanted.digest.update(data)
        if writing.wanted.complete:
            writing.refusal = "it grew while it was copied: run the same command again"
        try:
            if writing.refusal is None:
                view = memoryview(data)
                at = writing.at
                while view:
                    written = os.pwrite(writing.fd, view, at)
                    view, at = view[written:], at + written
        except OSError as error:
            writing.refusal = reason_of(error)
        writing.at += len(data)

    def _skip(self, size: int) -> None:
        writing = self._current()
        hash_zeros(writing.wanted.digest, size)
        writing.at += size

    def _current(self) -> _Writing:
        if self._writing is None:
            raise ProtocolError("data without a file")
        return self._writing

    def _ended(self, end: wire.End) -> None:
        writing = self._current()
        entry = writing.wanted.entry
        if end.number != entry.number or end.size != writing.at:
            raise ProtocolError("a file ends that is not being sent, or with another size")
        self._writing = None
        try:
            if writing.refusal is not None:
                raise NotCopied(writing.refusal)
            if end.sha256 != writing.wanted.digest.hexdigest():
                raise NotCopied("its SHA-256 is not the sender's: run the same command again")
            if not writing.wanted.complete:
                os.ftruncate(writing.fd, end.size)  # a hole at the end is not written
            self._target.commit(
                writing.wanted.path, writing.fd, entry, rename=not writing.wanted.complete
            )
            self.summary.files += 1
            self.summary.bytes += end.size
            self.summary.resumed_bytes += writing.offset
        except NotCopied as refusal:
            self._fail(entry, str(refusal))
        except OSError as error:
            self._fail(entry, reason_of(error))
        finally:
            if writing.fd >= 0:
                os.close(writing.fd)

    def _not_sent(self, kind: int, failure: wire.Failure) -> None:
        """The sender could not read something, or left it out."""
        if kind == wire.SKIPPED:
            self.summary.skip(failure.path, failure.message)
            return
        self.summary.fail(failure.path, failure.message)
        if self._writing is not None and self._writing.wanted.entry.number == failure.number:
            if self._writing.fd >= 0:
                os.close(self._writing.fd)
            self._writing = None
        self._wanted.pop(failure.number, None)

    def _fail(self, entry: wire.Entry, message: str) -> None:
        path = "/".join(entry.parts)
        self.summary.fail(path, message)
        self._answers.append(
            wire.failure_frame(wire.FAILED, wire.Failure(entry.number, path, message))
        )


class _Wanted:
    """A file that was asked for; `have` bytes of it are there, `digest` is theirs."""

    def __init__(self, path: tuple[str, ...], entry: wire.Entry) -> None:
        self.path, self.entry = path, entry
        self.have = 0
        self.digest = hashlib.sha256()
        self.complete = False  # what is there is the file itself and no partial copy


class _Check:
    def __init__(self, wanted: _Wanted, fd: int, size: int) -> None:
        self.wanted, self.fd, self.size = wanted, fd, size


class _Writing:
    """The file that data belongs to; with a `refusal` its data is read and thrown away."""

    def __init__(self, wanted: _Wanted, offset: int) -> None:
        self.wanted, self.offset, self.at = wanted, offset, offset
        self.fd = -1
        self.refusal: str | None = None


def _want_frame(number: int, offset: int, digest: hashlib._Hash) -> bytes:
    return wire.json_frame(wire.WANT, {"n": number, "offset": offset, "sha256": digest.hexdigest()})
