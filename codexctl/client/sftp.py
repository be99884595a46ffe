"""Copies over SSH, to and from machines that need nothing but an sshd: SFTP with resuming.

Downloads go through the same Receiver as those over a relay, so that nothing is written outside the
target; uploads keep its rules by names (a partial file, then a rename; links on the way refused).
What SFTP lacks is a hash: `sha256sum` is run there where a partial copy is to be continued, and
without it a file starts anew. Times have whole seconds.

Importing this module imports asyncssh.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, cast

import asyncssh

from codexctl.client.sftp_session import (
    PARALLEL_FILES,
    PIECE_BYTES,
    RESUME_FROM_BYTES,
    Sftp,
    first_of,
    open_sftp,
    reason_of,
    remote_path,
)
from codexctl.client.sftp_upload import Upload
from codexctl.client.ssh_config import SshTarget
from codexctl.errors import CodexctlError
from codexctl.transfer.receiver import Receiver
from codexctl.transfer.source import Unreadable, expand_sources, source_name, walk
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import Target
from codexctl.wire import files as wire

Step = Callable[[int], None]


def upload(
    target: SshTarget,
    paths: Sequence[str],
    destination: str,
    *,
    config: str | None = None,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is here to `destination` there. `step` is called with the bytes that moved."""
    roots = expand_sources(paths)

    async def copy() -> Summary:
        async with open_sftp(target, config) as sftp:
            there = remote_path(destination)
            work = await Upload.open(sftp, there, len(roots) > 1, step)
            await work.run(walk(roots))
            return work.summary

    return asyncio.run(copy())


