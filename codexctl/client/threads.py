"""Which thread is meant, and on which host it is: threads.db in the home of a device.

A thread is named by a prefix of its id or by its name, with `HOST:` before it where that is needed.
What hosts listed is remembered, so that most commands ask the one host that has the thread; nothing
is decided from the memory alone: the host resolves the name again, and a thread that is not there
any more is looked for on all hosts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from codexctl.errors import CodexctlError, UsageError
from codexctl.paths import Home
from codexctl.state.database import Migration, open_database, transaction

THREADS_DB = "threads.db"
MIN_PREFIX = 4  # characters of an id
SHORT_ID = 13  # characters of an id as shown: its 48 bits of time, which hardly repeat
KEPT_PER_HOST = 500  # threads remembered, the newest ones

MIGRATIONS: tuple[Migration, ...] = (
    (
        """
        CREATE TABLE known (
            host TEXT NOT NULL,
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            cwd TEXT NOT NULL,
            preview TEXT NOT NULL,
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (host, id)
        ) STRICT
        """,
        """
        CREATE TABLE messages (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            key TEXT NOT NULL UNIQUE,
            host TEXT NOT NULL,
            thread TEXT NOT NULL,
            text TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'refused')),
            error TEXT NOT NULL DEFAULT '',
            ended_at INTEGER
        ) STRICT
        """,
        "CREATE INDEX messages_state ON messages (state, host, number)",
    ),
)


class Known(NamedTuple):
    """A thread that a host listed. `host` is the host's environment id."""

    host: str
    id: str
    name: str
    cwd: str
    preview: str
    updated_at: int


class UnknownThread(UsageError):
    """No thread has that id or name."""

    code = "unknown-thread"

    def __init__(self, name: str) -> None:
        super().__init__(f"no thread is called {name}", hint="see: codexctl thread list --all")


class AmbiguousThread(UsageError):
    """Several threads have that prefix or name."""

    code = "ambiguous-thread"


def open_threads(home: Home) -> sqlite3.Connection:
    """threads.db of this home, made where it is missing."""
    home.ensure()
    return open_database(home.join(THREADS_DB), MIGRATIONS)


def remember(db: sqlite3.Connection, host: str, threads: Iterable[Mapping[str, Any]]) -> None:
    """Keep what a host listed; the oldest beyond KEPT_PER_HOST are forgotten.

    A thread is on one host: where it was before, and where it has moved away from, is forgotten.
    """
    listed = list(threads)
    rows = [known(host, thread) for thread in listed if not thread.get("moved_to")]
    moved = [(host, str(thread.get("id"))) for thread in listed if thread.get("moved_to")]
    if not listed:
        return
    with transaction(db):
        db.executemany("DELETE FROM known WHERE host = ? AND id = ?", moved)
        db.executemany("DELETE FROM known WHERE host != ? AND id = ?", [row[:2] for row in rows])
        db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.execute(
            "DELETE FROM known WHERE host = ? AND id NOT IN "
            "(SELECT id FROM known WHERE host = ? ORDER BY updated_at DESC LIMIT ?)",
            (host, host, KEPT_PER_HOST),
        )


def forget(db: sqlite3.Connection, host: str, thread: str) -> None:
    db.execute("DELETE FROM known WHERE host = ? AND id = ?", (host, thread))


def remembered(db: sqlite3.Connection) -> list[Known]:
    return [Known(*row) for row in db.execute("SELECT * FROM known ORDER BY updated_at DESC")]


def known(host: str, thread: Mapping[str, Any]) -> Known:
    """A row from a host's thread object, whatever it lacks."""
    updated = thread.get("updated_at")
    name, cwd, preview = (str(thread.get(key) or "") for key in ("name", "cwd", "preview"))
    at = int(updated) if isinstance(updated, int | float) else 0
    return Known(host, str(thread.get("id") or ""), name, cwd, preview[:200], at)


def matching(threads: Iterable[Known], name: str) -> list[Known]:
    """Those meant by `name`: the id, else the name, else a prefix of the id."""
    found = list(threads)
    exact = [t for t in found if t.id == name] or [t for t in found if t.name == name != ""]
    if exact or len(name) < MIN_PREFIX:
        return exact
    return [t for t in found if t.id.startswith(name.lower())]


def split_address(text: str, hosts: Sequence[str]) -> tuple[str | None, str]:
    """`HOST:THREAD` where HOST is one of `hosts`; else no host, and all of it is the thread."""
    host, colon, thread = text.partition(":")
    if colon and host in hosts:
        if not thread:
            raise UsageError(f"{text} names no thread", hint="HOST:THREAD; codexctl thread list")
        return host, thread
    return None, text


def ambiguous(name: str, found: Sequence[tuple[str, Known]]) -> AmbiguousThread:
    """The error for several threads; each is given as the person can name it: `HOST:ID`."""
    shown = [f"{host}:{t.id}  {t.name or t.preview}".rstrip() for host, t in found[:8]]
    return AmbiguousThread(
        f"{name} could be {len(found)} threads", hint="\n".join(["name one of:", *shown])
    )


def completions(home: Home, start: str) -> list[tuple[str, str]]:
    """Ids and names that begin so, each with what is said about it; never an error."""
    import os

    if not os.path.exists(home.join(THREADS_DB)):
        return []
    try:
        db = open_threads(home)
        try:
            threads = remembered(db)
        finally:
            db.close()
    except (CodexctlError, sqlite3.Error):
        # In the middle of a command line nothing is better than an error.
        return []
    found = [(t.name, t.cwd) for t in threads if t.name and t.name.startswith(start)]
    return found + [
        (t.id[:SHORT_ID], t.name or t.preview) for t in threads if t.id.startswith(start)
    ]
