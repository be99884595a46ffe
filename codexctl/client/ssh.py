"""Commands and shells on an ssh alias; streams, status and signals pass as they do with ssh.

Importing this module imports asyncssh: do it where a name has turned out to be an alias.

    status = run_exec(target, ["pytest", "-q"])
    status = run_shell(target)
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tty import setraw

import asyncssh

from codexctl.client.descriptors import Input, Output
from codexctl.client.ssh_config import SshTarget
from codexctl.client.ssh_connect import connect
from codexctl.client.stdio import Escapes
from codexctl.errors import ConnectionFailed, Interrupted

# Output that waits for a slow reader here before the remote command is held up.
MAX_WAITING_BYTES = 1 << 20
GOODBYE_S = 3.0  # for a remote command to end after TERM or HUP
HELP = b"\r\n~.  end the session\r\n~?  this text\r\n~~  a tilde\r\n"
# Every session of a connection is a process group below the same sshd, as this script is itself.
KILL_OTHERS = (
    "{{ ps -A -o pid= -o ppid= 2>/dev/null || ps -o pid,ppid; }} | while read p q; do "
    '[ "$q" = $PPID ] && {{ [ "$p" = $$ ] || kill -s {name} -- -$p; }}; done'
)
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STATUS_OF_SIGPIPE = 128 + signal.SIGPIPE


def run_exec(
    target: SshTarget,
    command: list[str] | str,
    *,
    stdin: int | None = 0,
    stdout: int = 1,
    stderr: int = 2,
    tty: bool = False,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    config: str | None = None,
) -> int:
    """Run a command there and return its status, 128+N where signal N ended it.

    A list is an argv that reaches the program unchanged whatever the login shell is; a string is a
    command line for that shell. `stdin` None gives the command an empty input. `tty` asks for a
    terminal when stdin is one. Ctrl-C is passed on, the second one leaves (Interrupted).
    ConnectionFailed where the host is not reached or is lost.
    """
    if cwd is not None or env:
        command = _in_place(command, cwd, env or {})
    line = command if isinstance(command, str) else quote_argv(command)
    return asyncio.run(_run(target, line, (stdin, stdout, stderr), tty, config))


def run_shell(
    target: SshTarget, argv: list[str] | None = None, *, config: str | None = None
) -> int:
    """The login shell there (or a program on a terminal); its status as in `run_exec`.

    The local terminal is raw meanwhile and restored however this ends. `~.` after a line end leaves
    (Interrupted).
    """
    line = None if argv is None else quote_argv(argv)
    return asyncio.run(_run(target, line, (0, 1, 2), True, config))


def quote_argv(argv: list[str]) -> str:
    """A command line that gives `argv` in every login shell: sh, csh and fish alike.

    Single quotes are the same in all of them except around a quote, a backslash (fish), an
    exclamation mark or a line end (csh). Where one of these occurs, sh decodes the line from octal.
    """
    line = shlex.join(argv)
    raw = os.fsencode(line)
    if not set(raw) & set(b"\\!\n\r") and b'"\'"' not in raw:
        return line
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@+=:,./-"
    octal = "".join(chr(byte) if byte in safe else f"\\0{byte:03o}" for byte in raw)
    return f'sh -c \'eval "exec $(printf %b "{octal}")"\''


def _in_place(command: list[str] | str, cwd: str | None, env: Mapping[str, str]) -> list[str]:
    """The argv that runs a command in a folder and with variables of its own.

    sshd ignores what its AcceptEnv does not name, so the variables go in by `env`.
    """
    argv = (
        ["sh", "-c", 'exec "${SHELL:-sh}" -c "$0"', command]
        if isinstance(command, str)
        else command
    )
    if env:
        argv = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
    if cwd is not None:
        argv = ["sh", "-c", 'cd -- "$0" && exec "$@"', cwd, *argv]
    return argv


class _Session(asyncssh.SSHClientSession[bytes]):
    """One command: what the channel says, as a status and bytes on descriptors."""

    def __init__(self, fds: tuple[int | None, int, int], *, terminal: bool) -> None:
        self._fds = fds
        self._escapes = Escapes() if terminal else None
        self.left = False  # by ~.
        self._outputs: dict[int | None, Output] = {}
        self._input: Input | None = None
        self._paused = False
        self.chan: asyncssh.SSHClientChannel[bytes] | None = None
        self.status: int | None = None
        self.ended = asyncio.Event()
        self._lost = False

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.chan = chan
        _, stdout, stderr = self._fds
        for datatype, fd in ((None, stdout), (asyncssh.EXTENDED_DATA_STDERR, stderr)):
            output = Output(fd, self._reader_gone)
            output.drained = self._output_drained
            self._outputs[datatype] = output

    def session_started(self) -> None:
        stdin = self._fds[0]
        if stdin is None:
            self._chan.write_eof()
            return
        self._input = Input(stdin, self._typed)
        self._input.resume()

    @property
    def _chan(self) -> asyncssh.SSHClientChannel[bytes]:
        assert self.chan is not None
        return self.chan

    def _typed(self, data: bytes) -> None:
        try:
            if not data:
                self._chan.write_eof()
                return
            if self._escapes is not None:
                data, command = self._escapes.feed(data)
                if command:
                    self._command(command)
            if data:
                self._chan.write(data)
        except (BrokenPipeError, OSError):
            # The command reads no more; what it still prints is wanted.
            if self._input is not None:
                self._input.pause()

    def _command(self, command: str) -> None:
        if command == ".":
            self.left = True
            self.stop()
        else:
            self._outputs[None].write(HELP)

    def pause_writing(self) -> None:
        if self._input is not None:
            self._input.pause()

    def resume_writing(self) -> None:
        if self._input is not None:
            self._input.resume()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._outputs[datatype].write(data)
        if not self._paused and self._waiting() > MAX_WAITING_BYTES:
            self._paused = True
            self._chan.pause_reading()

    def _waiting(self) -> int:
        return sum(output.waiting for output in self._outputs.values())

    def _output_drained(self) -> None:
        if self._paused and self._waiting() <= MAX_WAITING_BYTES // 2:
            self._paused = False
            self._chan.resume_reading()
        if self._lost and not self._waiting():
            self.ended.set()

    def _reader_gone(self) -> None:
        # As a command in a pipe dies of SIGPIPE: the rest is not worth fetching.
        if self.status is None:
            self.status = STATUS_OF_SIGPIPE
            self._chan.close()

    def eof_received(self) -> bool:
        return True  # the command may go on reading

    def exit_status_received(self, status: int) -> None:
        if self.status is None:
            self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        del core_dumped, msg, lang
        if self.status is None:
            self.status = status_of_signal(signal)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._input is not None:
            self._input.pause()
        self._lost = True
        if not self._waiting():
            self.ended.set()

    def stop(self) -> None:
        """Forget what is still to be written."""
        for output in self._outputs.values():
            output.close()
        if self._input is not None:
            self._input.pause()
        self.ended.set()


def status_of_signal(name: str) -> int:
    """128+N for the name of a signal as SSH sends it; 255 for one that is not known here."""
    number = getattr(signal, f"SIG{name}", None)
    return 128 + number if isinstance(number, signal.Signals) else 255


async def _run(
    target: SshTarget,
    line: str | None,
    fds: tuple[int | None, int, int],
    wants_tty: bool,
    config: str | None,
) -> int:
    stdin = fds[0]
    terminal = stdin if wants_tty and stdin is not None and os.isatty(stdin) else None
    session = _Session(fds, terminal=terminal is not None)
    leave = _Leave(target, session)
    try:
        with leave.on_signals():
            async with connect(target, config=config) as connection:
                await _start(target, connection, session, line, terminal)
                with _raw_terminal(terminal, session):
                    async with asyncio.TaskGroup() as tasks:
                        delivery = tasks.create_task(leave.deliver(connection))
                        await session.ended.wait()
                        delivery.cancel()
    except asyncio.CancelledError:
        if leave.status is None:
            raise
    if session.left:
        raise Interrupted("the session was ended by ~.")
    if leave.status == 128 + signal.SIGINT:
        raise Interrupted(f"left {target.alias}; the command there may still be running")
    if leave.status is not None:
        return leave.status
    if session.status is None:
        raise ConnectionFailed(
            f"lost {target.alias} while the command was running",
            hint=f"it may still be running there; see: codexctl exec {target.alias} -- ps x",
        )
    return session.status


async def _start(
    target: SshTarget,
    connection: asyncssh.SSHClientConnection,
    session: _Session,
    line: str | None,
    terminal: int | None,
) -> None:
    try:
        await connection.create_session(
            lambda: session,
            line,
            env=dict(target.environment),
            request_pty="force" if terminal is not None else False,
            term_type=os.environ.get("TERM", "dumb") if terminal is not None else None,
            term_size=_size(terminal) if terminal is not None else None,
            term_modes=_modes(terminal) if terminal is not None else None,
            encoding=None,
        )
    except (asyncssh.Error, OSError) as error:
        reason = str(error)
        raise ConnectionFailed(
            f"{target.alias} did not start the command: {reason[:1].lower()}{reason[1:]}",
            hint=f"see what it says: ssh -v {target.alias} true",
        ) from error


class _Leave:
    """Signals to us: passed on to the command, and the status to leave with if it does not end."""

    def __init__(self, target: SshTarget, session: _Session) -> None:
        self._target = target
        self._session = session
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._told = False
        self.status: int | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        loop.add_signal_handler(signal.SIGINT, self._interrupted)
        for number in FORWARDED:
            loop.add_signal_handler(number, self._ended, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, *FORWARDED):
                loop.remove_signal_handler(number)

    async def deliver(self, connection: asyncssh.SSHClientConnection) -> None:
        """Tell the command of every signal, for ever."""
        while True:
            number = await self._signals.get()
            name = number.name.removeprefix("SIG")
            try:
                if self._target.user != "root":
                    assert self._session.chan is not None
                    self._session.chan.send_signal(name)
                else:
                    # sshd passes no signal on in sessions of root, and does not say so.
                    script = KILL_OTHERS.format(name=name)
                    line = "exec " + quote_argv(["sh", "-c", script])
                    await connection.run(line, stdin=asyncssh.DEVNULL, encoding=None)
            except (asyncssh.Error, OSError):
                continue  # the command has ended meanwhile, or the connection: both are seen

    def _interrupted(self) -> None:
        if self._told or self._session.chan is None:
            self._go(signal.SIGINT)
        else:
            self._told = True
            self._signals.put_nowait(signal.SIGINT)

    def _ended(self, number: signal.Signals) -> None:
        if self._session.chan is None:
            self._go(number)
        else:
            self.status = 128 + number
            self._signals.put_nowait(number)
            asyncio.get_running_loop().call_later(GOODBYE_S, self._session.stop)

    def _go(self, number: signal.Signals) -> None:
        self.status = 128 + number
        self._session.stop()
        if self._session.chan is None and self._task is not None:
            self._task.cancel()


@contextmanager
def _raw_terminal(terminal: int | None, session: _Session) -> Iterator[None]:
    """Raw while it lasts, its size followed; restored however it ends."""
    if terminal is None:
        yield
        return
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def resized() -> None:
        assert session.chan is not None
        session.chan.change_terminal_size(*_size(terminal))

    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        setraw(terminal)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _size(terminal: int) -> tuple[int, int]:
    columns, rows = os.get_terminal_size(terminal)
    return columns, rows


def _modes(terminal: int) -> dict[int, int]:
    """What the remote terminal has to know of this one: the erase key and UTF-8."""
    characters = termios.tcgetattr(terminal)[6]
    utf8 = "UTF-8" in (os.environ.get("LC_ALL") or os.environ.get("LANG") or "").upper()
    return {
        asyncssh.PTY_VERASE: ord(characters[termios.VERASE]),
        asyncssh.PTY_IUTF8: int(utf8),
    }
