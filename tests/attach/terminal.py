"""A program on a terminal of its own, and what it has drawn so far."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import signal
import struct
import termios
import threading
import time
from pathlib import Path

from tests.attach.screen import Screen

WAIT_S = 60.0
# What terminal programs ask of a terminal, and an answer each.
ANSWERS = {
    b"\x1b[6n": b"\x1b[1;1R",
    b"\x1b[c": b"\x1b[?1;2c",
    b"\x1b]10;?": b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\",
    b"\x1b]11;?": b"\x1b]11;rgb:0000/0000/0000\x1b\\",
    b"\x1b[?u": b"\x1b[?0u",
}


class TerminalProgram:
    """Leaving the block ends it. `text` is all that it shows and showed, without spaces."""

    def __init__(
        self, argv: list[str], *, env: dict[str, str], cwd: Path, columns: int = 100, rows: int = 30
    ) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execvpe(argv[0], argv, {**env, "TERM": "xterm-256color"})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.started = time.monotonic()
        self.chunks: list[tuple[float, bytes]] = []
        self._screen = Screen(columns, rows)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.status: int | None = None
        self._changed = threading.Condition()
        self._over = False
        self._typed = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            with self._changed:
                if data:
                    self.chunks.append((time.monotonic() - self.started, data))
                    self._screen.feed(self._decoder.decode(data))
                self._over = self._over or not data
                self._changed.notify_all()
            if not data:
                return
            for asked, answer in ANSWERS.items():
                if asked in data:
                    os.write(self.fd, answer)

    @property
    def text(self) -> str:
        return "".join(self._screen.text.split())

    def until(self, words: str, *, typing: str = "") -> None:
        """Wait for words, spaces aside. `typing` is typed till then, once a second.

        The terminal UI takes no answer to a question that it has only just drawn, and a line end
        that comes with a text is part of the text.
        """
        wanted = "".join(words.split())
        deadline = time.monotonic() + WAIT_S
        with self._changed:
            while wanted not in (text := self.text):
                left = deadline - time.monotonic()
                assert left > 0, f"no {words!r} in {text[-2000:]!r}"
                assert not self._over, f"it ended without {words!r}: {text[-2000:]!r}"
                if typing and time.monotonic() >= self._typed + 1.0:
                    self._typed = time.monotonic()
                    self.type(typing)
                self._changed.wait(min(left, 0.2))

    def type(self, text: str) -> None:
        try:
            os.write(self.fd, text.encode())
        except OSError:
            pass  # it has just ended

    def wait(self, *, typing: str = "") -> int:
        """Its exit status; 128 + N where signal N ended it. `typing` is typed until it ends."""
        if self.status is None:
            deadline = time.monotonic() + WAIT_S
            asked = 0.0
            while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
                assert time.monotonic() < deadline, f"it does not end: {self.text[-2000:]!r}"
                if typing and time.monotonic() > asked and not self._over:
                    asked = time.monotonic() + 0.5
                    self.type(typing)
                time.sleep(0.05)
            code = os.waitstatus_to_exitcode(ended[1])
            self.status = code if code >= 0 else 128 - code
        return self.status

    def __enter__(self) -> TerminalProgram:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            try:
                os.kill(self.pid, signal.SIGTERM)
                self.wait()
            except AssertionError:
                os.kill(self.pid, signal.SIGKILL)
                self.wait()
        os.close(self.fd)
        self._reader.join(WAIT_S)
