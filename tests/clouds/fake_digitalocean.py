"""A DigitalOcean of the test's own, on 127.0.0.1: the cloud of digitalocean_cloud.py behind HTTP.

`fail` puts a fault in the way of a call: an answer in place of the real one, a lost request, a lost
answer, a slow one. Every exchange is checked against the API's own description (openapi_check.py);
what did not fit is in `violations`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.clouds import openapi_check
from tests.clouds.digitalocean_answers import Answer, Call
from tests.clouds.digitalocean_cloud import Cloud

HOLD_AT_MOST_S = 60


@dataclass
class Fault:
    """What goes wrong with a call that `method` and the whole of `path` (a pattern) match."""

    method: str
    path: str
    answer: Answer | None = None
    """Sent in place of the real one; None closes the connection without a word."""
    effect: bool = False
    """The call is carried out all the same: a lost answer, not a lost request."""
    times: int = 1
    skip: int = 0
    hold: threading.Event | None = None
    """Waited for before anything else: a slow region."""
    meanwhile: Callable[[], None] = field(default=lambda: None)
    """Called when the answer would be sent: the caller's death, perhaps."""


class FakeDigitalOcean(Cloud):
    """The cloud as a server. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> FakeDigitalOcean:
        cloud = self

        class Handler(_Handler):
            fake = cloud

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:  # type: ignore[override]  # a constant there, the port taken here
        """The value for DIGITALOCEAN_END_POINT."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/v2/"

    def fail(self, method: str, path: str, answer: Answer | None = None, **more: Any) -> Fault:
        fault = Fault(method, path, answer, **more)
        self._faults.append(fault)
        return fault

    def mend(self, fault: Fault) -> None:
        """Take a fault away that has not used itself up."""
        with self._lock, contextlib.suppress(ValueError):
            self._faults.remove(fault)

    def count(self, method: str = "", path: str = ".*") -> int:
        """How many calls were made that fit."""
        return sum(
            method in ("", call.method) and re.fullmatch(path, call.path) is not None
            for call in self.calls
        )

    def answer(self, call: Call) -> tuple[Answer | None, bool]:
        """What is sent (None: nothing), and whether it is what the cloud meant to send."""
        fault = self._take_fault(call)
        if fault is not None and fault.hold is not None:
            fault.hold.wait(HOLD_AT_MOST_S)
        if fault is not None and not fault.effect and fault.hold is None:
            fault.meanwhile()
            return fault.answer, False
        with self._lock:
            answer = self.perform(call)
        if fault is not None and fault.hold is None:
            fault.meanwhile()
            return fault.answer, False
        return answer, True

    def _take_fault(self, call: Call) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.method in ("", call.method) and re.fullmatch(fault.path, call.path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads a call, lets the cloud answer, checks both."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeDigitalOcean

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        call = Call(self.command, self.path, 0, headers, body)
        answer, meant = self.fake.answer(call)
        status = answer.status if answer else 0
        self.fake.calls.append(Call(self.command, self.path, status, headers, body))
        encoded = answer.encoded() if answer else b""
        if self.path.startswith("/v2/"):
            self.fake.violations += openapi_check.violations(
                self.command,
                self.path,
                body,
                headers.get("Content-Type", ""),
                headers.get("Authorization", ""),
                status,
                encoded,
                check_answer=answer is not None and meant,
            )
        with contextlib.suppress(OSError):
            self._send(answer, encoded)

    def _send(self, answer: Answer | None, encoded: bytes) -> None:
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("X-Request-Id", "4d9d8375-3c56-4925-a3e7-eb137fed17e9")
        # 204 has no body, and no length either.
        if answer.status != 204:
            self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = do_PUT = do_DELETE = _serve


@contextlib.contextmanager
def fake_digitalocean() -> Iterator[FakeDigitalOcean]:
    """A cloud that must have been spoken to as its description says."""
    with FakeDigitalOcean() as fake:
        yield fake
    assert fake.violations == []
