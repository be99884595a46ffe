"""A command on a real pseudo-terminal, with all it writes and when."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

from tests.support.programs import Machine

DEADLINE_S = 60.0
_SGR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """`codexctl ARGUMENTS` as if a person had started it in a terminal of that size."""

    def __init__(
        self, machine: Machine, *arguments: str, columns: int = 80, rows: int = 24
    ) -> None:
        self._fd, child = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "codexctl", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=machine.cwd,
            env={**machine.environment, "TERM": "xterm-256color"},
            start_new_session=True,
            # Its own terminal, so that Ctrl-C and the size reach it as they would a person's.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self.chunks: list[tuple[float, bytes]] = []  # when, what
        self._began = time.monotonic()

    @property
    def raw(self) -> str:
        return b"".join(chunk for _, chunk in self.chunks).decode(errors="replace")

    @property
    def output(self) -> str:
        """All it has written, without colours."""
        return _SGR.sub("", self.raw)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, timeout: float) -> bool:
        """Take what has come; False at its end."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux's way to say that nobody has the other end open
            return False
        if data:
            self.chunks.append((time.monotonic() - self._began, data))
        return bool(data)

    def until(self, seen: Callable[[str], bool] | str) -> str:
        """Read until a text has appeared, or a condition on all of the output holds."""
        holds = (lambda output: seen in output) if isinstance(seen, str) else seen
        end = time.monotonic() + DEADLINE_S
        while not holds(self.output):
            assert time.monotonic() < end, f"not seen: {seen!r} in\n{self.output}"
            assert self.read(0.2) or holds(self.output), f"it ended: {self.output}"
        return self.output

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait(self) -> int:
        """Read to the end; the exit status."""
        end = time.monotonic() + DEADLINE_S
        while self.read(0.2):
            assert time.monotonic() < end, f"it does not end: {self.output}"
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        os.close(self._fd)
