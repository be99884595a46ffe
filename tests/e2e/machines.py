"""Two machines on one: a CODEXCTL_HOME and a login home each, and real codexctl processes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

WITHIN_S = 60.0
_PERSONAL = ("CODEXCTL_", "XDG_", "NO_COLOR", "SSH_AUTH_SOCK", "CODEX_")


class Machine:
    """One identity: `run` starts codexctl there and waits, `start` does not wait."""

    def __init__(self, folder: Path, login: Path | None = None) -> None:
        self.home = folder
        self.login = login or folder.with_name(f"{folder.name}-login")
        self.login.mkdir(exist_ok=True)
        keep = {k: v for k, v in os.environ.items() if not k.startswith(_PERSONAL)}
        self.env = {
            **keep,
            "CODEXCTL_HOME": str(folder),
            "CODEXCTL_SSH_CONFIG": os.devnull,
            "HOME": str(self.login),
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
        }

    def run(
        self, *argv: str, stdin: bytes | None = None, within_s: float = WITHIN_S
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["codexctl", *argv],
            env=self.env,
            cwd=self.login,
            input=stdin or b"",
            capture_output=True,
            timeout=within_s,
        )

    def json(self, *argv: str) -> Any:
        """The JSON that a command line with --json prints; it must succeed."""
        done = self.run(*argv)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def start(self, *argv: str) -> Running:
        return Running(["codexctl", *argv], self.env, self.login)


class Running:
    """A process that stays; its lines are read by a thread, so that it never waits for us."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def line(self, having: str) -> str:
        """The next line that contains `having`; fails when the process ends or is silent."""
        while True:
            try:
                line = self._lines.get(timeout=WITHIN_S)
            except queue.Empty:
                raise AssertionError(f"no line with {having!r} in {self.seen}") from None
            assert line is not None, f"it ended without {having!r}: {self.seen}"
            self.seen.append(line)
            if having in line:
                return line

    def event(self, name: str) -> dict[str, Any]:
        """The next JSON line with this event."""
        value = json.loads(self.line(f'"event": "{name}"'))
        assert isinstance(value, dict)
        return value

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(timeout=WITHIN_S)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
