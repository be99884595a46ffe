"""Run a command or a shell on a host and be its terminal: `exec`, `shell`, `attach`.

Stdin, stdout, stderr and the exit status are passed as ssh passes them; a process that a signal
ended gives 128 and the signal's number. Ctrl-C goes to the remote process; a second one within two
seconds, or one while the path is down, leaves it behind with 130.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from codexctl.client.connection import Channel, ChannelHandler, Connection
from codexctl.client.stdio import Escapes, Output
from codexctl.errors import CodexctlError, ConnectionFailed, Interrupted
from codexctl.state.files import describe_os_error
from codexctl.wire.channel import DATA_BYTES, STDERR, STDIN, STDOUT

READ_BYTES = 4 * DATA_BYTES
TERMINAL_BYTES = 4096  # what Linux gives of a terminal at one time; more room costs each keystroke
INSIST_S = 2.0
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


class Process(ChannelHandler):
    """The handler of one exec, pty or attach channel; `status` is set when it is over."""

    def __init__(self, connection: Connection, notice: Callable[[str], None]) -> None:
        self.status: int | None = None
        self.error: CodexctlError | None = None
        self.process = ""
        self._connection = connection
        self._notice = notice
        self._out: dict[int, Output] = {}
        self._channel: Channel | None = None
        self._stdin_open = False
        self._escapes: Escapes | None = None
        self._read_bytes = READ_BYTES
        self._interrupted_at = -INSIST_S
        self.detached = False

    def start(
        self, kind: str, params: dict[str, Any], *, stdin: bool = True, terminal: bool = False
    ) -> None:
        """Open the channel; stdin is read from now on, also before the host has answered."""
        channel = self._channel = self._connection.channel(kind, params, self)
        for stream, fd in ((STDOUT, 1), (STDERR, 2)):
            self._out[stream] = Output(self._connection, fd, channel.consumed)
        if terminal:
            self._escapes = Escapes()
            self._read_bytes = TERMINAL_BYTES
        self._stdin_open = True
        if stdin:
            self._connection.watch(0, self._read_stdin)
        else:
            self._end_stdin()

    @property
    def over(self) -> bool:
        """The channel is closed and everything is written."""
        if self.detached:
            return True
        ended = self.status is not None or self.error is not None
        return ended and (all(out.idle for out in self._out.values()) or self._out[STDOUT].broken)

    def finish(self) -> int:
        """The exit status; raises what ended the channel instead of the process."""
        if self.error is not None and self.status is None:
            raise self.error
        failure = self._out[STDOUT].error
        if failure is not None and not isinstance(failure, BrokenPipeError):
            raise describe_os_error(failure, "standard output", "write")
        if failure is not None:
            return 128 + signal.SIGPIPE
        return 0 if self.status is None else self.status

    # --- from the host ---

    def opened(self, result: dict[str, Any]) -> None:
        self.process = str(result.get("process") or "")
        if result.get("notice"):
            self._notice(str(result["notice"]))
        dropped = result.get("dropped")
        if isinstance(dropped, int) and dropped > 0:
            self._notice(f"{dropped} bytes of earlier output are no longer kept")

    def data(self, stream: int, data: memoryview) -> None:
        out = self._out.get(stream)
        if out is not None:
            out.write(data)
            if out.broken and stream == STDOUT and self._channel is not None:
                # As SIGPIPE would have it: nobody reads, so nothing needs to run.
                self.end(128 + signal.SIGPIPE)

    def message(self, value: dict[str, Any]) -> None:
        ended = value.get("exit")
        if isinstance(ended, dict):
            self.status = _status(ended)

    def closed(self, error: CodexctlError | None) -> None:
        self._stop_stdin()
        self.error = error
        if error is None and self.status is None:
            self.error = ConnectionFailed("the host closed the channel without an exit status")

    def writable(self) -> None:
        if self._stdin_open:
            self._connection.watch(0, self._read_stdin)

    # --- from here ---

    def _read_stdin(self) -> None:
        channel = self._channel
        assert channel is not None
        room = channel.writable
        if room <= 0:
            self._connection.unwatch(0)
            channel.waiting = True
            return
        try:
            data = os.read(0, min(room, self._read_bytes))
        except OSError:
            data = b""
        if not data:
            self._end_stdin()
            return
        if self._escapes is not None:
            data, command = self._escapes.feed(data)
            if command:
                self._command(command)
        if data:
            channel.write(STDIN, data)

    def _command(self, command: str) -> None:
        if command == "?":
            os.write(2, Escapes.help)
        elif command == "d":
            assert self._channel is not None
            self._channel.send({"detach": True})
            self.detached = True
        else:
            raise Interrupted("the session was ended by ~.")

    def _end_stdin(self) -> None:
        if self._stdin_open and self._channel is not None:
            self._channel.write_eof(STDIN)
        self._stop_stdin()

    def _stop_stdin(self) -> None:
        self._stdin_open = False
        self._connection.unwatch(0)

    def signalled(self, number: int) -> None:
        """A signal of this process: to the remote one; a second Ctrl-C raises Interrupted."""
        name = signal.Signals(number).name
        if name == "SIGINT":
            now = time.monotonic()
            if now - self._interrupted_at < INSIST_S:
                raise Interrupted(
                    "interrupted; the command may go on at the host",
                    hint="see what runs there: codexctl ps HOST",
                )
            self._interrupted_at = now
        if self._channel is not None and self.status is None:
            self._channel.send({"signal": name.removeprefix("SIG")})

    def end(self, status: int) -> None:
        """Close the channel from here; the host hangs up on what runs."""
        self.status = status
        if self._channel is not None:
            self._channel.close()

    def resized(self) -> None:
        if self._channel is not None:
            columns, rows = terminal_size()
            self._channel.send({"resize": [columns, rows]})


def _status(ended: dict[str, Any]) -> int:
    name = ended.get("signal")
    if isinstance(name, str):
        number = getattr(signal, f"SIG{name.removeprefix('SIG')}", None)
        return 128 + int(number) if isinstance(number, signal.Signals) else 255
    status = ended.get("status")
    return status & 0xFF if isinstance(status, int) else 255


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal here; 80 by 24 where there is none."""
    for fd in (0, 1, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.columns > 0 and size.lines > 0:
            return size.columns, size.lines
    return 80, 24


def _raw_notice(notice: Callable[[str], None]) -> Callable[[str], None]:
    """News while the terminal is raw: on a line of its own, whose end is no longer implied."""

    def tell(text: str) -> None:
        os.write(2, b"\r\n")
        notice(text)
        os.write(2, b"\r")

    return tell


def terminal() -> dict[str, Any]:
    """The `tty` of a pty channel's open: this terminal's size and kind."""
    columns, rows = terminal_size()
    return {"cols": columns, "rows": rows, "term": os.environ.get("TERM") or "xterm-256color"}


class Signals:
    """Signals as bytes on a pipe that the connection's loop reads; handlers restored on exit."""

    def __init__(
        self, connection: Connection, handle: Callable[[int], None], names: tuple[str, ...]
    ) -> None:
        self._connection = connection
        self._handle = handle
        self._names = names
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for name in self._names:
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._caught)
        self._connection.watch(self._read, self._wake)
        return self

    def _caught(self, number: int, frame: object) -> None:
        # The pipe brings it to the loop. Without a path the loop may sit in a connect: end there.
        if number == signal.SIGINT and not self._connection.has_path:
            raise Interrupted(
                "interrupted while the connection was down; the command may go on at the host",
                hint="see what runs there: codexctl ps HOST",
            )

    def _wake(self) -> None:
        try:
            caught = os.read(self._read, 64)
        except BlockingIOError:
            return
        for number in caught:
            if number in self._before:
                self._handle(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._connection.unwatch(self._read)
        os.close(self._read)
        os.close(self._write)


def run_command(
    connection: Connection,
    kind: str,
    params: dict[str, Any],
    *,
    notice: Callable[[str], None],
    stdin: bool = True,
) -> int:
    """Run without a terminal and return the status."""
    process = Process(connection, notice)
    with Signals(connection, process.signalled, ("SIGINT", *_FORWARDED)):
        process.start(kind, params, stdin=stdin)
        connection.run(lambda: process.over)
    return process.finish()


def run_terminal(
    connection: Connection,
    kind: str,
    params: dict[str, Any],
    *,
    notice: Callable[[str], None],
) -> int:
    """Run with this terminal in raw mode, restored whatever happens; ssh's escapes work."""
    import termios
    import tty

    process = Process(connection, notice)

    def handle(number: int) -> None:
        if number == signal.SIGWINCH:
            process.resized()
        elif number == signal.SIGINT:
            process.signalled(number)
        else:
            # An interactive shell ignores it: end here, and the shell gets its hang-up.
            process.end(128 + number)

    interactive = os.isatty(0)
    before = termios.tcgetattr(0) if interactive else None
    try:
        if interactive:
            tty.setraw(0, termios.TCSADRAIN)
            connection.notice = _raw_notice(connection.notice)
        with Signals(connection, handle, ("SIGWINCH", "SIGINT", "SIGTERM", "SIGHUP")):
            process.start(kind, params, terminal=interactive)
            connection.run(lambda: process.over)
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    if process.detached:
        name = connection.record.name
        notice(f"detached; reattach with: codexctl ps {name} --attach {process.process}")
        return 0
    if interactive:
        sys.stderr.write(f"connection to {connection.record.name} closed\n")
    return process.finish()
