"""Deliver what waits in the outbox of this device, whenever its host is reached anyway."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from codexctl.cli.output import notice
from codexctl.errors import AuthenticationFailed, CodexctlError, ConnectionFailed
from codexctl.paths import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from codexctl.client.connection import Connection
    from codexctl.client.outbox import Message


def deliver_waiting(
    home: Home, connection: Connection, *, wait: bool = False, own: int | None = None
) -> bool:
    """Send what waits for this host, in order; stderr is told what became of it.

    Without `wait` nothing is done where another process delivers now. A lost connection is raised;
    an agent that does not run leaves all as it is. `own` is the message that the caller was given
    just now: it is not spoken of, and when it is refused it is forgotten and the refusal raised.
    True where this call has delivered it, and neither another process nor an attempt before.
    """
    from codexctl.client.agent import call
    from codexctl.client.outbox import deliver, delivering, drop, get, waiting_count
    from codexctl.client.threads import THREADS_DB, open_threads

    if not os.path.exists(home.join(THREADS_DB)):
        return False
    db = open_threads(home)
    host = connection.record.environment_id
    if own is None and not waiting_count(db, host):
        return False
    refusals: dict[int, CodexctlError] = {}
    fresh: set[int] = set()

    def send(message: Message) -> None:
        params = {"thread": message.thread, "key": message.key}
        try:
            with lost_as_such(connection):
                answer = call(connection, "thread.send", params, input=message.text.encode())
            if not answer[0].get("repeated"):
                fresh.add(message.number)
        except CodexctlError as error:
            refusals[message.number] = error
            raise

    with delivering(home, wait=wait) as mine:
        if not mine:
            return False
        try:
            ended = deliver(db, host, send)
        except CodexctlError as error:
            from codexctl.client.outbox import PASSING

            if error.code not in PASSING or wait:
                raise
            return False
    for message in ended:
        if message.number != own:
            tell(message, connection.record.name)
    # Another process may have been quicker with it, and been refused.
    if own is not None and (message := get(db, own)).state == "refused":
        drop(db, own)
        raise refusals.get(own) or CodexctlError(message.error)
    return own in fresh


@contextmanager
def lost_as_such(connection: Connection) -> Iterator[None]:
    """An error that ended the session is a lost connection, not an answer: a host that stops."""
    try:
        yield
    except CodexctlError as error:
        if connection.session.closed and error.code != AuthenticationFailed.code:
            raise ConnectionFailed(error.message, hint=error.hint) from error
        raise


def tell(message: Message, host: str) -> None:
    """What became of a message that had waited."""
    where = f"message {message.number} for {host}:{message.thread}"
    if message.state == "refused":
        notice(f"{where} was refused: {message.error}; see: codexctl thread outbox")
    else:
        notice(f"{where} was delivered")
