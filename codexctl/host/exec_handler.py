"""Channels of the kinds exec, pty and attach, and the control methods about processes.

What a device asks is checked first: its scope, the sandbox, the policy, the program; then it is
recorded, and only then started. A denial is recorded too. Errors that are raised before the channel
is accepted are the device's to read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from codexctl.errors import CodexctlError, Refused, UsageError
from codexctl.host.context import HostContext
from codexctl.host.environment import FALLBACK_SHELL, LoginEnvironment, find_program
from codexctl.host.exec_request import ExecRequest, parse_size, parse_terminal
from codexctl.host.process import TERMINAL_BYTES, HostProcess, signal_number
from codexctl.host.sandbox import SandboxRequest
from codexctl.host.sandbox_probe import Sandbox
from codexctl.host.spawn import Launch
from codexctl.session.channel import (
    ChannelClosed,
    ChannelEvent,
    DataReceived,
    EofReceived,
    HostChannel,
    MessageReceived,
    Peer,
)
from codexctl.wire.channel import DATA_BYTES, STDERR, STDOUT

__all__ = ["HANDLERS", "HostContext", "control"]

# Chunks sent before other channels get their turn.
CHUNKS_A_TURN = 32


async def serve_exec(channel: HostChannel, context: HostContext) -> None:
    """Start the command that an exec or pty channel asks for and carry its streams."""
    request = ExecRequest.parse(channel.params, channel.kind)
    process, notice = await start_process(request, channel.kind, channel.peer, context)
    opened: dict[str, Any] = {"process": process.id}
    if notice:
        opened["notice"] = notice
    attachment = _Attachment(channel, process)
    try:
        await channel.accept(opened)
    except ChannelClosed:
        attachment.leave(asked=True)
        return
    if channel.params.get("detach") is True:
        attachment.leave()
        await channel.close()
        return
    await attachment.run()


async def serve_attach(channel: HostChannel, context: HostContext) -> None:
    """Give a process's missed output and then its streams; whoever was attached is let go."""
    _need_scope(channel.peer, context, "attach")
    process = context.processes.get(channel.params.get("process"))
    if process.launch.tty is not None and channel.params.get("tty") is not None:
        size = parse_terminal(channel.params["tty"])
        process.resize(size.cols, size.rows)
    context.record("attach", channel.peer, process.id, "attached", where=process.launch.cwd)
    attachment = _Attachment(channel, process)
    dropped, missed = process.ring.since(process.sent)
    opened = {"process": process.id, "dropped": dropped, "tty": process.launch.tty is not None}
    try:
        await channel.accept(opened)
    except ChannelClosed:
        attachment.leave()
        return
    process.sent += dropped
    await attachment.run(missed)


async def start_process(
    request: ExecRequest, kind: str, peer: Peer, context: HostContext
) -> tuple[HostProcess, str]:
    """Start what a device asks for, recorded as `kind`: the process, and what to tell about it.

    Refused by scope, policy or sandbox; NotFoundOnHost where there is no such program.
    """
    told: object = request.argv or request.shell or "login shell"
    if not context.policy.full_argv:
        told = request.argv[0] if request.argv else "a shell command line"
    where = request.cwd or context.workspace
    try:
        _need_scope(peer, context, "")
        login = await context.login()
        sandbox = await context.sandbox() if request.sandbox else None
        launch, notice = _prepare(request, peer, context, login, sandbox)
    except CodexctlError as error:
        context.record(kind, peer, told, "denied", where=where, reason=error.message)
        raise
    id = context.processes.new_id()
    facts = {
        "where": launch.cwd,
        "process": id,
        "sandbox": launch.sandboxed,
        "network": launch.network or not launch.sandboxed,
    }
    context.record(kind, peer, told, "started", **facts)
    await context.audit.synced()
    try:
        process = context.processes.start(id, launch)
    except CodexctlError as error:
        context.record(kind, peer, told, "failed", reason=error.message, **facts)
        raise
    process.on_end = lambda: context.note(
        "exit", peer, process.id, _outcome(process), where=launch.cwd
    )
    return process, notice


def _outcome(process: HostProcess) -> str:
    assert process.exit is not None
    return process.exit.signal or f"status {process.exit.status}"


def _need_scope(peer: Peer, context: HostContext, kind: str) -> None:
    if "exec" in peer.scopes and "exec" in context.policy.scopes:
        return
    if kind:
        context.record(kind, peer, "", "denied", reason="scope")
    raise Refused(
        "this device may not run commands on this host",
        hint="pair it again with the scope exec, on the host: codexctl pair --show --scope exec",
    )


