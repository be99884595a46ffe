"""Copies to an official executor, by its `fs/*` calls.

What those calls lack is done by the shell there: modes, times (whole seconds), links, and the
rename by which a file appears only when it is complete. Where there is no such shell (Windows),
files are written in place and links left out. What failed alone stands in the summary.
"""

from __future__ import annotations

import posixpath
import shlex
import time
from base64 import b64encode
from collections.abc import Callable, Sequence

from codexctl.client.executor.blocks import Blocks, metadata
from codexctl.client.executor.connection import ExecutorConnection
from codexctl.client.executor.shell import run_there
from codexctl.errors import CodexctlError, ConnectionFailed
from codexctl.transfer.source import Found, Unreadable, expand_sources, open_file, walk
from codexctl.transfer.summary import Summary
from codexctl.wire.files import CONTENTS, DIRECTORY, FILE, MAX_NAME_BYTES, PART_SUFFIX

MAX_WHOLE_BYTES = 32 << 20  # of a file where blocks cannot be written: a message has 64 MiB
SCRIPT_BYTES = 48 << 10  # of one script; an argument may have 128 KiB
# Each is called with a number first, which it prints where it fails: p MODE TIME PART NAME gives a
# file its name, d MODE TIME NAME is of a folder, l TARGET NAME makes a link.
FINISH = """\
p() { if [ -d "$5" ]; then echo "$1"; rm -f "$4"; return; fi
chmod "$2" "$4"; TZ=UTC0 touch -t "$3" "$4"; mv -f "$4" "$5" || echo "$1"; }
d() { chmod "$2" "$4" && TZ=UTC0 touch -t "$3" "$4" || echo "$1"; }
l() { ln -sfn "$2" "$3" || echo "$1"; }
exec 2>/dev/null
"""

Step = Callable[[int], None]


def upload(
    connection: ExecutorConnection,
    paths: Sequence[str],
    target: str,
    *,
    step: Step = lambda moved: None,
) -> Summary:
    """Copy what is here to `target` there. `step` is called with the bytes that moved so far."""
    roots = expand_sources(paths)
    work = _Upload(connection, target, len(roots) > 1, step)
    for found in walk(roots):
        work.add(found)
    work.finish()
    return work.summary


class _Upload:
    def __init__(self, connection: ExecutorConnection, target: str, many: bool, step: Step) -> None:
        self.summary = Summary()
        self._connection = connection
        self._step = step
        self._posix = connection.environment.os != "windows"
        self._base, self._rename = self._place(target, many)
        self._script: list[str] = []
        self._names: dict[int, str] = {}
        self._folders: list[str] = []

    def _place(self, target: str, many: bool) -> tuple[str, str | None]:
        """The folder to copy into, and the copy's new name there, as cp decides."""
        path = self._connection.absolute(target)
        found = metadata(self._connection, path)
        if found is not None and found.get("isDirectory"):
            return path, None
        if many or target.endswith("/"):
            if found is not None:
                raise CodexctlError(
                    f"{target} is no directory there", hint="name a directory to copy into"
                )
            self._connection.call(
                "fs/createDirectory", {"path": self._connection.path(path), "recursive": False}
            )
            return path, None
        above = posixpath.dirname(path)
        if metadata(self._connection, above) is None:
            raise CodexctlError(f"there is no directory {above} there", hint="make it first")
        return above, posixpath.basename(path)

    def add(self, found: Found | Unreadable) -> None:
        """Copy one thing; what goes wrong with it alone is noted."""
        if isinstance(found, Unreadable):
            note = self.summary.fail if found.failed else self.summary.skip
            note(found.path, found.message)
            return
        root, *rest = found.parts
        parts = [self._rename, *rest] if self._rename else found.parts
        if self._rename is None and root == CONTENTS:
            parts = rest
        path = posixpath.join(self._base, *(part or "" for part in parts))
        try:
            if found.kind == DIRECTORY:
                self._folder(found, path)
            elif found.kind == FILE:
                self._file(found, path)
            elif self._posix:
                self._line("l", path, found.target, path)
                self.summary.symlinks += 1
            else:
                self.summary.skip(found.path, "a link, which Windows has none of")
        except ConnectionFailed:
            raise
        except CodexctlError as error:
            self.summary.fail(found.path, str(error))
        except OSError as error:
            self.summary.fail(found.path, (error.strerror or str(error)).lower())

    def _folder(self, found: Found, path: str) -> None:
        self._connection.call(
            "fs/createDirectory", {"path": self._connection.path(path), "recursive": True}
        )
        self.summary.directories += 1
        # Last of all: what is written into it later would change its time.
        self._folders.append(
            f"{len(self._names)} {found.mode:o} {_stamp(found.mtime_ns)} {shlex.quote(path)}"
        )
        self._names[len(self._names)] = path

    def _file(self, found: Found, path: str) -> None:
        part = path + PART_SUFFIX if self._posix else path
        if len(posixpath.basename(part).encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            raise CodexctlError("its name is too long for a partial copy")
        fd, _ = open_file(found.path, follow=len(found.parts) == 1)
        with open(fd, "rb") as file:
            if self._connection.environment.writes_blocks:
                with Blocks(self._connection, part, "replace") as blocks:
                    size = blocks.write(file.read, self._moved)
            else:
                size = self._whole(part, file.read(MAX_WHOLE_BYTES + 1))
        self.summary.files += 1
        self.summary.bytes += size
        if self._posix:
            self._line("p", path, f"{found.mode:o}", _stamp(found.mtime_ns), part, path)

    def _whole(self, part: str, content: bytes) -> int:
        """Write a file in one call, as older versions have it; its size."""
        if len(content) > MAX_WHOLE_BYTES:
            raise CodexctlError(
                f"codex {self._connection.environment.version} there takes no file of over "
                f"{MAX_WHOLE_BYTES >> 20} MiB: update it"
            )
        path, data = self._connection.path(part), b64encode(content).decode()
        self._connection.call("fs/writeFile", {"path": path, "dataBase64": data})
        self._moved(len(content))
        return len(content)

    def _moved(self, size: int) -> None:
        self._step(self.summary.bytes + size)

    def _line(self, command: str, path: str, *arguments: str) -> None:
        number = len(self._names)
        self._names[number] = path
        self._script.append(shlex.join([command, str(number), *arguments]))
        if sum(map(len, self._script)) > SCRIPT_BYTES:
            self._run()

    def _run(self) -> None:
        lines, self._script = self._script, []
        if not lines or not self._posix:
            return
        _, output = run_there(self._connection, ["/bin/sh", "-c", FINISH + "\n".join(lines)])
        for number in output.split():
            if number.isdigit() and int(number) in self._names:
                self.summary.fail(self._names[int(number)], "it could not be given name and mode")

    def finish(self) -> None:
        """Give files their names, then folders their modes and times, the deepest first."""
        self._run()
        for folder in reversed(self._folders):
            self._script.append(f"d {folder}")
            if sum(map(len, self._script)) > SCRIPT_BYTES:
                self._run()
        self._run()


def _stamp(mtime_ns: int) -> str:
    """A time as `touch -t` takes it, in UTC."""
    return time.strftime("%Y%m%d%H%M.%S", time.gmtime(max(0, mtime_ns // 1_000_000_000)))
