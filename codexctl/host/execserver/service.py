"""The channel kind exec-server: the official JSON-RPC, one message a line, answered by this host.

    codex (on a laptop) <-stdio-> codexctl exec-server HOST <-session-> serve_exec_server

Data stream 0 carries the agent's lines, stream 1 the host's. Commands run as those of exec
channels do: by the host's policy, in its sandbox, in its process table. When the agent ends, so do
they; when its session is lost for good they go on, detached.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
from collections.abc import Coroutine
from typing import Any

from codexctl.errors import CodexctlError, ProtocolError, Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.host.exec_handler import start_process
from codexctl.host.exec_request import ExecRequest
from codexctl.host.execserver.files import Files, refused
from codexctl.host.execserver.process import AgentProcess
from codexctl.host.execserver.requests import (
    FAILED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    UNKNOWN_METHOD,
    Folders,
    RpcError,
    Start,
    process_id,
)
from codexctl.host.spawn import Terminal
from codexctl.session.channel import ChannelClosed, DataReceived, EofReceived, HostChannel
from codexctl.wire.channel import STDOUT

MAX_LINE_BYTES = 48 << 20  # a file of the largest size in base64, and what stands around it
MAX_UNDER_WAY = 64  # requests; the agent is read no further while so many are
MAX_PROCESSES = 256  # of one agent, those included that have ended
ENDED_KEPT = 16  # processes, for an agent that reads late
SHELLS = ("bash", "zsh", "sh")  # that the official agent knows how to start

Params = dict[str, Any]


async def serve_exec_server(channel: HostChannel, context: HostContext) -> None:
    """Answer an official agent until it ends. Refused without the scope exec."""
    local = channel.params.get("folder")
    if local is not None and not (isinstance(local, str) and os.path.isabs(local)):
        raise UsageError("folder has to be an absolute path")
    if "exec" not in channel.peer.scopes or "exec" not in context.policy.scopes:
        context.record("exec-server", channel.peer, "", "denied", reason="scope")
        raise Refused(
            "this device may not run commands on this host",
            hint="pair it again with the scope exec, on the host: "
            "codexctl pair --show --scope exec",
        )
    context.record("exec-server", channel.peer, "", "opened", where=context.workspace)
    await channel.accept({})
    await _Server(channel, context, Folders(local, context.workspace)).run()


class _Server:
    def __init__(self, channel: HostChannel, context: HostContext, folders: Folders) -> None:
        self._channel = channel
        self._context = context
        self._folders = folders
        self._files = Files(context, channel.peer, folders)
        self._processes: dict[str, AgentProcess] = {}
        self._version = ""
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._sending = asyncio.Lock()
        self._running: list[asyncio.Task[None]] = []
        self._fresh: list[AgentProcess] = []  # started, and not yet followed
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                error = await self._read()
                lost = self._channel.lost
                for process in self._processes.values():
                    if lost:
                        process.forget(self._channel.unconfirmed)
                    else:
                        process.terminate()
                for task in self._running:
                    task.cancel()
        finally:
            for process in self._processes.values():
                process.leave()
            await self._files.aclose()
        if error is None:
            try:
                await self._channel.send({"exit": {"status": 0}})
            except ChannelClosed:
                return
        await self._channel.close(error)

    # --- lines ---

    async def _read(self) -> CodexctlError | None:
        """Answer lines until the agent's input ends; the error of one that broke the rules."""
        waiting = bytearray()
        while (event := await self._channel.receive()) is not None:
            if isinstance(event, EofReceived):
                return None
            if not isinstance(event, DataReceived):
                continue
            searched = len(waiting)
            waiting += event.data
            self._channel.consumed(len(event.data))
            if waiting.find(b"\n", searched) >= 0:
                *lines, rest = waiting.split(b"\n")
                for line in lines:
                    if line.strip():
                        await self._line(line)
                waiting = bytearray(rest)
            if len(waiting) > MAX_LINE_BYTES:
                return ProtocolError(f"a message is longer than {MAX_LINE_BYTES} bytes")
        return None

    async def _line(self, line: bytearray) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            await self._answer(-1, RpcError(INVALID_REQUEST, "a message has to be a JSON object"))
            return
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            await self._answer(-1, RpcError(INVALID_REQUEST, "a message has to name its method"))
            return
        if "id" not in message:
            return  # initialized; nothing else is told without a question
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        await self._room.acquire()
        method: str = message["method"]
        work = self._request(message["id"], method, params)
        if method.startswith("fs/") or method == "process/read":
            self._later(work)  # may wait; the rest of them are in the agent's order
        else:
            await work

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._running = [task for task in self._running if not task.done()]
        self._running.append(self._tasks.create_task(work))

    async def _request(self, id: object, method: str, params: Params) -> None:
        answer: Params | RpcError
        try:
            answer = await self._result(method, params)
        except RpcError as error:
            answer = error
        except CodexctlError as error:
            answer = refused(error)
        finally:
            self._room.release()
        try:
            await self._answer(id, answer)
        except ChannelClosed:
            pass  # `_read` is told as well
        while self._fresh:
            self._follow(self._fresh.pop())  # behind the answer that makes its name known

    async def _answer(self, id: object, answer: Params | RpcError) -> None:
        if isinstance(answer, RpcError):
            error = {"code": answer.code, "message": answer.message}
            await self._send({"id": id, "error": error})
        else:
            await self._send({"id": id, "result": answer})

    async def _notify(self, method: str, params: Params) -> None:
        await self._send({"method": method, "params": params})

    async def _send(self, message: Params) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        async with self._sending:  # a long line goes in parts, and nothing in between
            await self._channel.write(STDOUT, line)

    # --- methods ---

    async def _result(self, method: str, params: Params) -> Params:
        if method.startswith("fs/"):
            return await self._files.call(method, params, self._version)
        if method == "initialize":
            return await self._initialize(params)
        if method == "environment/info":
            return await self._information()
        if method == "process/start":
            return await self._start(params)
        if method == "process/write":
            return self._write(params)
        if method == "process/terminate":
            process = self._processes.get(process_id(params))
            return {"running": process is not None and process.terminate()}
        if method == "process/signal":
            if params.get("signal") != "interrupt":
                raise RpcError(INVALID_PARAMS, "the signal has to be interrupt")
            self._process(params).interrupt()
            return {}
        if method == "process/read":
            return await self._process(params).read(
                _count(params, "afterSeq", 0),
                _count(params, "maxBytes", MAX_LINE_BYTES),
                _count(params, "waitMs", 0) / 1000,
            )
        raise RpcError(UNKNOWN_METHOD, f"this host has no method {method[:60]}")

    async def _initialize(self, params: Params) -> Params:
        if params.get("resumeSessionId") is not None:
            raise RpcError(INVALID_REQUEST, "this host keeps no session of an agent that has ended")
        return {"sessionId": secrets.token_hex(16), "environmentInfo": await self._information()}

    async def _information(self) -> Params:
        login = await self._context.login()
        name = os.path.basename(login.shell)
        shell = login.shell if name in SHELLS else "/bin/sh"
        shown = self._folders.shown
        return {
            "shell": {"name": os.path.basename(shell), "path": shell},
            "cwd": shown(self._context.workspace),
            "userHomeDir": shown(login.variables.get("HOME", "/")),
            "platformOs": "linux" if os.uname().sysname == "Linux" else "macos",
            "tempDir": shown("/tmp"),  # noqa: S108 - each command has its own
        }

    async def _start(self, params: Params) -> Params:
        self._version = _version(params) or self._version
        start = Start.parse(params, self._folders, self._version)
        if start.id in self._processes:
            raise RpcError(INVALID_REQUEST, f"process {start.id} already exists")
        if len(self._processes) >= MAX_PROCESSES:
            raise RpcError(FAILED, f"more than {MAX_PROCESSES} processes of this agent run")
        context, peer = self._context, self._channel.peer
        try:
            request = await self._exec_request(start)
        except CodexctlError as error:
            told: object = start.argv if context.policy.full_argv else start.argv[0]
            context.record(
                "exec-server", peer, told, "denied", where=start.cwd, reason=error.message
            )
            raise
        process, _ = await start_process(request, "exec-server", peer, context)
        reads = start.stdin or start.tty
        if not reads:
            process.end_input()
        followed = AgentProcess(start.id, process, stdin=reads, notify=self._notify)
        self._processes[start.id] = followed
        self._fresh.append(followed)
        return {"processId": start.id, "sandboxType": "none"}

    async def _exec_request(self, start: Start) -> ExecRequest:
        context = self._context
        cwd = os.path.realpath(start.cwd)  # noqa: ASYNC240 - as _prepare does: no wait here
        if not os.path.isdir(cwd):  # noqa: ASYNC240
            raise Refused(
                f"{start.cwd} is no folder on {context.name}",
                hint=f"let it stand for {context.workspace} there: "
                f"codexctl exec-server HOST --folder {start.cwd}",
            )
        policy = context.policy
        root = policy.check_folder(cwd, context.workspace)
        login = await context.login()
        env = start.variables.env
        return ExecRequest(
            argv=start.argv,
            shell=None,
            cwd=cwd,
            # Nobody has asked for these by name, so what the policy refuses is left out.
            env={name: env[name] for name in env if policy.allows_variable(name, from_device=True)},
            network=start.wish.network and policy.network != "never",
            sandbox=True,
            detach=False,
            tty=Terminal(term=env.get("TERM") or Terminal().term) if start.tty else None,
            without=start.variables.without(login.variables),
            hidden=start.wish.hidden,
            narrowed=start.wish.narrowed(root),
        )

    def _follow(self, process: AgentProcess) -> None:
        async def run() -> None:
            await process.run()
            ended = [id for id, other in self._processes.items() if other.closed]
            for id in ended[:-ENDED_KEPT]:
                del self._processes[id]

        self._later(run())

    def _process(self, params: Params) -> AgentProcess:
        id = process_id(params)
        if id not in self._processes:
            raise RpcError(INVALID_REQUEST, f"unknown process id {id}")
        return self._processes[id]

    def _write(self, params: Params) -> Params:
        process = self._processes.get(process_id(params))
        if process is None:
            return {"status": "unknownProcess"}
        try:
            data = base64.b64decode(params.get("chunk") or "", validate=True)
        except (ValueError, TypeError):
            raise RpcError(INVALID_PARAMS, "chunk has to be base64") from None
        return {"status": process.write(data, str(params.get("writeId") or ""))}


def _version(params: Params) -> str:
    """The agent's version, as it tells every command in its environment."""
    env = params.get("env")
    version = env.get("CODEX_VERSION") if isinstance(env, dict) else None
    return version[:40] if isinstance(version, str) else ""


def _count(params: Params, name: str, default: int) -> int:
    value = params.get(name)
    return value if isinstance(value, int) and value >= 0 else default
