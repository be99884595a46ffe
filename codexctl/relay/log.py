"""The relay's log: one line an event on stderr, as JSON or as text.

Events carry ids, names, counts and addresses. Bearer tokens, tickets and the paths that hold them
are never passed in here; frames are not looked at by anybody who logs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TextIO

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


class NoLog(EventLog):
    """For a relay inside another program that shows its own."""

    def __init__(self) -> None:
        super().__init__(as_json=False)

    def event(self, name: str, **fields: Value) -> None:
        pass


def _text(value: Value) -> str:
    text = str(value)
    # One event stays one line, whatever a device calls itself.
    return text if text.isprintable() and text and " " not in text else json.dumps(text)
