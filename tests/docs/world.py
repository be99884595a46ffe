"""Where the pages' commands run: a host with a small project and a device, real processes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from codexctl.cli.pair import default_device_name
from tests.docs.blocks import Block, Command, matches
from tests.support.programs import COMMAND_TIMEOUT_S, Machine

ROOT = Path(__file__).resolve().parents[2]
DEVICE_NAME = "me@laptop"  # what the pages call the device
MARK = "\x1e"


class World:
    """Two machines with a login home each; what stays is stopped by `close`."""

    def __init__(self, folder: Path) -> None:
        self.host = self._machine(folder / "host")
        self.device = self._machine(folder / "device")
        self.url = ""
        self._stays: list[subprocess.Popen[str]] = []
        self._drains: list[threading.Thread] = []
        self._make_project(self.host.cwd)

    @staticmethod
    def _machine(folder: Path) -> Machine:
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        return Machine(folder, HOME=str(folder / "work"), PATH=path, CODEXCTL_SSH_CONFIG=os.devnull)

    def _make_project(self, login: Path) -> None:
        app = login / "src" / "app"
        (app / "tests").mkdir(parents=True)
        (app / "README").write_text("An app.\n")
        (app / "tests" / "test_app.py").write_text("def test_it():\n    assert 1 + 1 == 2\n")
        (login / ".ssh").mkdir(mode=0o700)
        (login / ".ssh" / "id_ed25519").write_text("secret\n")
        # A toolchain as people have it: pytest on the PATH of the login shell.
        programs = login / ".local" / "bin"
        programs.mkdir(parents=True)
        pytest = programs / "pytest"
        pytest.write_text(
            f'#!/bin/sh\nexec {sys.executable} -B -m pytest -p no:cacheprovider "$@"\n'
        )
        pytest.chmod(0o755)
        (login / ".profile").write_text('PATH="$HOME/.local/bin:$PATH"\n')
        self.host.home.mkdir(mode=0o700)
        readable = sorted({str(ROOT / ".venv"), sys.prefix, sys.base_prefix})
        (self.host.home / "policy.toml").write_text(f"[sandbox]\nreadable = {readable!r}\n")

    def close(self) -> None:
        for process in self._stays:
            process.terminate()
        for process, drain in zip(self._stays, self._drains, strict=True):
            process.wait(COMMAND_TIMEOUT_S)
            drain.join()
            assert process.stdout is not None
            process.stdout.close()

    def up(self, line: str) -> None:
        """Start what stays, and take the URL that it prints."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {self._real(line)}"],
            env=self.host.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        printed = []
        for text in process.stdout:
            printed.append(text)
            if found := re.search(r"codexctl pair '([^']+)'", text):
                self.url = found[1]
                break
        assert self.url, f"`{line}` ended without a URL: {printed}"
        # What it says later is read, so that it never waits for a reader.
        drain = threading.Thread(target=list, args=(process.stdout,))
        drain.start()
        self._stays.append(process)
        self._drains.append(drain)

    def play(self, block: Block, page: str) -> None:
        """Run a block as one bash; fails with the page's line where the page is wrong."""
        if block.stays:
            self.up(block.commands[0].text)
            return
        machine = {"host": self.host, "device": self.device}[block.where]
        script = "exec 2>&1\n" + "".join(
            f"{self._real(command.text)}\n"
            f"status=$?; printf '\\n{MARK}%d{MARK}' $status; (exit $status)\n"
            for command in block.commands
        )
        done = subprocess.run(
            ["bash", "-c", script],
            env=machine.environment,
            cwd=machine.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        answers = re.findall(rf"(?s)(.*?)\n{MARK}(\d+){MARK}", done.stdout)
        assert len(answers) == len(block.commands), f"{page}:{block.line}: {done.stdout}"
        for command, (printed, status) in zip(block.commands, answers, strict=True):
            self._compare(command, printed, int(status), f"{page}:{command.line}")

    def _compare(self, command: Command, printed: str, status: int, place: str) -> None:
        shown = printed.replace(default_device_name(), DEVICE_NAME)
        if command.expected is None:
            assert status == 0, f"{place}: `{command.text}` gave {status}:\n{shown}"
        else:
            wanted = "\n".join(command.expected)
            assert matches(command.expected, shown), (
                f"{place}: `{command.text}` printed\n{shown}\nand the page says\n{wanted}"
            )

    def _real(self, line: str) -> str:
        """A line of a page with this world's URL and names."""
        line = line.replace("'URL'", f"'{self.url}'").replace(DEVICE_NAME, default_device_name())
        if line.startswith("./dev up") and not _environment_is_current():
            # ./dev would install in the middle of the tests; what it would then run is this.
            line = line.replace("./dev up", "codexctl up")
        return line


def _environment_is_current() -> bool:
    stamp = ROOT / ".venv" / ".dev-all"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return stamp.exists() and stamp.read_text() == digest and os.access(ROOT / "dev", os.X_OK)
