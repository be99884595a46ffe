"""A local door to a host's app-server, and the official terminal UI that goes through it.

    door = Door.on_loopback()                   # or Door.on_socket(PATH)
    attach(connection, door, command, env)      # until the command has ended; None: until Ctrl-C

Every connection at the door is a client of its own at the host's app-server: several at once.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from codexctl.client.ask import request
from codexctl.client.attach_gate import TOKEN_VARIABLE, Turned, admit
from codexctl.client.connection import Connection
from codexctl.client.forward import Forwarder
from codexctl.errors import CodexctlError, ConnectionFailed, NotFoundOnHost, UsageError

READ_BYTES = 16 * 1024
LEAVE_S = 5.0  # for the terminal UI to end by itself when the host is gone
BACKLOG = 16


class Door:
    """A listening socket, how `codex --remote` names it, and its token (None: no need of one)."""

    def __init__(self, listener: socket.socket, address: str, token: str | None) -> None:
        self.listener = listener
        self.address = address
        self.token = token

    @classmethod
    def on_loopback(cls) -> Door:
        """A free port of 127.0.0.1, and a token made for it alone."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        port = listener.getsockname()[1]
        return cls(listener, f"ws://127.0.0.1:{port}", secrets.token_urlsafe(32))

    @classmethod
    def on_socket(cls, path: str) -> Door:
        """A unix socket that its owner alone can open. ConnectionFailed, UsageError."""
        path = os.path.abspath(path)
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(path)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if os.path.exists(path):
                raise UsageError(f"{path} exists", hint="remove it, or name another") from error
            raise ConnectionFailed(f"cannot listen on {path}: {error.strerror or error}") from error
        finally:
            os.umask(before)
        return cls(listener, f"unix://{path}", None)

    @property
    def options(self) -> list[str]:
        """What to give to codex."""
        more = [] if self.token is None else ["--remote-auth-token-env", TOKEN_VARIABLE]
        return ["--remote", self.address, *more]

    @property
    def variables(self) -> dict[str, str]:
        """What to add to its environment."""
        return {} if self.token is None else {TOKEN_VARIABLE: self.token}

    def close(self) -> None:
        """Let nobody in any more; a unix socket is removed."""
        self.listener.close()
        if self.address.startswith("unix://"):
            try:
                os.unlink(self.address.removeprefix("unix://"))
            except OSError:
                pass  # somebody has removed it before


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens at any more, as a killed command leaves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
        except OSError:
            pass  # nothing there, or something else: bind says which


def attach(
    connection: Connection,
    door: Door,
    command: list[str] | None,
    notice: Callable[[str], None],
) -> int:
    """Serve at the door until `command` has ended, and return its status; without, until Ctrl-C.

    While the command has the terminal, what went wrong is kept and told when it has ended.
    """
    # What would keep everybody out is said before a terminal UI puts its own words around it.
    request(connection, "app-server", {"probe": True})
    told: list[str] = []
    forwarder = Forwarder(connection, notice if command is None else told.append)
    _listen(connection, forwarder, door)
    if command is None:
        connection.run(lambda: False)
    assert command is not None
    try:
        with terminal_command(command, door.variables) as ui:
            # Its end makes this readable; `until` is what looks.
            connection.watch(ui.ended, lambda: connection.unwatch(ui.ended))
            try:
                connection.run(lambda: ui.status is not None)
            except CodexctlError:
                door.close()
                ui.leave()
                raise
            assert ui.status is not None
            return ui.status
    finally:
        for text in dict.fromkeys(told):
            notice(text)


def _listen(connection: Connection, forwarder: Forwarder, door: Door) -> None:
    listener = door.listener
    listener.setblocking(False)

    def accept() -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if forwarder.admits(sock):
            _Visitor(connection, forwarder, sock, door.token)

    connection.watch(listener.fileno(), accept)


class _Visitor:
    """An accepted connection until its head is read: then it is carried, or turned away."""

    def __init__(
        self,
        connection: Connection,
        forwarder: Forwarder,
        sock: socket.socket,
        token: str | None,
    ) -> None:
        sock.setblocking(False)
        self._connection = connection
        self._forwarder = forwarder
        self._sock = sock
        self._token = token
        self._received = b""
        connection.watch(sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        try:
            onward = admit(self._received, self._token) if data else b""
        except Turned as refusal:
            self._leave()
            try:
                self._sock.send(refusal.args[0])
            except OSError:
                pass  # it has gone
            self._sock.close()
            return
        if onward is None:
            return
        self._leave()
        if onward:
            self._forwarder.carry(self._sock, "app-server", {}, onward)
        else:
            self._sock.close()

    def _leave(self) -> None:
        self._connection.unwatch(self._sock.fileno())


class TerminalCommand:
    """A child that has this terminal. `ended` becomes readable when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.ended, write = os.pipe()

        def wait() -> None:
            process.wait()
            os.close(write)

        self._waiting = threading.Thread(target=wait, daemon=True)
        self._waiting.start()

    @property
    def status(self) -> int | None:
        """Its status, 128 + N where signal N ended it; None while it runs."""
        status = self._process.poll()
        return status if status is None or status >= 0 else 128 - status

    def leave(self) -> None:
        """Wait for it to end, and end it when it does not."""
        self._waiting.join(LEAVE_S)
        if self.status is None:
            self._process.terminate()
            self._waiting.join(LEAVE_S)

    def close(self) -> None:
        if self.status is None:
            self._process.kill()
        self._waiting.join()
        os.close(self.ended)


@contextmanager
def terminal_command(command: list[str], variables: Mapping[str, str]) -> Iterator[TerminalCommand]:
    """Run a command on this terminal. Ctrl-C is its own, and nothing to us later. NotFoundOnHost.

    What comes behind it takes two seconds at most, and its status is what this was for.
    """
    try:
        process = subprocess.Popen(command, env={**os.environ, **variables})
    except OSError as error:
        raise NotFoundOnHost(
            f"cannot start {command[0]}: {error.strerror}",
            hint="install it: npm install -g @openai/codex, or use --print",
        ) from error
    # Only now, since a child inherits what is ignored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = TerminalCommand(process)
    try:
        yield running
    finally:
        running.close()