def _prepare(
    request: ExecRequest,
    peer: Peer,
    context: HostContext,
    login: LoginEnvironment,
    sandbox: Sandbox | None,
) -> tuple[Launch, str]:
    """How a request is started, and what to tell about it. Refused, NotFoundOnHost."""
    policy = context.policy
    cwd = os.path.realpath(os.path.join(context.workspace, request.cwd or ""))
    if request.cwd and not os.path.isdir(cwd):
        raise Refused(f"{request.cwd} is not a folder on the host")
    writable = policy.check_folder(cwd, context.workspace)
    environment = _environment(request, login, context)
    argv = _argv(request, login)
    program = find_program(argv[0], environment.get("PATH", login.path), cwd)
    policy.check_program((argv[0], program, os.path.realpath(program)))
    network = policy.network == "always" or request.network
    if request.network and policy.network == "never":
        source = policy.choice("network.mode")[1]
        raise Refused(
            f"the policy of this host never gives commands the network ({source})",
            hint="run it without --network",
        )
    command = request.argv or ((request.shell,) if request.shell is not None else (argv[0],))
    facts: dict[str, Any] = {
        "environment": environment,
        "cwd": cwd,
        "command": command,
        "device_id": peer.device_id,
        "device": peer.name,
        "tty": request.tty,
        "stdin": not request.detach,
        "network": network,
    }
    if sandbox is None:
        return _without_sandbox(argv, program, facts, context)
    denied = tuple(
        os.path.realpath(path)
        for name, _ in policy.denied_programs
        for path in _files_of(name, login.path)
    )
    started = sandbox.command(
        SandboxRequest(writable, cwd, network, (*denied, *request.hidden), request.narrowed),
        argv,
        program=program,
        tty=request.tty is not None,
    )
    return Launch(executable=started[0], argv=tuple(started), **facts), ""


def _without_sandbox(
    argv: list[str], program: str, facts: dict[str, Any], context: HostContext
) -> tuple[Launch, str]:
    mode, source = context.policy.choice("sandbox.mode")
    if mode == "required":
        raise Refused(
            f"this host runs commands in its sandbox only (sandbox.mode, {source})",
            hint='its owner can allow --sandbox off: sandbox.mode = "optional" in policy.toml',
        )
    # posix_spawn cannot change the folder; a shell does, and becomes the command.
    change = (FALLBACK_SHELL, "-c", 'cd "$0" && exec "$@"', facts["cwd"])
    launch = Launch(executable=FALLBACK_SHELL, argv=(*change, *argv), sandboxed=False, **facts)
    return launch, "the sandbox is off: this command can do whatever the host's owner can"


def _argv(request: ExecRequest, login: LoginEnvironment) -> list[str]:
    if request.argv:
        return list(request.argv)
    if request.shell is not None:
        return login.shell_command(request.shell)
    return login.login_shell()


def _environment(
    request: ExecRequest, login: LoginEnvironment, context: HostContext
) -> dict[str, str]:
    policy = context.policy
    environment = {
        name: value
        for name, value in login.variables.items()
        if policy.allows_variable(name) and name not in request.without
    }
    for name, value in request.env.items():
        if not policy.allows_variable(name, from_device=True):
            raise Refused(
                f"the policy of this host does not accept the variable {name}",
                hint="see environment.accept on the host: codexctl host policy show",
            )
        environment[name] = value
    if request.tty is not None:
        environment["TERM"] = request.tty.term
    return environment


def _files_of(name: str, path: str) -> list[str]:
    if "/" in name:
        return [name] if os.path.isfile(name) else []
    files = (os.path.join(folder, name) for folder in path.split(":"))
    return [file for file in files if os.path.isfile(file)]


