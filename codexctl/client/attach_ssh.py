"""The app-server of a machine that is reached over SSH alone, at a local door.

One login for all; each connection at the door is a session that runs `SCRIPT` through the remote
user's login shell. Where the official app's own app-server runs there, it is joined, so that its
threads are seen; else one is started that ends with its client. Importing this imports asyncssh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncssh

from codexctl.client.attach import Door, terminal_command
from codexctl.client.attach_gate import MAX_HEAD_BYTES, Turned, admit
from codexctl.client.ssh import quote_argv
from codexctl.client.ssh_config import SshTarget
from codexctl.client.ssh_connect import connect
from codexctl.errors import ConnectionFailed

READ_BYTES = 64 * 1024
MAX_CONNECTIONS = 10  # what an sshd allows in one connection by default
HEAD_S = 30.0
GOODBYE_S = 2.0
STDERR_BYTES = 4096

# A login shell knows where codex is. The script goes to it as a variable, which every shell has in
# common; csh and its like take no -l beside -c, and read their files without it.
REMOTE = """\
CODEXCTL_SCRIPT=$0 export CODEXCTL_SCRIPT
case "${SHELL:=/bin/sh}" in *csh) login=-c;; *) login=-lc;; esac
exec "$SHELL" $login 'exec /bin/sh -c "$CODEXCTL_SCRIPT"'"""
# The app-server of the official app, where one runs, is the one that holds the threads. `3` keeps
# our stdin for the proxy alone.
SCRIPT = """\
unset CODEXCTL_SCRIPT
command -v codex >/dev/null || { echo "codex is not installed there" >&2; exit 127; }
control="${CODEX_HOME:-$HOME/.codex}/app-server-control/app-server-control.sock"
if [ -S "$control" ] && codex app-server daemon version >/dev/null 2>&1; then
    exec codex app-server proxy
fi
folder=$(mktemp -d) || exit 1
exec 3<&0
codex app-server --listen "unix://$folder/s" </dev/null >/dev/null 2>&1 3<&- &
server=$!
trap 'kill $server; rm -rf "$folder"' EXIT
trap 'exit 1' HUP TERM INT
until [ -S "$folder/s" ]; do
    kill -0 $server 2>/dev/null || { echo "codex app-server does not start there" >&2; exit 1; }
    sleep 0.1
done
codex app-server proxy --sock "$folder/s" <&3
"""


def attach_over_ssh(
    target: SshTarget,
    door: Door,
    command: list[str] | None,
    notice: Callable[[str], None],
    *,
    config: str | None = None,
) -> int:
    """As `codexctl.client.attach.attach`. ConnectionFailed where SSH does not get there."""
    return asyncio.run(_Attached(target, door, notice).run(command, config))


class _Attached:
    def __init__(self, target: SshTarget, door: Door, notice: Callable[[str], None]) -> None:
        self._target = target
        self._door = door
        self._notice = notice
        self._told: dict[str, None] = {}
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)

    async def run(self, command: list[str] | None, config: str | None) -> int:
        async with connect(self._target, config=config) as ssh:

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    async with self._room:
                        await self._serve(ssh, reader, writer)
                except (OSError, asyncssh.Error, TimeoutError) as error:
                    self._tell(f"a connection to {self._target.alias} ended: {error}")
                finally:
                    writer.close()

            loopback = self._door.token is not None
            start = asyncio.start_server if loopback else asyncio.start_unix_server
            server = await start(serve, sock=self._door.listener, limit=READ_BYTES)
            async with server:
                if command is None:
                    await ssh.wait_closed()
                    raise ConnectionFailed(f"{self._target.alias} closed the connection")
                try:
                    return await self._with_command(ssh, command)
                finally:
                    for text in self._told:
                        self._notice(text)

    async def _with_command(self, ssh: asyncssh.SSHClientConnection, command: list[str]) -> int:
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def ended() -> None:
            if not over.done():
                over.set_result(None)

        with terminal_command(command, self._door.variables) as ui:
            loop.add_reader(ui.ended, ended)
            try:
                await over
            finally:
                loop.remove_reader(ui.ended)
            assert ui.status is not None
            return ui.status

    def _tell(self, text: str) -> None:
        self._told[text] = None

    async def _serve(
        self,
        ssh: asyncssh.SSHClientConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        onward = await self._admitted(reader, writer)
        if onward is None:
            return
        process = await ssh.create_process(quote_argv(["sh", "-c", REMOTE, SCRIPT]), encoding=None)
        process.stdin.write(onward)
        try:
            async with asyncio.TaskGroup() as tasks:
                inward = tasks.create_task(_copy(reader, process.stdin))
                await _copy(process.stdout, writer)
                inward.cancel()
        finally:
            process.close()
        said = await process.stderr.read(STDERR_BYTES)
        async with asyncio.timeout(GOODBYE_S):
            done = await process.wait(check=False)
        if done.exit_status:
            reason = said.decode(errors="replace").strip().split("\\n")[-1][:300]
            self._tell(f"the app-server of {self._target.alias} ended: {reason or 'no reason'}")

    async def _admitted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """The head to send on; None for who was turned away."""
        received = b""
        try:
            async with asyncio.timeout(HEAD_S):
                while data := await reader.read(MAX_HEAD_BYTES):
                    received += data
                    onward = admit(received, self._door.token)
                    if onward is not None:
                        return onward
        except Turned as refusal:
            writer.write(refusal.args[0])
            await writer.drain()
        return None


async def _copy(
    reader: asyncio.StreamReader | asyncssh.SSHReader[bytes],
    writer: asyncio.StreamWriter | asyncssh.SSHWriter[bytes],
) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    if isinstance(writer, asyncssh.SSHWriter):
        writer.write_eof()
