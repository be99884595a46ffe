"""Channels of the kind file (PROTOCOL.md section 7): copies to and from this host.

The copying is done by a child (codexctl.transfer.child) in the sandbox that commands run in, so the
kernel decides what it can read and write: the workspace, the system, never credentials. This module
decides whether there is a copy at all, records it, and carries bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

import codexctl
from codexctl.errors import CodexctlError, Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.host.sandbox import SandboxRequest
from codexctl.session.channel import ChannelClosed, DataReceived, HostChannel
from codexctl.transfer.child import CODE
from codexctl.wire.channel import STDOUT

MAX_PATHS = 1024
MAX_PATH_BYTES = 4096
READ_BYTES = 256 * 1024
STDERR_BYTES = 16 * 1024
REPLACE_S = 5.0  # for a copy to end that is begun anew
ENDING_S = 0.5
INFO_OPTION = "--info-fd"

# The interpreter below any virtual environment; the options keep it from reading anything else.
PYTHON = os.path.realpath(sys.executable)
OPTIONS = ("-I", "-S", "-B", "-X", "utf8")
PACKAGE = os.path.dirname(os.path.realpath(codexctl.__file__))


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """An open frame of a file channel, checked. `paths` has one element for a write.

    `roots` are the names of what a write will bring: the same copy, begun again, has the same.
    """

    op: str
    paths: tuple[str, ...]
    roots: tuple[str, ...]
    many: bool
    sandbox: bool

    @classmethod
    def parse(cls, params: dict[str, Any]) -> CopyRequest:
        """UsageError says what is not as PROTOCOL.md section 7 has it."""
        op = params.get("op")
        if op not in ("read", "write"):
            raise UsageError('op has to be "read" or "write"')
        paths = params.get("paths") if op == "read" else [params.get("path")]
        roots = params.get("roots", [])
        if (
            not isinstance(paths, list)
            or not isinstance(roots, list)
            or not 0 < len(paths) <= MAX_PATHS
            or not all(map(_is_path, paths + roots))
        ):
            raise UsageError(f"a copy needs paths, at most {MAX_PATHS} of {MAX_PATH_BYTES} bytes")
        sandbox = params.get("sandbox", "on")
        if sandbox not in ("on", "off"):
            raise UsageError('sandbox has to be "on" or "off"')
        many = params.get("many") is True
        return cls(op, tuple(paths), tuple(roots), many, sandbox == "on")


def _is_path(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value) <= MAX_PATH_BYTES


async def serve_file(channel: HostChannel, context: HostContext) -> None:
    """Copy as the device asks; its end of the protocol is codexctl.client.copy."""
    request = CopyRequest.parse(channel.params)
    told = list(request.paths)
    where = context.workspace
    try:
        if "exec" not in channel.peer.scopes or "exec" not in context.policy.scopes:
            raise Refused(
                "this device may not copy files to or from this host",
                hint="pair it again with the scope exec, on the host: "
                "codexctl pair --show --scope exec",
            )
        argv = await _command(request, context)
    except CodexctlError as error:
        context.record(
            "copy", channel.peer, told, "denied", where=where, op=request.op, reason=error.message
        )
        raise
    context.record(
        "copy", channel.peer, told, "started", where=where, op=request.op, sandbox=request.sandbox
    )
    await context.audit.synced()
    login = await context.login()
    key = (channel.peer.device_id, request.op, *request.paths, *request.roots)
    if request.op == "write":
        await _replace(context.copies.get(key))
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/" if request.sandbox else context.workspace,
        env={"HOME": login.variables.get("HOME", "/"), "PATH": login.path, "LANG": "C.UTF-8"},
        limit=READ_BYTES,
        start_new_session=True,
    )
    summary: dict[str, Any] = {}
    copy = context.copies[key] = (process, asyncio.Event())
    try:
        await channel.accept({})
        summary = await _carry(channel, process)
    except ChannelClosed:
        pass  # the device has gone before it began
    finally:
        if process.returncode is None:
            _kill(process)
            await process.wait()
        copy[1].set()
        if context.copies.get(key) is copy:
            del context.copies[key]
        outcome = "incomplete" if summary.get("failed") else "done"
        if not summary or "reason" in summary:
            outcome = "failed"
        context.record("copied", channel.peer, told, outcome, where=where, op=request.op, **summary)


async def _replace(copy: tuple[asyncio.subprocess.Process, asyncio.Event] | None) -> None:
    """End the same copy by the same device, which began it anew: its first one has no reader."""
    if copy is None:
        return
    process, over = copy
    if process.returncode is None:
        _kill(process)
    try:
        async with asyncio.timeout(REPLACE_S):
            await over.wait()
    except TimeoutError:
        return  # the new one will say that another is writing


async def _command(request: CopyRequest, context: HostContext) -> list[str]:
    """The argv of the child, in the sandbox unless that is off. Refused."""
    login = await context.login()
    home = login.variables.get("HOME", "/")
    paths = [_absolute(path, context.workspace, home) for path in request.paths]
    writable = _writable(request, paths, context)
    told: dict[str, Any] = {"op": request.op, "paths": paths}
    if request.op == "write":
        told = {"op": "write", "path": paths[0], "many": request.many}
    argv = [PYTHON, *OPTIONS, "-c", CODE, os.path.dirname(PACKAGE), json.dumps(told)]
    if not request.sandbox:
        if context.policy.sandbox_required:
            raise Refused(
                "this host copies files in its sandbox only",
                hint='its owner can allow --sandbox off: sandbox.mode = "optional" in policy.toml',
            )
        return argv
    sandbox = await context.copy_sandbox((PACKAGE, sys.base_prefix, os.path.dirname(PYTHON)))
    command = sandbox.command(SandboxRequest(writable, writable), argv, program=PYTHON)
    at = command.index(INFO_OPTION)
    return command[:at] + command[at + 2 :]


def _writable(request: CopyRequest, paths: list[str], context: HostContext) -> str:
    """The root that the copy happens in. Refused for a write outside all of them."""
    writable = context.workspace
    for path in paths:
        real = os.path.realpath(path)
        folder = real if os.path.isdir(real) else os.path.dirname(real)
        try:
            writable = context.policy.check_folder(folder, context.workspace)
        except Refused:
            # What the sandbox shows may be read, wherever it is; the child sees nothing else.
            if request.op == "write":
                raise
    return writable


def _absolute(path: str, workspace: str, home: str) -> str:
    """A path as the device means it: below the workspace, or `~/` below the person's home.

    A final slash is kept, it says something.
    """
    if path == "~" or path.startswith("~/"):
        return home + path[1:]
    return os.path.join(workspace, path) if path else workspace


async def _carry(channel: HostChannel, process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Carry bytes until the child has ended; its summary, empty where it was cut off."""
    assert process.stdout is not None
    assert process.stderr is not None
    gone = False
    async with asyncio.TaskGroup() as tasks:
        stderr = tasks.create_task(process.stderr.read(STDERR_BYTES))
        feeding = tasks.create_task(_feed(channel, process))
        while data := await process.stdout.read(READ_BYTES):
            try:
                if not gone:
                    await channel.write(STDOUT, data)
            except ChannelClosed:
                gone = True  # `_feed` has seen it too and ends the child
        await process.wait()
        said = await stderr
        feeding.cancel()
    summary = _summary(said)
    if summary or gone:
        await channel.close()
        return summary
    reason = said.decode(errors="replace").strip().split("\n")[-1][:300] or "no reason given"
    await channel.close(CodexctlError(f"the copy broke off on the host: {reason}"))
    return {}


async def _feed(channel: HostChannel, process: asyncio.subprocess.Process) -> None:
    """What the device sends, to the child; when the device is gone so is the child."""
    assert process.stdin is not None
    while (event := await channel.receive()) is not None:
        if isinstance(event, DataReceived):
            size = len(event.data)
            try:
                process.stdin.write(bytes(event.data))
                await process.stdin.drain()
            except ConnectionError:
                pass  # it has ended, and says why on stderr
            channel.consumed(size)
    try:
        # It may have told all, and be about to end with its counts: those are for the record.
        async with asyncio.timeout(ENDING_S):
            await process.wait()
    except TimeoutError:
        _kill(process)


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill bwrap and, where it is still setting up, the child that would be left behind by it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended


def _summary(stderr: bytes) -> dict[str, Any]:
    """The child's last line: counts. Empty where it is something else."""
    try:
        value = json.loads(stderr.strip().split(b"\n")[-1])
    except ValueError:
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("failed"), int) else {}
