"""The upload over SFTP: what Target does with descriptors is done here by names.

SFTP cannot open without following links, so a link that somebody with write permission there puts
in the way at the right moment is followed; one that is there before is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Iterator

import asyncssh

from codexctl.client.sftp_session import (
    PARALLEL_FILES,
    PIECE_BYTES,
    RESUME_FROM_BYTES,
    Sftp,
    first_of,
    reason_of,
)
from codexctl.errors import CodexctlError
from codexctl.transfer.source import Found, Unreadable, open_file
from codexctl.transfer.summary import Summary
from codexctl.transfer.target import FOLDER_MODE, PART_MODE, NotCopied, part_name
from codexctl.wire.files import CONTENTS, DIRECTORY, FILE

Step = Callable[[int], None]


class Upload:
    """One copy to `base` there, the root called `rename` if that is given."""

    def __init__(self, sftp: Sftp, base: bytes, rename: str | None, step: Step) -> None:
        self._sftp = sftp
        self._base = base
        self._rename = rename
        self._final: bytes | None = None  # of a folder that is not there yet
        self._step = step
        self._moved = 0
        self._folders: list[tuple[bytes, Found]] = []
        self._refused: set[tuple[str, ...]] = set()
        self.summary = Summary()

    @classmethod
    async def open(cls, sftp: Sftp, path: bytes, many: bool, step: Step) -> Upload:
        """Decide what `path` is there, as codexctl.transfer.target does here. CodexctlError."""
        client = sftp.client
        shown = os.fsdecode(path)
        is_folder = many or path.endswith(b"/") or os.path.basename(path) in (b".", b"..")
        try:
            if await client.isdir(path):
                return cls(sftp, path, None, step)
            if is_folder:
                await client.mkdir(path)
                return cls(sftp, path, None, step)
            folder, name = os.path.split(path)
            if await client.isdir(folder or b"."):
                return cls(sftp, folder, os.fsdecode(name), step)
        except asyncssh.SFTPError as error:
            raise CodexctlError(
                f"{shown} is no directory there, and cannot be made: {reason_of(error)}",
                hint="name a directory to copy into",
            ) from error
        raise CodexctlError(f"there is no directory {os.path.dirname(shown)}", hint="make it first")

    async def run(self, found: Iterator[Found | Unreadable]) -> None:
        """Copy everything; files go several at a time, folders and links in order."""
        places = asyncio.Semaphore(PARALLEL_FILES)
        try:
            async with asyncio.TaskGroup() as tasks:
                for item in found:
                    if isinstance(item, Unreadable):
                        note = self.summary.fail if item.failed else self.summary.skip
                        note(item.path, item.message)
                    elif item.kind == FILE:
                        await places.acquire()
                        task = tasks.create_task(self._attempt(item))
                        task.add_done_callback(lambda _: places.release())
                    else:
                        await self._attempt(item)
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        await self._finish()

    async def _attempt(self, found: Found) -> None:
        try:
            if any(found.parts[:depth] in self._refused for depth in range(1, len(found.parts))):
                raise NotCopied("the directory that it is in was not copied")
            if found.kind == DIRECTORY:
                await self._make_folder(found)
            elif found.kind == FILE:
                await self._send(found)
            else:
                await self._make_link(found)
        except (NotCopied, asyncssh.Error, OSError) as error:
            if found.kind == DIRECTORY:
                self._refused.add(found.parts)
            reason = str(error) if isinstance(error, NotCopied) else reason_of(error)
            self.summary.fail(found.path, reason)

    def _place(self, found: Found) -> bytes:
        root, *rest = found.parts
        if self._rename is not None:
            if not rest and found.kind == DIRECTORY and self._final is None:
                self._final = os.path.join(self._base, os.fsencode(self._rename))
                self._rename = part_name(self._rename)
            rest.insert(0, self._rename)
        elif root != CONTENTS:
            rest.insert(0, root)
        return os.path.join(self._base, *map(os.fsencode, rest)) if rest else self._base

    async def _make_folder(self, found: Found) -> None:
        path = self._place(found)
        self.summary.directories += 1
        if path == self._base:
            return
        there = await self._sftp.lstat(path)
        if there is None:
            await self._sftp.client.mkdir(path, asyncssh.SFTPAttrs(permissions=FOLDER_MODE))
        elif not stat.S_ISDIR(there.permissions or 0):
            self.summary.directories -= 1
            raise NotCopied("there is something else than a directory, or a link")
        self._folders.append((path, found))

    async def _make_link(self, found: Found) -> None:
        path = self._place(found)
        part = _part(path)
        await self._refuse_folder(path)
        if await self._sftp.lstat(part) is not None:
            await self._sftp.client.remove(part)
        await self._sftp.client.symlink(os.fsencode(found.target), part)
        await self._rename_to(part, path)
        self.summary.symlinks += 1

    async def _send(self, found: Found) -> None:
        path = self._place(found)
        part = _part(path)
        await self._refuse_folder(path)
        fd, status = open_file(found.path, follow=len(found.parts) == 1)
        try:
            there = await self._sftp.lstat(part)
            if there is not None and not stat.S_ISREG(there.permissions or 0):
                name = os.fsdecode(os.path.basename(part))
                raise NotCopied(f"{name} is there and is no partial copy: remove it")
            if there is None and await self._is_same(path, fd, status):
                self._sent(status.st_size, status.st_size)
                return
            offset, digest = await self._resume_at(part, there, fd, status.st_size)
            flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
            if not offset:
                flags |= asyncssh.FXF_TRUNC
            attrs = asyncssh.SFTPAttrs(permissions=PART_MODE)
            size = offset
            async with await self._sftp.client.open(part, flags, attrs, encoding=None) as file:
                while data := await asyncio.to_thread(os.pread, fd, PIECE_BYTES, size):
                    digest.update(data)
                    await file.write(data, size)
                    size += len(data)
                    self._moved += len(data)
                    self._step(self._moved)
                await file.setstat(
                    asyncssh.SFTPAttrs(
                        size=size, permissions=found.mode, **_times(status.st_mtime_ns)
                    )
                )
            if offset and await self._sftp.sha256(part, size) != digest.hexdigest():
                raise NotCopied("its SHA-256 there is not the one here: run the command again")
            await self._rename_to(part, path)
            self._sent(size, offset)
        finally:
            os.close(fd)

    def _sent(self, size: int, resumed: int) -> None:
        self.summary.files += 1
        self.summary.bytes += size
        self.summary.resumed_bytes += resumed

    async def _is_same(self, path: bytes, fd: int, status: os.stat_result) -> bool:
        """Whether the file is there already, by size, time and content."""
        if status.st_size < RESUME_FROM_BYTES:
            return False
        there = await self._sftp.lstat(path)
        if (
            there is None
            or not stat.S_ISREG(there.permissions or 0)
            or (there.size, there.mtime) != (status.st_size, status.st_mtime_ns // 10**9)
        ):
            return False
        digest = await asyncio.to_thread(_hash_prefix, fd, status.st_size, hashlib.sha256())
        return await self._sftp.sha256(path, status.st_size) == digest

    async def _resume_at(
        self, part: bytes, there: asyncssh.SFTPAttrs | None, fd: int, size: int
    ) -> tuple[int, hashlib._Hash]:
        """The offset to go on from, and the digest of what is there."""
        digest = hashlib.sha256()
        have = there.size or 0 if there is not None else 0
        if RESUME_FROM_BYTES <= have <= size:
            ours = await asyncio.to_thread(_hash_prefix, fd, have, digest)
            if await self._sftp.sha256(part, have) == ours:
                return have, digest
        return 0, hashlib.sha256()

    async def _refuse_folder(self, path: bytes) -> None:
        there = await self._sftp.lstat(path)
        if there is not None and stat.S_ISDIR(there.permissions or 0):
            raise NotCopied("there is a directory of that name")

    async def _rename_to(self, part: bytes, path: bytes) -> None:
        try:
            await self._sftp.client.posix_rename(part, path)
        except asyncssh.SFTPOpUnsupported:
            # Plain SFTP does not replace: for a moment there is neither.
            if await self._sftp.lstat(path) is not None:
                await self._sftp.client.remove(path)
            await self._sftp.client.rename(part, path)

    async def _finish(self) -> None:
        """Modes and times of folders, the deepest first; then the new folder gets its name."""
        for path, found in reversed(self._folders):
            attrs = asyncssh.SFTPAttrs(permissions=found.mode, **_times(found.mtime_ns))
            try:
                await self._sftp.client.setstat(path, attrs)
            except asyncssh.SFTPError as error:
                self.summary.fail(found.path, f"its mode and time were not set: {reason_of(error)}")
        if self._final is not None:
            await self._rename_to(_part(self._final), self._final)


def _times(mtime_ns: int) -> dict[str, int]:
    seconds = max(mtime_ns // 10**9, 0)
    return {"atime": seconds, "mtime": seconds}


def _part(path: bytes) -> bytes:
    folder, name = os.path.split(path)
    return os.path.join(folder, os.fsencode(part_name(os.fsdecode(name))))


def _hash_prefix(fd: int, size: int, digest: hashlib._Hash) -> str:
    at = 0
    while at < size and (data := os.pread(fd, min(PIECE_BYTES, size - at), at)):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()
