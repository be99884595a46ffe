"""File operations of an agent, by a process in the sandbox: the kernel decides what they reach.

Requests come as JSON lines on stdin, {"method", "params"} with paths of this host; each is
answered by one line on stdout, {"result"} or {"error": [CODE, SENTENCE]}. It imports nothing but
the standard library and what stands beside it.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from codexctl.host.execserver.requests import FAILED, INVALID_REQUEST, NOT_FOUND, RpcError

MAX_FILE_BYTES = 32 << 20  # read or written in one request; open and readBlock have no limit
MAX_BLOCK_BYTES = 4 << 20
MAX_HANDLES = 128
MAX_WALK_DEPTH = 64
MAX_WALK_ENTRIES = 50_000
MAX_LISTED = 50_000  # entries of one folder

# What the host starts, with the folder of the package as the first argument.
CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from codexctl.host.execserver.files_child import main; sys.exit(main())"
)

Params = dict[str, Any]


class FileOperations:
    """The methods fs/*; `handles` are the files that fs/open has opened, by the agent's names."""

    def __init__(self) -> None:
        self.handles: dict[str, int] = {}

    def get_metadata(self, params: Params) -> Params:
        path = params["path"]
        link = stat.S_ISLNK(os.lstat(path).st_mode)
        try:
            found = os.stat(path)
        except FileNotFoundError:
            if not link:
                raise
            found = os.lstat(path)  # it leads nowhere
        return {
            "isDirectory": stat.S_ISDIR(found.st_mode),
            "isFile": stat.S_ISREG(found.st_mode),
            "isSymlink": link,
            "size": found.st_size,
            "createdAtMs": 0,
            "modifiedAtMs": found.st_mtime_ns // 1_000_000,
        }

    def canonicalize(self, params: Params) -> Params:
        return {"path": os.path.realpath(params["path"], strict=True)}

    def read_directory(self, params: Params) -> Params:
        entries: list[Params] = []
        with os.scandir(params["path"]) as found:
            for entry in found:
                if len(entries) == MAX_LISTED:
                    raise RpcError(FAILED, f"the folder has more than {MAX_LISTED} entries")
                folder, file = entry.is_dir(), entry.is_file()
                entries.append({"fileName": entry.name, "isDirectory": folder, "isFile": file})
        return {"entries": entries}

    def read_file(self, params: Params) -> Params:
        fd = _open_file(params["path"])
        with os.fdopen(fd, "rb") as file:
            if os.fstat(fd).st_size > MAX_FILE_BYTES:
                raise RpcError(
                    INVALID_REQUEST, f"the file is larger than {MAX_FILE_BYTES} bytes; open it"
                )
            data = file.read(MAX_FILE_BYTES)
        return {"dataBase64": base64.b64encode(data).decode()}

    def write_file(self, params: Params) -> Params:
        try:
            data = base64.b64decode(params.get("dataBase64", 0), validate=True)
        except (ValueError, TypeError):
            raise RpcError(INVALID_REQUEST, "dataBase64 has to be base64") from None
        with os.fdopen(_open_file(params["path"], os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.truncate()
            file.write(data)
        return {}

    def create_directory(self, params: Params) -> Params:
        if params.get("recursive", True):
            os.makedirs(params["path"], exist_ok=True)
        else:
            os.mkdir(params["path"])
        return {}

    def remove(self, params: Params) -> Params:
        path = params["path"]
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
            elif params.get("recursive", True):
                shutil.rmtree(path)
            else:
                os.rmdir(path)
        except FileNotFoundError:
            if not params.get("force", True):
                raise
        return {}

    def copy(self, params: Params) -> Params:
        source, target = params["path"], params["target"]
        if os.path.isdir(source):
            if params.get("recursive") is not True:
                raise RpcError(INVALID_REQUEST, "a folder is copied only where recursive is true")
            if target == source or target.startswith(f"{source}/"):
                raise RpcError(INVALID_REQUEST, "a folder cannot be copied into itself")
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            os.close(_open_file(source))  # a regular file, and one that can be read
            shutil.copy(source, target)
        return {}

    def walk(self, params: Params) -> Params:
        """Entries below a folder, itself left out; links to folders where that is asked for."""
        options = params.get("options")
        options = options if isinstance(options, dict) else {}
        depth = _bound(options, "maxDepth", MAX_WALK_DEPTH)
        folders = _bound(options, "maxDirectories", MAX_WALK_ENTRIES)
        most = _bound(options, "maxEntries", MAX_WALK_ENTRIES)
        follow = options.get("followDirectorySymlinks") is True
        entries: list[Params] = []
        errors: list[Params] = []
        truncated = False
        os.stat(params["path"])
        for kind, path, message in _walk(params["path"], depth, follow, set()):
            if kind == "error":
                errors.append({"path": path, "message": message})
                continue
            folders -= kind == "directory"
            if len(entries) == most or folders < 0:
                truncated = True
                break
            entries.append({"path": path, "kind": kind})
        return {"entries": entries, "errors": errors, "truncated": truncated}

    def open(self, params: Params) -> Params:
        handle = params["handleId"]
        if handle in self.handles:
            raise RpcError(INVALID_REQUEST, f"file handle {handle} already exists")
        if len(self.handles) == MAX_HANDLES:
            raise RpcError(FAILED, f"more than {MAX_HANDLES} files are open")
        self.handles[handle] = _open_file(params["path"])
        return {"handleId": handle}

    def read_block(self, params: Params) -> Params:
        fd = self.handles.get(params["handleId"])
        offset, size = params.get("offset"), params.get("len")
        if fd is None:
            raise RpcError(INVALID_REQUEST, "there is no such file handle")
        if not isinstance(offset, int) or not isinstance(size, int) or offset < 0 or size < 0:
            raise RpcError(INVALID_REQUEST, "offset and len have to be counts")
        data = os.pread(fd, min(size, MAX_BLOCK_BYTES), offset)
        eof = offset + len(data) >= os.fstat(fd).st_size
        return {"chunk": base64.b64encode(data).decode(), "eof": eof}

    def close(self, params: Params) -> Params:
        fd = self.handles.pop(params["handleId"], None)
        if fd is not None:
            os.close(fd)
        return {}


def _open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file; a pipe or a device is refused and never waited for."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RpcError(INVALID_REQUEST, f"{path} is not a file")
    return fd


def _bound(options: Params, name: str, most: int) -> int:
    value = options.get(name)
    return min(value, most) if isinstance(value, int) and value >= 0 else most


def _walk(
    folder: str, depth: int, follow: bool, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, str, str]]:
    """Kind ("directory", "file" or "error"), path, an error's sentence; in the order of names."""
    try:
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in seen:
            return  # a circle of links
        seen.add((found.st_dev, found.st_ino))
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        yield "error", folder, error.strerror or ""
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=follow):
            yield "directory", entry.path, ""
            if depth > 0:
                yield from _walk(entry.path, depth - 1, follow, seen)
        elif entry.is_file(follow_symlinks=False):
            yield "file", entry.path, ""


def answer(operations: FileOperations, request: Params) -> Params:
    """The answer to one request; nothing is raised."""
    method: Callable[[Params], Params] = getattr(operations, request["method"])
    try:
        return {"result": method(request["params"])}
    except RpcError as error:
        return {"error": [error.code, error.message]}
    except FileNotFoundError as error:
        return {"error": [NOT_FOUND, _told(error)]}
    except IsADirectoryError as error:
        return {"error": [INVALID_REQUEST, _told(error)]}
    except OSError as error:
        return {"error": [FAILED, _told(error)]}
    except RecursionError:
        return {"error": [FAILED, "the folders are nested too deeply"]}


def _told(error: OSError) -> str:
    """The system's words, as the official server has them: agents know these."""
    if error.errno is None:
        return str(error)  # several of them, of a tree
    hidden = " (hidden by this host)" if error.errno in (errno.ENXIO, errno.EACCES) else ""
    return f"{error.strerror} (os error {error.errno}){hidden}"


def main() -> int:
    """Answer until stdin ends."""
    operations = FileOperations()
    for line in sys.stdin.buffer:
        text = json.dumps(answer(operations, json.loads(line)))
        sys.stdout.buffer.write(text.encode() + b"\n")
        sys.stdout.buffer.flush()
    return 0