class _Attachment:
    """Carries one process's streams over one channel until either ends or they part."""

    def __init__(self, channel: HostChannel, process: HostProcess) -> None:
        self._channel = channel
        self._process = process
        self._sender: asyncio.Task[None] | None = None
        self._ended: list[int] = []  # streams whose end is still to be told
        # How it went: "done", "detached", "taken", "closed" by the device, "lost" or not over.
        self._outcome = ""
        self._error: CodexctlError | None = None
        process.attach(self, channel.peer.name, self._taken)
        if process.launch.tty is not None:
            process.at_once = self._at_once

    def _taken(self, name: str) -> None:
        self._error = Refused(f"{name} has attached to this process", hint="see: codexctl ps")
        self._end("taken")

    def _end(self, outcome: str) -> None:
        if not self._outcome and outcome in ("lost", "taken"):
            # Whoever attaches next gets twice what may have been under way rather than never.
            self._process.sent = max(0, self._process.sent - self._channel.unconfirmed)
        self._outcome = self._outcome or outcome
        if self._sender is not None:
            self._sender.cancel()

    async def run(self, missed: list[tuple[int, bytes]] | None = None) -> None:
        """Return when the process has ended and all is sent, or the channel is gone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._sender = tasks.create_task(self._outward(missed or []))
                if self._outcome:  # another has attached before this one began
                    self._end(self._outcome)
                else:
                    self._channel.listen(self._received)
        finally:
            # Also when this handler is cancelled, as when the host stops.
            self.leave()
        if self._outcome in ("done", "detached", "taken") or self._error is not None:
            await self._channel.close(self._error)

    def leave(self, *, asked: bool = False) -> None:
        """Read no more. A device that closed its channel ends the command, a lost one does not.

        `asked` is for a device that closed before it had an answer.
        """
        if self._process.attachment is self:
            self._process.detach(self)
            if self._outcome == "closed" or (asked and not self._channel.lost):
                self._process.hang_up()

    async def _outward(self, missed: list[tuple[int, bytes]]) -> None:
        channel, process = self._channel, self._process
        try:
            for stream, data in missed:
                await channel.write(stream, data)
                process.sent += len(data)
            for stream in (STDOUT,) if process.launch.tty else (STDOUT, STDERR):
                if stream not in process.outputs:
                    await channel.write_eof(stream)
            while process.outputs:
                progress = False
                for stream in tuple(process.outputs):
                    progress = await self._send_some(stream) or progress
                if progress:
                    await asyncio.sleep(0)
                    continue
                await process.readable()
                while self._ended:
                    await channel.write_eof(self._ended.pop())
            await process.ended.wait()
            assert process.exit is not None
            await channel.send({"exit": process.exit.as_json()})
        except ChannelClosed:
            return  # `_received` is told why
        process.ring.clear()
        self._end("done")

    async def _send_some(self, stream: int) -> bool:
        """Send what a stream has, up to a turn's share; False where that was all for now."""
        channel, process = self._channel, self._process
        full = TERMINAL_BYTES if process.launch.tty else DATA_BYTES
        for _ in range(CHUNKS_A_TURN):
            data = process.read(stream)
            if data is None:
                return False
            if not data:
                await channel.write_eof(stream)
                return True
            process.ring.append(stream, data)
            await channel.write(stream, data)
            process.sent += len(data)
            if len(data) < full:
                # A keystroke's echo: asking again would cost as much as all of the above.
                return False
        return True

    def _at_once(self) -> bool:
        """Pass on what a terminal has shown, as an echo; False where `_outward` has to see to it.

        Waking a task for each keystroke would cost more than all the rest.
        """
        channel, process = self._channel, self._process
        if channel.room < TERMINAL_BYTES:
            return False
        data = process.read(STDOUT)
        if data is None:
            return True
        if not data:
            self._ended.append(STDOUT)
            return False
        process.ring.append(STDOUT, data)
        channel.write_now(STDOUT, data)
        process.sent += len(data)
        return len(data) < TERMINAL_BYTES

    def _received(self, event: ChannelEvent | None) -> None:
        if isinstance(event, DataReceived):
            self._process.feed(event.data, self._written)
        elif isinstance(event, EofReceived):
            self._process.end_input()
        elif isinstance(event, MessageReceived):
            try:
                self._message(event.value)
            except UsageError as error:
                self._error = self._error or error
                self._end("closed")
        else:
            self._end("lost" if self._channel.lost else "closed")

    def _written(self, size: int) -> None:
        if self._process.attachment is self:
            self._channel.consumed(size)

    def _message(self, value: dict[str, Any]) -> None:
        if "signal" in value:
            self._process.signal(signal_number(value["signal"]))
        elif "resize" in value:
            self._process.resize(*parse_size(value["resize"]))
        elif value.get("detach") is True:
            self._end("detached")
        else:
            raise UsageError("a message of a process is signal, resize or detach")


async def control(
    method: str, params: dict[str, Any], peer: Peer, context: HostContext
) -> dict[str, Any]:
    """The control methods `status`, `ps` and `signal`. Refused without the scope."""
    scopes = peer.scopes & context.policy.scopes
    if method == "signal":
        _need_scope(peer, context, "signal")
        process = context.processes.get(params.get("process"))
        number = signal_number(params.get("signal"))
        context.record("signal", peer, process.id, "sent", signal=str(params["signal"]))
        process.signal(number)
        return {}
    if not scopes:
        raise Refused("this device has no scope on this host", hint="pair it again")
    if method == "status":
        return await context.status()
    if method == "ps":
        return {"processes": context.processes.rows()}
    raise UsageError(f"this host does not know the method {method[:40]!r}")


Handler = Callable[[HostChannel, HostContext], Awaitable[None]]
HANDLERS: dict[str, Handler] = {"exec": serve_exec, "pty": serve_exec, "attach": serve_attach}