def download(
    target: SshTarget,
    paths: Sequence[str],
    destination: str,
    *,
    config: str | None = None,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is there to `destination` here."""

    async def copy() -> Summary:
        async with open_sftp(target, config) as sftp:
            roots = await _roots(sftp, paths)
            receiver = Receiver(Target.open(destination, many=len(roots) > 1))
            try:
                await _Download(sftp, receiver, step).run(roots)
            finally:
                receiver.close()
            return receiver.summary

    return asyncio.run(copy())


class _Remote(NamedTuple):
    """One thing there, as lstat saw it."""

    path: bytes
    parts: tuple[str, ...]
    attrs: asyncssh.SFTPAttrs

    @property
    def mode(self) -> int:
        return self.attrs.permissions or 0

    @property
    def size(self) -> int:
        return self.attrs.size or 0


class _Pending(NamedTuple):
    """A file that the receiver wants; a small one is on its way already."""

    remote: _Remote
    want: wire.Want
    content: asyncio.Task[bytes | asyncssh.Error] | None


async def _roots(sftp: Sftp, paths: Sequence[str]) -> list[_Remote]:
    """What was named, links followed; patterns become what they match there. CodexctlError."""
    found: list[_Remote] = []
    for given in paths:
        path = remote_path(given)
        matches = [path]
        if set(given) & set("*?[") and await sftp.lstat(path) is None:
            found_there = await sftp.client.glob(path, error_handler=lambda error: None)
            matches = sorted(match for match in found_there if isinstance(match, bytes))
        if not matches:
            raise _missing(sftp, given)
        for match in matches:
            try:
                attrs = await sftp.client.stat(match)
            except asyncssh.SFTPError as error:
                raise _missing(sftp, given) from error
            found.append(_Remote(match, (source_name(os.fsdecode(match)),), attrs))
    return found


def _missing(sftp: Sftp, path: str) -> CodexctlError:
    return CodexctlError(
        f"{path} does not exist on {sftp.target.alias}", hint="check the path and its spelling"
    )


async def _walk(sftp: Sftp, remote: _Remote) -> AsyncIterator[_Remote | Unreadable]:
    """A thing and what is below it, names in the order of their bytes."""
    if not stat.S_ISDIR(remote.mode):
        yield remote
        return
    if len(remote.parts) == wire.MAX_DEPTH:
        shown = os.fsdecode(remote.path)
        yield Unreadable(shown, f"nested deeper than {wire.MAX_DEPTH} folders", True)
        return
    try:
        names = await sftp.client.readdir(remote.path)
    except asyncssh.SFTPError as error:
        yield Unreadable(os.fsdecode(remote.path), reason_of(error), True)
        return
    yield remote
    for entry in sorted(names, key=lambda entry: entry.filename):
        name = entry.filename
        assert isinstance(name, bytes)
        if name not in (b".", b".."):
            parts = (*remote.parts, os.fsdecode(name))
            inner = _Remote(os.path.join(remote.path, name), parts, entry.attrs)
            async for found in _walk(sftp, inner):
                yield found


class _Download:
    """Plays the sender of the file protocol to a receiver here."""

    def __init__(self, sftp: Sftp, receiver: Receiver, step: Step) -> None:
        self._sftp = sftp
        self._receiver = receiver
        self._reader = wire.FrameReader()
        self._step = step
        self._count = 0
        self._moved = 0
        self._announced: dict[int, _Remote] = {}
        self._pending: deque[_Pending] = deque()

    async def run(self, roots: Sequence[_Remote]) -> None:
        """Announce and send everything. Small files are fetched several at a time."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for root in roots:
                    async for found in _walk(self._sftp, root):
                        await self._announce(found, tasks)
                        while len(self._pending) >= PARALLEL_FILES:
                            await self._send(self._pending.popleft(), tasks)
                while self._pending:
                    await self._send(self._pending.popleft(), tasks)
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        self._receiver.feed(wire.frame(wire.FINISH, b""))
        while self._receiver.produce() is not None:
            pass

    async def _announce(self, found: _Remote | Unreadable, tasks: asyncio.TaskGroup) -> None:
        entry = await self._entry(found) if isinstance(found, _Remote) else found
        if isinstance(entry, Unreadable):
            kind = wire.FAILED if entry.failed else wire.SKIPPED
            failure = wire.Failure(-1, entry.path, entry.message)
            self._receiver.feed(wire.failure_frame(kind, failure))
            return
        assert isinstance(found, _Remote)
        self._announced[entry.number] = found
        self._count += 1
        self._receiver.feed(wire.entry_frame(entry))
        while (answer := self._receiver.produce()) is not None:
            for kind, content in self._reader.feed(answer):
                if kind == wire.WANT:
                    self._pending.append(self._begin(wire.decode_want(content), tasks))
        self._announced.clear()

    async def _entry(self, remote: _Remote) -> wire.Entry | Unreadable:
        shown = os.fsdecode(remote.path)
        if remote.parts[-1].endswith(wire.PART_SUFFIX):
            return Unreadable(shown, "a partial copy, left out", False)
        target = ""
        if stat.S_ISDIR(remote.mode):
            kind = wire.DIRECTORY
        elif stat.S_ISREG(remote.mode):
            kind = wire.FILE
        elif stat.S_ISLNK(remote.mode):
            kind = wire.SYMLINK
            try:
                target = os.fsdecode(await self._sftp.client.readlink(remote.path))
            except asyncssh.SFTPError as error:
                return Unreadable(shown, reason_of(error), True)
        else:
            return Unreadable(shown, "no regular file, left out", len(remote.parts) == 1)
        return wire.Entry(
            number=self._count,
            parts=remote.parts,
            kind=kind,
            mode=stat.S_IMODE(remote.mode) & 0o777,
            mtime_ns=(remote.attrs.mtime or 0) * 10**9,
            size=remote.size,
            target=target,
        )

    def _begin(self, want: wire.Want, tasks: asyncio.TaskGroup) -> _Pending:
        remote = self._announced[want.number]
        if remote.size >= RESUME_FROM_BYTES:
            return _Pending(remote, want, None)
        return _Pending(remote, want, tasks.create_task(self._fetch(remote)))

    async def _fetch(self, remote: _Remote) -> bytes | asyncssh.Error:
        """A small file, or why it cannot be had: an exception would end the others' tasks."""
        try:
            file = await self._sftp.client.open(remote.path, "rb", encoding=None)
        except asyncssh.Error as error:
            return error
        try:
            return await _read(file, 0)
        finally:
            await file.close()

    async def _send(self, pending: _Pending, tasks: asyncio.TaskGroup) -> None:
        remote, want, content = pending
        try:
            if content is None:
                await self._stream(remote, want, tasks)
                return
            data = await content
            if isinstance(data, asyncssh.Error):
                raise data
            self._receiver.feed(wire.json_frame(wire.BEGIN, {"n": want.number, "offset": 0}))
            self._deliver(data)
            self._end(want.number, len(data), hashlib.sha256(data).hexdigest())
        except asyncssh.Error as error:
            failure = wire.Failure(want.number, os.fsdecode(remote.path), reason_of(error))
            self._receiver.feed(wire.failure_frame(wire.FAILED, failure))

    async def _stream(self, remote: _Remote, want: wire.Want, tasks: asyncio.TaskGroup) -> None:
        """A large file in pieces, the next one on its way while one is written."""
        offset = want.offset
        if offset < RESUME_FROM_BYTES or want.sha256 != await self._sftp.sha256(
            remote.path, offset
        ):
            offset = 0
        digest = hashlib.sha256()
        async with await self._sftp.client.open(remote.path, "rb", encoding=None) as file:
            self._receiver.feed(wire.json_frame(wire.BEGIN, {"n": want.number, "offset": offset}))
            at = offset
            ahead = tasks.create_task(_read(file, at))
            while True:
                data = await ahead
                if isinstance(data, asyncssh.Error):
                    raise data
                if not data:
                    break
                at += len(data)
                ahead = tasks.create_task(_read(file, at))
                digest.update(data)
                self._deliver(data)
        whole = digest.hexdigest()
        if offset:
            # Of the resumed file only a part has passed here.
            whole = await self._sftp.sha256(remote.path, at) or ""
        self._end(want.number, at, whole)

    def _deliver(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(data), wire.MAX_DATA_BYTES):
            self._receiver.feed(wire.frame(wire.DATA, view[at : at + wire.MAX_DATA_BYTES]))
        self._moved += len(data)
        self._step(self._moved)

    def _end(self, number: int, size: int, sha256: str) -> None:
        self._receiver.feed(
            wire.json_frame(wire.END, {"n": number, "size": size, "sha256": sha256})
        )


async def _read(file: asyncssh.SFTPClientFile, at: int) -> bytes | asyncssh.Error:
    try:
        # Bytes, since it was opened without an encoding.
        return cast(bytes, await file.read(PIECE_BYTES, at))
    except asyncssh.Error as error:
        return error
