"""The relay's log: one line an event on stderr, as JSON or as text.

Events carry ids, names, counts and addresses. Bearer tokens, tickets and the paths that hold them
are never passed in here; frames are not looked at by anybody who logs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import asyncio

Value = str | int | float | bool | None


class EventLog:
    """Writes events. A log that cannot be written is given up: the relay serves on."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self._stream = sys.stderr if stream is None else stream

    def event(self, name: str, **fields: Value) -> None:
        now = time.time()
        if self._as_json:
            line = json.dumps({"time": round(now, 3), "event": name, **fields})
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
            shown = " ".join(f"{key}={_text(value)}" for key, value in fields.items())
            line = f"{stamp} {name} {shown}".rstrip()
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed pipe or a full disk under the log

    def defect(self, error: BaseException) -> None:
        """Tell where something unexpected happened; its text could hold what a peer sent."""
        self.event("defect", error=type(error).__name__, at=_place(error))

    def loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An event loop's exception handler."""
        self.defect(context.get("exception") or RuntimeError())


class NoLog(EventLog):
    """For a relay inside another program that shows its own."""

    def __init__(self) -> None:
        super().__init__(as_json=False)

    def event(self, name: str, **fields: Value) -> None:
        pass


class DefectHandler(logging.Handler):
    """Turns a library's report of an exception in our callbacks into an event.

    What the library says about its peers, without an exception, is dropped: strangers could fill
    the log with that.
    """

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.ERROR)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.defect(error)


def _place(error: BaseException) -> str:
    """The innermost frame, as `file:line function`."""
    trace = error.__traceback__
    if trace is None:
        return "unknown"
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{os.path.basename(code.co_filename)}:{trace.tb_lineno} {code.co_name}"


def _text(value: Value) -> str:
    text = str(value)
    # One event stays one line, whatever a device calls itself.
    return text if text.isprintable() and text and " " not in text else json.dumps(text)
