"""A DigitalOcean of the test's own, on 127.0.0.1: the cloud of digitalocean_cloud.py behind HTTP.

`fail` puts a fault in the way of a call: an answer in place of the real one, a lost request, a lost
answer, a slow one. Every exchange is checked against the API's own description (openapi_check.py);
what did not fit is in `violations`.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from tests.clouds import openapi_check
from tests.clouds.digitalocean_answers import Answer, Call
from tests.clouds.digitalocean_cloud import Cloud
from tests.clouds.server import Fault, Faults, Loopback, QuietHandler

HOLD_AT_MOST_S = 60


class FakeDigitalOcean(Loopback, Cloud):
    """The cloud as a server. Use as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self._faults: Faults[Answer] = Faults()
        self._lock = threading.RLock()

    @property
    def url(self) -> str:  # type: ignore[override]  # a constant there, the port taken here
        """The value for DIGITALOCEAN_END_POINT."""
        return f"{self.address}/v2/"

    def fail(
        self, method: str, path: str, answer: Answer | None = None, **more: Any
    ) -> Fault[Answer]:
        """`method` may be empty for any; `path` is a pattern for the whole of it."""
        return self._faults.add(f"(?:{method or '[A-Z]+'}) (?:{path})", answer, **more)

    def mend(self, fault: Fault[Answer]) -> None:
        self._faults.mend(fault)

    def count(self, method: str = "", path: str = ".*") -> int:
        """How many calls were made that fit."""
        return sum(
            method in ("", call.method) and re.fullmatch(path, call.path) is not None
            for call in self.calls
        )

    def answer(self, call: Call) -> tuple[Answer | None, bool]:
        """What is sent (None: nothing), and whether it is what the cloud meant to send."""
        fault = self._faults.take(f"{call.method} {call.path}")
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


class _Handler(QuietHandler):
    """One connection: reads a call, lets the cloud answer, checks both."""

    fake: FakeDigitalOcean

    def _serve(self) -> None:
        body = self.body()
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


FakeDigitalOcean.handler = _Handler


@contextlib.contextmanager
def fake_digitalocean() -> Iterator[FakeDigitalOcean]:
    """A cloud that must have been spoken to as its description says."""
    with FakeDigitalOcean() as fake:
        yield fake
    assert fake.violations == []
