"""Follow a thread's events through whatever happens to the connection, each event once.

A path that breaks is the connection's own matter. Where the session itself is gone (the host was
restarted, this machine slept for long), a new one is opened and the events go on behind the last
cursor. Only what time cannot cure is raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from codexctl.client.agent import stream
from codexctl.client.connection import Connection
from codexctl.client.outbox import PASSING
from codexctl.client.thread_view import ThreadView
from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed

REPLAYED = "codexctl/events/replayed"
DROPPED = "codexctl/events/dropped"
BACKOFF_FIRST_S = 0.5
BACKOFF_MOST_S = 15.0

DONE, WAITING, FAILED = 0, 10, 20  # exit statuses of --wait


def passes(error: CodexctlError, connection: Connection | None) -> bool:
    """Whether time may cure it: a lost connection or session, an agent that starts again."""
    if isinstance(error, AuthenticationFailed) or error.code == AuthenticationFailed.code:
        return False
    lost = connection is not None and connection.session.closed
    return lost or isinstance(error, ConnectionFailed) or error.code in PASSING


def backoff(failures: int) -> float:
    """Seconds before the next attempt, with jitter between half and all of it."""
    delay: float = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(failures, 16))
    return delay * (0.5 + int.from_bytes(os.urandom(2), "big") / 131072)


def follow(
    connection: Connection,
    reopen: Callable[[], Connection],
    thread: str,
    cursor: int | str = 0,
    *,
    lasting: bool = True,
    script: bool = False,
    notice: Callable[[str], None] = lambda text: None,
    opened: Callable[[Connection], None] = lambda connection: None,
) -> Generator[dict[str, Any], None, None]:
    """Event lines behind `cursor` ("now": none of those that are there), then those that come.

    `connection` is used first and belongs to the caller; others come from `reopen` and are closed
    here. `opened` is told of each. Without `lasting` it ends when all that is kept was given.
    A `script` is nobody who watches: notifications go out all the same.
    """
    last, failures, told = cursor, 0, False
    own: Connection | None = None
    try:
        while True:
            current = own or connection
            try:
                if failures:
                    current = own = reopen()
                opened(current)
                params = {"thread": thread, "cursor": last, "follow": lasting, "script": script}
                for event in stream(current, "thread.watch", params):
                    if told:
                        told = False
                        notice(f"connected to {current.record.name} again")
                    failures = 0
                    at = event.get("cursor")
                    if isinstance(at, int):
                        last = at
                    yield event
                if not lasting:
                    return
                raise ConnectionFailed("the host ended the stream of events")
            except CodexctlError as error:
                if not passes(error, current):
                    raise
                if not told:
                    told = True
                    notice(f"{error.message}; trying again")
            if own is not None:
                own.close()
                own = None
            time.sleep(backoff(failures))  # a host that is away cannot say when it is back
            failures += 1
    finally:
        if own is not None:
            own.close()


class Waiting:
    """What `--wait` waits for: the end of the turn, or a person. Decides on events alone."""

    def __init__(self, view: ThreadView, *, turn_expected: bool) -> None:
        """`turn_expected`: a turn was begun behind the first cursor, so one ends or will."""
        self._view = view
        self._live = False
        self._expected = turn_expected
        self._idle = False

    def status(self, event: Mapping[str, Any], *, thread_status: str = "") -> int | None:
        """The exit status after `event`, which the view has been fed; None for going on.

        Nothing is decided before the replay has ended: what waited then may be answered since.
        `thread_status` is the host's word for a thread whose events tell nothing.
        """
        if event.get("method") == REPLAYED:
            self._live = True
        if not self._live:
            return None
        view = self._view
        if view.pending:
            return WAITING
        if view.outcome:
            return DONE if view.outcome == "completed" else FAILED
        if view.status == "failed":
            return FAILED
        if self._expected or view.status == "active":
            return None
        return {"waiting": WAITING, "failed": FAILED, "active": None}.get(thread_status, DONE)
