"""Where a copy is written: never outside one folder, whatever the sender names.

Every component is opened relative to its parent's descriptor and without following links, so that
neither a path nor a link that appears meanwhile leads out. A file is written as NAME.codexctl-part
and renamed when it is complete; what stood there is replaced at that moment and not before. So is a
folder that gets a new name, which is why running the same copy again finds the broken one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat

from codexctl.errors import CodexctlError
from codexctl.wire.files import CONTENTS, DIRECTORY, MAX_NAME_BYTES, PART_SUFFIX, Entry

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
PART_MODE = 0o600
FOLDER_MODE = 0o700  # until the copy is complete


class NotCopied(Exception):
    """This entry cannot be written; the copy goes on with the others."""


class Target:
    """The folder that everything is written below; `rename` is the root's name there, if given."""

    def __init__(self, base: str, rename: str | None) -> None:
        self._base = os.open(base, _FOLDER)
        self._rename = rename
        self._new_folder: str | None = None  # the final name of a folder that is not there yet
        # The folders from the base to the one that was used last, with their descriptors.
        self._stack: list[tuple[str, int]] = []
        self._folders: list[tuple[tuple[str, ...], int, int]] = []

    @classmethod
    def open(cls, path: str, *, many: bool) -> Target:
        """Decide as cp does what `path` is: a folder to copy into, or the copy's new name.

        `many` says that there is more than one source. A last folder that is missing is made when
        it is meant as a folder. CodexctlError where there is no place for the copy.
        """
        wanted = os.path.expanduser(path) or "."
        is_folder = many or wanted.endswith("/") or os.path.basename(wanted) in (".", "..")
        try:
            if os.path.isdir(wanted):
                return cls(wanted, None)
            if is_folder:
                os.mkdir(wanted)
                return cls(wanted, None)
            return cls(os.path.dirname(wanted) or ".", os.path.basename(wanted))
        except FileExistsError:
            message, hint = f"{path} is no directory", "name a directory to copy into"
        except FileNotFoundError:
            message = f"there is no directory {os.path.dirname(wanted.rstrip('/')) or wanted}"
            hint = "make it first"
        except OSError as error:
            message = f"cannot write to {path}: {(error.strerror or str(error)).lower()}"
            hint = "copy to a directory that may be written"
        raise CodexctlError(message, hint=hint)

    def place(self, entry: Entry) -> tuple[str, ...]:
        """The path of an entry below the base; empty for the base itself."""
        root, *rest = entry.parts
        if self._rename is None:
            return tuple(rest) if root == CONTENTS else entry.parts
        if not rest and entry.kind == DIRECTORY and self._new_folder is None:
            self._new_folder, self._rename = self._rename, part_name(self._rename)
        return (self._rename, *rest)

    def _parent(self, path: tuple[str, ...]) -> int:
        """A descriptor of the folder that `path` is in. NotCopied where that is no real folder."""
        above = path[:-1]
        kept = 0
        for (name, _), wanted in zip(self._stack, above, strict=False):
            if name != wanted:
                break
            kept += 1
        self._close_beyond(kept)
        for name in above[kept:]:
            try:
                fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._top())
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise NotCopied(f"{name} is no directory there, or a link") from None
                raise NotCopied(f"cannot enter {name}: {reason_of(error)}") from None
            self._stack.append((name, fd))
        return self._top()

    def _top(self) -> int:
        return self._stack[-1][1] if self._stack else self._base

    def _close_beyond(self, kept: int) -> None:
        while len(self._stack) > kept:
            os.close(self._stack.pop()[1])

    def make_folder(self, path: tuple[str, ...], entry: Entry) -> None:
        """Make it, or take the one that is there; its mode and time are set by `close`."""
        if not path:
            return
        parent = self._parent(path)
        try:
            os.mkdir(path[-1], FOLDER_MODE, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(self._status(parent, path[-1]).st_mode):
                raise NotCopied("there is something else than a directory, or a link") from None
        except OSError as error:
            raise NotCopied(reason_of(error)) from error
        self._folders.append((path, entry.mode, entry.mtime_ns))

    def make_link(self, path: tuple[str, ...], entry: Entry) -> None:
        parent = self._parent(path)
        part = part_name(path[-1])
        try:
            self._refuse_folder(parent, path[-1])
            try:
                os.unlink(part, dir_fd=parent)
            except FileNotFoundError:
                pass
            os.symlink(entry.target, part, dir_fd=parent)
            os.utime(part, ns=(entry.mtime_ns,) * 2, dir_fd=parent, follow_symlinks=False)
            os.rename(part, path[-1], src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            raise NotCopied(reason_of(error)) from error

    def existing(self, path: tuple[str, ...], entry: Entry) -> tuple[int, bool, int] | None:
        """What of a file is there already: a descriptor, whether it is the file itself, its size.

        That is the partial copy of a broken attempt, or a file of the same size and time. The
        caller checks the content and closes the descriptor.
        """
        parent = self._parent(path)
        self._refuse_folder(parent, path[-1])
        for name, complete in ((part_name(path[-1]), False), (path[-1], True)):
            try:
                fd = os.open(
                    name,
                    os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                    dir_fd=parent,
                )
            except OSError:
                continue
            status = os.fstat(fd)
            same = status.st_size == entry.size and status.st_mtime_ns == entry.mtime_ns
            if (
                stat.S_ISREG(status.st_mode)
                and 0 < status.st_size <= entry.size
                and (same or not complete)
            ):
                return fd, complete, status.st_size
            os.close(fd)
        return None

    def open_part(self, path: tuple[str, ...]) -> int:
        """The partial file, to read and write; made if it is missing. NotCopied where it cannot."""
        parent = self._parent(path)
        name = part_name(path[-1])
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._refuse_folder(parent, path[-1])
            fd = os.open(name, flags, PART_MODE, dir_fd=parent)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                    raise NotCopied(f"{name} is there and is no partial copy: remove it")
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(fd)
                raise
        except BlockingIOError:
            raise NotCopied("another copy is writing it at this moment") from None
        except OSError as error:
            raise NotCopied(reason_of(error)) from error
        return fd

    def open_complete(self, path: tuple[str, ...]) -> int:
        try:
            return os.open(
                path[-1],
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                dir_fd=self._parent(path),
            )
        except OSError as error:
            raise NotCopied(reason_of(error)) from error

    def commit(self, path: tuple[str, ...], fd: int, entry: Entry, *, rename: bool) -> None:
        """Give the file its mode and time and, if it is a partial one, its name."""
        parent = self._parent(path)
        try:
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(entry.mtime_ns,) * 2)
            if rename:
                os.rename(part_name(path[-1]), path[-1], src_dir_fd=parent, dst_dir_fd=parent)
        except OSError as error:
            raise NotCopied(reason_of(error)) from error

    def close(self) -> list[tuple[tuple[str, ...], str]]:
        """Set modes and times of folders, the deepest first; which ones could not be set."""
        failed = []
        for path, mode, mtime_ns in reversed(self._folders):
            try:
                fd = os.open(path[-1], _FOLDER | os.O_NOFOLLOW, dir_fd=self._parent(path))
                try:
                    os.fchmod(fd, mode)
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(fd)
            except (OSError, NotCopied) as error:
                failed.append((path, f"its mode and time were not set: {error}"))
        self._folders.clear()
        self._close_beyond(0)
        if self._new_folder is not None and self._rename is not None:
            name, self._new_folder = self._new_folder, None
            try:
                os.rename(self._rename, name, src_dir_fd=self._base, dst_dir_fd=self._base)
            except OSError as error:
                failed.append(((name,), f"it stays {self._rename}: {reason_of(error)}"))
        self.abandon()
        return failed

    def abandon(self) -> None:
        """Close all descriptors; partial files stay, to be resumed."""
        self._close_beyond(0)
        if self._base >= 0:
            os.close(self._base)
            self._base = -1

    def _refuse_folder(self, parent: int, name: str) -> None:
        try:
            status = self._status(parent, name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise NotCopied(reason_of(error)) from error
        if stat.S_ISDIR(status.st_mode):
            raise NotCopied("there is a directory of that name")

    def _status(self, parent: int, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)


def part_name(name: str) -> str:
    """The name of the partial copy; a hash where the name is too long to be prolonged."""
    if len(os.fsencode(name)) + len(PART_SUFFIX) <= MAX_NAME_BYTES:
        return name + PART_SUFFIX
    return "." + hashlib.sha256(os.fsencode(name)).hexdigest()[:32] + PART_SUFFIX


def reason_of(error: OSError) -> str:
    """What failed, for one entry; a full disk is raised, since it fails for all."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise CodexctlError(
            "the disk of the target is full",
            hint="free some space there, then run the same command again: it resumes",
        ) from error
    return (error.strerror or str(error)).lower()
