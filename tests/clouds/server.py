"""What every fake cloud has: a server on loopback, and faults put in the way of its calls."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Generic, TypeVar

A = TypeVar("A")


class QuietHandler(BaseHTTPRequestHandler):
    """Reads one request after another, and logs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class Loopback:
    """A server on a free port, from entering to leaving."""

    handler: type[QuietHandler]
    """Its class attribute `fake` is set to this server."""

    def __enter__(self) -> Any:
        bound = type("Handler", (self.handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@dataclass(eq=False)
class Fault(Generic[A]):
    """What goes wrong with a call whose name the whole pattern matches."""

    pattern: str
    answer: A | None = None
    """Sent in place of the real one; None closes the connection without a word."""
    effect: bool = False
    """The call is carried out all the same: a lost answer, not a lost request."""
    times: int = 1
    skip: int = 0
    hold: threading.Event | None = None
    """Waited for before anything else: a slow region."""
    meanwhile: Callable[[], None] = field(default=lambda: None)
    """Called when the answer would be sent: the caller's death, perhaps."""


class Faults(Generic[A]):
    """Those that wait for their call, in order."""

    def __init__(self) -> None:
        self._waiting: list[Fault[A]] = []
        self._lock = threading.Lock()

    def add(self, pattern: str, answer: A | None, **more: Any) -> Fault[A]:
        fault = Fault(pattern, answer, **more)
        with self._lock:
            self._waiting.append(fault)
        return fault

    def mend(self, fault: Fault[A]) -> None:
        """Take a fault away that has not used itself up."""
        with self._lock, contextlib.suppress(ValueError):
            self._waiting.remove(fault)

    def take(self, name: str) -> Fault[A] | None:
        """The fault of this call, which is used up by it."""
        with self._lock:
            for fault in self._waiting:
                if re.fullmatch(fault.pattern, name):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    if not fault.times:
                        self._waiting.remove(fault)
                    return fault
        return None
