"""A process of an official executor, behind the same calls as a channel of a codexctl session.

What the official protocol lacks is made up for by the shell there: an end of stdin (input is sent
in measured pieces to a small loop in front of the command), and a terminal's size (`stty`). What
remains: the only signals are interrupt and terminate, and nothing outlives the session.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

from codexctl.client.connection import ChannelHandler
from codexctl.errors import CodexctlError, ProtocolError, Refused, UsageError
from codexctl.wire.channel import STDERR, STDOUT

if TYPE_CHECKING:
    from codexctl.client.executor.connection import ExecutorConnection

WRITE_BYTES = 128 << 10  # of one process/write
WRITES_AHEAD = 8  # that are not answered yet
READ_BYTES = 4 << 20  # asked for at once after a path was lost
MAX_EVENTS_AHEAD = 1024
# A line says how many bytes follow; 0 is the end. The loop is left behind by a command that ends
# before its input does, and an interrupt is for the command alone.
FEED = (
    'trap : INT; { while IFS= read -r n && [ "$n" != 0 ]; do dd bs="$n" count=1 iflag=fullblock; '
    'done <&3 2>/dev/null & } 3<&0 | "$@" 3<&-'
)
# The first thing on the terminal is its name between two separators, for `stty` later.
TERMINAL = 'stty cols "$1" rows "$2"; printf "\\036%s\\036" "$(tty)"; shift 2; exec "$@"'
_MARK = b"\x1e"
_MOST_MARKED_BYTES = 4096
_STREAMS = {"stdout": STDOUT, "stderr": STDERR, "pty": STDOUT}


class ProcessChannel:
    """One process. `begin` starts it; `handler` hears of it as of a channel's."""

    def __init__(
        self,
        connection: ExecutorConnection,
        kind: str,
        params: dict[str, Any],
        handler: ChannelHandler,
    ) -> None:
        if params.get("detach"):
            raise UsageError(
                f"{connection.record.name} is an official executor: it ends what runs there with "
                "the connection",
                hint="start it in the background by yourself, with nohup or tmux",
            )
        if kind not in ("exec", "pty"):
            raise UsageError(f"{connection.record.name} is an official executor, without {kind}")
        self.process_id = f"codexctl-{os.urandom(8).hex()}"
        self.handler = handler
        self.waiting = False  # set it to be told when more may be written
        self._connection = connection
        self._params = params
        self._terminal: dict[str, Any] | None = params.get("tty") if kind == "pty" else None
        self._tty_name = ""
        self._prelude: bytearray | None = bytearray() if self._terminal else None
        self._feeding = False
        self._stdin_open = True
        self._writes = 0  # not answered
        self._write_id = 0
        self._seq = 0  # of the last event that was taken
        self._ahead: dict[int, tuple[str, dict[str, Any]]] = {}
        self._started = self._exited = self._closed = False
        self._status = 255
        self._reading = False

    # --- as a channel ---

    @property
    def is_open(self) -> bool:
        return not self._closed

    @property
    def writable(self) -> int:
        """Bytes that `write` would take now."""
        if not self._started or self._closed or not self._stdin_open:
            return 0
        return max(0, WRITES_AHEAD - self._writes) * WRITE_BYTES

    def write(self, stream: int, data: bytes | memoryview) -> int:
        """Send what there is room for; returns how many bytes were taken."""
        del stream
        taken = 0
        while taken < len(data) and self._writes < WRITES_AHEAD:
            piece = bytes(data[taken : taken + WRITE_BYTES])
            taken += len(piece)
            self._write(b"%d\n%s" % (len(piece), piece) if self._feeding else piece)
        return taken

    def write_eof(self, stream: int) -> None:
        del stream
        if not self._started and not self._stdin_open:
            return
        self._stdin_open = False
        if self._started:
            self._end_stdin()

    def send(self, value: dict[str, Any]) -> None:
        """A signal or a new size of the terminal."""
        if "resize" in value:
            self._resize(value["resize"])
        elif value.get("signal") == "INT":
            params = {"processId": self.process_id, "signal": "interrupt"}
            self._connection.submit("process/signal", params, _ignore)
        elif "signal" in value:
            self._terminate()
        elif "detach" in value:
            raise Refused(
                "an official executor keeps no shell that nobody is connected to",
                hint="use tmux or screen there",
            )

    def consumed(self, size: int) -> None:
        self._connection.count_unread(-size)

    def close(self) -> None:
        """End the process, if it runs."""
        if self._started and not self._exited:
            self._terminate()
        self._closed = True
        self._connection.forget(self)

    # --- starting ---

    def begin(self) -> None:
        """Start it, now that it is known whether there is any stdin."""
        if self._closed:
            return
        self._connection.submit("process/start", self._start_params(), self._answered)

    def _start_params(self) -> dict[str, Any]:
        environment = self._connection.environment
        posix = environment.os != "windows"
        shell = environment.shell or "/bin/sh"
        argv = self._params.get("argv")
        if not argv:
            line = self._params.get("shell")
            argv = [shell, "-lc", line] if line else [shell, "-l"]
        extra = dict(self._params.get("env") or {})
        if self._terminal is not None:
            extra.setdefault("TERM", str(self._terminal["term"]))
            size = [str(self._terminal["cols"]), str(self._terminal["rows"])]
            if posix:
                argv = ["/bin/sh", "-c", TERMINAL, "codexctl", *size, *argv]
            else:
                self._prelude = None
        elif self._stdin_open and posix:
            self._feeding = True
            argv = ["/bin/sh", "-c", FEED, "codexctl", *argv]
        elif self._stdin_open:
            raise UsageError(
                f"{self._connection.record.name} runs Windows, where the end of stdin cannot be "
                "told",
                hint="run it without stdin: codexctl exec -n …",
            )
        return {
            "processId": self.process_id,
            "argv": list(argv),
            "cwd": self._connection.path(self._folder()),
            # The executor's own variables, without those that look like secrets.
            "envPolicy": {
                "inherit": "all",
                "ignoreDefaultExcludes": False,
                "exclude": ["CODEX_API_KEY"],
                "set": {},
                "includeOnly": [],
            },
            "env": extra,
            "tty": self._terminal is not None,
            "pipeStdin": self._feeding,
            "arg0": None,
        }

    def _folder(self) -> str:
        return self._connection.absolute(str(self._params.get("cwd") or ""))

    def _answered(self, result: dict[str, Any] | None, error: CodexctlError | None) -> None:
        if error is not None and not (self._started or "already exists" in str(error)):
            self._end(error)
            return
        self._started = True
        self.handler.opened({"process": self.process_id})
        if self._feeding and not self._stdin_open:
            self._end_stdin()
        self._offer_room()

    # --- stdin, signals, size ---

    def _write(self, content: bytes) -> None:
        self._writes += 1
        self._write_id += 1
        params = {
            "processId": self.process_id,
            "chunk": b64encode(content).decode(),
            # The same when it is asked again on another path: the executor writes it once.
            "writeId": f"{self.process_id}-{self._write_id}",
        }
        self._connection.submit("process/write", params, self._written)

    def _written(self, result: dict[str, Any] | None, error: CodexctlError | None) -> None:
        self._writes -= 1
        if error is None and result is not None and result.get("status") == "accepted":
            self._offer_room()
        # Else nobody reads it any more, as a broken pipe; the process's own end tells the rest.

    def _offer_room(self) -> None:
        if self.waiting and self.writable:
            self.waiting = False
            self.handler.writable()

    def _end_stdin(self) -> None:
        if self._feeding and not self._exited:
            self._write(b"0\n")
        elif self._terminal is not None and not self._exited:
            self._write(b"\x04")

    def _terminate(self) -> None:
        self._connection.submit("process/terminate", {"processId": self.process_id}, _ignore)

    def _resize(self, size: list[int]) -> None:
        if not self._tty_name:
            return
        flag = "-f" if self._connection.environment.os == "macos" else "-F"
        columns, rows = (str(int(number)) for number in size)
        argv = ["stty", flag, self._tty_name, "cols", columns, "rows", rows]
        params = self._start_params() | {
            "processId": f"{self.process_id}-size-{os.urandom(4).hex()}",
            "argv": argv,
            "tty": False,
            "pipeStdin": False,
        }
        self._connection.submit("process/start", params, _ignore)

    # --- from the executor ---

    def notified(self, method: str, params: dict[str, Any]) -> None:
        """An event of this process. They are numbered from 1 and may come out of order."""
        seq = params.get("seq")
        if not isinstance(seq, int):
            self._event(method, params)
            return
        if seq > self._seq:
            self._ahead[seq] = (method, params)
            if len(self._ahead) > MAX_EVENTS_AHEAD:
                raise ProtocolError("the executor left an event of a process out")
            self._take_events()

    def _take_events(self) -> None:
        while (event := self._ahead.pop(self._seq + 1, None)) is not None:
            self._seq += 1
            self._event(*event)

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "process/output":
            self._output(str(params.get("stream")), str(params.get("chunk")))
        elif method == "process/exited":
            self._exit(params.get("exitCode"))
        elif method == "process/closed":
            self._end(None)

    def _output(self, stream: str, chunk: str) -> None:
        data = b64decode(chunk)
        if self._prelude is not None:
            data = self._without_prelude(data)
        if data and not self._closed:
            self._connection.count_unread(len(data))
            self.handler.data(_STREAMS.get(stream, STDOUT), memoryview(data))

    def _without_prelude(self, data: bytes) -> bytes:
        """The terminal's output after its name, which is kept."""
        assert self._prelude is not None
        self._prelude += data
        before, first, rest = bytes(self._prelude).partition(_MARK)
        name, second, after = rest.partition(_MARK)
        if second:
            self._tty_name = name.decode(errors="replace")
            self._prelude = None
            return before + after
        if not first and len(before) > _MOST_MARKED_BYTES:
            self._prelude = None
            return before
        return b""

    def _exit(self, code: object) -> None:
        self._exited = True
        self._stdin_open = False
        if self._feeding:
            # The loop in front of the command may still wait for its next line.
            self._write(b"0\n")
        self._status = code if isinstance(code, int) and code >= 0 else 255

    def _end(self, error: CodexctlError | None) -> None:
        if not self._closed:
            self._closed = True
            self._connection.forget(self)
            if error is None and self._exited:
                # Not before: output may come behind the exit.
                self.handler.message({"exit": {"status": self._status}})
            self.handler.closed(error)

    # --- after a lost path ---

    def resumed(self) -> None:
        """Ask for what was missed; the executor keeps the last MiB."""
        if self._started and not self._closed and not self._reading:
            self._reading = True
            params = {
                "processId": self.process_id,
                "afterSeq": self._seq,
                "maxBytes": READ_BYTES,
                "waitMs": 0,
            }
            self._connection.submit("process/read", params, self._missed)

    def _missed(self, result: dict[str, Any] | None, error: CodexctlError | None) -> None:
        self._reading = False
        if result is None:
            self._end(error)
            return
        chunks, after = result.get("chunks"), result.get("nextSeq")
        for chunk in chunks if isinstance(chunks, list) else []:
            if isinstance(chunk, dict) and isinstance(chunk.get("seq"), int):
                if chunk["seq"] > self._seq + 1:
                    self._connection.notice("output was lost while the connection was down")
                    self._seq = chunk["seq"] - 1
                self.notified("process/output", chunk)
        if isinstance(after, int) and after > self._seq:
            # The exit and the close have numbers too, and are told by the fields below.
            self._seq = after - 1
        self._ahead = {seq: event for seq, event in self._ahead.items() if seq > self._seq}
        if result.get("exited") and not self._exited:
            self._exit(result.get("exitCode"))
        if result.get("closed"):
            self._end(None)
        self._take_events()


def _ignore(result: dict[str, Any] | None, error: CodexctlError | None) -> None:
    """Nobody waits for this answer."""
