"""Real codexctl processes for tests: each `Machine` is a CODEXCTL_HOME of its own.

machine = Machine(tmp_path / "laptop")
machine.run("pair", url)                      # a finished command
with machine.start("up", "--json") as up:     # one that stays
    url = up.event("pairing")["url"]
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

COMMAND_TIMEOUT_S = 60.0
EVENT_TIMEOUT_S = 30.0


class Machine:
    """A home, a working folder and an environment of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.home = folder / "home"
        self.cwd = folder / "work"
        self.prefix: list[str] = []  # what stands before `codexctl` on the command line
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CODEXCTL_")},
            "CODEXCTL_HOME": str(self.home),
            **environment,
        }

    def run(
        self,
        *arguments: str,
        input: bytes = b"",
        check: int | None = 0,
        timeout: float = COMMAND_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end; AssertionError where the status is not `check` (None: any)."""
        done = subprocess.run(
            [*self.prefix, sys.executable, "-m", "codexctl", *arguments],
            input=input,
            capture_output=True,
            cwd=self.cwd,
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, (
                f"codexctl {' '.join(arguments)} gave {done.returncode}\n"
                f"{done.stdout.decode(errors='replace')[-2000:]}\n"
                f"{done.stderr.decode(errors='replace')[-2000:]}"
            )
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> Running:
        return Running(self, arguments, stdin)


class Running:
    """A command that stays; leaving the block ends it with SIGTERM, and SIGKILL if it must."""

    def __init__(self, machine: Machine, arguments: tuple[str, ...], stdin: int) -> None:
        self.process = subprocess.Popen(
            [*machine.prefix, sys.executable, "-m", "codexctl", *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=machine.cwd,
            env=machine.environment,
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self.seen: list[dict[str, Any]] = []
        self.errors: list[bytes] = []
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)

    def event(self, name: str, timeout: float = EVENT_TIMEOUT_S) -> dict[str, Any]:
        """The next JSON line of this event; those before it stay in `seen`."""
        while True:
            try:
                line = self._lines.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no event {name}; {self._told()}") from None
            if not line:
                raise AssertionError(f"it ended before the event {name}; {self._told()}")
            event: dict[str, Any] = json.loads(line)
            self.seen.append(event)
            if event.get("event") == name:
                return event

    def printed(self) -> list[bytes]:
        """The lines so far that `event` has not taken."""
        return list(self._lines.queue)

    def _told(self) -> str:
        return f"events {self.seen}; stderr: {b''.join(self.errors).decode(errors='replace')}"

    def kill(self) -> None:
        """SIGKILL, and wait: as a power cut would."""
        self.process.kill()
        self.process.wait(COMMAND_TIMEOUT_S)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal, wait, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(COMMAND_TIMEOUT_S)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
        for thread in self._threads:
            thread.join(COMMAND_TIMEOUT_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def pair(host: Running, device: Machine, *options: str) -> str:
    """Pair `device` by the URL that a running `up --json` has announced; the host's name there."""
    url = host.event("pairing")["url"]
    name: str = device.json("pair", url, *options)["name"]
    return name
