"""The host's end of an agent's file operations: a child in the sandbox for each set of limits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from codexctl.errors import CodexctlError, NotFoundOnHost, Refused
from codexctl.host.context import HostContext
from codexctl.host.execserver.files_child import CODE, MAX_FILE_BYTES
from codexctl.host.execserver.requests import (
    FAILED,
    INVALID_PARAMS,
    NOT_FOUND,
    UNKNOWN_METHOD,
    Folders,
    RpcError,
    Wish,
    parse_wish,
)
from codexctl.host.files import INFO_OPTION, OPTIONS, PACKAGE, PYTHON
from codexctl.host.sandbox import SandboxRequest
from codexctl.session.channel import Peer

MAX_CHILDREN = 4  # sets of limits that an agent uses in turn; the one used longest ago ends
OPERATION_S = 60.0
END_S = 10.0
LINE_BYTES = 2 * MAX_FILE_BYTES

# The official names, those of the child, and whether they change something.
METHODS = {
    "fs/getMetadata": ("get_metadata", False),
    "fs/canonicalize": ("canonicalize", False),
    "fs/readDirectory": ("read_directory", False),
    "fs/walk": ("walk", False),
    "fs/readFile": ("read_file", False),
    "fs/open": ("open", False),
    "fs/readBlock": ("read_block", False),
    "fs/close": ("close", False),
    "fs/writeFile": ("write_file", True),
    "fs/createDirectory": ("create_directory", True),
    "fs/remove": ("remove", True),
    "fs/copy": ("copy", True),
}
_PASSED = ("recursive", "force", "options", "dataBase64", "handleId", "offset", "len")


class _Child:
    """One process that does file operations, one after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lock = asyncio.Lock()

    async def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Its answer. RpcError. Cancelled or too slow, it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"method": method, "params": params}).encode()
        async with self._lock:
            try:
                async with asyncio.timeout(OPERATION_S):
                    self._process.stdin.write(line + b"\n")
                    await self._process.stdin.drain()
                    said = await self._process.stdout.readline()
            except TimeoutError:
                self.kill()
                raise RpcError(FAILED, "the file operation took too long") from None
            except (ConnectionError, ValueError):
                said = b""
            except asyncio.CancelledError:
                self.kill()
                raise
        if not said:
            self.kill()
            raise RpcError(FAILED, "the host's file operations have ended; try again")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            raise RpcError(*answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    def kill(self) -> None:
        if self.lives:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended

    async def aclose(self) -> None:
        """End it, and return when its pipes are closed: those of its sandbox close after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.kill()
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.stdout.read()
                await self._process.stdin.wait_closed()
        except (TimeoutError, ConnectionError):
            pass  # the other end is gone; a sandbox that hangs in the kernel is not waited for
        await self._process.wait()


class Files:
    """Answers fs/* for one agent. `aclose` ends the children."""

    def __init__(self, context: HostContext, peer: Peer, folders: Folders) -> None:
        self._context = context
        self._peer = peer
        self._folders = folders
        self._children: dict[SandboxRequest, _Child] = {}
        self._handles: dict[str, _Child] = {}
        self._starting = asyncio.Lock()

    async def call(self, method: str, params: dict[str, Any], version: str) -> dict[str, Any]:
        """The result of an fs/* request. RpcError; Refused by the host's policy."""
        if method not in METHODS:
            raise RpcError(UNKNOWN_METHOD, f"this host has no method {method[:60]}")
        name, changes = METHODS[method]
        told = {key: params[key] for key in _PASSED if params.get(key) is not None}
        if name in ("read_block", "close"):
            return await self._of_handle(name, told)
        wish = parse_wish(params.get("sandbox"), self._folders, version)
        source = params.get("sourcePath") if name == "copy" else params.get("path")
        told["path"] = self._folders.path(source)
        target = told["path"]
        if name == "copy":
            target = told["target"] = self._folders.path(params.get("destinationPath"))
        if name == "open" and not isinstance(told.get("handleId"), str):
            raise RpcError(INVALID_PARAMS, "handleId has to be a text")
        root = self._root(target, must=changes)
        child = await self._child(root, wish)
        if changes:
            self._context.record("file", self._peer, target, "allowed", operation=method)
        result = await child.call(name, told)
        if name == "open":
            self._handles[told["handleId"]] = child
        return self._shown(result)

    async def _of_handle(self, name: str, told: dict[str, Any]) -> dict[str, Any]:
        handle = told.get("handleId")
        child = self._handles.get(handle) if isinstance(handle, str) else None
        if child is None or not child.lives:
            if name == "close":
                return {}
            raise RpcError(INVALID_PARAMS, "there is no such file handle")
        if name == "close":
            self._handles.pop(str(handle))
        return await child.call(name, told)

    def _root(self, path: str, *, must: bool) -> str:
        """The folder in which a path can be written; of one that is only read, any."""
        context = self._context
        folder = os.path.realpath(os.path.dirname(path))
        if os.path.isdir(path) and not os.path.islink(path):
            folder = os.path.realpath(path)
        try:
            return context.policy.check_folder(folder, context.workspace)
        except Refused as error:
            if must:
                self._context.record("file", self._peer, path, "denied", reason=error.message)
                raise
            return context.workspace  # what the sandbox shows may be read, wherever it is

    async def _child(self, root: str, wish: Wish) -> _Child:
        request = SandboxRequest(root, root, False, wish.hidden, wish.narrowed(root))
        async with self._starting:
            child = self._children.pop(request, None)
            if child is not None and not child.lives:
                await child.aclose()
                child = None
            if child is None:
                if len(self._children) >= MAX_CHILDREN:
                    await self._children.pop(next(iter(self._children))).aclose()
                child = await self._start(request)
            self._children[request] = child  # the last one is the one used last
        return child

    async def _start(self, request: SandboxRequest) -> _Child:
        login = await self._context.login()
        sandbox = await self._context.copy_sandbox(
            (PACKAGE, sys.base_prefix, os.path.dirname(PYTHON))
        )
        argv = [PYTHON, *OPTIONS, "-c", CODE, os.path.dirname(PACKAGE)]
        command = sandbox.command(request, argv, program=PYTHON)
        at = command.index(INFO_OPTION)
        process = await asyncio.create_subprocess_exec(
            *command[:at],
            *command[at + 2 :],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            env={"HOME": login.variables.get("HOME", "/"), "LANG": "C.UTF-8"},
            limit=LINE_BYTES,
            start_new_session=True,
        )
        return _Child(process)

    def _shown(self, result: dict[str, Any]) -> dict[str, Any]:
        """The paths of a result as the agent knows them."""
        shown = self._folders.shown
        if "path" in result:
            result["path"] = shown(result["path"])
        for key in ("entries", "errors"):
            for entry in result.get(key, ()):
                if "path" in entry:
                    entry["path"] = shown(entry["path"])
        return result

    async def aclose(self) -> None:
        for child in self._children.values():
            await child.aclose()


def refused(error: CodexctlError) -> RpcError:
    """What the host refuses, in the form of an answer, with the way out."""
    hint = f" ({error.hint})" if error.hint else ""
    code = NOT_FOUND if isinstance(error, NotFoundOnHost) else FAILED
    return RpcError(code, f"{error.message}{hint}")
