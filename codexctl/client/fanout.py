"""One command on several hosts at once: a child process a host, its lines behind the host's name.

Each host has a process of its own, so that one that fails, hangs or floods holds up nobody else's.
Lines are written whole; a reader that stops holds the children up by their pipes; nothing grows.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from codexctl.errors import UsageError

MAX_HOSTS = 256
READ_BYTES = 64 * 1024
# A line longer than this is written in pieces, each behind the host's name.
MAX_LINE_BYTES = 64 * 1024
GRACE_S = 5.0  # after Ctrl-C, for children that pass it on and end
COLOURS = (36, 33, 35, 32, 34, 31)

_STREAMS = ("stdout", "stderr")


def run_fanout(
    hosts: Sequence[str],
    child_argv: Callable[[str], list[str]],
    *,
    as_json: bool = False,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
) -> int:
    """Run `child_argv(host)` for each host and return the worst status.

    Children read nothing. With `as_json` stdout gets one object a line: `{"host", "stream",
    "line"}` for output, `{"host", "status"}` at each end. Ctrl-C is passed to all, the second one
    kills them; the status is then 130. UsageError for too many hosts or one that is named twice.
    """
    if len(set(hosts)) != len(hosts):
        raise UsageError("a host is named twice", hint="name each host once")
    if len(hosts) > MAX_HOSTS:
        raise UsageError(f"{len(hosts)} hosts are more than {MAX_HOSTS} at once")
    out = sys.stdout.buffer if stdout is None else stdout
    err = sys.stderr.buffer if stderr is None else stderr
    return _Fanout(hosts, child_argv, as_json, out, err).run()


class _Child:
    """A host's process, and what of its lines is not complete yet."""

    def __init__(self, host: str, argv: list[str]) -> None:
        self.host = host
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C comes from us, once, and not from the terminal as well.
            start_new_session=True,
        )
        self.rest = dict.fromkeys(_STREAMS, b"")
        self.open = set(_STREAMS)

    def stream(self, name: str) -> IO[bytes]:
        found = self.process.stdout if name == "stdout" else self.process.stderr
        assert found is not None
        return found

    def take(self, name: str, data: bytes) -> Iterator[bytes]:
        """The lines that `data` completes, without their ends; all there is when it is empty."""
        rest = self.rest[name] + data
        *lines, rest = rest.split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            rest = rest[MAX_LINE_BYTES:]
        if not data and rest:
            lines.append(rest)
            rest = b""
        self.rest[name] = rest
        yield from lines


class _Fanout:
    def __init__(
        self,
        hosts: Sequence[str],
        child_argv: Callable[[str], list[str]],
        as_json: bool,
        out: IO[bytes],
        err: IO[bytes],
    ) -> None:
        self._as_json = as_json
        self._files = {"stdout": out, "stderr": err}
        width = max(map(len, hosts), default=0)
        self._prefixes = {
            name: {
                host: _prefix(host, width, COLOURS[at % len(COLOURS)], file)
                for at, host in enumerate(hosts)
            }
            for name, file in self._files.items()
        }
        self._hosts = hosts
        self._child_argv = child_argv
        self._children: list[_Child] = []
        self._interrupted_at: float | None = None
        self._ended_by = 0

    def run(self) -> int:
        with selectors.DefaultSelector() as selector, self._signals(selector):
            try:
                for host in self._hosts:
                    child = _Child(host, self._child_argv(host))
                    self._children.append(child)
                    for name in _STREAMS:
                        selector.register(child.stream(name), selectors.EVENT_READ, (child, name))
                statuses = self._pump(selector)
            finally:
                self._end()
        if self._ended_by:
            return 128 + self._ended_by
        return max(statuses, default=0)

    def _pump(self, selector: selectors.BaseSelector) -> list[int]:
        statuses: list[int] = []
        while any(child.open for child in self._children):
            for key, _ in selector.select(self._patience()):
                if key.data is None:
                    self._signalled(os.read(key.fd, 64))
                    continue
                child, name = key.data
                data = os.read(key.fd, READ_BYTES)
                for line in child.take(name, data):
                    self._write(child.host, name, line)
                if not data:
                    selector.unregister(key.fileobj)
                    child.open.discard(name)
                    if not child.open:
                        statuses.append(self._ended(child))
            if self._interrupted_at is not None and self._patience() == 0:
                self._send(signal.SIGKILL)
            for file in self._files.values():
                file.flush()
        return statuses

    def _patience(self) -> float | None:
        """How long children may still take after Ctrl-C."""
        if self._interrupted_at is None:
            return None
        return max(0.0, self._interrupted_at + GRACE_S - time.monotonic())

    def _ended(self, child: _Child) -> int:
        code = child.process.wait()
        status = 128 - code if code < 0 else code
        if self._as_json:
            self._event({"host": child.host, "status": status})
        elif status:
            self._write(child.host, "stderr", f"[status {status}]".encode())
        return status

    def _write(self, host: str, name: str, line: bytes) -> None:
        if self._as_json:
            self._event({"host": host, "stream": name, "line": line.decode(errors="replace")})
        else:
            self._files[name].write(self._prefixes[name][host] + line + b"\n")

    def _event(self, event: dict[str, Any]) -> None:
        self._files["stdout"].write(json.dumps(event, ensure_ascii=False).encode() + b"\n")

    @contextmanager
    def _signals(self, selector: selectors.BaseSelector) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP arrive as bytes on a pipe among the others."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        waker = signal.set_wakeup_fd(write)
        selector.register(read, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                continue
            again = self._interrupted_at is not None
            self._ended_by = number
            self._interrupted_at = time.monotonic() if not again else 0.0
            self._send(signal.SIGKILL if again else signal.Signals(number))

    def _send(self, number: signal.Signals) -> None:
        for child in self._children:
            # Whoever holds the pipes open is meant, also when the first process has ended.
            if child.open:
                try:
                    os.killpg(child.process.pid, number)
                except ProcessLookupError:
                    pass

    def _end(self) -> None:
        """Whatever happened: no child and no descriptor is left."""
        self._send(signal.SIGKILL)
        for child in self._children:
            child.process.wait()
            for name in _STREAMS:
                child.stream(name).close()


def _prefix(host: str, width: int, colour: int, file: IO[bytes]) -> bytes:
    text = f"{host:<{width}} | "
    wanted = file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return (f"\x1b[{colour}m{text}\x1b[0m" if wanted else text).encode()
