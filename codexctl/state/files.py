"""Private files: made exclusively, mode 0600, replaced atomically, refused when others can read."""

from __future__ import annotations

import errno
import os
import secrets
import stat

from codexctl.errors import StateError


def describe_os_error(error: OSError, path: str, verb: str) -> StateError:
    """One sentence for a failed file operation; `verb` is "read", "write", "make"."""
    hints = {
        errno.ENOSPC: "free some space on that disk, then run the same command again",
        errno.EDQUOT: "free some of your quota, then run the same command again",
        errno.EROFS: "set CODEXCTL_HOME to a folder on a disk that can be written",
        errno.EACCES: f"check the owner and mode of {path}",
        errno.EPERM: f"check the owner and mode of {path}",
    }
    reason = error.strerror or str(error)
    return StateError(f"cannot {verb} {path}: {reason}", hint=hints.get(error.errno or 0, ""))


def create_private(path: str, data: bytes) -> None:
    """Write a new file, mode 0600; FileExistsError where it exists, so nothing is overwritten.

    A half-written file is removed again: a full disk leaves no truncated key behind.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise describe_os_error(error, path, "make") from error
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.unlink(path)
        raise describe_os_error(error, path, "write") from error


def replace_file(path: str, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file's content at once or not at all; a reader sees the old or the new."""
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise describe_os_error(error, path, "write") from error


def read_private(path: str, *, what: str, limit: int = 1 << 20) -> bytes:
    """Read a file that only its owner may read, at most `limit` bytes.

    StateError where group or others have any permission on it, or another user owns it: a key
    that others could have read is not used silently. FileNotFoundError passes through.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StateError(f"{what} {path} is not a regular file", hint="move it away")
        if status.st_uid != os.geteuid():
            raise StateError(
                f"{what} {path} belongs to another user",
                hint="run as its owner, or set CODEXCTL_HOME to a folder of your own",
            )
        if status.st_mode & 0o077:
            raise StateError(
                f"{what} {path} can be read by others (mode {status.st_mode & 0o777:04o})",
                hint=f"run: chmod 600 {path}",
            )
        data = file.read(limit + 1)
    if len(data) > limit:
        raise StateError(f"{what} {path} is larger than {limit} bytes", hint="move it away")
    return data
