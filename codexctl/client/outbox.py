"""Messages that wait on this device for a host that is away, each delivered once.

Every message goes through here, so that there is one way and one order: it is written down with
a key of its own, and then delivered, behind those that wait for the same host already. A crash or
a lost answer leaves the message waiting; it is sent again with the same key, and a host that knows
the key answers what it answered before and does nothing.

    waiting --delivered--> delivered
       |  ^--retry---.
       '--refused by the host--> refused     (kept with the reason until dropped or tried again)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from codexctl.errors import CodexctlError, ConnectionFailed, UsageError
from codexctl.paths import Home
from codexctl.state.database import now_s, transaction
from codexctl.state.files import describe_os_error

MAX_WAITING = 256  # messages, over all hosts
MAX_TEXT_BYTES = 1 << 20
KEPT_ENDED = 100  # delivered and refused ones that are still listed
# What passes by itself or by somebody's hand at the host, as a host that is away does.
PASSING = frozenset({"agent-unavailable", "no-codex", "not-logged-in"})
LOCK = "outbox.lock"


class Message(NamedTuple):
    """One message. `host` is an environment id, times are seconds since the epoch."""

    number: int
    key: str
    host: str
    thread: str
    text: str
    created_at: int
    state: str
    error: str
    ended_at: int | None


Deliver = Callable[[Message], None]


def put(db: sqlite3.Connection, host: str, thread: str, text: str) -> Message:
    """Write a message down. UsageError where it is empty or too long, or too many wait."""
    size = len(text.encode())
    if not text.strip():
        raise UsageError("the message is empty")
    if size > MAX_TEXT_BYTES:
        raise UsageError(
            f"the message has {size} bytes, at most {MAX_TEXT_BYTES} can be sent",
            hint="copy the rest to the host as a file (codexctl cp) and name it in the message",
        )
    with transaction(db):
        if waiting_count(db) >= MAX_WAITING:
            raise UsageError(
                f"{MAX_WAITING} messages wait already", hint="see: codexctl thread outbox"
            )
        row = db.execute(
            "INSERT INTO messages (key, host, thread, text, created_at, state) "
            "VALUES (?, ?, ?, ?, ?, 'waiting') RETURNING *",
            (secrets.token_hex(16), host, thread, text, now_s()),
        ).fetchone()
    return Message(*row)


def get(db: sqlite3.Connection, number: int) -> Message:
    row = db.execute("SELECT * FROM messages WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise UsageError(f"there is no message {number}", hint="see: codexctl thread outbox")
    return Message(*row)


def address(db: sqlite3.Connection, number: int, thread: str) -> None:
    """Say which thread a message is for by its id, since names change while it waits."""
    db.execute("UPDATE messages SET thread = ? WHERE number = ?", (thread, number))


def waiting_count(db: sqlite3.Connection, host: str | None = None) -> int:
    """How many wait, for one host or for all."""
    query = "SELECT count(*) FROM messages WHERE state = 'waiting' AND ?1 IN ('', host)"
    count: int = db.execute(query, (host or "",)).fetchone()[0]
    return count


def listed(db: sqlite3.Connection, *states: str) -> list[Message]:
    """Messages in these states (all without one), the oldest first."""
    rows = [Message(*row) for row in db.execute("SELECT * FROM messages ORDER BY number")]
    return [message for message in rows if not states or message.state in states]


def drop(db: sqlite3.Connection, number: int) -> None:
    """Forget a message that waits or was refused. What may be on its way is not taken back."""
    get(db, number)
    db.execute("DELETE FROM messages WHERE number = ? AND state != 'delivered'", (number,))


def retry(db: sqlite3.Connection, number: int) -> None:
    """Have a refused message wait again, with the same key."""
    get(db, number)
    db.execute(
        "UPDATE messages SET state = 'waiting', error = '', ended_at = NULL "
        "WHERE number = ? AND state = 'refused'",
        (number,),
    )


@contextmanager
def delivering(home: Home, *, wait: bool) -> Iterator[bool]:
    """One process of this home delivers at a time, which keeps the order.

    False in the block where another one does so now and `wait` is not set.
    """
    path = home.join(LOCK)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise describe_os_error(error, path, "open") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def deliver(db: sqlite3.Connection, host: str, send: Deliver) -> list[Message]:
    """Send all that waits for `host`, the oldest first; those that ended, as they are now.

    Within `delivering`. A lost connection, or an agent that does not run there, is raised and
    leaves the message and those behind it waiting. What the host refuses is kept as refused, and
    later messages to that thread too, since they were written after it.
    """
    ended: list[Message] = []
    refused: dict[str, str] = {}
    for message in [m for m in listed(db, "waiting") if m.host == host]:
        state, error = "delivered", ""
        if message.thread in refused:
            state, error = "refused", f"an earlier message was refused: {refused[message.thread]}"
        else:
            try:
                send(message)
            except ConnectionFailed:
                raise
            except CodexctlError as problem:
                if problem.code in PASSING:
                    raise
                state, error = "refused", problem.message
                refused[message.thread] = error
        db.execute(
            "UPDATE messages SET state = ?, error = ?, ended_at = ? WHERE number = ?",
            (state, error, now_s(), message.number),
        )
        ended.append(get(db, message.number))
    if ended:
        db.execute(
            "DELETE FROM messages WHERE state != 'waiting' AND number NOT IN (SELECT number "
            "FROM messages WHERE state != 'waiting' ORDER BY ended_at DESC, number DESC LIMIT ?)",
            (KEPT_ENDED,),
        )
    return ended
